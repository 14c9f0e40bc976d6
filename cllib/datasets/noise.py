"""Gaussian pixel noise, the domain shift of the ns- data sets (chapter 1, rules 2.3)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cllib.errors import within
from cllib.randomness import generator

EFFECTIVE_STD = (0.0, 0.025, 0.1)  # ns-ImageNet: the original, x + .25 N(0, .1^2) and x + .5 N(0, .2^2)


def noise_generator(seed: int, std: float) -> torch.Generator:
    """The generator of one noise version: another seed or another level draws independent noise."""
    return generator(seed, f"noise {float(std)}")


def add_noise(x: Tensor, std: float, draws: torch.Generator) -> Tensor:
    """x: [N, ...] in [0, 1] plus N(0, std^2), clipped to [0, 1].

    Drawn sample by sample, so that a data set cut into batches of any size gets the same noise. Raises `UserError`
    for a negative `std`.
    """
    within("noise", std, 0)
    if std == 0:
        return x
    normal = torch.stack([torch.randn(x.shape[1:], generator=draws) for _ in x])
    return (x + std * normal).clamp(0, 1)


def noise_versions(x: Tensor, noise: Sequence[float] = EFFECTIVE_STD, seed: int = 0) -> Iterator[Tensor]:
    """One version of x ([N, ...] in [0, 1]) per effective standard deviation in `noise`."""
    return (add_noise(x, std, noise_generator(seed, std)) for std in noise)
