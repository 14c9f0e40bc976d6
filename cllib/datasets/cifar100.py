"""CIFAR-100 (Krizhevsky 2009) through torchvision, every file checked before a byte of it is used."""

from pathlib import Path

import torch

from cllib.datasets.files import verify
from cllib.datasets.images import ImageClasses, by_class
from cllib.errors import UserError


def load(root: str | Path, download: bool = False) -> tuple[ImageClasses, ImageClasses]:
    """Train images [100, 500, 32, 32, 3] and test images [100, 100, 32, 32, 3], uint8, in file order per class.

    root, download, errors: see `obtain`.
    """
    obtain(root, download)
    return _part(root, train=True), _part(root, train=False)


def obtain(root: str | Path, download: bool = False) -> None:
    """Make sure that whole files are there, before anything slow is done for them.

    root: the folder that holds, or with `download` will hold, `cifar-100-python/`. Raises `UserError` naming a file
    that is missing or damaged (with the MD5 found and expected), or the address that could not be reached.
    """
    try:
        _check(root)
    except UserError as problem:
        if not download:
            raise UserError(f"{problem}; download=True fetches CIFAR-100 again") from problem
        _download(root, problem)
        _check(root)


def _check(root: str | Path) -> None:
    from torchvision.datasets import CIFAR100

    files = [*CIFAR100.train_list, *CIFAR100.test_list, [CIFAR100.meta["filename"], CIFAR100.meta["md5"]]]
    for name, md5 in files:
        verify(Path(root) / CIFAR100.base_folder / name, md5)


def _download(root: str | Path, problem: UserError) -> None:
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import download_and_extract_archive

    try:
        download_and_extract_archive(CIFAR100.url, root, filename=CIFAR100.filename, md5=CIFAR100.tgz_md5)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{problem}; {CIFAR100.url} could not be downloaded ({error})") from error


def _part(root: str | Path, train: bool) -> ImageClasses:
    from torchvision.datasets import CIFAR100

    data = CIFAR100(root, train=train)
    images, labels = torch.from_numpy(data.data), torch.tensor(data.targets)
    return ImageClasses(by_class(images, labels, len(images) // len(data.classes)), tuple(data.classes))
