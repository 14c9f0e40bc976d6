"""Streams and their parts: names, shapes, what a network is shown, and who competes with whom."""

from dataclasses import replace

import pytest
import torch

from cllib.errors import UserError
from cllib.streams import Experience, Stream, orders, thinned
from cllib.streams.base import flattened, inputs

GROUPS = ((0, 3), (1,), (2, 4))


def images(count: int, classes: tuple[int, ...], start: int) -> Experience:
    """uint8 images [count, 2, 3, 4] of consecutive values."""
    x = (torch.arange(count * 24) + start).remainder(256).to(torch.uint8).view(count, 2, 3, 4)
    y = torch.tensor([classes[k % len(classes)] for k in range(count)])
    return Experience(x, y, classes)


@pytest.fixture
def stream() -> Stream:
    """Three experiences of 6, 7 and 8 images, two test and one validation set, five classes."""
    trains = tuple(images(6 + k, group, 10 * k) for k, group in enumerate(GROUPS))
    tests = tuple(images(2, group, 100 + k) for k, group in enumerate(GROUPS[:2]))
    return Stream("pictures", 5, trains, tests, (images(3, GROUPS[0], 200),), note="small")


def parts(stream: Stream) -> tuple[Experience, ...]:
    return (*stream.experiences, *stream.tests, *stream.validations)


@pytest.mark.parametrize(
    ("classes", "domain", "name"),
    [((2,), None, "c2"), ((2,), 0, "c2 d0"), ((2, 5, 7), None, "3 classes"), ((2, 5), 1, "2 classes d1")],
)
def test_an_experience_is_named_by_class_and_domain(classes: tuple[int, ...], domain: int | None, name: str) -> None:
    assert replace(images(4, classes, 0), domain=domain).name == name


def test_pixels_become_floats_in_zero_to_one() -> None:
    x = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    shown = inputs(x)
    assert shown.dtype == torch.float32 and shown.shape == x.shape
    assert shown.flatten().tolist() == pytest.approx([k / 255 for k in range(256)])
    assert x.flatten().tolist() == list(range(256))  # what is stored stays as it is


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_anything_but_pixels_is_shown_as_it_is(dtype: torch.dtype) -> None:
    x = torch.tensor([[-3, 300]], dtype=dtype)
    assert inputs(x) is x


def test_shape_is_that_of_one_sample(stream: Stream) -> None:
    assert stream.shape == (2, 3, 4) and stream.inputs == 24
    rows = replace(stream, experiences=(Experience(torch.zeros(5, 7), torch.zeros(5), (0,)),))
    assert rows.shape == (7,) and rows.inputs == 7 and len(rows) == 5


def test_a_flattened_stream_has_rows_of_floats_everywhere(stream: Stream) -> None:
    flat = flattened(stream)
    assert flat.shape == (24,) and flat.inputs == 24
    for row, image in zip(parts(flat), parts(stream), strict=True):
        assert row.x.dtype == torch.float32
        assert (row.x * 255).round().to(torch.uint8).tolist() == image.x.reshape(-1, 24).tolist()
        assert torch.equal(row.y, image.y) and row.classes == image.classes
    assert replace(flat, experiences=(), tests=(), validations=()) == replace(
        stream, experiences=(), tests=(), validations=()
    )
    for again, row in zip(parts(flattened(flat)), parts(flat), strict=True):
        assert torch.equal(again.x, row.x)


def test_a_flattened_stream_of_floats_keeps_its_values(stream: Stream) -> None:
    flat = flattened(stream.map(lambda e: replace(e, x=e.x.float())))
    assert torch.equal(flat.tests[1].x, stream.tests[1].x.view(2, 24).float())


def test_flattened_pixels_in_rows_are_floats_too(stream: Stream) -> None:
    rows = stream.map(lambda e: replace(e, x=e.x.flatten(1)))
    for row, flat in zip(parts(flattened(rows)), parts(flattened(stream)), strict=True):
        assert row.x.dtype == torch.float32 and torch.equal(row.x, flat.x)


