"""Tiny-ImageNet-200: 200 classes of 500 photographs, 64 x 64, in the folders its archive unpacks to.

Its photographs may not be redistributed and its archive has no official checksum, so nothing is downloaded here.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cllib.datasets.labelled import Labelled
from cllib.errors import UserError, whole, within
from cllib.randomness import generator

SIDE = 64
FOLDER, LIST = "tiny-imagenet-200", "wnids.txt"
ADDRESS = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def load(root: str | Path, seed: int = 0, test_share: float = 0.2) -> Labelled:
    """Images [N, 3, 64, 64], uint8, of the training folder, split into training and test part; grey ones become RGB.

    root: holds `wnids.txt` and `train/`, or the folder `tiny-imagenet-200` that does. Classes are in the order of
    wnids.txt, images by number. The official validation and test folders are left alone, as in the original, which
    cut the classes into five groups, shuffled each and kept a fifth of it to test; here `test_share` of every class is
    drawn by `seed`, so that classes stay balanced and the split depends neither on the number of groups nor on other
    classes. Raises `UserError` naming the list, folder or image that cannot be used.
    """
    whole("seed", seed, 0)
    within("test_share", test_share, 0.01, 0.99)
    folder = located(Path(root))
    names = classes(folder / LIST)
    trains: list[tuple[Path, int]] = []
    tests: list[tuple[Path, int]] = []
    for label, name in enumerate(names):
        files = images_of(folder, name)
        drawn = held(len(files), test_share, seed, name)
        for file, test in zip(files, drawn.tolist(), strict=True):
            (tests if test else trains).append((file, label))
    return Labelled(FOLDER, *read(trains), *read(tests), names)


def located(root: Path) -> Path:
    """The folder with the list of classes: `root`, or the one in it. Raises `UserError` if neither has it."""
    for folder in (root, root / FOLDER):
        if (folder / LIST).is_file():
            return folder
    raise UserError(f"{root / LIST}: missing; data_dir must hold Tiny-ImageNet-200, unpacked from {ADDRESS}")


def classes(path: Path) -> tuple[str, ...]:
    """The names in the list, in its order. Raises `UserError` if there are none, or one is there twice."""
    names = tuple(path.read_text(errors="replace").split())
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: {len(names)} classes, {len(set(names))} different ones; must name each once")
    return names


def images_of(folder: Path, name: str) -> list[Path]:
    """The class's training images, by number. Raises `UserError` if there are less than two."""
    own = folder / "train" / name / "images"
    files = sorted(own.glob("*.JPEG"), key=lambda path: (len(path.name), path.name))  # ..._2 before ..._10
    if len(files) < 2:
        what = f"{len(files)} images (*.JPEG), must be two at least" if own.is_dir() else "no such folder"
        raise UserError(f"{own}: {what}; {LIST} names this class")
    return files


def held(count: int, share: float, seed: int, name: str) -> Tensor:
    """Which images of a class are its test part, [count] bool: at least one, and not all."""
    chosen = min(max(round(count * share), 1), count - 1)
    return torch.randperm(count, generator=generator(seed, f"test part of {name}")) < chosen


def read(samples: Sequence[tuple[Path, int]]) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 64, 64] and their labels [N], decoded by as many threads as there are processors."""
    x = torch.empty(len(samples), 3, SIDE, SIDE, dtype=torch.uint8)

    def fill(k: int) -> None:
        x[k] = torch.from_numpy(pixels(samples[k][0])).permute(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, range(len(samples))):  # taking the results raises what a thread raised
            pass
    return x, torch.tensor([label for _, label in samples])


def pixels(path: Path) -> np.ndarray:
    """One image, [64, 64, 3] uint8. Raises `UserError` naming a file that is no whole image of this size."""
    try:
        with Image.open(path) as image:
            rgb = np.array(image.convert("RGB"))
    except Exception as error:  # Pillow raises a dozen kinds on broken files, SyntaxError among them
        raise UserError(f"{path}: cannot be read as an image ({error})") from error
    if rgb.shape != (SIDE, SIDE, 3):
        raise UserError(f"{path}: {rgb.shape[1]} x {rgb.shape[0]} pixels, must be {SIDE} x {SIDE}")
    return rgb
