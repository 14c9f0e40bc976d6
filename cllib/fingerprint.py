"""A hash of the code that runs: of functions and classes as they are in memory, and of all that they use.

Taken from compiled code, so comments, docstrings and layout do not count, classes written in a notebook do, and a file
that was edited after it was loaded does not. Libraries installed beside this package do not count: `runs.address`
counts them by version. Nor does what stands in a `Registry` and is not used.
"""

import dis
import functools
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

HERE = __name__.split(".")[0]
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
DOCUMENTED = getattr(inspect, "CO_HAS_DOCSTRING", 0x4000000)  # a flag of Python 3.13; before, the first constant


class Registry(dict[str, Any]):
    """A table of things by name; a run depends on the thing it picked, not on the table."""


def code_hash(*parts: Any) -> str:
    """16 hex digits of the code of classes, functions and modules, and of all of it that they use."""
    found: dict[int, tuple[Any, str]] = {}
    waiting = list(parts)
    while waiting:
        part = waiting.pop()
        if id(part) not in found and counts(part):
            pieces = list(uses(part))
            found[id(part)] = part, repr([piece for piece in pieces if isinstance(piece, str)])
            waiting += [piece.thing for piece in pieces if isinstance(piece, Use)]
    texts = sorted(f"{name_of(part)} {text}" for part, text in found.values())
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


class Use:
    """Something that a piece of code refers to."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing


def name_of(part: Any) -> str:
    """Where a thing is defined."""
    return f"{getattr(part, '__module__', '')}.{getattr(part, '__qualname__', getattr(part, '__name__', ''))}"


def counts(part: Any) -> bool:
    """Whether a thing is code of this package, a notebook, or a file of the reader's."""
    if not (inspect.isclass(part) or inspect.isroutine(part) or inspect.ismodule(part)):
        return False
    name = part.__name__ if inspect.ismodule(part) else getattr(part, "__module__", None)
    return name is not None and is_own(name)


@functools.cache
def is_own(module: str) -> bool:
    """Whether a module is neither built in nor an installed library."""
    if module.split(".")[0] in (HERE, "__main__", "__mp_main__"):
        return True
    origin = getattr(sys.modules.get(module), "__file__", None)
    return origin is not None and not any(Path(origin).is_relative_to(folder) for folder in LIBRARIES)


def uses(part: Any) -> Iterator[str | Use]:
    """What a function, class or module is made of: texts that stand for it, and things it refers to."""
    if inspect.ismodule(part):
        for name, value in sorted(vars(part).items()):
            if getattr(value, "__module__", part.__name__) == part.__name__ and not name.startswith("__"):
                yield from value_of(name, value)
    elif inspect.isclass(part):
        yield from (Use(base) for base in part.__mro__[1:])
        for name, value in sorted(vars(part).items()):
            if name not in (
                "__doc__",
                "__module__",
                "__dict__",
                "__weakref__",
                "__firstlineno__",
                "__static_attributes__",
            ):
                yield from value_of(name, value)
    else:
        yield from function_uses(part)


def function_uses(part: Any) -> Iterator[str | Use]:
    """What a function says, its defaults, and the globals and outer variables it reads."""
    part = getattr(part, "__func__", part)
    if hasattr(part, "__wrapped__"):
        yield Use(part.__wrapped__)
    code = getattr(part, "__code__", None)
    if code is None:
        return
    yield from said(code)
    for default in (*(part.__defaults__ or ()), *(part.__kwdefaults__ or {}).values()):
        yield from value_of("default", default)
    for cell in part.__closure__ or ():
        try:
            yield from value_of("outer", cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    for name in sorted(names_in(code)):
        if name in part.__globals__:
            yield from value_of(name, part.__globals__[name])


def said(code: CodeType) -> Iterator[str]:
    """The instructions, names and constants of a piece of compiled code, its docstring left out."""
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars}"
    constants = list(code.co_consts)
    documented = code.co_flags & DOCUMENTED if sys.version_info >= (3, 13) else not code.co_name.startswith("<")
    if documented and constants and (constants[0] is None or isinstance(constants[0], str)):
        constants[0] = None
    for constant in constants:
        if isinstance(constant, CodeType):
            yield from said(constant)
        else:
            yield repr(sorted(constant, key=repr)) if isinstance(constant, frozenset) else repr(constant)


def names_in(code: CodeType) -> set[str]:
    """The global names that a piece of compiled code, or what is defined inside it, reads."""
    inner = [names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    read = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return read.union(*inner)


def value_of(name: str, value: Any) -> Iterator[str | Use]:
    """What a value stands for: plain values by what they are, code by use, tables by their content."""
    if isinstance(value, Registry):
        return
    if value is None or isinstance(value, bool | int | float | str | bytes):
        yield f"{name}={value!r}"
    elif isinstance(value, staticmethod | classmethod):
        yield Use(value.__func__)
    elif isinstance(value, property | functools.cached_property):
        yield from (Use(f) for f in (getattr(value, "fget", None), getattr(value, "func", None)) if f is not None)
    elif isinstance(value, functools.partial):
        yield from value_of(name, [value.func, value.args, value.keywords])
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from value_of(f"{name}[{key!r}]", item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in sorted(value, key=repr) if isinstance(value, set | frozenset) else value:
            yield from value_of(name, item)
    elif isinstance(value, ModuleType) or callable(value):
        yield f"{name}:{name_of(value)}"
        yield Use(value)
