"""Folders of anybody's images: which file is of which class and part, what is cut out of it, and what is refused."""

import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cllib.datasets import folder
from cllib.errors import UserError


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    image.convert(mode or image.mode).save(path)


def grey(path: Path, value: int) -> None:
    save(path, np.full((4, 4, 3), value, np.uint8))


def red(x: torch.Tensor) -> list[int]:
    """One pixel's red of every image [N, 3, H, W]."""
    return x[:, 0, 1, 1].tolist()


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """train/ and test/ of two classes, an image's grey its number: bees begin at 100, tests at 50 and 150."""
    for c, (name, train, test) in enumerate((("ant", 3, 2), ("bee", 2, 1))):
        for part, count, start in (("train", train, 100 * c), ("test", test, 100 * c + 50)):
            for k in reversed(range(count)):
                grey(tmp_path / part / name / f"{k}.png", start + k)
    return tmp_path


def test_train_and_test_folders_are_the_parts(animals: Path) -> None:
    data = folder.load(animals, image_size=4)
    assert data.names == ("ant", "bee") and data.shape == (3, 4, 4) and data.name == animals.name
    assert data.train_x.dtype == torch.uint8 and data.train_y.dtype == torch.int64
    assert red(data.train_x) == [0, 1, 2, 100, 101] and data.train_y.tolist() == [0, 0, 0, 1, 1]
    assert red(data.test_x) == [50, 51, 150] and data.test_y.tolist() == [0, 0, 1]


def test_val_serves_where_there_is_no_test(animals: Path) -> None:
    grey(animals / "val" / "ant" / "0.png", 7)
    grey(animals / "val" / "bee" / "0.png", 8)
    assert red(folder.load(animals, 4).test_x) == [50, 51, 150]  # test/ goes before val/
    (animals / "test").rename(animals / ".test")
    assert red(folder.load(animals, 4).test_x) == [7, 8]
    (animals / "val").rename(animals / ".val")
    with pytest.raises(UserError, match=f"{animals}: has train/ but neither test/ nor val/"):
        folder.load(animals, 4)


def test_classes_that_differ_between_the_parts_are_named(animals: Path) -> None:
    grey(animals / "train" / "cat" / "0.png", 0)
    (animals / "test" / "bee").rename(animals / "test" / "dog")
    with pytest.raises(UserError, match=r"train/ and test/ must hold the same classes.* has bee, cat, dog$"):
        folder.load(animals, 4)


