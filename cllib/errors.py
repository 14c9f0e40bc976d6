"""The one exception a reader is meant to see."""

from math import isfinite


class UserError(ValueError):
    """A value, name or file the reader gave cannot be used; the message is one line that says what is allowed."""


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise `UserError` unless `value` is among `allowed`."""
    if value not in allowed:
        raise UserError(f"{name} = {value!r}: allowed are {', '.join(allowed)}")


def within(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise `UserError` unless `value` is a finite number and `low <= value <= high`."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not number or not low <= value <= high:
        limit = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise UserError(f"{name} = {value!r}: must be a number {limit}")


def whole(name: str, value: int, low: int, high: int | None = None) -> None:
    """Raise `UserError` unless `value` is a whole number and `low <= value <= high`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"between {low} and {high}"
        raise UserError(f"{name} = {value!r}: must be a whole number {limit}")


def listed(name: str, value: object) -> None:
    """Raise `UserError` unless `value` is a list or tuple."""
    if not isinstance(value, list | tuple):
        raise UserError(f"{name} = {value!r}: must be a list")


def flag(name: str, value: object) -> None:
    """Raise `UserError` unless `value` is true or false."""
    if not isinstance(value, bool):
        raise UserError(f"{name} = {value!r}: must be true or false")
