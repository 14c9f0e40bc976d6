"""Random draws that belong to a run's seed and a purpose, so that switching one feature off leaves all others as they
were.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose ("init", "order", "replay", "memory" ...) of the run with this seed."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def draw(seeds: Sequence[int], purpose: str, sample: Callable[[torch.Generator], Tensor]) -> Tensor:
    """Stack `sample(generator)` over runs: `[R, ...]`. Row r depends on `seeds[r]` and `purpose` alone."""
    return torch.stack([sample(generator(seed, purpose)) for seed in seeds])
