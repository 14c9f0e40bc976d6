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
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from cllib.checkpoints import clean
from cllib.datasets.files import writable_folder, write_atomic

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("torch", "numpy", "scikit-learn", "timm")
MATTER = ("python", "torch", "numpy")  # of these, a new version may change the bits of a result


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


def address(parameters: Any, data: str, code: str, device: str) -> str:
    """16 hex digits that stand for a run: its parameters, data, code, library versions and kind of device."""
    libraries = {name: versions()[name] for name in MATTER} | {"dtype": str(torch.get_default_dtype())}
    whole = {"parameters": parameters, "data": data, "code": code, "libraries": libraries, "device": device}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


# --- the folder ---


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder, for this process alone; another one that holds it is waited for.

    The system frees the lock when a process dies, however it dies. What a killed process left half-written is removed.
    """
    lock = FileLock(writable_folder(folder) / "lock")
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        print(f"{folder}: another process works on this run; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        clean(folder)
        yield folder
    finally:
        lock.release()


def describe(folder: Path, what: Any) -> None:
    """Write down what the folder's address stands for."""
    write_atomic(folder / "parameters.json", json.dumps(what, indent=1, sort_keys=True).encode())
