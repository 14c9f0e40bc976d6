"""Binarized networks: inference uses the signs of real "hidden" weights, which are what the optimiser sees.

Laborieux, Ernoult, Hirtzlin & Querlioz, "Synaptic metaplasticity in binarized neural networks" (2021). The hidden
weight W is the Parameter, B = sign(W) is made in every forward pass, and gradients go straight through the sign: no
weight is ever swapped in place. The sign of 0 is 0 for activations, +1 for weights.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.errors import UserError, flag, listed, one_of, whole, within

SCOPES = ("binary", "matrices", "none")
NORMS = ("batch", "running", "instance")
INITS = ("uniform", "gauss", "xavier")
GAMMAS = ("ones", "uniform")


def sign(weights: Tensor) -> Tensor:
    """B: -1 where W < 0, else +1, also for 0: a binary weight is never 0 (torch's sign is, hence twice).

    Of activations the sign is torch's, 0 at 0, as in the released programs: there ties are frequent, where a norm
    subtracts from a sum of ones just that sum.
    """
    return weights.sign().add_(0.5).sign_()


class _StraightThrough(torch.autograd.Function):
    """torch's sign(x) with the gradient of the identity, no clip."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing is needed later."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Binarized(_StraightThrough):
    """B with the gradient of the identity: dL/dW := dL/dB."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return sign(x)


class _Clipped(_StraightThrough):
    """torch's sign(x) with the gradient of the identity where |x| <= 1, else 0."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


def straight_through(x: Tensor) -> Tensor:
    """torch's sign(x), 0 at 0; the gradient passes as if nothing had happened (a layer's own input)."""
    result: Tensor = _StraightThrough.apply(x)
    return result


def binarized(weights: Tensor) -> Tensor:
    """`sign` of hidden weights; the gradient passes as if nothing had happened."""
    result: Tensor = _Binarized.apply(weights)
    return result


def sign_clipped(x: Tensor) -> Tensor:
    """torch's sign(x), 0 at 0; the gradient passes where |x| <= 1, 1 included (activations)."""
    result: Tensor = _Clipped.apply(x)
    return result


class SignActivation(nn.Module):
    """`sign_clipped` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return sign_clipped(x)


class BinaryLinear(nn.Linear):
    """y = s x_in B^T (+ bias), B = sign(weight), `weight: [out, in]` the hidden weight.

    Args:
        binarize_input: whether x_in = sign(x), straight through, 0 at 0; else x.
        scaled: s = 1 / sqrt(in), a constant, instead of 1.
    """

    def __init__(
        self, inputs: int, outputs: int, bias: bool = False, binarize_input: bool = False, scaled: bool = False
    ) -> None:
        super().__init__(inputs, outputs, bias)
        self.binarize_input = binarize_input
        self.scale = inputs**-0.5 if scaled else 1.0

    def forward(self, x: Tensor) -> Tensor:
        x = straight_through(x) if self.binarize_input else x
        y = F.linear(x, self.binary())
        y = y * self.scale if self.scale != 1 else y
        return y if self.bias is None else y + self.bias

    def binary(self) -> Tensor:
        """B, `[out, in]` of -1 and +1."""
        return binarized(self.weight)


class BinaryConv2d(nn.Conv2d):
    """A convolution with the signs of its hidden `weight: [out, in, k, k]`; binarize_input as in `BinaryLinear`."""

    def __init__(
        self, inputs: int, outputs: int, side: int, padding: int = 0, bias: bool = False, binarize_input: bool = False
    ) -> None:
        super().__init__(inputs, outputs, side, padding=padding, bias=bias)
        self.binarize_input = binarize_input

    def forward(self, x: Tensor) -> Tensor:
        x = straight_through(x) if self.binarize_input else x
        return self._conv_forward(x, binarized(self.weight), self.bias)


# --- which tensors are what ---


def binary_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """The hidden weights, by name: parameters of which inference uses the sign alone."""
    return _weights(network, (BinaryLinear, BinaryConv2d))


def gated(network: nn.Module, scope: str) -> dict[str, nn.Parameter]:
    """The tensors that metaplasticity applies to, by name, in the network's order.

    scope: "binary" (hidden weights), "matrices" (also the kernels of other linear and convolutional layers), "none".
    Biases, norms, class token and position embedding never are.
    """
    one_of("meta_scope", scope, SCOPES)
    kinds: dict[str, tuple[type[nn.Module], ...]] = {
        "binary": (BinaryLinear, BinaryConv2d),
        "matrices": (nn.Linear, nn.Conv2d),
        "none": (),
    }
    return _weights(network, kinds[scope])


def _weights(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[str, nn.Parameter]:
    mine = {f"{name}.weight".lstrip(".") for name, module in network.named_modules() if isinstance(module, kinds)}
    return {name: p for name, p in network.named_parameters() if name in mine and p.requires_grad}


# --- networks ---


def norm(kind: str, width: int, affine: bool = True, gamma: str = "ones", images: bool = False) -> nn.Module:
    """A normalisation of `width` features or, for images, channels.

    kind: "batch" (statistics of the batch, in evaluation too), "running" (of training, in evaluation), "instance" (of
    each sample over its features, without parameters). gamma: initial scale, "ones" or "uniform" in (0, 1).
    """
    if kind == "instance":
        return nn.GroupNorm(1, width, affine=False) if images else nn.LayerNorm(width, elementwise_affine=False)
    make = nn.BatchNorm2d if images else nn.BatchNorm1d
    layer = make(width, affine=affine, track_running_stats=kind == "running")
    if affine and gamma == "uniform":
        nn.init.uniform_(layer.weight)
    return layer


def start_hidden(weights: Sequence[nn.Parameter], init: str, width: float) -> None:
    """Initial hidden weights: U(-width/2, width/2), N(0, width), or Xavier's normal (which needs no width)."""
    for weight in weights:
        if init == "uniform":
            nn.init.uniform_(weight, -width / 2, width / 2)
        elif init == "gauss":
            nn.init.normal_(weight, 0, width)
        else:
            nn.init.xavier_normal_(weight)


@dataclass(frozen=True, kw_only=True)
class _Common:
    """What both networks are told; raises UserError at construction for impossible values.

    norm: one of `NORMS`, or "released" for the released programs': of the batch in the binarized MLP (since 2023), else
    running; it is replaced by that name at once. affine: whether it learns scale and shift; gamma: its initial scale,
    one of `GAMMAS`; init, init_width: of the hidden weights, one of `INITS` (`start_hidden`).
    """

    norm: str = "released"
    affine: bool = True
    gamma: str = "ones"
    init: str = "uniform"
    init_width: float = 0.1

    def __post_init__(self) -> None:
        if self.norm == "released":
            object.__setattr__(self, "norm", "batch" if getattr(self, "binary", False) else "running")
        one_of("norm", self.norm, NORMS)
        flag("affine", self.affine)
        one_of("gamma", self.gamma, GAMMAS)
        one_of("init", self.init, INITS)
        within("init_width", self.init_width, 1e-9, 1e6)


@dataclass(frozen=True)
class BinaryMLP(_Common):
    """Fully connected: linear without bias, norm, sign, ...; the last layer's norm gives the logits.

    binary: False for the same network with real weights and ReLU ("dnn").
    """

    hidden: tuple[int, ...] = (256, 256)
    binary: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        listed("hidden", self.hidden)
        for width in self.hidden:
            whole("hidden", width, 1)
        flag("binary", self.binary)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """x: `[B, *shape]` to logits `[B, classes]`. The input itself is not binarized."""
        widths = (prod(shape), *self.hidden, classes)
        layers: OrderedDict[str, nn.Module] = OrderedDict(flat=nn.Flatten())
        for k, (inputs, outputs) in enumerate(pairwise(widths), 1):
            layers[f"fc{k}"] = BinaryLinear(inputs, outputs) if self.binary else nn.Linear(inputs, outputs, bias=False)
            layers[f"norm{k}"] = norm(self.norm, outputs, self.affine, self.gamma)
            if k <= len(self.hidden):
                layers[f"act{k}"] = SignActivation() if self.binary else nn.ReLU()
        network = nn.Sequential(layers)
        start_hidden([*gated(network, "matrices").values()], self.init, self.init_width)
        return network


POOLS = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


@dataclass(frozen=True)
class BinaryCNN(_Common):
    """Groups of convolutions, each group ending in pooling; then fully connected layers.

    The defaults are the paper's network for CIFAR-10: 128-128-P-256-256-P-512-512-P in 3x3, padded but for the last,
    4608-2048-2048-10, dropout after each hidden linear layer; 18,238,356 parameters.

    channels: of every convolution, `per_group` to a group; side: of the kernels; padding: of every convolution, None:
    half a kernel, which keeps the size, but none for the last; hidden: units of the linear layers; pool: "max" or
    "average".
    """

    channels: tuple[int, ...] = (128, 128, 256, 256, 512, 512)
    per_group: int = 2
    hidden: tuple[int, ...] = (2048, 2048)
    dropout: float = 0.5
    pool: str = "max"
    side: int = 3
    padding: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        listed("channels", self.channels)
        listed("hidden", self.hidden)
        for width in (*self.channels, *self.hidden):
            whole("channels and hidden", width, 1)
        whole("per_group", self.per_group, 1)
        whole("side", self.side, 1)
        if self.padding is not None:
            whole("padding", self.padding, 0)
        if not self.channels or len(self.channels) % self.per_group:
            raise UserError(f"channels = {self.channels}: must be a multiple of per_group = {self.per_group}")
        within("dropout", self.dropout, 0, 0.95)
        one_of("pool", self.pool, tuple(POOLS))

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """x: `[B, C, H, W]` to logits `[B, classes]`. Raises UserError for images that are too small."""
        if len(shape) != 3:
            raise UserError(f"network = BinaryCNN: takes images [C, H, W], not inputs of shape {list(shape)}")
        layers = self._convolutions(shape[0])
        body = nn.Sequential(layers)
        try:
            features = prod(body(torch.zeros(2, *shape)).shape[1:])
        except RuntimeError:
            features = 0
        if not features:
            raise UserError(f"images of shape {list(shape)}: too small for {len(self.channels)} binary convolutions")
        layers["flat"] = nn.Flatten()
        for k, (inputs, outputs) in enumerate(pairwise((features, *self.hidden, classes)), 1):
            layers[f"fc{k}"] = BinaryLinear(inputs, outputs)
            if k <= len(self.hidden):
                layers[f"drop{k}"] = nn.Dropout(self.dropout)
            layers[f"norm_fc{k}"] = norm(self.norm, outputs, self.affine, self.gamma)
            if k <= len(self.hidden):
                layers[f"act_fc{k}"] = SignActivation()
        network = nn.Sequential(layers)
        start_hidden([*binary_weights(network).values()], self.init, self.init_width)
        return network

    def _convolutions(self, inputs: int) -> OrderedDict[str, nn.Module]:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for k, (before, after) in enumerate(pairwise((inputs, *self.channels)), 1):
            usual = 0 if k == len(self.channels) else self.side // 2
            layers[f"conv{k}"] = BinaryConv2d(before, after, self.side, usual if self.padding is None else self.padding)
            if k % self.per_group == 0:
                layers[f"pool{k}"] = POOLS[self.pool](2)
            layers[f"norm{k}"] = norm(self.norm, after, self.affine, self.gamma, images=True)
            layers[f"act{k}"] = SignActivation()
        return layers
