"""Checksums, content hashes, atomic writes."""

import hashlib
import os
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch

from cllib.datasets import files
from cllib.errors import UserError


def test_checksum_is_the_digest_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"continual")
    assert files.checksum(path) == hashlib.md5(b"continual").hexdigest()
    assert files.checksum(path, "sha256") == hashlib.sha256(b"continual").hexdigest()


def test_verify_accepts_the_right_file_and_names_a_wrong_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"continual")
    expected = files.checksum(path)
    files.verify(path, expected)
    path.write_bytes(b"continuaL")
    with pytest.raises(UserError) as caught:
        files.verify(path, expected)
    assert all(part in str(caught.value) for part in (str(path), expected, files.checksum(path)))
    with pytest.raises(UserError, match="missing"):
        files.verify(tmp_path / "missing", expected)


def test_hash_arrays_is_pinned_and_takes_numpy_too() -> None:
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    expected = hashlib.sha256(b"torch.float32 (2, 3) " + x.numpy().tobytes()).hexdigest()[:16]
    assert files.hash_arrays(x) == files.hash_arrays(x.numpy()) == expected


@pytest.mark.parametrize(
    "other",
    [
        torch.arange(6, dtype=torch.float32).reshape(3, 2),
        torch.arange(6, dtype=torch.float32).reshape(2, 3).view(torch.int32),
        torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),
        torch.tensor([[0.0, 1, 2], [3, 4, np.nextafter(np.float32(5), np.float32(6))]]),
    ],
    ids=["shape", "dtype", "transposed", "last bit"],
)
def test_hash_arrays_changes_with(other: torch.Tensor) -> None:
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert files.hash_arrays(other) != files.hash_arrays(x)


def test_hash_arrays_sees_order_and_borders_and_odd_tensors() -> None:
    a, b, empty = torch.zeros(2), torch.ones(3), torch.zeros(0)
    assert files.hash_arrays(a, b) != files.hash_arrays(b, a)
    assert files.hash_arrays(a, empty) != files.hash_arrays(empty, a)
    assert files.hash_arrays(torch.cat([a, b])) != files.hash_arrays(a, b)
    assert files.hash_arrays(torch.tensor(1)) != files.hash_arrays(torch.tensor([1]))  # no dimension, one dimension
    assert files.hash_arrays(torch.ones(2, dtype=torch.bfloat16)) != files.hash_arrays(torch.ones(2, dtype=torch.half))
    assert files.hash_arrays(torch.arange(6)[::2]) == files.hash_arrays(torch.tensor([0, 2, 4]))  # strides do not count


def test_write_atomic_writes_bytes_or_calls_and_makes_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    files.write_atomic(path, b"one")
    assert path.read_bytes() == b"one"
    files.write_atomic(path, lambda temporary: temporary.write_bytes(b"two"))
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["a.bin"]


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_write_atomic_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def half(temporary: Path) -> None:
        temporary.write_bytes(b"ne")
        assert temporary.parent == tmp_path  # a rename across file systems would not be atomic
        raise error

    with pytest.raises(UserError if isinstance(error, OSError) else type(error)) as caught:
        files.write_atomic(path, half)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]
    if isinstance(error, OSError):
        assert str(path) in str(caught.value) and "No space" in str(caught.value)


def test_write_atomic_syncs_the_file_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    replace, flush = os.replace, files._flush
    monkeypatch.setattr(os, "replace", lambda *a: (events.append("rename"), replace(*a)))
    monkeypatch.setattr(files, "_flush", lambda p: (events.append("folder" if p == tmp_path else "file"), flush(p)))
    files.write_atomic(tmp_path / "a", b"x")
    assert events == ["file", "rename", "folder"]


def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file/below"):
        files.write_atomic(tmp_path / "file" / "below" / "a", b"x")


def test_a_read_only_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere, so a real one cannot be had for sure
    with pytest.raises(UserError, match=str(tmp_path)):
        files.writable_folder(tmp_path)


def test_set_aside_keeps_the_file_and_warns(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"torn")
    with pytest.warns(UserWarning, match=r"a: damaged \(torn\); set aside as a.damaged"):
        files.set_aside(path, "torn")
    assert os.listdir(tmp_path) == ["a.damaged"]


def test_cache_folder_is_chosen_or_the_checkout_or_the_user_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLLIB_CACHE", str(tmp_path))
    assert files.cache_folder() == tmp_path
    monkeypatch.delenv("CLLIB_CACHE")
    monkeypatch.setattr(files, "__file__", str(tmp_path / "cllib" / "datasets" / "files.py"))
    assert files.cache_folder() == platformdirs.user_cache_path("cllib")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "data").mkdir()
    assert files.cache_folder() == tmp_path / "data" / "downloads"


def test_hash_of_one_strided_element() -> None:
    assert files.hash_arrays(torch.arange(10)[::20]) == files.hash_arrays(torch.tensor([0]))
