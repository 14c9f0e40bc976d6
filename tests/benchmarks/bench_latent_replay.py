"""What one more batch costs to learn beside a straight implementation, and images a second. `make bench` runs it.

The straight implementation is the method written down in the form of the released program: layers of its own for
queries, keys and values, attention probabilities in full, every token through every block, the frozen part run again
for the new images of every step, stored latents beside them, and after each step loss, accuracy and the size of every
gradient fetched for the log. Same sizes, same steps, one thread.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.feeds import portion
from cllib.learners.latent_replay import LatentReplaySettings
from cllib.models.latent_vit import LatentViT
from cllib.recipes import Recipe
from cllib.streams.base import Experience, Stream
from cllib.threads import one_thread
from cllib.timing import STAGES, time_batches

EPOCHS, CLASSES, DROP = 4, 50, 0.1


class PlainAttention(nn.Module):
    """Attention with a layer each for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))
        self.drop, self.heads = nn.Dropout(DROP), heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = self.drop((q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1))  # [B, h, T, T]
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class PlainBlock(nn.Module):
    """Pre-norm block with dropout on both branches."""

    def __init__(self, dim: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, 1e-6), nn.LayerNorm(dim, 1e-6)
        self.attn = PlainAttention(dim, heads)
        self.fc1, self.fc2, self.drop = nn.Linear(dim, mlp), nn.Linear(mlp, dim), nn.Dropout(DROP)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class PlainViT(nn.Module):
    """The whole network, cut by a number in its forward pass."""

    def __init__(self, config: LatentViT) -> None:
        super().__init__()
        size = config.size
        self.patches = nn.Conv2d(3, size.dim, size.patch, size.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, size.dim))
        self.pos = nn.Parameter(torch.zeros(1, config.tokens, size.dim))
        self.blocks = nn.ModuleList(PlainBlock(size.dim, size.heads, size.mlp) for _ in range(config.depth))
        self.norm, self.head = nn.LayerNorm(size.dim, 1e-6), nn.Linear(size.dim, CLASSES, bias=False)
        self.cut = config.frozen
        for module in (self.patches, *self.blocks[: self.cut]):
            module.requires_grad_(False)
        self.cls.requires_grad_(False)
        self.pos.requires_grad_(False)

    def low(self, x: Tensor) -> Tensor:
        x = self.patches((x - 0.5) / 0.5).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        for block in self.blocks[: self.cut]:
            x = block(x)
        return x

    def forward(self, x: Tensor, stored: Tensor) -> tuple[Tensor, Tensor]:
        new = self.low(x)
        z = torch.cat([new, stored])
        for block in self.blocks[self.cut :]:
            z = block(z)
        return self.head(self.norm(z)[:, 0]), new


def straight(config: LatentViT, new: int, held: int, mb: int, batches: int) -> list[float]:
    """Seconds for each of some batches of `new` images with `held` stored latents."""
    torch.manual_seed(0)
    net, part = PlainViT(config), portion(new, held, mb)
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.005, 0.9, weight_decay=5e-4)
    z, zy = torch.randn(held, config.tokens, config.size.dim), torch.randint(CLASSES, (held,))
    spent = []
    for _ in range(batches):
        x, y = torch.rand(new, 3, config.side, config.side), torch.randint(CLASSES, (new,))
        begin = perf_counter()
        straight_batch(net, optimiser, (x, y), (z, zy), part.new, part.replayed)
        spent.append(perf_counter() - begin)
    return spent


def straight_batch(
    net: PlainViT,
    optimiser: torch.optim.Optimizer,
    fresh: tuple[Tensor, Tensor],
    stored: tuple[Tensor, Tensor],
    new: int,
    replayed: int,
) -> None:
    """Every epoch of one batch, and what is kept of it."""
    (x, y), (z, zy) = fresh, stored
    net.train()
    for block in net.blocks[: net.cut]:
        block.eval()
    latents, log = [], []
    order = torch.randperm(len(y))
    for epoch in range(EPOCHS):
        for t in range(len(y) // new):
            rows, slots = order[t * new : (t + 1) * new], slice(t * replayed, (t + 1) * replayed)
            optimiser.zero_grad()
            logits, low = net(x[rows], z[slots])
            labels = torch.cat([y[rows], zy[slots]])
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimiser.step()
            log.append((loss.item(), (logits.argmax(1) == labels).float().mean().item()))
            log += [
                (p.grad.abs().mean().item(), p.grad.abs().max().item()) for p in net.parameters() if p.grad is not None
            ]
            latents += [low.detach()] if epoch == 0 else []
    kept = torch.cat(latents)
    slots = torch.randperm(len(z))[: len(kept) // 4]
    z[slots] = kept[: len(slots)]


def stream(config: LatentViT, first: int, new: int, batches: int) -> Stream:
    """Noise of the right shape."""
    draws = torch.Generator().manual_seed(0)
    classes = tuple(range(CLASSES))

    def part(count: int) -> Experience:
        x = torch.randint(256, (count, 3, config.side, config.side), generator=draws, dtype=torch.uint8)
        return Experience(x, torch.randint(CLASSES, (count,), generator=draws), classes)

    return Stream("noise", CLASSES, tuple(part(first if k == 0 else new) for k in range(batches)), (), ())


def ours(config: LatentViT, new: int, held: int, mb: int, batches: int) -> list[float]:
    """Seconds of the package for the same."""
    settings = LatentReplaySettings(held, later_step_size=0.005)
    recipe = Recipe("latent", settings, config, momentum=0.9, weight_decay=5e-4, batch_size=mb, epochs=EPOCHS)
    made = time_batches(recipe, stream(config, held, new, batches + 2), batches)
    return [sum(row[stage] for stage in STAGES) for row in made]


def compared(config: LatentViT, new: int, held: int, mb: int, batches: int) -> None:
    """One line: both in turn, so that a busy machine disturbs them alike."""
    ways: tuple[Callable[..., list[float]], ...] = (straight, ours)
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(3):
        for times, way in zip(spent, ways, strict=True):
            times += way(config, new, held, mb, batches)
    plain, mine = (median(times) for times in spent)
    print(
        f"{config.backbone:6s} D={config.depth:2d} F={config.replay_block!s:4s} {config.store:6s}"
        f" {new} new, {held} stored, mb {mb}: {1000 * plain:8.1f} ms, ours {1000 * mine:8.1f} ms: {mine / plain:.2f} x,"
        f" {new * EPOCHS / mine:6.0f} new images/s"
    )


def main() -> None:
    """Print a line a cut."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--large", action="store_true", help="also B/32 at 128 pixels: minutes")
    large = parser.parse_args().large
    with one_thread():
        for backbone in ("tiny", "tiny4"):
            config = LatentViT(backbone, weights="random")
            for cut in (0, 3, 6):
                compared(replace(config, replay_block=cut), 60, 120, 30, 4)
            compared(replace(config, replay_block=6, store="cls"), 60, 120, 30, 4)
        for cut in (6, 12) if large else ():
            compared(LatentViT("b32", 128, 12, cut, weights="random"), 30, 60, 15, 1)


if __name__ == "__main__":
    main()
