"""CORe50 (Lomonaco & Maltoni 2017): 50 objects of daily use, filmed in 11 sessions, in its official files.

About 165,000 frames of 128 x 128 pixels, 300 of each object in each session; three sessions are for tests. The batches
of NICv2 are official too: ten runs of three variants. All of it is CC BY 4.0.
"""

import os
import re
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from cllib.datasets.clips import EACH, TEST, TRAIN, Clip, Clips
from cllib.datasets.files import set_aside, verify, writable_folder
from cllib.datasets.pickles import unpickle
from cllib.errors import UserError, one_of, whole

SIDE, RUNS = 128, 10  # pixels, official runs of a variant
FIRST, FRAMES = 2999, (293, 300)  # images in the first batch; fewest and most in a film
VARIANTS = ("nicv2_79", "nicv2_196", "nicv2_391")
CATEGORIES = (
    *("plug adapter", "mobile phone", "scissor", "light bulb", "can"),
    *("glass", "ball", "marker", "cup", "remote"),
)
NAMES = tuple(f"{category} {k}" for category in CATEGORIES for k in range(1, EACH + 1))

FOLDER, ARCHIVE, SIZE = "core50_128x128", "core50_128x128.zip", "4.3 GB"
PATHS, BATCHES, LABELS = "paths.pkl", "LUP.pkl", "labels.pkl"
LISTS = "https://vlomonaco.github.io/core50/data/"
FILES = {  # address and MD5, as the core50_data.py of Avalanche (ContinualAI) lists them
    ARCHIVE: (f"http://bias.csr.unibo.it/maltoni/download/core50/{ARCHIVE}", "745f3373fed08d69343f1058ee559e13"),
    PATHS: (LISTS + PATHS, "b568f86998849184df3ec3465290f1b0"),
    BATCHES: (LISTS + BATCHES, "33afc26faa460aca98739137fdfa606e"),
    LABELS: (LISTS + LABELS, "281c95774306a2196f4505f22fd60ab1"),
}
FRAME = re.compile(r"s\d{1,2}/o\d{1,2}/C_(\d\d)_(\d\d)_(\d{3})\.png")
PACKED = re.compile(rf"(?:{FOLDER}/)?({FRAME.pattern})")  # in the archive; no other name is ever unpacked

Array = np.ndarray[Any, Any]


class Frame(NamedTuple):
    """One picture of a film; they sort by session, object and number. name: its path below the frames' folder."""

    session: int
    label: int
    number: int
    name: str


def load(
    root: str | Path,
    variant: str,
    run: int = 0,
    test_every: int = 20,
    image_size: int | None = None,
    check: bool = True,
    download: bool = False,
) -> tuple[Clips, list[list[Clip]]]:
    """The films of a NICv2 stream, images `[N, 3, s, s]` uint8, and its official batches, each a list of films.

    root: holds `paths.pkl`, `LUP.pkl` and `labels.pkl`, which are downloaded if missing or damaged, and the folders
    s1 .. s11 of frames, or their archive, or the folder it unpacks to. variant: one of `VARIANTS`; run: 0 to 9.
    test_every: of the test frames, only every so many-th in the official order is read. image_size: resized to, 128
    where None: all training frames are then 5.9 GB, and are laid out batch after batch, so that a batch can be a
    slice. check: compare the checksums. download: fetch the archive (4.3 GB) if frames are missing. Raises
    `UserError` naming the file that cannot be used, or the address that could not be reached.
    """
    root = Path(root)
    one_of("variant", variant, VARIANTS)
    whole("run", run, 0, RUNS - 1)
    whole("test_every", test_every, 1)
    whole("image_size", SIDE if image_size is None else image_size, 1)
    for name in (PATHS, BATCHES, LABELS):
        obtain(root / name, check, download=True)
    *trains, test = official(root, variant, run)
    parts = [sorted(part) for part in (*trains, test[::test_every])]
    ordered = [frame for part in parts for frame in part]
    folder = unpacked(root, [frame.name for frame in ordered], check, download)
    images = read([folder / frame.name for frame in ordered], image_size or SIDE)
    *batches, tests = films(parts)
    clips = tuple(chain(*batches, tests))
    return Clips("CORe50", images, clips, NAMES, CATEGORIES, TRAIN, TEST), batches


