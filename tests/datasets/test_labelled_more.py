"""Labelled images split anew, with borders, and in three channels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cllib.datasets.labelled import Labelled, coloured, padded, resplit
from cllib.errors import UserError
from cllib.randomness import generator


def pictures(train: int = 5, test: int = 4, channels: int = 1, dtype: torch.dtype = torch.uint8) -> Labelled:
    """Random images [C, 2, 3] whose label is their number, training ones first."""
    x = torch.randint(1, 256, (train + test, channels, 2, 3), generator=generator(0, "pictures")).to(dtype)
    y = torch.arange(train + test)
    return Labelled("pictures", x[:train], y[:train], x[train:], y[train:], names=tuple(map(str, y.tolist())))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(2, 9))
def test_every_so_many_th_is_a_test_sample_and_nothing_is_lost(train: int, test: int, every: int) -> None:
    data = pictures(train, test)
    if every > train + test:
        with pytest.raises(UserError, match=f"^every = {every}: must be a whole number between 2 and {train + test}$"):
            resplit(data, every)
        return
    made = resplit(data, every)
    wanted = list(range(0, train + test, every))
    assert made.test_y.tolist() == wanted and made.name == data.name and made.names == data.names
    assert made.train_y.tolist() == [n for n in range(train + test) if n not in wanted]
    x = torch.cat([data.train_x, data.test_x])
    assert torch.equal(made.train_x, x[made.train_y]) and torch.equal(made.test_x, x[made.test_y])


@pytest.mark.parametrize("every", [1, 0, -3, 10, 2.0])
def test_a_split_that_leaves_a_part_empty_is_refused(every: int) -> None:
    with pytest.raises(UserError) as caught:
        resplit(pictures(), every)
    assert str(caught.value) == f"every = {every!r}: must be a whole number between 2 and 9"


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("pixels", [0, 1, 3])
def test_borders_are_black_and_leave_the_picture_alone(pixels: int, dtype: torch.dtype) -> None:
    data = pictures(dtype=dtype)
    made = padded(data, pixels)
    assert made.shape == (1, 2 + 2 * pixels, 3 + 2 * pixels) and made.train_y is data.train_y
    for x, old in ((made.train_x, data.train_x), (made.test_x, data.test_x)):
        inner = x[:, :, pixels : pixels + 2, pixels : pixels + 3]
        assert torch.equal(inner, old) and x.dtype == dtype and int(x.sum()) == int(old.sum())


def test_a_border_of_less_than_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"^pixels = -1: must be"):
        padded(pictures(), -1)


def test_grey_images_become_three_equal_channels() -> None:
    data = pictures()
    made = coloured(data)
    assert made.shape == (3, 2, 3) and made.test_y is data.test_y
    for x, old in ((made.train_x, data.train_x), (made.test_x, data.test_x)):
        assert len(x) == len(old) and x.dtype == old.dtype and all(torch.equal(x[:, [c]], old) for c in range(3))
