"""The hash of running code: what it sees, and what it does not."""

import copy
import functools
import importlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cllib import fingerprint
from cllib.contract import candidates, tiny_stream
from cllib.experiments import Program, compare
from cllib.fingerprint import Registry, code_hash, is_own
from cllib.learners import naive
from cllib.metaplasticity import MetaplasticAdam
from cllib.models.networks import MLP
from cllib.recipes import Recipe

LEARNER = """
from .tools import f, OPTIONS
from . import REGISTRY, helper
import json
LIMIT = 3

class Base:
    def go(self):
        return 1

class Learner(Base):
    kind = "a"
    def run(self, x=2):
        return [helper(f(k)) for k in range(LIMIT)], REGISTRY, OPTIONS["one"](x)
"""
INIT = """
class Registry(dict): pass
REGISTRY = {}
def helper(x):
    return x
def unused():
    return 1
"""
TOOLS = """
def f(x):
    return g(x) + 1
def g(x):
    return x
def one(x):
    return x
OPTIONS = {'one': one}
"""
FILES = {"__init__.py": INIT, "tools.py": TOOLS, "learner.py": LEARNER, "other.py": "X = 1\n"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of the reader's own, with relative imports and code in its `__init__`."""
    folder = tmp_path / "toypackage"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    forget()


def forget() -> None:
    is_own.cache_clear()
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.startswith("toypackage")]:
        del sys.modules[name]


def hashed() -> str:
    forget()
    module: ModuleType = importlib.import_module("toypackage.learner")
    return code_hash(module.Learner)


@pytest.mark.parametrize(
    ("file", "old", "new", "matters"),
    [
        ("learner.py", "range(LIMIT)", "range(LIMIT + 1)", True),
        ("learner.py", "LIMIT = 3", "LIMIT = 4", True),
        ("learner.py", 'kind = "a"', 'kind = "b"', True),
        ("learner.py", "x=2", "x=3", True),
        ("learner.py", "return 1", "return 2", True),  # of its base
        ("tools.py", "g(x) + 1", "g(x) + 2", True),
        ("tools.py", "def g(x):\n    return x", "def g(x):\n    return -x", True),  # used by what it uses
        ("tools.py", "def one(x):\n    return x", "def one(x):\n    return -x", True),  # through a table
        ("__init__.py", "def helper(x):\n    return x", "def helper(x):\n    return -x", True),
        ("__init__.py", "return 1", "return 2", False),  # nobody uses it
        ("other.py", "X = 1", "X = 2", False),
        ("learner.py", "    def run(", "    # a remark\n\n    def run(", False),
        ("learner.py", "class Learner(Base):", 'class Learner(Base):\n    """What it does."""\n', False),
        ("tools.py", "def f(x):\n", 'def f(x):\n    "Adds."\n', False),
    ],
)
def test_what_a_class_uses_counts_and_nothing_else(package: Path, file: str, old: str, new: str, matters: bool) -> None:
    before, text = hashed(), (package / file).read_text()
    assert old in text and hashed() == before
    (package / file).write_text(text.replace(old, new, 1))
    assert (hashed() != before) is matters


def test_it_is_the_running_code_that_counts_not_the_file(package: Path) -> None:
    before = hashed()
    (package / "tools.py").write_text(FILES["tools.py"].replace("+ 1", "+ 2"))
    assert code_hash(sys.modules["toypackage.learner"].Learner) == before


def test_registries_do_not_tie_their_entries_together() -> None:
    def first() -> Any:
        return table["b"]

    table = Registry(a=1)
    before = code_hash(first)
    table["b"] = candidates
    assert code_hash(first) == before


