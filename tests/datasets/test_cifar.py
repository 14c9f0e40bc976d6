"""CIFAR-10 and -100 in torchvision's layout: miniatures with their own checksums, and real ones where at hand."""

import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.client import BadStatusLine
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from cllib.datasets import cifar
from cllib.datasets.files import checksum
from cllib.errors import UserError

CLASSES, TRAIN, TEST = 3, 5, 2


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A miniature CIFAR-100 whose image k of class c has red pixels 10 c + k, in mixed order, and whose MD5s count."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for part, count in (("train", TRAIN), ("test", TEST)):
        labels = np.random.default_rng(0).permutation(np.repeat(np.arange(CLASSES), count)).tolist()
        data = np.zeros((len(labels), 3, 32, 32), np.uint8)
        data[:, 0] = np.reshape([10 * c + labels[:row].count(c) for row, c in enumerate(labels)], (-1, 1, 1))
        data[:, 2, 0, 5] = 200
        content = {"data": data.reshape(-1, 3072), "fine_labels": labels}
        (folder / part).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["ant", "bee", "cat"]}))
    md5 = {name: checksum(folder / name) for name in ("train", "test", "meta")}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5["meta"]})
    return tmp_path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/cifar-100-python.tar.gz")  # nothing listens there
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def online(fake: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve the miniature as the archive that torchvision downloads."""
    store = tmp_path_factory.mktemp("store")
    with tarfile.open(store / CIFAR100.filename, "w:gz") as archive:
        archive.add(fake / "cifar-100-python", "cifar-100-python")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(store)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(CIFAR100, "url", f"http://127.0.0.1:{server.server_port}/{CIFAR100.filename}")
    monkeypatch.setattr(CIFAR100, "tgz_md5", checksum(store / CIFAR100.filename))
    monkeypatch.setenv("no_proxy", "*")
    yield
    server.shutdown()
    server.server_close()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_images_come_in_file_order_per_class(fake: Path) -> None:
    train, test = cifar.by_classes("cifar100", fake)
    assert train.names == test.names == ("ant", "bee", "cat")
    assert train.images.shape == (CLASSES, TRAIN, 32, 32, 3) and train.images.dtype == torch.uint8
    assert train.images[:, :, 7, 7, 0].tolist() == [[10 * c + k for k in range(TRAIN)] for c in range(CLASSES)]
    assert test.images[:, :, 7, 7, 0].tolist() == [[10 * c + k for k in range(TEST)] for c in range(CLASSES)]
    assert (train.images[:, :, 0, 5, 2] == 200).all() and train.images[..., 1].sum() == 0  # rows, columns, channels


@pytest.mark.parametrize("name", ["train", "test", "meta"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_file_is_named_with_both_checksums_before_use(
    fake: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    path = fake / "cifar-100-python" / name
    expected = checksum(path)
    if damage == "flipped":
        flip(path)
    elif damage == "truncated":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.unlink()
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("a damaged file was read"))
    with pytest.raises(UserError) as caught:
        cifar.by_classes("cifar100", fake)
    message = str(caught.value)
    assert str(path) in message and expected in message and "download=True" in message and "\n" not in message
    assert damage == "missing" or checksum(path) in message


def test_without_network_one_line_names_file_and_address(fake: Path, offline: None) -> None:
    flip(fake / "cifar-100-python" / "test")
    with pytest.raises(UserError) as caught:
        cifar.by_classes("cifar100", fake, download=True)
    message = str(caught.value)
    assert "cifar-100-python/test" in message and CIFAR100.url in message and "\n" not in message


def test_what_is_whole_is_not_downloaded(fake: Path, offline: None) -> None:
    assert cifar.by_classes("cifar100", fake, download=True)[0].names == ("ant", "bee", "cat")


def test_a_download_replaces_a_damaged_file(fake: Path, online: None) -> None:
    flip(fake / "cifar-100-python" / "train")
    train, _ = cifar.by_classes("cifar100", fake, download=True)
    assert train.images[2, 4, 0, 0, 0] == 24


def test_a_damaged_download_is_refused(fake: Path, online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR100, "tgz_md5", "0" * 32)
    flip(fake / "cifar-100-python" / "train")
    with pytest.raises(UserError, match="could not be downloaded"):
        cifar.by_classes("cifar100", fake, download=True)


def test_a_server_that_speaks_no_http_is_named(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(*_: object, **__: object) -> None:
        raise BadStatusLine("hello")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    with pytest.raises(UserError, match=r"cifar-100-python.tar.gz could not be downloaded \(hello\)"):
        cifar.by_classes("cifar100", tmp_path, download=True)


def test_a_download_with_another_content_is_refused(fake: Path, online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR100, "train_list", [["train", "0" * 32]])
    with pytest.raises(UserError, match="cifar-100-python/train: damaged file"):
        cifar.by_classes("cifar100", fake, download=True)


def test_images_and_labels_come_in_file_order(fake: Path) -> None:
    data = cifar.load("cifar100", fake)
    assert data.name == "cifar100" and data.names == ("ant", "bee", "cat") and data.shape == (3, 32, 32)
    for part, x, y in (("train", data.train_x, data.train_y), ("test", data.test_x, data.test_y)):
        raw = pickle.loads((fake / "cifar-100-python" / part).read_bytes())
        assert y.tolist() == raw["fine_labels"] and y.dtype == torch.int64
        assert torch.equal(x, torch.from_numpy(raw["data"]).view(-1, 3, 32, 32)) and x.is_contiguous()


@pytest.fixture
def ten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A miniature CIFAR-10 of noise, 4 images a batch, and what its files hold."""
    folder, draws, md5 = tmp_path / "cifar-10-batches-py", np.random.default_rng(0), {}
    folder.mkdir()
    raw: dict[str, dict[str, Any]] = {}
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        data = draws.integers(0, 256, (4, 3072), dtype=np.uint8)
        raw[name] = {"data": data, "labels": draws.integers(0, 3, 4).tolist()}
    for name, content in {**raw, "batches.meta": {"label_names": ["ant", "bee", "cat"]}}.items():
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = checksum(folder / name)
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, part, [[name, md5[name]] for name, _ in getattr(CIFAR10, part)])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5["batches.meta"]})
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path, raw


