"""The command `cllib sweep` as a process of its own, its processes, and what it leaves, for tests that kill them."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click.testing

from cllib.cli import main
from cllib.results import Record, all_kept, one_by_one

COMMAND = str(Path(sys.executable).with_name("cllib"))
SWEEP = ("02_metaplasticity", "--profile", "smoke")


def told(store: Path, *arguments: str) -> list[str]:
    """Its arguments; the table goes to `STORE.csv`."""
    return ["sweep", *SWEEP, *arguments, "--store", str(store), "--csv", f"{store}.csv"]


def sweep(store: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start it, as the leader of a group, and so that Ctrl-C counts even where the tests run in the background."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard: dict[str, Any] = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    return subprocess.Popen([COMMAND, *told(store, *arguments)], **pipes, **heard, start_new_session=True)


def swept(store: Path, *arguments: str) -> click.testing.Result:
    """The same in this process, where all is imported already."""
    return click.testing.CliRunner().invoke(main, told(store, *arguments))


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


def children(pid: int) -> list[tuple[int, str]]:
    """The processes that a process has started: pid, command line."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    return [(int(child), command) for child, parent, command in rows if int(parent) == pid]


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(told) and not told.startswith("Z")


def same(store: Path, other: Path) -> None:
    """Whether two sweeps left the same runs and the same table, bit for bit."""
    assert results_of(store) == results_of(other)
    assert Path(f"{store}.csv").read_bytes() == Path(f"{other}.csv").read_bytes()


def begun(store: Path, since: int = 0) -> list[Path]:
    """Folders of runs that have a checkpoint, from after that time in nanoseconds, and no result."""
    found = [path for path in store.glob("*/checkpoint.pt") if not (path.parent / "records.json").exists()]
    return [path.parent for path in found if path.stat().st_mtime_ns > since]


def results_of(store: Path) -> dict[tuple[str, int], Record]:
    """Every kept run by settings and seed, without what was measured by a clock and whom it was run together with."""
    found = {}
    for record in all_kept(store):
        for one in one_by_one(record):
            same = replace(one, seconds=0.0, cpu_seconds=0.0, peak_memory=0, energy={}, date="", commit="", runs=[])
            found[repr(one.learner), one.seeds[0]] = same
    return found
