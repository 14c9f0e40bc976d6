"""Images grouped by class, and their way to floating point."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cllib.errors import UserError


@dataclass(frozen=True)
class ImageClasses:
    """`images`: [C, n, H, W, 3] uint8, n images of each of C classes; `names`: the C class names."""

    images: Tensor
    names: tuple[str, ...]


def by_class(x: Tensor, y: Tensor, count: int) -> Tensor:
    """The first `count` samples of each class, in their order in `x`.

    x: [N, ...]; y: [N] integer labels 0..C-1. Returns [C, count, ...]. Raises `UserError` if a class has fewer.
    """
    fewest = int(torch.bincount(y).min())
    if count > fewest:
        raise UserError(f"{count} samples per class asked for: the smallest class has {fewest}")
    rows = [torch.nonzero(y == label)[:count, 0] for label in range(int(y.max()) + 1)]
    return x[torch.stack(rows)]  # rows: [C, count]


def to_float(images: Tensor) -> Tensor:
    """[N, H, W, 3] uint8 to [N, 3, H, W] float32 in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255
