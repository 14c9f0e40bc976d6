"""The task sequences of chapter 2, by keyword: data sets that follow each other, permuted, or in groups of classes.

Every data set counts its labels from 0, and all share the outputs of one network, as in the original: digit 3 and
dress are the same output. Only groups of one data set's classes have outputs of their own.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path

import torch

from cllib.datasets import cifar, cifar_features, digits, fashion_6k, mnist, tiny_imagenet, usps
from cllib.datasets.backbones import Backbone, backbone
from cllib.datasets.files import cache_folder
from cllib.datasets.labelled import Labelled, resized, subset
from cllib.errors import UserError, flag, listed, whole
from cllib.randomness import generator
from cllib.streams.base import Experience, Stream
from cllib.streams.scenarios import merged, only, shuffled, split

KEYWORDS = {
    "MNIST": "60,000 + 10,000 digits, 28 x 28, grey",
    "FMNIST": "Fashion-MNIST: 60,000 + 10,000 clothes, 28 x 28, grey",
    "FMNIST-6k": "the 6,000 + 2,000 of them that ship with this project",
    "USPS": "7,291 + 2,007 digits, 16 x 16 inside a margin, 28 x 28",
    "digits": "scikit-learn's 1,437 + 360 digits, 8 x 8 enlarged to 28 x 28",
    "cifar10": "50,000 + 10,000 photographs, 32 x 32, colour",
    "pMNIST": "a fresh permutation of the pixels each time; also pFMNIST, pFMNIST-6k, pdigits",
    "MNIST-N": "all N groups of consecutive classes, one after the other; also FMNIST-N, FMNIST-6k-N",
    "cifar100-N": "the same of CIFAR-100, as features of a frozen network or as images",
    "imgnet-N": "the same of Tiny-ImageNet-200, images of 64 x 64",
    "animals": "bird, cat, deer, dog, frog of CIFAR-10, outputs 0 to 4; features or images",
    "vehicles": "airplane, automobile, horse, ship, truck (the original's choice), outputs 5 to 9; features or images",
}
PERMUTED = ("MNIST", "FMNIST", "FMNIST-6k", "digits")
GROUPED = ("MNIST", "FMNIST", "FMNIST-6k", "cifar100", "imgnet")
PLAIN = ("MNIST", "FMNIST", "FMNIST-6k", "USPS", "digits", "cifar10", "animals", "vehicles")
FEATURES = ("animals", "vehicles", "cifar100")
HALVES = {"animals": ((2, 3, 4, 5, 6), 0), "vehicles": ((0, 1, 7, 8, 9), 5)}  # classes of CIFAR-10, the first's output
CLASSES = {"MNIST": 10, "FMNIST": 10, "FMNIST-6k": 10, "cifar100": 100}  # a folder says how many imgnet has
COLOUR = {"cifar10": 32, "animals": 32, "vehicles": 32, "cifar100": 32, "imgnet": 64}  # side; the others: grey, 28


@dataclass(frozen=True)
class Task:
    """A keyword taken apart. groups: of classes, each an experience; None where the data set is one."""

    keyword: str
    data: str
    permuted: bool
    groups: int | None


def task(keyword: str) -> Task:
    """Raises UserError unless the keyword is one of `KEYWORDS`, N a number that divides the classes."""
    for data in PLAIN:
        if keyword == data or (keyword == f"p{data}" and data in PERMUTED):
            return Task(keyword, data, keyword != data, None)
    found = re.fullmatch(r"(.+)-([1-9][0-9]{0,3})", str(keyword))
    if not found or found[1] not in GROUPED:
        raise UserError(f"keywords: {keyword!r} is none of {', '.join(KEYWORDS)}")
    one = Task(keyword, found[1], False, int(found[2]))
    if one.data in CLASSES:
        divides(one, CLASSES[one.data])
    return one


def divides(one: Task, classes: int) -> None:
    """Raise UserError unless the task's groups have equally many classes."""
    if one.groups and classes % one.groups:
        divisors = ", ".join(str(k) for k in range(1, classes + 1) if classes % k == 0)
        raise UserError(f"keywords: {one.keyword!r}: {classes} classes divide into {divisors}")


@dataclass(frozen=True)
class Part:
    """What becomes an experience: data with labels from 0, the output of the first, and outputs in all."""

    data: Labelled
    start: int
    outputs: int


