"""Runs on disk, and tables over them."""

import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from scipy.stats import false_discovery_control, ttest_1samp

from cllib.datasets.files import hash_arrays, writable_folder, write_atomic
from cllib.errors import UserError
from cllib.interactive import watched
from cllib.metrics import FROM_TESTS, METRICS, Array, by_experience, interval, of_task
from cllib.recipes import completed
from cllib.runs import ROOT, artifacts, processor, versions
from cllib.streams.base import Stream
from cllib.training import Outcome

MEASURED = ROOT / "data" / "measured"
WATTS = 10.0  # of one busy core, assumed: server and laptop processors at full load lie between about 4 and 20


@dataclass(frozen=True)
class Record:
    """One setting over n seeds on one stream: everything a table, a figure or a verdict needs.

    test, validation: accuracy matrices `[n][E][E]` (rounded to 1e-4); online: accuracy before learning, per window,
    `[n][W]`. masked: as test, where only the classes compete that could (`Stream.masks`; empty where that says
    nothing). by_class, held: accuracy on each class, and stored samples of it, after every experience, `[n][E][C]`
    (empty unless asked for). moments: as test, at other moments or asked of others (`Naive.moment`), by name.
    order: "published", or "own" where every run drew its sample order. data: hash of the arrays really
    used; whole, note: False for a part of the stream, and what its name does not say. confusion: at the end of the
    stream, `[n][C][C]`, rows true; curve: accuracy on an excerpt of every test set while training, `[n][K][J]`, after
    `steps: [K]`; excerpts: how many images of every test set it stands on, `[n][J]` (empty in older records); ends:
    steps done at the end of each experience, `[E]`; diverged: whether the last answers were no finite numbers; bytes:
    kept by one run, by part; peak_memory: bytes the process held at most; energy: joules and how they were got;
    measuring: what the loop was told of it; runs: addresses of what it was made from; code: hash of the code that made
    it; names: of the classes, in the order of their numbers (empty where seeds differ in it); processor: what it can do
    (`runs.processor`), on which the last bits of a number depend; variant: what the code that made it did otherwise
    than today's, where that is known.
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
    confusion: list[list[list[int]]] = field(default_factory=list)
    curve: list[list[list[float]]] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    diverged: list[bool] = field(default_factory=list)
    bytes: dict[str, int] = field(default_factory=dict)
    peak_memory: int = 0
    energy: dict[str, Any] = field(default_factory=dict)
    measuring: dict[str, Any] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    code: str = ""
    masked: list[list[list[float]]] = field(default_factory=list)
    by_class: list[list[list[float]]] = field(default_factory=list)
    held: list[list[list[float]]] = field(default_factory=list)
    moments: dict[str, list[list[list[float]]]] = field(default_factory=dict)
    excerpts: list[list[int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    processor: str = ""
    variant: str = ""

    @property
    def n(self) -> int:
        return len(self.seeds)

    def metric(self, name: str) -> Array:
        """One value per seed, `[n]`: one of `metrics.METRICS`, "t3" or "l3" (`metrics.of_task`), or a tracked norm;
        "min-ACC" or "WC-ACC", from curve and borders (`metrics.minimum_accuracy`).

        With "masked " before it, from the answers where only the classes of a sample's experience compete; with the
        name of a moment and ": ", from the answers at that moment. Raises KeyError for another name.
        """
        if name in self.norms:
            return np.asarray(self.norms[name])[:, -1]
        if name in FROM_TESTS:
            every = self.measuring.get("exam_every", 1)
            return FROM_TESTS[name](self.test, self.curve, self.steps, self.ends, every)
        matrix, name = (self.masked, name.removeprefix("masked ")) if name.startswith("masked ") else (self.test, name)
        if ": " in name:
            moment, name = name.split(": ")
            matrix = self.moments[moment]
        if name in ("Acc", "Acc over time"):  # which need no row an experience
            return METRICS[name](matrix)
        rows = by_experience(matrix, len(self.ends), self.measuring.get("exam_every", 1))
        return METRICS[name](rows) if name in METRICS else of_task(rows, name)

    @property
    def excerpt(self) -> int:
        """Test images that a point of the curve stands on, all sets together, at most; 0 without a curve."""
        if not np.size(self.curve):
            return 0
        told = [sum(sizes) for sizes in self.excerpts]
        return max(told) if told else int(self.measuring.get("probe_size", 0))

    def validation_accuracy(self) -> Array:
        """Mean accuracy on the validation sets at the end of the last of them (half of the stream), `[n]`."""
        matrix = np.asarray(self.validation)
        return matrix[:, matrix.shape[-1] - 1, :].mean(-1)


PER_SEED = (
    "seeds",
    "test",
    "validation",
    "masked",
    "by_class",
    "held",
    "online",
    "scrambles",
    "confusion",
    "curve",
    "excerpts",
    "diverged",
    "runs",
)
NAMED = ("norms", "moments")  # tables by name, each a row a seed
MEASURED_FIELDS = ("seconds", "cpu_seconds", "peak_memory", "energy", "date", "commit", "processor")


def pooled(made: Sequence[Record]) -> list[Record]:
    """Records that differ in their seeds alone as one each, in order of appearance; times add up."""
    groups: dict[str, list[Record]] = {}
    for record in made:
        same = {k: v for k, v in asdict(record).items() if k not in (*PER_SEED, *MEASURED_FIELDS, *NAMED)}
        same |= {table: sorted(getattr(record, table)) for table in NAMED}
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(record)
    return [group[0] if len(group) == 1 else _pool(group) for group in groups.values()]


def across(made: Sequence[Record]) -> list[Record]:
    """The same for records that differ in their stream's data as well, of which one hash then stands for all.

    Where runs saw different numbers of samples, the online accuracy ends with the last window that all of them filled,
    and the curve has the points of the first run (`on_grid`).
    """
    if len({record.data for record in made}) == 1:
        return pooled(made)
    firsts: dict[str, Record] = {}
    made = [on_grid(record, firsts.setdefault(record.label, record)) for record in made]
    every = hashlib.sha256(" ".join(sorted({record.data for record in made})).encode()).hexdigest()[:16]
    named = {tuple(record.names) for record in made}
    windows = sorted(set.intersection(*(set(record.samples) for record in made)))
    return pooled(
        [
            replace(
                record,
                data=every,
                names=record.names if len(named) == 1 else [],
                note=_unordered(record.note),
                samples=windows,
                online=[row[: len(windows)] for row in record.online],
            )
            for record in made
        ]
    )


def on_grid(record: Record, like: Record) -> Record:
    """The record with the steps and borders of another: of its curve, the points that lie nearest."""
    if (record.steps, record.ends) == (like.steps, like.ends):
        return record
    own, wanted = progress(record), progress(like)
    rows = [int(np.abs(own - place).argmin()) for place in wanted] if len(own) else []
    curve = [[points[row] for row in rows] for points in record.curve]
    return replace(record, steps=like.steps, ends=like.ends, curve=curve)


def progress(record: Record) -> Array:
    """How far in the stream each point of the curve lies, `[K]`: 2.5 is half-way through the third experience."""
    ends = np.array([0.0, *record.ends])
    return np.interp(np.asarray(record.steps, dtype=np.float64), ends, np.arange(len(ends), dtype=np.float64))


def _unordered(note: str) -> str:
    """A stream's note with any class order for the one that it has."""
    return re.sub(r"class order \d+", "class order drawn from each seed", note)


