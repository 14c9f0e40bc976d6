"""How good a generator is: likelihood, and how the features of what it makes compare with those of real samples.

Scores depend on the network that features come from: those with another one, such as the literature's InceptionNet, are
other numbers.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cllib.metrics import Array
from cllib.models.replay_vae import VAE, log_normal, log_prior_of
from cllib.randomness import generator
from cllib.streams.base import inputs

CLUSTERS, ANGLES, REPEATS = 20, 1001, 10  # of precision and recall (Sajjadi et al. 2018)
SURE = 8  # beta of the two summaries of their curve


@torch.no_grad()
def dream(net: VAE, label: Tensor, noise: Tensor, mode: Tensor) -> Tensor:
    """Samples `[B, *shape]` of classes `[B]` from noise `[B, z]` and modes `[B]` of the prior, gates by class."""
    return net.shown(net.decode(net.draw(noise, label, mode), net.gates_of(label)))


def dreams_of(net: VAE, classes: Sequence[int], each: int, seed: int = 0) -> dict[int, Tensor]:
    """`each` samples of every class, the same noise for all of them and for every network of this size."""
    noise = torch.randn(each, net.config.latent, generator=generator(seed, "dreams")).to(net.out.weight.device)
    label = torch.tensor(list(classes), device=noise.device).repeat_interleave(each)
    mode = torch.arange(each, device=noise.device).repeat(len(classes)) % net.config.modes
    made = dream(net, label, noise.repeat(len(classes), 1), mode)
    return dict(zip(classes, made.split(each), strict=True))


def pictured(made: Tensor, shown: Tensor, images: Tensor) -> Tensor:
    """Dreams as images: themselves, or, of features, the images whose features (`shown`) come nearest."""
    return made if made.shape[1:] == images.shape[1:] else inputs(images[nearest(made, shown)])


@torch.no_grad()
def quality(net: VAE, judge: nn.Sequential, x: Tensor, y: Tensor, seed: int = 0) -> dict[str, float]:
    """Scores of as many dreams as there are real samples `x: [B, ...]`, of the same classes `y: [B]`.

    judge: a classifier of such samples; features are what its last layer sees.
    """
    draws = generator(seed, "quality")
    noise = torch.randn(len(y), net.config.latent, generator=draws).to(x.device)
    made = dream(net, y, noise, torch.randint(net.config.modes, (len(y),), generator=draws).to(x.device))
    real, features = (judge[:-1](part) for part in (x, made))
    precision, recall = f_scores(*precision_recall(real, features, seed))
    return {
        "log-likelihood": float(log_likelihood(net, x, y, draws).mean()),
        "reconstruction error": float(recon_errors(net, x, y).mean()),
        "IS": inception_score(judge(made)),
        "IS of real samples": inception_score(judge(x)),
        "FID": frechet(real, features),
        "precision": precision,
        "recall": recall,
        "recognised": float((judge(made).argmax(-1) == y).double().mean()),
    }


@torch.no_grad()
def log_likelihood(net: VAE, x: Tensor, y: Tensor, draws: torch.Generator, samples: int = 100) -> Tensor:
    """Estimate of log p(x | y), `[B]`, by importance sampling from the posterior; constants of Gaussians left out.

    log mean_s p(x | z_s, y) p(z_s | y) / q(z_s | x); p(x | z) is Bernoulli ("bce") or a Gaussian of unit variance.
    """
    seen, units = net.look(x), x[0].numel()
    found = []
    for _ in range(samples):
        noise = torch.randn(seen.mu.shape, generator=draws).to(x.device)
        z = seen.mu + (0.5 * seen.logvar).exp() * noise
        prior = log_normal(z, torch.zeros_like(z), torch.zeros_like(z))
        if net.config.prior == "classes":
            prior = log_prior_of(z, net.means[y], net.logvars[y])
        made = -units * net.error(net.decode(z, net.gates_of(y)), x)
        found.append(made + prior - log_normal(z, seen.mu, seen.logvar))
    return torch.stack(found).logsumexp(0) - math.log(samples)


@torch.no_grad()
def recon_errors(net: VAE, x: Tensor, y: Tensor) -> Tensor:
    """R at z = mu with the gates of the true class, `[B]`."""
    return net.error(net.decode(net.look(x).mu, net.gates_of(y)), x)


def inception_score(logits: Tensor) -> float:
    """exp mean KL(p(y | x) || p(y)) of a classifier's logits `[B, C]`: 1 (all alike) to C (Salimans et al. 2016)."""
    logp = logits.double().log_softmax(-1)
    marginal = logp.exp().mean(0).log()
    return float((logp.exp() * (logp - marginal)).sum(-1).mean().exp())


def frechet(a: Tensor, b: Tensor) -> float:
    """Distance of Gaussians fitted to features `[n, d]`, `[m, d]` (Heusel et al. 2017, FID).

    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)), the last trace by the eigenvalues of A B.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root)


def precision_recall(real: Tensor, made: Tensor, seed: int = 0) -> tuple[Array, Array]:
    """Precision and recall at all angles, `[1001]` each, from features `[n, d]`, `[m, d]` (Sajjadi et al. 2018).

    Both are put into clusters together; the curve is the mean over ten clusterings.
    """
    from sklearn.cluster import MiniBatchKMeans

    both = torch.cat([real, made]).cpu().numpy()
    slopes = np.tan(np.linspace(1e-6, np.pi / 2 - 1e-6, ANGLES))
    curves = []
    for k in range(REPEATS):
        cluster = MiniBatchKMeans(CLUSTERS, n_init=3, random_state=seed + k).fit(both).labels_
        p, q = (np.bincount(part, minlength=CLUSTERS) / len(part) for part in np.split(cluster, [len(real)]))
        precision = np.minimum(slopes[:, None] * p, q).sum(1)
        curves.append((precision, precision / slopes))
    precision, recall = np.mean(curves, 0).clip(0, 1)
    return precision, recall


def f_scores(precision: Array, recall: Array) -> tuple[float, float]:
    """The largest F_1/8 and F_8 on the curve: how real samples look, and how much of reality they cover."""

    def best(beta: float) -> float:
        below = beta**2 * precision + recall
        return float(np.max((1 + beta**2) * precision * recall / np.maximum(below, 1e-12)))

    return best(1 / SURE), best(SURE)


def nearest(made: Tensor, real: Tensor) -> NDArray[np.int64]:
    """Row of the real sample that each made one is closest to, `[B]`; both `[n, ...]`."""
    found: NDArray[np.int64] = torch.cdist(made.flatten(1), real.flatten(1)).argmin(1).cpu().numpy()
    return found


def runners_up(scores: Tensor) -> Tensor:
    """How often each class (column) comes second where another (row) comes first, as shares of the row, `[C, C]`."""
    own, other = scores.topk(2, -1).indices.unbind(-1)
    classes = scores.shape[-1]
    counts = F.one_hot(own, classes).double().T @ F.one_hot(other, classes).double()
    return counts / counts.sum(1, keepdim=True).clamp(min=1)
