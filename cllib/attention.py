"""Where a vision transformer looks: attention probabilities of all blocks, and their rollout (Abnar & Zuidema 2020).

Rollout with discarding is as the ViT-LR notebooks draw it, whose normalisation is here on request ("legacy").
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import isqrt
from typing import Any, NamedTuple

import matplotlib
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.errors import UserError, one_of, within
from cllib.models.networks import evaluating, logits_of
from cllib.models.norms import transductive

HEADS, NORMALIZE = ("mean", "max", "min"), ("row", "legacy")


# --- probabilities ---


@torch.no_grad()
def attentions(model: nn.Module, x: Tensor) -> Tensor:
    """Attention probabilities of every block, `[D, B, h, T, T]`, in evaluation mode: rows ask, columns answer.

    model: anything whose attention is timm's `Attention`; x: a batch as it takes it. It is left as it was found, also
    if it raises. Raises UserError where not every attention of the model could be seen.
    """
    from timm.models.vision_transformer import Attention  # slow to import

    if transductive(model) and len(x) > 1:
        return torch.cat([attentions(model, one) for one in x.split(1)], 1)
    found = [module for module in model.modules() if isinstance(module, Attention)]
    # Fused attention never makes the probabilities, and a last block for the class token alone only one row of them.
    with evaluating(model), switched(model, fused_attn=False, whole=True), inputs(m.attn_drop for m in found) as seen:
        model(x)
    if not found or len(seen) != len(found):
        name = type(model).__name__
        raise UserError(f"model = {name}: {len(seen)} of {len(found)} attentions seen; each must be timm's, run once")
    return torch.stack(seen)  # [D, B, h, T, T]


@contextmanager
def switched(model: nn.Module, **values: bool) -> Iterator[None]:
    """Every module's switches of these names at these values; afterwards all are as they were."""
    found = [(m, name) for m in model.modules() for name in values if isinstance(getattr(m, name, None), bool)]
    before = [getattr(m, name) for m, name in found]
    try:
        for m, name in found:
            setattr(m, name, values[name])
        yield
    finally:
        for (m, name), value in zip(found, before, strict=True):
            setattr(m, name, value)


