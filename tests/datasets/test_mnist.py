"""MNIST's four files: miniatures whose content counts, packed or not, and the real ones where they are at hand."""

import gzip
import hashlib
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer

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


@contextmanager
def serving(server: ThreadingTCPServer) -> Iterator[str]:
    """The address of the server, which runs meanwhile."""
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a server of the packed miniature, and the folder it serves."""
    store = put(tmp_path_factory.mktemp("store"), packed(files))
    served = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(store)))
    with serving(served) as address:
        yield address, store


@pytest.fixture(
    params=[b"hello\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 9000\r\n\r\nhalf of it"],
    ids=["no HTTP", "broken off"],
)
def faulty(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that speaks no HTTP, or breaks off."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.request.sendall(request.param)

    with serving(ThreadingTCPServer(("127.0.0.1", 0), Handler)) as address:
        yield address


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


@pytest.mark.parametrize("download", [False, True])
@pytest.mark.parametrize("bad", [b"not an idx file", b"", gzip.compress(b"another")])
def test_whichever_of_packed_and_raw_is_intact_is_read(
    tmp_path: Path, files: dict[str, bytes], bad: bytes, download: bool
) -> None:
    folder = put(tmp_path / "MNIST/raw", packed(files) | files)
    damaged = [folder / f"{FILES[0]}.gz", folder / FILES[1], folder / f"{FILES[2]}.gz"]
    for path in damaged:
        path.write_bytes(bad)
    check(mnist.load("mnist", tmp_path, download), files)
    assert [path.read_bytes() for path in damaged] == [bad] * 3  # nothing set aside
    (folder / FILES[3]).unlink()
    check(mnist.load("mnist", tmp_path, download), files)


def test_packed_and_raw_are_both_named_if_both_are_damaged(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = put(tmp_path / "MNIST/raw", packed(files) | {FILES[0]: b"", f"{FILES[0]}.gz": b"not packed"})
    with pytest.raises(UserError) as caught:
        mnist.load("mnist", tmp_path)
    message = str(caught.value)
    assert all(f"{folder / name}: damaged" in message for name in (FILES[0], f"{FILES[0]}.gz"))
    assert message.endswith("; download=True fetches it") and "\n" not in message


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
    assert message.startswith(f"{path}: damaged") and "\n" not in message
    assert message.endswith("; download=True fetches it") and path.exists()  # nothing set aside
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
    assert f"{tmp_path}/MNIST/raw/{FILES[0]}: missing" in message and f"{DEAD}{FILES[0]}.gz" in message
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


@pytest.mark.parametrize("pack", [packed, dict, lambda files: packed(files) | files], ids=["packed", "raw", "both"])
def test_what_is_damaged_is_set_aside_and_downloaded_again(
    tmp_path: Path, files: dict[str, bytes], server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, pack
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [server[0]])
    folder = put(tmp_path / "MNIST/raw", pack(files))
    damaged = sorted(folder.glob(f"{FILES[1]}*"))
    for path in damaged:
        path.write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=f"{FILES[1]}.*: damaged .* set aside as {FILES[1]}") as warned:
        check(mnist.load("mnist", tmp_path, download=True), files)
    assert len(warned) == len(damaged)
    assert [path.with_name(f"{path.name}.damaged").read_bytes() for path in damaged] == [b"damaged"] * len(damaged)
    names = [path for path in pack(files) if not path.startswith(FILES[1])]
    names += [f"{FILES[1]}.gz", *(f"{path.name}.damaged" for path in damaged)]
    assert sorted(os.listdir(folder)) == sorted(names)


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


def test_a_faulty_server_is_named_and_leaves_nothing_behind(
    tmp_path: Path, files: dict[str, bytes], faulty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [faulty])
    with pytest.raises(UserError, match=rf"{faulty}{FILES[0]}\.gz could not be downloaded"):
        mnist.load("mnist", tmp_path, download=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_after_a_faulty_server_the_next_one_serves(
    tmp_path: Path, files: dict[str, bytes], faulty: str, server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", [faulty, server[0]])
    check(mnist.load("mnist", tmp_path, download=True), files)


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
