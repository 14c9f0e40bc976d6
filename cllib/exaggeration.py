"""What keeps classes apart that a replaying network confuses ("feature exaggeration", Millichamp & Chen 2021).

Everything acts on replayed samples. Of each the teacher's largest score names its own class a, the second largest its
competitor b; the three ways are repulsion between distributions, repulsion and attraction of reconstructions, and
contrastive learning. Symbols are those of the chapter.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cllib.errors import flag, one_of, within
from cllib.models.replay_vae import log_normal

DIVERGENCES, PAIRS = ("js", "kl", "true js", "overlap"), ("posterior", "prior")
TARGETS = ("label", "softmax", "raw")
BASE_TEMPERATURE = 0.07  # the contrastive loss is scaled by its temperature over this one
DRAWS = 8  # samples behind the true Jensen-Shannon divergence


@dataclass(frozen=True)
class Exaggeration:
    """What is exaggerated, and how strongly; a strength of 0 is off, and then nothing is drawn or computed for it.

    repulsion: lambda of the inverse divergence to the competitor's distribution, which is (pair) the "posterior" of a
    replayed sample of that class or the class's mode of the "prior". divergence: "kl"; "js" as released, to the
    distribution of the average of two variables, so never 0; "true js", to the mixture, by sampling; "overlap" of
    intervals of two standard deviations, which is not inverted. factor: f, count only samples with p_a < f p_b; None:
    all. recon_repulsion, recon_attraction: weights of the inverse reconstruction error of the competitor's exemplar,
    and of the error of the own class's, which counts all samples, or none where the factor keeps none, as released.
    averaged: exemplars are class means, else one random sample each.

    contrastive: weight of the contrastive loss on the last hidden layer. targets: which pairs belong together: by
    "label", or as much as the products of the teacher's scores say, of their "softmax" or, as released, "raw".
    temperature, dropout: its own; head_step_size: of its projection; None: as of the network (released: 1e-8, so that
    it is all but a random one). same_noise: draw the same noise in every step, as released with the contrastive loss
    and with `--not-hidden`, which changes nothing else.
    """

    repulsion: float = 0.0
    divergence: str = "js"
    pair: str = "posterior"
    factor: float | None = None
    recon_repulsion: float = 0.0
    recon_attraction: float = 0.0
    averaged: bool = True
    contrastive: float = 0.0
    targets: str = "label"
    temperature: float = 1.0
    dropout: float = 0.5
    head_step_size: float | None = None
    same_noise: bool = False

    def __post_init__(self) -> None:
        for name in ("repulsion", "recon_repulsion", "recon_attraction", "contrastive"):
            within(name, getattr(self, name), 0)
        one_of("divergence", self.divergence, DIVERGENCES)
        one_of("pair", self.pair, PAIRS)
        if self.factor is not None:
            within("factor", self.factor, 1e-9)
        one_of("targets", self.targets, TARGETS)
        within("temperature", self.temperature, 1e-3)
        within("dropout", self.dropout, 0, 0.95)
        if self.head_step_size is not None:
            within("head_step_size", self.head_step_size, 0)
        for name in ("averaged", "same_noise"):
            flag(name, getattr(self, name))

    @property
    def repels(self) -> bool:
        """Whether the teacher's competitors matter."""
        return any((self.repulsion, self.recon_repulsion, self.recon_attraction))

    @property
    def on(self) -> bool:
        """Whether anything is."""
        return self.repels or self.contrastive > 0 or self.same_noise


# --- who competes ---


class Rivals(NamedTuple):
    """Own class a and competitor b of each sample, `[B]`; kept: whether b comes close enough, `[B]` bool."""

    own: Tensor
    other: Tensor
    kept: Tensor


def rivals(scores: Tensor, factor: float | None = None) -> Rivals:
    """From the teacher's scores over at least two old classes, `[B, c]`."""
    own, other = scores.topk(2, -1).indices.unbind(-1)
    if factor is None:
        return Rivals(own, other, torch.ones_like(own, dtype=torch.bool))
    p = scores.softmax(-1)
    nearer = p.gather(-1, own[:, None]) < factor * p.gather(-1, other[:, None])  # [B, 1]
    return Rivals(own, other, nearer[:, 0])


def one_each(own: Tensor, classes: int, order: Tensor) -> tuple[Tensor, Tensor]:
    """The sample of every class that comes first in `order: [B]` (random ranks), and whether there is one: `[c]`."""
    member = F.one_hot(own, classes).bool()  # [B, c]
    ranks = torch.where(member, order[:, None], -1.0)
    best, row = ranks.max(0)
    return row, best >= 0


def mean_over(values: Tensor, kept: Tensor) -> Tensor:
    """Mean of those `values: [B]` that are kept; 0 if none is."""
    return torch.where(kept, values, 0).sum() / kept.sum().clamp(min=1)


