"""A run's place on disk: a folder named by everything its result depends on, used by one process at a time.

STORE/ADDRESS/  parameters.json  what the address stands for
                checkpoint.pt    the state to go on from, or the final one
                records.json     the result, once there is one
                lock
"""

import ast
import hashlib
import importlib.util
import inspect
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cllib.checkpoints import clean
from cllib.datasets.files import writable_folder, write_atomic
from cllib.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("torch", "numpy", "scikit-learn", "timm")
MATTER = ("torch", "numpy")  # of these, a new version may change the bits of a result


@cache
def versions() -> dict[str, str]:
    """Versions that matter for a number."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}}


def artifacts() -> Path:
    """Where everything that is made goes: CLLIB_ARTIFACTS, else `artifacts` of the checkout."""
    return Path(os.environ.get("CLLIB_ARTIFACTS", ROOT / "artifacts"))


def store() -> Path:
    """Where runs are kept: `runs` of the artifacts."""
    return artifacts() / "runs"


# --- the address ---


def address(parameters: Any, data: str, code: str, device: str) -> str:
    """16 hex digits that stand for a run: its parameters, data, code, library versions and kind of device."""
    libraries = {name: versions()[name] for name in MATTER}
    whole = {"parameters": parameters, "data": data, "code": code, "libraries": libraries, "device": device}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def code_hash(*parts: Any) -> str:
    """16 hex digits of the code that classes, functions or modules are made of, and all of their package they import.

    Comments, docstrings and layout do not count; nor do a package's `__init__`, which only lists, and other packages,
    which `address` counts by version. Of a class written in a notebook, its own source and those of its bases count.
    Raises UserError for one whose source cannot be read.
    """
    names, loose = set(), []
    for part in (base for whole in parts for base in own_bases(whole)):
        module = part if inspect.ismodule(part) else inspect.getmodule(part)
        if module is not None and module.__name__ != "__main__":
            names.add(module.__name__)
            continue
        try:
            loose.append(plain_code(inspect.getsource(part)))
        except (OSError, TypeError) as error:
            raise UserError(
                f"{part.__name__}: its source cannot be read, so its runs cannot be kept; put it in a file"
            ) from error
    sources = [*sorted(loose), *(f"{name}\n{code_in(name)[0]}" for name in sorted(closure(names)))]
    return hashlib.sha256("\n".join(sources).encode()).hexdigest()[:16]


def own_bases(part: Any) -> list[Any]:
    """A class and those of its bases that are of this package or its own; anything else as it is."""
    if not inspect.isclass(part):
        return [part]
    own = {__name__.split(".")[0], part.__module__.split(".")[0]}
    return [base for base in part.__mro__ if base.__module__.split(".")[0] in own]


def closure(names: Iterable[str]) -> set[str]:
    """The modules, and all that they import, directly or not, from their own packages."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for other in code_in(name)[1] if other.split(".")[0] == name.split(".")[0]]
    return found


@cache
def code_in(name: str) -> tuple[str, tuple[str, ...]]:
    """What a module says, bare of comments, and the modules it imports; packages count as nothing."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is not None or not spec.origin:
        return "", ()
    source = Path(spec.origin).read_text()
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return plain_code(source), tuple(other for other in imported if is_module(other, name))


def is_module(name: str, importer: str) -> bool:
    """Whether a dotted name of the importer's own package is a module, rather than something inside one."""
    try:
        return name.split(".")[0] == importer.split(".")[0] and importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def plain_code(source: str) -> str:
    """The source without comments, docstrings and layout."""
    tree = ast.parse(inspect.cleandoc(source) if source[:1].isspace() else source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[attr-defined]
    return ast.unparse(tree)


# --- the folder ---


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """The folder, for this process alone; another one that holds it is waited for.

    The system frees the lock when a process dies, however it dies. What a killed process left half-written is removed.
    """
    lock = FileLock(writable_folder(folder) / "lock")
    try:
        lock.acquire(timeout=0.1)
    except Timeout:
        print(f"{folder}: another process works on this run; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        clean(folder)
        yield folder
    finally:
        lock.release()


def describe(folder: Path, what: Any) -> None:
    """Write down what the folder's address stands for."""
    write_atomic(folder / "parameters.json", json.dumps(what, indent=1, sort_keys=True).encode())
