"""Herding against a plain loop, and a memory with equally many items of each class (BiRT spec, 1.4, I11-I13)."""

from math import cos, radians, sin
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cllib.errors import UserError
from cllib.herding import LONGEST, Exemplars, herd, quota
from cllib.memory import decode, encode
from cllib.randomness import generator


def features(seed: int, count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, generator=generator(seed, "features"))


def at_angles(*degrees: float) -> Tensor:
    return torch.tensor([[cos(radians(a)), sin(radians(a))] for a in degrees])


def icarl(rows: np.ndarray, count: int) -> tuple[list[int], np.ndarray]:
    """The released loop, with its thousand rounds, and how much it likes every row in the end."""
    d = rows.astype(np.float64).T
    d = d / (np.linalg.norm(d, axis=0) + 1e-8)
    mu = d.mean(1)
    w, picked, rounds = mu.copy(), [], 0
    while len(picked) < min(count, d.shape[1]) and rounds < 1000:
        j = int(np.argmax(w @ d))
        rounds += 1
        if j not in picked:
            picked.append(j)
        w = w + mu - d[:, j]
    return picked, w @ d


# --- herding (I12) ---


def test_i12_the_first_pick_is_nearest_to_the_mean_direction() -> None:
    x = at_angles(0, 10, 20)
    assert herd(x, 1).tolist() == [1]
    assert herd(x * torch.tensor([[5.0], [0.1], [30.0]]), 1).tolist() == [1], "however long they are"
    assert sorted(herd(x, 3).tolist()) == [0, 1, 2] and herd(x, 3)[0] == 1


def test_i12_picks_keep_the_mean_by_hand() -> None:
    # Mean m = (.52, .00): -30 degrees is nearest. w = 2 m - f points to 71 degrees, where 80 is nearest; then to -43,
    # where -30 is nearest again and not taken again; then to 11, where 31 is nearest.
    x = at_angles(31, -30, 80, -80)
    assert herd(x, 4).tolist() == icarl(x.numpy(), 4)[0] == [1, 2, 0, 3]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 8), st.integers(1, 40))
