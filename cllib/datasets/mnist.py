"""MNIST and Fashion-MNIST from their four files, whose *content* is checked: torchvision looks at their names only."""

import gzip
import hashlib
import zlib
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cllib.datasets.files import set_aside, writable_folder
from cllib.datasets.labelled import Labelled
from cllib.errors import UserError

# Folder under the root, as torchvision lays it out, and the MD5 of every file's uncompressed content.
FOLDERS = {"mnist": "MNIST/raw", "fashion_mnist": "FashionMNIST/raw"}
CONTENT = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
NAMES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}


def load(name: str, root: str | Path, download: bool = False) -> Labelled:
    """60,000 training and 10,000 test images [N, 1, 28, 28], uint8.

    name: "mnist" or "fashion_mnist"; root: the folder that holds, or with `download` will hold, `MNIST/raw/` or
    `FashionMNIST/raw/`, with the files packed (.gz) or not. download: fetch what is missing or damaged; damaged files
    are set aside. Raises `UserError` naming a file that cannot be used, before a byte of it is, or the address that
    could not be reached.
    """
    folder = Path(root) / FOLDERS[name]
    files = [parse(obtain(name, folder / file, md5, download)) for file, md5 in CONTENT[name].items()]
    train_x, train_y, test_x, test_y = files
    return Labelled(name, train_x[:, None], train_y.long(), test_x[:, None], test_y.long(), NAMES[name])


def obtain(name: str, path: Path, md5: str, download: bool) -> bytes:
    """The unpacked content of a file, fetched if it is not there whole and `download` is set."""
    try:
        return content(path, md5)
    except UserError as problem:
        if not download:
            raise UserError(f"{problem}; download=True fetches it") from problem
        for damaged in (packed(path), path):
            if damaged.exists():
                set_aside(damaged, str(problem))
        _fetch(name, path, problem)
        return content(path, md5)


def packed(path: Path) -> Path:
    """The file's packed form."""
    return path.with_name(path.name + ".gz")


def content(path: Path, expected: str) -> bytes:
    """What the file holds, unpacked, from its packed form or itself, whichever is whole.

    Raises `UserError` if there is neither, or neither has content of the expected MD5.
    """
    problems = []
    for found in (packed(path), path):
        if not found.exists():
            continue
        try:
            data = gzip.decompress(found.read_bytes()) if found == packed(path) else found.read_bytes()
        except (OSError, EOFError, zlib.error) as error:
            problems.append(f"{found}: damaged file, or not to be read ({error})")
            continue
        digest = hashlib.md5(data).hexdigest()
        if digest == expected:
            return data
        problems.append(
            f"{found}: damaged, or another file under this name: its content has md5 {digest}, expected {expected}"
        )
    raise UserError("; ".join(problems) or f"{path}: missing, packed (.gz) or not")


def parse(data: bytes) -> Tensor:
    """The array in an idx file: two zeros, type 8 (bytes), number of dimensions, sizes (big-endian), values."""
    dimensions = data[3]
    shape = np.frombuffer(data, ">i4", dimensions, offset=4)
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy())


def _fetch(name: str, path: Path, problem: UserError) -> None:
    """Download the packed file from one of torchvision's addresses; nothing is left of a download that breaks off."""
    import torchvision.datasets
    from torchvision.datasets.utils import download_url

    kind = {"mnist": torchvision.datasets.MNIST, "fashion_mnist": torchvision.datasets.FashionMNIST}[name]
    problems, md5 = [str(problem)], dict(kind.resources)[packed(path).name]
    for mirror in kind.mirrors:
        address = mirror + packed(path).name
        try:
            download_url(address, str(writable_folder(path.parent)), packed(path).name, md5)
            return
        except (OSError, RuntimeError, HTTPException) as error:
            packed(path).unlink(missing_ok=True)
            problems.append(f"{address} could not be downloaded ({error})")
    raise UserError("; ".join(problems))