@pytest.mark.parametrize(
    ("module", "function", "changes"),
    [
        ("cllib.learners.ewc", "fisher", {"ewc"}),
        ("cllib.learners.ewc", "add_pull", {"ewc", "si"}),
        ("cllib.memory", "reservoir_batch", {"er"}),
        ("cllib.memory", "reservoir_slots", {"mh er_reservoir"}),
        ("cllib.losses", "xent_gradient", {"mh er_reservoir"}),
        ("cllib.models.memory_head", "attend", {"mh er_reservoir"}),
        ("cllib.training", "excerpt", {"er", "ewc", "si", "mh er_reservoir"}),
        ("cllib.streams.base", "inputs", {"er", "ewc", "si", "mh er_reservoir"}),
        ("cllib.streams.base", "flattened", {"mh er_reservoir"}),
        ("cllib.results", "wide", set()),
        ("cllib.figures", "scatter", set()),
    ],
)
def test_a_changed_function_changes_the_runs_that_use_it(
    module: str, function: str, changes: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("er", "ewc", "si", "mh er_reservoir")
    programs = {name: Program((candidates()[name],), (1,)) for name in names}
    before = {name: program.code() for name, program in programs.items()}
    source = getattr(importlib.import_module(module), function)
    monkeypatch.setattr(source, "__code__", (lambda *parts, **named: 12345).__code__)
    assert {name for name, program in programs.items() if program.code() != before[name]} == changes


def test_a_hash_is_the_same_in_another_process() -> None:
    code = (
        "from cllib.contract import candidates; from cllib.experiments import Program\n"
        "print(*(Program((candidates()[n],), (1,)).code() for n in ('er', 'mh der')))"
    )
    here = [Program((candidates()[n],), (1,)).code() for n in ("er", "mh der")]
    said = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=None
        ).stdout.split()
        for _ in range(2)
    ]
    assert said == [here, here]


