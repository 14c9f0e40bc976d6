"""Runs shared by processes of this machine: each on one thread, replaced when it dies, none left when this one ends."""

import multiprocessing
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from cllib.datasets.files import writable_folder
from cllib.errors import whole
from cllib.sweeps import Ends, Job, attempt, standing
from cllib.threads import cores

RETRIES = 3  # of a run whose process dies
# Forked from a process that has imported, and done nothing else: a new worker is there at once.
processes: Any = multiprocessing.get_context("forkserver")


def perform(jobs: Sequence[Job], store: Path, workers: int | None = None, **options: Any) -> Ends:
    """Run jobs and yield each as it ends, with the reason why it failed or None.

    workers: processes, each on one thread; None: `usual`. A job whose process dies starts again
    from its last checkpoint, up to `RETRIES` times. options: see `experiments.execute`. Raises UserError for a store
    that cannot be written.
    """
    whole("workers", 1 if workers is None else workers, 1)
    writable_folder(store)
    processes.set_forkserver_preload(["__main__", __name__, "torch._dynamo"])  # the last: optimisers import it late
    waiting, deaths = deque(jobs), Counter[Job]()
    busy: dict[Any, tuple[Any, Job]] = {}
    idle = [start() for _ in range(min(workers or usual(jobs[0].device), len(jobs)))] if jobs else []
    try:
        while waiting or busy:
            while waiting and idle:
                process, pipe = idle.pop()
                busy[pipe] = process, waiting.popleft()
                give(pipe, busy[pipe][1], store, options)
            ready: list[Any] = wait([*busy])
            for pipe in ready:
                process, job = busy.pop(pipe)
                try:
                    yield job, pipe.recv()
                    idle.append((process, pipe))
                except (EOFError, ConnectionError):
                    idle.append(start())
                    deaths[job] += 1
                    if deaths[job] > RETRIES:
                        yield job, f"its process died {deaths[job]} times, {how(process)}"
                    else:
                        again = standing(store, job.address)
                        print(f"{job.name}: its process died, {how(process)}; it goes on {again}", file=sys.stderr)
                        waiting.appendleft(job)
    finally:
        for process, _ in busy.values():
            process.kill()
        for process, pipe in idle:
            pipe.close()  # nothing more to do
            process.join()


def usual(device: str) -> int:
    """Processes where nobody says how many: one a core; on a GPU, one."""
    return cores() if device == "cpu" else 1


def start() -> tuple[Any, Any]:
    """A process that waits for jobs, and the pipe to it."""
    mine, its = processes.Pipe()
    process = processes.Process(target=work, args=(its,), daemon=True)
    process.start()
    its.close()  # or its end would never seem to close
    return process, mine


def give(pipe: Any, *job: Any) -> None:
    """Send a job; a process that is gone is noticed when its answer is waited for."""
    with suppress(ConnectionError):
        pipe.send(job)


def how(process: Any) -> str:
    """How a process ended."""
    process.join()
    code = process.exitcode
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def work(pipe: Any) -> None:
    """What a process does: one job after the other, for as long as whoever gives them lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the one who gives jobs answers it
    Thread(target=follow, daemon=True).start()
    torch.set_num_threads(1)
    while True:
        try:
            job, store, options = pipe.recv()
        except (EOFError, ConnectionError):
            return
        pipe.send(attempt(job, store, **options))


def follow() -> None:
    """End with the process that started this one, however that ends. Checkpoints are written whole or not at all."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
