"""The noises of BiRT (Jeeveswaran et al. 2023), as pure functions: what is drawn is given.

M mixes representations, T changes labels, A disturbs attention, S disturbs the teacher; X, which only the released code
has, exaggerates the difference of two samples of a class.
"""

import numpy as np
import torch
from torch import Tensor

from cllib.randomness import normal

GATES = ("sample", "batch")
FREQUENT = 5  # labels whose samples are extrapolated


def gated(count: int, p: float, gate: str, draws: torch.Generator) -> Tensor:
    """Which of `count` samples get a noise of probability p, `[count]` bool: each for itself, or all or none."""
    drawn = torch.rand(count if gate == "sample" else 1, generator=draws, device=draws.device)
    return (drawn.cpu() < p).expand(count)


def coefficient(shape: float, draws: torch.Generator) -> float:
    """lambda ~ Beta(shape, shape)."""
    seed = int(torch.randint(2**62, (), generator=draws))
    return float(np.random.default_rng(seed).beta(shape, shape))


def mixed(x: Tensor, share: float, partner: Tensor, chosen: Tensor) -> Tensor:
    """M: share x_i + (1 - share) x_j in the chosen rows of `x: [B, ...]`, j of `partner: [B]`; the others untouched.

    Of one-hot targets it makes the soft ones, under which the loss is the mean of both labels' losses.
    """
    rows = chosen.view(-1, *[1] * (x.dim() - 1))
    return torch.where(rows, share * x + (1 - share) * x[partner], x)


def relabelled(y: Tensor, chosen: Tensor, low: int, high: int, draws: torch.Generator) -> Tensor:
    """T: a label from low ... high - 1 in the chosen rows of `y: [B]`, maybe the one it had."""
    return torch.where(chosen, torch.randint(low, high, (len(y),), generator=draws).to(y.device), y)


def extrapolated(x: Tensor, y: Tensor, share: float, classes: int) -> Tensor:
    """X: of the most frequent labels, the first sample a becomes x_a + share (x_a - x_z), z being the last one.

    x: `[B, ...]`; y: `[B]` in 0 ... classes - 1. (The released code stops with an error where there are fewer labels
    than `FREQUENT`.)
    """
    own = y[None, :] == torch.arange(classes, device=y.device)[:, None]  # [C, B]
    often = own.sum(1).topk(min(FREQUENT, classes)).indices
    first = own[often].int().argmax(1)
    last = len(y) - 1 - own[often].flip(1).int().argmax(1)
    there = own[often].any(1).view(-1, *[1] * (x.dim() - 1))
    return x.index_add(0, first, share * torch.where(there, x[first] - x[last], 0))


def supervised(logits: Tensor, chosen: Tensor, std: float, draws: torch.Generator) -> Tensor:
    """S: N(0, std^2) added to the teacher's logits `[B, C]` in the chosen rows."""
    return torch.where(chosen[:, None], logits + std * normal(logits.shape, draws, logits), logits)


class AttentionNoise:
    """A: N(0, std^2) on every attention weight of the chosen samples, in every layer anew (`models.split.Noise`).

    Not renormalised: rows then sum to 1 and the sum of their noise.

    Args:
        first: rows of a batch before this one are spared; p, gate: see `gated`; like: a tensor on the device.
    """

    def __init__(self, p: float, std: float, gate: str, draws: torch.Generator, first: int, like: Tensor) -> None:
        self.p, self.std, self.gate, self.draws, self.first, self.like = p, std, gate, draws, first, like
        self.all = bool(gated(1, p, gate, draws)) if gate == "batch" else None

    def __call__(self, rows: int, heads: int, tokens: int) -> tuple[Tensor, Tensor] | None:
        count = rows - self.first
        if self.all is None:
            chosen = gated(count, self.p, self.gate, self.draws).nonzero()[:, 0]
        else:
            chosen = torch.arange(count if self.all else 0)
        if not len(chosen):
            return None
        noise = self.std * normal((len(chosen), heads, tokens, tokens), self.draws, self.like)
        return (self.first + chosen).to(self.like.device), noise
