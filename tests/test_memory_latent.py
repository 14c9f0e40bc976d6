"""The buffer of latents: how many are replaced, how they are stored, and what comes back."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cllib.memory import DTYPES, LatentBuffer, decode, encode, quota
from cllib.randomness import generator
from cllib.streams.base import inputs

SCHEDULE = [1500, 300, 300, 300, 300, 250, 214, 187, 166, 150, 136, 125]


def test_8_the_schedule_is_that_of_the_paper() -> None:
    first = 3000  # samples of the padded first experience
    made = [quota(1500, i, 300 if i else first, 1500) for i in range(391)]
    assert made[:12] == SCHEDULE
    assert [made[i] for i in (50, 100, 200, 390)] == [29, 14, 7, 3] and sum(made[1:]) == 7412


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 500), st.integers(0, 3000), st.integers(0, 3000))
def test_8_no_more_are_replaced_than_there_are(size: int, i: int, available: int, held: int) -> None:
    h = quota(size, i, available, held)
    assert 0 <= h <= size and h <= available and (i == 0 or h <= held)
    assert h in (size // (i + 1), available, held)
    assert h == size // (i + 1) or size // (i + 1) > min(available, held if i else size)


def test_b13_nothing_is_stored_of_experiences_beyond_the_size() -> None:
    assert [quota(3, i, 10, 3) for i in range(5)] == [3, 1, 1, 0, 0]


def test_b12_a_buffer_that_was_filled_short_is_never_overrun() -> None:
    assert quota(100, 0, 20, 0) == 20 and quota(100, 1, 60, 20) == 20 and quota(100, 9, 60, 20) == 10


# --- how items are stored ---


def vectors(seed: int, scale: float, shape: tuple[int, ...] = (3, 4, 8)) -> Tensor:
    return scale * torch.randn(shape, generator=generator(seed, "vectors"))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.sampled_from([1e-20, 1e-6, 1e-2, 1.0, 50.0, 1e6]), st.integers(1, 70))
def test_whole_numbers_are_off_by_half_a_step_at_most(seed: int, scale: float, width: int) -> None:
    x = vectors(seed, scale, (3, 4, width))
    items = encode(x, "int8")
    step = x.abs().amax(-1, keepdim=True) / 127
    assert items["x"].dtype == torch.int8 and items["scale"].shape == (3, 4, 1)
    assert ((decode(items) - x).abs() <= step.clamp(min=1e-12) / 2 * (1 + 1e-4)).all()
    assert scale < 1e-10 or (items["x"].abs().amax(-1) == 127).all(), "all of the range is used"


@given(st.integers(0, 255))
@settings(max_examples=20, deadline=None)
def test_images_come_back_bit_for_bit(value: int) -> None:
    pixels = torch.arange(256, dtype=torch.uint8).roll(value).view(1, 4, 8, 8)
    shown = inputs(pixels)
    items = encode(shown, "pixels")
    assert items["x"].dtype == torch.uint8 and torch.equal(items["x"], pixels)
    assert torch.equal(decode(items), shown)


def test_other_numbers_between_0_and_1_are_off_by_half_a_shade_at_most() -> None:
    x = torch.linspace(0, 1, 5000).view(1, -1)
    assert ((decode(encode(x, "pixels")) - x).abs() <= 0.5 / 255 + 1e-6).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.sampled_from([1e-3, 1.0, 100.0]))
def test_half_precision_is_off_by_its_rounding(seed: int, scale: float) -> None:
    x = vectors(seed, scale)
    items = encode(x, "float16")
    assert items["x"].dtype == torch.float16 and decode(items).dtype == torch.float32
    assert ((decode(items) - x).abs() <= x.abs() * 2**-11 + 2**-25).all()


def test_floats_are_stored_as_they_are() -> None:
    x = vectors(0, 3.0)
    assert torch.equal(decode(encode(x, "float32")), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_comes_back_as_nothing_and_in_the_type_that_is_asked_for(dtype: str) -> None:
    items = encode(torch.zeros(2, 5), dtype)
    assert torch.equal(decode(items), torch.zeros(2, 5)) and decode(items, torch.float64).dtype == torch.float64


@pytest.mark.parametrize(
    ("dtype", "share"), [("float32", 4.0), ("float16", 2.0), ("int8", 1 + 4 / 64), ("pixels", 1.0)]
)
def test_bytes_are_what_was_promised(dtype: str, share: float) -> None:
    items = encode(torch.rand(5, 17, 64), dtype)
    assert sum(t.nbytes for t in items.values()) == 5 * 17 * 64 * share


# --- the buffer ---


def filled(dtype: str = "float32", count: int = 6) -> LatentBuffer:
    buffer = LatentBuffer(dtype)
    buffer.put(torch.arange(count).float()[:, None, None].expand(-1, 2, 3) / 10, torch.arange(count))
    return buffer


@pytest.mark.parametrize("dtype", DTYPES)
def test_8_labels_stay_with_their_latents(dtype: str) -> None:
    buffer = filled(dtype)
    rows = torch.tensor([4, 0, 2])
    x, y = buffer.take(rows)
    assert y.tolist() == [4, 0, 2] and y.dtype == torch.long and x.shape == (3, 2, 3)
    torch.testing.assert_close(x[:, 0, 0] * 10, y.float(), atol=0.02, rtol=0)
    buffer.put(torch.full((2, 2, 3), 0.7), torch.tensor([7, 7]), torch.tensor([5, 1]))
    x, y = buffer.take(torch.arange(6))
    assert y.tolist() == [0, 7, 2, 3, 4, 7] and len(buffer) == 6
    torch.testing.assert_close(x[:, 1, 2] * 10, y.float(), atol=0.03, rtol=0)


def test_a_buffer_holds_copies() -> None:
    buffer, x, y = LatentBuffer("float32"), torch.ones(2, 3), torch.arange(2)
    buffer.put(x.clone(), y)
    y += 5
    assert buffer.take(torch.arange(2))[1].tolist() == [0, 1]
    state = buffer.state_dict()
    buffer.put(torch.zeros(1, 3), torch.tensor([9]), torch.tensor([0]))
    assert state["y"].tolist() == [0, 1] and state["x"][0, 0] == 1
    other = LatentBuffer("float32")
    other.load_state_dict(state)
    other.put(torch.zeros(1, 3), torch.tensor([3]), torch.tensor([1]))
    assert state["y"].tolist() == [0, 1] and other.take(torch.tensor([0, 1]))[1].tolist() == [0, 3]


def test_an_empty_buffer_has_a_length() -> None:
    buffer: Any = LatentBuffer("int8")
    assert len(buffer) == 0 and buffer.state_dict() == {}
    buffer.load_state_dict(filled("int8").state_dict())
    assert len(buffer) == 6 and set(buffer.items) == {"x", "scale", "y"}
