"""MODES and MOONS: 2000 points in the plane, four classes, two domains (chapter 1, rules 2.1), regenerated
exactly.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CLASSES, DOMAINS = 4, 2
# MODES: per domain and class, centre, standard deviation and seed of one isotropic Gaussian.
MODES = (
    (
        ((0.25, 0.25), 0.02, 1234),
        ((0.6, 0.65), 0.08, 5678),
        ((0.15, 0.5), 0.015, 9101112),
        ((0.85, 0.3), 0.03, 13141516),
    ),
    (((0.2, 0.75), 0.04, 1), ((1.0, 0.1), 0.02, 5), ((1.15, 0.75), 0.06, 9), ((0.3, 0.5), 0.015, 13)),
)
MODES_COUNTS = (400, 800, 200, 600)
# MOONS: per pair of classes and domain, offset, noise and seed of one pair of crescents.
MOONS = ((((0, 0), 0.08, 1234), ((2, 1), 0.04, 1)), (((-3, 1), 0.06, 5678), ((3, -1), 0.03, 5)))
MOONS_COUNTS = (800, 200, 600, 400)


@dataclass(frozen=True)
class Points:
    """x: `[n, 2]` float32 in [-1, 1]; y: class `[n]`; domain: `[n]`."""

    x: Tensor
    y: Tensor
    domain: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: np.ndarray) -> "Points":
        """The points at `index`, in that order."""
        rows = torch.from_numpy(np.asarray(index))
        return Points(self.x[rows], self.y[rows], self.domain[rows])


def scaled(x: np.ndarray) -> np.ndarray:
    """Every coordinate to [-1, 1] over all points."""
    low, high = x.min(0), x.max(0)
    return 2 * (x - low) / (high - low) - 1


def gather(parts: list[tuple[np.ndarray, np.ndarray, int]]) -> Points:
    """Concatenate (points, classes, domain) and scale."""
    x = scaled(np.concatenate([part[0] for part in parts]))
    y = np.concatenate([part[1] for part in parts])
    domain = np.concatenate([np.full(len(part[1]), part[2]) for part in parts])
    return Points(torch.from_numpy(x).float(), torch.from_numpy(y).long(), torch.from_numpy(domain).long())


def modes() -> Points:
    """All 2000 points of MODES: eight Gaussian blobs, one per class and domain."""
    from sklearn.datasets import make_blobs  # half a second, which most runs do without

    parts = []
    for c, count in enumerate(MODES_COUNTS):
        for d in range(DOMAINS):
            centre, std, seed = MODES[d][c]
            x, _ = make_blobs([count // 2], centers=[centre], cluster_std=std, shuffle=False, random_state=seed)
            parts.append((x, np.full(count // 2, c), d))
    return gather(parts)


def moons() -> Points:
    """All 2000 points of MOONS: four pairs of crescents; classes (0, 1) and (2, 3), each pair in both domains."""
    from sklearn.datasets import make_moons  # half a second, which most runs do without

    parts = []
    for pair, domains in enumerate(MOONS):
        a, b = MOONS_COUNTS[2 * pair] // 2, MOONS_COUNTS[2 * pair + 1] // 2
        for d, (offset, noise, seed) in enumerate(domains):
            x, y = make_moons((a, b), shuffle=False, noise=noise, random_state=seed)
            parts.append((x + np.asarray(offset), y + 2 * pair, d))
    return gather(parts)


def split(points: Points) -> dict[str, Points]:
    """train = even rows, odd rows alternate validation and test; each part permuted with the published seed, 1234."""
    rows = np.arange(len(points))
    parts = {"train": rows[::2], "validation": rows[1::4], "test": rows[3::4]}
    return {name: points.take(part[published_permutation(len(part))]) for name, part in parts.items()}


def published_permutation(n: int) -> np.ndarray:
    """The permutation numpy's legacy generator draws with seed 1234."""
    return np.random.RandomState(1234).permutation(n)
