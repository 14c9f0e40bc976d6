"""Streams of labelled images: who is in which experience under which label, and what `StreamConfig` refuses."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cllib.datasets import digits
from cllib.datasets.files import cache_folder
from cllib.datasets.labelled import Labelled, resized, subset
from cllib.errors import UserError
from cllib.streams import Experience, Stream, StreamConfig, domains, merged, permuted, scenarios, sequence, split

TESTS = 1000  # test samples are numbered from here


def labelled(train_y: Sequence[int], test_y: Sequence[int], classes: int, name: str = "numbers") -> Labelled:
    """Images [N, 1, 1, 1] that are the sample's number."""
    train, test = torch.arange(len(train_y)), torch.arange(len(test_y)) + TESTS
    names = tuple(f"class {c}" for c in range(classes))
    y, test_labels = torch.tensor(train_y), torch.tensor(test_y)
    return Labelled(name, train.view(-1, 1, 1, 1), y, test.view(-1, 1, 1, 1), test_labels, names)


def numbers(x: torch.Tensor) -> list[int]:
    return x.flatten().tolist()


@st.composite
def cases(draw: st.DrawFn, least: int = 1) -> tuple[Labelled, int, tuple[int, ...]]:
    """A data set, `least` of every class in both parts, a number of experiences, and an order of the classes."""
    classes = draw(st.integers(1, 8))
    some = st.lists(st.integers(0, classes - 1), max_size=30).map(lambda more: [*range(classes)] * least + more)
    train, test = (draw(some.flatmap(st.permutations)) for _ in range(2))
    experiences = draw(st.sampled_from([k for k in range(1, classes + 1) if classes % k == 0]))
    return labelled(train, test, classes), experiences, tuple(draw(st.permutations(range(classes))))


# --- split ---


@given(cases())
@settings(max_examples=60, deadline=None)
def test_every_sample_is_in_one_part_labelled_by_the_place_of_its_class(
    case: tuple[Labelled, int, tuple[int, ...]],
) -> None:
    data, experiences, order = case
    parts = split(data, experiences, order)
    size = data.classes // experiences
    assert [part.names for part in parts] == [
        tuple(f"class {c}" for c in order[k : k + size]) for k in range(0, data.classes, size)
    ]
    for own, whole in (("train", numbers(data.train_x)), ("test", numbers(data.test_x))):
        truth = dict(zip(whole, getattr(data, f"{own}_y").tolist(), strict=True))
        seen = []
        for k, part in enumerate(parts):
            samples, labels = numbers(getattr(part, f"{own}_x")), getattr(part, f"{own}_y").tolist()
            assert [order[k * size + label] for label in labels] == [truth[sample] for sample in samples]
            assert samples == sorted(samples)  # as they lie in the file
            seen += samples
        assert sorted(seen) == sorted(whole)


def test_without_an_order_classes_come_as_numbered() -> None:
    parts = split(labelled([3, 2, 1, 0], [0, 1, 2, 3], 4), 2)
    assert [numbers(part.train_x) for part in parts] == [[2, 3], [0, 1]]
    assert [part.train_y.tolist() for part in parts] == [[1, 0], [1, 0]]
    assert [numbers(part.test_x) for part in parts] == [[1000, 1001], [1002, 1003]]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 1, 2, 2), (0, 1, 2, 4), (0, 1, 2, 3, 3), ()])
