"""MNIST's four files: miniatures whose content counts, packed or not, and the real ones where they are at hand."""

import gzip
import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST, FashionMNIST

from cllib.datasets import mnist
from cllib.errors import UserError

KINDS = {"mnist": MNIST, "fashion_mnist": FashionMNIST}
FILES = tuple(mnist.CONTENT["mnist"])
DEAD = "http://127.0.0.1:9/"  # nothing listens there


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def content(seed: int) -> dict[str, bytes]:
    """12 training and 5 test images of noise, 28 x 28, by file."""
    draws = np.random.default_rng(seed)
    arrays = []
    for count in (12, 5):
        arrays.append(draws.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        arrays.append(draws.permutation(np.arange(count, dtype=np.uint8) % 10))
    return dict(zip(FILES, map(idx, arrays), strict=True))


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def packed(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in files.items()}


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The miniature's files, whose MD5s count; nothing can be downloaded."""
    made = content(seed=0)
    for name, kind in KINDS.items():
        monkeypatch.setitem(mnist.CONTENT, name, {file: md5(data) for file, data in made.items()})
        monkeypatch.setattr(kind, "resources", [(file, md5(data)) for file, data in packed(made).items()])
        monkeypatch.setattr(kind, "mirrors", [DEAD])
    monkeypatch.setenv("no_proxy", "*")
    return made


@pytest.fixture
def server(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server of the packed miniature, and the folder it serves."""
    store = put(tmp_path_factory.mktemp("store"), packed(files))
    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(store)))
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}/", store
    served.shutdown()
    served.server_close()


def check(data: mnist.Labelled, files: dict[str, bytes]) -> None:
    """The tensors hold what the files do, read here with nothing but offsets."""
    for part, x, y in (("train", data.train_x, data.train_y), ("t10k", data.test_x, data.test_y)):
        images, labels = (files[f"{part}-{kind}-ubyte"] for kind in ("images-idx3", "labels-idx1"))
        assert x.dtype == torch.uint8 and x.shape == (len(labels) - 8, 1, 28, 28)
        assert x.numpy().tobytes() == images[16:]
        assert y.dtype == torch.int64 and y.tolist() == list(labels[8:])


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw")])
@pytest.mark.parametrize("pack", [packed, dict], ids=["packed", "raw"])
def test_both_sets_are_read_packed_or_raw(
    tmp_path: Path, files: dict[str, bytes], name: str, folder: str, pack
) -> None:
    put(tmp_path / folder, pack(files))
    data = mnist.load(name, tmp_path)
    check(data, files)
    assert data.name == name and data.classes == 10
    assert data.names[9] == ("9" if name == "mnist" else "Ankle boot")


def test_the_packed_file_is_preferred(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = put(tmp_path / "MNIST/raw", packed(files) | dict.fromkeys(FILES, b"not an idx file"))
    check(mnist.load("mnist", tmp_path), files)
    for name in FILES[:2]:
        (folder / f"{name}.gz").unlink()
        (folder / name).write_bytes(files[name])
    check(mnist.load("mnist", tmp_path), files)  # two packed, two raw


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("pack", [packed, dict], ids=["packed", "raw"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "other"])
def test_a_damaged_or_foreign_file_is_named_before_use(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str, pack, damage: str
) -> None:
    folder = put(tmp_path / "MNIST/raw", pack(files))
    (path,) = folder.glob(f"{name}*")
    whole = path.read_bytes()
    if damage == "flipped":  # one bit of the middle of the values
        middle = len(whole) - 3 if pack is dict else len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    elif damage == "other":  # a whole file of the same make
        path.write_bytes(pack(content(seed=1))[path.name])
    else:
        path.write_bytes(whole[:-1] if damage == "truncated" else b"")
    parse, parsed = mnist.parse, []
    monkeypatch.setattr(mnist, "parse", lambda data: (parsed.append(data), parse(data))[1])
    with pytest.raises(UserError) as caught:
        mnist.load("mnist", tmp_path)
    message = str(caught.value)
    assert str(path) in message and "damaged" in message and "delete it" in message and "\n" not in message
    if damage == "other" or pack is dict:
        held = path.read_bytes() if pack is dict else gzip.decompress(path.read_bytes())
        assert md5(held) in message and md5(files[name]) in message
    assert [data for data in parsed if data not in files.values()] == []


def test_a_packed_file_with_any_bit_flipped_is_refused_or_holds_the_same(tmp_path: Path) -> None:
    """A header's time stamp does not count; the rest fails in gzip's many ways."""
    whole, path, refused = content(seed=0)[FILES[3]], tmp_path / "labels.gz", 0
    good = gzip.compress(whole, mtime=0)
    for bit in range(8 * len(good)):
        path.write_bytes(good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :])
        try:
            assert mnist.content(tmp_path / "labels", md5(whole)) == whole
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 4 * len(good)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    folder = put(tmp_path / "MNIST/raw", packed(files))
    (folder / f"{name}.gz").unlink()
    with pytest.raises(UserError) as caught:
        mnist.load("mnist", tmp_path)
    assert str(caught.value) == f"{folder / name}: missing, packed (.gz) or not; download=True fetches it"


def test_an_unreachable_mirror_is_named(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(UserError) as caught:
        mnist.load("mnist", tmp_path, download=True)
    message = str(caught.value)
    assert f"{tmp_path}/MNIST/raw/{FILES[0]}.gz: missing" in message and f"{DEAD}{FILES[0]}.gz" in message
    assert "Connection refused" in message and "\n" not in message


def test_a_missing_set_is_downloaded_from_the_mirror_that_has_it(
    tmp_path: Path, files: dict[str, bytes], server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FashionMNIST, "mirrors", [DEAD, server[0]])
    check(mnist.load("fashion_mnist", tmp_path, download=True), files)
    assert sorted(os.listdir(tmp_path / "FashionMNIST/raw")) == sorted(f"{name}.gz" for name in FILES)


def test_only_what_is_missing_is_downloaded(
    tmp_path: Path, files: dict[str, bytes], server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [server[0]])
    have = {FILES[0]: files[FILES[0]], f"{FILES[1]}.gz": gzip.compress(files[FILES[1]])}  # one raw, one packed
    folder = put(tmp_path / "MNIST/raw", have)
    for name in FILES[:2]:
        (server[1] / f"{name}.gz").unlink()
    check(mnist.load("mnist", tmp_path, download=True), files)
    assert sorted(os.listdir(folder)) == sorted([*have, f"{FILES[2]}.gz", f"{FILES[3]}.gz"])


def test_what_is_whole_is_not_downloaded(tmp_path: Path, files: dict[str, bytes]) -> None:
    put(tmp_path / "MNIST/raw", packed(files))
    check(mnist.load("mnist", tmp_path, download=True), files)


def test_a_server_of_other_files_is_refused(
    tmp_path: Path, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [server[0]])
    put(server[1], packed(content(seed=1)))
    with pytest.raises(UserError, match=rf"{FILES[0]}\.gz could not be downloaded"):
        mnist.load("mnist", tmp_path, download=True)


def test_an_unwritable_folder_is_named(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "MNIST").write_bytes(b"")
    with pytest.raises(UserError, match="MNIST/raw: folder cannot be made"):
        mnist.load("mnist", tmp_path, download=True)


def test_an_idx_file_is_read_row_by_row() -> None:
    values = np.arange(2 * 300 * 3, dtype=np.uint8).reshape(2, 300, 3)  # 300 needs both its bytes
    assert mnist.parse(idx(values)).tolist() == values.tolist()
    assert mnist.parse(idx(values[0, :, 0])).tolist() == values[0, :, 0].tolist()


@pytest.mark.skipif("CLLIB_MNIST" not in os.environ, reason="CLLIB_MNIST names no folder with the real MNIST")
def test_the_real_one() -> None:
    data = mnist.load("mnist", os.environ["CLLIB_MNIST"])
    assert data.train_x.shape == (60_000, 1, 28, 28) and data.test_x.shape == (10_000, 1, 28, 28)
    assert data.train_y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # as in every tutorial
    assert torch.bincount(data.train_y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(data.test_y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    pixels = data.train_x.double() / 255
    assert pixels.mean().item() == pytest.approx(0.1307, abs=1e-4)  # the known mean and deviation
    assert pixels.std().item() == pytest.approx(0.3081, abs=1e-4)


@pytest.mark.skipif("CLLIB_FASHION_MNIST" not in os.environ, reason="CLLIB_FASHION_MNIST names no real Fashion-MNIST")
def test_the_real_fashion_one() -> None:
    data = mnist.load("fashion_mnist", os.environ["CLLIB_FASHION_MNIST"])
    assert data.train_x.shape == (60_000, 1, 28, 28) and torch.bincount(data.train_y).tolist() == [6000] * 10
    assert (data.train_x.double() / 255).mean().item() == pytest.approx(0.2860, abs=1e-4)
    assert [data.names[y] for y in data.train_y[:3]] == ["Ankle boot", "T-shirt/top", "T-shirt/top"]
