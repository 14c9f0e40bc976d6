"""Small networks for the baselines. Any torch module that ends in logits can stand in their place."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cllib.errors import UserError, listed, whole, within
from cllib.randomness import generator

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)  # of norms


@dataclass(frozen=True)
class MLP:
    """Fully connected ReLU layers: 784-400-400-C by default, as in van de Ven & Tolias 2019."""

    hidden: tuple[int, ...] = (400, 400)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        listed("hidden", self.hidden)
        for width in self.hidden:
            whole("hidden", width, 1)
        within("dropout", self.dropout, 0, 0.95)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """x: `[B, *shape]` to logits `[B, classes]`."""
        widths = (prod(shape), *self.hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
        return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


@dataclass(frozen=True)
class CNN:
    """3x3 convolutions with BatchNorm and ReLU, each but the first halving the image; then the mean over it."""

    channels: tuple[int, ...] = (32, 64, 128)

    def __post_init__(self) -> None:
        listed("channels", self.channels)
        if not self.channels:
            raise UserError("channels is empty: give at least one number of channels")
        for width in self.channels:
            whole("channels", width, 1)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """x: `[B, C, H, W]` to logits `[B, classes]`. Raises UserError for inputs that are no images."""
        if len(shape) != 3:
            raise UserError(f"network = CNN: takes images [C, H, W], not inputs of shape {list(shape)}")
        widths = (shape[0], *self.channels)
        layers: list[nn.Module] = []
        for k, (inputs, outputs) in enumerate(pairwise(widths)):
            convolution = nn.Conv2d(inputs, outputs, 3, stride=1 if k == 0 else 2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


# --- what a network answers, and with which layer ---


SEEN = "_cllib_seen"  # an attribute, so that copies of a network have it too


@dataclass(frozen=True)
class Seen:
    """What a network was seen to do: classes it answers with, and the name of the linear layer that makes its logits.

    layer: None where no layer does so alone.
    """

    classes: int
    layer: str | None


def look_at(network: nn.Module, x: Tensor, classes: int) -> None:
    """Note in the network, as `SEEN`, what it answers to a few samples `x: [B, ...]`.

    Raises UserError unless that is one number for each class, `[B, classes]`.
    """
    logits = only_logits(network, logits_of(network, x.clone()))
    if logits.shape != (len(x), classes):
        named = f"network = {type(network).__name__}: answers {len(x)} samples with {list(logits.shape)}"
        raise UserError(f"{named}, must be [{len(x)}, {classes}], one logit for each class of the stream")
    setattr(network, SEEN, Seen(classes, _answering(network, x, classes)))


def only_logits(network: nn.Module, answer: object) -> Tensor:
    """The answer of a network; UserError where it is more than logits, as with a second head in training mode."""
    if not isinstance(answer, Tensor):
        name, kind = type(network).__name__, type(answer).__name__
        raise UserError(f"network = {name}: answers with a {kind}, must be a tensor of logits, in training mode too")
    return answer


def classes_of(network: nn.Module) -> int:
    """How many classes a network tells apart."""
    seen: Seen | None = getattr(network, SEEN, None)
    return classifier(network).out_features if seen is None else seen.classes


def classifier(network: nn.Module) -> nn.Linear:
    """The linear layer that makes a network's logits: the one that was seen to (`look_at`), else as it is asked for.

    Raises UserError where no layer does so alone, or it cannot be told.
    """
    seen: Seen | None = getattr(network, SEEN, None)
    if seen is None:
        layer = _named(network) or _by_construction(network)
    else:
        layer = None if seen.layer is None else network.get_submodule(seen.layer)
    if not isinstance(layer, nn.Linear):
        raise UserError(
            f"network = {type(network).__name__}: no linear layer makes its logits alone; if one is to count as its "
            "classifier, name it by a method get_classifier() that returns it (an nn.Linear, one output a class)"
        )
    return layer


def _named(network: nn.Module) -> nn.Linear | None:
    """The classifier a network names itself, as timm's do; None where that is no plain linear layer."""
    ask = getattr(network, "get_classifier", None)
    layer = ask() if callable(ask) else None
    return layer if isinstance(layer, nn.Linear) and _plain(layer) else None


def _by_construction(network: nn.Module) -> nn.Module | None:
    """The classifier of a network that nobody has looked at yet, where its structure leaves no choice."""
    if isinstance(own := getattr(network, "classifier", None), nn.Linear):
        return own
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return layers[0] if len(layers) == 1 else _last(network)


def _last(network: nn.Module) -> nn.Module:
    """The last layer of a network in a row; a norm behind it, as in binary networks, belongs to it."""
    while isinstance(network, nn.Sequential):
        network = next((part for part in reversed(network) if not isinstance(part, KINDS)), nn.Identity())
    return network


def _plain(layer: nn.Linear) -> bool:
    """Whether the weights are numbers of its own, not made from others in every step (weight norm, pruning)."""
    return isinstance(layer._parameters.get("weight"), nn.Parameter)


def _answering(network: nn.Module, x: Tensor, classes: int) -> str | None:
    """The name of the linear layer that makes the logits: the one that the network names, else the last that can."""
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear) and m.out_features == classes}
    told, last = _named(network), _last(network)
    found = [name for name, layer in layers.items() if layer is told and _alone(network, layer, x, told=True)]
    found += [name for name, layer in reversed(layers.items()) if _plain(layer) and _alone(network, layer, x)]
    found += [name for name, layer in layers.items() if _plain(layer) and layer is last]
    return found[0] if found else None


def _alone(network: nn.Module, layer: nn.Linear, x: Tensor, told: bool = False) -> bool:
    """Whether the outputs of a layer are all that the logits of `x` are made of, one of them each.

    With other numbers in their place, other samples change nothing, another order is but another order of the logits,
    and nothing that learns stands beside or behind the layer. told: it is enough that they matter.
    """
    put: list[Tensor] = []

    def instead(_: nn.Module, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if not put:
            draws = generator(0, "in place of logits")
            put.append(torch.randn(out.shape, generator=draws).to(out.device, out.dtype).requires_grad_())
            return put[0].clone()
        put.append(put[0].detach().flip(-1))
        return put[-1]

    others = [p for p in network.parameters() if p.requires_grad]
    hook = layer.register_forward_hook(instead)
    try:
        with evaluating(network), torch.enable_grad():
            logits = network(x.clone())
            if len(put) != 1 or not logits.requires_grad:
                return False
            reached, *beside = torch.autograd.grad(logits.sum(), [*put, *others], allow_unused=True)
            flipped = network(x.flip(0))
    finally:
        hook.remove()
    if told or reached is None or any(gradient is not None for gradient in beside):
        return told and reached is not None
    return x.is_meta or torch.allclose(flipped, logits.flip(-1), rtol=1e-4, atol=1e-5)


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def copied(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A hook: what a network is handed is its own, so that one that begins in place changes nobody's samples."""
    return tuple(part.clone() if isinstance(part, Tensor) else part for part in given)


def copying(network: nn.Module) -> RemovableHandle | None:
    """Hand a network copies from now on; None where it is handed some already."""
    if copied in network._forward_pre_hooks.values():
        return None
    return network.register_forward_pre_hook(copied)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and copies of samples; afterwards every module is in the mode it was in."""
    modes, hook = {module: module.training for module in network.modules()}, copying(network)
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        if hook is not None:
            hook.remove()


@torch.no_grad()
def logits_of(network: nn.Module, x: Tensor) -> Tensor:
    """Logits in evaluation mode; modules are left in the modes they were in."""
    with evaluating(network):
        logits: Tensor = network(x)
    return logits
