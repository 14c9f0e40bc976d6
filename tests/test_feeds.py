"""How a stream is shown: batches, and mini-batches that share their place with stored samples."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cllib.contract import tiny_stream
from cllib.errors import UserError
from cllib.feeds import Batches, Portion, Portions, padded, portion

STREAM = tiny_stream()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 3), st.integers(0, 5))
def test_every_sample_is_shown_once_an_epoch_and_any_step_can_be_gone_back_to(
    size: int, epochs: int, start: int
) -> None:
    feed = Batches(STREAM, 3, size, epochs)
    steps = list(feed.batches(1))
    assert len(steps) == feed.steps(1)
    shown = torch.cat([x for x, _ in steps]).flatten(1)
    for epoch in shown.split(24):
        assert torch.equal(epoch.sort(0).values, STREAM.experiences[1].x.flatten(1).sort(0).values)
    for (x, y), (x2, y2) in zip(steps[start:], feed.batches(1, start), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_iterations_take_the_place_of_epochs() -> None:
    feed = Batches(STREAM, 3, 10, iterations=7)
    sizes = [len(y) for _, y in feed.batches(0)]
    assert sizes == [10, 10, 4, 10, 10, 4, 10]


def test_epochs_and_experiences_have_orders_of_their_own() -> None:
    first, second = torch.stack([x for x, _ in Batches(STREAM, 3, 24, 2).batches(0)])
    assert not torch.equal(first, second)
    labels = [next(iter(Batches(STREAM, 3, 24).batches(e)))[1] % 2 for e in (0, 1)]
    assert not torch.equal(*labels)


def test_joint_batches_pair_images_with_their_labels() -> None:
    known = {tuple(x.flatten().tolist()): int(y) for e in STREAM.experiences for x, y in zip(e.x, e.y, strict=True)}
    count = 0
    for x, y in Batches(STREAM, 1, 7, iterations=11, joint=True).batches(2):
        assert [known[tuple(sample.flatten().tolist())] for sample in x] == y.tolist()
        count += len(y)
    assert count == 72, "eleven batches are one epoch over everything, the last of them of two samples"


@pytest.mark.parametrize(("option", "value"), [("batch_size", 0), ("epochs", 0), ("iterations", 0)])
def test_impossible_feeds_are_refused(option: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{option} = 0"):
        Batches(STREAM, 0, **{option: value})


def test_a_single_sample_left_over_joins_the_batch_before() -> None:
    sizes = [len(y) for _, y in Batches(STREAM, 0, 23).batches(0)]
    assert sizes == [24] and [len(y) for _, y in Batches(STREAM, 0, 1).batches(0)] == [1] * 24
    assert [len(y) for _, y in Batches(STREAM, 0, 22).batches(0)] == [22, 2]


# --- mini-batches with a place for stored samples ---

# mb, N, R, k, new, steps, replayed, new samples used, replayed samples: the chapter's table of worked values
WORKED = [
    (100, 300, 1500, 18, 16, 18, 84, 288, 1500),
    (100, 293, 1500, 17, 17, 17, 83, 289, 1411),
    (100, 299, 1500, 17, 17, 17, 83, 289, 1411),
    (100, 600, 1500, 21, 28, 21, 72, 588, 1500),
    (100, 1500, 1500, 30, 50, 30, 50, 1500, 1500),
    (128, 300, 1500, 14, 21, 14, 107, 294, 1498),
    (7, 300, 1500, 257, 1, 300, 6, 300, 1500),
    (30, 60, 120, 6, 10, 6, 20, 60, 120),
    (40, 24, 200, 5, 4, 6, 36, 24, 200),
    (36, 12, 400, 11, 1, 12, 35, 12, 400),
]


@pytest.mark.parametrize(("mb", "n", "r", "k", "new", "steps", "replayed", "used", "again"), WORKED)
def test_7_the_split_is_that_of_the_table(
    mb: int, n: int, r: int, k: int, new: int, steps: int, replayed: int, used: int, again: int
) -> None:
    found = portion(n, r, mb)
    assert (n + r) // mb == k and found == Portion(new, replayed, steps)
    assert found.new * found.steps == used and min(r, found.replayed * found.steps) == again


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 3000), st.integers(1, 400))
def test_7_a_mini_batch_is_full_and_no_sample_is_used_twice(n: int, r: int, mb: int) -> None:
    if r and not 1 <= (n + r) // mb <= n:
        with pytest.raises(UserError, match=f"batch_size = {mb}: {n} new and {r} stored"):
            portion(n, r, mb)
        return
    mb = mb if r else min(mb, n)
    found = portion(n, r, mb)
    assert found.new * found.steps <= n < found.new * (found.steps + 1)
    assert found.new + found.replayed == max(mb, found.new) and found.steps >= (n + r) // mb


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_7_the_batch_sizes_that_a_refusal_names_are_all_that_work(n: int, r: int) -> None:
    with pytest.raises(UserError) as refusal:
        portion(n, r, n + r + 1)
    low, high = (int(word) for word in str(refusal.value).split("between ")[-1].split(" and "))
    works = [mb for mb in range(1, n + r + 2) if 1 <= (n + r) // mb <= n]
    assert (low, high) == (works[0], works[-1])


def test_without_a_buffer_a_mini_batch_is_no_larger_than_the_experience() -> None:
    assert portion(20, 0, 50) == Portion(20, 0, 1) and portion(60, 0, 30) == Portion(30, 0, 2)


def portions(legacy: bool = False, **changes: Any) -> Portions:
    told = {"batch_size": 5, "epochs": 2, "iterations": None, "later_epochs": 3, "held": 10, **changes}
    return Portions(STREAM, 3, **told, legacy=legacy)


def test_1_3_the_first_experience_is_padded_with_its_own_first_samples() -> None:
    feed, x = portions(), STREAM.experiences[0].x
    assert padded(24, 5) == 25 and padded(25, 5) == 25 and feed.steps(0) == 2 * 5
    shown = torch.cat([part for part, _ in feed.batches(0)]).flatten(1)
    wanted = torch.cat([x[:1], x]).flatten(1).sort(0).values
    for epoch in shown.split(25):
        assert torch.equal(epoch.sort(0).values, wanted)


def test_1_3_padding_may_be_longer_than_the_experience() -> None:
    only = replace(STREAM, experiences=STREAM.experiences[:1])
    shown = [y for _, y in Portions(only, 3, 60, 2, None, 2, 10, False).batches(0)]
    assert [len(y) for y in shown] == [60, 60]
    assert torch.bincount(shown[0]).tolist() == [30, 30]


def test_1_3_later_experiences_give_equal_portions_and_drop_the_rest() -> None:
    feed = portions()
    assert feed.portions[1] == Portion(4, 1, 6) and feed.steps(1) == 18
    assert [len(y) for _, y in feed.batches(1)] == [4] * 18
    rest = portions(batch_size=10, held=24)  # 48 div 10 = 4 mini-batches of 6 new ones
    assert rest.portions[1] == Portion(6, 4, 4)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("e", [0, 1])
def test_b10_legacy_has_one_order_for_all_epochs(legacy: bool, e: int) -> None:
    feed = portions(legacy)
    part = feed.portions[e]
    shown = [x for x, _ in feed.batches(e)]
    epochs = [torch.cat(shown[k : k + part.steps]) for k in range(0, len(shown), part.steps)]
    assert all(torch.equal(epochs[0], other) == legacy for other in epochs[1:])


@given(st.integers(0, 18), st.booleans())
def test_any_portion_can_be_gone_back_to(start: int, legacy: bool) -> None:
    feed = portions(legacy)
    for (x, y), (x2, y2) in zip(list(feed.batches(1))[start:], feed.batches(1, start), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


@pytest.mark.filterwarnings("ignore:buffer_size = 40")
def test_b10_a_buffer_that_cannot_fill_is_counted_as_it_is_unless_legacy() -> None:
    assert portions(held=40).held == 25 and portions(legacy=True, held=40).held == 40


def test_b13_sizes_that_make_no_mini_batch_are_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match="batch_size = 1"):
        portions(batch_size=1, held=30)


def test_orders_of_portions_belong_to_seed_experience_and_epoch() -> None:
    one, other = portions(), Portions(STREAM, 4, 5, 2, None, 3, 10, False)
    assert not torch.equal(one.order(1, 0), other.order(1, 0))
    assert not torch.equal(one.order(1, 0), one.order(2, 0))


def test_portions_of_a_stream_of_one_experience_are_batches_with_padding() -> None:
    only = replace(STREAM, experiences=STREAM.experiences[:1])
    assert len(list(Portions(only, 0, 7, 2, None, 2, 100, False).batches(0))) == 8


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 80))
def test_padding_makes_whole_mini_batches(samples: int, size: int) -> None:
    assert padded(samples, size) % size == 0 and 0 <= padded(samples, size) - samples < size
