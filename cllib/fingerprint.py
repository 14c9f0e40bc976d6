"""A hash of the code that runs: of functions and classes as they are in memory, and of all that they use.

Taken from compiled code, so comments, docstrings and layout do not count, classes written in a notebook do, and a file
that was edited after it was loaded does not. Libraries installed beside this package do not count: `runs.address`
counts them by version. Nor does what stands in a `Registry`: who picks from one passes on what was picked.
"""

import dis
import enum
import functools
import hashlib
import importlib
import inspect
import operator
import re
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import nn

from cllib.datasets.files import hash_arrays

HERE = __name__.split(".")[0]
LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, enum.Enum, np.generic, torch.dtype, torch.device),
    *(bytearray, slice, Decimal, Fraction, re.Pattern),  # no paths: this package may lie anywhere
)
# Of a class: not what it does. (`__slotnames__` is put there when an instance is first pickled or copied.)
UNSAID = (
    *("__doc__", "__module__", "__dict__", "__weakref__"),
    *("__firstlineno__", "__static_attributes__", "__slotnames__"),
)
DEEPEST = 12  # objects inside objects
DOCUMENTED = getattr(inspect, "CO_HAS_DOCSTRING", 0x4000000)  # a flag of Python 3.13; before, the first constant


class Registry(dict[str, Any]):
    """A table of things by name; a run depends on the thing it picked, not on the table."""


def code_hash(*parts: Any) -> str:
    """16 hex digits of classes, functions, modules and other values, and of all code that they use."""
    first = [piece for part in parts for piece in value_of("part", part)]
    texts = [piece for piece in first if isinstance(piece, str)]
    things = tuple({id(piece.thing): piece.thing for piece in first if isinstance(piece, Use)}.values())
    return hashlib.sha256("\n".join([*texts, *known(things)]).encode()).hexdigest()[:16]


KNOWN: dict[tuple[int, ...], tuple[tuple[Any, ...], list[Any], list[str]]] = {}


def known(things: tuple[Any, ...]) -> list[str]:
    """`texts_of` these things, read once a process; again where a cell, a patch or a reload bound any name anew."""
    key = tuple(map(id, things))
    if key in KNOWN:
        _, before, texts = KNOWN[key]
        now = bound()
        if len(now) == len(before) and all(map(operator.is_, now, before)):
            return texts
    texts, foreign = texts_of(things)
    if not foreign:  # the reader's own code: what a cell changed inside a list or an object would not be seen
        KNOWN[key] = things, bound(), texts
    return texts


def bound() -> list[Any]:
    """Everything that this package's modules and classes hold right now, and the code of their functions."""
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == HERE]
    held = [value for module in modules for value in vars(module).values()]
    held += [value for kind in held if inspect.isclass(kind) and counts(kind) for value in vars(kind).values()]
    return [*held, *(value.__code__ for value in held if inspect.isfunction(value))]


def texts_of(things: Iterable[Any]) -> tuple[list[str], bool]:
    """What the code of some things says, and all that it uses; and whether any of it is not this package's."""
    found: dict[int, tuple[Any, str]] = {}
    waiting = list(things)
    while waiting:
        part = waiting.pop()
        if id(part) not in found and counts(part):
            pieces = list(uses(part))
            said = repr([piece for piece in pieces if isinstance(piece, str)])
            found[id(part)] = part, f"{name_of(part)} {said}"
            waiting += [piece.thing for piece in pieces if isinstance(piece, Use)]
    foreign = [part for part, _ in found.values() if is_foreign(part)]
    versions = {text for part in foreign for text in libraries(part)}
    return [*sorted(text for _, text in found.values()), *sorted(versions)], bool(foreign)


def libraries(part: Any) -> Iterator[str]:
    """Name and version of the installed libraries that a piece of the reader's own code refers to or imports."""
    code = getattr(part, "__code__", None)
    things = [piece.thing for piece in uses(part) if isinstance(piece, Use)]
    named = {thing.__name__ if inspect.ismodule(thing) else name_of(thing) for thing in things}
    for root in {name.split(".")[0] for name in named | (set() if code is None else names_in(code))}:
        yield from (f"{name} {metadata.version(name)}" for name in distributions().get(root, ()))


distributions = functools.cache(metadata.packages_distributions)


def is_foreign(part: Any) -> bool:
    """Whether a class, function or module is not this package's."""
    name: str = part.__name__ if inspect.ismodule(part) else part.__module__
    return name.split(".")[0] != HERE


