"""Dark experience replay (Buzzega et al. 2020): stored samples keep the logits they had, and are held to them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cllib.errors import within
from cllib.learners.er import ER, ReplaySettings
from cllib.learners.naive import Losses, Naive


@dataclass(frozen=True)
class DERSettings(ReplaySettings):
    """alpha: weight of the squared distance to stored logits; beta: of the cross-entropy on a second draw (DER++)."""

    alpha: float = 0.5
    beta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within("alpha", self.alpha, 0)
        within("beta", self.beta, 0)


@dataclass(frozen=True)
class DERPlusSettings(DERSettings):
    """DER with beta > 0."""

    beta: float = 0.5


class DER(ER):
    """loss(x, y) + alpha MSE(o(x'), z') + beta loss(x'', y''); (x', z') and (x'', y'') are two draws (eq. 5, 6).

    Where the experience is told, only the logits that compete are held.
    """

    Settings = DERSettings
    off: ClassVar[Mapping[str, Any] | None] = {"alpha": 0.0, "beta": 0.0}

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        size, (alpha, beta) = self.settings.replay_size, (self.settings.alpha, self.settings.beta)
        first = self.memory.draw(size) if alpha else None
        second = self.memory.draw(size) if beta else None
        shown = [x, *(draw["x"] for draw in (first, second) if draw is not None)]
        if len(shown) == 1:
            return Naive.objective(self, x, y)
        logits, *replayed = self.network(torch.cat(shown)).split([len(part) for part in shown])
        losses = {"loss": self.cross_entropy(logits, y)}
        if first is not None:
            losses["distillation"] = alpha * self.distance(replayed[0], first["logits"], first["y"])
        if second is not None:
            losses["replay"] = beta * self.cross_entropy(replayed[-1], second["y"])
        return logits, losses

    def distance(self, logits: Tensor, stored: Tensor, y: Tensor) -> Tensor:
        """Mean squared distance `[]` between logits `[B, C]`, over those that compete with the labels."""
        squares = (logits - stored).square()
        if self.rivals is None:
            return squares.mean()
        competing = self.rivals[y]
        return (squares * competing).sum() / competing.sum()

    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        self.memory.add(x=x, y=y, logits=logits)


class DERPlus(DER):
    """DER++: also the labels of a second draw count."""

    Settings = DERPlusSettings
