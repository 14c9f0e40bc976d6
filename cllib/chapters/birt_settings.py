"""The published settings of BiRT by name, and small ones that need no download."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from cllib.datasets import cifar, digits, fashion_6k, folder, tiny_imagenet
from cllib.datasets.files import cache_folder
from cllib.datasets.labelled import Labelled, resplit, subset
from cllib.errors import UserError
from cllib.models.convit import ConViT
from cllib.streams.base import Stream
from cllib.streams.scenarios import sequence, split

SIDE = 224  # of ImageNet's images, cut from the middle of a square of LARGER
LARGER = 256
# The first of five published orders of CIFAR-100's classes.
CIFAR_ORDER = (
    *(87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86, 84, 96, 18, 24, 32, 45, 88, 11, 4),
    *(67, 69, 66, 77, 47, 79, 93, 29, 50, 57, 83, 17, 81, 41, 12, 37, 59, 25, 20, 80, 73, 1, 28, 6, 46, 62, 82, 53, 9),
    *(31, 75, 38, 63, 33, 74, 27, 22, 36, 3, 16, 21, 60, 19, 70, 90, 89, 43, 5, 42, 65, 76, 40, 30, 23, 85, 2, 95, 56),
    *(48, 71, 64, 98, 13, 99, 7, 34, 55, 54, 26, 35, 39),
)


def imagenet_100(where: Path) -> Labelled:
    """100 classes of ImageNet as `folder` reads them, `train/CLASS` and `val/CLASS`: 256 pixels, of which the middle.

    Raises UserError for another number of classes.
    """
    data = folder.load(where, LARGER)
    if data.classes != 100:
        raise UserError(f"{where}: {data.classes} class folders; ImageNet-100 has 100")
    edge = (LARGER - SIDE) // 2
    middle = slice(edge, edge + SIDE)
    train, test = (x[..., middle, middle].clone() for x in (data.train_x, data.test_x))
    return replace(data, train_x=train, test_x=test)


def imagenet_order() -> tuple[int, ...]:
    """The first of three published orders of ImageNet-100: numpy's permutation with the seed 1993."""
    return tuple(np.random.RandomState(1993).permutation(100).tolist())


@dataclass(frozen=True)
class Images:
    """A data set and what it is learned with, whatever the tasks; see `learners.birt.BiRTSettings` for the rest.

    order: of the classes, None: as numbered.
    """

    load: Callable[[Path], Labelled]
    network: ConViT
    order: Callable[[], tuple[int, ...]] | None = None
    augment: str = "published"
    epochs: int = 500
    batch: int = 128
    lr: float = 1.25e-4
    warmup: int = 5
    tune_lr: float = 1.25e-5
    attention_std: float = 1.0


@dataclass(frozen=True)
class Setting:
    """A row of the published table. tasks; buffer: M; ema: gamma; ema_rate: alpha_e; beta_new, beta_replay."""

    images: Images = field(repr=False)
    tasks: int
    buffer: int
    ema: float
    ema_rate: float
    beta_new: float
    beta_replay: float


LARGE = Images(
    lambda where: cifar.load("cifar100", where, download=True), ConViT(normalize="cifar"), lambda: CIFAR_ORDER
)
TINY = replace(LARGE, load=tiny_imagenet.load, network=ConViT(patch=8, normalize="imagenet"), order=None)
TINY = replace(TINY, augment="published large")
IMAGENET = replace(TINY, load=imagenet_100, network=ConViT(patch=16, normalize="imagenet"), order=imagenet_order)
CIFAR_10 = replace(LARGE, load=lambda where: cifar.load("cifar10", where, download=True), order=None)
SMALL = Images(
    lambda where: resplit(digits.labelled(), 5),
    ConViT(patch=2, dim=48, heads=4, layers=4, drop_path=0.0, std=0.1),
    augment="none",
    epochs=9,
    batch=32,
    lr=1e-3,
    warmup=0,
    tune_lr=1e-4,
    attention_std=0.1,
)
CLOTHES = replace(SMALL, load=lambda where: fashion_6k.load(), network=replace(SMALL.network, patch=4), epochs=10)


def _table(images: Images, name: str, rows: tuple[tuple[float, ...], ...]) -> dict[str, Setting]:
    """Settings by name, such as "CIFAR-100-5-200": tasks, M, gamma, alpha_e, beta_1, beta_2."""
    made = [Setting(images, int(tasks), int(size), *rest) for tasks, size, *rest in rows]
    return {f"{name}-{s.tasks}-{s.buffer}": s for s in made}


SETTINGS: dict[str, Setting] = {
    **_table(SMALL, "digits", ((5, 100, 1e-3, 0.01, 0.05, 0.01),)),
    **_table(CLOTHES, "clothes", ((5, 200, 1e-3, 0.01, 0.05, 0.01),)),
    **_table(CIFAR_10, "CIFAR-10", ((5, 500, 5e-3, 0.003, 0.05, 0.01),)),
    **_table(
        LARGE,
        "CIFAR-100",
        (
            (5, 200, 5e-4, 0.001, 0.05, 0.01),
            (5, 500, 5e-3, 0.003, 0.05, 0.01),
            (10, 200, 1e-3, 0.003, 0.05, 0.001),
            (10, 500, 1e-3, 0.003, 0.05, 0.001),
            (10, 1000, 5e-4, 0.0008, 0.05, 0.01),
            (10, 2000, 2e-4, 0.0015, 0.05, 0.01),
            (20, 200, 5e-3, 0.001, 0.05, 0.08),
            (20, 500, 5e-4, 0.003, 0.05, 0.1),
        ),
    ),
    **_table(
        TINY,
        "Tiny-ImageNet",
        (
            (10, 500, 1e-3, 0.003, 0.05, 0.01),
            (10, 1000, 1e-2, 0.0008, 0.01, 0.001),
            (10, 2000, 1e-4, 0.008, 0.01, 0.0008),
        ),
    ),
    **_table(
        IMAGENET,
        "ImageNet-100",
        (
            (10, 500, 1e-4, 0.003, 0.05, 0.001),
            (10, 1000, 1e-4, 0.003, 0.05, 0.001),
            (10, 2000, 1e-2, 0.005, 0.01, 0.001),
        ),
    ),
}


def setting_stream(
    name: str, tasks: int | None = None, data_dir: str | None = None, train_size: int | None = None
) -> Stream:
    """The stream of a setting, called by its data set and tasks, such as "CIFAR-100, 5 tasks".

    tasks: None: as the setting has; data_dir: where the data lie or are downloaded to (the cache folder where None);
    train_size: only the first so many of each class. Raises UserError for data that cannot be had, or classes that do
    not divide.
    """
    how = SETTINGS[name]
    data = how.images.load(Path(data_dir) if data_dir else cache_folder())
    data = subset(data, train_size) if train_size else data
    count = tasks or how.tasks
    parts = split(data, count, None if how.images.order is None else how.images.order())
    title = f"{name.rsplit('-', 2)[0]}, {count} tasks"
    made = sequence(title, parts, "class")
    return replace(made, whole=train_size is None, note=f"{train_size} of each class" if train_size else "")