def test_an_order_names_every_class_once(order: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as caught:
        split(labelled([0, 1, 2, 3], [0, 1, 2, 3], 4), 2, order)
    assert str(caught.value) == f"order = {order}: must name each of the classes 0 .. 3 once"


@pytest.mark.parametrize(
    ("experiences", "message"),
    [(4, "6 classes divide into 1, 2, 3, 6$"), (0, "between 1 and 6"), (7, "between 1 and 6")],
)
def test_classes_divide_into_equal_groups(experiences: int, message: str) -> None:
    with pytest.raises(UserError, match=f"experiences = {experiences}: .*{message}"):
        split(labelled(range(6), range(6), 6), experiences)


@given(st.integers(1, 50), st.integers(0, 2**40))
@settings(max_examples=30, deadline=None)
def test_a_class_order_is_a_permutation_that_belongs_to_its_seed(classes: int, seed: int) -> None:
    order = scenarios.class_order(classes, seed)
    assert sorted(order) == list(range(classes)) and order == scenarios.class_order(classes, seed)


def test_seeds_and_places_draw_different_class_orders() -> None:
    orders = [scenarios.class_order(10, seed) for seed in range(300)]
    assert len(set(orders)) == 300
    counts = np.bincount([order[0] for order in orders], minlength=10)
    assert counts.min() >= 12 and counts.max() <= 52  # 30 expected, standard deviation 5.2


# --- permuted ---


def pictures(channels: int, height: int, width: int) -> Labelled:
    """Three training and two test images; the first has every pixel its position."""
    pixels = channels * height * width
    x = torch.stack([torch.arange(pixels) + 7 * k * torch.arange(pixels) ** 2 for k in range(5)])
    x = x.view(5, channels, height, width)
    return Labelled("pictures", x[:3], torch.tensor([0, 1, 0]), x[3:], torch.tensor([1, 0]), ("a", "b"))


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99), st.booleans())
@settings(max_examples=50, deadline=None)
def test_a_copy_has_its_pixels_permuted_in_train_and_test_alike(
    channels: int, height: int, width: int, experiences: int, seed: int, first: bool
) -> None:
    data = pictures(channels, height, width)
    kept, pixels = data.train_x.clone(), channels * height * width
    parts = permuted(data, experiences, seed, first)
    assert len(parts) == experiences
    for part in parts:
        order = part.train_x[0].flatten()
        assert order.sort().values.tolist() == list(range(pixels))
        assert torch.equal(part.train_x.flatten(1), data.train_x.flatten(1)[:, order])
        assert torch.equal(part.test_x.flatten(1), data.test_x.flatten(1)[:, order])
        assert part.shape == data.shape and part.names == data.names
        assert torch.equal(part.train_y, data.train_y) and torch.equal(part.test_y, data.test_y)
    assert first or torch.equal(parts[0].train_x, data.train_x)
    assert torch.equal(data.train_x, kept)


def drawn(experiences: int, seed: int, first: bool = False) -> list[tuple[int, ...]]:
    return [tuple(numbers(part.train_x[0])) for part in permuted(pictures(1, 4, 4), experiences, seed, first)]


def test_copies_and_seeds_have_permutations_of_their_own() -> None:
    whole = tuple(range(16))
    assert drawn(3, 0)[0] == whole and whole not in drawn(3, 0, first=True) + drawn(3, 0)[1:]
    assert len({*drawn(4, 0, first=True), *drawn(4, 1, first=True)}) == 8


def test_permutations_do_not_depend_on_how_many_there_are_or_on_the_first() -> None:
    assert drawn(5, 3)[:3] == drawn(3, 3) and drawn(3, 3, first=True)[1:] == drawn(3, 3)[1:]


def test_permuted_needs_a_copy() -> None:
    with pytest.raises(UserError, match="experiences = 0: must be a whole number between 1 and 10000"):
        permuted(pictures(1, 2, 2), 0, 0)


# --- domains ---


def test_domains_keep_their_order() -> None:
    parts = [labelled([0, 1], [0, 1], 2, name) for name in "cab"]
    assert domains(parts) == parts


def test_domains_have_one_shape() -> None:
    small = labelled([0, 1], [0, 1], 2, "small")
    large = replace(small, name="large", train_x=torch.zeros(2, 3, 4, 5), test_x=torch.zeros(2, 3, 4, 5))
    with pytest.raises(UserError) as caught:
        domains([small, large])
    message = str(caught.value)
    assert all(part in message for part in ("small [1, 1, 1], large [3, 4, 5]", "image_size"))
    with pytest.raises(UserError, match=r"small \[1, 1, 1\], small \[3, 4, 5\]"):
        domains([small, replace(large, name="small")])


