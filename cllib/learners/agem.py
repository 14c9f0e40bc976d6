"""A-GEM (Chaudhry et al. 2019): the batch's gradient, projected so that it does not climb on the replayed samples."""

from typing import Any

import torch
from torch import Tensor

from cllib.learners.er import ER
from cllib.learners.naive import Losses, Naive


def project(gradient: Tensor, reference: Tensor) -> Tensor:
    """g - <g, g_ref> / |g_ref|^2 g_ref where <g, g_ref> < 0, else g: `[R, P]` (eq. 11)."""
    dot = (gradient * reference).sum(1, keepdim=True)
    square = (reference * reference).sum(1, keepdim=True).clamp(min=torch.finfo(reference.dtype).tiny)
    return gradient - dot.clamp(max=0) / square * reference


class AGEM(ER):
    """Steps with the projected gradient of the batch alone; the memory is the reservoir of `ER`.

    The paper's memory is filled per task; a reservoir needs no task borders.
    """

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        return Naive.objective(self, x, y)

    def correct(self) -> None:
        replayed = self.memory.draw(self.settings.replay_size)
        if replayed is None:
            return
        parameters = self.parameters()
        loss = self.cross_entropy(self.network(replayed["x"]), replayed["y"])
        reference = torch.autograd.grad(loss, parameters, allow_unused=True)
        own = flat([p.grad for p in parameters], parameters)
        projected = project(own[None], flat(reference, parameters)[None])[0]
        pieces = projected.split([p.numel() for p in parameters])
        for p, piece, g in zip(parameters, pieces, reference, strict=True):
            if p.grad is not None or g is not None:  # what is not in use stays without a gradient
                p.grad = piece.view_as(p)


def flat(gradients: Any, parameters: Any) -> Tensor:
    """All gradients in one row `[P]`; zeros for a parameter that has none."""
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])
