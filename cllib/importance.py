"""Why the size of a hidden weight tells how important it is: a task with an exact theory, and sign flips in networks.

Laborieux et al. 2021: the quadratic binary task, and Fig. 5c-e.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.errors import UserError, one_of, whole, within
from cllib.models.binary import binary_weights, sign
from cllib.models.norms import tested
from cllib.randomness import generator
from cllib.streams.base import inputs

BINS = ("count", "width")


# --- the quadratic binary task ---


@dataclass(frozen=True)
class QuadraticTask:
    """L(B) = 1/2 (B - s)^T H (B - s) over B in {-1, +1}^d.

    hessian: H, `[d, d]`, symmetric; goal: s, `[d]`; float64.
    """

    hessian: Tensor
    goal: Tensor

    def loss(self, b: Tensor) -> Tensor:
        """L, `[]`, of `b: [d]`."""
        return 0.5 * (b - self.goal) @ self.hessian @ (b - self.goal)

    def gradient(self, b: Tensor) -> Tensor:
        """H (b - s), `[d]`."""
        return self.hessian @ (b - self.goal)

    def flip_cost(self, b: Tensor) -> Tensor:
        """By how much L rises if bit i alone flips: -2 b_i g_i + 2 H_ii exactly, `[d]`."""
        return -2 * b * self.gradient(b) + 2 * self.hessian.diagonal()

    def predicted_cost(self, w: Tensor, eta: float, steps: int) -> Tensor:
        """The same from the hidden weights alone, for those that drift: 2 |W_i| / (eta T) + 2 H_ii, `[d]`."""
        return 2 * w.abs() / (eta * steps) + 2 * self.hessian.diagonal()


def random_task(size: int = 500, seed: int = 0) -> QuadraticTask:
    """As in the paper: eigenvalues from U(10.5, 29.5) in random directions, s from U(-4, 4)."""
    whole("size", size, 1)
    draws = generator(seed, "quadratic task")
    values = 20 + 19 * (torch.rand(size, generator=draws, dtype=torch.float64) - 0.5)
    directions = torch.linalg.qr(torch.randn(size, size, generator=draws, dtype=torch.float64))[0]
    goal = 8 * torch.rand(size, generator=draws, dtype=torch.float64) - 4
    return QuadraticTask(directions @ torch.diag(values) @ directions.T, goal)


def plane_task() -> QuadraticTask:
    """The two-dimensional example: the first weight drifts, the second oscillates about zero."""
    hessian = torch.tensor([[2.4047, 0.2158], [0.2158, 0.7733]], dtype=torch.float64)
    return QuadraticTask(hessian, torch.tensor([1.5, 0.5], dtype=torch.float64))


def descend(task: QuadraticTask, start: Tensor, eta: float, steps: int) -> Tensor:
    """Hidden weights while W <- W - eta H (sign(W) - s): `[steps + 1, d]`."""
    within("eta", eta, 0)
    whole("steps", steps, 1)
    path = [start]
    for _ in range(steps):
        path.append(path[-1] - eta * task.gradient(sign(path[-1])))
    return torch.stack(path)


# --- sign flips ---


def mean_loss(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Cross-entropy over samples `x: [n, ...]`, `y: [n]`, in evaluation mode."""
    return float(F.cross_entropy(tested(network, inputs(x)), y))


def bins_of(sizes: Tensor, bins: int, equal: str) -> list[Tensor]:
    """Indices of weights by size, `sizes: [n]`: bins of equal "count", or of equal "width" up to the largest."""
    one_of("equal", equal, BINS)
    if equal == "count":
        return list(sizes.argsort().tensor_split(bins))
    place = (sizes / sizes.max() * bins).long().clamp(max=bins - 1)
    return [torch.nonzero(place == k).flatten() for k in range(bins)]


@torch.no_grad()
def sign_flips(
    network: nn.Module,
    name: str,
    x: Tensor,
    y: Tensor,
    bins: int = 8,
    flips: int = 1500,
    repeats: int = 8,
    equal: str = "count",
    seed: int = 0,
) -> pd.DataFrame:
    """How much the loss on `x: [n, ...]`, `y: [n]` rises per flipped sign, for weights of one layer by size.

    name: of the layer's hidden weight; in every bin that has as many, `flips` random signs are flipped at once,
    `repeats` times. One row a bin and repeat: bin, size (mean |W| in the bin), cost. The network is left as it was.
    Raises UserError for another name, or if no bin is large enough.
    """
    weights = binary_weights(network)
    one_of("name", name, tuple(weights))
    for number, value in {"bins": bins, "flips": flips, "repeats": repeats}.items():
        whole(number, value, 1)
    flat, draws = weights[name].view(-1), generator(seed, "sign flips")
    before, rows = mean_loss(network, x, y), []
    for k, members in enumerate(bins_of(flat.abs(), bins, equal)):
        for _ in range(repeats if len(members) >= flips else 0):
            chosen = members[torch.randperm(len(members), generator=draws)[:flips].to(members.device)]
            flat[chosen] *= -1
            rows.append((k, float(flat[members].abs().mean()), (mean_loss(network, x, y) - before) / flips))
            flat[chosen] *= -1
    if not rows:
        raise UserError(f"flips = {flips}: no bin of {name} has as many weights; fewer flips or fewer bins")
    return pd.DataFrame(rows, columns=["bin", "size", "cost"])


def by_layer(network: nn.Module) -> dict[str, Tensor]:
    """What the released programs draw histograms of: by name every parameter that learns, is no bias and no vector."""
    learning: Sequence[tuple[str, nn.Parameter]] = list(network.named_parameters())
    return {n: p.detach() for n, p in learning if p.requires_grad and "bias" not in n and p.dim() != 1}
