"""The parameters of each chapter: a frozen dataclass, three profiles of defaults, and any value set over them by name.

`smoke` touches every mechanism in seconds and supports no claim; `quick` is what the site shows; `paper` is the
paper's scale.
"""

import os
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from cllib.chapters import birt, brain_replay, latent_replay, memory_head, metaplasticity, side_by_side
from cllib.chapters.common import DEVICES, PROFILES, Chapter, usual_device
from cllib.errors import UserError, one_of
from cllib.options import convert, fit

__all__ = ["CHAPTERS", "DEFAULTS", "DEVICES", "PROFILES", "from_notebook", "names", "parse", "settings", "usual_device"]

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
    """A chapter's parameters from the variables of its parameters cell, in `globals()`."""
    given = {f.name: namespace[f.name] for f in fields(CHAPTERS[chapter]) if f.name in namespace}
    return settings(chapter, **given)


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
