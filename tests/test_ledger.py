"""Claims and verdicts."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cllib import ledger
from cllib.ledger import Claim, allowed, claims, judge, readable
from cllib.results import Record
from samples import with_accuracy

VALUE = Claim("source", "text", "table", "modes-cdi", "Acc", "lp", value=0.6, std=0.01, n=3)
ORDER = Claim("source", "text", "table", "modes-cdi", "Acc", "MH m=16", worse="lp")


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [([0.6, 0.61, 0.59], "reproduced"), ([0.8, 0.81, 0.79], "not reproduced"), ([0.4, 0.41, 0.39], "not reproduced")],
)
def test_values_are_judged_on_both_sides(made: list[Record], accuracies: list[float], verdict: str) -> None:
    assert judge(VALUE, [with_accuracy(made[0], accuracies)])["verdict"] == verdict


def test_orders_are_judged_by_pairs(made: list[Record]) -> None:
    worse = with_accuracy(made[0], [0.1, 0.5, 0.9])
    close = with_accuracy(made[1], [0.15, 0.56, 0.94])  # overlapping spreads, but better for every seed
    assert judge(ORDER, [worse, close])["verdict"] == "reproduced"
    assert judge(ORDER, [worse, with_accuracy(made[1], [0.9, 0.5, 0.1])])["verdict"] == "not reproduced"
    assert judge(ORDER, [close])["verdict"] == "not run"


def test_small_runs_and_stand_ins_show_a_mechanism_only(made: list[Record]) -> None:
    good = with_accuracy(made[0], [0.6, 0.6])
    assert judge(VALUE, [replace(good, profile="smoke")])["verdict"] == "mechanism only"
    assert judge(VALUE, [replace(good, whole=False)])["verdict"] == "mechanism only"
    assert judge(VALUE, [with_accuracy(made[0], [0.6])])["verdict"] == "mechanism only"
    elsewhere = replace(VALUE, stream="ns-imagenet", stand_ins=("modes-cdi",))
    row = judge(elsewhere, [good])
    assert row["verdict"] == "mechanism only" and row["stream"] == "modes-cdi"
    assert judge(elsewhere, [replace(good, stream="ns-imagenet")])["verdict"] == "reproduced"
    assert judge(VALUE, [])["verdict"] == "not run"


def test_tolerance_has_a_floor_and_a_ceiling() -> None:
    assert allowed(np.array([0.5, 0.5, 0.5]), replace(VALUE, std=None)) == ledger.TOLERANCE[0]
    assert allowed(np.array([0.1, 0.5, 0.9]), VALUE) == ledger.TOLERANCE[1]


def test_tolerance_is_the_half_width_of_the_difference() -> None:
    ours, t = np.array([0.58, 0.60, 0.62]), 4.302653
    known = np.hypot(t * 0.02 / 3**0.5, t * 0.01 / 3**0.5)
    assert allowed(ours, VALUE) == pytest.approx(known, abs=1e-6)
    assert allowed(ours, replace(VALUE, std=None)) == pytest.approx(t * 0.02 * (2 / 3) ** 0.5, abs=1e-6)
    single = allowed(ours / 2, replace(VALUE, std=None, n=1))  # one published run may lie anywhere among ours
    assert single == pytest.approx(t * 0.01 * (1 + 1 / 3) ** 0.5, abs=1e-6)


def test_ledger_of_the_chapter_is_whole(made: list[Record]) -> None:
    told = claims("01_memory_head")
    assert len(told) == len(set((c.source, c.text, c.metric) for c in told)) > 100
    judged = ledger.ledger("01_memory_head", made)
    assert len(judged) == len(told) and set(judged["verdict"]) <= set(ledger.MARKS)
    shown = readable(judged)
    assert len(shown) == len(told) and not shown.astype(str).apply(lambda column: column.str.contains("n/a|nan")).any(
        axis=None
    )
    sources = ledger.published("01_memory_head")["sources"]
    assert {claim.source for claim in told} <= set(sources)


def test_published_figure_is_copied_right() -> None:
    """Spot checks of the published table (chapter 1, rules 5 a)."""
    values = {c.text: (c.value, c.std) for c in claims("01_memory_head")}
    assert values["CNU, modes-ci: Acc .965"] == (0.965, 0.008)
    assert values["moe, moons-cdid: Acc .445"] == (0.445, 0.065)
    assert json.loads((ledger.PUBLISHED / "01_memory_head.json").read_text())["tables"][0]["n"] == 3