def films(parts: Sequence[Sequence[Frame]]) -> list[list[Clip]]:
    """The films of each part, where all frames, in order, are rows of the images."""
    row, made = 0, []
    for part in parts:
        clips = []
        for (session, label), own in groupby(part, key=lambda frame: (frame.session, frame.label)):
            count = len(list(own))
            clips.append(Clip(label, session, tuple(range(row, row + count))))
            row += count
        made.append(clips)
    return made


def official(root: Path, variant: str, run: int) -> list[list[Frame]]:
    """The frames of every batch, and last of the test, in the official order.

    Raises `UserError` naming the list that is none, or does not fit the others.
    """
    known = listed_frames(root / PATHS)
    rows = numbers(root / BATCHES, variant, run, len(known))
    labels = numbers(root / LABELS, variant, run, len(NAMES))
    parts = [[known[k] for k in part] for part in rows]
    check_labels(f"{root / LABELS}: {variant}, run {run}", parts, labels)
    check_sessions(f"{root / BATCHES}: {variant}, run {run}", parts)
    return parts


def listed_frames(path: Path) -> list[Frame]:
    """All frames that `paths.pkl` names. Raises `UserError` for anything but names of frames."""
    names = unpickle(path)
    if not isinstance(names, list | tuple | np.ndarray):
        raise UserError(f"{path}: must hold a list of paths of frames")
    return [parsed(path, name) for name in names]


def parsed(path: Path, name: object) -> Frame:
    """The frame of a name like s1/o2/C_01_02_003.png. Raises `UserError`, naming the list, for a name that is none."""
    found = FRAME.fullmatch(name) if isinstance(name, str) else None
    session, thing, number = map(int, found.groups()) if found else (0, 0, 0)
    valid = session in TRAIN + TEST and 1 <= thing <= len(NAMES)
    if not valid or name != f"s{session}/o{thing}/C_{session:02}_{thing:02}_{number:03}.png":
        raise UserError(f"{path}: {name!r} is no frame; frames are like s1/o2/C_01_02_003.png")
    return Frame(session, thing - 1, number, str(name))


def numbers(path: Path, variant: str, run: int, high: int) -> list[list[int]]:
    """The lists of one run, one a batch, the last of the test, with numbers below `high`. Raises `UserError` if not."""
    content, where = unpickle(path), f"{path}: {variant}, run {run}"
    try:
        parts = content[variant][run]
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{where}: not in this file") from error
    if not isinstance(parts, list | tuple | np.ndarray) or len(parts) < 2:
        raise UserError(f"{where}: must be a list of batches, the last of them the test")
    return [counted(f"{where}, batch {k}", part, high) for k, part in enumerate(parts)]


def counted(where: str, values: Any, high: int) -> list[int]:
    """The values of one batch as plain numbers. Raises `UserError` unless they are a list of some below `high`."""
    try:
        array = np.asarray(values)
    except ValueError:  # lists of different lengths
        array = np.empty(0)
    whole_numbers = array.ndim == 1 and array.size > 0 and array.dtype.kind in "iu"
    if not whole_numbers or array.min() < 0 or array.max() >= high:
        raise UserError(f"{where}: must be a list of numbers from 0 to {high - 1}")
    chosen: list[int] = array.tolist()
    return chosen


def check_labels(where: str, parts: Sequence[Sequence[Frame]], labels: Sequence[Sequence[int]]) -> None:
    """Raise `UserError` unless every frame has the label of its object."""
    if len(parts) != len(labels):
        raise UserError(f"{where}: {len(labels)} batches; {BATCHES} has {len(parts)}")
    for k, (part, own) in enumerate(zip(parts, labels, strict=True)):
        if len(part) != len(own):
            raise UserError(f"{where}, batch {k}: {len(own)} labels of {len(part)} frames")
        for frame, label in zip(part, own, strict=True):
            if frame.label != label:
                raise UserError(f"{where}, batch {k}: label {label} of {frame.name}, must be {frame.label}")