# --- labels of a stream ---

SIZES = (2, 3, 1)  # classes


def unequal() -> list[Labelled]:
    """Three parts of 2, 3 and 1 classes, two training samples and one test sample of each."""
    return [labelled([*range(size), *range(size)], list(range(size)), size) for size in SIZES]


def labels(parts: Sequence[Experience]) -> list[list[int]]:
    return [part.y.tolist() for part in parts]


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_parts_bring_classes_of_their_own(scenario: str) -> None:
    stream = sequence("three", unequal(), scenario)
    assert stream.classes == 6 and stream.scenario == scenario and stream.name == "three" and len(stream) == 12
    assert [e.classes for e in stream.experiences] == [(0, 1), (2, 3, 4), (5,)]
    assert labels(stream.experiences) == [[0, 1, 0, 1], [2, 3, 4, 2, 3, 4], [5, 5]]
    assert [e.classes for e in stream.tests] == [(0, 1), (2, 3, 4), (5,)]
    assert labels(stream.tests) == [[0, 1], [2, 3, 4], [5]]
    assert [e.domain for e in stream.experiences] == [e.domain for e in stream.tests] == [0, 1, 2]
    assert [numbers(e.x) for e in stream.tests] == [[1000, 1001], [1000, 1001, 1002], [1000]]


def test_domains_share_their_labels() -> None:
    stream = sequence("two", unequal()[1:2] * 2, "domain")
    assert stream.classes == 3 and stream.rivals() is None
    assert labels(stream.experiences) == [[0, 1, 2, 0, 1, 2]] * 2 and labels(stream.tests) == [[0, 1, 2]] * 2
    assert [(e.classes, e.domain) for e in stream.experiences] == [((0, 1, 2), 0), ((0, 1, 2), 1)]


def test_parts_of_other_sizes_cannot_share_labels() -> None:
    with pytest.raises(UserError, match=r"scenario = 'domain': parts of \[2, 3, 1\] classes cannot share labels"):
        sequence("three", unequal(), "domain")


def test_only_the_told_task_narrows_the_rivals() -> None:
    assert sequence("three", unequal(), "class").rivals() is None
    mask = sequence("three", unequal(), "task").rivals()
    own = [[0, 1], [0, 1], [2, 3, 4], [2, 3, 4], [2, 3, 4], [5]]
    assert mask is not None and [row.nonzero().flatten().tolist() for row in mask] == own


@pytest.mark.parametrize(("option", "value"), [("scenario", "tasks"), ("validation", 0.95), ("validation", -0.1)])
def test_impossible_sequences_are_named(option: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{option} = {value!r}: "):
        sequence("three", unequal(), **({"scenario": "class"} | {option: value}))


@given(cases(least=2), st.floats(0, 0.9))
@settings(max_examples=60, deadline=None)
def test_validation_is_the_end_of_every_class_and_not_trained_on(
    case: tuple[Labelled, int, tuple[int, ...]], share: float
) -> None:
    data, experiences, order = case
    parts = split(data, experiences, order)
    stream = sequence("held", parts, "class", share)
    whole = sequence("whole", parts, "class")
    assert whole.validations == () and len(stream.validations) == (experiences if share else 0)
    assert labels(stream.tests) == labels(whole.tests)
    if not share:
        assert labels(stream.experiences) == labels(whole.experiences)
        return
    for train, held, every in zip(stream.experiences, stream.validations, whole.experiences, strict=True):
        assert held.classes == every.classes and held.domain == every.domain
        for c in every.classes:
            kept, aside, own = (numbers(e.x[e.y == c]) for e in (train, held, every))
            assert kept + aside == own and kept and aside
            assert abs(len(aside) - share * len(own)) <= 0.5 + 1e-9 or 1 in (len(kept), len(aside))


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9])
def test_a_class_of_one_sample_leaves_none_for_validation(share: float) -> None:
    parts = [labelled([0, 1, 0, 1], [0, 1], 2), labelled([0, 0, 1], [0, 1], 2, "letters")]
    with pytest.raises(UserError, match=f"validation = {share}: letters has a class with one training sample only"):
        sequence("held", parts, "class", share)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.9])
