"""The page on what the whole book takes: sums, counted operations, and that it says what was measured."""

import json
from dataclasses import asdict, replace

import pytest

from cllib import chapters, cost
from cllib.models.networks import MLP
from cllib.recipes import Recipe

COST = cost.Cost("01", "t", "a", 6, 1, 7200, 0.5, 4e12, 1.0)


def test_hours_are_programs_times_steps_times_seconds() -> None:
    assert COST.cpu_hours == 6.0 and COST.longest == pytest.approx(7200 * 4e12 / cost.RATE / 3600)
    assert COST.gpu_hours == pytest.approx(6 * COST.longest)
    assert replace(COST, many=3).gpu_hours == pytest.approx(2 * COST.longest), "runs in one program share its time"
    assert replace(COST, flops=1.0).longest == pytest.approx(7200 * cost.FLOOR / 3600), "never less than the floor"
    assert replace(COST, gpu_seconds=1.0).gpu_hours == 12.0, "what was measured is not estimated"


def test_many_cards_take_as_long_as_the_longest_run() -> None:
    short, long = replace(COST, gpu_seconds=0.1), replace(COST, runs=1, gpu_seconds=12.0)
    assert cost.total("x", [long, short]).endswith("| 24.0 | 1.1 | 1.0 |")
    assert cost.total("x", [replace(COST, runs=80, gpu_seconds=1.2)]).endswith("| 2.4 | 8.0 | 1.0 |")


def test_the_page_says_what_is_an_estimate() -> None:
    told = {"date": "2000-01-01", "cpu": "cpu", "processor": "abacus", "versions": {"torch": "9"}, "gpu": None}
    page = cost.page({**told, "costs": [asdict(COST)]})
    assert "**an estimate, not a measurement**" in page and "20 · 10¹²" in page and "5 ms" in page
    assert "measured on 2000-01-01, abacus" in page
    other = cost.page({**told, "gpu": "a card", "costs": [asdict(replace(COST, gpu_seconds=1.0))]})
    assert "**GPU-hours** are measured on a card." in other and "an estimate" not in other


def test_the_page_is_the_one_that_the_figures_make() -> None:
    told = json.loads(cost.MEASURED.read_text())
    assert cost.PAGE.read_text() == cost.page(told)
    named = [(task.chapter, task.table, task.label, task.runs, task.many) for task in cost.tasks()]
    assert [(c["chapter"], c["table"], c["label"], c["runs"], c["many"]) for c in told["costs"]] == named
    assert {name for name, *_ in named} == set(chapters.names())


def test_steps_follow_from_the_published_sizes() -> None:
    steps = {(task.chapter[:2], task.table, task.label): cost.steps(task) for task in cost.tasks()}
    assert steps["02", "sweep", "m=0"] == 6 * 40 * 600
    assert steps["03", "main", "latent replay"] == 4 * (30 + 390 * 18)
    assert steps["04", "main", "BI-R"] == 10 * 5000
    assert steps["05", "main", "BiRT"] == 10 * 500 * 40
    assert steps["01", "images", "MH m=16, ns-cifar100"] == 300 * 420


def test_a_stand_in_has_the_sizes_and_takes_no_memory() -> None:
    stream = cost.stand_in("x", [1000, 2000], (3, 8, 8), 10)
    assert [len(e) for e in stream.experiences] == [1000, 2000] and stream.shape == (3, 8, 8)
    assert stream.experiences[1].classes == tuple(range(5, 10)) == tuple(stream.experiences[1].y.unique().tolist())
    assert stream.experiences[0].x.untyped_storage().nbytes() == 3 * 8 * 8 * 4
    shared = cost.stand_in("x", [20, 20], (4,), 10, True)
    assert all(e.classes == tuple(range(10)) for e in shared.experiences)


def test_operations_are_those_of_the_matrix_products() -> None:
    recipe = Recipe(network=MLP((8,)), batch_size=6)
    task = cost.Task("01", "t", "a", recipe, cost.stand_in("x", [60, 60], (16,), 4), 1)
    seconds, flops, share = cost.measured(task, "cpu")
    forward, first = 2 * 6 * (16 * 8 + 8 * 4), 2 * 6 * 16 * 8
    assert flops == 3 * forward - first and share == 1 and seconds > 0, "nobody asks for the inputs' gradient"
    _, half, share = cost.measured(replace(task, batch=3), "cpu")
    assert (half, share) == (flops / 2, 0.5)
