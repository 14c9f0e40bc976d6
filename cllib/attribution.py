"""Which pixels and patches an answer comes from, by gradients (Captum). Models are left as they were found.

A map belongs to one image, whatever others are asked about beside it. Where norms look at the batch, they are held at
the statistics of the image alone, or of the images `among` which it is to be seen, along the whole path.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cllib.attention import grid_of, placed, switched
from cllib.errors import UserError, whole
from cllib.models.networks import logits_of
from cllib.models.norms import fixed_statistics, transductive

CHUNK = 64  # images at once along the path of integration: bounds the memory


def integrated_gradients(
    model: nn.Module, x: Tensor, target: int | Tensor, steps: int = 32, among: Tensor | None = None
) -> Tensor:
    """What each pixel adds to a class's logit on the way from a black image, `[B, H, W]`, channels summed.

    x: images `[B, C, H, W]`, floating point; target: a class, or one an image `[B]`; steps: points of the integral
    (Gauss-Legendre). Sundararajan et al. 2017, eq. 1. `incompleteness` tells whether the steps were enough. Raises
    UserError for other images or targets.
    """
    from captum.attr import IntegratedGradients  # slow to import

    _check(x, target)
    whole("steps", steps, 1)
    how: dict[str, Any] = {"n_steps": steps, "internal_batch_size": max(CHUNK, len(x))}
    method = IntegratedGradients(model)
    parts = _apart(model, x, target, among, lambda part, said: method.attribute(part.detach(), target=said, **how))
    return torch.cat(parts).sum(1)  # [B, H, W]


def incompleteness(
    model: nn.Module, x: Tensor, target: int | Tensor, maps: Tensor, among: Tensor | None = None
) -> Tensor:
    """Sum of the maps less f(x) - f(0), `[B]`: 0 for exact integrated gradients (Sundararajan et al. 2017, prop. 1)."""
    _check(x, target)

    def rise(part: Tensor, _: int | Tensor) -> Tensor:
        return logits_of(model, part) - logits_of(model, torch.zeros_like(part))

    gained = torch.cat(_apart(model, x, target, among, rise))  # [B, C]
    classes = torch.as_tensor(target, device=gained.device).expand(len(x))
    return maps.flatten(1).sum(1) - gained.gather(1, classes[:, None])[:, 0]


def grad_cam(
    model: nn.Module, layer: nn.Module, x: Tensor, target: int | Tensor, among: Tensor | None = None
) -> Tensor:
    """How much each patch's tokens at a layer speak for a class, `[B, rows, columns]` of patches, at least 0.

    relu of the sum over channels of gradient times activation, class token and registers left out. The gradient is each
    token's own (HiResCAM, Draelos & Carin 2020), not its mean over the image (Grad-CAM, Selvaraju et al. 2017). layer:
    one that gives tokens `[B, T, C]`, such as the last block's `norm1`; behind the last attention only the class token
    matters, and the map is 0. Raises UserError for a layer of another kind, or of another model, or where nothing tells
    how the image is cut (`attention.grid_of`).
    """
    from captum.attr import LayerGradientXActivation  # LayerGradCam would take tokens for channels

    _check(x, target)
    if all(module is not layer for module in model.modules()):
        raise UserError(f"layer = {type(layer).__name__}: is not part of the model")
    method = LayerGradientXActivation(model, layer)
    found = _apart(model, x, target, among, lambda part, said: method.attribute(part.detach(), target=said))
    if not all(isinstance(part, Tensor) and part.ndim == 3 for part in found):
        raise UserError(f"layer = {type(layer).__name__}: must give tokens, [images, tokens, channels]")
    return placed(torch.cat(found).detach().sum(-1).relu(), grid_of(model, x))


def _apart(
    model: nn.Module, x: Tensor, target: int | Tensor, among: Tensor | None, ask: Callable[[Tensor, int | Tensor], Any]
) -> list[Any]:
    """What `ask` says of images and their targets while the model is ready for it, of as many at once as can be."""
    alone, made = transductive(model) and among is None, []
    for rows in torch.arange(len(x), device=x.device).split(1 if alone else max(1, len(x))):
        images = x[rows]
        with _attributable(model, images if among is None else among):
            made.append(ask(images, target[rows.to(target.device)] if isinstance(target, Tensor) else target))
    return made


@contextmanager
def _attributable(model: nn.Module, among: Tensor) -> Iterator[None]:
    """Evaluation mode, norms at fixed statistics, and gradients also through a part that cuts them off to learn faster.

    Raises UserError where one image has no statistics, because a norm has but one number of each channel.
    """
    try:
        with fixed_statistics(model, among), switched(model, detached=False):
            yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"model = {type(model).__name__}: its norms need a batch; say which images, as among"
        ) from error


def _check(x: Tensor, target: int | Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise UserError(f"x of shape {list(x.shape)}, {x.dtype}: must be images [B, C, H, W] in floating point")
    if isinstance(target, Tensor):
        if target.shape != x.shape[:1] or target.dtype != torch.int64:
            raise UserError(
                f"target of shape {list(target.shape)}, {target.dtype}: must be int64, one for each of {len(x)} images"
            )
    else:
        whole("target", target, 0)
