"""A sweep: a grid of a chapter's parameters x seeds, of which only what is missing is run.

A point is one choice of values, a pair a point and a seed. Where the runs take place is not said here: `local` and
`cluster` work on a list of jobs, each in its own way, and leave the records in the store.
"""

import json
import typing
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cllib import chapters, metrics, report, results, runs
from cllib.checkpoints import read
from cllib.errors import UserError
from cllib.experiments import Config, Program, address_of, execute, key_of, shape
from cllib.learners.heads import LearnerConfig
from cllib.options import is_list
from cllib.results import Record
from cllib.streams.base import Stream, flattened
from cllib.threads import one_thread

TOGETHER = 256  # pairs in one program: beyond that a run gets hardly cheaper, and nobody else can take a share
SHOWN = 20  # points that are listed one by one
BESIDE = ("seed", "seeds", "device")  # parameters of a chapter that a sweep is told otherwise


# --- points and pairs ---


@dataclass(frozen=True, eq=False)
class Point:
    """Values of a chapter's parameters: the checked settings, and what tells it from the others, as it was typed."""

    settings: Any
    told: Mapping[str, str]

    @property
    def name(self) -> str:
        """Such as "meta=0.5 lr=0.001"."""
        return " ".join(f"{name}={text}" for name, text in self.told.items()) or "as set"


@dataclass(frozen=True, eq=False)
class Pair:
    """One run: a point and a seed, with what it runs and on which data. key: the same for the same result."""

    point: Point
    seed: int
    config: Config
    stream: Stream
    data: str
    key: str


@dataclass(frozen=True, eq=False)
class Job:
    """A program and its data. address: its place in the store; name: for people; runs: pairs that it makes."""

    program: Program
    stream: Stream
    data: str
    device: str
    address: str
    name: str
    runs: int


