"""mini-ImageNet (Vinyals et al. 2016, split of Ravi & Larochelle 2017): 100 classes of 600 images, 84x84.

Its photographs may not be redistributed, so nothing is downloaded here: bring your copy, in either of its two layouts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from cllib.datasets.images import ImageClasses
from cllib.datasets.pickles import unpickle
from cllib.errors import UserError

SPLITS = {"train": 64, "val": 16, "test": 20}  # classes in each, stacked in this order
PICKLE = "mini-imagenet-cache-{}.pkl"
LAYOUTS = (
    "expected folders train/, val/ and test/ with one folder of images per class (or the class folders alone), "
    f"or the three files {PICKLE.format('{train,val,test}')}"
)

Array = np.ndarray[Any, Any]


def load(
    root: str | Path, splits: Mapping[str, int] = SPLITS, per_class: int = 600, size: int = 84, progress: bool = True
) -> ImageClasses:
    """All images: [100, 600, 84, 84, 3] uint8, classes by name inside train, val and test, images by file name or row.

    root: the folder in one of the two layouts. splits: classes in each; per_class: images in each class; size: images
    in folders are resized to size x size where they differ. Raises `UserError` naming the folder, class or file that
    is missing, damaged or not of the expected count.
    """
    root = Path(root)
    if any((root / PICKLE.format(split)).is_file() for split in splits):
        classes = {s: _read_pickle(root / PICKLE.format(s), count, per_class, size) for s, count in splits.items()}
        images, names = zip(*(item for part in classes.values() for item in part), strict=True)
    else:
        folders = _class_folders(root, splits)
        names = tuple(folder.name for folder in folders)
        images = tuple(_read_folder(f, per_class, size) for f in tqdm(folders, "mini-ImageNet", disable=not progress))
    return ImageClasses(torch.from_numpy(np.stack(images)), names)


def _class_folders(root: Path, splits: Mapping[str, int]) -> list[Path]:
    if any((root / split).is_dir() for split in splits):
        return [folder for split, count in splits.items() for folder in _folders(root / split, count)]
    return _folders(root, sum(splits.values()))


def _folders(parent: Path, count: int) -> list[Path]:
    if not parent.is_dir():
        raise UserError(f"{parent}: no such folder; {LAYOUTS}")
    folders = [path for path in _visible(parent) if path.is_dir()]
    if len(folders) != count:
        raise UserError(f"{parent}: {len(folders)} class folders, must be {count}; {LAYOUTS}")
    return folders


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _read_folder(folder: Path, per_class: int, size: int) -> Array:
    files = [path for path in _visible(folder) if path.suffix.lower() in {".jpg", ".jpeg", ".png"}]
    _check_count(folder, "images", len(files), per_class)
    return np.stack([_read_image(path, size) for path in files])  # [n, size, size, 3]


def _check_count(where: Path, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(f"{where}: {found} {what}, must be {expected}")


def _read_image(path: Path, size: int) -> Array:
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except Exception as error:  # each of Pillow's decoders fails in its own way: OSError, SyntaxError, struct.error...
        raise UserError(f"{path}: unreadable or truncated image ({error})") from error
    return np.asarray(rgb if rgb.size == (size, size) else rgb.resize((size, size), Image.Resampling.BILINEAR))


def _read_pickle(path: Path, classes: int, per_class: int, size: int) -> list[tuple[Array, str]]:
    content = unpickle(path)
    if not isinstance(content, dict) or not {"image_data", "class_dict"} <= content.keys():
        raise UserError(f"{path}: must hold a dict with image_data and class_dict")
    images, rows = content["image_data"], content["class_dict"]
    if not isinstance(rows, dict):
        raise UserError(f"{path}: class_dict must be a dict of rows by class name")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
        raise UserError(f"{path}: image_data must be uint8 of shape [n, {size}, {size}, 3]")
    _check_count(path, "classes", len(rows), classes)
    chosen = {name: np.asarray(rows[name]) for name in sorted(rows)}
    for name, row in chosen.items():
        _check_count(path, f"images of {name}", row.size, per_class)
        if row.dtype.kind not in "iu" or not 0 <= row.min() <= row.max() < len(images):
            raise UserError(f"{path}: rows of {name} must be numbers from 0 to {len(images) - 1}")
    return [(images[row], name) for name, row in chosen.items()]
