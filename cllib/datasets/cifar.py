"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) through torchvision, every file checked before a byte of it is used."""

from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from cllib.datasets.files import verify
from cllib.datasets.images import ImageClasses, by_class
from cllib.datasets.labelled import Labelled
from cllib.errors import UserError


def load(name: str, root: str | Path, download: bool = False) -> Labelled:
    """50,000 training and 10,000 test images [N, 3, 32, 32], uint8, in file order.

    name: "cifar10" or "cifar100"; root, download, errors: see `obtain`.
    """
    obtain(name, root, download)
    train, test = (_torchvision(name)(root, train=part) for part in (True, False))
    return Labelled(name, *_tensors(train), *_tensors(test), tuple(train.classes))


def by_classes(name: str, root: str | Path, download: bool = False) -> tuple[ImageClasses, ImageClasses]:
    """Train and test images grouped by class, [C, n, 32, 32, 3] uint8 each, in file order per class."""
    data = load(name, root, download)
    parts = ((data.train_x, data.train_y), (data.test_x, data.test_y))
    train, test = (by_class(x.permute(0, 2, 3, 1), y, len(y) // data.classes).contiguous() for x, y in parts)
    return ImageClasses(train, data.names), ImageClasses(test, data.names)


def obtain(name: str, root: str | Path, download: bool = False) -> None:
    """Make sure that whole files are there, before anything slow is done for them.

    root: the folder that holds, or with `download` will hold, `cifar-100-python/` (or `cifar-10-batches-py/`). Raises
    `UserError` naming a file that is missing or damaged (with the MD5 found and expected), or the address that could
    not be reached.
    """
    try:
        _check(name, root)
    except UserError as problem:
        if not download:
            raise UserError(f"{problem}; download=True fetches {name} again") from problem
        _download(name, root, problem)
        _check(name, root)


def _torchvision(name: str) -> Any:
    import torchvision.datasets

    return {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]


def _check(name: str, root: str | Path) -> None:
    kind = _torchvision(name)
    for file, md5 in [*kind.train_list, *kind.test_list, [kind.meta["filename"], kind.meta["md5"]]]:
        verify(Path(root) / kind.base_folder / file, md5)


def _download(name: str, root: str | Path, problem: UserError) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    kind = _torchvision(name)
    try:
        download_and_extract_archive(kind.url, root, filename=kind.filename, md5=kind.tgz_md5)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(f"{problem}; {kind.url} could not be downloaded ({error})") from error


def _tensors(part: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, 3, 32, 32] and labels [N] of torchvision's data set."""
    return torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)
