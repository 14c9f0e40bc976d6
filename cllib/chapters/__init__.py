"""The parameters of each chapter: a frozen dataclass, three profiles of defaults, and any value set over them by name.

`smoke` touches every mechanism in seconds and supports no claim; `quick` is what the site shows; `paper` is the
paper's scale.
"""

import ast
import os
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from cllib.chapters import birt, brain_replay, latent_replay, memory_head, metaplasticity, side_by_side
from cllib.chapters.common import DEVICES, PLACES, PROFILES, Chapter, usual_device
from cllib.errors import UserError, one_of
from cllib.interactive import watched
from cllib.options import convert, fit
from cllib.runs import ROOT

__all__ = [
    "CHAPTERS",
    "DEFAULTS",
    "DEVICES",
    "PLACES",
    "PROFILES",
    "changed",
    "from_notebook",
    "names",
    "parse",
    "settings",
    "usual_device",
]

CHAPTERS: dict[str, type[Chapter]] = {
    "01_memory_head": memory_head.MemoryHeadChapter,
    "02_metaplasticity": metaplasticity.MetaplasticityChapter,
    "03_latent_replay": latent_replay.LatentReplayChapter,
    "04_brain_inspired_replay": brain_replay.BrainReplayChapter,
    "05_birt": birt.BiRTChapter,
    "06_side_by_side": side_by_side.SideBySideChapter,
}
DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "01_memory_head": memory_head.DEFAULTS,
    "02_metaplasticity": metaplasticity.DEFAULTS,
    "03_latent_replay": latent_replay.DEFAULTS,
    "04_brain_inspired_replay": brain_replay.DEFAULTS,
    "05_birt": birt.DEFAULTS,
    "06_side_by_side": side_by_side.DEFAULTS,
}


def names() -> tuple[str, ...]:
    """All chapters, in the book's order."""
    return tuple(CHAPTERS)


def settings(chapter: str, profile: str | None = None, **given: Any) -> Any:
    """A chapter's parameters: the profile's defaults with `given` set over them; None means the default.

    Without a profile, the environment's CLLIB_PROFILE, else "quick". Raises UserError for an unknown name or
    impossible value.
    """
    one_of("chapter", chapter, names())
    profile = profile or os.environ.get("CLLIB_PROFILE") or "quick"
    one_of("profile", profile, PROFILES)
    for name in given:
        known(chapter, name)
    chosen = {name: value for name, value in given.items() if value is not None}
    return CHAPTERS[chapter](profile=profile, **{**DEFAULTS[chapter][profile], **checked(chapter, chosen)})


def from_notebook(chapter: str, namespace: Mapping[str, Any]) -> Any:
    """A chapter's parameters from the variables of its parameters cell, in `globals()`.

    Raises UserError for an unknown name in that cell or among what papermill added, and where that was overwritten.
    """
    own, added = told_cells(chapter, namespace.get("In", ()))
    for name in (*own, *added):
        if name != "profile":
            known(chapter, name)
    for name, value in added.items():
        if not watched() and namespace.get(name) != value:
            raise UserError(
                f"{name} = {value!r} was asked for, and the notebook has {namespace.get(name)!r}: "
                'give its cell of parameters the tag "parameters", for what is asked for to come after it'
            )
    given = {f.name: namespace[f.name] for f in fields(CHAPTERS[chapter]) if f.name in namespace}
    return settings(chapter, **{name: located(name, value) for name, value in given.items()})


def told_cells(chapter: str, cells: Sequence[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The names in the last cell of parameters that a kernel has run, and the values in papermill's last one."""
    wanted = {f.name for f in fields(CHAPTERS[chapter])}
    own: tuple[str, ...] = ()
    added: dict[str, Any] = {}
    for cell in cells:
        names = assigned(cell)
        if cell.startswith("# Parameters\n"):
            added = {name: value for name, value in names.items() if value is not ...}
        elif len(wanted & set(names)) > len(wanted) / 2:
            own = tuple(names)
    return own, added


def assigned(cell: str) -> dict[str, Any]:
    """The names that a cell sets, with their values where these are plain, else `...`."""
    found: dict[str, Any] = {}
    with suppress(SyntaxError):
        for line in ast.walk(ast.parse(without_commands(cell))):
            if isinstance(line, ast.Assign | ast.AnnAssign):
                names = [node.id for node in ast.walk(line) if isinstance(node, ast.Name) and is_target(node)]
                found |= dict.fromkeys(names, literal(line.value))
    return found


def without_commands(cell: str) -> str:
    """A cell without lines that are IPython's own, such as %matplotlib."""
    return "\n".join("" if line.startswith(("%", "!")) else line for line in cell.splitlines())


def is_target(node: ast.Name) -> bool:
    """Whether a name is set, not read."""
    return isinstance(node.ctx, ast.Store)


def literal(expression: ast.expr | None) -> Any:
    """The value of an expression that is plain; `...` for others."""
    try:
        return ast.literal_eval(expression) if expression is not None else ...
    except ValueError:
        return ...


def located(name: str, value: Any) -> Any:
    """A place of this machine as a whole path: a relative one counts from the checkout, wherever the kernel works."""
    if name not in PLACES or not isinstance(value, str) or not value:
        return value
    path = ROOT / Path(value).expanduser()
    return str(path) if name == "data_dir" or path.exists() else value


def changed(settings: Any) -> dict[str, tuple[Any, Any]]:
    """The parameters that are not as the profile has them: what they are, and what they would be."""
    (name,) = (name for name, kind in CHAPTERS.items() if type(settings) is kind)
    usual = CHAPTERS[name](profile=settings.profile, **DEFAULTS[name][settings.profile])
    pairs = {f.name: (getattr(settings, f.name), getattr(usual, f.name)) for f in fields(settings)}
    return {name: (own, default) for name, (own, default) in pairs.items() if own != default}


def known(chapter: str, name: str) -> None:
    """Raise UserError unless the chapter has a parameter of this name (the profile is set beside the parameters)."""
    allowed = tuple(f.name for f in fields(CHAPTERS[chapter]) if f.name != "profile")
    if name not in allowed:
        raise UserError(f"{chapter} has no parameter {name!r}: allowed are {', '.join(allowed)}")


def parse(chapter: str, pairs: Mapping[str, str]) -> dict[str, Any]:
    """Typed values of `name=text` pairs from a command line. Raises UserError for an unknown name or a wrong type."""
    one_of("chapter", chapter, names())
    for name in pairs:
        known(chapter, name)
    hints = typing.get_type_hints(CHAPTERS[chapter])
    return {name: convert(name, text, hints[name]) for name, text in pairs.items()}


def checked(chapter: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values given in Python, held against the parameter's type; lists become tuples, whole numbers floats."""
    hints = typing.get_type_hints(CHAPTERS[chapter])
    return {name: fit(name, value, hints[name]) for name, value in given.items()}
