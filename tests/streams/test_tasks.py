"""Task sequences by keyword: which data under which labels, permutations, groups; and streams of subsets."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cllib.datasets import cifar, cifar_features, digits, fashion_6k, mnist, tiny_imagenet, usps
from cllib.datasets.labelled import Labelled, subset
from cllib.errors import UserError
from cllib.streams import KEYWORDS, Stream, TaskSequence, permuted, subsets, tasks

ALL = tuple(range(10))


def noise(
    name: str, classes: int = 10, shape: tuple[int, ...] = (1, 28, 28), train: int = 3, test: int = 2
) -> Labelled:
    """So many images of each class, of noise, in mixed order."""
    draws = torch.Generator().manual_seed(sum(map(ord, name)))

    def part(each: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(classes).repeat(each)[torch.randperm(classes * each, generator=draws)]
        return torch.randint(0, 256, (len(y), *shape), dtype=torch.uint8, generator=draws), y

    return Labelled(name, *part(train), *part(test), tuple(f"class {c}" for c in range(classes)))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the data sets that were loaded; all but those that ship are miniatures."""
    log: list[str] = []

    def small(name: str, root: Path, download: bool = False) -> Labelled:
        log.append(name)
        sizes: dict[str, Any] = {"cifar10": (10, (3, 32, 32)), "cifar100": (100, (3, 32, 32), 1, 1)}
        return noise(name, *sizes.get(name, ()))

    def shipped() -> Labelled:
        log.append("FMNIST-6k")
        return FMNIST

    for module in (mnist, cifar):
        monkeypatch.setattr(module, "load", small)
    monkeypatch.setattr(usps, "load", lambda root: small("USPS", root))
    monkeypatch.setattr(fashion_6k, "load", shipped)
    monkeypatch.setattr(tiny_imagenet, "load", lambda root, seed: noise(f"imgnet {root} {seed}", 20, (3, 64, 64)))
    return log


FMNIST = fashion_6k.load()


def build(*keywords: str, **options: Any) -> Stream:
    return TaskSequence(keywords, **options).build()


def same_samples(stream_x: Tensor, stream_y: Tensor, x: Tensor, y: Tensor) -> bool:
    """Whether two sets of samples are the same, whatever their order."""
    ours, theirs = (torch.cat([a.flatten(1).long(), b[:, None]], 1) for a, b in ((stream_x, stream_y), (x, y)))
    return sorted(ours.tolist()) == sorted(theirs.tolist())


# --- permutations: bijective, seeded, the first task permuted too, training and test samples alike ---


@given(st.integers(0, 2**40), st.integers(2, 12))
@settings(max_examples=30, deadline=None)
def test_permutations_are_bijective_and_shared_by_train_and_test(seed: int, pixels: int) -> None:
    numbered = torch.arange(pixels).view(1, 1, 1, pixels)
    data = Labelled("numbers", numbered, torch.tensor([0]), numbered.repeat(2, 1, 1, 1), torch.tensor([0, 0]), ("a",))
    made = tasks.permuted(data, torch.Generator().manual_seed(seed))
    assert sorted(made.train_x.flatten().tolist()) == list(range(pixels))
    assert torch.equal(made.train_x.repeat(2, 1, 1, 1), made.test_x) and made.train_x.shape == numbered.shape


def test_permuted_tasks_are_seeded_and_the_first_is_permuted_too() -> None:
    few = {"train_size": 3, "test_size": 2}
    stream, again, other = (build(*["pFMNIST-6k"] * 3, seed=seed, **few) for seed in (0, 0, 1))
    plain = build("FMNIST-6k", **few)
    for part in ("experiences", "tests"):
        own, same, others = (getattr(one, part) for one in (stream, again, other))
        unpermuted = getattr(plain, part)[0]
        for k in range(3):
            assert torch.equal(own[k].x, same[k].x) and not torch.equal(own[k].x, others[k].x)
            assert not torch.equal(own[k].x, unpermuted.x) and torch.equal(own[k].y, unpermuted.y)
            assert torch.equal(own[k].x.flatten(1).sort().values, unpermuted.x.flatten(1).sort().values)
            assert not torch.equal(own[k].x, own[k - 1].x)
    expected = permuted(subset(FMNIST, 3, 2), 3, seed=0, first=True)  # the same as for any stream of permutations
    assert [torch.equal(e.x, part.train_x) for e, part in zip(stream.experiences, expected, strict=True)] == [True] * 3
    for e, part in zip(stream.tests, expected, strict=True):
        assert same_samples(e.x, e.y, part.test_x, part.test_y)


