"""Runs on disk, tables over them, and the claims ledger: verdicts computed from saved runs by one function."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cllib.datasets.files import hash_arrays, writable_folder, write_atomic
from cllib.errors import UserError
from cllib.learners.heads import LearnerConfig
from cllib.metrics import METRICS, Array, half_width, interval
from cllib.streams import Stream
from cllib.training import Outcome

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "data" / "published"
MEASURED = ROOT / "data" / "measured"
VERSIONS = ("torch", "numpy", "scikit-learn", "timm")
# A number counts as reproduced within the 95 % interval of the difference, but never demands more than TOLERANCE[0]
# and never forgives more than TOLERANCE[1].
TOLERANCE = (0.02, 0.10)


@dataclass(frozen=True)
class Record:
    """One setting over n seeds on one stream: everything a table, a figure or a verdict needs.

    test, validation: accuracy matrices `[n][E][E]` (rounded to 1e-4); online: accuracy before learning, per window,
    `[n][W]`. order: "published", or "own" where every run drew its sample order. data: hash of the arrays really
    used; whole, note: False for a part of the stream, and what its name does not say.
    """

    experiment: str
    label: str
    stream: str
    profile: str
    learner: dict[str, Any]
    seeds: list[int]
    order: str
    test: list[list[list[float]]]
    validation: list[list[list[float]]]
    online: list[list[float]]
    samples: list[float]
    scrambles: list[float]
    norms: dict[str, list[list[float]]]
    sizes: dict[str, int]
    seconds: float
    cpu_seconds: float
    data: str
    whole: bool
    note: str
    device: str
    versions: dict[str, str]
    commit: str
    date: str

    @property
    def n(self) -> int:
        return len(self.seeds)

    def metric(self, name: str) -> Array:
        """One of `metrics.METRICS`, one value per seed, `[n]`."""
        return METRICS[name](self.test)

    def validation_accuracy(self) -> Array:
        """Mean accuracy on the validation sets at the end of the last of them (half of the stream), `[n]`."""
        matrix = np.asarray(self.validation)
        return matrix[:, matrix.shape[-1] - 1, :].mean(-1)


# --- saving and loading ---


def fresh_folder(chapter: str, profile: str) -> Path:
    """An empty folder for a chapter's runs, under CLLIB_ARTIFACTS, else `artifacts` of the checkout.

    What an earlier execution left there goes: a ledger shall never mix runs of different settings or code. UserError if
    the folder cannot be written.
    """
    where = Path(os.environ.get("CLLIB_ARTIFACTS", ROOT / "artifacts")) / profile / "runs" / chapter
    shutil.rmtree(where, ignore_errors=True)
    writable_folder(where)
    return where


def records(
    experiment: str,
    stream: Stream,
    learners: dict[str, LearnerConfig],
    seeds: Sequence[int],
    outcome: Outcome,
    profile: str,
    order: str,
    device: str,
) -> list[Record]:
    """Cut the outcome of one batched program (learners x seeds, learner-major) into one record per learner."""
    n, count, data = len(seeds), len(learners), stream_hash(stream)

    def cut(values: Array, k: int) -> list[Any]:
        return np.round(values[k * n : (k + 1) * n], 4).tolist()

    return [
        Record(
            experiment=experiment,
            label=label,
            stream=stream.name,
            profile=profile,
            learner={**asdict(config), "head": {"model": type(config.head).__name__, **asdict(config.head)}},
            seeds=list(seeds),
            order=order,
            test=cut(outcome.test, k),
            validation=cut(outcome.validation, k),
            online=cut(outcome.online, k),
            samples=outcome.samples.tolist(),
            scrambles=cut(outcome.scrambles, k),
            norms={name: cut(values, k) for name, values in outcome.norms.items()},
            sizes=outcome.sizes,
            seconds=round(outcome.seconds / count, 3),
            cpu_seconds=round(outcome.cpu_seconds / count, 3),
            data=data,
            whole=stream.whole,
            note=stream.note,
            device=device_name(device),
            versions=versions(),
            commit=commit(),
            date=date.today().isoformat(),
        )
        for k, (label, config) in enumerate(learners.items())
    ]


def save(made: Iterable[Record], where: Path) -> None:
    """Write every record to `where/EXPERIMENT/STREAM/LABEL.json`, each whole or not at all. UserError if it cannot."""
    for record in made:
        name = "".join(c if c.isalnum() or c in "=.+-_" else "-" for c in record.label)
        path = where / record.experiment / record.stream / f"{name}.json"
        write_atomic(path, json.dumps(asdict(record)).encode())


def load(where: Path) -> list[Record]:
    """All records below a folder, by name; UserError names a file that is not a whole record."""
    return [_read(path) for path in sorted(where.rglob("*.json"))]


def _read(path: Path) -> Record:
    try:
        return Record(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a whole run record ({error}); delete it and run the chapter again") from error


def stream_hash(stream: Stream) -> str:
    """Hash of every array of a stream."""
    parts = [*stream.experiences, *stream.tests, *stream.validations]
    return hash_arrays(*(array for part in parts for array in (part.x, part.y)))


def device_name(device: str) -> str:
    """What the runs ran on, for the record."""
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu ({platform.machine()})"


@cache
def versions() -> dict[str, str]:
    """Versions that matter for a number."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}}


