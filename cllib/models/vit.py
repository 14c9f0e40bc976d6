"""Three vision transformers that differ in what is binary: `vit` nothing, `bvit` MLPs and head, `hybrid` MLP inputs.

The design of the project that took metaplasticity to vision transformers ("metaplasticity_VisionTransformer", 2023),
corrected, and on request as it was released: `as_published` keeps four faults, under which nearly nothing learns.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.errors import UserError, flag, one_of, whole, within
from cllib.models.binary import BinaryLinear, binary_weights, sign_clipped, start_hidden

NETS = ("vit", "bvit", "hybrid")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for colour images


class SignedNorm(nn.LayerNorm):
    """LayerNorm, then the sign; its gradient passes where |x| <= 1, or nowhere as released (`raw`)."""

    def __init__(self, width: int, raw: bool) -> None:
        super().__init__(width, eps=1e-6)
        self.raw = raw

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.detach().sign() + 0 * y if self.raw else sign_clipped(y)


class FixedBinaryLinear(BinaryLinear):
    """As released: B = sign(W at the start) for ever, though gradients arrive and the optimiser moves W."""

    first: Tensor

    def __init__(self, inputs: int, outputs: int, bias: bool = True, binarize_input: bool = True) -> None:
        super().__init__(inputs, outputs, bias, binarize_input)
        self.register_buffer("first", self.weight.detach().sign())

    def binary(self) -> Tensor:
        """The first B, with the gradient of W behind it."""
        return self.first + (self.weight - self.weight.detach())


class Prepared(nn.Module):
    """Images as the network wants them: enlarged to `resize`, its centre cut out, normalised. Nothing is learned."""

    mean: Tensor
    std: Tensor

    def __init__(self, side: int, channels: int, resize: int) -> None:
        super().__init__()
        self.side, self.resize, self.colour = side, resize, channels == 3
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.resize:
            x = F.interpolate(x, size=(self.resize, self.resize), mode="bilinear", antialias=True, align_corners=False)
        edge = (self.resize - self.side) // 2
        x = x[..., edge : edge + self.side, edge : edge + self.side]
        return (x - self.mean) / self.std if self.colour else x


class Attention(nn.Module):
    """Multi-head self-attention; `linear` makes its layers from sizes."""

    def __init__(self, dim: int, heads: int, binary: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = BinaryLinear(dim, 3 * dim, True, True, True) if binary else nn.Linear(dim, 3 * dim)
        self.proj = BinaryLinear(dim, dim, True, True, True) if binary else nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # [B, h, N, D / h]
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, d))  # [B, N, D]


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: "ViT") -> None:
        super().__init__()
        net, dim, wide, raw = config.net, config.dim, int(config.dim * config.mlp_ratio), config.as_published
        self.norm1 = nn.LayerNorm(dim, eps=1e-6) if net == "vit" else SignedNorm(dim, raw)
        self.attn = Attention(dim, config.heads, config.binarize_attention)
        self.norm2 = SignedNorm(dim, raw) if net == "bvit" else nn.LayerNorm(dim, eps=1e-6)
        self.fc1 = config.linear(dim, wide, binary=net != "vit")
        self.fc2 = config.linear(wide, dim, binary=net == "bvit")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """The network of a `ViT`: x `[B, C, H, W]` in [0, 1] to logits `[B, classes]`.

    layers: "block_1" ... "block_D", "norm", "head", as the released programs name them.
    """

    def __init__(self, config: "ViT", channels: int, classes: int, resize: int) -> None:
        super().__init__()
        dim, side, patch = config.dim, config.image_size, config.patch
        self.prepared = Prepared(side, channels, resize)
        self.patches = nn.Conv2d(channels, dim, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, dim))
        layers = {f"block_{k}": Block(config) for k in range(1, config.depth + 1)}
        final = nn.LayerNorm(dim, eps=1e-6) if config.net == "vit" else SignedNorm(dim, config.as_published)
        head = config.linear(dim, classes, binary=config.net == "bvit")
        self.layers = nn.ModuleDict({**layers, "norm": final, "head": head})
        self.depth_used = config.depth - config.as_published  # the released loop ends one block too early

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(self.prepared(x)).flatten(2).transpose(1, 2)  # [B, N, D]
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos  # [B, N + 1, D]
        for k in range(1, self.depth_used + 1):
            x = self.layers[f"block_{k}"](x)
        logits: Tensor = self.layers["head"](self.layers["norm"](x)[:, 0])
        return logits


@dataclass(frozen=True)
class ViT:
    """A vision transformer. The defaults are the released size; raises UserError at construction for what cannot be.

    net: one of `NETS`; image_size: side of what the network sees, cut from the centre of the images after they were
    brought to the side `resize` (None: image_size; released: 256); binarize_attention: the attention's layers too;
    init_width: hidden weights start in U(-init_width / 2, init_width / 2). Binary layers divide their sum by the square
    root of its length. as_published: the released wiring: signs without a gradient, binary weights that stay what they
    were at the start, no scale, torch's initial weights, and a last block that is not used.
    """

    net: str = "vit"
    image_size: int = 224
    resize: int | None = None
    patch: int = 16
    dim: int = 768
    depth: int = 4
    heads: int = 12
    mlp_ratio: float = 4.0
    binarize_attention: bool = False
    init_width: float = 0.1
    as_published: bool = False

    def __post_init__(self) -> None:
        one_of("net", self.net, NETS)
        for name in ("image_size", "patch", "dim", "depth", "heads"):
            whole(name, getattr(self, name), 1)
        if self.resize is not None:
            whole("resize", self.resize, self.image_size)
        if self.image_size % self.patch:
            raise UserError(f"patch = {self.patch}: must divide image_size = {self.image_size}")
        if self.dim % self.heads:
            raise UserError(f"heads = {self.heads}: must divide dim = {self.dim}")
        within("mlp_ratio", self.mlp_ratio, 1 / self.dim)
        within("init_width", self.init_width, 1e-9, 1e6)
        for name in ("binarize_attention", "as_published"):
            flag(name, getattr(self, name))
        if self.as_published and self.binarize_attention:
            raise UserError("binarize_attention = True: not together with as_published = True")

    def linear(self, inputs: int, outputs: int, binary: bool) -> nn.Linear:
        """A layer of the network."""
        if not binary:
            return nn.Linear(inputs, outputs)
        if self.as_published:
            return FixedBinaryLinear(inputs, outputs)
        return BinaryLinear(inputs, outputs, bias=True, binarize_input=True, scaled=True)

    def build(self, shape: tuple[int, ...], classes: int) -> Transformer:
        """Images of this shape, [C, H, W], to logits. Raises UserError for inputs that are no square images."""
        if len(shape) != 3 or shape[1] != shape[2]:
            raise UserError(f"net = {self.net!r}: takes square images [C, H, H], not inputs of shape {list(shape)}")
        network = Transformer(self, shape[0], classes, self.resize or self.image_size)
        if not self.as_published:
            nn.init.normal_(network.pos, 0, 0.02)
            start_hidden([*binary_weights(network).values()], "uniform", self.init_width)
        return network


def gradient_reach(network: nn.Module, x: Tensor, y: Tensor) -> dict[str, str]:
    """What every parameter gets from one batch, x `[B, C, H, W]`, y `[B]`: "none", "zero" or "some" gradient."""
    network.zero_grad()
    F.cross_entropy(network(x), y).backward()
    grads = {name: p.grad for name, p in network.named_parameters()}
    network.zero_grad()
    return {name: "none" if g is None else "some" if bool(g.any()) else "zero" for name, g in grads.items()}