def test_classes_of_a_notebook_count_with_what_they_use(tmp_path: Path) -> None:
    """Without a file to read: the cells are executed as a kernel does."""
    cell = textwrap.dedent(
        """
        from dataclasses import dataclass
        from torch import nn
        from cllib.learners.naive import Naive

        class Body(nn.Module):
            def forward(self, x):
                return x * {factor}

        @dataclass(frozen=True)
        class Net:
            def build(self, shape, classes):
                return Body()

        class Mine(Naive):
            def correct(self):
                helper()

        def helper():
            return {other}
        """
    )
    script = (
        "import sys\nfrom cllib.fingerprint import code_hash\n"
        "exec(compile(sys.argv[1], '<cell>', 'exec'), globals())\nprint(code_hash(Net), code_hash(Mine))"
    )

    def run(**values: int) -> list[str]:
        command = [sys.executable, "-c", script, cell.format(**values)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    net, mine = run(factor=2, other=1)
    assert run(factor=2, other=1) == [net, mine]
    assert run(factor=3, other=1)[0] != net and run(factor=3, other=1)[1] == mine
    assert run(factor=2, other=2)[1] != mine


def plain() -> int:
    return 1


class Holder:
    """Something with a value inside."""

    def __init__(self, value: Any) -> None:
        self.value = value


@dataclass(frozen=True)
class Frozen:
    value: Any


VALUES = [
    (torch.tensor([1.0]), torch.tensor([2.0])),
    (np.array([1]), np.array([2])),
    (np.float64(1), np.float64(2)),
    (torch.float32, torch.float64),
    (range(3), range(4)),
    (nn.MSELoss(), nn.L1Loss()),
    (nn.CrossEntropyLoss(label_smoothing=0.0), nn.CrossEntropyLoss(label_smoothing=0.5)),
    (Holder(1), Holder(2)),
    (Frozen(1.0), Frozen(2.0)),
    (Frozen(Holder(nn.ReLU)), Frozen(Holder(nn.GELU))),
    (Holder(1).__init__, Holder(2).__init__),
    (functools.partial(print, 1), functools.partial(print, 2)),
    (functools.partialmethod(print, 1), functools.partialmethod(print, 2)),
    (property(Holder.__init__), property(Frozen.__init__)),
    (staticmethod(len), staticmethod(abs)),
    (((1, 2), 3), (1, (2, 3))),
    ({nn.functional.relu: 1}, {nn.functional.gelu: 1}),
    (lambda a: 1, lambda *a: 1),
    (torch.no_grad()(plain), torch.enable_grad()(plain)),
]


@pytest.mark.parametrize("pair", VALUES, ids=[str(k) for k in range(len(VALUES))])
def test_other_values_give_other_hashes(pair: tuple[Any, Any]) -> None:
    assert code_hash(pair[0]) == code_hash(pair[0]) != code_hash(pair[1])


def test_a_circle_ends_and_libraries_are_not_walked() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    assert code_hash(circle) == code_hash(circle)
    assert not is_own("torch") and not is_own("numpy") and not is_own("json") and is_own("cllib.memory")


def test_bases_count_in_their_order() -> None:
    class A:
        pass

    class B:
        pass

    made = [type("C", bases, {"__module__": __name__}) for bases in ((A, B), (B, A), (A,), (nn.ReLU,), (nn.GELU,))]
    assert len({code_hash(kind) for kind in made}) == len(made)


def test_networks_of_other_parts_have_other_codes() -> None:
    base = candidates()["naive"]
    networks = [Frozen(nn.ReLU), Frozen(nn.GELU), Frozen(Frozen(1)), Frozen(Holder(1))]
    assert len({code_hash(network) for network in networks}) == len(networks)
    program = Program((base,), (1,))
    before = program.code()
    compare("x", tiny_stream(), {"naive": base}, [1])
    assert program.code() == before, "running changes nothing"


def test_where_a_try_block_ends_counts() -> None:
    sources = ["def f(g):\n    try:\n        g()\n        g()\n    except OSError:\n        pass\n"]
    sources.append("def f(g):\n    try:\n        g()\n    except OSError:\n        pass\n    else:\n        g()\n")
    made = []
    for source in sources:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(source, space)
        made.append(code_hash(space["f"]))
    assert made[0] != made[1]


def test_the_first_use_of_an_optimiser_changes_no_hash() -> None:
    """Torch wraps the `step` of its class then; and memory to work in is no code."""

    class Own(torch.optim.SGD):
        def step(self, closure=None):  # type: ignore[override]
            return super().step(closure)

    before = code_hash(Own), code_hash(MetaplasticAdam)
    for kind in (Own, MetaplasticAdam):
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        kind([weight], lr=0.1).step()
    MetaplasticAdam([{"params": [weight], "meta": 1.0}]).step()
    assert (code_hash(Own), code_hash(MetaplasticAdam)) == before


def test_that_an_instance_was_pickled_or_copied_changes_no_hash() -> None:
    """Python then notes names of slots in its class; a process that shares the work must find the same runs."""

    @dataclass(frozen=True)
    class Config:
        width: int = 3

    before = code_hash(Config)
    copy.deepcopy(Config())
    assert "__slotnames__" in vars(Config) and code_hash(Config) == before


def test_code_is_read_once_a_process_for_the_same_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read: list[tuple[Any, ...]] = []
    texts_of = fingerprint.texts_of
    monkeypatch.setattr(fingerprint, "texts_of", lambda things: (read.append(things), texts_of(things))[1])
    fingerprint.KNOWN.clear()
    learners = {f"mlp {k}": Recipe(network=MLP((k,))) for k in range(1, 6)}
    compare("e", tiny_stream(), learners, [1, 2, 3], store=tmp_path, probe_every=0)
    assert len(read) == 1
    grown = Recipe("er", network=MLP((4,)), optimizer="metaplastic", meta=(1.0,), meta_scope="matrices")
    compare("e", tiny_stream(), {"er": grown}, [1, 2], store=tmp_path, probe_every=0)
    assert len(read) == 2


def test_what_is_bound_anew_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a cell does that patches this package, or `%autoreload` after an edit."""
    recipe = Recipe("er", network=MLP((4,)))
    before = Program((recipe,), (1,)).code()
    with monkeypatch.context() as patch:
        patch.setattr(naive.Naive, "cross_entropy", lambda self, logits, y, reduction="mean": logits.sum())
        assert Program((recipe,), (1,)).code() != before
    assert Program((recipe,), (1,)).code() == before
    with monkeypatch.context() as patch:
        patch.setattr(naive.F, "cross_entropy", torch.nn.functional.nll_loss)  # of a library: counted by version
        assert Program((recipe,), (1,)).code() == before
    with monkeypatch.context() as patch:
        patch.setattr(naive.Naive.parameters, "__code__", (lambda self: []).__code__)
        assert Program((recipe,), (1,)).code() != before
