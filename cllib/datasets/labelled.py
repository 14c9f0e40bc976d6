"""Labelled images as tensors: what every data set of classes becomes before it is made into a stream."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cllib.errors import UserError, whole


@dataclass(frozen=True)
class Labelled:
    """Training and test samples of classes 0 .. C-1.

    train_x, test_x: images `[N, C, H, W]`, uint8 (0 .. 255) or float32 in [0, 1], or features `[N, D]`, float32;
    train_y, test_y: `[N]` int64; names: of the C classes. Raises `UserError` for labels that are not classes, or
    lengths that do not fit.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if len(x) != len(y) or not len(y):
                raise UserError(
                    f"{self.name}: {len(x)} {part} images with {len(y)} labels; they must pair, and be some"
                )
            if y.dtype != torch.int64:
                raise UserError(f"{self.name}: {part} labels are {y.dtype}; they must be torch.int64")
            if int(y.min()) < 0 or int(y.max()) >= self.classes:
                raise UserError(
                    f"{self.name}: {part} labels {int(y.min())} .. {int(y.max())}; there are {self.classes} classes"
                )

        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            shapes = f"{list(self.train_x.shape[1:])} and {list(self.test_x.shape[1:])}"
            raise UserError(f"{self.name}: training and test images have the shapes {shapes}; they must be equal")

    @property
    def classes(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image, (C, H, W), or of its features, (D,)."""
        return tuple(self.train_x.shape[1:])


def resized(data: Labelled, side: int) -> Labelled:
    """All images at `side` x `side` pixels (bilinear, antialiased), uint8 again where they were."""
    whole("image_size", side, 1)
    if data.shape[1:] == (side, side):
        return data
    return replace(data, train_x=_resize(data.train_x, side), test_x=_resize(data.test_x, side))


def _resize(x: Tensor, side: int) -> Tensor:
    sized = F.interpolate(x.float(), size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return sized.round().clamp(0, 255).to(x.dtype) if not x.dtype.is_floating_point else sized


def nth_of_class(y: Tensor, classes: int) -> Tensor:
    """How many samples of the same class come before each of `y: [N]`, `[N]`."""
    nth = torch.empty_like(y)
    for label in range(classes):
        own = y == label
        nth[own] = torch.arange(int(own.sum()), device=y.device)
    return nth


def first(y: Tensor, classes: int, count: int | None) -> Tensor:
    """Which of `y: [N]` are among the first `count` of their class (all, where None), `[N]` bool."""
    return nth_of_class(y, classes) < (len(y) if count is None else count)


def subset(data: Labelled, train: int | None = None, test: int | None = None) -> Labelled:
    """The first so many training and test samples of each class; all where None."""
    keep, keep_test = first(data.train_y, data.classes, train), first(data.test_y, data.classes, test)
    return replace(
        data,
        train_x=data.train_x[keep],
        train_y=data.train_y[keep],
        test_x=data.test_x[keep_test],
        test_y=data.test_y[keep_test],
    )


def resplit(data: Labelled, every: int) -> Labelled:
    """All samples, training ones first, of which every so many-th is a test sample, the first one too."""
    whole("every", every, 2, len(data.train_y) + len(data.test_y))
    x, y = torch.cat([data.train_x, data.test_x]), torch.cat([data.train_y, data.test_y])
    test = torch.arange(len(y), device=y.device) % every == 0
    return replace(data, train_x=x[~test], train_y=y[~test], test_x=x[test], test_y=y[test])


def padded(data: Labelled, pixels: int) -> Labelled:
    """All images with so many black pixels on every side."""
    whole("pixels", pixels, 0)
    return replace(data, train_x=F.pad(data.train_x, [pixels] * 4), test_x=F.pad(data.test_x, [pixels] * 4))


def coloured(data: Labelled) -> Labelled:
    """Grey images as three equal channels."""
    return replace(data, train_x=data.train_x.expand(-1, 3, -1, -1), test_x=data.test_x.expand(-1, 3, -1, -1))
