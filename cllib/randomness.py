"""Random draws that belong to a run's seed and a purpose, so that switching one feature off leaves all others as they
were.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cllib.fingerprint import Registry

# By the type of the device they draw on, where that is not the CPU.
GENERATORS: dict[str, Callable[[str | torch.device], torch.Generator]] = Registry({"cuda": torch.Generator})


def generator(seed: int, purpose: str, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator for one purpose ("init", "order", "replay", "memory" ...) of the run with this seed.

    device: a GPU where much is drawn; anything else that has no generators of its own is the CPU.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    kind = torch.device(device).type
    draws = GENERATORS[kind](device) if kind in GENERATORS else torch.Generator()
    return draws.manual_seed(int.from_bytes(digest[:7], "big"))


def draw(seeds: Sequence[int], purpose: str, sample: Callable[[torch.Generator], Tensor]) -> Tensor:
    """Stack `sample(generator)` over runs: `[R, ...]`. Row r depends on `seeds[r]` and `purpose` alone."""
    return torch.stack([sample(generator(seed, purpose)) for seed in seeds])


def normal(shape: Sequence[int], draws: torch.Generator, like: Tensor) -> Tensor:
    """Standard normal numbers of a shape, made where the generator is, with the type and on the device of `like`."""
    return torch.randn(tuple(shape), generator=draws, device=draws.device).to(like.device, like.dtype)


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Torch's global generators seeded for a purpose, for code that draws from nothing else (initial weights, dropout).

    What they were before comes back at the end.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(generator(seed, purpose).initial_seed())
        yield


def global_state() -> dict[str, Tensor]:
    """The states of torch's global generators: CPU, and every GPU."""
    gpus = {f"cuda:{k}": state for k, state in enumerate(torch.cuda.get_rng_state_all())}
    return {"cpu": torch.get_rng_state(), **gpus}


def set_global_state(state: Mapping[str, Tensor]) -> None:
    """Take the states back from `global_state`; of GPUs as many as there are."""
    torch.set_rng_state(state["cpu"].clone())
    for k in range(torch.cuda.device_count()):
        if f"cuda:{k}" in state:
            torch.cuda.set_rng_state(state[f"cuda:{k}"].clone(), k)