def axes(chapter: str, pairs: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The values of every `name=a,b,c`, by name and by what was typed for each.

    A list is written with colons: `meta=0,0.5:1` are the two values (0,) and (0.5, 1). Raises UserError for an unknown
    name, a wrong type, or a value that is given twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, text in pairs.items():
        if name in BESIDE:
            raise UserError(f"-p {name}={text}: for a sweep, give --{name}")
        texts = [part.strip() for part in text.split(",")]
        if "" in texts:
            raise UserError(f"-p {name}={text}: a value is missing between the commas")
        chapters.known(chapter, name)
        listed = is_list(typing.get_type_hints(chapters.CHAPTERS[chapter])[name])
        values = {t: chapters.parse(chapter, {name: t.replace(":", ",") if listed else t})[name] for t in texts}
        if len(values) < len(texts) or len(set(values.values())) < len(values):
            raise UserError(f"-p {name}={text}: each value may be given once")
        found[name] = values
    return found


def grid(chapter: str, profile: str, pairs: Mapping[str, str], device: str = "cpu") -> list[Point]:
    """Every combination of the values of `axes`. Raises UserError for one that the chapter refuses."""
    found = axes(chapter, pairs)
    points = []
    for texts in product(*found.values()):
        chosen = dict(zip(found, texts, strict=True))
        given = {name: found[name][text] for name, text in chosen.items()}
        told = {name: text for name, text in chosen.items() if len(found[name]) > 1}
        points.append(Point(chapters.settings(chapter, profile, device=device, **given), told))
    return points


def paired(points: Sequence[Point], seeds: Sequence[int], device: str) -> list[Pair]:
    """Every point with every seed. Raises UserError where data are not at hand, or two points come to the same."""
    hashes: dict[int, tuple[Stream, str]] = {}  # the stream too, so that no other takes its id
    found: dict[str, Pair] = {}
    for point, seed in product(points, seeds):
        stream, config = point.settings.single(seed)
        if id(stream) not in hashes:
            hashes[id(stream)] = stream, results.stream_hash(stream)
        data = hashes[id(stream)][1]
        (key,) = keys(key_of(program_of([config], [seed]), data, device, 1))
        if key in found:
            other = found[key].point
            raise UserError(f"{point.name} and {other.name} are one and the same run: {difference(point, other)}")
        found[key] = Pair(point, seed, config, stream, data, key)
    return list(found.values())


def difference(one: Point, other: Point) -> str:
    """Why two points are the same."""
    names = [name for name, text in one.told.items() if other.told[name] != text]
    return f"between them {', '.join(names)} changes nothing; sweep it without the one that has no use for it"


def program_of(configs: Sequence[Config], seeds: Sequence[int]) -> Program:
    """The program that makes them, its samples in the order that the chapters show them in."""
    return Program(tuple(configs), tuple(seeds), "published" if isinstance(configs[0], LearnerConfig) else "own")


def keys(told: Mapping[str, Any]) -> list[str]:
    """What each (configuration, seed) of a program is known by, whatever it is run together with.

    told: `experiments.key_of`.
    """
    parameters = told["parameters"]
    rest = {name: value for name, value in parameters.items() if name not in ("configs", "seeds")}
    rest |= {name: told[name] for name in ("data", "code", "device", "threads")}
    every = product(parameters["configs"], parameters["seeds"])
    return [json.dumps([config, seed, rest], sort_keys=True) for config, seed in every]


# --- what is there, what is missing ---


def current(store: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every finished run's folder, and what its address stands for; without what other libraries' versions made, and
    without what cannot be read, which is as good as missing.
    """
    for path in sorted(store.glob("*/records.json")):
        folder = path.parent
        try:
            told = json.loads((folder / "parameters.json").read_text())
            address = runs.address(**{name: value for name, value in told.items() if name != "stream"})
        except (OSError, ValueError, LookupError, AttributeError, TypeError):
            continue
        if address == folder.name:
            yield folder, told


def finished(store: Path) -> dict[str, tuple[Path, int]]:
    """The folder of every pair that is kept in a store, and its place among those of the folder's program, by key."""
    return {key: (folder, place) for folder, told in current(store) for place, key in enumerate(keys(told))}


def jobs(missing: Sequence[Pair], device: str) -> list[Job]:
    """What has to be run: a network's pair alone; pairs of chapter 1 together, where they can be."""
    alone = [[pair] for pair in missing if not isinstance(pair.config, LearnerConfig)]
    return [job_of(group, device) for group in (*batched(missing), *alone)]


def batched(missing: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Pairs of learners with a run axis, in groups of one kind that are points x seeds, `TOGETHER` at most."""
    by_point: dict[int, list[Pair]] = {}
    for pair in missing:
        if isinstance(pair.config, LearnerConfig):
            by_point.setdefault(id(pair.point), []).append(pair)
    groups: dict[Any, list[list[Pair]]] = {}
    for pairs in by_point.values():
        first = pairs[0]
        groups.setdefault((shape(first.config), first.data, tuple(p.seed for p in pairs)), []).append(pairs)  # type: ignore[arg-type]
    for (_, _, seeds), rows in groups.items():
        many = max(1, TOGETHER // len(seeds))
        for start in range(0, len(rows), many):
            yield [pair for row in rows[start : start + many] for pair in row]


def job_of(pairs: Sequence[Pair], device: str) -> Job:
    """One program of pairs that are points x seeds, point by point."""
    first = pairs[0]
    seeds = [pair.seed for pair in pairs if pair.point is first.point]
    program = program_of([pair.config for pair in pairs[:: len(seeds)]], seeds)
    address = address_of(program, first.data, device, 1)
    more = f" and {len(pairs) - 1} more in one program" if len(pairs) > 1 else ""
    name = f"{first.point.name}, seed {first.seed}{more}"
    return Job(program, first.stream, first.data, device, address, name, len(pairs))


# --- running ---

# What `local.perform` and `cluster.perform` give: jobs as they end, each with the reason why it failed, or None.
Ends = Generator[tuple[Job, str | None]]


def attempt(job: Job, store: Path, **options: Any) -> str | None:
    """Run a job on one thread; its records go to the store. Returns why it failed, None if it did not."""
    address = address_of(job.program, job.data, job.device, 1)
    if address != job.address:  # before a step is done
        return f"run as {address}, not as {job.address}: other code, Python, torch or numpy than where it was asked"
    stream = flattened(job.stream) if job.program.recipe is None else job.stream
    work = partial(execute, job.program, stream.to(job.device), job.data, store, job.device, progress=False)
    try:
        with one_thread():
            work(**options)
    except Exception as error:  # whatever it is: the other runs go on
        return " ".join(str(error).split()) if isinstance(error, UserError) else reason(error)
    return None


def standing(store: Path, address: str) -> str:
    """Where a run that is started again goes on."""
    path = store / address / "checkpoint.pt"
    if not path.exists():
        return "from the start, for it had no checkpoint yet"
    try:
        position = read(path, address)["position"]
    except UserError as error:  # the run itself will fail of it
        return str(error)
    return f"from experience {position['experience']}, step {position['step']}"


def reason(error: Exception) -> str:
    """What happened, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# --- what is printed ---


def listing(pairs: Sequence[Pair], there: Mapping[str, Any]) -> str:
    """How many of the runs of every point are kept and missing, a line a point."""
    points = list(dict.fromkeys(pair.point for pair in pairs))
    lines = []
    for point in points[:SHOWN]:
        kept = [pair.key in there for pair in pairs if pair.point is point]
        parts = [f"{sum(kept)} kept"] * any(kept) + [f"{kept.count(False)} missing"] * (not all(kept))
        lines.append(f"  {point.name}: {', '.join(parts)}")
    lines += [f"  ... and {len(points) - SHOWN} more points"] if len(points) > SHOWN else []
    missing = sum(pair.key not in there for pair in pairs)
    total = f"{len(points)} points x {len(pairs) // len(points)} seeds = {len(pairs)} runs"
    return "\n".join([f"{total}: {len(pairs) - missing} kept, {missing} missing", *lines])


def gathered(pairs: Sequence[Pair], store: Path) -> tuple[list[tuple[Pair, Record]], list[str]]:
    """The record of every pair that is kept, with that seed alone; and a line for every result that is damaged."""
    there, read = finished(store), dict[Path, list[Record]]()
    found, damaged = [], []
    for pair in pairs:
        if pair.key not in there:
            continue
        folder, place = there[pair.key]
        try:
            if folder not in read:
                read[folder] = [one for record in results.kept(folder) or [] for one in results.one_by_one(record)]
            found.append((pair, read[folder][place]))
        except UserError as error:
            damaged.append(f"{pair.point.name}, seed {pair.seed}: {error}")
    return found, damaged


def table(made: Sequence[tuple[Pair, Record]]) -> pd.DataFrame:
    """A row a point: its values, n, and every metric as mean and half of its 95 % interval over the seeds."""
    by_point: dict[Point, list[Record]] = {}
    for pair, record in made:
        by_point.setdefault(pair.point, []).append(record)
    rows = []
    for point, records in by_point.items():
        measured = [report.measured(record) for record in records]
        row: dict[str, Any] = {**point.told, "n": len(measured)}
        row |= {"diverged": lost} if (lost := sum(sum(record.diverged) for record in records)) else {}
        for name in measured[0]:
            mean, half = metrics.interval(np.concatenate([one[name] for one in measured]))
            row |= {name: mean, f"{name} ±": half}
        rows.append(row)
    return pd.DataFrame(rows)


def readable(made: pd.DataFrame) -> str:
    """The table as text, with the metrics most asked for."""
    shown = made[[name for name in made if made.columns.get_loc(name) <= made.columns.get_loc("n")]].copy()
    if "diverged" in made:
        shown["diverged"] = made["diverged"].fillna(0).astype(int)
    for name in report.ASKED:
        if name in made:
            shown[name] = [report.cell(*pair) for pair in zip(made[name], made[f"{name} ±"], strict=True)]
    return shown.to_string(index=False)