def test_other_data_get_other_permutations(loaded: list[str]) -> None:
    alone = build("pMNIST", "pMNIST")
    mixed = build("pFMNIST", "pMNIST")
    assert torch.equal(mixed.experiences[1].x, alone.experiences[1].x)
    assert not torch.equal(mixed.experiences[1].x, alone.experiences[0].x)


# --- which data, under which labels ---


def test_data_sets_follow_each_other_and_share_their_labels(loaded: list[str]) -> None:
    stream = build("MNIST", "USPS", "FMNIST", "FMNIST-6k", "digits", "MNIST")
    assert sorted(loaded) == ["FMNIST-6k", "USPS", "fashion_mnist", "mnist"]  # each once
    assert stream.name == "MNIST, USPS, FMNIST, FMNIST-6k, digits, MNIST" and stream.scenario == "domain"
    assert stream.classes == 10 and stream.shape == (1, 28, 28) and stream.whole and stream.note == ""
    sources = [noise("mnist"), noise("USPS"), noise("fashion_mnist"), FMNIST, None, noise("mnist")]
    for k, (train, test, data) in enumerate(zip(stream.experiences, stream.tests, sources, strict=True)):
        assert train.classes == test.classes == ALL and train.domain == k and train.x.dtype == torch.uint8
        if data:
            assert torch.equal(train.x, data.train_x) and torch.equal(train.y, data.train_y)
            assert same_samples(test.x, test.y, data.test_x, data.test_y)
    assert stream.experiences[0].x.data_ptr() == stream.experiences[5].x.data_ptr()  # no copy


def test_digits_are_enlarged_bytes() -> None:
    stream, small = build("digits"), digits.labelled()
    (train,), (test,) = stream.experiences, stream.tests
    assert (len(train), len(test)) == (1437, 360) and torch.equal(train.y, small.train_y)
    assert train.x.dtype == torch.uint8 and int(train.x.max()) > 200 and train.x.shape[1:] == (1, 28, 28)
    back = torch.nn.functional.interpolate(train.x.float() / 255, (8, 8), mode="bilinear", antialias=True)
    assert (back - small.train_x).abs().mean() < 0.1 < (back - small.train_x.flip(-1)).abs().mean()


@pytest.mark.parametrize(
    ("keyword", "data", "groups"), [("FMNIST-6k-5", "FMNIST-6k", 5), ("MNIST-2", "mnist", 2), ("FMNIST-10", "", 10)]
)
def test_groups_of_classes_keep_their_labels(loaded: list[str], keyword: str, data: str, groups: int) -> None:
    stream, whole = build(keyword), FMNIST if data == "FMNIST-6k" else noise(data or "fashion_mnist")
    size = 10 // groups
    assert len(stream.experiences) == len(stream.tests) == groups
    assert stream.classes == 10 and stream.scenario == ("class" if groups > 1 else "domain")
    for k, (train, test) in enumerate(zip(stream.experiences, stream.tests, strict=True)):
        assert train.classes == test.classes == tuple(range(k * size, k * size + size)) and train.domain == k
        for e, x, y in ((train, whole.train_x, whole.train_y), (test, whole.test_x, whole.test_y)):
            own = y // size == k
            assert same_samples(e.x, e.y, x[own], y[own])


def test_a_repeated_group_keyword_stands_for_all_its_groups_once(loaded: list[str]) -> None:
    once, six = TaskSequence(("imgnet-5",), data_dir="there"), TaskSequence(("imgnet-5",) * 6, data_dir="there")
    assert once.name == six.name == "imgnet-5" and once.note == "" and six.note == "repeated X-N counted once"
    streams = once.build(), six.build()
    for stream in streams:
        assert [e.classes for e in stream.experiences] == [tuple(range(4 * k, 4 * k + 4)) for k in range(5)]
        assert stream.classes == 20 and stream.shape == (3, 64, 64) and stream.scenario == "class"
    assert all(torch.equal(a.x, b.x) for a, b in zip(*(s.experiences for s in streams), strict=True))
    apart = build("FMNIST-6k-2", "digits", "FMNIST-6k-2")  # named again after something else: again
    assert [len(e.classes) for e in apart.experiences] == [5, 5, 10, 5, 5]


