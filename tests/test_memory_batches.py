"""The memories of learners of networks: rules, bounds, balance."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cllib.memory import DROPPED, Balanced, ClassBalance, Reservoir, balanced_slot, reservoir_batch
from cllib.randomness import generator


@pytest.mark.parametrize("batch", [1, 3, 12])
def test_reservoir_keeps_every_item_equally_often_whatever_the_batches(batch: int) -> None:
    # 3000 seeds, 12 items, 4 slots: each expected 1000 times; the chi-square test at 1e-3 with fixed seeds.
    counts = torch.zeros(12)
    for seed in range(3000):
        memory = Reservoir(4, seed)
        for part in torch.arange(12).split(batch):
            memory.add(x=part)
        counts += torch.bincount(memory.all()["x"], minlength=12)
    assert counts.sum() == 12_000
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 99))
def test_reservoir_is_bounded_and_holds_what_it_was_shown(size: int, batches: list[int], seed: int) -> None:
    memory, shown = Reservoir(size, seed), 0
    for count in batches:
        x = torch.arange(shown, shown + count)
        memory.add(x=x.float().unsqueeze(1), y=x)
        shown += count
        held = memory.all()
        assert len(memory) == len(held["y"]) == min(size, shown)
        assert torch.equal(held["x"][:, 0].long(), held["y"]), "parts of an item stay together"
        assert held["y"].unique().numel() == len(memory) and int(held["y"].max()) < shown


def test_of_two_items_for_one_slot_the_later_one_stays() -> None:
    for seed in range(50):
        rows, slots = reservoir_batch(20, 30, 2, generator(seed, "memory"))
        t, u = 20 + torch.arange(30), torch.rand(30, generator=generator(seed, "memory"), dtype=torch.float64)
        one_by_one = {int(s): k for k, s in enumerate((u * (t + 1)).long()) if s < 2}
        assert dict(zip(slots.tolist(), rows.tolist(), strict=True)) == one_by_one


def test_draws_are_without_repetition_and_leave_filling_alone() -> None:
    drawn, other = Reservoir(10, 1), Reservoir(10, 1)
    for memory in (drawn, other):
        for k in range(5):
            memory.add(x=torch.arange(10 * k, 10 * k + 10))
            if memory is drawn:
                assert memory.draw(6)["x"].unique().numel() == 6
                assert memory.draw(60)["x"].numel() == 10
    assert torch.equal(drawn.all()["x"], other.all()["x"])
    assert drawn.draw(0) is None and Reservoir(3, 0).draw(2) is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 9))
def test_balanced_follows_the_rule_of_chapter_1(labels: list[int], size: int, seed: int) -> None:
    u = torch.rand(len(labels), generator=generator(seed, "u"), dtype=torch.float64)
    theirs, held, counts = ClassBalance(1, size, 5), [], {}
    for label, chance in zip(labels, u, strict=True):
        slot = balanced_slot(label, held, counts, size, float(chance))
        assert slot == int(theirs.slot(torch.tensor([label]), chance[None])[0])
        if slot != DROPPED:
            for old in held[slot : slot + 1]:
                counts[old] -= 1
            held[slot : slot + 1] = [label]
            counts[label] = counts.get(label, 0) + 1


def test_balanced_memory_ends_balanced_and_holds_the_items_of_its_labels() -> None:
    memory = Balanced(12, 0)
    for label in range(4):  # one class after the other, the hardest case
        y = torch.full((50,), label)
        for part in y.split(8):
            memory.add(x=part.float() * 10, y=part)
    held = memory.all()
    assert Counter(held["y"].tolist()) == {0: 3, 1: 3, 2: 3, 3: 3} == Counter(memory.held)
    assert torch.equal(held["x"], held["y"] * 10.0)


def test_images_in_bytes_come_back_to_the_last_bit() -> None:
    """A byte a pixel is exact for what was an image, and draws are the same: only the size differs."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (30, 1, 3, 3), generator=draws, dtype=torch.uint8).float().div_(255)
    y = torch.arange(30) % 3
    for kind in (Reservoir, Balanced):
        plain, packed = kind(12, 5), kind(12, 5, "pixels")
        for memory in (plain, packed):
            memory.add(x=x[:20], y=y[:20])
            memory.add(x=x[20:], y=y[20:])
        assert packed.items["x"].dtype == torch.uint8
        assert packed.items["x"].nbytes * 4 == plain.items["x"].nbytes
        for a, b in ((plain.all(), packed.all()), (plain.draw(5), packed.draw(5))):
            assert a is not None and b is not None
            assert all(torch.equal(a[name], b[name]) for name in a)
