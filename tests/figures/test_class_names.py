"""Names of classes reach the axes as they are, whatever characters they hold."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from cllib import figures
from cllib.experiments import compare
from cllib.figures.base import class_names, font_of
from cllib.models.networks import MLP
from cllib.recipes import Recipe
from cllib.results import Record
from samples import STREAM

ODD = ("$a$ or $b$", "été", "two\nlines", "100 %", "a_b^c", "", "U+\u732b \u732b")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    store = tmp_path_factory.mktemp("store")
    return compare("e", STREAM, {"mlp": Recipe(network=MLP((4,)))}, [1], probe_every=0, store=store)[0]


PICTURES: dict[str, Callable[[Record, list[str]], Figure]] = {
    "confused": lambda record, names: figures.confused(record, names),
    "confusions": lambda record, names: figures.confusions(record, names, names[:1]),
    "competition": lambda record, names: figures.competition(record, torch.zeros(4, 4), names),
    "cloud": lambda record, names: figures.cloud(np.zeros((4, 2)), range(4), [False] * 4, names),
    "dreams": lambda record, names: figures.dreams([{k: torch.zeros(1, 3, 2, 2) for k in range(4)}], names),
    "open units": lambda record, names: figures.open_units(torch.ones(4, 3), torch.ones(4, 3), names),
    "questions": lambda record, names: figures.questions([[torch.zeros(3, 2, 2)] * 4], [names], ("class", "task")),
}


@pytest.mark.parametrize("picture", PICTURES)
def test_pictures_draw_names_as_they_are(picture: str, record: Record) -> None:
    names = ["5 $ and 6 $", r"$\alpha$", "\u732b", "caf\u00e9"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Glyph missing from font"
        figure = PICTURES[picture](record, names)
        figure.canvas.draw()
    drawn = [text for text in figure.findobj(Text) if "5 " in text.get_text() or "alpha" in text.get_text()]
    assert drawn and all(text._preprocess_math(text.get_text())[1] is not True for text in drawn)  # no formula


def test_a_record_brings_its_own_names(record: Record) -> None:
    figure = figures.confused(replace(record, names=["ant", "bee", "cat", "dog"]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ant", "bee", "cat", "dog"]


@given(st.lists(st.text(max_size=8), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_any_name_can_be_drawn(names: list[str]) -> None:
    shown = class_names([*names, *ODD])
    figure, ax = plt.subplots()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.set_yticks(range(len(shown)), shown)
        figure.canvas.draw()
    plt.close(figure)
    assert all(shown)


def test_a_font_beside_the_usual_one_is_used_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    families = list(plt.rcParams["font.family"])
    usual = next(f for f in fontManager.ttflist if f.name == "DejaVu Sans")
    monkeypatch.setattr(fontManager, "ttflist", [replace(usual, name="Another")])
    monkeypatch.setattr("cllib.figures.base.font_manager.findfont", lambda *_: cmr())
    font_of.cache_clear()
    try:
        assert class_names(["\u0416"]) == ["\u0416"] and plt.rcParams["font.family"][-1] == "Another"
    finally:
        font_of.cache_clear()
        plt.rcParams["font.family"] = families


def cmr() -> str:
    """A font without Cyrillic letters."""
    return next(f.fname for f in fontManager.__class__().ttflist if f.name == "cmr10")
