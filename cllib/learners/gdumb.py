"""GDumb (Prabhu et al. 2020): keep a class-balanced store, train from scratch on it at the end of each experience."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cllib.errors import one_of, whole
from cllib.learners.er import STORED
from cllib.learners.naive import Naive
from cllib.memory import Balanced
from cllib.models.networks import logits_of
from cllib.randomness import generator
from cllib.streams.base import Experience


@dataclass(frozen=True)
class GDumbSettings:
    """buffer_size: samples stored; memory_epochs, memory_batch: of the training on them; dtype: as in `er`."""

    buffer_size: int = 200
    memory_epochs: int = 30
    memory_batch: int = 32
    dtype: str = "float32"

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, STORED)
        for name in ("buffer_size", "memory_epochs", "memory_batch"):
            whole(name, getattr(self, name), 1)


class GDumb(Naive):
    """No step during the experience; then `memory_epochs` over the store from the initial weights.

    The step size is constant: the paper's schedule and its CutMix are left out, they do not distinguish the method.
    """

    Settings = GDumbSettings
    waits: ClassVar[bool] = True

    def __init__(self, settings: Any, *parts: Any, **named: Any) -> None:
        super().__init__(settings, *parts, **named)
        self.memory = Balanced(settings.buffer_size, self.seed, settings.dtype)
        self.shuffles = generator(self.seed, "gdumb")
        self.initial = deepcopy(dict(self.network.state_dict()))
        self.fresh = deepcopy(self.optimiser.state_dict())

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """Store or refuse the samples; the logits are those of the last network trained."""
        self.memory.add(x=x, y=y)
        return logits_of(self.network, x)

    def finish(self, experience: Experience) -> None:
        self.network.load_state_dict(self.initial)
        self.optimiser.load_state_dict(deepcopy(self.fresh))
        items = self.memory.all()
        for _ in range(self.settings.memory_epochs):
            order = torch.randperm(len(items["y"]), generator=self.shuffles)
            for index in order.to(items["y"].device).chunk(-(-len(order) // self.settings.memory_batch)):
                super().observe(items["x"][index], items["y"][index])

    def parts(self) -> dict[str, list[Tensor]]:
        kept = {"initial weights": [*self.initial.values()], "buffer": [*self.memory.items.values()]}
        return {**super().parts(), **kept}

    def state_dict(self) -> dict[str, Any]:
        kept = {"memory": self.memory.state_dict(), "shuffles": self.shuffles.get_state(), "initial": self.initial}
        return {**super().state_dict(), **deepcopy(kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.memory.load_state_dict(state["memory"])
        self.shuffles.set_state(state["shuffles"].clone())
        self.initial = deepcopy(state["initial"])