def one_by_one(record: Record) -> Iterator[Record]:
    """A record of n seeds as n records of one; its times are shared out evenly."""
    n = record.n
    for k in range(n):
        mine: dict[str, Any] = {name: getattr(record, name)[k : k + 1] for name in PER_SEED if name != "runs"}
        mine |= {table: {name: rows[k : k + 1] for name, rows in getattr(record, table).items()} for table in NAMED}
        shares = {name: getattr(record, name) / n for name in ("seconds", "cpu_seconds")}
        energy = {**record.energy, "joules": record.energy["joules"] / n} if record.energy else {}
        yield replace(record, **mine, **shares, energy=energy)


def _pool(records: Sequence[Record]) -> Record:
    """One record of all seeds; one that was run more than once counts once."""
    by_seed = {one.seeds[0]: one for record in reversed(records) for one in one_by_one(record)}
    group = [by_seed[seed] for seed in dict.fromkeys(seed for record in records for seed in record.seeds)]
    first = group[0]
    joined: dict[str, Any] = {name: [item for r in group for item in getattr(r, name)] for name in PER_SEED}
    for table in NAMED:
        joined[table] = {
            name: [row for r in group for row in getattr(r, table)[name]] for name in getattr(first, table)
        }
    sums = {name: round(sum(getattr(r, name) for r in group), 3) for name in ("seconds", "cpu_seconds")}
    joules = sum(r.energy.get("joules", 0) for r in group)
    energy = {**first.energy, "joules": round(joules, 1)} if first.energy else {}
    peak = max(r.peak_memory for r in group)
    last: dict[str, Any] = {"date": max(r.date for r in group), "processor": _together(r.processor for r in group)}
    joined["runs"] = list(dict.fromkeys(joined["runs"]))
    return replace(first, **joined, **sums, **last, energy=energy, peak_memory=peak)


