"""The same classes seen several times, each time noisier (chapter 1, rules 2.3)."""

from dataclasses import replace

import torch
from torch import Tensor

from cllib.datasets import cifar, noisy_classes
from cllib.datasets.backbones import backbone
from cllib.datasets.files import cache_folder
from cllib.datasets.noisy_classes import NoisyClasses
from cllib.errors import UserError, one_of
from cllib.streams.base import Experience, Stream

IMAGE_STREAMS = ("ns-digits", "ns-cifar100", "ns-imagenet")


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
        cifar.obtain("cifar100", where, download=True)
    net = backbone(network, weights, image_size)
    make = noisy_classes.ns_imagenet if name == "ns-imagenet" else noisy_classes.ns_cifar100
    features = make(where, net, classes=classes, device=device)
    note = f"{network}, weights {net.weights_hash}, {net.image_size} pixels, {classes} classes"
    return replace(noisy_stream(name, features), note=note, whole=classes == 100)
