"""Learning without forgetting (Li & Hoiem 2016): the network before the experience teaches on the new samples."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.errors import within
from cllib.learners.naive import Losses, Naive
from cllib.streams.base import Experience


@dataclass(frozen=True)
class LwFSettings:
    """strength: weight of the distillation; temperature: T of both softmaxes."""

    strength: float = 1.0
    temperature: float = 2.0

    def __post_init__(self) -> None:
        within("strength", self.strength, 0)
        within("temperature", self.temperature, 1e-3)


def distillation(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(taught / T) || softmax(logits / T)), mean over the batch `[B, c]` (Hinton et al. 2015).

    Its gradient is that of the cross-entropy to the soft targets; unlike that it is 0 where student and teacher agree.
    """
    student, teacher = (torch.log_softmax(o / temperature, -1) for o in (logits, taught))
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class LwF(Naive):
    """Cross-entropy, and distillation from a copy of the network made at the end of the last experience.

    What the copy teaches: each earlier experience's own classes where the experience is told ("task"; the mean over
    experiences counts), else all classes seen before.
    """

    Settings = LwFSettings
    off: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}

    def __init__(self, settings: Any, *parts: Any, **named: Any) -> None:
        super().__init__(settings, *parts, **named)
        self.teacher: nn.Module | None = None
        self.blocks: list[list[int]] = []  # classes that are taught together

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        logits, losses = super().objective(x, y)
        if self.teacher is None or self.settings.strength == 0:
            return logits, losses
        with torch.no_grad():
            taught = self.teacher(x)
        parts = [distillation(logits[:, b], taught[:, b], self.settings.temperature) for b in self.blocks]
        return logits, {**losses, "distillation": self.settings.strength * torch.stack(parts).mean()}

    def finish(self, experience: Experience) -> None:
        self.teacher = self._copy()
        if self.rivals is not None:
            self.blocks.append(list(experience.classes))
        else:
            self.blocks = [sorted({*experience.classes, *(c for block in self.blocks for c in block)})]

    def _copy(self) -> nn.Module:
        return deepcopy(self.network).eval().requires_grad_(False)

    def parts(self) -> dict[str, list[Tensor]]:
        return {**super().parts(), "teacher": [] if self.teacher is None else [*self.teacher.parameters()]}

    def state_dict(self) -> dict[str, Any]:
        teacher = None if self.teacher is None else deepcopy(dict(self.teacher.state_dict()))
        return {**super().state_dict(), "teacher": teacher, "blocks": deepcopy(self.blocks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.blocks, self.teacher = deepcopy(state["blocks"]), None
        if state["teacher"] is not None:
            self.teacher = self._copy()
            self.teacher.load_state_dict(state["teacher"])
