"""A plain vision transformer in two parts, as a reproduction of BiRT by students used it, with its mistake on request.

Theirs (Re[BiRT], 2023) is of D = 48 with 12 heads, two whole blocks below the cut and two above, and one head over all
classes; its GELU is the approximation by tanh, and all its weights, the convolution's too, start with a standard
deviation of .02. Their g is detached while tasks are learned, so it stays what it was at the start (`detached`).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.errors import UserError, flag, whole
from cllib.models.convit import MLPHalf, disturb, heads_of, joined, started
from cllib.models.split import Above, Noise, Split


class PlainHalf(nn.Module):
    """x + attention(LN(x))."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        q, k, v = (heads_of(part, self.heads) for part in self.qkv(self.norm(x)).chunk(3, -1))  # [B, h, T, d]
        y: Tensor = x + self.proj(joined(disturb(F.scaled_dot_product_attention(q, k, v), v, noise)))
        return y


class PlainBelow(nn.Module):
    """Images `[B, C, H, W]` to tokens `[B, 1 + N, D]` after the first blocks."""

    def __init__(self, config: "PlainViT", shape: tuple[int, ...], halves: list[nn.Module]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(shape[0], config.dim, config.patch, config.patch)
        self.cls = nn.Parameter(started(torch.empty(1, 1, config.dim)))
        self.pos = nn.Parameter(started(torch.empty(1, 1 + (shape[1] // config.patch) ** 2, config.dim)))
        self.halves = nn.ModuleList(halves)

    def forward(self, x: Tensor) -> Tensor:
        z = self.patches((x - 0.5) / 0.5).flatten(2).transpose(1, 2)  # [B, N, D]
        z = torch.cat([self.cls.expand(len(z), -1, -1), z], 1) + self.pos  # [B, 1 + N, D]
        for half in self.halves:
            z = half(z)
        return z


class PlainAbove(Above):
    """Tokens `[B, 1 + N, D]` to logits of all classes, by a linear layer on the class token."""

    def __init__(self, dim: int, classes: int, halves: list[nn.Module]) -> None:
        super().__init__()
        self.halves = nn.ModuleList(halves)
        self.head = nn.Linear(dim, classes)

    def body(self, r: Tensor, noise: Noise | None = None) -> Tensor:
        for half in self.halves:
            r = half(r, noise)
        return r[:, 0]

    def embed(self, z: Tensor, first: int | None = None) -> Tensor:
        return z

    def answer(self, e: Tensor) -> Tensor:
        logits: Tensor = self.head(e)
        return logits

    def tuned(self) -> list[nn.Module]:
        return [self.head]


@dataclass(frozen=True)
class PlainViT:
    """The defaults are theirs. cut: blocks below it; raises UserError at construction for what cannot be."""

    patch: int = 4
    dim: int = 48
    heads: int = 12
    layers: int = 4
    cut: int = 2
    detached: bool = False

    def __post_init__(self) -> None:
        for name in ("patch", "dim", "heads", "layers"):
            whole(name, getattr(self, name), 1)
        whole("cut", self.cut, 0, self.layers)
        if self.dim % self.heads:
            raise UserError(f"heads = {self.heads}: must divide dim = {self.dim}")
        flag("detached", self.detached)

    def build(self, shape: tuple[int, ...], classes: int) -> Split:
        """Images of this shape, [C, H, H], to logits. Raises UserError for images that do not divide into patches."""
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] % self.patch:
            raise UserError(
                f"patch = {self.patch}: takes square images [C, H, H] with sides in patches, not {list(shape)}"
            )
        halves: list[nn.Module] = []
        for _ in range(self.layers):
            halves += [PlainHalf(self.dim, self.heads), MLPHalf(self.dim, 4.0, 0.0, "tanh")]
        below = PlainBelow(self, shape, halves[: 2 * self.cut])
        network = Split(below, PlainAbove(self.dim, classes, halves[2 * self.cut :]), classes, self.detached)
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                assert module.bias is not None
                nn.init.zeros_(module.bias)
                started(module.weight)
        return network
