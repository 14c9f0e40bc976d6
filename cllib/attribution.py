"""Which pixels and patches an answer comes from, by gradients (Captum). Models are left as they were found."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cllib.attention import squared, switched
from cllib.errors import UserError, whole
from cllib.models.networks import evaluating, logits_of

CHUNK = 64  # images at once along the path of integration: bounds the memory


def integrated_gradients(model: nn.Module, x: Tensor, target: int | Tensor, steps: int = 32) -> Tensor:
    """What each pixel adds to a class's logit on the way from a black image, `[B, H, W]`, channels summed.

    x: images `[B, C, H, W]`, floating point; target: a class, or one an image `[B]`; steps: points of the integral
    (Gauss-Legendre). Sundararajan et al. 2017, eq. 1. `incompleteness` tells whether the steps were enough. Raises
    UserError for other images or targets.
    """
    from captum.attr import IntegratedGradients  # slow to import

    _check(x, target)
    whole("steps", steps, 1)
    with _attributable(model):
        parts = IntegratedGradients(model).attribute(
            x.detach(), target=target, n_steps=steps, internal_batch_size=max(CHUNK, len(x))
        )
    return parts.sum(1)  # [B, H, W]


def incompleteness(model: nn.Module, x: Tensor, target: int | Tensor, maps: Tensor) -> Tensor:
    """Sum of the maps less f(x) - f(0), `[B]`: 0 for exact integrated gradients (Sundararajan et al. 2017, prop. 1)."""
    _check(x, target)
    gained = logits_of(model, x) - logits_of(model, torch.zeros_like(x))  # [B, C]
    classes = torch.as_tensor(target, device=gained.device).expand(len(x))
    return maps.flatten(1).sum(1) - gained.gather(1, classes[:, None])[:, 0]


def grad_cam(model: nn.Module, layer: nn.Module, x: Tensor, target: int | Tensor) -> Tensor:
    """How much each patch's tokens at a layer speak for a class, `[B, g, g]`, at least 0.

    relu of the sum over channels of gradient times activation, the class token left out. The gradient is each token's
    own (HiResCAM, Draelos & Carin 2020), not its mean over the image (Grad-CAM, Selvaraju et al. 2017). layer: one that
    gives tokens `[B, T, C]`, such as the last block's `norm1`; behind the last attention only the class token matters,
    and the map is 0. Raises UserError for a layer of another kind, or of another model.
    """
    from captum.attr import LayerGradientXActivation  # LayerGradCam would take tokens for channels

    _check(x, target)
    if all(module is not layer for module in model.modules()):
        raise UserError(f"layer = {type(layer).__name__}: is not part of the model")
    with _attributable(model):
        parts = LayerGradientXActivation(model, layer).attribute(x.detach(), target=target)
    if not isinstance(parts, Tensor) or parts.ndim != 3:
        raise UserError(f"layer = {type(layer).__name__}: must give tokens, [images, tokens, channels]")
    return squared(parts.detach().sum(-1).relu())


@contextmanager
def _attributable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and gradients also through the part of a network that cuts them off to learn faster."""
    with evaluating(model), switched(model, detached=False):
        yield


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
