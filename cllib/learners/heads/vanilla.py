"""The plain online learner: one optimiser step on each sample, nothing remembered. Memory Heads learn this way."""

from collections.abc import Callable

import torch
from torch import Tensor

from cllib.losses import GRADIENTS, SUMMED
from cllib.models.classic import Head
from cllib.optim import SGD, Adam
from cllib.streams import Experience

CHUNK_FLOATS = 2**24  # evaluation works on about this many numbers at a time


class Vanilla:
    """R heads learning online from R samples at a time.

    Args:
        head: R heads; optimiser: with R rates; loss: "xent" (over a batch: averaged), "hinge" (summed, as
            released) or "hinge_mean" (averaged).
    """

    def __init__(self, head: Head, optimiser: SGD | Adam, loss: str = "xent") -> None:
        self.head, self.optimiser = head, optimiser
        self.gradient, self.summed = GRADIENTS[loss], loss in SUMMED
        self.runs, self.seed = len(head.seeds), head.seeds[0]
        self.t = 0  # samples seen

    def begin(self, experience: Experience) -> None:
        """Called before the first sample of an experience."""

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """One optimisation step on `x: [R, B, n]`, `y: [R, B]`. Returns the logits given before it, `[R, B, c]`."""
        logits, gradients = self.head.learn(x, self.on(y))
        self.optimiser.step(self.head.parameters, gradients)
        self.t += 1
        return logits

    def on(self, y: Tensor, weight: float = 1.0) -> Callable[[Tensor], Tensor]:
        """logits -> gradient of the loss over B, a mean unless summed, times a weight; `y: [R, B]`."""
        scale = weight if self.summed else weight / y.shape[1]
        return lambda logits: self.gradient(logits, y) * scale

    def finish(self, experience: Experience) -> None:
        """Called after the last sample of an experience."""

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Logits `[R, T, c]` of the same `x: [T, n]` for every run; changes nothing."""
        pieces = x.split(max(1, CHUNK_FLOATS // self.head.work()))
        return torch.cat([self.head.logits(piece.expand(self.runs, *piece.shape)) for piece in pieces], 1)

    def sizes(self) -> dict[str, int]:
        """Floats kept by one run, by part."""
        return self.head.sizes()

    def bytes(self) -> dict[str, int]:
        """The same in bytes, four a float."""
        return {name: 4 * size for name, size in self.sizes().items()}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """All that learning changed: head, optimiser, position."""
        return {
            "head": self.head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "position": {"t": torch.tensor(self.t)},
        }

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take over a state from `state_dict`."""
        self.head.load_state_dict(state["head"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.t = int(state["position"]["t"])