def test_map_changes_every_part_and_nothing_else(stream: Stream) -> None:
    changed = stream.map(lambda e: replace(e, domain=len(e)))
    assert [e.domain for e in changed.experiences] == [6, 7, 8]
    assert [e.domain for e in changed.tests] == [2, 2] and [e.domain for e in changed.validations] == [3]
    assert [e.domain for e in parts(stream)] == [None] * 6
    assert (
        replace(changed, experiences=stream.experiences, tests=stream.tests, validations=stream.validations) == stream
    )


def test_a_stream_moves_whole(stream: Stream) -> None:
    moved = stream.to("meta")
    assert [(e.x.device.type, e.y.device.type) for e in parts(moved)] == [("meta", "meta")] * 6
    assert len(moved) == len(stream) == 21


@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_all_classes_compete_unless_the_task_is_told(stream: Stream, scenario: str) -> None:
    assert replace(stream, scenario=scenario).rivals() is None


def test_in_the_task_scenario_the_classes_of_an_experience_compete(stream: Stream) -> None:
    expected = {0: [0, 3], 3: [0, 3], 1: [1], 2: [2, 4], 4: [2, 4]}
    for tests in (tuple(images(2, group, 100) for group in GROUPS), ()):  # with and without tests
        tasks = replace(stream, tests=tests, scenario="task")
        mask = tasks.rivals()
        assert mask is not None and mask.dtype == torch.bool and mask.shape == (5, 5)
        assert {c: mask[c].nonzero().flatten().tolist() for c in range(5)} == expected
        assert tasks.to("meta").rivals().device.type == "meta"


@pytest.mark.parametrize("every", [1, 2, 5, 100])
def test_a_thinned_stream_keeps_images_with_their_labels_and_all_tests(stream: Stream, every: int) -> None:
    thin = thinned(stream, every)
    for few, whole in zip(thin.experiences, stream.experiences, strict=True):
        kept = list(range(0, len(whole), every))
        assert few.x.tolist() == whole.x[kept].tolist() and few.y.tolist() == whole.y[kept].tolist()
    assert thin.tests == stream.tests and thin.validations == stream.validations
    assert thin.whole == (every == 1)
    assert not thinned(replace(stream, whole=False), 1).whole  # once a part, always a part


def test_orders_are_permutations_of_each_experience(stream: Stream) -> None:
    drawn = orders(stream, [torch.Generator().manual_seed(seed) for seed in (0, 1)])
    assert [order.shape for order in drawn] == [(2, 6), (2, 7), (2, 8)]
    for order in drawn:
        assert torch.equal(order.sort(1).values, torch.arange(order.shape[1]).expand(2, -1))
        assert not torch.equal(order[0], order[1])


# --- streams that would give a number which says nothing ---


@pytest.mark.parametrize("count", [1, 3])
def test_a_told_task_of_one_class_leaves_nothing_to_ask(stream: Stream, count: int) -> None:
    apart = tuple(images(2, (c,), c) for c in range(count))
    with pytest.raises(UserError, match="one class an experience leaves nothing to ask in scenario = 'task'"):
        replace(stream, tests=apart, scenario="task").ask_something()
    replace(stream, tests=apart, scenario="class").ask_something()
    replace(stream, tests=(*apart, images(2, (0, 3), 0)), scenario="task").ask_something()


@pytest.mark.parametrize("kind", ["experiences", "tests", "validations"])
@pytest.mark.parametrize("labels", [(0, 5), (-1, 2), (12, 13)])
def test_labels_are_classes_of_the_stream(stream: Stream, kind: str, labels: tuple[int, ...]) -> None:
    named, labelled = images(4, labels, 0), replace(images(4, (0, 4), 0), y=torch.tensor([*labels, *labels]))
    for part in (named, labelled):
        with pytest.raises(UserError, match=r"stream 'pictures': labels .*, must lie within 0 to 4"):
            replace(stream, **{kind: (images(4, (0, 4), 0), part)})
