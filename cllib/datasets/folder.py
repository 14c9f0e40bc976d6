"""A folder of class folders, one image file per sample: anybody's own images."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cllib.datasets.labelled import Labelled
from cllib.errors import UserError, whole, within

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
# How people call the parts, in any case and with _ or - inside; of the tests the first that is there.
TRAINS = ("train", "training", "trainset", "trainingset")
TESTS = ("test", "testing", "testset", "val", "valid", "validation", "valset", "validationset", "eval", "dev")

Files = dict[str, list[Path]]


def load(root: str | Path, image_size: int = 32, test_share: float = 0.2) -> Labelled:
    """RGB images [N, 3, image_size, image_size], uint8: shorter side resized, centre cut out.

    root: holds `train/CLASS/...` and `test/CLASS/...` (or as `TRAINS` and `TESTS` say), or just `CLASS/...`; then the
    last `test_share` of every class, by name, is its test part. Classes are sorted by name. Prints a line on what was
    found, and what was left out. Raises `UserError` naming the folder or image that cannot be used.
    """
    whole("image_size", image_size, 1)
    root = Path(root)
    trains, tests = halves(root, test_share)
    names = tuple(sorted(trains))
    print(summary(root, trains, tests))
    train_x, train_y = read([(path, names.index(name)) for name in names for path in trains[name]], image_size)
    test_x, test_y = read([(path, names.index(name)) for name in names for path in tests[name]], image_size)
    return Labelled(root.resolve().name, train_x, train_y, test_x, test_y, names)


def halves(root: Path, test_share: float = 0.2) -> tuple[Files, Files]:
    """Training and test files by class: just what `load` reads."""
    within("test_share", test_share, 0.01, 0.99)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; data_dir must name a folder of class folders")
    train, test = part(root, TRAINS), part(root, TESTS)
    if train is None and test is None:
        return divided(root, by_class(root), test_share)
    if test is None:
        raise UserError(f"{root}: has {train.name}/ but neither test/ nor val/")  # type: ignore[union-attr]
    if train is None:
        raise UserError(f"{root}: has {test.name}/ but no train/")
    trains, tests = by_class(train), by_class(test)
    if trains.keys() != tests.keys():
        odd = ", ".join(sorted(trains.keys() ^ tests.keys()))
        raise UserError(
            f"{root}: {train.name}/ and {test.name}/ must hold the same classes; only one of them has {odd}"
        )
    return trains, tests


def part(root: Path, spellings: tuple[str, ...]) -> Path | None:
    """The folder of class folders in `root` that is called like this; one with images is a class of that name."""
    called = {plain(path): path for path in folders_in(root) if plain(path) in spellings}
    return next((called[name] for name in spellings if name in called and is_part(called[name])), None)


def is_part(folder: Path) -> bool:
    """Whether a folder holds class folders, and not the images of a class, a stray one aside."""
    inner = [path for path in folders_in(folder) if images_in(path)]
    return len(inner) > 1 or not images_in(folder, deep=False)


def plain(path: Path) -> str:
    """The name of a folder in small letters, without what joins words."""
    return re.sub("[ _-]", "", path.name.lower())


def divided(root: Path, files: Files, test_share: float) -> tuple[Files, Files]:
    """The last `test_share` of every class for tests: at least one of its images, and not all."""
    cut = {}
    for name, paths in files.items():
        if len(paths) < 2:
            raise UserError(f"{root / name}: a class needs two images at least, one to train and one to test")
        cut[name] = min(max(1, round(len(paths) * (1 - test_share))), len(paths) - 1)
    return {n: p[: cut[n]] for n, p in files.items()}, {n: p[cut[n] :] for n, p in files.items()}


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder by name, linked ones too, but none that are hidden."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def by_class(folder: Path) -> Files:
    """Image files below each class folder, sorted by name. Raises `UserError` for what is no folder of classes."""
    classes = folders_in(folder)
    if len(classes) < 2:
        raise UserError(f"{folder}: {len(classes)} class folders; there must be two at least")
    if all(plain(path) in (*TRAINS, *TESTS) for path in classes):
        named = ", ".join(path.name for path in classes)
        raise UserError(f"{folder}: {named} are names of parts, not of classes; each must hold one folder a class")
    files = {path.name: images_in(path) for path in classes}
    for path in classes:
        if not files[path.name]:
            raise UserError(f"{path}: no image in this class folder; known are {', '.join(sorted(ENDINGS))}")
        if not images_in(path, deep=False):
            raise UserError(f"{path}: holds only folders; a class folder must hold images")
        if any(plain(inner) in (*TRAINS, *TESTS) for inner in folders_in(path)):
            raise UserError(f"{path}: holds parts; give train/CLASS and test/CLASS, parts outside and classes inside")
    return files


def images_in(folder: Path, deep: bool = True) -> list[Path]:
    """Image files by name, at any depth (else only right in the folder); hidden and linked folders are left alone."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            found += images_in(path) if deep and not path.is_symlink() else []
        elif path.suffix.lower() in ENDINGS:
            found.append(path)
    return sorted(found)


def summary(root: Path, trains: Files, tests: Files) -> str:
    """One line: classes, images, and what is left out, counted and named."""
    parts = [[path for paths in files.values() for path in paths] for files in (trains, tests)]
    used = set(parts[0] + parts[1])
    left = list(left_out(root, used, {parent for path in used for parent in path.parents}))
    files, folders = [p for p in left if not p.is_dir()], [p for p in left if p.is_dir()]
    said = [f"{len(trains)} classes, {len(parts[0])} + {len(parts[1])} images"]
    deeper = sum(path.parent.name != name for files in (trains, tests) for name in files for path in files[name])
    said += [f"{deeper} of them in folders of their own"] if deeper else []
    for what, found in (("files", files), ("folders", folders)):
        kinds = sorted({path.suffix or path.name if what == "files" else path.name for path in found})
        kinds = kinds if len(kinds) < 6 else [*kinds[:5], "..."]
        said += [f"{len(found)} {what if len(found) > 1 else what[:-1]} left out ({', '.join(kinds)})"] if found else []
    return " ".join(f"{root.resolve().name}: {', '.join(said)}".split())


def left_out(folder: Path, used: set[Path], entered: set[Path]) -> Iterator[Path]:
    """Files that were not read, and folders that nothing was read from."""
    for path in sorted(folder.iterdir()):
        if path in entered:
            yield from left_out(path, used, entered)
        elif path not in used:
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
