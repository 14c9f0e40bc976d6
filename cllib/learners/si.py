"""Synaptic intelligence (Zenke et al. 2017): a parameter's importance is its share in how the loss fell."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cllib.errors import one_of, within
from cllib.learners.ewc import VALUES, add_pull, consolidated, free_norms
from cllib.learners.naive import Naive
from cllib.streams.base import Experience

PATHS, DISPLACEMENTS = ("full", "batch"), ("own", "previous")
KEPT = ("path", "importance", "anchor", "start")


@dataclass(frozen=True)
class SISettings:
    """strength: c; damping: xi (epsilon in released code).

    path: the gradient that the path integral follows, "full" (of the batch's loss and the penalty, as van de Ven's
    program does) or "batch" (of the batch's loss alone, as the author's own does). displacement: of p, which it is
    multiplied by: the step's "own", or the one of the "previous" step, 0 in the first of an experience, as the released
    program of Laborieux et al. does along hidden weights.

    values: what p is: "parameters", all of them; or, for binarized networks (Laborieux et al. 2021), with norms left
    free, the penalty on the signs of the hidden weights, and the path integral along those "signs" or along the
    "hidden" weights. Ours divides by the displacement of what it walked along; their program, along signs, by another.
    """

    strength: float = 0.1
    damping: float = 0.1
    path: str = "full"
    displacement: str = "own"
    values: str = "parameters"

    def __post_init__(self) -> None:
        within("strength", self.strength, 0)
        within("damping", self.damping, 1e-12)
        one_of("path", self.path, PATHS)
        one_of("displacement", self.displacement, DISPLACEMENTS)
        one_of("values", self.values, VALUES)


def gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """Copies of the gradients, for the optimiser may change them; zeros where there is none."""
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


def beside(values: list[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Copies of values from a checkpoint, each on the device of its parameter."""
    return [value.to(p.device, copy=True) for value, p in zip(values, parameters, strict=True)]


class SI(Naive):
    """Adds the gradient of c sum_i Omega_i (p_i - p*_i)^2 to that of the batch.

    Along the steps w_i += -g_i (p_i - p_i before the step); at the end of an experience
    Omega_i += max(0, w_i) / ((p_i - p_i at its start)^2 + xi), p* <- p, w <- 0 (eq. 4, 5; negative w count as none).
    """

    Settings = SISettings
    off: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}

    def __init__(self, settings: Any, *parts: Any, **named: Any) -> None:
        super().__init__(settings, *parts, **named)
        parameters = self.parameters()
        self.path = [torch.zeros_like(p) for p in parameters]  # w
        self.importance = [torch.zeros_like(p) for p in parameters]  # Omega
        self.start = [p.clone() for p in self.walked()]  # where the path of the experience began
        self.anchor = [p.clone() for p in self.pulled()]  # p*
        self.kept: tuple[str, ...] = KEPT
        if settings.displacement == "previous":
            self.kept, self.last = (*KEPT, "last"), [torch.zeros_like(p) for p in parameters]
        self.learned = 0  # experiences

    def walked(self) -> list[Tensor]:
        """What the path integral is taken along."""
        return consolidated(self.network, self.settings.values == "signs")

    def pulled(self) -> list[Tensor]:
        """What the penalty holds."""
        return consolidated(self.network, self.settings.values != "parameters")

    def correct(self) -> None:
        parameters = self.parameters()
        if self.settings.path == "batch":
            self.gradients = gradients(parameters)
        if self.learned and self.settings.strength:
            add_pull(parameters, self.pulled(), self.importance, self.anchor, 2 * self.settings.strength)
        if self.settings.path == "full":
            self.gradients = gradients(parameters)
        self.before = [p.clone() for p in self.walked()]

    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        moved = [*torch._foreach_sub(self.walked(), self.before)]
        if self.settings.displacement == "previous":
            moved, self.last = self.last, moved
        torch._foreach_addcmul_(self.path, self.gradients, moved, value=-1)
        del self.gradients, self.before

    def finish(self, experience: Experience) -> None:
        for p, w, omega, start in zip(self.walked(), self.path, self.importance, self.start, strict=True):
            omega += w.clamp(min=0) / ((p - start).square() + self.settings.damping)
            start.copy_(p)
            w.zero_()
        for p, anchor in zip(self.pulled(), self.anchor, strict=True):
            anchor.copy_(p)
        if self.settings.displacement == "previous":
            torch._foreach_zero_(self.last)
        if self.settings.values != "parameters":
            free_norms(self.network, self.importance)
        self.learned += 1

    def parts(self) -> dict[str, list[Tensor]]:
        return {**super().parts(), "importance": [t for name in self.kept for t in getattr(self, name)]}

    def state_dict(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in (*self.kept, "learned")}
        return {**super().state_dict(), **deepcopy(kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.learned = state["learned"]
        for name in self.kept:
            setattr(self, name, beside(state[name], self.parameters()))


class PathPenalty:
    """Synaptic intelligence over the parameters it is shown, importances bounded as it is told: AR1's and BI-R's.

    Along the steps T += g (theta_new - theta_old), g with the penalty in it; after an experience
    S += T / ((theta_end - theta_start)^2 + damping), F = -S held within bounds, theta* = theta_end. The penalty's
    gradient is strength * F (theta - theta*).

    Args:
        parameters: as they are before the first step.
        damping: xi; bounds: lowest and highest F (None: unbounded).
    """

    NAMES = ("path", "total", "anchor")

    def __init__(
        self, parameters: list[nn.Parameter], damping: float, bounds: tuple[float | None, float | None]
    ) -> None:
        self.damping, self.bounds = damping, bounds
        self.path = [torch.zeros_like(p) for p in parameters]  # T
        self.total = [torch.zeros_like(p) for p in parameters]  # S
        self.anchor = [p.detach().clone() for p in parameters]  # theta*
        self.importance = self._importance()
        self.learned = False  # any experience: before, all importances are 0
        self.before: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def _importance(self) -> list[Tensor]:
        """F."""
        low, high = self.bounds
        return [-total if low is None and high is None else (-total).clamp(low, high) for total in self.total]

    def correct(self, parameters: list[nn.Parameter], strength: float) -> None:
        """Add the penalty's gradient to that of the loss."""
        if self.learned:
            add_pull(parameters, [p.detach() for p in parameters], self.importance, self.anchor, strength)
        self.before = [p.detach().clone() for p in parameters]
        self.gradients = gradients(parameters)

    def follow(self, parameters: list[nn.Parameter]) -> None:
        """Add this step to the path."""
        moved = torch._foreach_sub([p.detach() for p in parameters], self.before)
        torch._foreach_addcmul_(self.path, self.gradients, moved)
        self.before, self.gradients = [], []

    def finish(self, parameters: list[nn.Parameter]) -> None:
        """At the end of an experience. Its start is where the last one ended."""
        for k, p in enumerate(parameters):
            self.total[k] += self.path[k] / ((p.detach() - self.anchor[k]).square() + self.damping)
            self.anchor[k] = p.detach().clone()
            self.path[k] = torch.zeros_like(self.path[k])
        self.importance, self.learned = self._importance(), True

    def parts(self) -> list[Tensor]:
        return [t for name in (*self.NAMES, "importance") for t in getattr(self, name)]

    def state_dict(self) -> dict[str, Any]:
        return deepcopy({name: getattr(self, name) for name in (*self.NAMES, "learned")})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learned = state["learned"]
        for name in self.NAMES:
            setattr(self, name, beside(state[name], self.anchor))
        self.importance = self._importance()