def _together(texts: Iterable[str]) -> str:
    """Each of some texts once, in order."""
    return ", ".join(dict.fromkeys(part for text in texts for part in text.split(", ") if part))


# --- saving and loading ---


def view(chapter: str, profile: str) -> Path:
    """An empty folder for the records that one execution of a chapter shows.

    Under `cllib run` it is the one whose records the site counts (`RECORDS`). Elsewhere, and so that nobody disturbs
    that one, the first folder `PROFILE/lab/CHAPTER`, `CHAPTER-2` ... of the artifacts that no other process is using,
    `PROFILE/headless` where nobody watches.

    What an earlier execution left there goes: a ledger shall never mix settings or code. The runs themselves stay where
    they are kept (`runs.store`), so nothing is lost, and what has not changed is not run again. UserError if the folder
    cannot be written.
    """
    live = watched()
    if RECORDS in os.environ and not live:
        where = Path(os.environ[RECORDS])
    else:
        where = _unused(artifacts() / profile / ("lab" if live else "headless"), chapter)
    shutil.rmtree(where, ignore_errors=True)
    return writable_folder(where)


RECORDS = "CLLIB_RECORDS"  # for the kernel of `cllib run`: where its records go
_TAKEN: dict[Path, FileLock] = {}  # folders of this process, to its end


def _unused(parent: Path, name: str) -> Path:
    """The first of NAME, NAME-2 ... that no other process has taken; this one has it from now on."""
    writable_folder(parent)
    for k in itertools.count(1):
        where = parent / (name if k == 1 else f"{name}-{k}")
        if where in _TAKEN:
            return where
        lock = FileLock(parent / f".lock-{where.name}")
        with suppress(Timeout):
            lock.acquire(timeout=0)
            _TAKEN[where] = lock
            return where
    raise AssertionError


