"""A vision transformer cut in two: a frozen lower part, computed once a sample, and an upper part that learns.

The blocks are timm's. `LatentViT` is the one place where the cut is said: how many blocks are used (D), and how many of
them are frozen (F, the replay block); everything else follows. The released program (ViT-LR, Dequino et al. 2022) asks
for two source edits and a parameter's name instead; `LatentViT.released` gives those for comparison.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.datasets.files import hash_arrays
from cllib.errors import UserError, one_of, whole, within
from cllib.models.weights import DATA, stored
from cllib.randomness import seeded

MEANS = {"half": ((0.5,) * 3, (0.5,) * 3), "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
STORES, CLASS_TOKENS = ("tokens", "cls"), ("pretrained", "zero")
OWN, PRETRAINED, RANDOM = "own", "pretrained", "random"


@dataclass(frozen=True)
class Size:
    """A backbone. patch: side in pixels; blocks: how many it has (L); pretrained: its name in timm, or None."""

    patch: int
    dim: int
    heads: int
    mlp: int
    blocks: int
    pretrained: str | None = None

    @property
    def block_parameters(self) -> int:
        """Numbers in a block: two norms, four matrices of attention, two of the MLP, and their biases."""
        d, wide = self.dim, self.mlp
        return 4 * d + 4 * d * (d + 1) + wide * (d + 1) + d * (wide + 1)


BACKBONES = {
    "tiny": Size(8, 64, 4, 128, 6),
    "tiny4": Size(4, 64, 4, 128, 6),
    "b32": Size(32, 768, 12, 3072, 12, "vit_base_patch32_384.augreg_in21k_ft_in1k"),
    "b16": Size(16, 768, 12, 3072, 12, "vit_base_patch16_384.orig_in21k_ft_in1k"),
    "l32": Size(32, 1024, 16, 4096, 24, "vit_large_patch32_384.orig_in21k_ft_in1k"),
    "l16": Size(16, 1024, 16, 4096, 24, "vit_large_patch16_384.augreg_in21k_ft_in1k"),
}


# --- the network ---


class Lower(nn.Module):
    """Images `[B, 3, H, W]` in [0, 1] to tokens `[B, T, D]` after the first F blocks; frozen, always in eval mode.

    only_class: give the class token alone, `[B, 1, D]`; told: what it depends on, in words and a hash.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: "LatentViT") -> None:
        super().__init__()
        size = config.size
        self.patches = nn.Conv2d(3, size.dim, size.patch, size.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, size.dim))
        self.pos = nn.Parameter(torch.zeros(1, config.tokens, size.dim))
        self.blocks = nn.Sequential(*(config.block() for _ in range(config.frozen)))
        for name, values in zip(("mean", "std"), MEANS[config.normalize], strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.only_class = config.store == "cls"
        self.told = ""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches((x - self.mean) / self.std).flatten(2).transpose(1, 2)  # [B, N, D]
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos  # [B, T, D]
        x = self.blocks(x)
        return x[:, :1] if self.only_class else x


class Upper(nn.Module):
    """Tokens `[B, T, D]` to logits `[B, C]`: blocks F + 1 ... D, the final norm, and a classifier without bias.

    whole: compute the last block for every token, as the released program does, though only the class token is used.
    """

    def __init__(self, config: "LatentViT", classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(config.block() for _ in range(config.frozen, config.depth)))
        self.norm = nn.LayerNorm(config.size.dim, eps=1e-6)
        self.head = nn.Linear(config.size.dim, classes, bias=False)
        self.whole = False

    def get_classifier(self) -> nn.Linear:
        return self.head

    def forward(self, z: Tensor) -> Tensor:
        blocks = list(self.blocks)
        for block in blocks[:-1]:
            z = block(z)
        for block in blocks[-1:]:
            z = block(z) if self.whole else class_only(block, z)
        logits: Tensor = self.head(self.norm(z[:, 0]))
        return logits


class Cut(nn.Module):
    """Both parts as one network: images `[B, 3, H, W]` to logits `[B, C]`.

    detached: no gradient is kept below the cut, which changes nothing but time and memory, for nothing there needs one.
    """

    def __init__(self, lower: Lower, upper: Upper, detached: bool) -> None:
        super().__init__()
        self.lower, self.upper, self.detached = lower, upper, detached
        self.train()  # a network is made in training mode, but what is frozen is not

    def forward(self, x: Tensor, replayed: Tensor | None = None) -> Tensor:
        """replayed: latents `[R, T, D]` that join the new ones at the replay block, after them."""
        z = self.latents(x)
        logits: Tensor = self.upper(z if replayed is None else torch.cat([z, replayed]))
        return logits

    def get_classifier(self) -> nn.Linear:
        return self.upper.head

    def latents(self, x: Tensor) -> Tensor:
        """Tokens at the replay block, `[B, T, D]`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detached):
            z: Tensor = self.lower(x)
        return z

    def train(self, mode: bool = True) -> "Cut":
        """Training mode above the cut only: below there is no dropout."""
        super().train(mode)
        self.lower.train(mode and not self.detached)
        return self


class QuickDropout(nn.Dropout):
    """Dropout with a probability in whole 65,536ths (.1 is .100006): on a CPU a quarter of the random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p or x.device.type != "cpu":
            return super().forward(x)
        lowest = round(self.p * 2**16) - 2**15
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = (bits[: x.numel()] >= lowest).view(x.shape)
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))


