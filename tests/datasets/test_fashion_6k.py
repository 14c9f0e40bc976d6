"""The part of Fashion-MNIST that ships: what is in it, that damage is noticed, and how it is made."""

import gzip
import hashlib
import lzma
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from cllib.datasets import fashion_6k, mnist
from cllib.datasets.labelled import subset
from cllib.errors import UserError


def test_it_holds_600_and_200_images_of_each_class() -> None:
    data = fashion_6k.load()
    assert data.name == "FMNIST-6k" and data.names[9] == "Ankle boot" and data.shape == (1, 28, 28)
    assert data.train_x.dtype == data.test_x.dtype == torch.uint8 and data.train_y.dtype == torch.int64
    assert torch.bincount(data.train_y).tolist() == [600] * 10 and torch.bincount(data.test_y).tolist() == [200] * 10
    # The known beginnings of the official files.
    assert data.train_y[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert data.test_y[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    trousers, bags = (data.train_x[data.train_y == c].float().mean((0, 1)) for c in (1, 8))
    assert bags[14, 2] > 3 * trousers[14, 2] and bags.mean() > trousers.mean()  # trousers leave the sides empty


def test_it_is_small_and_has_its_licence_beside_it() -> None:
    assert fashion_6k.FILE.stat().st_size < 4_500_000
    licence = (fashion_6k.FILE.parent / "FASHION_MNIST_LICENSE").read_text()
    assert "MIT" in licence and "Zalando SE" in licence and fashion_6k.FILE.name in licence


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped", "another"])
def test_damage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    path, packed = tmp_path / "part.xz", bytearray(fashion_6k.FILE.read_bytes())
    if damage == "flipped":
        packed[len(packed) // 2] ^= 1
    content = {"truncated": packed[:-9], "another": lzma.compress(b"shoes"), "flipped": packed}
    if damage != "missing":
        path.write_bytes(content[damage])
    monkeypatch.setattr(fashion_6k, "FILE", path)
    with pytest.raises(UserError) as caught:
        fashion_6k.load()
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "damaged" in message and "\n" not in message
    assert (fashion_6k.CONTENT in message) == (damage == "another")


def test_it_is_made_from_the_first_of_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a miniature of the official files: 3 + 2 images of each class, of which 2 + 1 are packed."""
    draws, folder = np.random.default_rng(0), tmp_path / mnist.FOLDERS["fashion_mnist"]
    folder.mkdir(parents=True)
    sums = {}
    for file, each in zip(mnist.CONTENT["fashion_mnist"], (3, 3, 2, 2), strict=True):
        labels = draws.permutation(np.repeat(np.arange(10, dtype=np.uint8), each))
        array = labels if "labels" in file else draws.integers(0, 256, (10 * each, 28, 28), dtype=np.uint8)
        raw = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
        (folder / f"{file}.gz").write_bytes(gzip.compress(raw))
        sums[file] = hashlib.md5(raw).hexdigest()
    monkeypatch.setitem(mnist.CONTENT, "fashion_mnist", sums)
    path = tmp_path / "part.xz"
    for name, value in (("TRAIN", 2), ("TEST", 1), ("FILE", path)):
        monkeypatch.setattr(fashion_6k, name, value)
    fashion_6k.make(tmp_path, path)
    monkeypatch.setattr(fashion_6k, "CONTENT", hashlib.sha256(lzma.decompress(path.read_bytes())).hexdigest())
    whole, part = subset(mnist.load("fashion_mnist", tmp_path), 2, 1), fashion_6k.load()
    for name in ("train_x", "train_y", "test_x", "test_y"):
        assert torch.equal(getattr(part, name), getattr(whole, name))


@pytest.mark.skipif("CLLIB_FASHION_MNIST" not in os.environ, reason="CLLIB_FASHION_MNIST names no real Fashion-MNIST")
def test_it_is_the_beginning_of_the_real_one() -> None:
    whole, part = subset(mnist.load("fashion_mnist", os.environ["CLLIB_FASHION_MNIST"]), 600, 200), fashion_6k.load()
    for name in ("train_x", "train_y", "test_x", "test_y"):
        assert torch.equal(getattr(part, name), getattr(whole, name))