@contextmanager
def inputs(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """What goes into the modules, in the order in which they run."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0].detach())

    hooks = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# --- where tokens lie in the image ---


class Grid(NamedTuple):
    """Patches of an image: rows and columns.

    before: tokens that stand before them (class, distillation, registers); None: not told, then at most a class token.
    class_first: whether the first token is a class token, where there are any before.
    """

    rows: int
    columns: int
    before: int | None = None
    class_first: bool = True


def grid_of(model: nn.Module, x: Tensor) -> Grid:
    """How a model cuts images `x: [B, C, H, W]` into patches.

    Rows and columns are those of the last convolution in its `patch_embed`, as timm's models call it, else of its last
    convolution; without any, what `patch_embed.grid_size` says. Raises UserError where it cannot be known.
    """
    owner: Any = next((m for m in model.modules() if hasattr(m, "patch_embed")), None)
    cutter: nn.Module = model if owner is None else owner.patch_embed
    convolutions = [m for m in cutter.modules() if isinstance(m, nn.Conv2d)]
    sizes: list[tuple[int, int]] = []
    hooks = [m.register_forward_hook(lambda _, __, out: sizes.append((*out.shape[-2:],))) for m in convolutions]
    try:
        logits_of(model, x)
    finally:
        for hook in hooks:
            hook.remove()
    rows, columns = sizes[-1] if sizes else getattr(cutter, "grid_size", None) or (0, 0)
    if not rows:
        raise UserError(
            f"model = {type(model).__name__}: no convolution and no patch_embed.grid_size tells its patches"
        )
    return Grid(rows, columns, getattr(owner, "num_prefix_tokens", None), getattr(owner, "has_class_token", True))


def placed(tokens: Tensor, grid: Grid) -> Tensor:
    """One number a token, `[B, T]`, as an image of the patches, `[B, rows, columns]`.

    Raises UserError unless T is what the grid says.
    """
    count = tokens.shape[-1]
    before = count - grid.rows * grid.columns if grid.before is None else grid.before
    if count != before + grid.rows * grid.columns or (grid.before is None and before not in (0, 1)):
        told = "at most a class token" if grid.before is None else f"{before} others"
        raise UserError(f"{count} tokens: must be {told}, then {grid.rows} x {grid.columns} patches")
    return tokens[:, before:].unflatten(-1, (grid.rows, grid.columns))  # [B, rows, columns]


def cut_square(images: Tensor, patches: int) -> Grid:
    """The grid of images `[..., H, W]` that are cut into so many square patches; UserError if they cannot be."""
    height, width = images.shape[-2:]
    side = isqrt(height * width // max(1, patches))
    if side == 0 or height % side or width % side or height * width != patches * side**2:
        raise UserError(f"{patches} patches: images of {height} x {width} are not made of so many squares")
    return Grid(height // side, width // side, 0)


# --- rollout ---


def fuse(a: Tensor, heads: str) -> Tensor:
    """One matrix of all heads: `[..., h, T, T]` to `[..., T, T]`, by `heads`, one of `HEADS`."""
    one_of("heads", heads, HEADS)
    return a.mean(-3) if heads == "mean" else a.amax(-3) if heads == "max" else a.amin(-3)


def discard(a: Tensor, ratio: float) -> Tensor:
    """The floor(ratio T^2) smallest entries of each matrix `[..., T, T]` set to 0, of equal ones the first.

    The very first entry, class token to class token, is counted among them where it belongs, but spared.
    """
    within("ratio", ratio, 0, 1)
    flat = a.flatten(-2)  # [..., T * T]
    smallest = flat.argsort(dim=-1, stable=True)[..., : int(ratio * flat.shape[-1])]
    kept = flat.scatter(-1, smallest, 0.0)
    kept[..., 0] = flat[..., 0]
    return kept.view_as(a)


def residual_normalised(a: Tensor, normalize: str = "row") -> Tensor:
    """(A + I) / 2, what a block passes on beside its residual connection, normalised; `[..., T, T]`.

    row: each row by its sum, so that every token is a mean of others. legacy: as released, column j by the sum of row j
    (a dimension was lost), after which rows sum to 1 only where they all did before.
    """
    one_of("normalize", normalize, NORMALIZE)
    mixed = (a + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)) / 2
    sums = mixed.sum(-1)  # [..., T]
    return mixed / sums[..., :, None] if normalize == "row" else mixed / sums[..., None, :]


def rollout(attn: Tensor, heads: str = "max", ratio: float = 0.9, normalize: str = "row") -> Tensor:
    """R_D = A_D ... A_1 of the fused, thinned and normalised matrices of all blocks, `[B, T, T]`.

    attn: `[D, B, h, T, T]` of `attentions`. Row t is what the t-th token at the end is made of, in tokens at the start.
    """
    if attn.ndim != 5:
        raise UserError(f"attn of shape {list(attn.shape)}: must be [blocks, images, heads, tokens, tokens]")
    fused = fuse(attn, heads).double()  # in single precision, rows drift from 1 over a dozen products
    layers = residual_normalised(discard(fused, ratio), normalize)  # [D, B, T, T]
    rolled = torch.eye(fused.shape[-1], dtype=fused.dtype, device=fused.device).expand_as(layers[0])
    for layer in layers:
        rolled = layer @ rolled
    return rolled.to(attn.dtype)


def mask(rolled: Tensor, grid: Grid) -> Tensor:
    """What the class token is made of, by patch: `[B, T, T]` to `[B, rows, columns]`, the largest value 1.

    grid: `grid_of` the model. All zeros where it is made of nothing but itself. Raises UserError where there is no
    class token.
    """
    patches = placed(rolled[:, 0], grid)
    if not grid.class_first or rolled.shape[-1] == grid.rows * grid.columns:
        raise UserError("rolled: the first token is no class token, so none gathers what the others give")
    largest = patches.amax((-2, -1), keepdim=True)
    return patches / torch.where(largest > 0, largest, 1)


# --- to look at ---


def photo(image: Tensor) -> Tensor:
    """An image `[3, H, W]` as it is drawn, `[H, W, 3]`; raises UserError for values outside [0, 1]."""
    if image.ndim != 3 or len(image) != 3:
        raise UserError(f"image of shape {list(image.shape)}: must be [3, H, W]")
    low, high = float(image.min()), float(image.max())
    if not 0 <= low <= high <= 1:
        raise UserError(f"image with values from {low:g} to {high:g}: must lie between 0 and 1; draw it unnormalised")
    return image.detach().float().cpu().permute(1, 2, 0)  # [H, W, 3]


def overlay(image: Tensor, mask: Tensor) -> Tensor:
    """An image `[3, H, W]` under a heat map `[h, w]`, both in [0, 1]: `[H, W, 3]` in [0, 1].

    The map is enlarged bilinearly, coloured from blue to red, added, and the sum divided by its maximum. Red, green and
    blue stay in this order; the released pictures add a map in the opposite one, and so exchange the photo's red and
    blue.
    """
    below = photo(image)
    large = F.interpolate(mask.detach().float().cpu()[None, None], below.shape[:2], mode="bilinear")[0, 0]  # [H, W]
    heat = torch.from_numpy(matplotlib.colormaps["jet"](large.numpy())[..., :3]).float()  # [H, W, 3]
    both = below + heat
    return both / both.max()
