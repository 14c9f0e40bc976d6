"""Values from a command line or a notebook as the types that settings want."""

import types
import typing
from collections.abc import Mapping
from typing import Any

from cllib.errors import UserError, one_of


def split(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return {name: value} of the 'name=value' texts; raises `UserError` for another form or a repeated name."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise UserError(f"-p {pair}: write -p NAME=VALUE")
        if name in values:
            raise UserError(f"-p {pair}: {name} is given twice")
        values[name] = value
    return values


def build(kind: type, pairs: Mapping[str, str]) -> Any:
    """A settings dataclass from those `pairs` that are fields of it. Raises `UserError` for a wrong type or value."""
    hints = typing.get_type_hints(kind)
    return kind(**{name: convert(name, text, hints[name]) for name, text in pairs.items() if name in hints})


def convert(name: str, text: str, hint: Any) -> Any:
    """`text` as the parameter's type: numbers, true / false, none, or a comma-separated list."""
    if isinstance(hint, types.UnionType):
        return None if text.lower() == "none" else convert(name, text, typing.get_args(hint)[0])
    if typing.get_origin(hint) is tuple:
        return tuple(convert(name, part.strip(), typing.get_args(hint)[0]) for part in text.split(",") if part.strip())
    if hint is bool:
        one_of(name, text.lower(), ("true", "false"))
        return text.lower() == "true"
    try:
        return hint(text)
    except ValueError:
        raise UserError(f"{name} = {text!r}: must be {describe(hint)}") from None


def is_list(hint: Any) -> bool:
    """Whether a parameter of this type is a list."""
    hint = typing.get_args(hint)[0] if isinstance(hint, types.UnionType) else hint
    return typing.get_origin(hint) is tuple


def fit(name: str, value: Any, hint: Any) -> Any:
    """`value` if it has the parameter's type, or can be read as it without loss; UserError otherwise."""
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            value = (value,)  # one of them
        return tuple(fit(name, part, typing.get_args(hint)[0]) for part in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{name} = {value!r}: must be {describe(hint)}")
    return value


def describe(hint: type) -> str:
    """A type in a reader's words."""
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[hint]