def mean_inverse(values: Tensor, kept: Tensor) -> Tensor:
    """Mean of 1 / value over those that are kept; 0 if none is. What is not kept may be 0: it has no gradient."""
    return mean_over(1 / torch.where(kept, values, 1), kept)


# --- distributions ---


def kl(mu: Tensor, logvar: Tensor, mu2: Tensor, logvar2: Tensor) -> Tensor:
    """KL(N(mu, v) || N(mu2, v2)), `[..., d]` to `[...]`."""
    return 0.5 * ((logvar - logvar2).exp() + (mu2 - mu).square() * (-logvar2).exp() + logvar2 - logvar - 1).sum(-1)


def released_js(mu: Tensor, logvar: Tensor, mu2: Tensor, logvar2: Tensor) -> Tensor:
    """Half of the KL divergences of both to N((mu + mu2) / 2, (v + v2) / 4), the average of two variables.

    Of equal distributions d/2 (1 - log 2), not 0.
    """
    middle = (mu + mu2) / 2, ((logvar.exp() + logvar2.exp()) / 4).log()
    return 0.5 * (kl(mu, logvar, *middle) + kl(mu2, logvar2, *middle))


def true_js(mu: Tensor, logvar: Tensor, mu2: Tensor, logvar2: Tensor, noise: Tensor) -> Tensor:
    """The Jensen-Shannon divergence, to the mixture of both, at most log 2; noise `[2, K, ..., d]` samples it."""
    sides = ((mu, logvar, mu2, logvar2), (mu2, logvar2, mu, logvar))
    found = []
    for (m, s, m2, s2), e in zip(sides, noise, strict=True):
        z = m + (0.5 * s).exp() * e  # [K, ..., d]
        mine, others = log_normal(z, m, s), log_normal(z, m2, s2)
        found.append((mine - torch.logaddexp(mine, others) + math.log(2)).mean(0))
    return 0.5 * (found[0] + found[1])


def overlap(mu: Tensor, logvar: Tensor, mu2: Tensor, logvar2: Tensor) -> Tensor:
    """Summed length of what the intervals of mean +- 2 standard deviations share, `[..., d]` to `[...]`."""
    low, high = ((m - 2 * (0.5 * s).exp(), m + 2 * (0.5 * s).exp()) for m, s in ((mu, logvar), (mu2, logvar2)))
    return (torch.minimum(low[1], high[1]) - torch.maximum(low[0], high[0])).clamp(min=0).sum(-1)


def repulsion(
    how: Exaggeration, posterior: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], kept: Tensor, noise: Tensor
) -> Tensor:
    """Mean over the kept samples of 1 / divergence, or of the overlap; each distribution is mean and log-variance.

    noise: `[2, K, B, z]`, for "true js" alone.
    """
    pair = (*posterior, *other)
    if how.divergence == "overlap":
        return mean_over(overlap(*pair), kept)
    if how.divergence == "true js":
        return mean_inverse(true_js(*pair, noise).clamp(min=1e-6), kept)
    return mean_inverse((kl if how.divergence == "kl" else released_js)(*pair), kept)


# --- reconstructions ---


def class_means(x: Tensor, own: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean sample of every class, `[c, ...]` from `x: [B, ...]`, and whether there is one, `[c]` bool."""
    member = F.one_hot(own, classes).to(x.dtype)  # [B, c]
    count = member.sum(0)
    means = member.T @ x.flatten(1) / count.clamp(min=1)[:, None]
    return means.view(classes, *x.shape[1:]), count > 0


# --- contrast ---


def contrastive(u: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss of projections `u: [n, p]` of length 1; weights `[n, n]` say what belongs together.

    Mean over i of -(T / 0.07) sum_{j != i} w_ij log softmax_{k != i}(u_i u_k / T)_j / sum_{j != i} w_ij.
    """
    itself = torch.eye(len(u), dtype=torch.bool, device=u.device)
    logp = (u @ u.T / temperature).masked_fill(itself, -torch.inf).log_softmax(-1).masked_fill(itself, 0)
    w = weights.masked_fill(itself, 0)
    each = (w * logp).sum(-1) / w.sum(-1)
    return -temperature / BASE_TEMPERATURE * each.mean()


def belonging(own: Tensor, scores: Tensor, targets: str) -> Tensor:
    """w of two views of B samples, `[2 B, 2 B]`: equal labels, or products of the teacher's scores `[B, c]`."""
    if targets == "label":
        once = (own[:, None] == own).to(scores.dtype)
    else:
        s = scores.softmax(-1) if targets == "softmax" else scores
        once = s @ s.T
    return once.repeat(2, 2)
