"""What `cllib report` prints: one table over all runs, what its columns mean, and the ledgers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cllib import chapters, ledger, metrics
from cllib.results import Record, load

CURVE_METRICS = {"min-ACC": metrics.minimum_accuracy, "WC-ACC": metrics.worst_case_accuracy}


def runs_table(made: Sequence[Record]) -> pd.DataFrame:
    """One row a record: what was run, every metric as mean and half of its 95 % interval over n seeds, and the costs.

    seconds and joules are of one run; kept: bytes that one run carries from step to step; peak: of the process.
    """
    return pd.DataFrame([row(record) for record in made])


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
        "profile": record.profile,
        "experiment": record.experiment,
        "whole": record.whole,
        "device": record.device,
        "code": record.code,
        "commit": record.commit,
        "date": record.date,
        "note": record.note,
        "runs": " ".join(record.runs),
    }


def measured(record: Record) -> dict[str, metrics.Array]:
    """Every metric that the record allows, `[n]` each."""
    found = {name: record.metric(name) for name in metrics.METRICS if np.size(record.test)}
    if np.size(record.curve) and len(record.ends) > 1:
        found["min-ACC"] = metrics.minimum_accuracy(record.curve, record.steps, record.ends)
        found["WC-ACC"] = metrics.worst_case_accuracy(record.test, record.curve, record.steps, record.ends)
    return found


def readable(table: pd.DataFrame, names: Sequence[str] = ("Acc", "Forg (Chaudhry)", "WC-ACC")) -> str:
    """The table as text, with the metrics most asked for."""
    shown = table[["stream", "learner", "n"]].copy()
    for name in names:
        if name in table:
            pairs = zip(table[name], table[f"{name} ±"], strict=True)
            shown[name] = [f"{mean:.3f} ± {half:.3f}" if np.isfinite(half) else f"{mean:.3f}" for mean, half in pairs]
    for name, unit in (("kept", 1e6), ("peak", 1e6)):
        shown[f"{name} MB"] = [f"{value / unit:.2f}" if pd.notna(value) else "" for value in table[name]]
    rest = table[["seconds", "joules", "diverged", "whole", "date"]]
    return pd.concat([shown, rest], axis=1).to_string(index=False, na_rep="")


def definitions() -> str:
    """Every metric with its formula, a line each."""
    kinds = {**metrics.METRICS, **CURVE_METRICS}
    return "\n".join(f"  {name:20s} {(kind.__doc__ or '').strip().splitlines()[0]}" for name, kind in kinds.items())


def chapter_ledger(chapter: str, where: Path) -> str:
    """A chapter's claims and verdicts, from the records its last execution left in `where`."""
    judged = ledger.ledger(chapter, load(where))
    counts = judged["verdict"].value_counts()
    lines = ledger.readable(judged).reset_index().to_string(index=False)
    return f"{lines}\n\n{chapter}: " + ", ".join(f"{counts.get(mark, 0)} {mark}" for mark in ledger.MARKS)


def whole(made: Sequence[Record], records: Path) -> str:
    """The report: all runs, the definitions, and the ledger of every chapter that left records below `records`."""
    parts = ["No run is kept yet: `cllib train` or `cllib run` makes some."]
    if made:
        note = (
            "± is half of the 95 % interval over n seeds. kept: carried by one run from step to step; peak: of the "
            "process; joules: estimated from CPU time, not measured; seconds, joules: of one run."
        )
        parts = [readable(runs_table(made)), note, "Metrics, from R[i, j], accuracy on test set j after experience i:"]
        parts.append(definitions())
    for chapter in chapters.names():
        if any((records / chapter).rglob("*.json")):
            parts.append(chapter_ledger(chapter, records / chapter))
    return "\n\n".join(parts)
