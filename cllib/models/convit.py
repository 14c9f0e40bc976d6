"""The transformer of BiRT: gated positional self-attention (ConViT) below, class-attention with a token a task above.

ConViT: d'Ascoli et al. 2021. Task tokens and heads: DyTox, Douillard et al. 2022. The cut into g and f: Jeeveswaran et
al. 2023.
"""

from dataclasses import dataclass
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.errors import UserError, one_of, whole, within
from cllib.models.split import Above, Noise, Split

SCALES = {  # mean and standard deviation of colours
    "none": ((0.0,), (1.0,)),
    "cifar": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


# --- attention ---


def neighbours(side: int) -> Tensor:
    """How patch j lies to patch i: (dx, dy, dx^2 + dy^2), `[N, N, 3]`, N = side^2."""
    y, x = (torch.arange(side**2).div(side, rounding_mode="floor"), torch.arange(side**2) % side)
    dx, dy = (place[None, :] - place[:, None] for place in (x, y))
    return torch.stack([dx, dy, dx**2 + dy**2], -1).float()


def nearby(heads: int) -> Tensor:
    """Weights of `neighbours` with which each of the first K^2 heads looks at one neighbour, `[K^2, 3]`, K^2 <= heads.

    Head a + K b looks at (dx, dy) = (b - m, a - m), m in the middle.
    """
    k = isqrt(heads)
    middle = (k - 1) / 2 if k % 2 == 0 else k // 2
    return torch.tensor([[2 * (b - middle), 2 * (a - middle), -1.0] for b in range(k) for a in range(k)])


def heads_of(x: Tensor, heads: int) -> Tensor:
    """`[B, N, D]` to `[B, h, N, D / h]`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    """`[B, h, N, D / h]` to `[B, N, D]`."""
    return x.transpose(1, 2).flatten(2)


def disturb(mixed: Tensor, v: Tensor, noise: Noise | None) -> Tensor:
    """A v to (A + e) v in the rows that the noise picks; mixed, v: `[B, h, N, d]`."""
    drawn = None if noise is None else noise(*v.shape[:3])
    if drawn is None:
        return mixed
    rows, e = drawn
    return mixed.index_add(0, rows, (e.to(v.dtype) @ v[rows]).to(mixed.dtype))


class GPSA(nn.Module):
    """Gated positional self-attention: A = (1 - s) softmax(q k / sqrt(d)) + s softmax(w . (dx, dy, dx^2 + dy^2) + c).

    s = sigmoid(gating), one a head, .73 at the start. Rows of both parts sum to 1, so those of A do; the released code
    divides by the sum once more. Position alone decides the second part, so it is computed once a batch.
    """

    places: Tensor

    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qk = nn.Linear(dim, 2 * dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.pos_proj = nn.Linear(3, heads)
        self.gating = nn.Parameter(torch.ones(heads))
        self.register_buffer("places", neighbours(side), persistent=False)

    def start_local(self) -> None:
        """The convolution-like start."""
        local = nearby(self.heads)
        with torch.no_grad():
            nn.init.eye_(self.v.weight)
            self.pos_proj.weight[: len(local)] = local

    def positional(self) -> Tensor:
        """The part of A that no image changes, `[h, N, N]`."""
        return self.pos_proj(self.places).permute(2, 0, 1).softmax(-1)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        q, k = (heads_of(part, self.heads) for part in self.qk(x).chunk(2, -1))  # [B, h, N, d]
        v = heads_of(self.v(x), self.heads)
        gate = self.gating.sigmoid()[:, None, None]  # [h, 1, 1]
        content = F.scaled_dot_product_attention(q, k, v)
        b, h, n, d = v.shape
        flat = v.permute(1, 2, 0, 3).reshape(h, n, b * d)
        position = (gate * self.positional()).to(v.dtype) @ flat  # [h, N, B d]
        mixed = position.view(h, n, b, d).permute(2, 0, 1, 3) + content * (1 - gate)  # [B, h, N, d]
        return self.proj(joined(disturb(mixed, v, noise)))

    def maps(self, x: Tensor) -> Tensor:
        """A itself, `[B, h, N, N]`."""
        q, k = (heads_of(part, self.heads) for part in self.qk(x).chunk(2, -1))
        gate = self.gating.sigmoid()[:, None, None]
        content = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        return (1 - gate) * content + gate * self.positional()


class ClassAttention(nn.Module):
    """Every task token asks, itself and the patches answer; tokens do not see each other.

    As one call: the patches' keys and values are the same for all tokens.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """tokens: `[T, D]`, patches: `[B, N, D]`; returns `[B, T, D]`."""
        q, own_k, own_v = (heads_of(part(tokens)[None], self.heads) for part in (self.q, self.k, self.v))  # [1,h,T,d]
        k, v = (heads_of(part(patches), self.heads) for part in (self.k, self.v))  # [B, h, N, d]
        scale = q.shape[-1] ** -0.5
        own = (q * own_k).sum(-1, keepdim=True).expand(len(patches), -1, -1, -1)  # [B, h, T, 1]
        a = (torch.cat([own, q @ k.transpose(-2, -1)], -1) * scale).softmax(-1)  # [B, h, T, 1 + N]
        return self.proj(joined(a[..., :1] * own_v + a[..., 1:] @ v))


# --- the halves of layers ---


def mlp(dim: int, ratio: float, approximate: str = "none") -> nn.Sequential:
    """D to ratio D and back; approximate: of the GELU, "none" or "tanh"."""
    wide = int(dim * ratio)
    return nn.Sequential(nn.Linear(dim, wide), nn.GELU(approximate), nn.Linear(wide, dim))


def skipping(rate: float) -> nn.Module:
    """Drop-path: in training, samples skip a branch with this probability."""
    from torchvision.ops import StochasticDepth  # slow to import

    return StochasticDepth(rate, "row") if rate else nn.Identity()


class AttentionHalf(nn.Module):
    """x + GPSA(LN(x))."""

    def __init__(self, dim: int, heads: int, side: int, drop: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = GPSA(dim, heads, side)
        self.drop = skipping(drop)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        y: Tensor = x + self.drop(self.attn(self.norm(x), noise))
        return y


class MLPHalf(nn.Module):
    """x + MLP(LN(x))."""

    def __init__(self, dim: int, ratio: float, drop: float, approximate: str = "none") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mlp = mlp(dim, ratio, approximate)
        self.drop = skipping(drop)

    def forward(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        y: Tensor = x + self.drop(self.mlp(self.norm(x)))
        return y


class TaskBlock(nn.Module):
    """The task block (TAB): class attention, then an MLP, of every task token on its own."""

    def __init__(self, dim: int, heads: int, ratio: float, drop: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = ClassAttention(dim, heads)
        self.mlp = mlp(dim, ratio)
        self.drop = skipping(drop)

    def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:
        """tokens: `[T, D]`, patches: `[B, N, D]`; returns `[B, T, D]`."""
        asked = self.attn(self.norm1(tokens), self.norm1(patches))
        x = tokens + self._skipped(asked)
        y: Tensor = x + self._skipped(self.mlp(self.norm2(x)))
        return y

    def _skipped(self, branch: Tensor) -> Tensor:
        """Drop-path with a draw a sample and token."""
        dropped: Tensor = self.drop(branch.flatten(0, 1)).view_as(branch)
        return dropped


# --- the two parts ---


class Below(nn.Module):
    """g: images `[B, C, H, W]` in [0, 1] to representations `[B, N, D]`.

    Patches, positions, the layers before layer k whole, and the attention half of layer k.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: "ConViT", shape: tuple[int, ...], halves: list[nn.Module]) -> None:
        super().__init__()
        for name, values in zip(("mean", "std"), SCALES[config.normalize], strict=True):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.patches = nn.Conv2d(shape[0], config.dim, config.patch, config.patch)
        self.pos = nn.Parameter(torch.zeros(1, (shape[1] // config.patch) ** 2, config.dim))
        self.halves = nn.ModuleList(halves)

    def forward(self, x: Tensor) -> Tensor:
        z = self.patches((x - self.mean) / self.std).flatten(2).transpose(1, 2) + self.pos  # [B, N, D]
        for half in self.halves:
            z = half(z)
        return z


class Tasks(Above):
    """f: representations `[B, N, D]` to logits: the other halves of layers, the task block, a token and a head a task.

    Logits of classes stand in the order in which they came.
    """

    grows = True

    def __init__(self, config: "ConViT", halves: list[nn.Module], drop: float) -> None:
        super().__init__()
        self.dim, self.std = config.dim, config.std  # of tokens; heads start as torch has it
        self.halves = nn.ModuleList(halves)
        self.block = TaskBlock(config.dim, config.heads, config.mlp_ratio, drop)
        self.tokens = nn.ParameterList()
        self.heads = nn.ModuleList()
        self.divergence: nn.Module | None = None

    @property
    def grown(self) -> int:
        return len(self.heads)

    def body(self, r: Tensor, noise: Noise | None = None) -> Tensor:
        for half in self.halves:
            r = half(r, noise)
        return r

    def embed(self, z: Tensor, first: int | None = None) -> Tensor:
        """What every task token has gathered, `[B, T, D]`."""
        tokens: Tensor = self.block(torch.stack([*self.tokens][:first]), z)
        return tokens

    def answer(self, e: Tensor) -> Tensor:
        return torch.cat([head(part) for head, part in zip(self.heads, e.unbind(1), strict=False)], -1)

    def tuned(self) -> list[nn.Module]:
        return [self.block, self.tokens, self.heads]

    def grow(self, classes: int) -> None:
        """A token and a head, and a new divergence head from the second task on."""
        device = self.block.norm1.weight.device
        self.tokens.append(nn.Parameter(started(torch.empty(self.dim, device=device), self.std)))
        self.heads.append(head(self.dim, classes).to(device))
        self.divergence = head(self.dim, classes + 1).to(device) if len(self.heads) > 1 else None

    def hold(self, held: bool) -> None:
        for part in (*list(self.tokens)[:-1], *list(self.heads)[:-1]):
            part.requires_grad_(not held)

    def diverge(self, e: Tensor) -> Tensor | None:
        return None if self.divergence is None else self.divergence(e[:, -1])


def head(dim: int, classes: int) -> nn.Sequential:
    """LayerNorm and a linear layer, which starts as torch has it, weights and biases uniform up to 1 / sqrt(D)."""
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))


def started(weight: Tensor, std: float = 0.02) -> Tensor:
    """Initial values, in place: a normal distribution, cut off at 2."""
    return nn.init.trunc_normal_(weight, std=std)


@dataclass(frozen=True)
class ConViT:
    """The network in two parts. The defaults are the published size for CIFAR; raises UserError for what cannot be.

    layers: the task block among them; replay_from: k, the cut lies in the middle of layer k; drop_path: of the last
    layer, growing from 0; normalize: one of `SCALES`; std: of initial weights, but not of heads. tasks: heads from the
    start, over equal shares of the classes in order, so that any learner can use the network; None: none, the learner
    lets it grow.
    """

    patch: int = 4
    dim: int = 384
    heads: int = 12
    layers: int = 6
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    replay_from: int = 1
    normalize: str = "none"
    std: float = 0.02
    tasks: int | None = None

    def __post_init__(self) -> None:
        for name in ("patch", "dim", "heads"):
            whole(name, getattr(self, name), 1)
        whole("layers", self.layers, 2)
        whole("replay_from", self.replay_from, 1, self.layers - 1)
        if self.dim % self.heads:
            raise UserError(f"heads = {self.heads}: must divide dim = {self.dim}")
        within("mlp_ratio", self.mlp_ratio, 1 / self.dim)
        within("drop_path", self.drop_path, 0, 0.9)
        within("std", self.std, 1e-9, 1)
        one_of("normalize", self.normalize, tuple(SCALES))
        if self.tasks is not None:
            whole("tasks", self.tasks, 1)

    def build(self, shape: tuple[int, ...], classes: int) -> Split:
        """Images of this shape, [C, H, H], to logits. Raises UserError for images or classes that do not divide."""
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] % self.patch:
            raise UserError(
                f"patch = {self.patch}: takes square images [C, H, H] with sides in patches, not {list(shape)}"
            )
        if self.tasks is not None and classes % self.tasks:
            raise UserError(f"tasks = {self.tasks}: must divide {classes} classes")
        side, drops = shape[1] // self.patch, [self.drop_path * k / (self.layers - 1) for k in range(self.layers)]
        halves: list[nn.Module] = []
        for drop in drops[:-1]:
            halves += [AttentionHalf(self.dim, self.heads, side, drop), MLPHalf(self.dim, self.mlp_ratio, drop)]
        cut = 2 * self.replay_from - 1
        above = Tasks(self, halves[cut:], drops[-1])
        network = Split(Below(self, shape, halves[:cut]), above, classes)
        start(network, self.std)
        for _ in range(self.tasks or 0):
            above.grow(classes // (self.tasks or 1))
        if self.tasks is not None:
            above.divergence = None
        return network


def start(network: Split, std: float) -> None:
    """Initial weights of all but tokens and heads: truncated normal, attention local."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            started(module.weight, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    started(network.below.pos, std)  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, GPSA):
            module.start_local()


# --- to look at ---


@torch.no_grad()
def looks(network: Split, x: Tensor) -> tuple[Tensor, Tensor]:
    """Where a network in evaluation mode looks: A of every GPSA layer, `[L, B, h, N, N]`, and its gates, `[L, h]`."""
    halves = [*network.below.halves, *network.above.halves]  # type: ignore[misc]
    attns = [half.attn for half in halves if isinstance(half, AttentionHalf)]
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(module.maps(given[0]))  # type: ignore[operator]

    hooks = [attn.register_forward_pre_hook(keep) for attn in attns]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(seen), torch.stack([attn.gating.sigmoid() for attn in attns])
