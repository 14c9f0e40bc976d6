"""Experience replay (Chaudhry et al. 2019, "On tiny episodic memories"): each batch is joined by stored samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cllib.errors import one_of, whole
from cllib.learners.naive import Losses, Naive
from cllib.memory import Reservoir

STORED = ("float32", "pixels")


@dataclass(frozen=True)
class ReplaySettings:
    """buffer_size: samples stored, by reservoir sampling; replay_size: samples replayed a step; dtype: how samples are
    stored, "float32" or, images only, "pixels", a byte a number.
    """

    buffer_size: int = 200
    replay_size: int = 32
    dtype: str = "float32"

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, STORED)
        whole("buffer_size", self.buffer_size, 1)
        whole("replay_size", self.replay_size, 0)


class ER(Naive):
    """Cross-entropy, averaged over the batch and the replayed samples alike: one forward for both.

    Every batch is offered to the memory, in every epoch.
    """

    Settings = ReplaySettings
    off: ClassVar[Mapping[str, Any] | None] = {"replay_size": 0}

    def __init__(self, settings: Any, *parts: Any, **named: Any) -> None:
        super().__init__(settings, *parts, **named)
        self.memory = Reservoir(settings.buffer_size, self.seed, settings.dtype)

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        replayed = self.memory.draw(self.settings.replay_size)
        if replayed is None:
            return super().objective(x, y)
        logits = self.network(torch.cat([x, replayed["x"]]))
        return logits[: len(y)], {"loss": self.cross_entropy(logits, torch.cat([y, replayed["y"]]))}

    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        self.memory.add(x=x, y=y)

    def parts(self) -> dict[str, list[Tensor]]:
        return {**super().parts(), "buffer": [*self.memory.items.values()]}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "memory": self.memory.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.memory.load_state_dict(state["memory"])
