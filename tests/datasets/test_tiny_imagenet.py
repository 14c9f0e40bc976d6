"""Tiny-ImageNet-200 in its own folders: miniatures of a few classes, and what is refused."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cllib.datasets import tiny_imagenet
from cllib.datasets.tiny_imagenet import held
from cllib.errors import UserError

NAMES = ("n20", "n10", "n30")  # not in order of name
COUNT = 12


def put(path: Path, value: int, mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path, "JPEG", quality=100)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """12 images of each of 3 classes, red 80 * class + 6 * number; those of the last class are grey."""
    folder = tmp_path / "tiny-imagenet-200"
    for c, name in enumerate(NAMES):
        for k in reversed(range(COUNT)):
            file = folder / "train" / name / "images" / f"{name}_{k}.JPEG"
            put(file, 80 * c + 6 * k, "L" if c == 2 else "RGB")
    (folder / "wnids.txt").write_text("\n".join(NAMES) + "\n")
    put(folder / "val" / "images" / "val_0.JPEG", 9)  # left alone
    return tmp_path


def numbers(x: torch.Tensor) -> list[int]:
    """What each image [N, 3, 64, 64] was made of: 80 * class + 6 * number."""
    return [round(red / 2) * 2 for red in x[:, 0, 5, 9].tolist()]  # JPEG is not exact


@pytest.mark.parametrize("inside", [True, False])
def test_classes_come_as_listed_and_images_by_number(tiny: Path, inside: bool) -> None:
    data = tiny_imagenet.load(tiny / "tiny-imagenet-200" if inside else tiny, seed=3)
    assert data.names == NAMES and data.shape == (3, 64, 64) and data.name == "tiny-imagenet-200"
    assert data.train_x.dtype == torch.uint8 and data.train_y.dtype == torch.int64
    assert data.train_y.tolist() == [0] * 10 + [1] * 10 + [2] * 10 and data.test_y.tolist() == [0, 0, 1, 1, 2, 2]
    train, test = numbers(data.train_x), numbers(data.test_x)
    for seen, y in ((train, data.train_y), (test, data.test_y)):
        assert seen == sorted(seen)  # ..._2 before ..._10
        assert all(80 * c <= value <= 80 * c + 66 for value, c in zip(seen, y.tolist(), strict=True))
    assert sorted(train + test) == [80 * c + 6 * k for c in range(3) for k in range(COUNT)]
    grey = data.train_x[data.train_y == 2]
    assert torch.equal(grey[:, 0], grey[:, 2]) and (data.train_x[data.train_y == 1][:, 2] < 10).all()


def test_the_split_is_seeded_and_of_each_class_alone(tiny: Path) -> None:
    first, again, other = (tiny_imagenet.load(tiny, seed) for seed in (0, 0, 1))
    assert torch.equal(first.test_x, again.test_x) and not torch.equal(first.test_x, other.test_x)
    (tiny / "tiny-imagenet-200" / "wnids.txt").write_text("n30\nn20\n")
    fewer = tiny_imagenet.load(tiny, 0)
    assert torch.equal(fewer.test_x[fewer.test_y == 0], first.test_x[first.test_y == 2])
    assert torch.equal(fewer.test_x[fewer.test_y == 1], first.test_x[first.test_y == 0])


@given(st.integers(2, 600), st.floats(0.01, 0.99), st.integers(0, 5), st.sampled_from(NAMES))
@settings(max_examples=50, deadline=None)
def test_the_share_is_kept_and_neither_part_is_empty(count: int, share: float, seed: int, name: str) -> None:
    drawn = held(count, share, seed, name)
    assert drawn.shape == (count,) and drawn.dtype == torch.bool
    assert int(drawn.sum()) == min(max(round(count * share), 1), count - 1)


def test_classes_are_split_differently() -> None:
    assert not torch.equal(held(100, 0.2, 0, "n10"), held(100, 0.2, 0, "n20"))


def refused(root: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        tiny_imagenet.load(root, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_the_list_it_says_where_to_get_the_data(tiny: Path) -> None:
    (tiny / "tiny-imagenet-200" / "wnids.txt").unlink()
    message = refused(tiny)
    assert message.startswith(f"{tiny / 'wnids.txt'}: missing")
    assert message.endswith("http://cs231n.stanford.edu/tiny-imagenet-200.zip")


@pytest.mark.parametrize(("names", "said"), [("", "0 classes, 0"), ("n10\nn20\nn10\n", "3 classes, 2 different")])
def test_a_list_names_each_class_once(tiny: Path, names: str, said: str) -> None:
    path = tiny / "tiny-imagenet-200" / "wnids.txt"
    path.write_text(names)
    assert refused(tiny).startswith(f"{path}: {said}")


def test_missing_classes_and_images_are_named(tiny: Path) -> None:
    train = tiny / "tiny-imagenet-200" / "train"
    for file in sorted((train / "n10" / "images").iterdir())[1:]:
        file.unlink()
    assert refused(tiny).startswith(f"{train / 'n10' / 'images'}: 1 images (*.JPEG), must be two")
    (train / "n10").rename(train / "n11")
    assert refused(tiny).startswith(f"{train / 'n10' / 'images'}: no such folder; wnids.txt names")


@pytest.mark.parametrize("damage", ["truncated", "text", "size"])
def test_an_image_that_is_none_is_named(tiny: Path, damage: str) -> None:
    path = tiny / "tiny-imagenet-200" / "train" / "n30" / "images" / "n30_7.JPEG"
    if damage == "size":
        put(path, 5, size=(64, 32))
    elif damage == "text":
        path.write_text("no image")
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = {"size": "64 x 32 pixels, must be 64 x 64"}.get(damage, "cannot be read as an image (")
    assert refused(tiny).startswith(f"{path}: {said}")


@pytest.mark.parametrize("options", [{"test_share": 0}, {"test_share": 1.0}, {"seed": -1}, {"seed": 1.5}])
def test_impossible_options_are_refused(tiny: Path, options: dict[str, object]) -> None:
    ((name, value),) = options.items()
    assert refused(tiny, **options).startswith(f"{name} = {value!r}: must be")


@pytest.mark.skipif("CLLIB_TINY_IMAGENET" not in os.environ, reason="CLLIB_TINY_IMAGENET names no folder with it")
def test_the_real_one() -> None:
    data = tiny_imagenet.load(os.environ["CLLIB_TINY_IMAGENET"])
    assert data.train_x.shape == (80_000, 3, 64, 64) and torch.bincount(data.test_y).tolist() == [100] * 200
