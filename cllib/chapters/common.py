"""What all chapters are told."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from cllib.errors import UserError, one_of, whole
from cllib.streams.base import Stream

PROFILES = ("smoke", "quick", "paper")
DEVICES = ("auto", "cpu", "cuda")
PLACES = ("data_dir", "weights", "backbone_weights")  # parameters that may name a file or folder of this machine


@dataclass(frozen=True)
class Chapter:
    """Raises UserError at construction for impossible values, and so do the chapters made from it."""

    profile: str = "quick"
    device: str = "auto"  # auto: a GPU where there is one
    seeds: int = 5  # runs behind every number
    seed: int = 0  # the first one; the others follow

    def __post_init__(self) -> None:
        one_of("profile", self.profile, PROFILES)
        one_of("device", self.device, DEVICES)
        whole("seeds", self.seeds, 1)
        whole("seed", self.seed, 0)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device = 'cuda': this machine has no GPU that torch can use; allowed here are auto, cpu")

    @property
    def runs(self) -> list[int]:
        """The seeds of the runs."""
        return list(range(self.seed, self.seed + self.seeds))

    @property
    def own_folder(self) -> Path | None:
        """The folder of class folders with the reader's own images, where these are the data."""
        return None

    @property
    def on(self) -> str:
        """The device to run on: "cpu" or "cuda"."""
        return usual_device() if self.device == "auto" else self.device


def usual_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_sharing(parts: tuple[str, ...], allowed: tuple[str, ...], workers: int | None) -> None:
    """Raise UserError for a part that a chapter does not have, or no processes to share its runs."""
    for name in parts:
        one_of("parts", name, allowed)
    if workers is not None:
        whole("workers", workers, 1)


@lru_cache(maxsize=16)
def once(make: Callable[..., Stream], *told: Hashable) -> Stream:
    """The stream that `make` gives; loaded once where many settings ask for the same."""
    return make(*told)
