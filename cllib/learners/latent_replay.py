"""Latent replay (Pellegrini et al. 2020; ViT-LR, Dequino et al. 2022): AR1's buffer, its mini-batches, its CWR* head.

What is replayed is what the network is shown: latents where a frozen part stands before it (`streams.latent`), else the
samples themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cllib.errors import flag, one_of, whole, within
from cllib.feeds import Batches, Portion, Portions, padded, portion
from cllib.learners.cwr import Rows, counted
from cllib.learners.naive import Losses, Naive
from cllib.learners.si import PathPenalty
from cllib.memory import DTYPES, LatentBuffer, quota
from cllib.models.networks import classifier
from cllib.randomness import generator
from cllib.streams.base import Experience, Stream

SCHEDULES, UNSEEN = ("shuffled", "legacy"), ("zero", "left")
STIFFEST = 1e-3  # of SI's importances
DAMPING = 1e-7


@dataclass(frozen=True)
class LatentReplaySettings:
    """buffer_size: R, samples stored; dtype: how (`memory.encode`).

    schedule: "shuffled": new and stored samples in a new order in every epoch, or "legacy", one order for all of them
    and each stored sample always beside the same new ones. later_epochs, later_step_size: from the second experience
    on, where a new optimiser starts; None: as in the first. cwr: average the classifier's rows; unique_classes: once a
    class, or, as released, as often as the class is in buffer and batch; unseen: rows of classes never seen are "zero"
    in tests, or "left" as they are, as released. reset_head: forget the head's momentum whenever its rows are loaded.
    strength: lambda of AR1's synaptic intelligence on all but the head; 0 is none, as published.
    """

    buffer_size: int = 1500
    dtype: str = "float32"
    schedule: str = "shuffled"
    later_epochs: int | None = None
    later_step_size: float | None = None
    cwr: bool = True
    unique_classes: bool = True
    unseen: str = "zero"
    reset_head: bool = False
    strength: float = 0.0

    def __post_init__(self) -> None:
        whole("buffer_size", self.buffer_size, 0)
        one_of("dtype", self.dtype, DTYPES)
        one_of("schedule", self.schedule, SCHEDULES)
        if self.later_epochs is not None:
            whole("later_epochs", self.later_epochs, 1)
        if self.later_step_size is not None:
            within("later_step_size", self.later_step_size, 0)
        one_of("unseen", self.unseen, UNSEEN)
        for name in ("cwr", "unique_classes", "reset_head"):
            flag(name, getattr(self, name))
        within("strength", self.strength, 0)


class LatentReplay(Naive):
    """Each mini-batch is the next new samples and the next slice of the buffer, weighted alike (`feeds.portion`).

    After experience i, h = R div (i + 1) samples drawn from it replace as many random ones; the first fills the buffer,
    whose size never changes again. Which of the new samples will be stored is drawn beforehand, so only those are kept.
    """

    Settings = LatentReplaySettings

    def __init__(self, settings: Any, *parts: Any, **named: Any) -> None:
        super().__init__(settings, *parts, **named)
        self.buffer = LatentBuffer(settings.dtype)
        self.incoming: dict[str, Tensor] = {}  # new samples that wait for the end of the experience
        self.draws = generator(self.seed, "memory")
        self.rows = Rows(classifier(self.network))
        self.times = torch.zeros_like(self.rows.past)  # how often the released program visits each class
        self.chosen = torch.empty(0, dtype=torch.long)  # of the new samples, by their place in the first epoch
        self.step = self.learned = 0  # steps in this experience; experiences
        self.part = Portion(self.batch_size, 0, 1)
        self.right = torch.empty(0)  # of the last mini-batch, replayed ones included
        self.penalty = PathPenalty(self._body(), DAMPING, (0, STIFFEST)) if settings.strength else None

    @classmethod
    def feed(
        cls, settings: Any, stream: Stream, seed: int, batch_size: int, epochs: int, iterations: int | None
    ) -> Batches:
        later, legacy = settings.later_epochs or epochs, settings.schedule == "legacy"
        return Portions(stream, seed, batch_size, epochs, iterations, later, settings.buffer_size, legacy)

    def begin(self, experience: Experience) -> None:
        self.step = 0
        self.part = self._portion(len(experience))
        if self.learned == 1:
            self._new_optimiser()
        stored = self._stored_labels()
        new, old = counted(experience.y, self.rows.past), counted(stored, self.rows.past)
        self.rows.now = new + old
        self.times = old + (new > 0) if self.learned else (new > 0).to(new.dtype)
        if self.settings.cwr:
            self.rows.load(self.rows.now > 0)
        if self.settings.reset_head:
            for p in self.rows.layer.parameters():
                self.optimiser.state.pop(p, None)
        available = self.part.new * self.part.steps
        count = quota(self.settings.buffer_size, self.learned, available, len(self.buffer))
        self.chosen = torch.randperm(available, generator=self.draws)[:count].sort().values
        self.incoming = {}

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        rows = self._slice()
        labels = y
        if len(rows):
            old, old_labels = self.buffer.take(rows, x.dtype)
            x, labels = torch.cat([x, old]), torch.cat([y, old_labels])
        logits = self.network(x)
        loss = self.cross_entropy(logits, labels)
        self.right = logits.detach().argmax(-1) == labels
        return logits[: len(y)], {"loss": loss}

    def correct(self) -> None:
        if self.penalty is not None:
            self.penalty.correct(self._body(), self.settings.strength)

    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        if self.penalty is not None:
            self.penalty.follow(self._body())
        first = self.step * self.part.new  # of this batch, counted through the first epoch
        self.step += 1
        last = first + len(y)
        here = self.chosen[(self.chosen >= first) & (self.chosen < last)] - first
        if len(here):
            new = {"x": x[here.to(x.device)], "y": y[here.to(y.device)]}
            self.incoming = {n: torch.cat([self.incoming[n], v]) for n, v in new.items()} if self.incoming else new

    def finish(self, experience: Experience) -> None:
        if self.settings.cwr:
            self.rows.finish(*self._averaging())
        self._replace()
        if self.penalty is not None:
            self.penalty.finish(self._body())
        self.learned += 1

    def predict(self, x: Tensor, experience: int | None = None) -> Tensor:
        """Logits with the rows as they would be if the experience ended now."""
        if not self.settings.cwr:
            return super().predict(x)
        rows = self.rows.read()
        self.rows.write(self.rows.settled(*self._averaging()))
        logits = super().predict(x)
        self.rows.write(rows)
        return logits

    def held(self, classes: int) -> Tensor:
        """Stored samples of each class, `[classes]`."""
        return torch.bincount(self._stored_labels(), minlength=classes)

    # --- the parts of it ---

    def _averaging(self) -> tuple[Tensor | None, bool]:
        """How rows are averaged: visits a class, None for one; whether rows of classes never seen are left."""
        return None if self.settings.unique_classes else self.times, self.settings.unseen == "left"

    def _portion(self, samples: int) -> Portion:
        """How the mini-batches of an experience are made up."""
        if self.learned == 0:
            return Portion(self.batch_size, 0, padded(samples, self.batch_size) // self.batch_size)
        held = self.settings.buffer_size if self.settings.schedule == "legacy" else len(self.buffer)
        return portion(samples, held, self.batch_size)

    def _slice(self) -> Tensor:
        """Slots that this step replays; they may run out."""
        epoch, at = divmod(self.step, self.part.steps)
        order = torch.arange(len(self.buffer))
        if self.settings.schedule == "shuffled" and self.part.replayed:
            order = order[self._order(epoch)]
        return order[at * self.part.replayed : (at + 1) * self.part.replayed]

    def _order(self, epoch: int) -> Tensor:
        """The buffer's order in an epoch, which depends on nothing but seed, experience and epoch."""
        draws = generator(self.seed, f"replay {self.learned} {epoch}")
        return torch.randperm(len(self.buffer), generator=draws)

    def _replace(self) -> None:
        """Take the chosen samples into the buffer."""
        if self.incoming:
            slots = torch.randperm(max(1, len(self.buffer)), generator=self.draws)[: len(self.incoming["y"])]
            self.buffer.put(**self.incoming, slots=slots if self.learned else None)
        self.incoming = {}

    def _new_optimiser(self) -> None:
        """What the released program does once, before the second experience."""
        self.optimiser.state.clear()
        if self.settings.later_step_size is not None:
            for group in self.optimiser.param_groups:
                group["lr"] = self.settings.later_step_size

    def _stored_labels(self) -> Tensor:
        """Of the buffer, `[n]`."""
        empty = torch.empty(0, dtype=torch.long, device=self.rows.past.device)
        stored: Tensor = self.buffer.items.get("y", empty)
        return stored

    def _body(self) -> list[torch.nn.Parameter]:
        """What learns and is not the head."""
        head = {id(p) for p in self.rows.layer.parameters()}
        return [p for p in self.parameters() if id(p) not in head]

    # --- what is carried along ---

    def parts(self) -> dict[str, list[Tensor]]:
        made = {"kept rows": [*self.rows.parts(), self.times], "chosen": [self.chosen]}
        made |= {"buffer": [*self.buffer.items.values()], "incoming": [*self.incoming.values()]}
        penalty = {} if self.penalty is None else {"importance": self.penalty.parts()}
        return {**super().parts(), **made, **penalty}

    def state_dict(self) -> dict[str, Any]:
        counters = {"step": self.step, "learned": self.learned, "part": list(vars(self.part).values())}
        kept: dict[str, Any] = {"times": self.times.clone(), "chosen": self.chosen.clone()}
        kept["draws"] = self.draws.get_state()
        kept["incoming"] = {name: values.clone() for name, values in self.incoming.items()}
        stores = {name: getattr(self, name).state_dict() for name in ("rows", "buffer")}
        penalty = None if self.penalty is None else self.penalty.state_dict()
        return {**super().state_dict(), **counters, **kept, **stores, "penalty": penalty}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.step, self.learned, self.part = state["step"], state["learned"], Portion(*state["part"])
        self.times, self.chosen = state["times"].clone(), state["chosen"].clone()
        self.draws.set_state(state["draws"].clone())
        self.incoming = {name: values.clone() for name, values in state["incoming"].items()}
        for name in ("rows", "buffer"):
            getattr(self, name).load_state_dict(state[name])
        if self.penalty is not None:
            self.penalty.load_state_dict(state["penalty"])