@dataclass(frozen=True)
class TaskSequence:
    """Tasks by keyword (`KEYWORDS`), one experience each, or N for a keyword X-N. Raises UserError at construction.

    A keyword X-N repeated at once counts once, as in the original, whose command line names it once a group:
    six times imgnet-5 are five experiences of 40 classes. All others repeat as often as they are named; one with p has
    another permutation each time, the first included. seed: draws permutations, the order of the tests, the test part
    of imgnet, and what features are cut from. train_size, test_size: only the first so many images of each class.
    interleaved: all tasks at once, for the upper bound. data_dir: where data lie, or are downloaded to (the cache
    folder where None). features: animals, vehicles and cifar100-N are features of `backbone` with `backbone_weights`
    (see `datasets.backbones.backbone`), each training image seen `passes` times, computed on `device`; otherwise
    images.
    """

    keywords: tuple[str, ...]
    seed: int = 0
    train_size: int | None = None
    test_size: int | None = None
    interleaved: bool = False
    data_dir: str | None = None
    features: bool = True
    backbone: str = "resnet18.tv_in1k"
    backbone_weights: str = "pretrained"
    passes: int = 10
    device: str = "cpu"

    def __post_init__(self) -> None:
        listed("keywords", self.keywords)
        if not self.keywords:
            raise UserError(f"keywords = {self.keywords!r}: must name one task at least, of {', '.join(KEYWORDS)}")
        whole("seed", self.seed, 0)
        whole("passes", self.passes, 1)
        for name in ("train_size", "test_size"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1)
        for name in ("interleaved", "features"):
            flag(name, getattr(self, name))
        shapes = {self._looks(one.data): one.keyword for one in self.tasks}
        if len(shapes) > 1:
            named = ", ".join(f"{keyword} ({shape})" for shape, keyword in shapes.items())
            raise UserError(f"keywords of different shapes, {named}: must all have one")

    def _looks(self, data: str) -> str:
        """The shape of a sample, in words."""
        if self._featured(data):
            return "features"
        return f"{COLOUR[data]} x {COLOUR[data]} colour" if data in COLOUR else "28 x 28 grey"

    def _featured(self, data: str) -> bool:
        return self.features and data in FEATURES

    @property
    def tasks(self) -> tuple[Task, ...]:
        """One a keyword, but one for a keyword X-N that is repeated."""
        runs = [(one, len(list(again))) for one, again in groupby(task(keyword) for keyword in self.keywords)]
        return tuple(one for one, times in runs for _ in range(1 if one.groups else times))

    @property
    def name(self) -> str:
        """E.g. "pFMNIST-6k x4" or "FMNIST-6k, digits, interleaved"."""
        runs = [(keyword, len(list(again))) for keyword, again in groupby(one.keyword for one in self.tasks)]
        names = [f"{keyword} x{times}" if times > 1 else keyword for keyword, times in runs]
        return ", ".join([*names, "interleaved"] if self.interleaved else names)

    @property
    def note(self) -> str:
        """What the name does not say, as far as it is not the default."""
        chosen = {name: getattr(self, name) for name in ("seed", "train_size", "test_size")}
        notes = [f"{name} {value}" for name, value in chosen.items() if value != getattr(TaskSequence, name)]
        if len(self.tasks) < len(self.keywords):
            notes.append("repeated X-N counted once")
        if any(self._featured(one.data) for one in self.tasks):
            notes.append(f"features of {self.backbone}, weights {self.backbone_weights}, {self.passes} passes")
        elif any(one.data in FEATURES for one in self.tasks):
            notes.append("images, not features")
        return ", ".join(notes)

    def build(self) -> Stream:
        """Load the data, checked, and make the stream. Raises UserError for data that cannot be had."""
        parts = list(self._parts())
        trains, tests = zip(*(experiences(part, k) for k, part in enumerate(parts)), strict=True)
        stream = Stream(
            self.name,
            max(part.outputs for part in parts),
            trains,
            tests,
            (),
            whole=self.train_size is None and self.test_size is None,
            note=self.note,
            scenario="domain" if len({e.classes for e in trains}) == 1 else "class",
        )
        return replace(merged(stream), name=self.name) if self.interleaved else stream

    def _parts(self) -> Iterator[Part]:
        load, draws = self._loader(), generator(self.seed, "pixel permutation")
        for one in self.tasks:
            data = load(one.data)
            if one.permuted:
                data = permuted(data, draws)
            yield from grouped(one, data)

    def _loader(self) -> Callable[[str], Labelled]:
        """Loads a data set, once however often it is asked for."""
        source = cache(self._source)
        net = cache(lambda: backbone(self.backbone, self.backbone_weights, cifar_features.CROP))

        @cache
        def load(data: str) -> Labelled:
            images = only(source("cifar10"), HALVES[data][0]) if data in HALVES else source(data)
            return with_tests_mixed(self._features(images, net()) if self._featured(data) else images, self.seed)

        return load

    def _features(self, images: Labelled, net: Backbone) -> Labelled:
        return cifar_features.features(images, net, self.passes, self.seed, device=self.device)

    def _source(self, data: str) -> Labelled:
        """Images, uint8, as many as wanted."""
        where = Path(self.data_dir) if self.data_dir else cache_folder()
        sources: dict[str, Callable[[], Labelled]] = {
            "MNIST": lambda: mnist.load("mnist", where, download=True),
            "FMNIST": lambda: mnist.load("fashion_mnist", where, download=True),
            "FMNIST-6k": fashion_6k.load,
            "USPS": lambda: usps.load(where),
            "digits": large_digits,
            "cifar10": lambda: cifar.load("cifar10", where, download=True),
            "cifar100": lambda: cifar.load("cifar100", where, download=True),
            "imgnet": lambda: tiny_imagenet.load(where, self.seed),
        }
        data_set = sources[data]()
        few = self.train_size or self.test_size
        return subset(data_set, self.train_size, self.test_size) if few else data_set


