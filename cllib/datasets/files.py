"""Checksums, content hashes, atomic writes, and the folder that downloads and caches live in."""

import hashlib
import os
import secrets
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from cllib.errors import UserError


def checksum(path: str | Path, algorithm: str = "md5") -> str:
    """Hexadecimal digest of a file; `algorithm` is any name `hashlib` knows. Raises OSError for an unreadable file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def is_file(text: str) -> bool:
    """Whether a text names a file of this machine."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False


def verify(path: str | Path, expected: str, algorithm: str = "md5") -> None:
    """Raise `UserError`, naming the file, the digest found and the digest expected, unless the file is intact."""
    try:
        found = checksum(path, algorithm)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}), expected {algorithm} {expected}") from error
    if found != expected:
        raise UserError(f"{path}: damaged file, found {algorithm} {found}, expected {expected}")


def hash_arrays(*arrays: Tensor | np.ndarray[Any, Any]) -> str:
    """First 16 hex digits of the SHA-256 over dtype, shape and bytes of every array, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        tensor = torch.as_tensor(array).detach().cpu().clone(memory_format=torch.contiguous_format)
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def writable_folder(path: str | Path) -> Path:
    """The folder, made if missing. Raises `UserError` now, rather than after an hour of work, if it cannot be used."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: folder cannot be made ({error.strerror})") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"{path}: folder cannot be written to")
    return path


def write_atomic(path: str | Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file whole or not at all, so that a reader never sees half of it, even after a power cut.

    `content` is the bytes, or a function that writes them to the path it is given. Raises `UserError` naming the file
    if the folder cannot be written or the disk is full; then, and if `content` raises, nothing is left behind.
    """
    path = Path(path)
    writable_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # same folder: a rename, never a copy
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)  # the rename itself must survive too
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock file at a path; where another process has it, say what is waited for and wait.

    The system frees the lock when a process dies, however it dies.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        print(waiting, file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def set_aside(path: Path, reason: str) -> None:
    """Rename a damaged file to `<name>.damaged` and warn: it is kept for a look, and never read again."""
    aside = path.with_name(path.name + ".damaged")
    os.replace(path, aside)
    warnings.warn(f"{path}: damaged ({reason}); set aside as {aside.name}", stacklevel=3)


def cache_folder() -> Path:
    """`$CLLIB_CACHE`; else `data/downloads` of the checkout this package runs from; else the user's cache folder."""
    if chosen := os.environ.get("CLLIB_CACHE"):
        return Path(chosen).expanduser().absolute()
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file() and os.access(checkout / "data", os.W_OK):
        return checkout / "data" / "downloads"
    return platformdirs.user_cache_path("cllib")
