"""A run's place on disk: a folder named by everything its result depends on, used by one process at a time.

STORE/ADDRESS/  parameters.json  what the address stands for
                checkpoint.pt    the state to go on from, or the final one
                records.json     the result, once there is one
                lock
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cllib.checkpoints import clean
from cllib.datasets.files import locked, writable_folder, write_atomic

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "timm")


@cache
def versions() -> dict[str, str]:
    """Versions that matter for a number."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}}


def artifacts() -> Path:
    """Where everything that is made goes: CLLIB_ARTIFACTS, else `artifacts` of the checkout."""
    return Path(os.environ.get("CLLIB_ARTIFACTS", ROOT / "artifacts"))


def store() -> Path:
    """Where runs are kept: `runs` of the artifacts."""
    return artifacts() / "runs"


# --- the address ---


def address(parameters: Any, data: str, code: str, device: str, threads: int | None = None) -> str:
    """16 hex digits that stand for everything which can change a run's numbers, but for the processor it ran on.

    parameters, data, code: what is run, on what, by which code, under their content; device: its kind; threads: that
    torch adds up with (those it has now, where None). Versions of libraries and the default precision join them.
    """
    around = {**versions(), "dtype": str(torch.get_default_dtype()), "threads": threads or torch.get_num_threads()}
    whole = {"parameters": parameters, "data": data, "code": code, "around": around, "device": device}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def processor() -> str:
    """What the processor can do, which decides how torch adds up: runs have equal bits where this is equal too."""
    return torch.backends.cpu.get_cpu_capability()


# --- the folder ---


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder, for this process alone; another one that holds it is waited for.

    The system frees the lock when a process dies, however it dies. What a killed process left half-written is removed.
    """
    with locked(writable_folder(folder) / "lock", f"{folder}: another process works on this run; waiting for it"):
        clean(folder)
        yield folder


def describe(folder: Path, what: Any) -> None:
    """Write down what the folder's address stands for."""
    write_atomic(folder / "parameters.json", json.dumps(what, indent=1, sort_keys=True).encode())