def test_seed_and_folder_reach_tiny_imagenet(loaded: list[str]) -> None:
    stream, data = build("imgnet-1", seed=7, data_dir="there"), noise("imgnet there 7", 20, (3, 64, 64))
    assert torch.equal(stream.experiences[0].x, data.train_x) and stream.note == "seed 7"


def test_animals_and_vehicles_are_halves_of_one_head(loaded: list[str]) -> None:
    stream, data = build("animals", "vehicles", "cifar10", features=False), noise("cifar10", 10, (3, 32, 32))
    assert loaded == ["cifar10"] and stream.note == "images, not features"
    assert [e.classes for e in stream.experiences] == [ALL[:5], ALL[5:], ALL] and stream.classes == 10
    relabelled = torch.tensor([5, 6, 0, 1, 2, 3, 4, 7, 8, 9])  # the original's
    for e, x, y in (
        *((e, data.train_x, relabelled[data.train_y]) for e in stream.experiences[:2]),
        *((e, data.test_x, relabelled[data.test_y]) for e in stream.tests[:2]),
    ):
        own = (y < 5) == (e.classes[0] == 0)
        assert same_samples(e.x, e.y, x[own], y[own])
    assert build("animals", features=False).classes == 10


def test_features_of_cifar(loaded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLLIB_CACHE", str(tmp_path))
    assert cifar_features.CROP == 200  # the original's; smaller here
    monkeypatch.setattr(cifar_features, "CROP", 48)
    options = {"backbone": "test_resnet", "backbone_weights": "random", "passes": 2, "train_size": 2, "test_size": 1}
    stream = build("animals", "vehicles", **options)
    assert loaded == ["cifar10"]
    assert [(len(e), e.classes, e.x.dtype) for e in stream.experiences] == [
        (20, ALL[:5], torch.float32),
        (20, ALL[5:], torch.float32),
    ]
    assert [sorted(e.y.tolist()) for e in stream.tests] == [list(ALL[:5]), list(ALL[5:])]
    assert len(stream.shape) == 1 and stream.scenario == "class"
    assert stream.note == "train_size 2, test_size 1, features of test_resnet, weights random, 2 passes"
    alone = build("vehicles", **options)
    assert torch.equal(alone.experiences[0].x, stream.experiences[1].x)
    hundred = build("cifar100-50", **{**options, "passes": 1})
    assert [e.classes for e in hundred.tests] == [(2 * k, 2 * k + 1) for k in range(50)] and hundred.classes == 100
    assert hundred.experiences[9].x.shape == (2, *stream.shape)


def test_test_sets_are_mixed_once() -> None:
    stream, other = build("FMNIST-6k", "FMNIST-6k"), build("FMNIST-6k", seed=1)
    first, second = stream.tests
    assert torch.equal(first.x, second.x) and torch.equal(first.y, second.y)
    assert not torch.equal(first.y, other.tests[0].y) and not torch.equal(first.y, FMNIST.test_y)
    grouped = build("FMNIST-6k-2").tests[1]
    assert len(set(grouped.y[:60].tolist())) == 5


def test_sizes_keep_the_first_of_every_class() -> None:
    stream, data = build("FMNIST-6k", train_size=7, test_size=3), subset(FMNIST, 7, 3)
    assert torch.equal(stream.experiences[0].x, data.train_x) and not stream.whole
    assert same_samples(stream.tests[0].x, stream.tests[0].y, data.test_x, data.test_y)
    assert stream.note == "train_size 7, test_size 3"
    assert not build("digits", test_size=3).whole and not build("digits", train_size=3).whole


def test_interleaved_tasks_are_one_experience() -> None:
    apart, stream = (build("pdigits", "FMNIST-6k", train_size=4, interleaved=flag) for flag in (False, True))
    assert stream.name == "pdigits, FMNIST-6k, interleaved" and len(stream.experiences) == 1 and not stream.whole
    assert torch.equal(stream.experiences[0].x, torch.cat([e.x for e in apart.experiences]))
    assert [torch.equal(a.x, b.x) for a, b in zip(stream.tests, apart.tests, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        (["pFMNIST-6k"] * 4, "pFMNIST-6k x4"),
        (["FMNIST-6k", "digits"], "FMNIST-6k, digits"),
        (["MNIST", "MNIST", "USPS", "MNIST"], "MNIST x2, USPS, MNIST"),
        (["cifar100-20", "cifar100-20", "animals"], "cifar100-20, animals"),
    ],
)
def test_names(keywords: list[str], name: str) -> None:
    assert TaskSequence(tuple(keywords)).name == TaskSequence(keywords).name == name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "keyword",
    [
        *("mnist", "pUSPS", "pMNIST-2", "MNIST-0", "MNIST-", "-5", "USPS-2", "animals-2", "MNIST-2.5", "MNIST-N", "pp"),
        5,
    ],
)
def test_unknown_keywords_are_answered_with_the_known_ones(keyword: object) -> None:
    with pytest.raises(UserError) as caught:
        TaskSequence(("MNIST", keyword))  # type: ignore[arg-type]
    assert str(caught.value) == f"keywords: {keyword!r} is none of {', '.join(KEYWORDS)}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keywords": "MNIST"}, "keywords = 'MNIST': must be a list"),
        ({"keywords": ()}, "keywords = (): must name one task at least, of MNIST, "),
        ({"keywords": ("FMNIST-6k-3",)}, "keywords: 'FMNIST-6k-3': 10 classes divide into 1, 2, 5, 10"),
        ({"keywords": ("cifar100-3",)}, "keywords: 'cifar100-3': 100 classes divide into 1, 2, 4, 5, 10, 20, 25, 50"),
        (
            {"keywords": ("MNIST", "USPS", "cifar10")},
            "keywords of different shapes, USPS (28 x 28 grey), cifar10 (32 x",
        ),
        ({"keywords": ("animals", "cifar10")}, "keywords of different shapes, animals (features), cifar10 (32 x"),
        ({"seed": -1}, "seed = -1: must be a whole number"),
        ({"passes": 0}, "passes = 0: must be a whole number"),
        ({"train_size": 0}, "train_size = 0: must be a whole number"),
        ({"test_size": 2.5}, "test_size = 2.5: must be a whole number"),
        ({"interleaved": "yes"}, "interleaved = 'yes': must be true or false"),
        ({"features": None}, "features = None: must be true or false"),
    ],
)
def test_impossible_values_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        TaskSequence(**{"keywords": ("digits",), **options})
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_groups_that_a_folder_does_not_divide_into_are_refused(loaded: list[str]) -> None:
    with pytest.raises(UserError, match=r"^keywords: 'imgnet-3': 20 classes divide into 1, 2, 4, 5, 10, 20$"):
        build("imgnet-3")


