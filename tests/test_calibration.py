"""Reliability by hand, and the two ends of the calibration error."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cllib.calibration import calibration_error, recency, reliability
from cllib.errors import UserError
from cllib.randomness import generator


def sure(values: list[float], classes: int = 4, answer: int = 1) -> Tensor:
    """Probabilities with these largest ones, always of the same class."""
    p = torch.tensor(values, dtype=torch.float64)[:, None]
    rest = ((1 - p) / (classes - 1)).expand(-1, classes).clone()
    rest[:, answer] = p[:, 0]
    return rest


def test_bins_hold_means_and_counts_and_empty_ones_are_left_out() -> None:
    p = sure([0.55, 0.57, 0.97, 0.91, 0.93])
    table = reliability(p, torch.tensor([1, 0, 1, 1, 2]), bins=10)
    assert table.index.tolist() == [5, 9]
    assert table["confidence"].tolist() == pytest.approx([0.56, (0.97 + 0.91 + 0.93) / 3])
    assert table["accuracy"].tolist() == pytest.approx([0.5, 2 / 3])
    assert table["samples"].tolist() == [2, 3]
    wanted = 2 / 5 * abs(0.5 - 0.56) + 3 / 5 * abs(2 / 3 - 2.81 / 3)
    assert calibration_error(table) == pytest.approx(wanted)


def test_there_are_15_bins_where_nothing_is_said() -> None:
    values = [(k + 0.5) / 15 for k in range(4, 15)]
    table = reliability(sure(values), torch.ones(len(values), dtype=torch.long))
    assert table.index.tolist() == list(range(4, 15)) and table["samples"].tolist() == [1] * 11


@pytest.mark.parametrize(
    ("value", "bins", "found"), [(1.0, 15, 14), (1.0, 1, 0), (0.5, 2, 0), (0.51, 2, 1), (0.75, 4, 2)]
)
def test_a_bin_has_its_upper_edge_and_1_is_in_the_last(value: float, bins: int, found: int) -> None:
    assert reliability(sure([value]), torch.tensor([1]), bins).index.tolist() == [found]


def test_right_as_often_as_sure_costs_nothing() -> None:
    p = sure([0.75] * 4 + [0.9] * 10 + [1.0] * 3)
    y = torch.tensor([1, 1, 1, 0, *[1] * 9, 3, 1, 1, 1])
    assert calibration_error(reliability(p, y)) == pytest.approx(0, abs=1e-12)


def test_always_sure_and_always_wrong_costs_1() -> None:
    assert calibration_error(reliability(sure([1.0] * 6), torch.tensor([0, 2, 3, 0, 2, 3]))) == 1
    assert calibration_error(reliability(sure([1.0] * 6), torch.ones(6, dtype=torch.long))) == 0


def test_too_modest_costs_as_much_as_too_sure() -> None:
    right, wrong = torch.ones(2, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    assert calibration_error(reliability(sure([0.7, 0.7]), right)) == pytest.approx(0.3)
    assert calibration_error(reliability(sure([0.7, 0.7]), wrong)) == pytest.approx(0.7)
    both = reliability(sure([0.7, 0.7, 0.4, 0.4]), torch.cat([right, wrong]))
    assert calibration_error(both) == pytest.approx((0.3 + 0.4) / 2), "gaps of bins do not cancel"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 20))
def test_every_sample_is_in_one_bin(seed: int, count: int, bins: int) -> None:
    draws = generator(seed, "calibration")
    logits = 3 * torch.randn(count, 5, generator=draws)
    y = torch.randint(5, (count,), generator=draws)
    p = logits.softmax(-1)
    table = reliability(p, y, bins)
    assert int(table["samples"].sum()) == count and 0 <= calibration_error(table) <= 1
    assert (table["samples"] > 0).all() and set(table.index) <= set(range(bins))
    low, high = table.index.to_numpy() / bins, (table.index.to_numpy() + 1) / bins
    assert (table["confidence"] > low - 1e-6).all() and (table["confidence"] < high + 1e-6).all()
    share = table["samples"] / count
    assert float((table["accuracy"] * share).sum()) == pytest.approx(float((p.argmax(-1) == y).double().mean()))
    assert float((table["confidence"] * share).sum()) == pytest.approx(float(p.amax(-1).double().mean()))


@pytest.mark.parametrize("bins", [0, -1, 2.5])
def test_there_must_be_a_bin(bins: Any) -> None:
    with pytest.raises(UserError, match=r"^bins = "):
        reliability(sure([0.5]), torch.tensor([1]), bins)


def test_recency_is_the_share_of_answers_by_task() -> None:
    confusion = torch.tensor([[2, 0, 0, 2], [0, 1, 0, 3], [0, 0, 0, 4], [0, 0, 1, 3]])
    torch.testing.assert_close(recency(confusion, [2, 2]), torch.tensor([3, 13]).double() / 16)
    torch.testing.assert_close(recency(confusion, [1, 3]), torch.tensor([2, 14]).double() / 16)
    torch.testing.assert_close(recency(torch.eye(6).long() * 7, [2, 2, 2]), torch.full((3,), 1 / 3).double())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 10_000))
def test_i25_shares_of_recency_sum_to_1(widths: list[int], seed: int) -> None:
    confusion = torch.randint(0, 9, (sum(widths), sum(widths)), generator=generator(seed, "recency"))
    confusion[0, 0] += 1
    shares = recency(confusion, widths)
    assert shares.shape == (len(widths),) and float(shares.sum()) == pytest.approx(1)
