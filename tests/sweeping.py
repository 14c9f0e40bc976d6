"""The command `cllib sweep` as a process of its own, its processes, and what it leaves, for tests that kill them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from cllib.results import Record, all_kept, one_by_one

COMMAND = str(Path(sys.executable).with_name("cllib"))
# Runs of a second or two, saved once an epoch.
SWEEP = ("02_metaplasticity", "--profile", "smoke", "-p", "epochs_per_task=12", "--checkpoint-every", "29")


def sweep(store: Path, *arguments: str, **options) -> subprocess.Popen[str]:
    """Start it; the table goes to `STORE.csv`."""
    command = [COMMAND, "sweep", *SWEEP, *arguments, "--store", str(store), "--csv", f"{store}.csv"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def until(condition: Callable[[], object]) -> None:
    """Wait for something; a test that waits in vain fails."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def below(pid: int) -> Iterator[tuple[int, str]]:
    """Every process that descends from this one: pid, command line."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    parents = [pid]
    while parents:
        parent = parents.pop()
        for child, its, command in rows:
            if int(its) == parent:
                parents.append(int(child))
                yield int(child), command


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(told) and not told.startswith("Z")


def begun(store: Path) -> list[Path]:
    """Folders of runs that have a checkpoint and no result."""
    return [path.parent for path in store.glob("*/checkpoint.pt") if not (path.parent / "records.json").exists()]


def results_of(store: Path) -> dict[tuple[str, int], Record]:
    """Every kept run by settings and seed, without what was measured by a clock and whom it was run together with."""
    found = {}
    for record in all_kept(store):
        for one in one_by_one(record):
            same = replace(one, seconds=0.0, cpu_seconds=0.0, peak_memory=0, energy={}, date="", commit="", runs=[])
            found[repr(one.learner), one.seeds[0]] = same
    return found


def quiet() -> dict[str, str]:
    """The environment for processes that share two cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