# --- stream learning ---


@given(st.data(), st.integers(1, 40), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_subsets_cut_the_training_samples_into_equal_parts(case: st.DataObject, n: int, seed: int) -> None:
    count, y = case.draw(st.integers(1, n)), torch.arange(n) % 3
    x = torch.arange(n).view(n, 1, 1, 1)
    data = Labelled("numbers", x, y, x + 100, y, ("a", "b", "c"))
    stream = subsets(data, count, seed, "numbers in parts")
    assert stream.name == "numbers in parts" and stream.scenario == "domain" and stream.whole
    sizes = [len(e) for e in stream.experiences]
    assert len(sizes) == count and max(sizes) - min(sizes) <= 1
    together = torch.cat([e.x for e in stream.experiences]).flatten()
    assert sorted(together.tolist()) == list(range(n))
    first, whole, test = stream.tests
    assert torch.equal(first.x, stream.experiences[0].x) and torch.equal(whole.x.flatten(), together)
    assert sorted(test.x.flatten().tolist()) == list(range(100, 100 + n))
    for e in (*stream.experiences, first, whole, test):
        assert torch.equal(e.y, e.x.flatten() % 100 % 3) and e.classes == (0, 1, 2)


def test_subsets_are_drawn_by_the_seed_whatever_their_number() -> None:
    data = subset(FMNIST, 6, 2)
    one, many, other = (subsets(data, count, seed, "parts") for count, seed in ((1, 0), (6, 0), (1, 1)))
    assert torch.equal(one.experiences[0].x, torch.cat([e.x for e in many.experiences]))
    assert not torch.equal(one.experiences[0].y, other.experiences[0].y)
    assert not torch.equal(one.experiences[0].y, data.train_y)


@pytest.mark.parametrize("count", [0, 61, 2.0])
def test_there_are_at_least_as_many_samples_as_subsets(count: Any) -> None:
    with pytest.raises(UserError, match=rf"^count = {count}: must be a whole number between 1 and 60$"):
        subsets(replace(subset(FMNIST, 6), name="few"), count, 0, "parts")
