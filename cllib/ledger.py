"""The claims ledger: verdicts on published numbers, computed from saved runs by one function."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cllib import results
from cllib.datasets.files import write_atomic
from cllib.errors import UserError
from cllib.metrics import Array, half_width, interval
from cllib.results import Record, short
from cllib.runs import ROOT

PUBLISHED = ROOT / "data" / "published"
# A number counts as reproduced within the 95 % interval of the difference, but never demands more than TOLERANCE[0]
# and never forgives more than TOLERANCE[1].
TOLERANCE = (0.02, 0.10)
REFERENCE = "reference runs"  # how sources are called that are no publication


def published(chapter: str) -> dict[str, Any]:
    """What `data/published/CHAPTER.json` holds: sources, tables, orders, settings."""
    content: dict[str, Any] = json.loads((PUBLISHED / f"{chapter}.json").read_text())
    return content


@dataclass(frozen=True)
class Claim:
    """A published number (`value`), or an order (`better` beats `worse`), and which of our runs answers it.

    stand_ins: streams that can show the mechanism where the claim's own stream was not run. part: the claim itself is
    about a part of the data, so that ours need not be whole.
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
    part: bool = False
    tolerance: float = 0.0


@dataclass(frozen=True)
class Fact:
    """Numbers that no training gives, for claims about them: stands beside the records of runs.

    values: `[n]`, one a seed, or just one where nothing is random (`exact`).
    """

    experiment: str
    label: str
    profile: str
    values: tuple[float, ...]
    exact: bool = False
    whole: bool = True
    stream: str = ""

    @property
    def n(self) -> int:
        return len(self.values)

    def metric(self, name: str) -> Array:
        """The values, whatever they are called."""
        return np.asarray(self.values, dtype=np.float64)


Evidence = Record | Fact
FACTS = "facts.jsonl"


def save_facts(facts: Sequence[Fact], where: Path) -> None:
    """Write facts beside the records of a chapter. UserError if it cannot."""
    write_atomic(where / FACTS, "\n".join(json.dumps(asdict(fact)) for fact in facts).encode())


def evidence(where: Path) -> list[Evidence]:
    """All records and facts below a folder; UserError names a file that is damaged."""
    facts: list[Evidence] = []
    for path in sorted(where.rglob(FACTS)):
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            facts += [Fact(**{**row, "values": tuple(row["values"])}) for row in rows]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: damaged ({error}); delete it and run the chapter again") from error
    return [*results.load(where), *facts]


def claims(chapter: str) -> list[Claim]:
    """A chapter's claims from `data/published/CHAPTER.json`."""
    content = published(chapter)
    orders = [{**order, "label": order["better"]} for order in content["orders"]]
    names = [f.name for f in fields(Claim)]
    ordered = [Claim(**{name: order[name] for name in names if name in order}) for order in orders]
    return ordered + [claim for table in content["tables"] for claim in _table_claims(table)]


def _table_claims(table: dict[str, Any]) -> Iterable[Claim]:
    """A row a label; its values are one a stream, or one a metric where the table names several."""
    for label, cells in table["rows"].items():
        experiment = table.get("elsewhere", {}).get(label, table["experiment"])
        columns = [(stream, table["metric"]) for stream in table["streams"]] if "streams" in table else []
        columns = columns or [(table["stream"], metric) for metric in table["metrics"]]
        rest = {"stand_ins": tuple(table.get("stand_ins", ())), "part": table.get("part", False)}
        rest["tolerance"] = table.get("tolerance", 0.0)
        for (stream, metric), cell in zip(columns, cells["values"] if isinstance(cells, dict) else cells, strict=True):
            value, std = cell if isinstance(cell, list) else (cell, None)
            if value is not None:
                text = f"{label}, {stream}: {metric} {short(value)}" if stream else f"{label}: {metric} {short(value)}"
                yield Claim(
                    table["source"], text, experiment, stream, metric, label, value, std, table["n"], None, **rest
                )


def allowed(values: Array, claim: Claim) -> float:
    """How far the mean of our `values` may lie from the published one: the 95 % half-width of the difference.

    Where the published spread is unknown, ours is taken for it, so that a single published run may lie anywhere among
    our runs. Never stricter than TOLERANCE[0], never looser than TOLERANCE[1].
    """
    ours = interval(values)[1]
    std = float(np.std(values, ddof=1)) if claim.std is None else claim.std
    theirs = half_width(std, claim.n) if claim.n > 1 else ours * len(values) ** 0.5
    return float(np.clip(np.hypot(ours, theirs), *TOLERANCE))


def judge(claim: Claim, made: Sequence[Evidence]) -> dict[str, Any]:
    """One row of the ledger: the verdict on a claim from saved runs.

    A value is reproduced if our mean lies within `allowed` of it, an order if the 95 % interval of the difference,
    paired by seed, lies above 0. Runs of the smoke profile, of one seed, on thinned-out or stand-in streams show a
    mechanism only. Of two that answer the same, the later counts.
    """
    by_place = {(r.experiment, r.label, r.stream): r for r in made}
    labels = [label for label in (claim.label, claim.worse) if label]
    streams = (claim.stream, *claim.stand_ins)
    places = [s for s in streams if all((claim.experiment, label, s) in by_place for label in labels)]
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
        "variant": "",
    }
    if not places:
        return {**row, "stream": claim.stream, "verdict": "not run"}
    ours = by_place[claim.experiment, claim.label, places[0]]
    row["variant"] = getattr(ours, "variant", "")  # facts are of today's code
    exact = isinstance(ours, Fact) and ours.exact
    values = ours.metric(claim.metric)
    if claim.worse:
        values = values - by_place[claim.experiment, claim.worse, places[0]].metric(claim.metric)
    mean, half = (float(values.mean()), 0.0) if exact else interval(values)
    if np.isnan(mean):  # not defined on this stream
        return {**row, "stream": places[0], "n": ours.n, "verdict": "not run"}
    verdict = "mechanism only"
    large = ours.profile != "smoke" and (ours.whole or claim.part) and (ours.n > 1 or exact)
    if large and places[0] == claim.stream:
        margin = claim.tolerance if exact else allowed(values, claim)
        holds = mean - half > 0 if claim.value is None else abs(mean - claim.value) <= margin + 1e-9
        verdict = "reproduced" if holds else "not reproduced"
    return {**row, "stream": places[0], "ours": mean, "half": half, "n": ours.n, "verdict": verdict}


def ledger(chapter: str, made: Sequence[Evidence]) -> pd.DataFrame:
    """All claims of a chapter with our numbers and verdicts."""
    return pd.DataFrame([judge(claim, made) for claim in claims(chapter)])


def whole(chapter: str, where: Path) -> pd.DataFrame:
    """A chapter's ledger from what was measured beforehand and from what one execution left in `where`."""
    return ledger(chapter, [*results.load(results.MEASURED / chapter), *evidence(where)])


def unpublished(chapter: str) -> list[str]:
    """Sources that are no publication: runs made for this book's specification, with programs of its own or others'."""
    return [
        name for name, text in published(chapter)["sources"].items() if "not published" in text or REFERENCE in name
    ]


def counts(judged: pd.DataFrame) -> dict[str, int]:
    """How many claims got which verdict."""
    found = judged["verdict"].value_counts()
    return {verdict: int(found.get(verdict, 0)) for verdict in MARKS}


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
    if judged["variant"].any():
        shown["made with"] = judged["variant"]
    return shown.set_index(["source", "claim"])
