"""Addresses: what they depend on, and what not; folders that one process has at a time."""

import importlib
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from cllib import runs
from cllib.errors import UserError
from cllib.learners.naive import Naive
from cllib.runs import address, claimed, closure, code_hash, code_in, plain_code

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
    monkeypatch.setattr(runs, "versions", lambda: {"torch": "9.9", "numpy": "9.9"})
    assert address(PARAMETERS, "data", "code", "cpu") != before


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package where `learner` imports `tools`, and `other` is imported by nobody."""
    folder = tmp_path / "toypackage"
    folder.mkdir()
    (folder / "__init__.py").write_text("from toypackage import other\n")
    (folder / "tools.py").write_text("def f(x):\n    return x + 1\n")
    (folder / "other.py").write_text("X = 1\n")
    (folder / "learner.py").write_text("from toypackage.tools import f\nimport json\n\nclass Learner:\n    y = f(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [name for name in sys.modules if name.startswith("toypackage")]:
        del sys.modules[name]


def hashed() -> str:
    importlib.invalidate_caches()
    code_in.cache_clear()
    module: ModuleType = importlib.import_module("toypackage.learner")
    return code_hash(module.Learner)


@pytest.mark.parametrize(
    ("file", "content", "matters"),
    [
        ("tools.py", "def f(x):\n    return x + 2\n", True),
        ("tools.py", 'def f(x):\n    """Add one."""\n    # and no more\n    return (x\n            + 1)\n', False),
        ("other.py", "X = 2\n", False),
        ("__init__.py", "", False),
    ],
)
def test_code_that_matters_is_what_the_learner_imports(package: Path, file: str, content: str, matters: bool) -> None:
    before = hashed()
    (package / file).write_text(content)
    assert (hashed() != before) is matters


def test_learners_do_not_share_their_fate() -> None:
    found = closure(["cllib.learners.er", "cllib.training", "cllib.recipes"])
    assert {"cllib.memory", "cllib.randomness", "cllib.learners.naive", "cllib.streams.base"} <= found
    assert not found & {"cllib.learners.ewc", "cllib.learners.heads.mir", "cllib.figures", "cllib.results", "cllib.cli"}
    assert "cllib.learners.ewc" in closure(["cllib.learners.si"])


def test_a_class_from_a_notebook_counts_with_its_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    Mine = type("Mine", (Naive,), {"__module__": "__main__"})
    sources = {Mine: "class Mine(Naive): x = 1"}
    monkeypatch.setattr(runs.inspect, "getsource", lambda part: sources[part])
    monkeypatch.setattr(runs.inspect, "getmodule", lambda part: sys.modules[part.__module__])
    first = code_hash(Mine)
    sources[Mine] = "class Mine(Naive): x = 2"
    assert code_hash(Mine) != first
    assert [base.__name__ for base in runs.own_bases(Mine)] == ["Mine", "Naive"]


def test_code_that_cannot_be_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(part: object) -> str:
        raise OSError("source code not available")

    monkeypatch.setattr(runs.inspect, "getsource", unreadable)
    monkeypatch.setattr(runs.inspect, "getmodule", lambda part: sys.modules.get(part.__module__))
    with pytest.raises(UserError, match="Mine: its source cannot be read"):
        code_hash(type("Mine", (Naive,), {"__module__": "__main__"}))


def test_docstrings_and_comments_are_not_code() -> None:
    assert plain_code('def f():\n    "doc"\n') == plain_code("def f():  # no\n    pass\n")
    assert plain_code("x = 1") != plain_code("x = 2")


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