@cache
def commit() -> str:
    """The checkout's commit, with a + where files differ from it; "unknown" outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# --- tables ---


def table(made: Sequence[Record], metric: str = "Acc") -> pd.DataFrame:
    """Long table: experiment, label, stream, mean, half (of the 95 % interval), n, seconds."""
    rows = []
    for record in made:
        mean, half = interval(record.metric(metric))
        rows.append((record.experiment, record.label, record.stream, mean, half, record.n, record.seconds))
    return pd.DataFrame(rows, columns=["experiment", "label", "stream", "mean", "half", "n", "seconds"])


def wide(made: Sequence[Record], metric: str = "Acc") -> pd.DataFrame:
    """The same as readers want it: a row a label, a column a stream, cells ".731 ± .012"."""
    long = table(made, metric)
    long["cell"] = [
        f"{short(mean)}\u00a0±\u00a0{short(half)}" for mean, half in zip(long["mean"], long["half"], strict=True)
    ]
    pivot = long.pivot(index="label", columns="stream", values="cell")
    return pivot.reindex(index=long["label"].unique(), columns=long["stream"].unique()).fillna("")


def short(number: float) -> str:
    """.731 for 0.731; n/a for what one seed cannot give."""
    return f"{number:.3f}".replace("0.", ".", 1) if np.isfinite(number) else "n/a"


def ranked(made: Sequence[Record], by: str) -> list[Record]:
    """Records by mean accuracy on "test" or "validation", best first.

    On ties: larger match_threshold, then smaller key_step, then smaller step_size.
    """
    score = _test_accuracy if by == "test" else _validation_accuracy
    return sorted(sorted(made, key=_preference), key=score, reverse=True)


def best(made: Sequence[Record], by: str) -> list[Record]:
    """Of the records that share a stream and a label (up to " @"), the first `ranked`; it loses its " @ ...".

    by: "test" (as the published figure did: optimistic) or "validation".
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in made:
        groups.setdefault((record.label.partition(" @")[0], record.stream), []).append(record)
    return [replace(ranked(group, by)[0], label=label) for (label, _), group in groups.items()]


def _preference(record: Record) -> tuple[float, ...]:
    head = record.learner["head"]
    return -head.get("match_threshold", 0), head.get("key_step", 0), record.learner["step_size"]


def _test_accuracy(record: Record) -> float:
    return float(record.metric("Acc").mean())


def _validation_accuracy(record: Record) -> float:
    return float(record.validation_accuracy().mean())


def published(chapter: str) -> dict[str, Any]:
    """What `data/published/CHAPTER.json` holds: sources, tables, orders, settings."""
    content: dict[str, Any] = json.loads((PUBLISHED / f"{chapter}.json").read_text())
    return content


# --- the ledger ---


@dataclass(frozen=True)
class Claim:
    """A published number (`value`), or an order (`better` beats `worse`), and which of our runs answers it.

    stand_ins: streams that can show the mechanism where the claim's own stream was not run.
    """

    source: str
    text: str
    experiment: str
    stream: str
    metric: str
    label: str
    value: float | None = None
    std: float | None = None
    n: int = 1
    worse: str | None = None
    stand_ins: tuple[str, ...] = ()


def claims(chapter: str) -> list[Claim]:
    """A chapter's claims from `data/published/CHAPTER.json`."""
    content = published(chapter)
    orders = [{**order, "label": order["better"]} for order in content["orders"]]
    names = [f.name for f in fields(Claim)]
    ordered = [Claim(**{name: order[name] for name in names if name in order}) for order in orders]
    return ordered + [claim for table in content["tables"] for claim in _table_claims(table)]


def _table_claims(table: dict[str, Any]) -> Iterable[Claim]:
    for label, cells in table["rows"].items():
        experiment = table.get("elsewhere", {}).get(label, table["experiment"])
        for stream, (value, std) in zip(table["streams"], cells, strict=True):
            text = f"{label}, {stream}: {table['metric']} {short(value)}"
            yield Claim(table["source"], text, experiment, stream, table["metric"], label, value, std, table["n"])


