"""Streams from labelled images: split by class, permuted pixels, domains; task-, domain- and class-incremental.

Whatever the kind, a stream is a sequence of *parts* (`Labelled`, labels from 0), one an experience. The scenario says
how their labels relate (van de Ven & Tolias 2019):

- "class": every part brings classes of its own, all classes compete;
- "task": the same labels, but the experience of a sample is told, so only its part's classes compete;
- "domain": the parts share their labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cllib.datasets import cifar, digits, folder, mnist
from cllib.datasets.files import cache_folder
from cllib.datasets.labelled import Labelled, nth_of_class, resized, subset
from cllib.errors import UserError, flag, listed, one_of, whole, within
from cllib.randomness import generator
from cllib.streams.base import Experience, Stream

SCENARIOS = ("class", "task", "domain")
KINDS = ("split", "permuted", "domains")
DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "folder")


def split(data: Labelled, experiences: int, order: Sequence[int] | None = None) -> list[Labelled]:
    """Equal groups of classes, in `order` (a permutation of the classes; as numbered where None), each labelled from 0.

    Raises UserError if the classes do not divide into so many groups, or `order` is no permutation.
    """
    order = tuple(range(data.classes)) if order is None else tuple(order)
    if any(type(c) is not int for c in order) or sorted(order) != list(range(data.classes)):
        raise UserError(f"order = {order}: must name each of the classes 0 .. {data.classes - 1} once")
    whole("experiences", experiences, 1, data.classes)
    if data.classes % experiences:
        divisors = ", ".join(str(k) for k in range(1, data.classes + 1) if data.classes % k == 0)
        raise UserError(f"experiences = {experiences}: {data.classes} classes divide into {divisors}")
    size = data.classes // experiences
    return [only(data, order[k : k + size]) for k in range(0, data.classes, size)]


def only(data: Labelled, classes: Sequence[int]) -> Labelled:
    """The samples of some classes, relabelled 0, 1, ... in the order given."""
    device = data.train_y.device
    new = torch.full((data.classes,), -1, device=device)
    new[list(classes)] = torch.arange(len(classes), device=device)

    def kept(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        label = new[y]
        return x[label >= 0], label[label >= 0]

    train, test = kept(data.train_x, data.train_y), kept(data.test_x, data.test_y)
    return Labelled(data.name, *train, *test, names=tuple(data.names[c] for c in classes))


def class_order(classes: int, seed: int) -> tuple[int, ...]:
    """A random order of the classes."""
    return tuple(torch.randperm(classes, generator=generator(seed, "class order")).tolist())


def permuted(data: Labelled, experiences: int, seed: int, first: bool = False) -> list[Labelled]:
    """Copies with the pixels of every image in another order, the same for all images of a copy.

    first: permute the first copy too; otherwise it stays as it is (Goodfellow et al. 2013).
    """
    whole("experiences", experiences, 1, 10_000)
    pixels = data.train_x[0].numel()
    draws = generator(seed, "pixel permutation")
    orders = [torch.randperm(pixels, generator=draws) for _ in range(experiences)]
    if not first:
        orders[0] = torch.arange(pixels)
    return [replace(data, train_x=shuffled(data.train_x, o), test_x=shuffled(data.test_x, o)) for o in orders]


def shuffled(x: Tensor, order: Tensor) -> Tensor:
    """`x: [N, C, H, W]` with the C * H * W values of every image in this order."""
    return x.flatten(1)[:, order].view(x.shape)


def domains(parts: Sequence[Labelled]) -> list[Labelled]:
    """Data sets that follow each other. Raises UserError unless their images have one shape."""
    shapes = [part.shape for part in parts]
    if len(set(shapes)) > 1:
        named = ", ".join(f"{part.name} {list(part.shape)}" for part in parts)
        raise UserError(f"images of different shapes, {named}: set image_size, or leave out those of other colours")
    return list(parts)


def sequence(name: str, parts: Sequence[Labelled], scenario: str, validation: float = 0.0) -> Stream:
    """One experience a part, labels as the scenario wants them.

    validation: share of every class's training samples, the last ones, that is kept aside, one at least. Raises
    UserError if parts that should share their labels have different numbers of classes, one has too few samples, or
    nothing is left to ask.
    """
    one_of("scenario", scenario, SCENARIOS)
    within("validation", validation, 0, 0.9)
    if not parts:
        raise UserError(f"stream {name!r}: needs one part at least")
    shared = scenario == "domain"
    if shared and len({part.classes for part in parts}) > 1:
        raise UserError(f"scenario = 'domain': parts of {[part.classes for part in parts]} classes cannot share labels")
    starts = [0 if shared else sum(part.classes for part in parts[:k]) for k in range(len(parts))]
    made = [experiences(part, start, k, validation) for k, (part, start) in enumerate(zip(parts, starts, strict=True))]
    trains, tests, held = zip(*made, strict=True)
    classes = max(start + part.classes for start, part in zip(starts, parts, strict=True))
    lists = [part.names for part in parts]
    names = tuple(sum(lists, ())) if not shared else lists[0] if len(set(lists)) == 1 else ()
    stream = Stream(name, classes, trains, tests, held if validation else (), scenario=scenario, names=names)
    stream.ask_something()
    return stream


def experiences(part: Labelled, start: int, domain: int, validation: float) -> tuple[Experience, ...]:
    """Training, test and validation samples of a part, labels counted from `start`."""
    classes = tuple(range(start, start + part.classes))
    count = torch.bincount(part.train_y, minlength=part.classes)
    if validation and int(count.min()) < 2:
        raise UserError(f"validation = {validation}: {part.name} has a class with one training sample only")
    most = count - 1 if validation else count
    keep = (count.double() * (1 - validation)).round().long().clamp(1).minimum(most)[part.train_y]  # [N]
    nth = nth_of_class(part.train_y, part.classes)
    train, held = nth < keep, nth >= keep
    pieces = (
        (part.train_x[train], part.train_y[train]),
        (part.test_x, part.test_y),
        (part.train_x[held], part.train_y[held]),
    )
    return tuple(Experience(x, y + start, classes, domain) for x, y in pieces)


def merged(stream: Stream) -> Stream:
    """All experiences as one, for the offline bound; the tests stay apart."""
    parts = stream.experiences
    x, y = torch.cat([e.x for e in parts]), torch.cat([e.y for e in parts])
    classes = tuple(sorted({c for e in parts for c in e.classes}))
    return replace(stream, name=f"{stream.name}, merged", experiences=(Experience(x, y, classes),))


@dataclass(frozen=True)
class StreamConfig:
    """A stream by name. Raises UserError at construction for impossible values.

    datasets: one of `DATASETS`, or several for kind "domains". experiences: how many, 5 where None; "domains" has one a
    data set. data_dir: where they lie, or are downloaded to (the
    cache folder where None); for "folder" the folder of class folders. order_seed: draws a class order (split), None
    keeps the classes as numbered; permutation_seed: draws the pixel permutations; train_size, test_size: only the
    first so many of each class; image_size: side of the images, None as they are (32 for "folder").
    """

    kind: str = "split"
    datasets: tuple[str, ...] = ("digits",)
    scenario: str = "class"
    experiences: int | None = None
    order: tuple[int, ...] | None = None
    order_seed: int | None = None
    permutation_seed: int = 0
    permute_first: bool = False
    image_size: int | None = None
    train_size: int | None = None
    test_size: int | None = None
    validation: float = 0.0
    data_dir: str | None = None

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        one_of("scenario", self.scenario, SCENARIOS)
        if not isinstance(self.datasets, tuple | list):
            raise UserError(f"datasets = {self.datasets!r}: must be a list of {', '.join(DATASETS)}")
        for dataset in self.datasets:
            one_of("datasets", dataset, DATASETS)
        if len(self.datasets) != 1 and self.kind != "domains":
            raise UserError(
                f"datasets = {self.datasets}: kind = {self.kind!r} takes one; kind = 'domains' takes several"
            )
        if len(self.datasets) < 2 and self.kind == "domains":
            raise UserError(f"datasets = {self.datasets}: kind = 'domains' takes two or more")
        self._check_kind()
        flag("permute_first", self.permute_first)
        if self.order is not None:
            listed("order", self.order)
        if self.order is not None and self.order_seed is not None:
            raise UserError(f"order = {self.order}: not together with order_seed = {self.order_seed}")
        if "folder" in self.datasets and self.data_dir is None:
            raise UserError("datasets = 'folder' needs data_dir, a folder of class folders")
        within("validation", self.validation, 0, 0.9)
        for name in ("experiences", "image_size", "train_size", "test_size"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1)
        for name in ("order_seed", "permutation_seed"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 0)

    def _check_kind(self) -> None:
        """Raise UserError for an option that the kind of stream has no use for."""
        own = {"order": "split", "order_seed": "split", "permutation_seed": "permuted", "permute_first": "permuted"}
        for name, kind in own.items():
            if getattr(self, name) != getattr(StreamConfig, name) and self.kind != kind:
                raise UserError(f"{name} = {getattr(self, name)!r}: only for kind = {kind!r}")
        if self.experiences is not None and self.kind == "domains":
            raise UserError(f"experiences = {self.experiences!r}: kind = 'domains' has one a data set")

    @property
    def count(self) -> int:
        """Experiences."""
        return len(self.datasets) if self.kind == "domains" else self.experiences or 5

    @property
    def name(self) -> str:
        """E.g. "split-digits-5-class"; a folder by its own name."""
        own = Path(self.data_dir or "").resolve().name
        datasets = (own if dataset == "folder" else dataset for dataset in self.datasets)
        return "-".join((self.kind, *datasets, str(self.count), self.scenario))

    @property
    def note(self) -> str:
        """What the name does not say, as far as it is not the default."""
        how = ("order", "order_seed", "permutation_seed", "permute_first")
        much = ("image_size", "train_size", "test_size", "validation")
        values = {name: getattr(self, name) for name in (*how, *much)}
        return ", ".join(f"{name} {value}" for name, value in values.items() if value != getattr(StreamConfig, name))

    def build(self) -> Stream:
        """Load the data, checked, and make the stream. Raises UserError for data that cannot be had."""
        loaded = [self._load(dataset) for dataset in self.datasets]
        stream = sequence(self.name, self._parts(loaded), self.scenario, self.validation)
        images = sum(map(len, stream.experiences)), sum(map(len, stream.tests))
        note = [f"{images[0]} + {images[1]} images"] * ("folder" in self.datasets) + [self.note] * bool(self.note)
        whole = not (self.train_size or self.test_size or self.validation)
        return replace(stream, whole=whole, note=", ".join(note))

    def _load(self, dataset: str) -> Labelled:
        where = Path(self.data_dir) if self.data_dir else cache_folder()
        if dataset == "digits":
            data = digits.labelled()
        elif dataset == "folder":
            data = folder.load(where, self.image_size or 32)
        elif dataset in mnist.CONTENT:
            data = mnist.load(dataset, where, download=True)
        else:
            data = cifar.load(dataset, where, download=True)
        data = subset(data, self.train_size, self.test_size)
        return data if self.image_size is None else resized(data, self.image_size)

    def _parts(self, loaded: list[Labelled]) -> list[Labelled]:
        """What becomes the experiences."""
        if self.kind == "domains":
            return domains(loaded)
        (data,) = loaded
        if self.kind == "permuted":
            return permuted(data, self.count, self.permutation_seed, self.permute_first)
        order = self.order if self.order_seed is None else class_order(data.classes, self.order_seed)
        return split(data, self.count, order)


def from_folder(
    where: str | Path, experiences: int = 5, scenario: str = "class", image_size: int = 32, **more: Any
) -> Stream:
    """A folder of class folders (`datasets.folder`) as a stream: equal groups of its classes, one after the other.

    more: as in `StreamConfig`. Raises UserError for a folder or image that cannot be used, or classes that do not
    divide.
    """
    own = {"experiences": experiences, "scenario": scenario, "image_size": image_size}
    return StreamConfig(datasets=("folder",), data_dir=str(where), **{**own, **more}).build()
