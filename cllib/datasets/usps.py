"""USPS digits (Hull 1994) through torchvision, both files checked before a byte of them is used."""

from http.client import HTTPException
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cllib.datasets.files import set_aside, verify, writable_folder
from cllib.datasets.labelled import Labelled
from cllib.errors import UserError

MARGIN = 6  # pixels on each side: 16 x 16 to MNIST's 28 x 28


def load(root: str | Path, download: bool = True) -> Labelled:
    """7,291 training and 2,007 test images [N, 1, 28, 28], uint8: 16 x 16 pixels inside a margin of zeros.

    root: the folder that holds, or with `download` will hold, `usps.bz2` and `usps.t.bz2`. download: fetch what is
    missing or damaged; a damaged file is set aside. Raises `UserError` naming the file that cannot be used, or the
    address that could not be reached.
    """
    for part in ("train", "test"):
        obtain(Path(root), part, download)
    return Labelled("USPS", *tensors(root, "train"), *tensors(root, "test"), tuple("0123456789"))


def obtain(root: Path, part: str, download: bool) -> None:
    """Make sure that the file of a part is there and whole."""
    from torchvision.datasets import USPS
    from torchvision.datasets.utils import download_url

    address, name, md5 = USPS.split_list[part]
    try:
        return verify(root / name, md5)
    except UserError as problem:
        if not download:
            raise UserError(f"{problem}; download=True fetches it") from problem
        if (root / name).exists():
            set_aside(root / name, str(problem))
    try:
        download_url(address, str(writable_folder(root)), name, md5)
    except (OSError, RuntimeError, HTTPException) as error:
        (root / name).unlink(missing_ok=True)
        raise UserError(f"{root / name}: missing, and {address} could not be downloaded ({error})") from error


def tensors(root: str | Path, part: str) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 28, 28] and labels [N] of a part whose file is whole."""
    from torchvision.datasets import USPS

    data = USPS(root, train=part == "train")
    return F.pad(torch.from_numpy(data.data)[:, None], [MARGIN] * 4), torch.tensor(data.targets)