def test_of_two_samples_one_is_kept_aside(share: float) -> None:
    stream = sequence("held", [labelled([0, 0, 1, 1], [0, 1], 2)], "class", share)
    assert numbers(stream.experiences[0].x) == [0, 2] and numbers(stream.validations[0].x) == [1, 3]


def test_validation_takes_its_share_of_every_class() -> None:
    data = labelled([0] * 10 + [1] * 20 + [0] * 10, [0, 1], 2)
    stream = sequence("held", [data], "class", 0.25)
    assert numbers(stream.experiences[0].x) == [*range(25), *range(30, 35)]
    assert numbers(stream.validations[0].x) == [*range(25, 30), *range(35, 40)]
    assert stream.validations[0].y.tolist() == [1] * 5 + [0] * 5


@given(cases(least=2))
@settings(max_examples=30, deadline=None)
def test_a_merged_stream_is_all_of_it_at_once(case: tuple[Labelled, int, tuple[int, ...]]) -> None:
    data, experiences, order = case
    stream = sequence("split", split(data, experiences, order), "class", 0.3)
    (one,) = merged(stream).experiences
    assert one.y.tolist() == [label for y in labels(stream.experiences) for label in y]
    assert numbers(one.x) == [sample for e in stream.experiences for sample in numbers(e.x)]
    assert one.classes == tuple(range(data.classes)) and one.domain is None
    assert merged(stream).tests == stream.tests and merged(stream).validations == stream.validations
    assert merged(stream).name == "split, merged" and merged(stream).classes == stream.classes


def test_a_merged_stream_keeps_its_rivals() -> None:
    stream = sequence("three", unequal(), "task")
    assert torch.equal(merged(stream).rivals(), stream.rivals())
    assert merged(sequence("three", unequal(), "class")).rivals() is None


def test_merged_domains_share_their_classes() -> None:
    stream = merged(sequence("two", unequal()[1:2] * 2, "domain"))
    assert stream.experiences[0].classes == (0, 1, 2) and len(stream) == 12 and len(stream.tests) == 2


