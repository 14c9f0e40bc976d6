"""Images made worse, by nature or by an adversary: `[B, C, H, W]` in [0, 1] to the same."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cllib.errors import whole, within
from cllib.randomness import generator, normal

Answer = Callable[[Tensor], Tensor]  # images to logits `[B, C]`
# By severity: standard deviation of the noise; what is left of the contrast; standard deviation of the blur in pixels.
SEVERITIES: dict[str, tuple[float, ...]] = {
    "noise": (0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": (0.7, 0.5, 0.4, 0.3, 0.2),
    "blur": (0.4, 0.6, 0.8, 1.0, 1.5),
}


def worsened(x: Tensor, kind: str, severity: int, draws: torch.Generator) -> Tensor:
    """One of `SEVERITIES`, severity from 1; 0 leaves images as they are."""
    whole("severity", severity, 0, len(SEVERITIES[kind]))
    if severity == 0:
        return x
    strength = SEVERITIES[kind][severity - 1]
    if kind == "noise":
        return (x + strength * normal(x.shape, draws, x)).clamp(0, 1)
    if kind == "contrast":
        mean = x.mean((1, 2, 3), keepdim=True)
        return (mean + strength * (x - mean)).clamp(0, 1)
    from torchvision.transforms.functional import gaussian_blur  # slow to import

    largest = 2 * min(x.shape[-2:]) - 1  # images are mirrored at their edges
    size = min(2 * int(3 * strength + 0.5) + 1, largest)
    return gaussian_blur(x, [size, size], [strength, strength])


def pgd(answer: Answer, x: Tensor, y: Tensor, eps: float, steps: int = 5) -> Tensor:
    """Images within eps of `x` in every pixel, by projected gradient ascent on the loss of `y` (Madry et al. 2018).

    It starts at x and takes steps of 2.5 eps / steps by the sign of the gradient. answer: with a gradient. y: `[B]`.
    """
    within("eps", eps, 0)
    whole("steps", steps, 1)
    at = x.clone()
    for _ in range(steps if eps else 0):
        at = at.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(answer(at.clone()), y, reduction="sum"), at)
        at = torch.minimum(torch.maximum(at + 2.5 * eps / steps * gradient.sign(), x - eps), x + eps).clamp(0, 1)
    return at.detach()


PGD_LEVELS = (0, 1, 2, 4, 8)  # 255ths


def asked(learner: Any) -> Answer:
    """A learner's network in evaluation mode, with a gradient for images alone."""
    network = learner.network.eval().requires_grad_(False)
    final = getattr(learner, "final", None)
    return network if final is None else lambda x: final(network(x))


def survey(answer: Answer, x: Tensor, y: Tensor, seed: int) -> list[tuple[str, int, float]]:
    """Kind, level and accuracy, for all `SEVERITIES` from 0 and for projected gradient ascent ("PGD")."""
    rows = []
    for kind, levels in SEVERITIES.items():
        for level in range(len(levels) + 1):
            worse = worsened(x, kind, level, generator(seed, kind))
            rows.append((kind, level, accuracy(answer, worse, y)))
    return rows + [("PGD", level, accuracy(answer, pgd(answer, x, y, level / 255), y)) for level in PGD_LEVELS]


@torch.no_grad()
def accuracy(answer: Answer, x: Tensor, y: Tensor) -> float:
    """Share of right answers."""
    return float((answer(x.clone()).argmax(-1) == y).double().mean())