class Use:
    """Something that a piece of code refers to."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing


def name_of(part: Any) -> str:
    """Where a class or function is defined; of anything else, its kind."""
    part = part if hasattr(part, "__qualname__") or inspect.ismodule(part) else type(part)
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
    if origin is None or {"site-packages", "dist-packages"} & set(Path(origin).parts):
        return False
    return not any(Path(origin).is_relative_to(folder) for folder in LIBRARIES)


def uses(part: Any) -> Iterator[str | Use]:
    """What a function, class or module is made of: texts that stand for it, and things it refers to."""
    if inspect.ismodule(part):
        for name, value in sorted(vars(part).items()):
            inside = inspect.ismodule(value) and value.__name__.startswith(f"{part.__name__}.")  # part.value.f()
            if not name.startswith("__") and (inside or not inspect.ismodule(value)):
                yield from value_of(name, value)
    elif inspect.isclass(part):
        yield f"bases {[name_of(base) for base in part.__mro__]}"
        yield from (Use(base) for base in (*part.__mro__[1:], type(part)))
        for name, value in sorted(vars(part).items()):
            if name not in UNSAID:
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
        elif name.split(".")[0] in (HERE, part.__module__.split(".")[0]) and "." in name:
            yield Use(importlib.import_module(name))  # imported inside the function


def said(code: CodeType) -> Iterator[str]:
    """The instructions, names and constants of a piece of compiled code, its docstring left out."""
    counts_of = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & 0x0C
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars} {counts_of}"
    yield code.co_exceptiontable.hex()
    constants = list(code.co_consts)
    documented = code.co_flags & DOCUMENTED if sys.version_info >= (3, 13) else not code.co_name.startswith("<")
    if documented and constants and (constants[0] is None or isinstance(constants[0], str)):
        constants[0] = None
    for constant in constants:
        if isinstance(constant, CodeType):
            yield from said(constant)
        else:
            yield repr(sorted(constant, key=repr)) if isinstance(constant, frozenset) else repr(constant)


@functools.cache
def names_in(code: CodeType) -> frozenset[str]:
    """The global names that a piece of compiled code, or what is defined inside it, reads."""
    inner = [names_in(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    wanted = ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME")
    read = {i.argval for i in dis.get_instructions(code) if i.opname in wanted}
    return frozenset(read.union(*inner))


def value_of(name: str, value: Any, around: tuple[int, ...] = ()) -> Iterator[str | Use]:
    """What a value stands for: plain values by what they are, code by use, everything else by kind and content.

    around: what it is inside of, so that a circle ends.
    """
    if isinstance(value, Registry) or id(value) in around:
        return
    if getattr(value, "hooked", False) is True:  # the step of an optimiser's class, which torch wraps at its first use
        value = value.__wrapped__
    inside = (*around, id(value))
    if isinstance(value, PLAIN):
        yield f"{name}={value!r}"
    elif isinstance(value, torch.Tensor | np.ndarray):
        yield f"{name}={hash_arrays(value)}"
    elif isinstance(value, Mapping):
        for key, item in list(value.items()):
            yield from value_of(f"{name}[{key if isinstance(key, PLAIN) else name_of(key)!r}]", item, inside)
    elif isinstance(value, nn.Module):
        for place, module in value.named_modules():  # one by one, however deep
            yield f"{name}.{place}:{name_of(module)}"
            yield Use(type(module))
            yield from value_of(f"{name}.{place}.", held_by(module), inside)
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield f"{name} of {len(value)}"
        for item in sorted(value, key=key_of) if isinstance(value, set | frozenset) else value:
            yield from value_of(f"{name}.", item, inside)
    elif inspect.isclass(value) or inspect.ismodule(value) or inspect.isfunction(value) or inspect.isbuiltin(value):
        yield f"{name}:{name_of(value) if not inspect.ismodule(value) else value.__name__}"
        yield Use(value)
    elif len(inside) < DEEPEST:
        yield f"{name}:{name_of(value)}"
        yield Use(type(value))
        yield from value_of(f"{name}.", contents(value), inside)


def key_of(item: Any) -> str:
    """What a set is sorted by, in every process the same."""
    return repr(item) if isinstance(item, PLAIN) else name_of(item)


def contents(value: Any) -> dict[str, Any]:
    """What an object holds, by name."""
    if inspect.ismethod(value):
        return {"function": value.__func__, "self": value.__self__}
    if isinstance(value, staticmethod | classmethod):
        return {"function": value.__func__}
    if isinstance(value, property):
        return {"get": value.fget, "set": value.fset, "delete": value.fdel}
    if isinstance(value, functools.partial | functools.partialmethod):
        return {"function": value.func, "arguments": value.args, "named": value.keywords}
    kinds = [kind for kind in type(value).__mro__ if counts(kind)]  # what libraries keep in slots is their own affair
    slots = [name for kind in kinds for name in vars(kind).get("__slots__", ()) if hasattr(value, name)]
    return {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}


def held_by(module: nn.Module) -> dict[str, Any]:
    """What a module holds itself: parameters, buffers, kept or not, and other values; not the modules inside it."""
    own = ("_parameters", "_buffers")
    return {name: value for name, value in vars(module).items() if name in own or not name.startswith("_")}
