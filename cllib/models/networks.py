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


def classifier(network: nn.Module) -> nn.Linear:
    """The layer that a network calls so, or its last linear one. Raises UserError if there is none."""
    if isinstance(getattr(network, "classifier", None), nn.Linear):
        return network.classifier  # type: ignore[return-value]
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UserError(f"network = {type(network).__name__}: has no linear layer that could be its classifier")
    return layers[-1]


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
