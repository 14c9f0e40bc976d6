"""FMNIST-6k: the part of Fashion-MNIST (Xiao et al. 2017, MIT licence beside the file) that ships with this project."""

import hashlib
import lzma
from pathlib import Path

import numpy as np
import torch

from cllib.datasets import mnist
from cllib.datasets.files import write_atomic
from cllib.datasets.labelled import Labelled, subset
from cllib.errors import UserError

FILE = Path(__file__).parents[2] / "data" / "fashion_mnist_6k.xz"
TRAIN, TEST = 600, 200  # images of each of the ten classes
CONTENT = "ef50601a8b54ccff53d2098f67c4f2c79a1c14a00bd08635038bac57c7e171e2"  # SHA-256 of what is packed


def load() -> Labelled:
    """6,000 training and 2,000 test images [N, 1, 28, 28], uint8: the first 600 and 200 of each class, official order.

    Raises `UserError` naming the file if it is missing or damaged.
    """
    names = mnist.NAMES["fashion_mnist"]
    content = torch.from_numpy(np.frombuffer(unpacked(FILE), np.uint8).copy())
    labels, images = content.split([content.numel() // 785, content.numel() // 785 * 784])
    train = TRAIN * len(names)
    x, y = images.view(-1, 1, 28, 28), labels.long()
    return Labelled("FMNIST-6k", x[:train], y[:train], x[train:], y[train:], names)


def unpacked(path: Path) -> bytes:
    """What is packed in the file. Raises `UserError` unless it is what it should be."""
    try:
        content = lzma.decompress(path.read_bytes())
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); it is part of this project's checkout") from error
    if (found := hashlib.sha256(content).hexdigest()) != CONTENT:
        raise UserError(f"{path}: damaged, its content has sha256 {found}, expected {CONTENT}")
    return content


def make(root: str | Path, path: Path = FILE) -> None:
    """Write the file anew from the whole of Fashion-MNIST in `root` (see `mnist.load`).

    It holds a byte for every label, training samples first, then 28 x 28 for every image. Raises `UserError`.
    """
    data = subset(mnist.load("fashion_mnist", root), TRAIN, TEST)
    parts = (data.train_y.byte(), data.test_y.byte(), data.train_x, data.test_x)
    write_atomic(
        path, lzma.compress(b"".join(part.numpy().tobytes() for part in parts), preset=9 | lzma.PRESET_EXTREME)
    )
