"""CIFAR-100 in torchvision's layout: a miniature with its own checksums, and the real one where it is at hand."""

import os
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR100

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
    threading.Thread(target=server.serve_forever, daemon=True).start()
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


def test_a_download_with_another_content_is_refused(fake: Path, online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR100, "train_list", [["train", "0" * 32]])
    with pytest.raises(UserError, match="cifar-100-python/train: damaged file"):
        cifar.by_classes("cifar100", fake, download=True)


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
