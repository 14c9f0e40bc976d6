"""How many threads torch works with, and how many processes share the machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: small tensors are not worth sharing, and sums come out the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cores() -> int:
    """How many cores this process may use: CLLIB_CORES, which chapters that run side by side share, else all it has."""
    if told := int(os.environ.get("CLLIB_CORES", 0)):
        return told
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
