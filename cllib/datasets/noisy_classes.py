"""The ns- data sets: the same classes seen through several levels of noise, ready to be made into a stream."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cllib.datasets import cifar, digits, mini_imagenet
from cllib.datasets.backbones import Backbone
from cllib.datasets.features import extract
from cllib.datasets.images import ImageClasses, by_class
from cllib.datasets.noise import EFFECTIVE_STD, noise_versions
from cllib.errors import within


@dataclass(frozen=True)
class NoisyClasses:
    """`train`, `val`, `test`: [V, C, n, D] float32, n samples in fixed order of C classes in V noise versions.

    `noise`: the V effective standard deviations; `names`: the C class names.
    """

    train: Tensor
    val: Tensor
    test: Tensor
    noise: tuple[float, ...]
    names: tuple[str, ...]


Sizes = tuple[int, int, int]


def ns_digits(noise: Sequence[float] = (0.0, 0.1, 0.3), sizes: Sizes = (120, 0, 50), seed: int = 0) -> NoisyClasses:
    """scikit-learn's digits, D = 64 pixels (ours, rules 2.3).

    sizes: train, validation and test samples per class and version, by position; (100, 20, 50) validates on the last
    20 of each class's 120. Raises `UserError` if they exceed the smallest class (174).
    """
    x, y = digits.load()
    versions = torch.stack([by_class(noisy, y, sum(sizes)) for noisy in noise_versions(x, noise, seed)])
    return _split(versions, sizes, noise, tuple(str(digit) for digit in range(10)))


def ns_imagenet(
    root: str | Path,
    net: Backbone,
    noise: Sequence[float] = EFFECTIVE_STD,
    sizes: Sizes = (420, 60, 120),
    seed: int = 0,
    classes: int = 100,
    **extraction: Any,
) -> NoisyClasses:
    """mini-ImageNet in `root` through the frozen `net`, 100 classes (the paper's ns-ImageNet, rules 2.3).

    sizes: train, validation and test samples per class and version, by position. classes: only the first so many,
    for a trial. extraction: folder, device, batch_size and progress of `features.extract`. Raises `UserError`.
    """
    data = mini_imagenet.load(root)
    return _noisy_features(_first(data, classes, sum(sizes)), net, noise, sizes, seed, **extraction)


def ns_cifar100(
    root: str | Path,
    net: Backbone,
    noise: Sequence[float] = EFFECTIVE_STD,
    sizes: Sizes = (420, 80, 100),
    seed: int = 0,
    classes: int = 100,
    download: bool = False,
    **extraction: Any,
) -> NoisyClasses:
    """CIFAR-100 in `root` through the frozen `net` (ours): validation is the end of the 500 training images per class.

    sizes, classes, extraction: as in `ns_imagenet`. download: fetch what is missing or damaged. Raises `UserError`.
    """
    train, test = cifar.by_classes("cifar100", root, download)
    train, test = _first(train, classes, sizes[0] + sizes[1]), _first(test, classes, sizes[2])
    both = ImageClasses(torch.cat([train.images, test.images], dim=1), train.names)  # [C, 600, 32, 32, 3]
    return _noisy_features(both, net, noise, sizes, seed, **extraction)


def _first(data: ImageClasses, classes: int, count: int) -> ImageClasses:
    available, most = data.images.shape[:2]
    within("classes", classes, 1, available)
    within("samples per class (sizes)", count, 1, most)
    return ImageClasses(data.images[:classes, :count], data.names[:classes])


def _noisy_features(
    data: ImageClasses, net: Backbone, noise: Sequence[float], sizes: Sizes, seed: int, **extraction: Any
) -> NoisyClasses:
    classes, count = data.images.shape[:2]
    features = extract(data.images.flatten(0, 1), net, noise, seed, **extraction)  # [V, C * n, D]
    return _split(features.unflatten(1, (classes, count)), sizes, noise, data.names)


def _split(x: Tensor, sizes: Sizes, noise: Sequence[float], names: tuple[str, ...]) -> NoisyClasses:
    """Cut x ([V, C, n, D], n the sum of the sizes) by position along n."""
    for size in sizes:
        within("sizes", size, 0)
    train, val, test = x.split(list(sizes), dim=2)
    return NoisyClasses(train, val, test, tuple(noise), names)