def class_only(block: Any, z: Tensor) -> Tensor:
    """The class token after a block of timm's, `[B, 1, D]` from `z: [B, T, D]`: all that a classifier asks for.

    The same numbers at a fraction of the cost: there is but one query, so W_k goes into it, (W_k y + b) q = y (W_k' q)
    + b q, of which softmax ignores the last term; and the mean of values is W_v of the mean.
    """
    attn, heads = block.attn, block.attn.num_heads
    y = block.norm1(z)
    w_q, w_k, w_v = attn.qkv.weight.unflatten(0, (3, heads, -1))  # [h, D / h, D]
    b_q, _, b_v = attn.qkv.bias.unflatten(0, (3, heads, -1))  # [h, D / h]
    q = (F.linear(y[:, 0], w_q.flatten(0, 1), b_q.flatten())).unflatten(-1, (heads, -1))  # [B, h, D / h]
    asked = torch.einsum("bhe,hed->bhd", q * q.shape[-1] ** -0.5, w_k)
    a = attn.attn_drop((asked @ y.transpose(1, 2)).softmax(-1))  # [B, h, T]
    mixed = torch.einsum("bhd,hed->bhe", a @ y, w_v) + b_v * a.sum(-1, keepdim=True)  # dropout: a need not sum to 1
    u = z[:, :1] + attn.proj_drop(attn.proj(mixed.flatten(1)))[:, None]  # [B, 1, D]
    after: Tensor = u + block.mlp(block.norm2(u))
    return after


# --- how it is said ---


