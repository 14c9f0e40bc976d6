"""mini-ImageNet in both layouts, on a miniature: 3 + 2 + 1 classes of 4 images of 8 x 8."""

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cllib.datasets import mini_imagenet
from cllib.datasets.images import ImageClasses
from cllib.errors import UserError

SPLITS = {"train": 3, "val": 2, "test": 1}
NAMES = {"train": ("n03", "n01", "n02"), "val": ("n05", "n04"), "test": ("n00",)}
ORDER = ("n01", "n02", "n03", "n04", "n05", "n00")  # by name inside train, val, test
PER_CLASS, SIZE = 4, 8

Arrays = dict[str, np.ndarray[Any, Any]]


def load(root: Path) -> ImageClasses:
    return mini_imagenet.load(root, SPLITS, PER_CLASS, SIZE, progress=False)


@pytest.fixture
def pixels() -> Arrays:
    draws = np.random.default_rng(0)
    return {name: draws.integers(0, 256, (PER_CLASS, SIZE, SIZE, 3), dtype=np.uint8) for name in ORDER}


def write_folders(root: Path, pixels: Arrays, splits: bool = True) -> Path:
    for split, names in NAMES.items():
        for name in names:
            folder = root / split / name if splits else root / name
            folder.mkdir(parents=True)
            for row, image in enumerate(pixels[name]):
                Image.fromarray(image).save(folder / f"{row:04}.png")
    return root


def content(split: str, pixels: Arrays) -> dict[str, Any]:
    """Rows are interleaved, so that a reader that forgot the row indices would be found out."""
    images = np.stack([pixels[name] for name in NAMES[split]], axis=1).reshape(-1, SIZE, SIZE, 3)
    count = len(NAMES[split])
    return {
        "image_data": images,
        "class_dict": {n: [*range(k, len(images), count)] for k, n in enumerate(NAMES[split])},
    }


def write_pickles(root: Path, pixels: Arrays, protocol: int = 2) -> Path:
    for split in NAMES:
        (root / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(content(split, pixels), protocol))
    return root


def same(data: ImageClasses, pixels: Arrays) -> bool:
    return data.names == ORDER and torch.equal(data.images, torch.tensor(np.stack([pixels[name] for name in ORDER])))


@pytest.mark.parametrize("splits", [True, False], ids=["train/val/test", "classes alone"])
def test_folders(tmp_path: Path, pixels: Arrays, splits: bool) -> None:
    data = load(write_folders(tmp_path, pixels, splits))
    assert data.images.dtype == torch.uint8
    if splits:
        assert same(data, pixels)
    else:
        assert data.names == tuple(sorted(ORDER))
        assert torch.equal(data.images, torch.tensor(np.stack([pixels[name] for name in sorted(ORDER)])))


def test_images_of_another_size_or_mode_are_brought_to_it_and_other_files_passed_over(
    tmp_path: Path, pixels: Arrays
) -> None:
    folder = write_folders(tmp_path, pixels) / "train" / "n01"
    Image.new("RGB", (20, 11), (10, 200, 30)).save(folder / "0001.png")
    Image.new("L", (SIZE, SIZE), 77).save(folder / "0002.png")
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "._0001.png").write_bytes(b"x")
    (folder / "readme.txt").write_bytes(b"x")
    data = load(tmp_path)
    assert data.images.shape == (6, PER_CLASS, SIZE, SIZE, 3)
    assert (data.images[0, 1] == torch.tensor([10, 200, 30], dtype=torch.uint8)).all()
    assert (data.images[0, 2] == 77).all()


def test_jpegs_are_read(tmp_path: Path, pixels: Arrays) -> None:
    folder = write_folders(tmp_path, pixels) / "test" / "n00"
    (folder / "0003.png").unlink()
    Image.new("RGB", (SIZE, SIZE), (128, 128, 128)).save(folder / "0003.JPG", "JPEG")
    assert (load(tmp_path).images[5, 3].int() - 128).abs().max() <= 1


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickles(tmp_path: Path, pixels: Arrays, protocol: int) -> None:
    assert same(load(write_pickles(tmp_path, pixels, protocol)), pixels)


def test_pickles_written_under_numpy_1(tmp_path: Path, pixels: Arrays) -> None:
    for path in write_pickles(tmp_path, pixels).iterdir():
        old = path.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core.")
        assert b"cnumpy.core." in old and b"_core" not in old
        path.write_bytes(old)
    assert same(load(tmp_path), pixels)


def python2_pickle(data: dict[str, Any]) -> bytes:
    """What Python 2 wrote: text and pixels alike are byte strings (opcodes U and T), which Python 3 cannot write."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    images, rows = data["image_data"], data["class_dict"]
    dtype = (
        b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNN" + number(-1) * 2 + b"K\x00tb"
    )
    pixels = b"T" + struct.pack("<i", images.nbytes) + images.tobytes()
    shape = b"(" + b"".join(map(number, images.shape)) + b"t"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
    array += b"(K\x01" + shape + dtype + b"\x89" + pixels + b"tb"
    lists = b"".join(text(name) + b"](" + b"".join(map(number, row)) + b"e" for name, row in rows.items())
    return b"\x80\x02}(" + text("image_data") + array + text("class_dict") + b"}(" + lists + b"uu."


def test_pickles_written_by_python_2(tmp_path: Path, pixels: Arrays) -> None:
    for split in NAMES:
        (tmp_path / f"mini-imagenet-cache-{split}.pkl").write_bytes(python2_pickle(content(split, pixels)))
    assert same(load(tmp_path), pixels)


class Attack:
    """Unpickled without care, it leaves a file behind."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", ["system", "eval", "getattr", "load"])
