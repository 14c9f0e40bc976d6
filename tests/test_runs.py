"""Addresses: what they depend on, and what not; folders that one process has at a time."""

import threading
import time
from pathlib import Path

import pytest
import torch

from cllib import runs
from cllib.runs import address, claimed

PARAMETERS = {"learner": "er", "seed": 1}


def test_every_part_of_a_run_changes_its_address() -> None:
    one = address(PARAMETERS, "data", "code", "cpu")
    others = [
        address({**PARAMETERS, "seed": 2}, "data", "code", "cpu"),
        address(PARAMETERS, "other", "code", "cpu"),
        address(PARAMETERS, "data", "other", "cpu"),
        address(PARAMETERS, "data", "code", "cuda"),
    ]
    assert len({one, *others}) == 5 and len(one) == 16
    assert address(dict(reversed(PARAMETERS.items())), "data", "code", "cpu") == one


def test_a_new_torch_changes_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    before = address(PARAMETERS, "data", "code", "cpu")
    monkeypatch.setattr(runs, "versions", lambda: {"python": "3.11.7", "torch": "9.9", "numpy": "2.4.6"})
    assert address(PARAMETERS, "data", "code", "cpu") != before


def test_another_default_precision_changes_the_address() -> None:
    before = address(PARAMETERS, "data", "code", "cpu")
    torch.set_default_dtype(torch.float64)
    try:
        assert address(PARAMETERS, "data", "code", "cpu") != before
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_folder_is_one_process_at_a_time_and_clean(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    order = []
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".checkpoint.pt.00000000.tmp").write_text("half")

    def second() -> None:
        with claimed(tmp_path / "run"):
            order.append("second")

    with claimed(tmp_path / "run") as folder:
        assert not list(folder.glob(".*.tmp"))
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert "another process works on this run" in capfd.readouterr().err
