"""A folder of class folders, one image file per sample: anybody's own images."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cllib.datasets.labelled import Labelled
from cllib.errors import UserError, whole, within

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TEST_NAMES = ("test", "val")


def load(root: str | Path, image_size: int = 32, test_share: float = 0.2) -> Labelled:
    """RGB images [N, 3, image_size, image_size], uint8: shorter side resized, centre cut out.

    root: holds `train/CLASS/...` and `test/CLASS/...` (or `val/CLASS/...`), or just `CLASS/...`; then the last
    `test_share` of every class, by name, is its test part. Classes are sorted by name. Raises `UserError` naming the
    folder or image that cannot be used.
    """
    whole("image_size", image_size, 1)
    within("test_share", test_share, 0.01, 0.99)
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; data_dir must name a folder of class folders")
    trains, tests = halves(root, test_share)
    names = tuple(sorted(trains))
    train_x, train_y = read([(path, names.index(name)) for name in names for path in trains[name]], image_size)
    test_x, test_y = read([(path, names.index(name)) for name in names for path in tests[name]], image_size)
    return Labelled(root.resolve().name, train_x, train_y, test_x, test_y, names)


def halves(root: Path, test_share: float) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Training and test files by class."""
    if not (root / "train").is_dir():
        files = by_class(root)
        cut = {name: max(1, round(len(paths) * (1 - test_share))) for name, paths in files.items()}
        for name, paths in files.items():
            if len(paths) < 2:
                raise UserError(f"{root / name}: a class needs two images at least, one to train and one to test")
            cut[name] = min(cut[name], len(paths) - 1)
        return {n: p[: cut[n]] for n, p in files.items()}, {n: p[cut[n] :] for n, p in files.items()}
    held = next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
    if held is None:
        raise UserError(f"{root}: has train/ but neither test/ nor val/")
    trains, tests = by_class(root / "train"), by_class(held)
    if trains.keys() != tests.keys():
        odd = ", ".join(sorted(trains.keys() ^ tests.keys()))
        raise UserError(f"{root}: train/ and {held.name}/ must hold the same classes; only one of them has {odd}")
    return trains, tests


def by_class(folder: Path) -> dict[str, list[Path]]:
    """Image files below each class folder, sorted by name. Raises `UserError` if a class has none."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise UserError(f"{folder}: {len(classes)} class folders; there must be two at least")
    files = {path.name: sorted(images_in(path)) for path in classes}
    for name, paths in files.items():
        if not paths:
            raise UserError(f"{folder / name}: no image in this class folder; known are {', '.join(sorted(ENDINGS))}")
    return files


def images_in(folder: Path) -> Iterator[Path]:
    """Image files at any depth, but none that are hidden."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in ENDINGS and not hidden:
            yield path


def read(samples: list[tuple[Path, int]], image_size: int) -> tuple[Tensor, Tensor]:
    """Images [N, 3, s, s] and their labels [N]."""
    images = torch.stack([torch.from_numpy(squared(path, image_size)) for path, _ in samples])  # [N, s, s, 3]
    return images.permute(0, 3, 1, 2).contiguous(), torch.tensor([label for _, label in samples])


def squared(path: Path, side: int) -> np.ndarray:
    """One image as [side, side, 3] uint8, upright. Raises `UserError` naming a file that is no whole image."""
    try:
        with Image.open(path) as image:
            rgb = eight_bit_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow raises a dozen kinds on broken files, SyntaxError among them
        raise UserError(f"{path}: cannot be read as an image ({error})") from error
    scale = side / min(rgb.size)
    width, height = (max(side, round(length * scale)) for length in rgb.size)
    rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - side) // 2, (height - side) // 2
    return np.array(rgb.crop((left, top, left + side, top + side)))


def eight_bit_rgb(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits scaled to 8, what is transparent on white. Raises ValueError for other depths."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits a colour")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")
