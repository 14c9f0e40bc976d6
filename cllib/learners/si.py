"""Synaptic intelligence (Zenke et al. 2017): a parameter's importance is its share in how the loss fell."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cllib.errors import one_of, within
from cllib.learners.ewc import add_pull
from cllib.learners.naive import Naive
from cllib.streams.base import Experience

PATHS = ("full", "batch")


@dataclass(frozen=True)
class SISettings:
    """strength: c; damping: xi (epsilon in released code).

    path: the gradient that the path integral follows, "full" (of the batch's loss and the penalty, as released code
    does) or "batch" (of the batch's loss alone).
    """

    strength: float = 0.1
    damping: float = 0.1
    path: str = "full"

    def __post_init__(self) -> None:
        within("strength", self.strength, 0)
        within("damping", self.damping, 1e-12)
        one_of("path", self.path, PATHS)


def gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """Copies of the gradients, for the optimiser may change them; zeros where there is none."""
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


class SI(Naive):
    """Adds the gradient of c sum_i Omega_i (p_i - p*_i)^2 to that of the batch.

    Along the steps w_i += -g_i (p_i - p_i before the step); at the end of an experience
    Omega_i += max(0, w_i) / ((p_i - p*_i)^2 + xi), p* <- p, w <- 0 (eq. 4, 5; negative w count as none).
    """

    Settings = SISettings
    off: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}

    def __init__(self, settings: Any, *parts: Any, **named: Any) -> None:
        super().__init__(settings, *parts, **named)
        parameters = self.parameters()
        self.path = [torch.zeros_like(p) for p in parameters]  # w
        self.importance = [torch.zeros_like(p) for p in parameters]  # Omega
        self.anchor = [p.detach().clone() for p in parameters]  # p*
        self.learned = 0  # experiences

    def correct(self) -> None:
        parameters = self.parameters()
        if self.settings.path == "batch":
            self.gradients = gradients(parameters)
        if self.learned and self.settings.strength:
            add_pull(parameters, self.importance, self.anchor, 2 * self.settings.strength)
        if self.settings.path == "full":
            self.gradients = gradients(parameters)
        self.before = [p.detach().clone() for p in parameters]

    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        parameters = [p.detach() for p in self.parameters()]
        moved = torch._foreach_sub(parameters, self.before)
        torch._foreach_addcmul_(self.path, self.gradients, moved, value=-1)
        del self.gradients, self.before

    def finish(self, experience: Experience) -> None:
        for p, w, omega, anchor in zip(self.parameters(), self.path, self.importance, self.anchor, strict=True):
            omega += w.clamp(min=0) / ((p.detach() - anchor).square() + self.settings.damping)
            anchor.copy_(p.detach())
            w.zero_()
        self.learned += 1

    def parts(self) -> dict[str, list[Tensor]]:
        return {**super().parts(), "importance": [*self.path, *self.importance, *self.anchor]}

    def state_dict(self) -> dict[str, Any]:
        kept = {"path": self.path, "importance": self.importance, "anchor": self.anchor, "learned": self.learned}
        return {**super().state_dict(), **deepcopy(kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.path, self.importance, self.anchor = deepcopy([state[k] for k in ("path", "importance", "anchor")])
        self.learned = state["learned"]
