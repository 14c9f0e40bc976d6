"""CWR* (Lomonaco et al. 2020): a frozen body, and a classifier whose rows are averaged over the experiences."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cllib.errors import flag
from cllib.learners.naive import Losses, Naive
from cllib.models.networks import classifier
from cllib.streams.base import Experience


@dataclass(frozen=True)
class CWRSettings:
    """freeze: train the body in the first experience only (off: AR1's variant, the body goes on learning)."""

    freeze: bool = True

    def __post_init__(self) -> None:
        flag("freeze", self.freeze)


def consolidate(kept: Tensor, trained: Tensor, past: Tensor, now: Tensor, times: Tensor | None = None) -> Tensor:
    """New consolidated rows cw `[C, d]` for the classes seen in this experience; other rows stay.

    kept: cw; trained: W; past, now: samples of each class before and in this experience, `[C]`. With mu the mean over
    all numbers of the rows seen now, and a = sqrt(past / now): cw <- (a cw + W - mu) / (a + 1). times: how often each
    class is visited, `[C]`, where a program does it more than once: rows weigh as much in mu, and a / (a + 1) to that
    power is what stays of cw.
    """
    seen = (now > 0)[:, None]  # [C, 1]
    visits = (torch.ones_like(now) if times is None else times)[:, None]
    weights = torch.where(seen, visits, 0)
    mean = (weights * trained).sum() / (weights.sum() * trained.shape[1]).clamp(min=1)
    weight = (past / now.clamp(min=1)).sqrt()[:, None]
    if times is None:
        return torch.where(seen, (weight * kept + trained - mean) / (weight + 1), kept)
    share = (weight / (weight + 1)) ** visits
    return torch.where(seen, share * kept + (1 - share) * (trained - mean), kept)


class Rows:
    """A linear layer whose rows are averaged over the experiences of their class. A bias is part of its row.

    Attributes:
        kept: cw, `[C, d (+ 1)]`; past, now: samples of each class in earlier experiences and in this one, `[C]`.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.kept = torch.zeros_like(self.read())
        self.past = torch.zeros_like(self.kept[:, 0])
        self.now = self.past.clone()

    def load(self, own: Tensor) -> None:
        """The kept rows of some classes, `[C]` bool; all others 0."""
        self.write(torch.where(own[:, None], self.kept, 0))

    def settled(self, times: Tensor | None = None, left: bool = False) -> Tensor:
        """The rows that would be kept if the experience ended now (`consolidate`).

        left: those of classes never seen as they are in the layer, not 0.
        """
        rows = consolidate(self.kept, self.read(), self.past, self.now, times)
        never = (self.past + self.now == 0)[:, None]
        return torch.where(never, self.read(), rows) if left else rows

    def finish(self, times: Tensor | None = None, left: bool = False) -> None:
        """Keep them, and write them into the layer."""
        shown, self.kept = self.settled(times, left), self.settled(times)
        self.write(shown)
        self.past += self.now
        self.now.zero_()

    def read(self) -> Tensor:
        """The layer's weights and bias, `[C, d (+ 1)]`."""
        bias = [] if self.layer.bias is None else [self.layer.bias.detach()[:, None]]
        return torch.cat([self.layer.weight.detach(), *bias], 1)

    @torch.no_grad()
    def write(self, rows: Tensor) -> None:
        self.layer.weight.copy_(rows[:, : self.layer.in_features])
        if self.layer.bias is not None:
            self.layer.bias.copy_(rows[:, -1])

    def parts(self) -> list[Tensor]:
        return [self.kept, self.past, self.now]

    def state_dict(self) -> dict[str, Any]:
        return deepcopy({"kept": self.kept, "past": self.past, "now": self.now})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept, self.past, self.now = (state[name].clone() for name in ("kept", "past", "now"))


def counted(y: Tensor, like: Tensor) -> Tensor:
    """How often each class is among the labels `y: [n]`, as numbers of the kind of `like: [C]`."""
    return torch.zeros_like(like).scatter_add_(0, y, torch.ones_like(y, dtype=like.dtype))


class CWR(Naive):
    """The network's last linear layer starts every experience from the kept rows of its classes, all else 0.

    Between experiences the layer holds all rows kept so far.
    """

    Settings = CWRSettings

    def __init__(self, settings: Any, *parts: Any, **named: Any) -> None:
        super().__init__(settings, *parts, **named)
        self.rows = Rows(classifier(self.network))
        self.learned = 0  # experiences

    def begin(self, experience: Experience) -> None:
        own = torch.zeros_like(self.rows.past, dtype=torch.bool)
        own[list(experience.classes)] = True
        self.rows.load(own)
        self._freeze()

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        if self.learned and self.settings.freeze:
            self.network.eval()  # a frozen body also keeps its statistics
        return super().objective(x, y)

    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        self.rows.now += counted(y, self.rows.now)

    def predict(self, x: Tensor, experience: int | None = None) -> Tensor:
        """Logits with the rows as they would be if the experience ended now: old classes are not out of play."""
        rows = self.rows.read()
        self.rows.write(self.rows.settled())
        logits = super().predict(x)
        self.rows.write(rows)
        return logits

    def finish(self, experience: Experience) -> None:
        self.rows.finish()
        self.learned += 1

    def _freeze(self) -> None:
        """After the first experience the body's parameters want no gradient."""
        if self.learned and self.settings.freeze:
            own = {id(p) for p in self.rows.layer.parameters()}
            for p in self.network.parameters():
                if id(p) not in own:
                    p.requires_grad_(False)

    def parts(self) -> dict[str, list[Tensor]]:
        return {**super().parts(), "kept rows": self.rows.parts()}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rows": self.rows.state_dict(), "learned": self.learned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.rows.load_state_dict(state["rows"])
        self.learned = state["learned"]
        self._freeze()