def test_cifar10_is_its_batches_in_order(ten: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    root, raw = ten
    data = cifar.load("cifar10", root, download=True)  # nothing to download
    assert data.name == "cifar10" and data.names == ("ant", "bee", "cat")
    batches = [raw[f"data_batch_{k}"] for k in range(1, 6)]
    for x, y, parts in ((data.train_x, data.train_y, batches), (data.test_x, data.test_y, [raw["test_batch"]])):
        assert x.dtype == torch.uint8 and y.dtype == torch.int64
        assert torch.equal(x, torch.from_numpy(np.concatenate([part["data"] for part in parts])).view(-1, 3, 32, 32))
        assert y.tolist() == [label for part in parts for label in part["labels"]]


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_3", "data_batch_5", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_file_of_cifar10_is_named(
    ten: tuple[Path, dict[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    path = ten[0] / "cifar-10-batches-py" / name
    expected = checksum(path)
    flip(path) if damage == "flipped" else path.unlink()
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("a damaged file was read"))
    with pytest.raises(UserError) as caught:
        cifar.load("cifar10", ten[0])
    assert str(caught.value).startswith(f"{path}: ") and expected in str(caught.value)
    with pytest.raises(UserError, match=r"cifar-10-python.tar.gz could not be downloaded"):
        cifar.load("cifar10", ten[0], download=True)


@pytest.mark.skipif("CLLIB_CIFAR100" not in os.environ, reason="CLLIB_CIFAR100 names no folder with the real CIFAR-100")
def test_the_real_one() -> None:
    train, test = cifar.by_classes("cifar100", os.environ["CLLIB_CIFAR100"])
    assert train.images.shape == (100, 500, 32, 32, 3) and test.images.shape == (100, 100, 32, 32, 3)
    assert train.names[:2] == ("apple", "aquarium_fish") and train.names[-1] == "worm"
    mean = (train.images.double() / 255).mean((0, 1, 2, 3))
    assert mean.tolist() == pytest.approx([0.5071, 0.4865, 0.4409], abs=1e-4)  # the known channel means
    raw = pickle.loads(
        (Path(os.environ["CLLIB_CIFAR100"]) / "cifar-100-python" / "test").read_bytes(), encoding="latin1"
    )
    rows = [row for row, label in enumerate(raw["fine_labels"]) if label == 42]
    expected = torch.tensor(raw["data"][rows]).reshape(100, 3, 32, 32).permute(0, 2, 3, 1)
    assert torch.equal(test.images[42], expected)