def test_a_pickle_that_names_anything_but_arrays_is_refused_before_it_acts(
    tmp_path: Path, pixels: Arrays, name: str, protocol: int
) -> None:
    trace = tmp_path / "trace"
    attack = {
        "system": Attack(os.system, f"touch {trace}"),
        "eval": Attack(eval, f"open({str(trace)!r}, 'w')"),
        "getattr": Attack(getattr, "", "join"),
        "load": Attack(np.load, "x.npy"),
    }[name]
    pickle.loads(pickle.dumps(Attack(os.system, f"touch {trace}")))
    assert trace.exists()  # the attack is a real one
    trace.unlink()
    path = write_pickles(tmp_path, pixels) / "mini-imagenet-cache-val.pkl"
    path.write_bytes(pickle.dumps({"image_data": attack, "class_dict": {}}, protocol))
    with pytest.raises(UserError, match=name) as caught:
        load(tmp_path)
    assert str(path) in str(caught.value) and "forbidden global" in str(caught.value)
    assert not trace.exists()


def refused(root: Path, *parts: str) -> None:
    with pytest.raises(UserError) as caught:
        load(root)
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize("keep", [0, 1, 50, 300, -40, -1])
def test_a_truncated_pickle_is_named(tmp_path: Path, pixels: Arrays, keep: int) -> None:
    path = write_pickles(tmp_path, pixels) / "mini-imagenet-cache-test.pkl"
    path.write_bytes(path.read_bytes()[:keep])
    refused(tmp_path, str(path), "truncated pickle")


def test_a_missing_pickle_is_named(tmp_path: Path, pixels: Arrays) -> None:
    path = write_pickles(tmp_path, pixels) / "mini-imagenet-cache-val.pkl"
    path.unlink()
    refused(tmp_path, str(path), "No such file")


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda c: [c], ("image_data and class_dict",)),
        (lambda c: {"image_data": c["image_data"]}, ("image_data and class_dict",)),
        (lambda c: c | {"image_data": c["image_data"].astype(np.int16)}, ("uint8", "8, 8, 3")),
        (lambda c: c | {"image_data": c["image_data"][:, :7]}, ("uint8", "8, 8, 3")),
        (lambda c: c | {"class_dict": [1, 2]}, ("class_dict must be a dict",)),
        (lambda c: c | {"class_dict": {"n04": [0, 1, 2, 3]}}, ("1 classes, must be 2",)),
        (lambda c: c | {"class_dict": c["class_dict"] | {"n04": [0, 1, 2]}}, ("3 images of n04, must be 4",)),
        (lambda c: c | {"class_dict": c["class_dict"] | {"n04": [0, 1, 2, 8]}}, ("rows of n04", "0 to 7")),
        (lambda c: c | {"class_dict": c["class_dict"] | {"n04": [0, 1, 2, -1]}}, ("rows of n04", "0 to 7")),
        (lambda c: c | {"class_dict": c["class_dict"] | {"n04": list("abcd")}}, ("rows of n04", "0 to 7")),
    ],
)
def test_a_pickle_with_other_content_is_refused(
    tmp_path: Path, pixels: Arrays, damage: Any, parts: tuple[str, ...]
) -> None:
    path = write_pickles(tmp_path, pixels) / "mini-imagenet-cache-val.pkl"
    path.write_bytes(pickle.dumps(damage(content("val", pixels))))
    refused(tmp_path, str(path), *parts)


def test_a_missing_folder_says_what_is_expected(tmp_path: Path, pixels: Arrays) -> None:
    refused(tmp_path / "nowhere", "nowhere", "no such folder", "train/, val/ and test/", "mini-imagenet-cache-")
    write_folders(tmp_path, pixels)
    (tmp_path / "val").rename(tmp_path / "validation")
    refused(tmp_path, str(tmp_path / "val"), "no such folder")


def test_a_wrong_number_of_classes_or_images_is_named(tmp_path: Path, pixels: Arrays) -> None:
    write_folders(tmp_path, pixels)
    (tmp_path / "val" / "n04" / "0000.png").unlink()
    refused(tmp_path, str(tmp_path / "val" / "n04"), "3 images, must be 4")
    (tmp_path / "val" / "n06").mkdir()
    refused(tmp_path, str(tmp_path / "val"), "3 class folders, must be 2")


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("keep", [0, 20, 120, -40])
def test_a_truncated_image_is_named(tmp_path: Path, pixels: Arrays, form: str, keep: int) -> None:
    path = write_folders(tmp_path, pixels) / "test" / "n00" / "0002.png"
    Image.fromarray(pixels["n00"][2]).save(path, form)
    load(tmp_path)  # it is whole
    path.write_bytes(path.read_bytes()[:keep])
    refused(tmp_path, str(path), "unreadable or truncated image")


def test_defaults_are_the_papers() -> None:
    assert mini_imagenet.SPLITS == {"train": 64, "val": 16, "test": 20}
    assert mini_imagenet.load.__defaults__ == (mini_imagenet.SPLITS, 600, 84, True)
