"""USPS in its own file format: a miniature with its own checksums."""

import bz2
import hashlib
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import USPS

from cllib.datasets import usps
from cllib.errors import UserError

FILES = {"train": ("usps.bz2", 12), "test": ("usps.t.bz2", 5)}
LEVELS = np.linspace(-1, 1, 9)  # exact as text


def text(pixels: np.ndarray, labels: np.ndarray) -> bytes:
    """The format of libsvm: label from 1, then index:value from 1."""
    rows = [
        f"{label + 1} " + " ".join(f"{k}:{value:g}" for k, value in enumerate(row, 1)) + " \n"
        for row, label in zip(pixels, labels, strict=True)
    ]
    return "".join(rows).encode()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The miniature's pixels [N, 256] and labels by part; it lies in tmp_path, and nothing can be downloaded."""
    draws, made, listed = np.random.default_rng(0), {}, {}
    for part, (name, count) in FILES.items():
        made[part] = draws.choice(LEVELS, (count, 256)), draws.permutation(np.arange(count) % 10)
        packed = bz2.compress(text(*made[part]))
        (tmp_path / name).write_bytes(packed)
        listed[part] = [f"http://127.0.0.1:9/{name}", name, hashlib.md5(packed).hexdigest()]
    monkeypatch.setattr(USPS, "split_list", listed)
    monkeypatch.setenv("no_proxy", "*")
    return made


def test_images_lie_in_a_margin_of_zeros(fake: dict[str, tuple[np.ndarray, np.ndarray]], tmp_path: Path) -> None:
    data = usps.load(tmp_path)
    assert data.name == "USPS" and data.names == tuple("0123456789") and data.shape == (1, 28, 28)
    for part, x, y in (("train", data.train_x, data.train_y), ("test", data.test_x, data.test_y)):
        pixels, labels = fake[part]
        assert x.dtype == torch.uint8 and y.dtype == torch.int64 and y.tolist() == labels.tolist()
        expected = ((pixels.reshape(-1, 16, 16) + 1) / 2 * 255).astype(np.uint8)
        assert torch.equal(x[:, 0, 6:22, 6:22], torch.from_numpy(expected))
        assert x.long().sum() == expected.sum(dtype=np.int64)  # nothing but zeros around


@pytest.mark.parametrize("name", ["usps.bz2", "usps.t.bz2"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_file_is_named(
    fake: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str
) -> None:
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content) if damage == "flipped" else path.unlink()
    monkeypatch.setattr(bz2, "open", lambda *_, **__: pytest.fail("a damaged file was read"))
    with pytest.raises(UserError) as caught:
        usps.load(tmp_path, download=False)
    assert str(caught.value).startswith(f"{path}: ") and str(caught.value).endswith("download=True fetches it")
    with warnings.catch_warnings(record=True) as warned, pytest.raises(UserError) as caught:
        usps.load(tmp_path)
    assert [f"set aside as {name}.damaged" in str(w.message) for w in warned] == [True] * (damage == "flipped")
    message = str(caught.value)
    assert str(path) in message and f"http://127.0.0.1:9/{name} could not be" in message and "\n" not in message


@pytest.mark.parametrize("served", ["whole", "damaged"])
def test_a_missing_file_is_downloaded_and_checked(
    fake: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: str
) -> None:
    store, name = tmp_path / "store", "usps.t.bz2"
    store.mkdir()
    (tmp_path / name).rename(store / name)
    if served == "damaged":
        (store / name).write_bytes(b"something else")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(store)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/{name}"
    monkeypatch.setitem(USPS.split_list, "test", [address, *USPS.split_list["test"][1:]])
    try:
        if served == "whole":
            assert len(usps.load(tmp_path).test_y) == 5
        else:
            with pytest.raises(UserError, match="could not be downloaded"):
                usps.load(tmp_path)
            assert not (tmp_path / name).exists()
    finally:
        server.shutdown()
        server.server_close()
