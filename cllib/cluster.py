"""Runs and chapters on a Ray cluster: one machine or many, with no file system in common.

Whoever asks keeps everything: an actor on that machine, the shelf, writes into its folder. A worker fetches the last
checkpoint of its run from there and sends there every checkpoint it makes, so a machine that is lost costs the steps
since the last one. The code goes along as it lies on the disk, with the small files that ship (`data/`).
"""

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

from cllib import notebooks, results
from cllib.datasets.files import writable_folder, write_atomic
from cllib.errors import UserError
from cllib.local import RETRIES
from cllib.sweeps import Ends, Job, attempt, reason, standing
from cllib.threads import cores

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of what is run
try:
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as missing:
    raise UserError("--on needs Ray: in the checkout, pip install --editable '.[cluster]'") from missing

ROOT = notebooks.ROOT
remote: Any = ray.remote
LEFT_OUT = [".git", "tests", "book"]  # and what .gitignore names: the environment, artifacts, downloads
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
KEPT = ("parameters.json", "checkpoint.pt", "records.json")  # of a run's folder, the result last
EVERY = 30.0  # seconds from one look at what a chapter has made to the next


def join(address: str, workers: int | None, gpus: float, cpus: int = 1) -> int:
    """Start Ray on this machine ("local"), or join the cluster at an address. Returns how many runs fit at once.

    workers: of a local one; None: one a core. gpus, cpus: of a run. Raises UserError where there is no cluster, or
    nothing to run on.
    """
    if address.startswith("ray://"):
        raise UserError(
            f"--on {address}: results go to this machine, so it must be one of the cluster's; give HOST:PORT"
        )
    if workers is not None and address != "local":
        raise UserError(f"--workers {workers}: at an address the cluster's nodes say how many cores they lend")
    if address not in ("local", "auto"):
        check_reachable(address)
    if not (ROOT / "pyproject.toml").is_file():
        raise UserError(f"{ROOT}: not a checkout of the repository, from which the code is sent; install it --editable")
    told_there = {**ONE_THREAD, results.COMMIT: results.commit()}  # the copy there has no history
    sent = {"working_dir": str(ROOT), "excludes": LEFT_OUT, "env_vars": told_there}
    told: dict[str, Any] = {"num_cpus": workers or cores(), "include_dashboard": False} if address == "local" else {}
    try:
        start: Any = ray.init
        start(address, runtime_env=sent, log_to_driver=False, logging_level="error", **told)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--on {address}: no cluster there ({' '.join(str(error).split())[:200]})") from error
    return fitting([node["Resources"] for node in ray.nodes() if node["Alive"]], gpus, cpus)


def check_reachable(address: str) -> None:
    """Raise UserError unless something listens at HOST:PORT: Ray itself would wait for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"--on {address}: no cluster there ({error}); give local, auto or HOST:PORT") from error


def fitting(nodes: Sequence[Mapping[str, float]], gpus: float, cpus: int = 1) -> int:
    """Runs that fit on these machines at once, none on two, no card's share on two cards. UserError where none does."""
    count = 0
    for there in nodes:
        on_cpu = int(there.get("CPU", 0)) // cpus
        count += min(on_cpu, int(there.get("GPU", 0)) * int(1 / gpus + 1e-9)) if gpus else on_cpu
    if count < 1:
        listed = "; ".join(f"{there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs" for there in nodes)
        raise UserError(
            f"{cpus} CPUs and {gpus:g} of a GPU for each run: no machine of the cluster has them ({listed})"
        )
    return count


# --- what is kept, and where ---