def test_i12_herding_is_the_released_loop(seed: int, count: int, dim: int, wanted: int) -> None:
    x = features(seed, count, dim)
    picks, (released, _) = herd(x, wanted).tolist(), icarl(x.numpy(), wanted)
    assert len(picks) == len(set(picks)) == min(wanted, count) and set(picks) <= set(range(count))
    assert picks[: len(released)] == released
    unit = x / x.norm(dim=1, keepdim=True)
    likeness = unit @ unit.mean(0)
    assert float(likeness[picks[0]]) >= float(likeness.max()) - 1e-6
    assert herd(x, max(1, wanted // 2)).tolist() == picks[: max(1, min(wanted // 2, count))], "fewer are a beginning"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_i12_all_picks_are_a_permutation(seed: int, count: int) -> None:
    assert sorted(herd(features(seed, count, 3), count).tolist()) == list(range(count))


@pytest.mark.parametrize("x", [torch.ones(5, 3), torch.zeros(5, 3), at_angles(0, 0, 90, 90, 90)], ids=str)
def test_samples_that_are_alike_are_all_there_in_the_end(x: Tensor) -> None:
    picks = herd(x, 5).tolist()
    assert sorted(picks) == [0, 1, 2, 3, 4]
    assert len(herd(x, 3)) == 3 and herd(x, 3).dtype == torch.long
    assert LONGEST == 1000


def test_what_is_missing_after_all_rounds_is_filled_with_what_fits_best() -> None:
    x = at_angles(0, 0, 50, 50, 120, 120, 120)  # of equal rows the first is picked, again and again
    released, likes = icarl(x.numpy(), 7)
    assert sorted(released) == [0, 2, 4]
    rest = sorted({1, 3, 5, 6}, key=lambda row: -likes[row])
    assert len({round(float(likes[row]), 6) for row in rest}) == 3
    picks = herd(x, 7).tolist()
    assert picks[:3] == released and [picks[3], picks[4]] == rest[:2] and sorted(picks[5:]) == sorted(rest[2:])


# --- how many (1.4) ---


@pytest.mark.parametrize(
    ("size", "classes", "each"),
    [
        *zip([500] * 10, range(10, 101, 10), [50, 25, 16, 12, 10, 8, 7, 6, 5, 5], strict=True),
        *zip([500] * 5, range(20, 101, 20), [25, 12, 8, 6, 5], strict=True),
        (7, 7, 1),
    ],
)
def test_i11_every_class_has_its_share(size: int, classes: int, each: int) -> None:
    assert quota(size, classes) == each


def test_i11_a_buffer_too_small_is_refused() -> None:
    with pytest.raises(UserError, match=r"^buffer_size = 6: must hold one of each of 7 classes$"):
        quota(6, 7)


# --- the memory (I11, I13) ---


def batch(*labels: int, start: float = 0.0) -> tuple[Tensor, Tensor]:
    """Items that say where they came from."""
    x = start + torch.arange(len(labels), dtype=torch.float32)
    return x[:, None, None].expand(-1, 2, 3).clone(), torch.tensor(labels)


def held(memory: Exemplars, label: int) -> list[float]:
    x, y = memory.take(torch.arange(len(memory)))
    return x[y == label, 0, 0].tolist()


def test_i11_old_classes_are_cut_to_their_first_items() -> None:
    memory = Exemplars(12)
    assert len(memory) == 0
    memory.add(*batch(5, 5, 5, 5, 5, 5, 2, 2, 2, 2, 2, 2), 6)
    assert held(memory, 5) == [0, 1, 2, 3, 4, 5] and held(memory, 2) == [6, 7, 8, 9, 10, 11] and len(memory) == 12
    memory.add(*batch(0, 0, 0, 9, 9, 9, start=100), 3)
    assert held(memory, 5) == [0, 1, 2] and held(memory, 2) == [6, 7, 8]
    assert held(memory, 0) == [100, 101, 102] and held(memory, 9) == [103, 104, 105] and len(memory) == 12
    memory.add(*batch(1, 1, start=200), 2)
    assert held(memory, 5) == [0, 1] and held(memory, 9) == [103, 104] and held(memory, 1) == [200, 201]
    assert len(memory) == 10


def test_a_class_that_comes_again_counts_once_more() -> None:
    memory = Exemplars(8)
    memory.add(*batch(3, 3, 3, 3, 1, 1, 1, 1), 4)
    memory.add(*batch(1, 1, 3, 3, start=10), 2)
    assert held(memory, 3) == [0, 1, 12, 13] and held(memory, 1) == [4, 5, 10, 11]
    memory.add(*batch(1, start=20), 1)
    assert held(memory, 3) == [0, 12] and held(memory, 1) == [4, 10, 20]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(15, 40), st.integers(0, 10**6))
def test_i11_the_memory_is_balanced_and_bounded(groups: list[int], size: int, seed: int) -> None:
    memory, classes, before = Exemplars(size), 0, {}
    names = torch.randperm(20, generator=generator(seed, "names")).tolist()
    for step, count in enumerate(groups):
        new = names[classes : classes + count]
        classes += count
        each = quota(size, classes)
        labels = [label for label in new for _ in range(each)]
        memory.add(*batch(*labels, start=1000.0 * step), each)
        assert len(memory) == each * classes <= size
        for label in names[:classes]:
            own = held(memory, label)
            assert len(own) == each and (label in new or own == before[label][:each])
        before = {label: held(memory, label) for label in names[:classes]}


@pytest.mark.parametrize(
    ("dtype", "stored", "bytes_each"),
    [
        ("float32", torch.float32, 6 * 4),
        ("float16", torch.float16, 6 * 2),
        ("int8", torch.int8, 6 + 2 * 4),
        ("pixels", torch.uint8, 6),
        (None, torch.float32, 6 * 4),
    ],
)
def test_i13_items_are_stored_in_their_type(dtype: str | None, stored: torch.dtype, bytes_each: int) -> None:
    memory = Exemplars(10, dtype)
    x = torch.rand(4, 2, 3, generator=generator(0, "x"))
    y = torch.tensor([0, 0, 7, 7])
    memory.add(x, y, 2)
    memory.add(x + 0 * x, y + 1, 2)
    assert memory.items["x"].dtype == stored
    parts = {name: values.nbytes for name, values in memory.items.items() if name in ("x", "scale")}
    assert sum(parts.values()) == 8 * bytes_each
    rows = torch.tensor([6, 1])
    found, labels = memory.take(rows)
    assert labels.tolist() == [8, 0] and found.dtype == torch.float32
    wanted = x[[2, 1]]
    if dtype is not None:
        wanted = decode(encode(wanted, dtype))
    assert torch.equal(found, wanted)
    like = memory.take(rows, torch.float64)[0]
    assert like.dtype == (torch.float32 if dtype is None else torch.float64)


def test_images_are_stored_as_they_are() -> None:
    memory, x = Exemplars(4), torch.randint(256, (4, 1, 2, 2), dtype=torch.uint8)
    memory.add(x, torch.arange(4), 1)
    assert memory.items["x"].dtype == torch.uint8 and torch.equal(memory.take(torch.arange(4))[0], x)


def test_the_memory_shares_nothing_with_what_it_was_given_or_gives_away() -> None:
    for dtype in (None, "float32"):
        memory, (x, y) = Exemplars(4, dtype), batch(0, 0, 1, 1)
        memory.add(x, y, 2)
        state: dict[str, Any] = memory.state_dict()
        x.zero_()
        y.zero_()
        assert held(memory, 0) == [0, 1] and held(memory, 1) == [2, 3]
        for values in state.values():
            values.zero_()
        assert held(memory, 1) == [2, 3]
        other, state = Exemplars(4, dtype), memory.state_dict()
        other.load_state_dict(state)
        other.add(*batch(6, start=50), 1)
        memory.add(*batch(6, start=50), 1)
        assert other.state_dict().keys() == memory.state_dict().keys()
        assert all(torch.equal(value, memory.items[name]) for name, value in other.items.items())
        again = Exemplars(4, dtype)
        again.load_state_dict(state)
        state["x"].zero_()
        assert held(again, 1) == [2, 3]
    empty = Exemplars(4)
    empty.load_state_dict(Exemplars(4).state_dict())
    assert len(empty) == 0
