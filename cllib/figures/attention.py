"""Pictures of where a network looks: attention rollout over photos, and attributions beside them."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cllib.attention import overlay, photo
from cllib.errors import UserError
from cllib.figures.base import bare, closed


@closed
def rollouts(images: Tensor, masks: Tensor, titles: Sequence[str]) -> Figure:
    """A column an image: the photo, and below it what the class token is made of, from blue (nothing) to red (most).

    images: `[B, 3, H, W]` in [0, 1]; masks: `[B, rows, columns]` of `attention.mask`. Raises UserError unless there are
    equally many of each.
    """
    _same_number(images, {"masks": masks, "titles": titles})
    figure, axes = plt.subplots(2, len(images), figsize=(2.2 * len(images), 4.7), squeeze=False)
    for (above, below), image, mask, title in zip(axes.T, images, masks, titles, strict=True):
        bare(above).imshow(photo(image).numpy())
        bare(below).imshow(overlay(image, mask).numpy())
        above.set_title(title, fontsize="small")
    axes[0][0].set_ylabel("image")
    axes[1][0].set_ylabel("rollout")
    return figure


@closed
def attributions(images: Tensor, rows: Mapping[str, Tensor], titles: Sequence[str]) -> Figure:
    """A row an image: the photo and a column a method, each picture on its own scale.

    images: `[B, 3, H, W]` in [0, 1]; rows: by method, maps `[B, h, w]`: with a sign (red for, blue against), or from 0
    (dark) up. Raises UserError unless there are equally many of each.
    """
    _same_number(images, {**rows, "titles": titles})
    shape = len(images), 1 + len(rows)
    figure, axes = plt.subplots(*shape, figsize=(2.2 * shape[1], 2.2 * shape[0] + 0.3), squeeze=False)
    for line, image, title in zip(axes, images, titles, strict=True):
        bare(line[0]).imshow(photo(image).numpy())
        line[0].set_ylabel(title, fontsize="small")
    for column, (name, maps) in zip(axes.T[1:], rows.items(), strict=True):
        column[0].set_title(name, fontsize="small")
        for ax, values in zip(column, maps, strict=True):
            _heat(ax, values, signed=bool((maps < 0).any()))
    return figure


def _heat(ax: Axes, values: Tensor, signed: bool) -> None:
    """One map; white is 0 where there are signs."""
    limit = float(values.abs().max()) or 1.0  # a map of zeros has no scale
    colours, low = ("RdBu_r", -limit) if signed else ("cividis", 0.0)
    bare(ax).imshow(values.detach().cpu().numpy(), cmap=colours, vmin=low, vmax=limit)


def _same_number(images: Tensor, others: Mapping[str, Sequence[str] | Tensor]) -> None:
    """Raise UserError unless there is one of everything for every image, and an image at all."""
    if not len(images):
        raise UserError("no images to draw")
    for name, values in others.items():
        if len(values) != len(images):
            raise UserError(f"{name}: {len(values)} for {len(images)} images; must be one each")