def records(
    stream: Stream,
    learners: Sequence[dict[str, Any]],
    seeds: Sequence[int],
    outcome: Outcome,
    device: str,
    order: str = "own",
    data: str = "",
    code: str = "",
    run: str = "",
) -> list[Record]:
    """Cut the outcome of one program (learners x seeds, learner-major) into one record per learner, still unnamed.

    learners: their settings as plain values; data: the stream's hash; code: hash of the code; run: the address.
    """
    n, count = len(seeds), len(learners)

    def cut(values: Array, k: int) -> list[Any]:
        return np.round(values[k * n : (k + 1) * n], 4).tolist()

    return [
        Record(
            experiment="",
            label="",
            stream=stream.name,
            profile="",
            learner=learner,
            seeds=list(seeds),
            order=order,
            test=cut(outcome.test, k),
            validation=cut(outcome.validation, k),
            masked=cut(outcome.masked, k) if outcome.masked.size else [],
            by_class=cut(outcome.by_class, k) if outcome.by_class.size else [],
            held=cut(outcome.held, k) if outcome.held.size else [],
            moments={name: cut(values, k) for name, values in outcome.moments.items()},
            online=cut(outcome.online, k),
            samples=outcome.samples.tolist(),
            scrambles=cut(outcome.scrambles, k),
            norms={name: cut(values, k) for name, values in outcome.norms.items()},
            sizes=outcome.sizes,
            seconds=round(outcome.seconds / count, 3),
            cpu_seconds=round(outcome.cpu_seconds / count, 3),
            data=data or stream_hash(stream),
            whole=stream.whole,
            note=stream.note,
            device=device_name(device),
            versions=versions(),
            commit=commit(),
            date=date.today().isoformat(),
            confusion=outcome.confusion[k * n : (k + 1) * n].tolist(),
            curve=cut(outcome.curve, k),
            steps=outcome.steps.tolist(),
            excerpts=[outcome.excerpts.tolist()] * n if outcome.excerpts.size else [],
            ends=outcome.ends.tolist(),
            diverged=outcome.diverged[k * n : (k + 1) * n].tolist(),
            bytes=outcome.bytes,
            peak_memory=outcome.peak_memory,
            energy=energy(outcome.cpu_seconds / count, device),
            runs=[run] if run else [],
            code=code,
            names=list(stream.names),
            processor=processor(),
        )
        for k, learner in enumerate(learners)
    ]


def energy(cpu_seconds: float, device: str) -> dict[str, Any]:
    """Joules, as far as they can be told: an estimate from the time the processor was busy."""
    how = f"estimate: CPU seconds x {WATTS:g} W a core (assumed)"
    return {
        "joules": round(cpu_seconds * WATTS, 1),
        "how": how + ("; the GPU's share is not known" * (device != "cpu")),
    }


def save(made: Iterable[Record], where: Path) -> None:
    """Write every record to `where/EXPERIMENT/STREAM/LABEL~KEY.json`, each whole or not at all. UserError if it cannot.

    KEY stands for what was asked (`asked`): the same, asked again with more seeds or by newer code, takes its place.
    """
    for record in made:
        experiment, stream, label = (file_name(part) for part in (record.experiment, record.stream, record.label))
        write_atomic(
            Path(where, experiment, stream, f"{label}~{asked(record)}.json"), json.dumps(asdict(record)).encode()
        )


def asked(record: Record) -> str:
    """8 hex digits of what a record answers: data, names of classes, learner, order of samples, measurements."""
    told = [record.data, record.names, record.learner, record.order, record.measuring]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]


def file_name(text: str) -> str:
    """The text as the name of a file: other texts, other names."""
    plain = "".join(c if c.isalnum() or c in "=.+-_ @," else "-" for c in text)
    same = plain == text and text.strip(".") != ""
    return plain if same else f"{plain.strip('.') or 'x'}~{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def load(where: Path) -> list[Record]:
    """All records below a folder, by name; UserError names a file that is not a whole record."""
    return [_read(path) for path in sorted(where.rglob("*.json"))]


def same(made: Sequence[Record], **wanted: Any) -> list[Record]:
    """Records that have all these values, by name of their fields; says so in a line where there is none."""
    found = [r for r in made if all(getattr(r, name) == value for name, value in wanted.items())]
    if not found:
        told = ", ".join(f"{name} {value}" for name, value in wanted.items() if isinstance(value, str))
        print(f"not shown here: no record measured beforehand has the same settings, data and seeds ({told})")
    return found


