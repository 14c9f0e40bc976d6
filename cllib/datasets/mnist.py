"""MNIST and Fashion-MNIST from their four files, whose *content* is checked: torchvision looks at their names only."""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cllib.datasets.files import writable_folder
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
    `FashionMNIST/raw/`, with the files packed (.gz) or not; where both lie there the packed ones are read. Raises
    `UserError` naming a file that is missing or damaged, before a byte of it is used, or the address that could not be
    reached.
    """
    folder = Path(root) / FOLDERS[name]
    if download:
        _fetch(name, folder)
    files = [parse(content(folder / file, md5)) for file, md5 in CONTENT[name].items()]
    train_x, train_y, test_x, test_y = files
    return Labelled(name, train_x[:, None], train_y.long(), test_x[:, None], test_y.long(), NAMES[name])


def content(path: Path, expected: str) -> bytes:
    """What the file holds, unpacked. Raises `UserError` if its MD5 is not the expected one."""
    packed = path.with_name(path.name + ".gz")
    found = packed if packed.exists() else path
    try:
        data = gzip.decompress(found.read_bytes()) if found == packed else found.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: missing, packed (.gz) or not; download=True fetches it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{found}: damaged file ({error}); delete it, download=True fetches it again") from error
    digest = hashlib.md5(data).hexdigest()
    if digest != expected:
        raise UserError(
            f"{found}: damaged or another file under this name, content has md5 {digest}, expected {expected}; "
            "delete it, download=True fetches it again"
        )
    return data


def parse(data: bytes) -> Tensor:
    """The array in an idx file: two zeros, type 8 (bytes), number of dimensions, sizes (big-endian), values."""
    dimensions = data[3]
    shape = np.frombuffer(data, ">i4", dimensions, offset=4)
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy())


def _fetch(name: str, folder: Path) -> None:
    """Download what is not there, packed, from torchvision's addresses."""
    import torchvision.datasets
    from torchvision.datasets.utils import download_url

    kind = {"mnist": torchvision.datasets.MNIST, "fashion_mnist": torchvision.datasets.FashionMNIST}[name]
    for file, md5 in kind.resources:
        if (folder / file).exists() or (folder / file.removesuffix(".gz")).exists():
            continue
        problems = []
        for mirror in kind.mirrors:
            try:
                download_url(mirror + file, str(writable_folder(folder)), file, md5)
                break
            except (OSError, RuntimeError) as error:
                problems.append(f"{mirror}{file} could not be downloaded ({error})")
        else:
            raise UserError(f"{folder / file}: missing; {'; '.join(problems)}")