def large_digits() -> Labelled:
    """scikit-learn's digits at 28 x 28 pixels, uint8 like the images that they follow."""
    data = resized(digits.labelled(), 28)
    train_x, test_x = ((x * 255).round().to(torch.uint8) for x in (data.train_x, data.test_x))
    return replace(data, train_x=train_x, test_x=test_x)


def with_tests_mixed(data: Labelled, seed: int) -> Labelled:
    """The data with its test samples in random order: in batches they are normalized together, so classes must mix."""
    order = torch.randperm(len(data.test_y), generator=generator(seed, "test order"))
    return replace(data, test_x=data.test_x[order], test_y=data.test_y[order])


def permuted(data: Labelled, draws: torch.Generator) -> Labelled:
    """The data with the pixels of every image, training and test, in one order, drawn here."""
    order = torch.randperm(data.train_x[0].numel(), generator=draws)
    return replace(data, train_x=shuffled(data.train_x, order), test_x=shuffled(data.test_x, order))


def grouped(one: Task, data: Labelled) -> Iterator[Part]:
    """The groups of a task, or its data as they are. Raises UserError if the classes do not divide into groups."""
    if one.data in HALVES:
        yield Part(data, HALVES[one.data][1], 10)
    elif one.groups is None:
        yield Part(data, 0, data.classes)
    else:
        divides(one, data.classes)
        for k, part in enumerate(split(data, one.groups)):
            yield Part(part, k * part.classes, data.classes)


def experiences(part: Part, domain: int) -> tuple[Experience, Experience]:
    """Training and test samples of a part; its tensors are not copied."""
    data, start = part.data, part.start
    own = tuple(range(start, start + data.classes))
    pairs = ((data.train_x, data.train_y), (data.test_x, data.test_y))
    train, test = (Experience(x, y + start, own, domain) for x, y in pairs)
    return train, test


def subsets(data: Labelled, count: int, seed: int, name: str) -> Stream:
    """Stream learning: the training samples in random order, cut into `count` parts, each seen once.

    Parts differ by one sample at most. The tests are three, whatever `count` is: the first part, all training samples,
    the test samples. Raises UserError if there are fewer samples than parts.
    """
    whole("count", count, 1, len(data.train_y))
    whole("seed", seed, 0)
    order = torch.randperm(len(data.train_y), generator=generator(seed, "subsets"))
    x, y, own = data.train_x[order], data.train_y[order], tuple(range(data.classes))
    pieces = zip(x.tensor_split(count), y.tensor_split(count), strict=True)
    parts = tuple(Experience(*piece, own, k) for k, piece in enumerate(pieces))
    mixed = with_tests_mixed(data, seed)
    tests = (parts[0], Experience(x, y, own), Experience(mixed.test_x, mixed.test_y, own))
    return Stream(name, data.classes, parts, tests, (), scenario="domain")


def in_parts(one: TaskSequence, count: int, seed: int) -> Stream:
    """Stream learning on the one task of a sequence, see `subsets`. Raises UserError if there are several."""
    stream = one.build()
    if len(stream.experiences) > 1:
        raise UserError(f"keywords = {one.keywords}: one data set can be cut into parts, not {len(stream.experiences)}")
    train, test = stream.experiences[0], stream.tests[0]
    data = Labelled(stream.name, train.x, train.y, test.x, test.y, tuple(str(c) for c in range(stream.classes)))
    made = subsets(data, count, seed, f"{stream.name}, {count} parts")
    return replace(made, whole=stream.whole, note=stream.note)