# --- StreamConfig ---


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"kind": "rotated"}, ["kind = 'rotated'", "split, permuted, domains"]),
        ({"scenario": "tasks"}, ["scenario = 'tasks'", "class, task, domain"]),
        ({"datasets": ("digits", "emnist"), "kind": "domains"}, ["datasets = 'emnist'", "digits, mnist"]),
        ({"datasets": ("digits", "mnist")}, ["datasets = ('digits', 'mnist')", "kind = 'split'"]),
        ({"datasets": ("digits", "mnist"), "kind": "permuted"}, ["datasets = ('digits', 'mnist')", "'permuted'"]),
        ({"datasets": ()}, ["datasets = ()"]),
        ({"datasets": "digits"}, ["datasets = 'digits'", "list of digits, mnist"]),
        ({"datasets": ("mnist",), "kind": "domains"}, ["datasets = ('mnist',)", "kind = 'domains' takes two or more"]),
        ({"order": tuple(range(10)), "order_seed": 0}, ["order = (0, 1, 2", "order_seed"]),
        ({"order": (1, 0), "kind": "permuted"}, ["order = (1, 0)", "kind = 'split'"]),
        ({"order": (1, 0), "kind": "domains", "datasets": ("digits", "mnist")}, ["order = (1, 0)", "kind = 'split'"]),
        ({"order_seed": 3, "kind": "permuted"}, ["order_seed = 3", "kind = 'split'"]),
        ({"order_seed": 0, "kind": "permuted"}, ["order_seed = 0", "kind = 'split'"]),
        ({"permutation_seed": 3}, ["permutation_seed = 3", "kind = 'permuted'"]),
        ({"permute_first": True}, ["permute_first = True", "kind = 'permuted'"]),
        ({"experiences": 2, "kind": "domains", "datasets": ("digits", "mnist")}, ["experiences = 2", "'domains'"]),
        ({"datasets": ("folder",)}, ["datasets = 'folder'", "data_dir"]),
        ({"datasets": ("mnist", "folder"), "kind": "domains"}, ["datasets = 'folder'", "data_dir"]),
        ({"experiences": 0}, ["experiences = 0", "at least 1"]),
        ({"experiences": float("nan")}, ["experiences = nan"]),
        ({"experiences": "5"}, ["experiences = '5'"]),
        ({"experiences": 5.0}, ["experiences = 5.0", "whole number"]),
        ({"experiences": 2.5}, ["experiences = 2.5", "whole number"]),
        ({"image_size": 8.5}, ["image_size = 8.5", "whole number"]),
        ({"train_size": 2.5}, ["train_size = 2.5", "whole number"]),
        ({"order_seed": -1}, ["order_seed = -1", "at least 0"]),
        ({"permutation_seed": 0.5, "kind": "permuted"}, ["permutation_seed = 0.5", "whole number"]),
        ({"validation": -0.1}, ["validation = -0.1", "between 0 and 0.9"]),
        ({"validation": 0.91}, ["validation = 0.91", "between 0 and 0.9"]),
        ({"image_size": 0}, ["image_size = 0", "at least 1"]),
        ({"train_size": 0}, ["train_size = 0", "at least 1"]),
        ({"test_size": -1}, ["test_size = -1", "at least 1"]),
    ],
)
def test_an_impossible_option_is_named_at_once(options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        StreamConfig(**options)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [] and "\n" not in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiences": 3}, "experiences = 3: 10 classes divide into 1, 2, 5, 10"),
        ({"experiences": 20}, "experiences = 20: must be a whole number between 1 and 10"),
        ({"train_size": 1, "validation": 0.5}, "validation = 0.5: digits has a class with one training sample"),
        ({"order": (0, 1)}, r"order = \(0, 1\): must name each of the classes 0 .. 9 once"),
    ],
)
def test_what_the_data_does_not_allow_is_named_when_it_is_there(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StreamConfig(**options).build()


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_digits_are_split(scenario: str) -> None:
    stream = StreamConfig(scenario=scenario).build()
    assert stream.name == f"split-digits-5-{scenario}" and stream.scenario == scenario
    assert stream.whole and stream.note == "" and not stream.validations and stream.shape == (1, 8, 8)
    assert len(stream.experiences) == len(stream.tests) == 5 and len(stream) == 1437
    pairs = [(0, 1)] * 5 if scenario == "domain" else [(2 * k, 2 * k + 1) for k in range(5)]
    assert [e.classes for e in stream.experiences] == [e.classes for e in stream.tests] == pairs
    assert stream.classes == (2 if scenario == "domain" else 10)
    data = digits.labelled()
    for k, (train, test) in enumerate(zip(stream.experiences, stream.tests, strict=True)):
        shift = 2 * k if scenario == "domain" else 0
        for part, x, y in ((train, data.train_x, data.train_y), (test, data.test_x, data.test_y)):
            own = y // 2 == k
            assert torch.equal(part.x, x[own]) and torch.equal(part.y + shift, y[own])


@pytest.mark.parametrize(("scenario", "classes"), [("class", 30), ("task", 30), ("domain", 10)])
def test_digits_are_permuted(scenario: str, classes: int) -> None:
    config = StreamConfig(kind="permuted", scenario=scenario, experiences=3)
    stream, data = config.build(), digits.labelled()
    assert stream.name == f"permuted-digits-3-{scenario}" and stream.classes == classes and len(stream) == 3 * 1437
    assert torch.equal(stream.experiences[0].x, data.train_x) and torch.equal(stream.tests[0].x, data.test_x)
    for k, (train, test) in enumerate(zip(stream.experiences, stream.tests, strict=True)):
        start = 0 if scenario == "domain" else 10 * k
        assert torch.equal(train.y - start, data.train_y) and torch.equal(test.y - start, data.test_y)
    orders = permuted(data, 3, 0)
    assert all(torch.equal(e.x, part.train_x) for e, part in zip(stream.experiences, orders, strict=True))
    assert not torch.equal(replace(config, permutation_seed=1).build().tests[1].x, stream.tests[1].x)
    first = replace(config, permute_first=True, permutation_seed=1).build()
    assert torch.equal(first.tests[0].x, permuted(data, 3, 1, first=True)[0].test_x)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """MNIST, Fashion-MNIST and CIFAR-10 as digits with another grey; what was asked for is noted."""
    calls = []

    def load(name: str, root: Path, download: bool) -> Labelled:
        calls.append((name, root, download))
        data, grey = digits.labelled(), {"mnist": 0.1, "fashion_mnist": 0.2, "cifar10": 0.3}[name]
        return replace(
            data, name=name, train_x=torch.full_like(data.train_x, grey), test_x=torch.full_like(data.test_x, grey)
        )

    monkeypatch.setattr(scenarios.mnist, "load", load)
    monkeypatch.setattr(scenarios.cifar, "load", load)
    return calls


@pytest.mark.parametrize(("scenario", "classes"), [("class", 40), ("task", 40), ("domain", 10)])
def test_data_sets_follow_each_other(asked: list[tuple[Any, ...]], scenario: str, classes: int) -> None:
    names = ("fashion_mnist", "digits", "cifar10", "mnist")
    stream = StreamConfig("domains", names, scenario, data_dir="there").build()
    assert stream.name == f"domains-fashion_mnist-digits-cifar10-mnist-4-{scenario}" and stream.classes == classes
    assert len(stream.experiences) == len(stream.tests) == 4
    assert asked == [(name, Path("there"), True) for name in ("fashion_mnist", "cifar10", "mnist")]
    first = [e.x[0].mean().item() for e in (*stream.experiences, *stream.tests)]
    assert [first[k] for k in (0, 2, 3, 4, 6, 7)] == pytest.approx([0.2, 0.3, 0.1] * 2)
    assert torch.equal(stream.experiences[1].x, digits.labelled().train_x)


def test_data_lies_in_the_cache_folder_unless_told(
    asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLLIB_CACHE", str(tmp_path))
    StreamConfig(datasets=("mnist",)).build()
    assert asked == [("mnist", cache_folder(), True)] and cache_folder() == tmp_path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Four class folders of four 12 x 10 images of one grey."""
    for c in range(4):
        for k in range(4):
            path = tmp_path / f"pet{c}" / f"{k}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((10, 12), 50 * c + k, np.uint8)).save(path)
    return tmp_path


def test_own_images_are_split_at_32_pixels_or_as_told(pets: Path) -> None:
    config = StreamConfig(datasets=("folder",), experiences=2, data_dir=str(pets))
    stream = config.build()
    assert stream.shape == (3, 32, 32) and stream.name == f"split-{pets.name}-2-class"
    assert [e.x[:, 0, 5, 5].tolist() for e in stream.experiences] == [
        [0, 1, 2, 50, 51, 52],
        [100, 101, 102, 150, 151, 152],
    ]
    assert [e.x[:, 0, 5, 5].tolist() for e in stream.tests] == [[3, 53], [103, 153]]
    noise = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    Image.fromarray(noise).save(pets / "pet0" / "0.png")
    sharp = replace(config, image_size=40).build()  # from the file, not from 32 pixels
    assert sharp.experiences[0].x[0, 0].tolist() == noise[:, 5:45].tolist()


def test_grey_and_coloured_images_are_no_domains_of_one_stream(pets: Path) -> None:
    with pytest.raises(UserError, match="images of different shapes"):
        StreamConfig("domains", ("digits", "folder"), image_size=8, data_dir=str(pets)).build()


def same(one: Stream, other: Stream) -> bool:
    pairs = zip((*one.experiences, *one.tests), (*other.experiences, *other.tests), strict=True)
    return all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in pairs)


def test_an_order_seed_draws_the_same_order_again_and_says_it() -> None:
    config = StreamConfig(order_seed=3)
    order = scenarios.class_order(10, 3)
    assert order != tuple(range(10))
    stream = config.build()
    assert same(stream, config.build()) and same(stream, StreamConfig(order=order).build())
    assert stream.note == "order_seed 3" and not same(stream, StreamConfig(order_seed=4).build())
    data = digits.labelled()
    assert torch.equal(stream.experiences[0].x, data.train_x[(data.train_y == order[0]) | (data.train_y == order[1])])


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({}, ""),
        ({"experiences": 2, "scenario": "task"}, ""),  # the name says it
        ({"order": (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)}, "order (9, 8, 7, 6, 5, 4, 3, 2, 1, 0)"),
        ({"order_seed": 0}, "order_seed 0"),  # another order than None
        ({"kind": "permuted", "permutation_seed": 2, "permute_first": True}, "permutation_seed 2, permute_first True"),
        ({"image_size": 5, "train_size": 9, "test_size": 3}, "image_size 5, train_size 9, test_size 3"),
        ({"order_seed": 3, "validation": 0.25}, "order_seed 3, validation 0.25"),
    ],
)
def test_options_that_the_name_does_not_say_are_noted(options: dict[str, Any], note: str) -> None:
    assert StreamConfig(**options).build().note == StreamConfig(**options).note == note


def test_streams_of_other_counts_have_other_names() -> None:
    assert [StreamConfig(experiences=count).build().name for count in (2, None)] == [
        "split-digits-2-class",
        "split-digits-5-class",
    ]


def test_sizes_keep_the_first_of_every_class() -> None:
    stream = StreamConfig(train_size=7, test_size=3).build()
    assert [torch.bincount(e.y, minlength=10).max().item() for e in stream.experiences] == [7] * 5
    assert len(stream) == 70 and [len(e) for e in stream.tests] == [6] * 5 and not stream.whole
    data = digits.labelled()
    assert torch.equal(stream.tests[1].x[stream.tests[1].y == 2], data.test_x[data.test_y == 2][:3])
    assert torch.equal(stream.experiences[4].x[stream.experiences[4].y == 9], data.train_x[data.train_y == 9][:7])
    for option in ({"train_size": 5}, {"test_size": 5}, {"validation": 0.1}):
        assert not StreamConfig(**option).build().whole


def test_validation_comes_out_of_what_train_size_leaves() -> None:
    stream = StreamConfig(train_size=10, validation=0.2).build()
    assert [len(e) for e in stream.experiences] == [16] * 5 and [len(e) for e in stream.validations] == [4] * 5
    assert [sorted(set(e.y.tolist())) for e in stream.validations] == [[2 * k, 2 * k + 1] for k in range(5)]
    few = StreamConfig(train_size=4, validation=0.1).build()  # 0.4 of a sample
    assert [len(e) for e in few.experiences] == [6] * 5 and [len(e) for e in few.validations] == [2] * 5


def test_images_are_resized() -> None:
    stream = StreamConfig(image_size=5, train_size=2).build()
    data = resized(subset(digits.labelled(), 2), 5)
    assert stream.shape == (1, 5, 5) and torch.equal(stream.experiences[1].x, data.train_x[data.train_y // 2 == 1])
    assert torch.equal(stream.tests[1].x, data.test_x[data.test_y // 2 == 1])


def test_a_class_a_task_leaves_nothing_to_ask() -> None:
    parts = split(digits.labelled(), 10)
    with pytest.raises(UserError, match="stream 'ten': one class an experience leaves nothing to ask") as told:
        sequence("ten", parts, "task")
    assert len(str(told.value).splitlines()) == 1
    assert len(sequence("ten", parts, "class").experiences) == 10
    assert sequence("five", split(digits.labelled(), 5), "task").rivals() is not None
