"""What `cllib report` prints: one table over all runs, what its columns mean, and the ledgers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cllib import chapters, ledger, metrics
from cllib.results import Record

ASKED = ("Acc", "Forg (Chaudhry)", "WC-ACC")  # the metrics most asked for


def runs_table(made: Sequence[Record]) -> pd.DataFrame:
    """One row a record: what was run, every metric as mean and half of its 95 % interval over n seeds, and the costs.

    differs: the settings in which records of one learner on one stream differ; seconds and joules are of one run; kept:
    bytes that one run carries from step to step; peak: of the process; curve on: test images in a point of the curve.
    """
    return pd.DataFrame([row(record) | {"differs": told} for record, told in zip(made, differences(made), strict=True)])


def row(record: Record) -> dict[str, object]:
    """One record as a row."""
    told: dict[str, object] = {"stream": record.stream, "learner": record.label, "n": record.n}
    for name, values in measured(record).items():
        told[name], told[f"{name} ±"] = (round(number, 4) for number in metrics.interval(values))
    return told | {
        "seconds": round(record.seconds / record.n, 2),
        "joules": round(record.energy["joules"] / record.n, 1) if record.energy else None,
        "kept": sum(record.bytes.values()) if record.bytes else None,
        "network": record.bytes.get("network"),
        "peak": record.peak_memory or None,
        "diverged": sum(record.diverged),
        "curve on": record.excerpt or None,
        "profile": record.profile,
        "experiment": record.experiment,
        "whole": record.whole,
        "data": record.data,
        "classes": " | ".join(record.names),
        "device": record.device,
        "processor": record.processor,
        "code": record.code,
        "commit": record.commit,
        "date": record.date,
        "note": record.note,
        "settings": json.dumps(record.learner, sort_keys=True),
        "runs": " ".join(record.runs),
    }


def measured(record: Record) -> dict[str, metrics.Array]:
    """Every metric that the record allows, `[n]` each."""
    matrix = np.asarray(record.test, dtype=np.float64)  # [n, E, J]
    if not matrix.size:
        return {}
    square = matrix.shape[1] == matrix.shape[2]  # else fewer rows than test sets: no forgetting to speak of
    return {name: record.metric(name) for name in [*(metrics.METRICS if square else ["Acc"]), *metrics.FROM_TESTS]}


def differences(made: Sequence[Record]) -> list[str]:
    """Of every record, the settings in which it differs from others of its learner and stream."""
    other = ("note", "code", "data", "order", "device")
    flat = [flattened(r.learner) | r.measuring | r.versions | {name: getattr(r, name) for name in other} for r in made]
    told = []
    for record, mine in zip(made, flat, strict=True):
        same = (record.stream, record.label)
        others = [s for r, s in zip(made, flat, strict=True) if (r.stream, r.label) == same]
        names = [name for name in mine if any(other.get(name) != mine[name] for other in others)]
        told.append(", ".join(f"{name} {mine[name]}" for name in names))
    return told


def flattened(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as one level: the inner names, which are unique enough to read."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flattened(value) if isinstance(value, Mapping) else {name: value}
    return flat


def readable(table: pd.DataFrame, names: Sequence[str] = ASKED) -> str:
    """The table as text, with the metrics most asked for."""
    shown = table[["stream", "learner", "n"]].copy()
    if table["differs"].any():
        shown.insert(2, "differs in", table["differs"])
    for name in names:
        if name in table:
            pairs = zip(table[name], table[f"{name} ±"], strict=True)
            shown[name] = [cell(mean, half) for mean, half in pairs]
    for name in ("kept", "peak"):
        shown[f"{name} MB"] = [f"{value / 1e6:.2f}" if pd.notna(value) else "" for value in table[name]]
    rest = table[["seconds", "joules", "diverged", "whole", "date"]]
    return pd.concat([shown, rest], axis=1).to_string(index=False, na_rep="")


def cell(mean: float, half: float) -> str:
    """A mean and its interval, as far as there are any."""
    if not np.isfinite(mean):
        return "n/a"
    return f"{mean:.3f} ± {half:.3f}" if np.isfinite(half) else f"{mean:.3f}"


def excerpts(made: Sequence[Record]) -> str:
    """On how many images the curves stand, in words."""
    sizes = sorted({record.excerpt for record in made if record.excerpt})
    return f"{' to '.join(str(size) for size in dict.fromkeys([sizes[0], sizes[-1]]))} in all" if sizes else "no curve"


def definitions() -> str:
    """Every metric with its formula, a line each."""
    kinds = {**metrics.METRICS, **metrics.FROM_TESTS}
    return "\n".join(f"  {name:20s} {(kind.__doc__ or '').strip().splitlines()[0]}" for name, kind in kinds.items())


def chapter_ledger(chapter: str, where: Path) -> str:
    """A chapter's claims and verdicts, from the records its last execution left in `where`."""
    judged = ledger.whole(chapter, where)
    lines = ledger.readable(judged).reset_index().to_string(index=False)
    return f"{lines}\n\n{chapter}: " + ", ".join(
        f"{count} {verdict}" for verdict, count in ledger.counts(judged).items()
    )


def whole(made: Sequence[Record], records: Path) -> str:
    """The report: all runs, the definitions, and the ledger of every chapter that left records below `records`."""
    parts = ["No run is kept yet: `cllib train` or `cllib run` makes some."]
    if made:
        note = (
            "± is half of the 95 % interval over n seeds. kept: carried by one run from step to step; peak: of the "
            "process; joules: estimated from CPU time, not measured; seconds, joules: of one run. min-ACC, WC-ACC: "
            f"between borders on an excerpt of the test images ({excerpts(made)}), at borders on all; n/a: not defined."
        )
        parts = [readable(runs_table(made)), note, "Metrics, from R[i, j], accuracy on test set j after experience i:"]
        parts.append(definitions())
    for chapter in chapters.names():
        if any((records / chapter).rglob("*.json")):
            parts.append(chapter_ledger(chapter, records / chapter))
    return "\n\n".join(parts)