def test_without_train_the_last_of_every_class_by_name_are_its_tests(tmp_path: Path) -> None:
    for name, count, start in (("bee", 10, 100), ("ant", 5, 0)):
        for k in reversed(range(count)):
            grey(tmp_path / name / f"{k}.png", start + k)
    data = folder.load(tmp_path, 4)
    assert data.names == ("ant", "bee")
    assert red(data.train_x) == [*range(4), *range(100, 108)] and red(data.test_x) == [4, 108, 109]
    assert data.train_y.tolist() == [0] * 4 + [1] * 8 and data.test_y.tolist() == [0, 1, 1]
    half = folder.load(tmp_path, 4, test_share=0.6)
    assert red(half.train_x) == [0, 1, 100, 101, 102, 103] and len(half.test_y) == 9


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of 2 to 9 files; nobody looks into them."""
    root = tmp_path_factory.mktemp("counted")
    for count in range(2, 10):
        (root / str(count)).mkdir()
        for k in range(count):
            (root / str(count) / f"{k}.png").touch()
    return root


@given(st.floats(0.01, 0.99))
@settings(max_examples=30, deadline=None)
def test_every_share_leaves_every_class_something_to_train_and_to_test(counted: Path, share: float) -> None:
    trains, tests = folder.halves(counted, share)
    for name in map(str, range(2, 10)):
        assert [path.name for path in trains[name] + tests[name]] == [f"{k}.png" for k in range(int(name))]
        assert trains[name] and tests[name]
        off = abs(len(tests[name]) - share * int(name))
        assert off <= 0.5 + 1e-9 or 1 in (len(trains[name]), len(tests[name]))


def test_a_class_of_one_image_cannot_be_divided(tmp_path: Path) -> None:
    for path in ("ant/0.png", "ant/1.png", "bee/0.png"):
        grey(tmp_path / path, 0)
    with pytest.raises(UserError, match=f"{tmp_path / 'bee'}: a class needs two images"):
        folder.load(tmp_path, 4)


def test_a_class_of_one_image_will_do_with_a_test_folder(tmp_path: Path) -> None:
    for path in ("train/ant/0.png", "train/bee/0.png", "test/ant/0.png", "test/bee/0.png"):
        grey(tmp_path / path, 0)
    assert folder.load(tmp_path, 4).train_y.tolist() == [0, 1]


def test_a_class_without_images_is_named(animals: Path) -> None:
    (animals / "test" / "ant" / "0.png").rename(animals / "test" / "ant" / "0.txt")
    (animals / "test" / "ant" / "1.png").unlink()
    with pytest.raises(UserError) as caught:
        folder.load(animals, 4)
    assert str(caught.value).startswith(f"{animals / 'test' / 'ant'}: no image") and ".png" in str(caught.value)


@pytest.mark.parametrize("classes", [0, 1])
def test_one_class_only_is_refused(tmp_path: Path, classes: int) -> None:
    grey(tmp_path / "loose.png", 0)
    for k in range(2 * classes):
        grey(tmp_path / "ant" / f"{k}.png", 0)
    with pytest.raises(UserError, match=f"{tmp_path}: {classes} class folders; there must be two at least"):
        folder.load(tmp_path, 4)


def test_hidden_and_foreign_files_are_ignored(animals: Path) -> None:
    expected = folder.load(animals, 4)
    for name in (".0.png", "._1.png", "notes.txt", "Thumbs.db", "png"):
        (animals / "train" / "ant" / name).write_bytes(b"no image")
    for name in (".git", ".ipynb_checkpoints"):
        (animals / "train" / name).mkdir()
        grey(animals / "train" / "ant" / name / "old" / "0.png", 9)
    (animals / "train" / "labels.csv").write_bytes(b"no image")
    (animals / "README.png").write_bytes(b"no image")
    data = folder.load(animals, 4)
    assert torch.equal(data.train_x, expected.train_x) and data.names == expected.names


def test_the_data_may_lie_in_a_hidden_folder(animals: Path) -> None:
    (animals / ".cache").mkdir()
    for part in ("train", "test"):
        (animals / part).rename(animals / ".cache" / part)
    assert len(folder.load(animals / ".cache", 4).train_y) == 5


def test_images_may_lie_deeper_and_have_any_known_ending(animals: Path) -> None:
    grey(animals / "train" / "bee" / "10" / "may" / "7.PNG", 110)  # by name: the folder's counts
    for k, ending in enumerate(("bmp", "gif", "tif", "TIFF", "ppm", "webp", "jpg", "JPEG"), 2):
        grey(animals / "train" / "bee" / f"{k}.{ending}", 100 + 10 * k)
    data = folder.load(animals, 4)
    assert data.train_y.tolist() == [0] * 3 + [1] * 11
    difference = torch.tensor(red(data.train_x)[5:]) - torch.arange(110, 200, 10)
    assert difference.abs().max() <= 2  # WebP and JPEG lose a little


# --- what is cut out of an image ---


@pytest.mark.parametrize(("length", "first"), [(10, 0), (11, 0), (12, 1), (31, 10)])
@pytest.mark.parametrize("tall", [False, True])
def test_the_centre_is_cut_out(tmp_path: Path, length: int, first: int, tall: bool) -> None:
    """Pixels numbered along the longer side; the shorter needs no resizing."""
    picture = np.tile(np.arange(length, dtype=np.uint8), (10, 1))  # [10, length]
    save(tmp_path / "a.png", picture.T.copy() if tall else picture)
    cut = folder.squared(tmp_path / "a.png", 10)
    assert cut.shape == (10, 10, 3) and cut.dtype == np.uint8
    expected = np.tile(np.arange(first, first + 10), (10, 1))
    assert (cut == (expected.T if tall else expected)[..., None]).all()


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize("side", [8, 40, 64])
def test_the_shorter_side_is_resized_before(tmp_path: Path, side: int, tall: bool) -> None:
    """A green square between red and blue ones fills the cut but for its blurred border; its halves stay in place."""
    picture = np.zeros((40, 120, 3), np.uint8)
    picture[:, :40, 0] = picture[:20, 40:80, 1] = picture[:, 80:, 2] = 200
    picture[20:, 40:80, 1] = 100
    save(tmp_path / "a.png", picture.swapaxes(0, 1).copy() if tall else picture)
    cut = folder.squared(tmp_path / "a.png", side)
    cut = cut.swapaxes(0, 1) if tall else cut
    inner, half = slice(side // 8, -(side // 8)), side // 2
    assert cut.shape == (side, side, 3) and (cut[:, inner, [0, 2]] == 0).all()
    assert (cut[: half - side // 8, inner, 1] == 200).all() and (cut[half + side // 8 :, inner, 1] == 100).all()


def test_shrinking_averages(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.tile(np.array([[0, 200], [200, 0]], np.uint8), (20, 20)))
    assert np.abs(folder.squared(tmp_path / "a.png", 4).astype(int) - 100).max() <= 5


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20))
@example(49, 49, 1)  # 49 * (1 / 49) < 1
@settings(max_examples=60, deadline=None)
def test_any_shape_fits_any_side(height: int, width: int, side: int) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), (10, 20, 30), np.uint8)).save(file, "png")
    file.seek(0)
    cut = folder.squared(file, side)  # type: ignore[arg-type]
    assert cut.shape == (side, side, 3) and (cut == (10, 20, 30)).all()  # no black from outside


@pytest.mark.parametrize(
    ("mode", "pixel"),
    [("L", (124, 124, 124)), ("1", (255, 255, 255)), ("RGBA", (200, 100, 50)), ("LA", (124, 124, 124))],
)
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str, pixel: tuple[int, ...]) -> None:
    picture = np.full((4, 4, 3), (200, 100, 50), np.uint8)
    save(tmp_path / "a.png", np.full((4, 4), 255, np.uint8) if mode == "1" else picture, mode)
    assert Image.open(tmp_path / "a.png").mode == mode
    assert (folder.squared(tmp_path / "a.png", 4) == pixel).all()


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
@pytest.mark.parametrize(("value", "shown"), [(0, 0), (20_000, 77), (65_535, 255)])
def test_grey_of_16_bits_is_scaled_to_8(tmp_path: Path, dtype: str, value: int, shown: int) -> None:
    save(tmp_path / "a.tif", np.full((4, 4), value, dtype))
    assert (folder.squared(tmp_path / "a.tif", 4) == shown).all()
    if dtype == "<u2":
        save(tmp_path / "a.png", np.full((4, 4), value, dtype))
        assert (folder.squared(tmp_path / "a.png", 4) == shown).all()


@pytest.mark.parametrize(("value", "shown"), [(-1, 0), (65_536, 255)])
def test_grey_beyond_16_bits_is_clipped(tmp_path: Path, value: int, shown: int) -> None:
    save(tmp_path / "a.tif", np.full((4, 4), value, np.int32))
    assert (folder.squared(tmp_path / "a.tif", 4) == shown).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_photograph_stands_upright(tmp_path: Path, orientation: int, dtype: type) -> None:
    """As EXIF says where the stored first row and column are to be shown."""
    shown = np.array([[0, 50, 100], [150, 200, 250], [25, 75, 125]])
    flipped = {2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: np.transpose, 6: np.rot90}
    flipped |= {7: lambda x: np.rot90(x, 2).T, 8: lambda x: np.rot90(x, -1)}
    stored = flipped.get(orientation, np.asarray)(shown).astype(dtype) * (257 if dtype is np.uint16 else 1)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert folder.squared(tmp_path / "a.png", 3)[..., 0].tolist() == shown.tolist()


@pytest.mark.parametrize(("alpha", "pixel"), [(0, (255, 255, 255)), (51, (244, 224, 214)), (255, (200, 100, 50))])
def test_what_is_transparent_lies_on_white(tmp_path: Path, alpha: int, pixel: tuple[int, ...]) -> None:
    save(tmp_path / "a.png", np.full((4, 4, 4), (200, 100, 50, alpha), np.uint8))
    assert (folder.squared(tmp_path / "a.png", 4) == pixel).all()


@pytest.mark.parametrize(("mode", "key"), [("L", 9), ("RGB", (9, 9, 9)), ("P", 0)])
def test_a_transparent_colour_lies_on_white(tmp_path: Path, mode: str, key: Any) -> None:
    picture = np.full((4, 4, 3), 9, np.uint8)
    picture[:2] = 255
    picture[0, :, 1:] = 0  # a red row, which stays
    image = Image.fromarray(picture).quantize(3) if mode == "P" else Image.fromarray(picture).convert(mode)
    key = image.getpixel((3, 3)) if mode == "P" else key
    image.save(tmp_path / "a.png", transparency=key)
    cut = folder.squared(tmp_path / "a.png", 4)
    assert (cut[1:] == 255).all() and not (cut[0] == 255).all()


def test_a_palette_becomes_rgb(tmp_path: Path) -> None:
    save(tmp_path / "a.gif", np.full((4, 4, 3), (200, 100, 50), np.uint8), "P")
    cut = folder.squared(tmp_path / "a.gif", 4)
    assert np.abs(cut.astype(int) - (200, 100, 50)).max() <= 26  # the web palette is that coarse


def test_a_data_set_may_mix_shapes_and_modes(animals: Path) -> None:
    save(animals / "train" / "ant" / "3.png", np.full((9, 5), 33, np.uint8))
    save(animals / "train" / "ant" / "4.png", np.full((5, 9, 4), (44, 44, 44, 255), np.uint8))
    assert red(folder.load(animals, 4).train_x) == [0, 1, 2, 33, 44, 100, 101]


def test_rows_columns_and_colours_stay_what_they_are(animals: Path) -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)  # [row, column, colour]
    save(animals / "train" / "ant" / "0.png", picture)
    x = folder.load(animals, 4).train_x[0]
    assert (x[0, 0, 1], x[0, 1, 0], x[2, 0, 0]) == (3, 12, 2)
    assert torch.equal(x, torch.from_numpy(picture).permute(2, 0, 1))


# --- what is refused ---


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tif", "webp", "ppm"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "text"])
def test_a_damaged_image_is_named(animals: Path, ending: str, damage: str) -> None:
    path = animals / "test" / "bee" / f"9.{ending}"
    save(path, np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    assert len(folder.load(animals, 4).test_y) == 4
    if damage == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.write_bytes(b"" if damage == "emptied" else b"<html>not found</html>")
    with pytest.raises(UserError, match=re.escape(f"{path}: cannot be read as an image (")) as caught:
        folder.load(animals, 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("ending", "at", "bits"), [("png", 36, 255), ("tif", 72, 1)])
def test_any_broken_image_is_named(tmp_path: Path, ending: str, at: int, bits: int) -> None:
    """For these Pillow raises errors of other kinds."""
    path = tmp_path / f"a.{ending}"
    save(path, np.random.default_rng(0).integers(0, 255, (24, 30, 3), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[at] ^= bits
    path.write_bytes(data)
    with pytest.raises(UserError, match=re.escape(f"{path}: cannot be read as an image (")):
        folder.squared(path, 8)


def test_floating_point_images_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", np.full((4, 4), 0.5, np.float32))
    with pytest.raises(UserError, match=f"{tmp_path / 'a.tif'}: .*floating-point numbers; save it with 8 or 16 bits"):
        folder.squared(tmp_path / "a.tif", 4)


def test_a_missing_folder_or_a_file_is_named(tmp_path: Path) -> None:
    grey(tmp_path / "a.png", 0)
    for path in (tmp_path / "nosuch", tmp_path / "a.png"):
        with pytest.raises(UserError, match=f"{path}: no such folder"):
            folder.load(path)


@pytest.mark.parametrize(
    ("option", "value"), [("image_size", 0), ("image_size", -1), ("test_share", 0), ("test_share", 1)]
)
def test_impossible_options_are_named(animals: Path, option: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{option} = {value}: must be a (whole )?number"):
        folder.load(animals, **{option: value})


def test_images_are_32_pixels_wide_unless_told(animals: Path) -> None:
    assert folder.load(animals).shape == (3, 32, 32)


# --- parts under other names, what holds only folders, what is left out ---


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"), ("TRAIN", "TEST"), ("Training", "Testing"), ("training", "validation"), ("train", "valid"),
        ("train", "Val"), ("train_set", "test_set"), ("Training Set", "Test Set"), ("train", "eval"), ("train", "dev"),
    ],
)  # fmt: skip
def test_parts_are_known_by_their_usual_names(train: str, test: str, animals: Path) -> None:
    expected = folder.load(animals, 4)
    for old, new in (("train", train), ("test", test)):
        (animals / old).rename(animals / f"{old} for now")
        (animals / f"{old} for now").rename(animals / new)
    data = folder.load(animals, 4)
    assert data.names == ("ant", "bee")
    assert torch.equal(data.train_x, expected.train_x) and torch.equal(data.test_x, expected.test_x)


def test_a_train_is_a_class_too(tmp_path: Path) -> None:
    for name in ("bus", "train", "test"):
        for k in range(2):
            grey(tmp_path / name / f"{k}.png", k)
    assert folder.load(tmp_path, 4).names == ("bus", "test", "train")


def test_parts_without_class_folders_are_refused(tmp_path: Path) -> None:
    for name in ("Train", "Test"):
        for k in range(2):
            grey(tmp_path / name / f"{k}.png", k)
    with pytest.raises(UserError, match="Test, Train are names of parts, not of classes"):
        folder.load(tmp_path, 4)


def test_a_test_folder_alone_is_refused(animals: Path) -> None:
    (animals / "train").rename(animals / ".train")
    with pytest.raises(UserError, match="has test/ but no train/"):
        folder.load(animals, 4)


@pytest.mark.parametrize("inner", [("ant",), ("ant", "bee")])
def test_what_holds_only_folders_is_no_class(inner: tuple[str, ...], tmp_path: Path) -> None:
    for outer in ("north", "south"):
        for name in inner:
            for k in range(2):
                grey(tmp_path / outer / name / f"{k}.png", k)
    with pytest.raises(UserError, match="north: holds only folders; a class folder must hold images"):
        folder.load(tmp_path, 4)


def test_a_line_says_what_was_found_and_what_was_left_out(animals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.load(animals, 4)
    assert capsys.readouterr().out == f"{animals.name}: 2 classes, 5 + 3 images\n"
    for name in ("a.jfif", "b.JFIF", "notes.txt"):
        (animals / "train" / "ant" / name).write_bytes(b"?")
    grey(animals / "val" / "ant" / "0.png", 1)
    grey(animals / "train" / "bee" / ".thumbs" / "0.png", 1)
    (animals / "train" / "bee" / "more").symlink_to(animals / "val" / "ant")
    folder.load(animals, 4)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == (
        f"{animals.name}: 2 classes, 5 + 3 images, 3 files left out (.JFIF, .jfif, .txt), "
        "3 folders left out (.thumbs, more, val)"
    )


def test_a_linked_class_folder_is_read(animals: Path) -> None:
    expected = folder.load(animals, 4)
    (animals / "train" / "bee").rename(animals / "elsewhere")
    (animals / "train" / "bee").symlink_to(animals / "elsewhere")
    assert torch.equal(folder.load(animals, 4).train_x, expected.train_x)


def test_a_stray_image_makes_no_class_of_a_part(animals: Path) -> None:
    expected = folder.load(animals, 4)
    for part in ("train", "test"):
        grey(animals / part / "preview.png", 1)
    data = folder.load(animals, 4)
    assert data.names == ("ant", "bee") and torch.equal(data.train_x, expected.train_x)


def test_parts_inside_classes_are_refused(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        grey(tmp_path / name / "cover.png", 1)
        for part in ("train", "test"):
            grey(tmp_path / name / part / "0.png", 1)
    with pytest.raises(UserError, match="cat: holds parts; give train/CLASS and test/CLASS"):
        folder.load(tmp_path, 4)


def test_images_in_folders_inside_a_class_are_counted(animals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grey(animals / "train" / "ant" / "more" / "9.png", 1)
    (animals / "train" / "ant" / "a\nb.txt").touch()
    folder.load(animals, 4)
    (line,) = capsys.readouterr().out.splitlines()
    assert "1 of them in folders of their own" in line and "1 file left out" in line
