"""The claims ledger: verdicts on published numbers, computed from saved runs by one function."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from cllib.metrics import Array, half_width, interval
from cllib.results import Record, short
from cllib.runs import ROOT

PUBLISHED = ROOT / "data" / "published"
# A number counts as reproduced within the 95 % interval of the difference, but never demands more than TOLERANCE[0]
# and never forgives more than TOLERANCE[1].
TOLERANCE = (0.02, 0.10)


def published(chapter: str) -> dict[str, Any]:
    """What `data/published/CHAPTER.json` holds: sources, tables, orders, settings."""
    content: dict[str, Any] = json.loads((PUBLISHED / f"{chapter}.json").read_text())
    return content


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
