"""Plain training, which forgets: the lower bound, and what every other learner of networks is made from."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.feeds import Batches
from cllib.models.networks import copying, only_logits
from cllib.models.norms import tested, transductive
from cllib.streams.base import Experience, Stream

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def nobody(name: str, asked: Any = None) -> None:
    """Where no loop listens."""


class Naive:
    """One optimiser step a batch on the cross-entropy of that batch.

    A learner says what differs in `objective` (the losses of a step, summed), `correct` (between gradient and step) and
    `remember` (after the step), and keeps all it changes in `state_dict`.

    Args:
        settings: the learner's own, an instance of its `Settings`.
        network: any module with logits `[B, C]`; parameters that need no gradient stay as they are. It is handed copies
            of samples from then on.
        optimiser: over the network's parameters.
        seed: of the run; a learner draws from generators named for their purpose (`randomness.generator`).
        rivals: `[C, C]` bool, which logits compete with a label (`Stream.rivals`); None: all.
        batch_size: samples of a mini-batch, for a learner that fills a part of it.

    Attributes:
        off: settings under which the learner is `Naive`, bit for bit; None if there are none.
        joint: whether batches are drawn from all experiences so far.
        waits: whether a step needs values on the CPU, so that a GPU is waited for; chooses: whether the end of an
            experience does.
        losses: the parts of the last step's loss.
        halved: multiply matrices in bfloat16 while learning; weights and tests stay in float32.
        epochs, iterations: how long an experience is shown (`feeds.Batches`), for a learner that plans ahead.
        moment: what a learner calls in `finish` at moments worth testing, with a name for it and, where that is not
            its own, something to `predict`; the loop puts its exam there.
    """

    Settings: ClassVar[type] = Nothing
    off: ClassVar[Mapping[str, Any] | None] = None
    joint: ClassVar[bool] = False
    waits: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    halved = False
    epochs = 1
    iterations: int | None = None

    def __init__(
        self,
        settings: Any,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        seed: int,
        rivals: Tensor | None = None,
        batch_size: int = 32,
    ) -> None:
        self.settings, self.network, self.optimiser = settings, network, optimiser
        self.seed, self.rivals, self.batch_size = seed, rivals, batch_size
        copying(network)
        self.losses: Losses = {}
        self.moment: Callable[..., None] = nobody

    @classmethod
    def feed(
        cls, settings: Any, stream: Stream, seed: int, batch_size: int, epochs: int, iterations: int | None
    ) -> Batches:
        """How the stream is shown to such a learner."""
        return Batches(stream, seed, batch_size, epochs, iterations, cls.joint)

    # --- the contract ---

    def begin(self, experience: Experience) -> None:
        """Called before the first batch of an experience."""

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """One optimisation step on `x: [B, ...]`, `y: [B]`. Returns the logits given before it, `[B, C]`."""
        if not self.network.training:
            self.network.train()
        self.optimiser.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16) if self.halved else nullcontext():
            logits, losses = self.objective(x, y)
        torch.stack(tuple(losses.values())).sum().backward()
        logits = logits.detach().to(x.dtype)
        self.correct()
        self.optimiser.step()
        self.remember(x, y, logits)
        self.losses = {name: loss.detach() for name, loss in losses.items()}
        return logits

    def finish(self, experience: Experience) -> None:
        """Called after the last batch of an experience."""

    @property
    def told(self) -> bool:
        """Whether test sets are to be asked apart: where norms use the statistics of the batch, mixing them matters."""
        return transductive(self.network)

    def predict(self, x: Tensor, experience: int | None = None) -> Tensor:
        """Logits `[T, C]` of `x: [T, ...]` in evaluation mode, whatever test set it is; changes nothing."""
        return tested(self.network, x)

    def parts(self) -> dict[str, list[Tensor]]:
        """The tensors that are carried from step to step, by part."""
        moments = [v for state in self.optimiser.state.values() for v in state.values() if isinstance(v, Tensor)]
        return {"network": [*self.network.parameters(), *self.network.buffers()], "optimiser": moments}

    def sizes(self) -> dict[str, int]:
        """Numbers kept, by part."""
        return {name: sum(t.numel() for t in tensors) for name, tensors in self.parts().items()}

    def bytes(self) -> dict[str, int]:
        """Bytes kept, by part."""
        return {name: sum(t.nbytes for t in tensors) for name, tensors in self.parts().items()}

    def state_dict(self) -> dict[str, Any]:
        """All that learning changed: plain values and tensors of its own, fit for `torch.load(weights_only=True)`."""
        return deepcopy({"network": dict(self.network.state_dict()), "optimiser": self.optimiser.state_dict()})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state from `state_dict`."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(deepcopy(state["optimiser"]))

    # --- what learners change ---

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        """Logits of the batch, `[B, C]`, and the losses, whose sum is differentiated."""
        logits = self.network(x)
        return logits, {"loss": self.cross_entropy(logits, y)}

    def correct(self) -> None:
        """Change the parameters' gradients before the step."""

    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        """Keep what later steps need."""

    # --- shared ---

    def cross_entropy(self, logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """Cross-entropy over the logits that compete with each label."""
        logits = only_logits(self.network, logits)
        if self.rivals is not None:
            logits = logits.masked_fill(~self.rivals[y], -torch.inf)
        return F.cross_entropy(logits, y, reduction=reduction)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        return [p for p in self.network.parameters() if p.requires_grad]
