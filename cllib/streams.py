"""Data to streams: ordered experiences, and the test sets that are the columns of the accuracy matrix."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cllib.datasets import cifar100, noisy_classes
from cllib.datasets import points as plane
from cllib.datasets.backbones import backbone
from cllib.datasets.files import cache_folder
from cllib.datasets.noisy_classes import NoisyClasses
from cllib.datasets.points import Points
from cllib.errors import UserError, one_of

PLANE_SETS: dict[str, Callable[[], Points]] = {"modes": plane.modes, "moons": plane.moons}
SCENARIOS = ("iid", "ci", "cdi", "cdid")
IMAGE_STREAMS = ("ns-digits", "ns-cifar100", "ns-imagenet")
PLANE_STREAMS = tuple(f"{name}-{scenario}" for name in PLANE_SETS for scenario in SCENARIOS)


@dataclass(frozen=True)
class Experience:
    """One step of a stream. x: `[n, d]`, y: `[n]`; `classes` in it; `domain` number, None where several are mixed."""

    x: Tensor
    y: Tensor
    classes: tuple[int, ...]
    domain: int | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def name(self) -> str:
        """Short label for axes, e.g. "c2 d1"."""
        classes = f"c{self.classes[0]}" if len(self.classes) == 1 else f"{len(self.classes)} classes"
        return classes if self.domain is None else f"{classes} d{self.domain}"


@dataclass(frozen=True)
class Stream:
    """Experiences in order, with a test and a validation set of the same make; validation may cover the first ones
    only.

    sortable: whether samples inside an experience may be reordered without changing what the stream is (CDID: no).
    whole: False if only a part of the training samples is shown. note: what the name does not say, e.g. the backbone.
    """

    name: str
    classes: int
    experiences: tuple[Experience, ...]
    tests: tuple[Experience, ...]
    validations: tuple[Experience, ...]
    sortable: bool = True
    whole: bool = True
    note: str = ""

    @property
    def inputs(self) -> int:
        return self.experiences[0].x.shape[1]

    def __len__(self) -> int:
        """Training samples in all."""
        return sum(len(experience) for experience in self.experiences)

    def to(self, device: str | torch.device) -> "Stream":
        """The stream with its tensors on a device."""

        def moved(parts: tuple[Experience, ...]) -> tuple[Experience, ...]:
            return tuple(replace(e, x=e.x.to(device), y=e.y.to(device)) for e in parts)

        return replace(
            self, experiences=moved(self.experiences), tests=moved(self.tests), validations=moved(self.validations)
        )


def thinned(stream: Stream, every: int) -> Stream:
    """The stream with only every so many-th training sample; tests stay whole."""
    parts = tuple(replace(e, x=e.x[::every], y=e.y[::every]) for e in stream.experiences)
    return replace(stream, experiences=parts, whole=stream.whole and every == 1)


def orders(stream: Stream, generators: list[torch.Generator] | None) -> list[Tensor]:
    """Sample order inside each experience: a list of `[R, n]` index tensors.

    Without generators, or where the stream's order is its point (CDID), the published order, `[1, n]`: it serves all
    runs.
    """
    if generators is None or not stream.sortable:
        return [torch.arange(len(e)).unsqueeze(0) for e in stream.experiences]
    return [torch.stack([torch.randperm(len(e), generator=g) for g in generators]) for e in stream.experiences]


# --- MODES and MOONS (chapter 1, rules 2.2) ---


def plane_stream(name: str) -> Stream:
    """One of `PLANE_STREAMS`: a set and an order, e.g. "modes-cdi".

    iid: one experience. ci: by class, domains mixed. cdi: domain by domain, by class inside. cdid: cdi with samples
    sorted by their first coordinate. Validation keeps the first half of the experiences (iid: of the samples), as
    published.
    """
    one_of("stream", name, PLANE_STREAMS)
    which, scenario = name.split("-")
    parts = {part: arrange(points, scenario) for part, points in plane.split(PLANE_SETS[which]()).items()}
    half = first_half(parts["validation"])
    return Stream(name, plane.CLASSES, parts["train"], parts["test"], half, sortable=scenario != "cdid")


def arrange(points: Points, scenario: str) -> tuple[Experience, ...]:
    """Cut points into experiences; sorting is stable (the released order depends on an unstable sort, rules P6)."""
    if scenario == "iid":
        again = points.take(plane.published_permutation(len(points)))
        return (Experience(again.x, again.y, tuple(range(plane.CLASSES))),)
    key = points.y if scenario == "ci" else points.y + plane.CLASSES * points.domain
    if scenario == "cdid":
        points = points.take(np.argsort(points.x[:, 0].numpy(), kind="stable"))
        key = points.y + plane.CLASSES * points.domain
    return tuple(one_group(points, key == group, scenario) for group in key.unique(sorted=True))


def one_group(points: Points, mask: Tensor, scenario: str) -> Experience:
    """The points of one class (and domain) as an experience."""
    x, y, domain = points.x[mask], points.y[mask], points.domain[mask]
    return Experience(x, y, (int(y[0]),), None if scenario == "ci" else int(domain[0]))


def first_half(parts: tuple[Experience, ...]) -> tuple[Experience, ...]:
    """The first half of the experiences; of the samples if there is but one."""
    if len(parts) == 1:
        n = len(parts[0]) // 2
        return (replace(parts[0], x=parts[0].x[:n], y=parts[0].y[:n]),)
    return parts[: len(parts) // 2]


# --- classes seen several times, each time noisier (section 2.3) ---


def noisy_stream(name: str, data: NoisyClasses) -> Stream:
    """All classes at the first noise level, then all at the second, ...: one experience per (level, class)."""
    train, test, validation = (blocks(part) for part in (data.train, data.test, data.val))
    return Stream(name, data.train.shape[1], train, test, validation[: len(validation) // 2])


def blocks(part: Tensor) -> tuple[Experience, ...]:
    """`[V, C, n, D]` to V * C experiences of n samples."""
    versions, classes, n, _ = part.shape
    return tuple(
        Experience(part[v, c], torch.full((n,), c), (c,), v) for v in range(versions) for c in range(classes) if n
    )


def image_stream(
    name: str,
    data_dir: str | None = None,
    network: str = "resnet18.tv_in1k",
    weights: str = "pretrained",
    image_size: int | None = None,
    classes: int = 100,
    device: str = "cpu",
    validation: bool = False,
) -> Stream:
    """One of `IMAGE_STREAMS`: the embedded digits, or CIFAR-100 or mini-ImageNet in `data_dir` through a frozen
    network.

    CIFAR-100 is downloaded where it is missing (to the cache folder without `data_dir`). network, weights,
    image_size: see `datasets.backbones.backbone`; classes: only the first so many; validation: digits keep 20 of the
    120 training samples of a class aside (the others always have a validation part). Raises UserError for data or
    weights that cannot be had.
    """
    one_of("stream", name, IMAGE_STREAMS)
    if name == "ns-digits":
        return noisy_stream(name, noisy_classes.ns_digits(sizes=(100, 20, 50) if validation else (120, 0, 50)))
    if name == "ns-imagenet" and data_dir is None:
        raise UserError("stream = 'ns-imagenet' needs data_dir, the folder that holds mini-ImageNet")
    where = data_dir or cache_folder()
    if name == "ns-cifar100":
        cifar100.obtain(where, download=True)
    net = backbone(network, weights, image_size)
    make = noisy_classes.ns_imagenet if name == "ns-imagenet" else noisy_classes.ns_cifar100
    features = make(where, net, classes=classes, device=device)
    note = f"{network}, weights {net.weights_hash}, {net.image_size} pixels, {classes} classes"
    return replace(noisy_stream(name, features), note=note, whole=classes == 100)