@dataclass(frozen=True)
class LatentViT:
    """A transformer and its cut. Raises UserError at construction for what cannot be.

    backbone: one of `BACKBONES`; image_size: side of the images, None for 32 (tiny) or 128; depth: D, blocks used;
    replay_block: F, blocks that are frozen, after which latents are stored and replayed (0: after the embedding); None:
    nothing is frozen, and images are replayed. store: "tokens", or "cls", the class token alone, which is enough where
    F = D. dropout: on both branches of a block; attention_dropout: on attention probabilities (published: the same .1,
    though its configuration says 0). class_token: "pretrained", or "zero" as released. normalize: of pixels, "half" as
    the weights were trained, or "imagenet" as released. weights: "own" (shipped, tiny only), "pretrained" (from timm),
    "random", or the path of a timm checkpoint.
    """

    backbone: str = "tiny"
    image_size: int | None = None
    depth: int = 6
    replay_block: int | None = 4
    store: str = "tokens"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    class_token: str = "pretrained"
    normalize: str = "half"
    weights: str = OWN

    def __post_init__(self) -> None:
        one_of("backbone", self.backbone, tuple(BACKBONES))
        whole("depth", self.depth, 1)
        if self.depth > self.size.blocks:
            raise UserError(f"depth = {self.depth}: backbone = {self.backbone!r} has {self.size.blocks} blocks")
        if self.replay_block is not None:
            whole("replay_block", self.replay_block, 0)
            if self.replay_block > self.depth:
                raise UserError(f"replay_block = {self.replay_block}: must lie within depth = {self.depth}")
        if self.image_size is not None:
            whole("image_size", self.image_size, 1)
        if self.side % self.size.patch:
            raise UserError(f"image_size = {self.side}: must be a multiple of the patch, {self.size.patch}")
        one_of("store", self.store, STORES)
        if self.store == "cls" and self.replay_block != self.depth:
            raise UserError(
                f"store = 'cls': only where replay_block = depth; here they are {self.replay_block} and {self.depth}"
            )
        for name in ("dropout", "attention_dropout"):
            within(name, getattr(self, name), 0, 0.95)
        one_of("class_token", self.class_token, CLASS_TOKENS)
        one_of("normalize", self.normalize, tuple(MEANS))
        if self.weights == OWN and self.size.pretrained:
            raise UserError(f"weights = 'own': only for the tiny backbones, not {self.backbone!r}")
        if self.weights == PRETRAINED and not self.size.pretrained:
            raise UserError(f"weights = 'pretrained': none for {self.backbone!r}, only 'own', 'random' or a file")

    @property
    def size(self) -> Size:
        """Of the backbone."""
        return BACKBONES[self.backbone]

    @property
    def side(self) -> int:
        """Of the images, in pixels."""
        return self.image_size or (128 if self.size.pretrained else 32)

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.side // self.size.patch

    @property
    def tokens(self) -> int:
        """T: patches and the class token."""
        return self.grid**2 + 1

    @property
    def frozen(self) -> int:
        """F; 0 where nothing is frozen."""
        return self.replay_block or 0

    @property
    def released(self) -> tuple[int, tuple[int, int], str]:
        """How the released program is told the same: `i <= a`, `b < i < c`, and the last frozen parameter's name.

        Raises UserError where nothing is frozen, which it cannot be told.
        """
        if self.replay_block is None:
            raise UserError("replay_block = None: the released program always freezes its embedding")
        f = self.frozen
        name = f"lat_features.{f}.norm2.bias" if f else "lat_features.0.pos_embedding"
        return f + 1, (self.depth + 1, self.size.blocks + 2), name

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Of what is stored of a sample."""
        return 1 if self.store == "cls" else self.tokens, self.size.dim

    def block(self) -> Any:
        """One block, with dropout where the released program has it."""
        from timm.models.vision_transformer import Block

        size = self.size
        made: Any = Block(
            size.dim,
            size.heads,
            size.mlp / size.dim,
            qkv_bias=True,
            proj_drop=self.dropout,
            attn_drop=self.attention_dropout,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
        )
        made.mlp.drop1.p = 0.0  # only on the branch's output
        made.attn.proj_drop, made.mlp.drop2 = QuickDropout(self.dropout), QuickDropout(self.dropout)
        if self.attention_dropout:  # no fused kernel on a CPU drops anything
            made.attn.fused_attn, made.attn.attn_drop = False, QuickDropout(self.attention_dropout)
        return made

    def lower(self) -> Lower:
        """The part below the cut, with its weights."""
        with seeded(0, "vit"):
            lower = Lower(self)
        state = self._start()
        if state is not None:
            with torch.no_grad():
                lower.cls.copy_(state["cls_token"])
                lower.pos.copy_(zoomed(state["pos_embed"], self.grid))
            lower.patches.load_state_dict({k: state[f"patch_embed.proj.{k}"] for k in ("weight", "bias")})
            load_blocks(lower.blocks, state, 0)
        if self.class_token == "zero":
            nn.init.zeros_(lower.cls)
        how = f"{self.backbone} {self.side} px, {self.frozen} blocks, {self.normalize}, {self.store}"
        lower.told = f"{how}, weights {hash_arrays(*lower.state_dict().values())}"
        return lower

    def upper(self, classes: int) -> Upper:
        """The part above the cut, with its weights; those of the classifier are drawn."""
        upper, state = Upper(self, classes), self._start()
        if state is not None:
            load_blocks(upper.blocks, state, self.frozen)
            upper.norm.load_state_dict({"weight": state["norm.weight"], "bias": state["norm.bias"]})
        return upper

    def front(self, shape: tuple[int, ...]) -> Lower | None:
        """The frozen part for images of this shape, [3, H, W]; None where nothing is frozen."""
        self._check(shape)
        return None if self.replay_block is None else self.lower().requires_grad_(False).eval()

    def whole(self, classes: int) -> Cut:
        """Both parts; what is frozen needs no gradient."""
        lower = self.lower().requires_grad_(self.replay_block is None)
        return Cut(lower, self.upper(classes), detached=self.replay_block is not None)

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """What learns. shape: of latents, for the part above the cut, or of images, for both parts."""
        if shape == self.latent_shape and self.replay_block is not None:
            return self.upper(classes)
        self._check(shape)
        return self.whole(classes)

    def fingerprint(self) -> str:
        """Hash of the weights it starts from."""
        state = self._start()
        return RANDOM if state is None else hash_arrays(*(state[name] for name in sorted(state)))

    def _check(self, shape: tuple[int, ...]) -> None:
        """Raise UserError for inputs that are no images of the right size."""
        if shape != (3, self.side, self.side):
            raise UserError(f"image_size = {self.side}: takes images [3, {self.side}, {self.side}], not {list(shape)}")

    def _start(self) -> dict[str, Tensor] | None:
        """The backbone's pretrained weights by timm's names; None if they are drawn."""
        if self.weights == RANDOM:
            return None
        if self.weights == OWN:
            return own_weights(self.backbone)
        if self.size.pretrained is None:
            return fitting(stored(Path(self.weights)), self.size, self.weights)
        from cllib.datasets.backbones import backbone

        loaded = backbone(self.size.pretrained, self.weights).model.state_dict()
        state = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in loaded.items()}
        return fitting(state, self.size, self.weights)


def own_weights(backbone: str) -> dict[str, Tensor]:
    """The weights that ship with the book (`cllib.pretraining` made them)."""
    path = DATA / f"vit_{backbone}.safetensors"
    return fitting(stored(path), BACKBONES[backbone], str(path))


def fitting(state: dict[str, Tensor], size: Size, where: str) -> dict[str, Tensor]:
    """The weights, if they are those of a backbone of this size; UserError names the first that is not."""
    d, wide = size.dim, size.mlp
    shapes = {"cls_token": (1, 1, d), "patch_embed.proj.weight": (d, 3, size.patch, size.patch)}
    shapes |= {"patch_embed.proj.bias": (d,), "norm.weight": (d,), "norm.bias": (d,)}
    block = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (wide, d), "mlp.fc2": (d, wide)}
    for k in range(size.blocks):
        start = f"blocks.{k}."
        shapes |= {f"{start}{name}.weight": shape for name, shape in block.items()}
        shapes |= {f"{start}{name}.bias": shape[:1] for name, shape in block.items()}
        shapes |= {f"{start}{norm}.{part}": (d,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
    found = {name: tuple(value.shape) for name, value in state.items()}
    found["pos_embed"] = found.get("pos_embed", ())
    shapes["pos_embed"] = (1, *found["pos_embed"][1:2], d)
    for name, shape in shapes.items():
        if found.get(name) != shape:
            got = f"is {list(found[name])}" if name in found else "is missing"
            raise UserError(f"weights = {where!r}: {name} {got}, must be {list(shape)}")
    return state


def load_blocks(blocks: nn.Sequential, state: dict[str, Tensor], first: int) -> None:
    """Weights of blocks `first`, `first + 1` ... of a backbone."""
    for k, block in enumerate(blocks, first):
        start = f"blocks.{k}."
        block.load_state_dict({n.removeprefix(start): v for n, v in state.items() if n.startswith(start)})


def zoomed(pos: Tensor, grid: int) -> Tensor:
    """A table of positions `[1, 1 + n * n, D]` for another grid, `[1, 1 + grid * grid, D]`.

    The class token's stays, the others are interpolated linearly between the outermost ones, as released.
    """
    cls, patches = pos[:, :1], pos[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    if side == grid:
        return pos
    square = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # [1, D, n, n]
    square = F.interpolate(square, size=(grid, grid), mode="bilinear", align_corners=True)
    return torch.cat([cls, square.flatten(2).transpose(1, 2)], 1)


# --- what it is made of ---


@dataclass(frozen=True)
class Part:
    """One tensor of the network. section: as the released program names it; entries: how many tensors that one has."""

    section: str
    name: str
    shape: tuple[int, ...]
    frozen: bool
    entries: int

    @property
    def count(self) -> int:
        return prod(self.shape)


def structure(config: LatentViT, classes: int) -> list[Part]:
    """Every tensor of the whole network, bottom up, without making one."""
    with torch.device("meta"):
        lower, upper = Lower(config), Upper(config, classes)
    return [*_parts(lower, config, 1), *_parts(upper, config, config.frozen + 1)]


def _parts(module: nn.Module, config: LatentViT, first: int) -> Iterator[Part]:
    """Tensors of one part; `first`: the number of its first block, counted from 1."""
    below = isinstance(module, Lower)
    for name, p in module.named_parameters():
        head, _, rest = name.partition(".")
        section = "start" if head == "patches" else "lat" if below else "output" if head == "head" else "end"
        if head == "blocks":
            number, _, rest = rest.partition(".")
            name = f"block {int(number) + first}: {rest}"
        # The released program has separate layers for queries, keys and values.
        yield Part(section, name, tuple(p.shape), below and config.replay_block is not None, 3 if "qkv" in name else 1)


def macs(config: LatentViT, new: int, replayed: int) -> float:
    """Multiplications of one step: frozen blocks forward for new samples, the others forward and backward for all.

    A block has 12 d^2 T + 2 T^2 d a sample. The spec of what a step costs where nothing is cached.
    """
    size, t = config.size, config.tokens
    block = (4 * size.dim + 2 * size.mlp) * size.dim * t + 2 * t**2 * size.dim
    learning = config.depth - config.frozen
    patches = config.grid**2 * 3 * size.patch**2 * size.dim
    return new * (patches + config.frozen * block) + (new + replayed) * learning * 3 * block
