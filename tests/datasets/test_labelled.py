"""Labelled images: what is refused, which samples of a class are kept, and what resizing does to a picture."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cllib.datasets.labelled import Labelled, coloured, first, nth_of_class, padded, resized, resplit, subset
from cllib.errors import UserError
from cllib.streams.scenarios import only, permuted, sequence, split
from cllib.virtual_device import NAME

LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def labelled(train_y: list[int], test_y: list[int], classes: int = 4) -> Labelled:
    """Images [N, 1, 2, 3] that are all their position (train) or 100 plus it (test)."""
    train, test = (torch.arange(len(y)).view(-1, 1, 1, 1).expand(-1, 1, 2, 3) for y in (train_y, test_y))
    names = tuple("abcdefgh"[:classes])
    return Labelled("letters", train, torch.tensor(train_y), test + 100, torch.tensor(test_y), names)


def positions(x: Tensor) -> list[int]:
    return x[:, 0, 0, 0].tolist()


def test_classes_are_counted_by_name_and_shape_is_one_image() -> None:
    data = labelled([0, 1], [2])
    assert data.classes == 4 and data.shape == (1, 2, 3)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(("label", "shown"), [(4, "0 .. 4"), (-1, "-1 .. 0")])
def test_labels_that_are_no_classes_are_refused(part: str, label: int, shown: str) -> None:
    data = labelled([0, 0, 1], [0, 0, 1])
    y = torch.tensor([0, label, 0])
    with pytest.raises(UserError) as caught:
        replace(data, **{f"{part}_y": y})
    assert str(caught.value) == f"letters: {part} labels {shown}; there are 4 classes"
    assert replace(data, **{f"{part}_y": y.clamp(0, 3)}).classes == 4  # the last class and the first are classes


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize(("images", "labels"), [(0, 0), (3, 2), (2, 3)])
def test_images_and_labels_must_pair_and_be_some(part: str, images: int, labels: int) -> None:
    x, y = torch.zeros(images, 1, 2, 3), torch.zeros(labels, dtype=torch.long)
    with pytest.raises(UserError, match=rf"letters: {images} {part} images with {labels} labels"):
        replace(labelled([0, 1], [0, 1]), **{f"{part}_x": x, f"{part}_y": y})


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
def test_labels_are_whole_numbers_of_64_bits(part: str, dtype: torch.dtype) -> None:
    with pytest.raises(UserError) as caught:
        replace(labelled([0, 1], [0, 1]), **{f"{part}_y": torch.tensor([0, 1], dtype=dtype)})
    assert str(caught.value) == f"letters: {part} labels are {dtype}; they must be torch.int64"


@pytest.mark.parametrize("shape", [(1, 2, 4), (3, 2, 3), (6,)])
def test_train_and_test_images_have_one_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as caught:
        replace(labelled([0, 1], [0, 1]), test_x=torch.zeros(2, *shape))
    assert all(part in str(caught.value) for part in ("letters: ", f"[1, 2, 3] and {list(shape)}"))


@given(LABELS)
@settings(max_examples=50, deadline=None)
def test_nth_of_class_counts_those_before(labels: list[int]) -> None:
    expected = [labels[:row].count(label) for row, label in enumerate(labels)]
    assert nth_of_class(torch.tensor(labels), 4).tolist() == expected


@given(LABELS, st.none() | st.integers(0, 12))
@settings(max_examples=50, deadline=None)
def test_first_keeps_so_many_of_each_class_or_all(labels: list[int], count: int | None) -> None:
    expected = [count is None or labels[:row].count(label) < count for row, label in enumerate(labels)]
    assert first(torch.tensor(labels), 4, count).tolist() == expected


@given(LABELS, LABELS, st.none() | st.integers(1, 12), st.none() | st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_a_subset_is_the_first_of_each_class_in_order(
    train_y: list[int], test_y: list[int], train: int | None, test: int | None
) -> None:
    data = labelled(train_y, test_y)
    few = subset(data, train, test)
    kept = [row for row, y in enumerate(train_y) if train is None or train_y[:row].count(y) < train]
    kept_test = [row for row, y in enumerate(test_y) if test is None or test_y[:row].count(y) < test]
    assert positions(few.train_x) == kept and positions(few.test_x) == [100 + row for row in kept_test]
    assert few.train_y.tolist() == [train_y[row] for row in kept]
    assert few.test_y.tolist() == [test_y[row] for row in kept_test]
    assert few.names == data.names and few.name == data.name


def test_shrinking_averages_and_rounds() -> None:
    """Four squares of one grey each keep them, away from the borders; stripes become their average, not a sample."""
    greys = torch.tensor([[0, 255], [101, 30]], dtype=torch.uint8)
    x = greys.repeat_interleave(12, 0).repeat_interleave(12, 1)[None, None]  # [1, 1, 24, 24]
    stripes = torch.tensor([10, 11, 14], dtype=torch.uint8).repeat(24, 8)[None, None]  # 11.67 on average
    data = replace(labelled([0], [0]), train_x=x, test_x=stripes)
    small = resized(data, 8)
    assert small.train_x.dtype == small.test_x.dtype == torch.uint8 and small.shape == (1, 8, 8)
    assert small.train_x[0, 0, 1::5, 1::5].tolist() == greys.tolist()
    assert (small.test_x[0, 0, :, 1:7] == 12).all()
    assert small.names == data.names and small.train_y.tolist() == [0]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_any_size_becomes_square_and_one_grey_stays(height: int, width: int, side: int) -> None:
    data = replace(
        labelled([0, 1], [2]),
        train_x=torch.full((2, 3, height, width), 200, dtype=torch.uint8),
        test_x=torch.full((1, 3, height, width), 7, dtype=torch.uint8),
    )
    small = resized(data, side)
    assert small.train_x.shape == (2, 3, side, side) and small.test_x.shape == (1, 3, side, side)
    assert (small.train_x == 200).all() and (small.test_x == 7).all()


def test_floats_are_not_rounded_and_what_fits_is_left_alone() -> None:
    x = torch.tensor([0.0, 0.5, 0.25, 0.75]).view(1, 1, 2, 2)
    data = replace(labelled([0], [0]), train_x=x, test_x=1 - x)
    assert resized(data, 2) is data
    small = resized(data, 1)
    assert small.train_x.item() == pytest.approx(0.375) and small.test_x.item() == pytest.approx(0.625)


@pytest.mark.parametrize("side", [0, -3])
def test_an_impossible_side_is_named(side: int) -> None:
    with pytest.raises(UserError, match=f"image_size = {side}: must be a whole number at least 1"):
        resized(labelled([0], [0]), side)


def moved(data: Labelled, device: str) -> Labelled:
    names = ("train_x", "train_y", "test_x", "test_y")
    return replace(data, **{name: getattr(data, name).to(device) for name in names})


CHANGES: dict[str, Callable[[Labelled], Labelled | list[Labelled]]] = {
    "subset": lambda data: subset(data, 2, 1),
    "resplit": lambda data: resplit(data, 3),
    "padded": lambda data: padded(data, 1),
    "coloured": coloured,
    "only": lambda data: only(data, (2, 0)),
    "split": lambda data: split(data, 2),
    "permuted": lambda data: permuted(data, 2, 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_data_on_a_device_stay_there_and_become_what_they_become_on_the_cpu(name: str) -> None:
    data = labelled([0, 1, 2, 3, 0, 1, 2, 3, 0, 2], [3, 2, 1, 0, 0, 1])
    made = CHANGES[name](data), CHANGES[name](moved(data, NAME))
    here, there = (part if isinstance(part, list) else [part] for part in made)
    for a, b in zip(here, there, strict=True):
        for part in ("train_x", "train_y", "test_x", "test_y"):
            assert getattr(b, part).device.type == NAME and torch.equal(getattr(a, part), getattr(b, part).cpu())


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_a_stream_can_be_made_on_a_device(scenario: str) -> None:
    data = labelled([0, 1, 2, 3] * 3, [3, 2, 1, 0])
    here, there = (sequence("s", split(d, 2), scenario, 0.3) for d in (data, moved(data, NAME)))
    for a, b in zip(
        (*here.experiences, *here.tests, *here.validations),
        (*there.experiences, *there.tests, *there.validations),
        strict=True,
    ):
        assert torch.equal(a.x, b.x.cpu()) and torch.equal(a.y, b.y.cpu()) and a.classes == b.classes


def test_counting_inside_classes_takes_labels_wherever_they_are() -> None:
    y = torch.tensor([1, 0, 1, 1, 2, 0])
    assert nth_of_class(y.to(NAME), 3).tolist() == nth_of_class(y, 3).tolist() == [0, 0, 1, 2, 0, 1]