def allowed(values: Array, claim: Claim) -> float:
    """How far the mean of our `values` may lie from the published one: the 95 % half-width of the difference.

    Where the published spread is unknown, ours is taken for it, so that a single published run may lie anywhere among
    our runs. Never stricter than TOLERANCE[0], never looser than TOLERANCE[1].
    """
    ours = interval(values)[1]
    std = float(np.std(values, ddof=1)) if claim.std is None else claim.std
    theirs = half_width(std, claim.n) if claim.n > 1 else ours * len(values) ** 0.5
    return float(np.clip(np.hypot(ours, theirs), *TOLERANCE))


def judge(claim: Claim, made: Sequence[Record]) -> dict[str, Any]:
    """One row of the ledger: the verdict on a claim from saved runs.

    A value is reproduced if our mean lies within `allowed` of it, an order if the 95 % interval of the difference,
    paired by seed, lies above 0. Runs of the smoke profile, of one seed, on thinned-out or stand-in streams show a
    mechanism only.
    """
    by_place = {(r.experiment, r.label, r.stream): r for r in made}
    places = [s for s in (claim.stream, *claim.stand_ins) if (claim.experiment, claim.label, s) in by_place]
    row = {
        "source": claim.source,
        "claim": claim.text,
        "label": claim.label,
        "metric": claim.metric,
        "published": claim.value,
        "published_half": half_width(claim.std, claim.n) if claim.std is not None else None,
        "ours": None,
        "half": None,
        "n": 0,
    }
    if not places or (claim.worse and (claim.experiment, claim.worse, places[0]) not in by_place):
        return {**row, "stream": claim.stream, "verdict": "not run"}
    ours = by_place[claim.experiment, claim.label, places[0]]
    values = ours.metric(claim.metric)
    if claim.worse:
        values = values - by_place[claim.experiment, claim.worse, places[0]].metric(claim.metric)
    mean, half = interval(values)
    verdict = "mechanism only"
    if ours.profile != "smoke" and ours.whole and ours.n > 1 and places[0] == claim.stream:
        holds = mean - half > 0 if claim.value is None else abs(mean - claim.value) <= allowed(values, claim)
        verdict = "reproduced" if holds else "not reproduced"
    return {**row, "stream": places[0], "ours": mean, "half": half, "n": ours.n, "verdict": verdict}


def ledger(chapter: str, made: Sequence[Record]) -> pd.DataFrame:
    """All claims of a chapter with our numbers and verdicts."""
    return pd.DataFrame([judge(claim, made) for claim in claims(chapter)])


MARKS = {"reproduced": "=", "not reproduced": "!", "mechanism only": "~", "not run": ""}


def side_by_side(judged: pd.DataFrame, source: str) -> pd.DataFrame:
    """One published table with our numbers: cells "published | ours ± half" and a mark of the verdict (`MARKS`)."""
    part = judged[(judged["source"] == source) & judged["published"].notna() & (judged["metric"] == "Acc")]
    numbers = zip(part["published"], part["ours"], part["half"], part["verdict"], strict=True)
    cells = [
        f"{short(a)} | {short(b)} ± {short(half)} {MARKS[v]}" if pd.notna(b) else f"{short(a)} | -"
        for a, b, half, v in numbers
    ]
    cells = [cell.replace(" ", "\u00a0") for cell in cells]
    wide = part.assign(cell=cells).pivot(index="label", columns="stream", values="cell")
    return wide.reindex(index=part["label"].unique(), columns=part["stream"].unique()).fillna("")


def readable(judged: pd.DataFrame) -> pd.DataFrame:
    """The ledger for readers: a claim a line, the published number, ours, and the verdict."""
    ours = [
        f"{short(mean)} ± {short(half)}" if pd.notna(mean) else ""
        for mean, half in zip(judged["ours"], judged["half"], strict=True)
    ]
    theirs = [short(value) if pd.notna(value) else "" for value in judged["published"]]
    shown = judged[["source", "claim", "stream"]].assign(
        published=theirs, ours=ours, n=judged["n"], verdict=judged["verdict"]
    )
    return shown.set_index(["source", "claim"])


def this_run(settings: Any) -> str:
    """One line that says what a copy of a chapter was made with."""
    named = ", ".join(f"{name} {number}" for name, number in versions().items())
    made = f"{date.today().isoformat()}, commit {commit()}"
    return f"{settings.profile} profile, n = {settings.seeds} seeds, {device_name(settings.on)}, {made}; {named}"
