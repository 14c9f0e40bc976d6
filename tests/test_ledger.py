"""Claims and verdicts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cllib import chapters, ledger, results
from cllib.errors import UserError
from cllib.ledger import Claim, Fact, allowed, claims, judge, readable
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


def test_what_is_not_defined_on_a_stream_is_not_run(made: list[Record]) -> None:
    one = replace(made[0], test=[[[0.5]]] * made[0].n)
    assert judge(replace(VALUE, metric="Forg", value=0.0), [one])["verdict"] == "not run"


def test_an_order_is_judged_where_both_sides_were_run(made: list[Record]) -> None:
    elsewhere = replace(ORDER, stream="ns-imagenet", stand_ins=("modes-cdi",))
    worse, better = with_accuracy(made[0], [0.1, 0.5, 0.9]), with_accuracy(made[1], [0.2, 0.6, 1.0])
    alone = replace(better, stream="ns-imagenet")
    assert judge(elsewhere, [worse, better, alone])["stream"] == "modes-cdi"
    assert judge(elsewhere, [worse, alone])["verdict"] == "not run"
    assert judge(elsewhere, [worse, better, alone, replace(worse, stream="ns-imagenet")])["verdict"] == "reproduced"


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


@pytest.mark.parametrize("chapter", chapters.names())
def test_ledger_of_the_chapter_is_whole(made: list[Record], chapter: str) -> None:
    told = claims(chapter)
    fewest = 100 if ledger.published(chapter)["tables"] else 15  # chapter 6 has orders only
    assert len(told) == len(set((c.source, c.text, c.experiment, c.label, c.metric) for c in told)) > fewest
    judged = ledger.ledger(chapter, made)
    assert len(judged) == len(told) and set(judged["verdict"]) <= set(ledger.MARKS)
    shown = readable(judged)
    assert len(shown) == len(told) and not shown.astype(str).apply(lambda column: column.str.contains("n/a|nan")).any(
        axis=None
    )
    sources = ledger.published(chapter)["sources"]
    assert {claim.source for claim in told} <= set(sources)


def test_a_row_says_what_older_code_did_otherwise(made: list[Record]) -> None:
    """Of numbers that were made before a default changed, the ledger and the list of runs say so."""
    for table in (readable(ledger.ledger("01_memory_head", made)), results.beforehand(made)):
        assert "made with" not in table
    old = [replace(record, variant="another sign") for record in made]
    shown = readable(ledger.ledger("01_memory_head", old))
    assert ((shown["made with"] == "another sign") == (shown["verdict"] != "not run")).all() and shown["ours"].any()
    assert (results.beforehand(old)["made with"] == "another sign").all()


FACT = Fact("theory", "a count", "quick", (56.0,), exact=True)
COUNT = Claim("source", "text", "theory", "", "value", "a count", value=56)


def test_facts_are_judged_beside_records() -> None:
    """One number suffices where nothing is random; else as many seeds as for a run."""
    row = judge(COUNT, [FACT])
    assert (row["verdict"], row["ours"], row["half"], row["n"]) == ("reproduced", 56.0, 0.0, 1)
    assert judge(replace(COUNT, value=55), [FACT])["verdict"] == "not reproduced"
    assert judge(replace(COUNT, value=56.019), [FACT])["verdict"] == "not reproduced"
    assert judge(replace(COUNT, value=56.019, tolerance=0.02), [FACT])["verdict"] == "reproduced"
    assert judge(COUNT, [replace(FACT, exact=False)])["verdict"] == "mechanism only"
    assert judge(COUNT, [replace(FACT, profile="smoke")])["verdict"] == "mechanism only"
    assert judge(COUNT, [replace(FACT, whole=False)])["verdict"] == "mechanism only"
    assert judge(COUNT, [])["verdict"] == "not run"


def test_a_claim_about_a_part_is_answered_by_a_part(made: list[Record]) -> None:
    part = replace(with_accuracy(made[0], [0.6, 0.6, 0.6]), whole=False)
    assert judge(VALUE, [part])["verdict"] == "mechanism only"
    assert judge(replace(VALUE, part=True), [part])["verdict"] == "reproduced"


def test_the_later_of_two_answers_counts(made: list[Record]) -> None:
    old, new = with_accuracy(made[0], [0.1, 0.1, 0.1]), with_accuracy(made[0], [0.6, 0.6, 0.6])
    assert judge(VALUE, [old, new])["verdict"] == "reproduced" != judge(VALUE, [new, old])["verdict"]


def test_facts_are_kept_beside_records(made: list[Record], tmp_path: Path) -> None:
    results.save(made, tmp_path)
    ledger.save_facts([FACT, replace(FACT, label="another", values=(0.5, 0.25))], tmp_path)
    found = ledger.evidence(tmp_path)
    assert found[-2:] == [FACT, replace(FACT, label="another", values=(0.5, 0.25))] and len(found) == len(made) + 2
    assert results.load(tmp_path) == [r for r in found if isinstance(r, Record)]
    (tmp_path / ledger.FACTS).write_text('{"experiment": 1}')
    with pytest.raises(UserError, match="damaged"):
        ledger.evidence(tmp_path)


def test_published_figure_is_copied_right() -> None:
    """Spot checks of the published table (chapter 1, rules 5 a)."""
    values = {c.text: (c.value, c.std) for c in claims("01_memory_head")}
    assert values["CNU, modes-ci: Acc .965"] == (0.965, 0.008)
    assert values["moe, moons-cdid: Acc .445"] == (0.445, 0.065)
    assert json.loads((ledger.PUBLISHED / "01_memory_head.json").read_text())["tables"][0]["n"] == 3
