"""Features of small colour images that a frozen network sees enlarged: the CIFAR tasks of chapter 2.

As in the original, images are enlarged to 220 pixels; in training a random square of 200 is cut out and flipped half
of the time, in testing the centre is. How it standardized pixels we do not know: here as the network was trained.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cllib.datasets.backbones import Backbone
from cllib.datasets.features import extract
from cllib.datasets.labelled import Labelled
from cllib.errors import UserError, whole
from cllib.randomness import generator

CROP = 200  # pixels: the original's
ENLARGED = 1.1  # of the square that is cut out: 220 pixels
SMALLEST = 1e-12  # variance: features that are all the same become zeros


def features(
    data: Labelled,
    net: Backbone,
    passes: int = 10,
    seed: int = 0,
    folder: str | Path | None = None,
    device: str = "cpu",
    batch_size: int = 100,
    progress: bool = True,
) -> Labelled:
    """The features `[passes * N, D]` and `[N_test, D]` float32 of RGB images, each standardized by itself.

    data: images [N, 3, H, W] uint8; net: its `image_size` is the side of the square it sees (`CROP` in the original).
    passes: times that every training image is seen, all of them before any again, each time cut out anew, drawn by
    `seed`. folder: the cache (see `features.extract`), one file a pass. Raises `UserError`.
    """
    whole("passes", passes, 1)
    whole("seed", seed, 0)
    if data.train_x.dtype != torch.uint8 or data.shape[:1] != (3,):
        raise UserError(f"{data.name}: features need colour images [3, H, W] uint8, not {list(data.shape)}")

    def seen(x: Tensor, by: Backbone) -> Tensor:
        images = x.permute(0, 2, 3, 1)
        made = extract(images, by, (0.0,), 0, folder, device, batch_size, progress)[0]
        return standardized(made)

    train_x = torch.cat([seen(data.train_x, cutting(net, seed, k)) for k in range(passes)])
    return replace(data, train_x=train_x, train_y=data.train_y.repeat(passes), test_x=seen(data.test_x, cutting(net)))


def standardized(x: Tensor) -> Tensor:
    """`x: [N, D]`, every row minus its mean, by its variance: the original does not take the root, nor do we."""
    variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
    return (x - mean) / variance.clamp(min=SMALLEST)


@dataclass(frozen=True)
class Cutting(Backbone):
    """A backbone that enlarges what it is shown and cuts out squares, drawn by `draws`, or the centres where None."""

    draws: torch.Generator | None

    def __call__(self, x: Tensor) -> Tensor:
        """x: [n, 3, H, W] float in [0, 1], on the model's device. Returns features [n, D]."""
        side = round(self.image_size * ENLARGED)
        large = interpolate(x, (side, side), mode="bilinear", antialias=True)
        return super().__call__(cut(large, self.image_size, self.draws))


def cutting(net: Backbone, seed: int = 0, turn: int | None = None) -> Cutting:
    """The backbone for the turn-th pass over the training images; for the test images where None."""
    how, draws = "centre", None
    if turn is not None:
        how, draws = f"cut {turn} seed {seed}", generator(seed, f"cut {turn}")
    own = {field.name: getattr(net, field.name) for field in fields(Backbone)}
    return Cutting(**{**own, "name": f"{net.name} {how} of {ENLARGED:g}"}, draws=draws)


def cut(x: Tensor, side: int, draws: torch.Generator | None) -> Tensor:
    """A square of every image `[n, C, H, W]`, `[n, C, side, side]`: at random and flipped at random, or the centre.

    Drawn sample by sample, so that batches of any size get the same squares.
    """
    room = x.shape[-1] - side
    if draws is None:
        start = room // 2
        return x[..., start : start + side, start : start + side]
    return torch.stack([one_cut(image, side, room, draws) for image in x])


def one_cut(image: Tensor, side: int, room: int, draws: torch.Generator) -> Tensor:
    """A random square of one image `[C, H, W]`, with an even chance of being flipped from left to right."""
    top, left = torch.randint(room + 1, (2,), generator=draws).tolist()
    square = image[:, top : top + side, left : left + side]
    return square.flip(-1) if torch.rand((), generator=draws) < 0.5 else square