def keep(made: Sequence[Record], folder: Path) -> None:
    """Write the result of one program into its run folder."""
    content = json.dumps([asdict(record) for record in made])
    write_atomic(folder / "records.json", json.dumps({"digest": _seal(content), "records": content}).encode())


def kept(folder: Path) -> list[Record] | None:
    """The result of a run folder, None if the run is not finished. UserError names one that is damaged or foreign."""
    path = folder / "records.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        whole = content["digest"] == _seal(content["records"])
        made = [_filled(record) for record in json.loads(content["records"])]
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path}: not a whole result ({error}); delete it and run again") from error
    if not whole:
        raise UserError(f"{path}: damaged, its content does not match its digest; delete it and run again")
    if not made or any(record.runs != [folder.name] for record in made):
        raise UserError(f"{path}: result of another run; it does not belong here")
    return made


def _seal(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def all_kept(store: Path) -> list[Record]:
    """The results of all finished runs in a store, in the order of their addresses, seeds pooled."""
    found = [kept(path.parent) or [] for path in sorted(store.glob("*/records.json"))]
    return pooled([record for made in found for record in made])


def _read(path: Path) -> Record:
    try:
        return _filled(json.loads(path.read_text()))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{path}: not a whole run record ({error}); delete it and run the chapter again") from error


def _filled(content: dict[str, Any]) -> Record:
    """A record as it was written, perhaps by older code; what is new since has its default, in its settings too."""
    return Record(**{**content, "learner": completed(content["learner"])})


def stream_hash(stream: Stream) -> str:
    """Hash of every array of a stream, and of what is which."""
    parts = {"train": stream.experiences, "test": stream.tests, "validation": stream.validations}
    shape = [(name, [(e.classes, e.domain) for e in group]) for name, group in parts.items()]
    told = repr((stream.classes, stream.scenario, stream.sortable, shape)).encode()
    arrays = [array for group in parts.values() for e in group for array in (e.x, e.y)]
    return hash_arrays(np.frombuffer(told, np.uint8).copy(), *arrays)


def device_name(device: str) -> str:
    """What the runs ran on, for the record."""
    return torch.cuda.get_device_name() if device == "cuda" else f"cpu ({platform.machine()})"


COMMIT = "CLLIB_COMMIT"  # for a copy of the code that has no history of its own


@cache
def commit() -> str:
    """The checkout's commit, with a + where files differ from it; "unknown" outside a checkout."""
    if told := os.environ.get(COMMIT):
        return told
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


def metrics_table(made: Sequence[Record], metrics: Sequence[str]) -> pd.DataFrame:
    """Records of one stream as readers want them: a row a label, a column a metric (`Record.metric`), last n."""
    table = pd.concat({name: wide(made, name).iloc[:, 0] for name in metrics}, axis=1)
    return table.assign(n=pd.Series({record.label: record.n for record in made}))


def curves_table(made: Sequence[Record]) -> pd.DataFrame:
    """Every point of every curve: label, stream, seed, step, task (from 1), accuracy."""
    rows = [
        (record.label, record.stream, seed, int(step), j + 1, accuracy)
        for record in made
        for seed, curve in zip(record.seeds, record.curve, strict=True)
        for step, point in zip(record.steps, curve, strict=True)
        for j, accuracy in enumerate(point)
    ]
    return pd.DataFrame(rows, columns=["label", "stream", "seed", "step", "task", "accuracy"])


def beforehand(made: Sequence[Record]) -> pd.DataFrame:
    """What was run before, where, when and with what: a row an experiment, a stream, a number of seeds, a day."""
    rows = sorted({(r.experiment, r.stream, r.n, r.date, r.device, r.variant) for r in made})
    table = pd.DataFrame(rows, columns=["measured beforehand", "stream", "n", "date", "on", "made with"])
    return table if table["made with"].any() else table.drop(columns="made with")


def paired(
    made: Sequence[Record], pairs: Sequence[tuple[str, str, str]], name: str, metric: str = "Acc"
) -> pd.DataFrame:
    """Differences of two labels of an experiment on one stream, paired by seed, and whether they can be told from 0.

    pairs: experiment, label, other label; those that were not both run with two seeds are left out. name: of the runs,
    for the first column.
    """
    found = {(record.experiment, record.label): record for record in made}
    rows = []
    for experiment, better, worse in pairs:
        one, other = found.get((experiment, better)), found.get((experiment, worse))
        if one is None or other is None or one.seeds != other.seeds or one.n < 2:
            continue
        mean, half = interval(one.metric(metric) - other.metric(metric))
        verdict = "better" if mean > half else "worse" if mean < -half else "cannot be told"
        rows.append((name, f"{better} - {worse}", mean, half, one.n, verdict))
    return pd.DataFrame(rows, columns=["runs", "difference", "mean", "half-width", "n", "verdict"])


def against(made: Sequence[Record], reference: str, metric: str = "Acc") -> pd.DataFrame:
    """Every record of one stream beside the one called `reference`: difference of a metric, paired by seed.

    Columns: difference, half-width of its 95 % interval, p of the paired t-test, corrected for the number of rows
    (Benjamini & Hochberg 1995: of what is called different, 5 % is expected not to be), n, verdict. Rows that have
    other seeds, or but one, are left out.
    """
    base = next(record for record in made if record.label == reference)
    others = [r for r in made if r.label != reference and r.seeds == base.seeds and r.n > 1]
    gaps = [record.metric(metric) - base.metric(metric) for record in others]
    p = np.nan_to_num([ttest_1samp(gap, 0).pvalue for gap in gaps], nan=1.0)
    table = pd.DataFrame([interval(gap) for gap in gaps], [r.label for r in others], ["difference", "half-width"])
    table["p, corrected"] = false_discovery_control(p) if len(p) else p
    table["n"] = [record.n for record in others]
    told = np.where(table["difference"] > 0, "better", "worse")
    table["verdict"] = np.where(table["p, corrected"] < 0.05, told, "cannot be told")
    return table


def told_apart(made: Sequence[Record], reference: str) -> str:
    """In one sentence: the best of some records, and which differ from the reference (`against`)."""
    best = max(made, key=lambda record: record.metric("Acc").mean())
    mean, half = interval(best.metric("Acc"))
    sentence = f"highest mean: {best.label}, {short(mean)} ± {short(half)}"
    if not any(record.label == reference for record in made):
        return f"{sentence}."
    verdicts = against(made, reference)["verdict"]
    parts = {"better": f"better than {reference}", "worse": "worse", "cannot be told": "not to be told from it"}
    named = {how: ", ".join(verdicts.index[verdicts == how]) or "none" for how in parts}
    return f"{sentence}; " + "; ".join(f"{words}: {named[how]}" for how, words in parts.items()) + "."


def short(number: float) -> str:
    """.731 for 0.731, 340 for 340.0; n/a for what one seed cannot give."""
    if not np.isfinite(number):
        return "n/a"
    if abs(number) >= 10 and number == round(number):
        return f"{number:,.0f}"
    return f"{number:.3f}".replace("0.", ".", 1) if abs(number) < 1 else f"{number:.3f}"


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


def this_run(settings: Any) -> str:
    """One line that says what a copy of a chapter was made with."""
    named = ", ".join(f"{name} {number}" for name, number in versions().items())
    made = f"{date.today().isoformat()}, commit {commit()}"
    return f"{settings.profile} profile, n = {settings.seeds} seeds, {device_name(settings.on)}, {made}; {named}"


def _preference(record: Record) -> tuple[float, ...]:
    head = record.learner.get("head", {})
    return -head.get("match_threshold", 0), head.get("key_step", 0), record.learner["step_size"]


def _test_accuracy(record: Record) -> float:
    return float(record.metric("Acc").mean())


def _validation_accuracy(record: Record) -> float:
    return float(record.validation_accuracy().mean())