def check_sessions(where: str, parts: Sequence[Sequence[Frame]]) -> None:
    """Raise `UserError` for a frame that comes twice, or not in the sessions of its part."""
    met: set[Frame] = set()
    for k, part in enumerate(parts):
        allowed, what = (TEST, "the test") if k == len(parts) - 1 else (TRAIN, "a batch")
        for frame in part:
            if frame.session not in allowed:
                named = ", ".join(map(str, allowed))
                raise UserError(f"{where}, batch {k}: {frame.name} cannot be in {what}, which has the sessions {named}")
            if frame in met:
                raise UserError(f"{where}, batch {k}: {frame.name} comes twice")
            met.add(frame)


def obtain(path: Path, check: bool, download: bool) -> None:
    """Make sure that an official file is there and, with `check`, whole; a damaged one is set aside."""
    address, md5 = FILES[path.name]
    if path.exists() and not check:
        return None
    try:
        return verify(path, md5)
    except UserError as problem:
        if not download:
            raise UserError(f"{problem}; download=True fetches it") from problem
        if path.exists():
            set_aside(path, str(problem))
    fetch(path, address, md5)


def fetch(path: Path, address: str, md5: str) -> None:
    """Download a file. Raises `UserError` with its address if that fails, or brings something else."""
    from torchvision.datasets.utils import download_url

    try:
        download_url(address, str(writable_folder(path.parent)), path.name, md5)
    except (OSError, RuntimeError, HTTPException) as error:
        path.unlink(missing_ok=True)
        raise UserError(f"{path}: missing, and {address} could not be downloaded ({error})") from error


def unpacked(root: Path, names: Sequence[str], check: bool, download: bool) -> Path:
    """The folder with all these frames, unpacked from the archive if need be. Raises `UserError` if one is missing."""
    folder = min((root, root / FOLDER), key=lambda place: len(missing(place, names)))
    gone = missing(folder, names)
    if gone and not download and not (root / ARCHIVE).exists():
        raise UserError(
            f"{folder / gone[0]}: missing, one of {len(gone)} missing frames; root must hold CORe50, unpacked from "
            f"{FILES[ARCHIVE][0]}; download=True fetches it ({SIZE})"
        )
    if gone:
        obtain(root / ARCHIVE, check, download)
        unpack(root / ARCHIVE, folder)
        gone = missing(folder, names)
    if gone:
        raise UserError(f"{folder / gone[0]}: missing, one of {len(gone)} frames that are not in {ARCHIVE} either")
    return folder


def missing(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of the files that are not in the folder."""
    return [name for name in names if not os.path.isfile(f"{folder}/{name}")]


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the frames, and nothing else, but those that are there. Raises `UserError` naming what cannot be used."""
    try:
        with zipfile.ZipFile(archive) as packed:
            for member in tqdm(packed.infolist(), f"unpacking {ARCHIVE}", disable=None):
                if found := PACKED.fullmatch(member.filename):
                    put(packed, member, folder / found[1])
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive}: cannot be unpacked to {folder} ({error})") from error


def put(packed: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Write one frame, whole or not at all."""
    if path.is_file() and path.stat().st_size == member.file_size:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(packed.read(member))
    os.replace(part, path)


def read(paths: Sequence[Path], side: int) -> Tensor:
    """Images `[N, 3, side, side]` uint8, decoded by as many threads as there are processors."""
    x = torch.empty(len(paths), 3, side, side, dtype=torch.uint8)

    def fill(k: int) -> None:
        x[k] = torch.from_numpy(pixels(paths[k], side)).permute(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        for _ in tqdm(pool.map(fill, range(len(paths))), "CORe50", len(paths), disable=None):
            pass  # taking the results raises what a thread raised
    return x


def pixels(path: Path, side: int) -> Array:
    """One frame, `[side, side, 3]` uint8. Raises `UserError` naming a file that is no whole image of 128 x 128."""
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except Exception as error:  # Pillow raises a dozen kinds on broken files, SyntaxError among them
        raise UserError(f"{path}: cannot be read as an image ({error})") from error
    if rgb.size != (SIDE, SIDE):
        raise UserError(f"{path}: {rgb.width} x {rgb.height} pixels, must be {SIDE} x {SIDE}")
    return np.array(rgb if side == SIDE else rgb.resize((side, side), Image.Resampling.BILINEAR))