class Shelf:
    """A folder that the workers of a cluster read and write by names relative to it; on the machine of who asked."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.told: list[str] = []

    def fetch(self, name: str) -> bytes | None:
        """A file's content; None where there is none."""
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def put(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all; but no checkpoint of a run that somebody has finished meanwhile."""
        path = self.folder / name
        if path.name != "checkpoint.pt" or not (path.parent / "records.json").exists():
            write_atomic(path, content)

    def drop(self, name: str) -> None:
        """Remove a file."""
        (self.folder / name).unlink(missing_ok=True)

    def tell(self, line: str) -> None:
        """Something for whoever asked to see."""
        self.told.append(line)

    def news(self) -> list[str]:
        """What was told since the last time."""
        told, self.told = self.told, []
        return told


def shelf_on(folder: Path) -> Any:
    """The shelf of a folder of this machine; one that dies is put up again."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kind = remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Shelf)
    return kind.options(scheduling_strategy=here).remote(str(writable_folder(folder).resolve()))


def asked(method: Any, *told: Any) -> Any:
    """What a shelf answers."""
    return ray.get(method.remote(*told))


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder of this worker alone, which goes with Ray's copy of the code; latents are shared on a machine."""
    shared = Path.cwd() / "latents"
    shared.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as place:
        (Path(place) / "latents").symlink_to(shared)
        yield Path(place)


# --- runs ---


def perform(jobs: Sequence[Job], store: Path, gpus: float = 0.0, **options: Any) -> Ends:
    """Run jobs on the cluster that was joined and yield each as it ends, with the reason why it failed or None.

    gpus: the share of a card that a run takes. A job whose worker is lost starts again elsewhere from its last
    checkpoint, up to `RETRIES` times. options: see `experiments.execute`.
    """
    shelf, streams = shelf_on(store), {}
    work = remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(run)
    running = {}
    for job in jobs:
        if id(job.stream) not in streams:
            streams[id(job.stream)] = ray.put(job.stream)
        told = job.program, streams[id(job.stream)], job.data, job.device, job.address, job.name
        running[work.remote(*told, shelf, results.commit(), options)] = job
    try:
        while running:
            done, _ = ray.wait(list(running), timeout=1)
            for line in asked(shelf.news):
                print(line, file=sys.stderr)
            for ref in done:
                yield running.pop(ref), ended(ref)
    finally:
        ray.shutdown()  # ends what still runs


def ended(ref: Any) -> str | None:
    """What a run said at its end, or what became of its worker."""
    try:
        why: str | None = ray.get(ref)
    except RayTaskError as error:  # of what is around the run: the shelf's disk, for instance
        return reason(error.cause)
    except RayError as error:
        return f"its worker was lost {RETRIES + 1} times, {reason(error)}"
    return why


def run(
    program: Any, stream: Any, data: str, device: str, address: str, name: str, shelf: Any, commit: str, options: Any
) -> str | None:
    """A job, at a worker: from the last checkpoint on the shelf, if any, to the records on it."""

    def send(path: Path) -> None:
        asked(shelf.put, f"{address}/{path.name}", path.read_bytes())

    with workplace() as store:
        folder = store / address
        last = asked(shelf.fetch, f"{address}/checkpoint.pt")
        if last is not None:
            write_atomic(folder / "checkpoint.pt", last)
            asked(shelf.tell, f"{name}: goes on {standing(store, address)}")
        why = attempt(Job(program, stream, data, device, address, name, 1), store, copied=send, **options)
        if why is None:
            made = results.kept(folder) or []
            results.keep([replace(record, commit=commit) for record in made], folder)  # the copy here knows none
            send(folder / "parameters.json")
            send(folder / "records.json")
            if program.recipe is None:
                asked(shelf.drop, f"{address}/checkpoint.pt")
    return why


# --- chapters ---


def execute(
    given: Mapping[str, Mapping[str, object]], profile: str, gpus: float, book: Path, out: Path
) -> Iterator[tuple[str, str | None]]:
    """Execute chapters on the cluster that was joined; yield each name as it ends, with why it failed or None.

    given: parameters to set over the profile's defaults, by chapter. The executed copy, and the runs made so far, come
    back to `out` as `notebooks.run` would leave them there; a chapter whose worker is lost goes on from those. It takes
    as many cores as its parameter `workers` says, else one.
    """
    shelf, running = shelf_on(out), {}
    for name, values in given.items():
        part, done, _, previous = notebooks.copies(name, profile, out)
        source = notebooks.source(name, book)
        notebooks.start(source, part, done, previous)
        shutil.rmtree(done.parent / "records" / name, ignore_errors=True)  # those of the copy before
        told = {"num_cpus": cores_of(values), "num_gpus": gpus, "max_retries": RETRIES}
        text = (book / f"{name}.py").read_bytes()
        running[remote(**told)(chapter).remote(name, profile, values, text, shelf, str(out.resolve()), EVERY)] = name
    try:
        while running:
            (ref, *_), _ = ray.wait(list(running))
            name, why = running.pop(ref), ended(ref)
            part, _, failed, previous = notebooks.copies(name, profile, out)
            for path in (part, failed, previous) if why is None else (part,):
                path.unlink(missing_ok=True)
            yield name, why
    finally:
        ray.shutdown()


def cores_of(values: Mapping[str, object]) -> int:
    """Cores that a chapter with these parameters takes."""
    return int(str(values.get("workers") or 1))


def chapter(
    name: str, profile: str, values: Mapping[str, object], text: bytes, shelf: Any, home: str, every: float
) -> str | None:
    """A chapter, at a worker. home: the shelf's folder; every: seconds from one look at what was made to the next.

    Returns why it failed, None if it did not.
    """
    os.environ["CLLIB_CORES"] = str(cores_of(values))  # the kernel inherits it
    with workplace() as place:
        out, book, over = place / "artifacts", place / "book", Event()
        write_atomic(book / f"{name}.py", text)
        mirror = Mirror(out, shelf, name, profile)
        mirror.fetch()
        looking = Thread(target=mirror.watch, args=(over, every), daemon=True)
        looking.start()
        try:
            notebooks.run(name, profile, values, book, out)
        except notebooks.ChapterFailed as error:
            return str(error).replace(str(out.resolve()), home)
        finally:
            over.set()
            looking.join()
            mirror.send()
    return None


class Mirror:
    """A chapter's artifacts at a worker, and the same on a shelf."""

    def __init__(self, out: Path, shelf: Any, name: str, profile: str) -> None:
        self.out, self.shelf, self.sent = out, shelf, dict[str, tuple[int, int]]()
        self.list = f"{profile}/{name}.runs"  # which of the runs that are kept are this chapter's

    def fetch(self) -> None:
        """The runs that were made before."""
        for address in (asked(self.shelf.fetch, self.list) or b"").decode().split():
            for name in KEPT:
                content = asked(self.shelf.fetch, f"runs/{address}/{name}")
                if content is not None:
                    write_atomic(self.out / "runs" / address / name, content)
                    self.sent[f"runs/{address}/{name}"] = stamp(self.out / "runs" / address / name)

    def send(self) -> None:
        """What has changed since the last time; what is gone here goes there too."""
        there = {str(path.relative_to(self.out)): path for path in sorted(self.out.rglob("*")) if sent(path)}
        for name, path in there.items():
            if (now := stamp(path)) != self.sent.get(name):
                asked(self.shelf.put, name, path.read_bytes())
                self.sent[name] = now
        for name in set(self.sent) - set(there):
            asked(self.shelf.drop, name)
            del self.sent[name]
        made = sorted(path.parent.name for path in (self.out / "runs").glob("*/parameters.json"))
        asked(self.shelf.put, self.list, "\n".join(made).encode())

    def watch(self, over: Event, every: float) -> None:
        """Send every so many seconds until it is over."""
        while not over.wait(every):
            self.send()


def sent(path: Path) -> bool:
    """Whether a file of a chapter's artifacts is for others: no lock, nothing half-written, no cache."""
    return path.is_file() and path.suffix not in (".tmp", "") and "latents" not in path.parts


def stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written."""
    told = path.stat()
    return told.st_mtime_ns, told.st_ino
