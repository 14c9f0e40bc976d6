"""Metrics on matrices whose values are known (chapter 1, rules 5.9; Chaudhry 2018; Lopez-Paz & Ranzato 2017)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cllib import metrics
from cllib.errors import UserError
from cllib.metrics import (
    FROM_TESTS,
    METRICS,
    examined,
    grouped,
    half_width,
    interval,
    minimum_accuracy,
    of_seen,
    of_task,
    released_normalised,
    row_normalised,
    worst_case_accuracy,
)

HAND = [[1, 0.5], [0.2, 1]]
# Task 0 improves at the third step; task 1 ends above all its earlier values. Zeros where nothing was tested.
PEERS = [[0.95, 0, 0, 0], [0.70, 0.90, 0, 0], [0.97, 0.60, 0.92, 0], [0.50, 0.95, 0.65, 0.90]]


@pytest.mark.parametrize(
    ("matrix", "values"),
    [
        (HAND, {"Acc": 0.6, "Forg": 0.8, "Bwd": 0, "Fwd": 0.5}),
        (np.eye(4), {"Acc": 0.25, "Forg": 1, "Fwd": 0}),
        (np.tril(np.ones((4, 4))), {"Acc": 1, "Forg": 0}),
        ([[0.5, 0.2, 0.1], [0.7, 0.6, 0.3], [0.9, 0.8, 0.7]], {"Acc": 0.8, "Bwd": 0.8 / 3, "Fwd": 0.2, "BWT": 0.3}),
    ],
)
def test_9_hand_matrices(matrix, values) -> None:
    for name, value in values.items():
        assert METRICS[name](matrix) == pytest.approx(value), name


def test_one_matrix_gives_four_forgettings() -> None:
    found = {name: float(METRICS[name](PEERS)) for name in METRICS}
    assert found["Forg (Chaudhry)"] == pytest.approx(0.2300)
    assert found["Forg (clipped)"] == pytest.approx(0.7400 / 3)
    assert found["Forg (first - last)"] == pytest.approx(0.2233, abs=1e-4)
    assert found["BWT"] == pytest.approx(-0.2233, abs=1e-4)


@given(arrays(float, (3, 5, 5), elements=st.floats(0, 1)))
def test_runs_are_an_axis_and_definitions_agree_where_they_must(r: np.ndarray) -> None:
    for name, metric in METRICS.items():
        np.testing.assert_allclose(metric(r), [metric(one) for one in r], atol=1e-12, err_msg=name)
    np.testing.assert_allclose(METRICS["BWT"](r), -METRICS["Forg (first - last)"](r))
    assert (METRICS["Forg (clipped)"](r) >= METRICS["Forg"](r) - 1e-12).all()
    assert (METRICS["Forg"](r) >= METRICS["Forg (Chaudhry)"](r) - 1e-12).all()
    assert (METRICS["Bwd"](r) >= 0).all()


def test_matrix_must_be_square() -> None:
    for name in set(METRICS) - {"Acc", "Acc over time"}:
        with pytest.raises(ValueError, match=r"\(2, 3\)"):
            METRICS[name](np.zeros((2, 3)))
    assert METRICS["Acc"](np.array([[0.1, 0.2, 0.3], [0.3, 0.6, 0.9]])) == pytest.approx(0.6)


def test_single_tasks_have_names() -> None:
    r = np.array([[[0.9, 0.1], [0.4, 0.8]], [[0.7, 0.2], [0.3, 0.6]]])
    assert of_task(r, "t1").tolist() == [0.4, 0.3] and of_task(r, "l1").tolist() == [0.9, 0.7]
    assert of_task(r, "t2").tolist() == of_task(r, "l2").tolist() == of_task(r, "last").tolist() == [0.8, 0.6]
    assert of_task(r, "b2").tolist() == [0.1, 0.2]
    assert METRICS["Plast"](r).tolist() == pytest.approx([0.85, 0.65])
    for wrong in ("t3", "t0", "x1", "t", "tx", "b1"):
        with pytest.raises(KeyError, match=wrong):
            of_task(r, wrong)


THREE = np.array([[0.9, 0.3, 0.1], [0.5, 0.8, 0.2], [0.4, 0.6, 1.0]])


def test_stability_plasticity_and_their_trade_off_by_hand() -> None:
    stability, plasticity = (0.4 + 0.6) / 2, (0.9 + 0.8 + 1.0) / 3
    assert METRICS["Stab"](THREE) == pytest.approx(stability) and METRICS["Plast"](THREE) == pytest.approx(plasticity)
    assert METRICS["Trade-off"](THREE) == pytest.approx(2 * stability * plasticity / (stability + plasticity))
    both = np.stack([THREE, np.eye(3)])
    assert METRICS["Stab"](both) == pytest.approx([stability, 0])
    assert METRICS["Trade-off"](both)[1] == 0 == METRICS["Trade-off"](np.zeros((3, 3))), "nothing kept, nothing gained"
    assert METRICS["Trade-off"](np.ones((3, 3))) == pytest.approx(1)


def test_accuracy_on_what_has_been_seen_by_hand() -> None:
    seen = [0.9, (0.5 + 0.8) / 2, (0.4 + 0.6 + 1.0) / 3]
    assert of_seen(THREE) == pytest.approx(seen) and METRICS["Acc incremental"](THREE) == pytest.approx(np.mean(seen))
    assert of_seen(np.stack([THREE, np.eye(3)]))[1] == pytest.approx([1, 1 / 2, 1 / 3])
    assert [float(of_task(THREE, f"s{k}")) for k in (1, 2, 3)] == pytest.approx(seen)
    assert of_task(np.stack([THREE, np.eye(3)]), "s2") == pytest.approx([0.65, 0.5])
    for wrong in ("s0", "s4", "s"):
        with pytest.raises(KeyError, match=wrong):
            of_task(THREE, wrong)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        of_seen(THREE[:2])


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_of_one_experience_only_accuracies_say_something(value: float) -> None:
    one = [[value]]
    said = {"Acc", "Acc over time", "Plast", "Acc incremental"}
    for name, metric in METRICS.items():
        assert metric(one) == value if name in said else np.isnan(metric(one)), name
        assert METRICS[name]([one, one]).shape == (2,)
    assert of_task(one, "s1") == value
    for low in FROM_TESTS.values():
        assert np.isnan(low([one], [[[value], [value]]], [1, 2], [2])).all()


@given(arrays(float, (2, 4, 4), elements=st.floats(0, 1)))
def test_a_trade_off_lies_between_and_the_future_is_not_seen(r: np.ndarray) -> None:
    s, p, t = (METRICS[name](r) for name in ("Stab", "Plast", "Trade-off"))
    assert (t <= np.maximum(s, p) + 1e-9).all() and (t >= np.minimum(s, p) - 1e-9).all()
    assert (t <= 2 * np.minimum(s, p) + 1e-9).all()
    past = r * np.tri(4)
    np.testing.assert_allclose(of_seen(past), of_seen(r))
    np.testing.assert_allclose(of_seen(r)[:, -1], METRICS["Acc"](r))
    np.testing.assert_allclose(METRICS["Stab"](r), (METRICS["Acc"](r) * 4 - r[:, -1, -1]) / 3, atol=1e-12)


def test_interval_is_students_t() -> None:
    mean, half = interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2) and half == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert interval([0.4]) == (0.4, float("inf")) and half_width(0.1, 1) == float("inf")
    assert half_width(0.1, 3) == pytest.approx(half)


def test_minimum_and_worst_case_accuracy_by_hand() -> None:
    # Test set 0 falls to .2 inside experience 1 and heals to .8; test set 1 is lowest at the end, after the last point.
    steps, ends = [5, 10, 12, 20, 22, 29], [10, 20, 30]
    curve = np.array([[0.1, 0, 0], [0.1, 0, 0], [0.2, 0.4, 0], [0.8, 0.3, 0], [0.6, 0.5, 0.3], [0.7, 0.7, 0.9]])
    matrix = np.array([[0.9, 0, 0], [0.8, 0.1, 0], [0.7, 0.45, 0.9]])  # the curve at 20, and R[1, 1], come too early
    assert minimum_accuracy(matrix, curve, steps, ends) == pytest.approx((0.2 + 0.45) / 2)
    assert worst_case_accuracy(matrix, curve, steps, ends) == pytest.approx(0.9 / 3 + 2 / 3 * 0.325)
    both = minimum_accuracy(np.stack([matrix, matrix / 2]), np.stack([curve, curve / 2]), steps, ends)
    assert both == pytest.approx([0.325, 0.1625])
    assert minimum_accuracy(matrix, curve[:2], steps[:2], ends) == pytest.approx((0.7 + 0.45) / 2), "only borders"
    assert minimum_accuracy(matrix[2:], curve, steps, ends, 3) == pytest.approx((0.2 + 0.45) / 2), "only the last"
    assert minimum_accuracy(matrix[1:], curve, steps, ends, 2) == pytest.approx((0.2 + 0.45) / 2)


def test_where_tests_belong_to_no_experience_no_lowest_accuracy_is_said() -> None:
    curve, steps, ends = np.full((2, 4, 1), 0.5), [1, 2, 3, 4], [2, 4]
    for low in FROM_TESTS.values():
        assert np.isnan(low(np.full((2, 2, 1), 0.5), curve, steps, ends)).tolist() == [True] * 2, "one set serves all"
        assert np.isnan(low(np.full((2, 2, 2), 0.5), np.empty((2, 0, 0)), [], ends)).tolist() == [True] * 2, "no curve"
        assert np.isnan(low(np.full((2, 1, 2), 0.5), np.full((2, 4, 2), 0.5), steps, ends)).all(), "which border?"
        assert np.isnan(low(np.full((2, 1, 2), 0.5), np.full((2, 4, 2), 0.5), steps, [4])).all(), "merged"


@given(st.data(), st.integers(2, 5), st.integers(1, 6), st.integers(1, 4))
def test_the_worst_case_is_never_above_the_average(data: st.DataObject, z: int, length: int, every: int) -> None:
    ends = [length * (e + 1) for e in range(z)]
    rows = examined(z, every)
    assert rows[-1] == z - 1 and all((e + 1) % every == 0 for e in rows[:-1])
    steps = sorted(data.draw(st.sets(st.integers(1, ends[-1]), min_size=1)))
    shares = st.floats(0, 1)
    curve = data.draw(arrays(float, (2, len(steps), z), elements=shares))
    r = data.draw(arrays(float, (2, len(rows), z), elements=shares))
    low, worst = (f(r, curve, steps, ends, every) for f in (minimum_accuracy, worst_case_accuracy))
    assert (low <= r[:, -1, :-1].mean(-1) + 1e-12).all() and (worst <= METRICS["Acc"](r) + 1e-12).all()
    more = minimum_accuracy(r, curve[:, ::2], steps[::2], ends, every)
    assert (low <= more + 1e-12).all(), "looking more often finds no higher minimum"


def test_chaudhry_looks_at_a_task_from_when_it_was_learned() -> None:
    before_it_was_learned = [[0.9, 0.8, 0], [0.9, 0.6, 0], [0.9, 0.5, 0.9]]
    assert METRICS["Forg (Chaudhry)"](before_it_was_learned) == pytest.approx((0 + 0.1) / 2)
    assert METRICS["Forg"](before_it_was_learned) == pytest.approx((0 + 0.3) / 2)


UNBALANCED = np.array([[8, 2], [20, 20]])


def test_confusion_is_normalised_by_row_and_was_released_by_column() -> None:
    np.testing.assert_allclose(row_normalised(UNBALANCED), [[0.8, 0.2], [0.5, 0.5]])
    np.testing.assert_allclose(released_normalised(UNBALANCED), [[0.8, 0.05], [2, 0.5]])
    np.testing.assert_allclose(row_normalised(UNBALANCED).sum(-1), 1)
    balanced = [[8, 2], [5, 5]]
    np.testing.assert_allclose(released_normalised(balanced), row_normalised(balanced))


@given(arrays(int, (3, 6, 6), elements=st.integers(0, 9)))
def test_confusion_keeps_what_it_counts(counts: np.ndarray) -> None:
    present, shares = counts.sum(-1) > 0, row_normalised(counts)
    np.testing.assert_allclose(shares.sum(-1), present)
    np.testing.assert_allclose(np.diagonal(shares, 0, 1, 2), np.diagonal(released_normalised(counts), 0, 1, 2))
    np.testing.assert_allclose(shares, [row_normalised(one) for one in counts])
    np.testing.assert_allclose(released_normalised(counts), [released_normalised(one) for one in counts])
    # Recall weighed by how often a class occurs is accuracy: trace(C) / N.
    weighed = (np.diagonal(shares, 0, 1, 2) * counts.sum(-1)).sum(-1)
    np.testing.assert_allclose(weighed, np.trace(counts, axis1=-2, axis2=-1))


def test_confusion_within_categories() -> None:
    counts = np.arange(16).reshape(4, 4)
    assert grouped(counts, 2).tolist() == [[0 + 1 + 4 + 5, 2 + 3 + 6 + 7], [8 + 9 + 12 + 13, 10 + 11 + 14 + 15]]
    assert grouped(counts, 1).tolist() == counts.tolist() and grouped(counts, 4).tolist() == [[120]]
    assert grouped(np.stack([counts, 2 * counts]), 2)[1].tolist() == (2 * grouped(counts, 2)).tolist()
    assert np.trace(grouped(UNBALANCED, 1)) / UNBALANCED.sum() == pytest.approx(28 / 50)
    with pytest.raises(UserError, match="each = 3: must divide the number of classes, 4"):
        grouped(counts, 3)
    with pytest.raises(UserError, match="each = 0"):
        grouped(counts, 0)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        grouped(np.zeros((2, 3)), 1)


def test_accuracy_over_time_is_the_mean_of_all_moments() -> None:
    r = np.array([[[0.2, 0.4], [0.6, 1.0]], [[0.0, 0.0], [0.0, 0.4]]])
    assert np.allclose(METRICS["Acc over time"](r), [0.55, 0.1])
    assert METRICS["Acc over time"](np.ones((3, 1))) == 1.0


def test_rows_that_were_not_tested_are_no_numbers() -> None:
    """With a test after every second experience, and the last: 2, 4 and 5 of 5."""
    whole = np.arange(25.0).reshape(1, 5, 5)
    made = metrics.by_experience(whole[:, [1, 3, 4]], 5, 2)
    assert metrics.of_task(made, "l2") == whole[0, 1, 1] and metrics.of_task(made, "t3") == whole[0, 4, 2]
    assert np.isnan(metrics.of_task(made, "l3")) and np.isnan(metrics.of_task(made, "b2"))
    assert np.isnan(metrics.forgetting(made)) and metrics.accuracy(made) == metrics.accuracy(whole)
    assert metrics.by_experience(whole, 5, 1) is whole
