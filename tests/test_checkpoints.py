"""Checkpoints: whole or not at all, and refused unless they are intact and the run's own."""

import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cllib import checkpoints
from cllib.checkpoints import Keeper, clean, digest, read, write
from cllib.errors import UserError

STATE: dict[str, Any] = {
    "learner": {"w": torch.arange(6.0).view(2, 3), "half": torch.ones(3, dtype=torch.bfloat16), "none": None},
    "position": {"experience": 1, "step": 4},
    "history": [torch.tensor(True), (1, 2.5, "text")],
}
RUN = "0123456789abcdef"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "checkpoint.pt", STATE, RUN)
    return tmp_path / "checkpoint.pt"


def test_what_is_read_is_what_was_written(path: Path) -> None:
    assert digest(read(path, RUN)) == digest(STATE)
    assert torch.load(path, weights_only=True)["format"] == checkpoints.FORMAT, "readable without trust"
    assert oct(path.stat().st_mode & 0o777) == oct(0o666 & ~umask())


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize(
    "changed",
    [
        {"w": torch.arange(6.0).view(3, 2)},
        {"w": torch.arange(6.0).view(2, 3).double()},
        {"w": torch.arange(6.0).view(2, 3).nextafter(torch.tensor(9.0))},
        {"v": torch.arange(6.0).view(2, 3)},
        {"w": [0.0, 1.0, 2.0]},
    ],
)
def test_digest_sees_shape_type_bits_and_names(changed: dict[str, Any]) -> None:
    assert digest(changed) != digest({"w": torch.arange(6.0).view(2, 3)})


def test_digest_tells_plain_values_apart() -> None:
    values = [0, 0.0, "0", False, None, [], {}, [0], {"0": 0}, {0: 0}, torch.tensor(0)]
    assert len({digest(value) for value in values}) == len(values)


def test_only_plain_values_can_be_saved() -> None:
    with pytest.raises(TypeError, match="Generator in a state"):
        digest({"g": torch.Generator()})


@settings(max_examples=40, deadline=None)
@example(0.24949472226391506, 0)  # torch's reader ends in an AssertionError
@given(st.floats(0, 1), st.integers(0, 7))
def test_one_flipped_bit_is_refused(tmp_path_factory: pytest.TempPathFactory, where: float, bit: int) -> None:
    path = tmp_path_factory.mktemp("flip") / "checkpoint.pt"
    write(path, STATE, RUN)
    content, whole = bytearray(path.read_bytes()), digest(STATE)
    content[int(where * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)
    try:
        state = read(path, RUN)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert digest(state) == whole, "a flipped bit in the file's padding may pass, one in its content never"


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_torn_file_is_named(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"checkpoint\.pt: torn.*delete it"):
        read(path, RUN)


def test_another_runs_checkpoint_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint of another run, '0123456789abcdef' instead of 'other'"):
        read(path, "other")


def test_newer_format_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "FORMAT", checkpoints.FORMAT + 1)
    write(path, STATE, RUN)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"checkpoint of format 2, this version of cllib reads 1"):
        read(path, RUN)


@pytest.mark.parametrize("content", [{"weights": torch.ones(2)}, [1, 2], 7])
def test_foreign_files_are_refused(path: Path, content: Any) -> None:
    torch.save(content, path)
    with pytest.raises(UserError, match=r"checkpoint\.pt: torn, or no checkpoint"):
        read(path, RUN)


def test_code_in_a_file_is_not_run(path: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "run"),)

    torch.save({"format": 1, "run": RUN, "digest": "", "state": Evil()}, path)
    with pytest.raises(UserError, match="torn, or no checkpoint"):
        read(path, RUN)
    assert not (tmp_path / "run").exists()


def test_wrong_content_under_a_right_digest_field_is_refused(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["state"]["position"]["step"] = 5
    torch.save(content, path)
    with pytest.raises(UserError, match="does not match its digest"):
        read(path, RUN)


def test_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A process that may not write files beyond 20 kB, as on a full disk, keeps the checkpoint it had."""
    script = (
        "import sys, resource, torch; from pathlib import Path; from cllib.checkpoints import write, read\n"
        "path = Path(sys.argv[1]); write(path, {'w': torch.ones(10)}, 'r')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "try: write(path, {'w': torch.ones(100_000)}, 'r')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print(read(path, 'r')['w'].shape)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "checkpoint.pt")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "UserError" in said and "checkpoint.pt: cannot be written (File too large)" in said
    assert "torch.Size([10])" in said and [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert resource.RLIMIT_FSIZE  # the module is what the script relies on


def test_clean_removes_temporaries_only(path: Path) -> None:
    orphan = path.with_name(".checkpoint.pt.1a2b3c4d.tmp")
    orphan.write_bytes(b"half")
    clean(path.parent)
    assert not orphan.exists() and path.exists()


def test_keeper_saves_every_so_many_steps_and_at_borders(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "c.pt", RUN, every=3)
    assert [step for step in range(1, 10) if keeper.due(step)] == [3, 6, 9]
    assert keeper.due(0, border=True) and keeper.due(4, border=True)
    with pytest.raises(UserError, match="checkpoint_every = 0"):
        Keeper(tmp_path / "c.pt", RUN, every=0)


def test_keeper_spends_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, saves = [0.0], 0
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(checkpoints, "write", lambda *_: clock.__setitem__(0, clock[0] + 0.05))  # a save takes 50 ms
    keeper = Keeper(tmp_path / "c.pt", RUN)
    clock[0] = 0.5
    assert not keeper.due(1), "a run of less than a second has no checkpoint"
    for step in range(1, 100_001):
        clock[0] += 0.001
        if keeper.due(step):
            keeper.save({})
            saves += 1
    assert 0.8 * checkpoints.SHARE * 100 / 0.05 < saves <= checkpoints.SHARE * clock[0] / 0.05
    assert checkpoints.SHARE <= 0.01


def test_keeper_removes_what_is_not_kept(tmp_path: Path) -> None:
    for keep in (True, False):
        keeper = Keeper(tmp_path / "c.pt", RUN, keep=keep)
        keeper.save(STATE)
        keeper.tidy()
        assert keeper.path.exists() is keep


def test_checkpoints_are_plain_zip_files_of_torch(path: Path) -> None:
    assert zipfile.is_zipfile(path)
