"""What all pictures share: colours, the book's look, an alternative text, and figures that a notebook shows once."""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, wraps
from textwrap import shorten
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.core.getipython import get_ipython
from IPython.core.pylabtools import print_figure
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

P = ParamSpec("P")
CLASS_COLOURS = sns.color_palette("colorblind", 10)
ALT_LENGTH = 300  # characters; a screen reader cannot skip within an alternative text


def closed(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A drawing function whose figure a notebook shows once: as the cell's value, not again when the cell ends.

    The figure's label is the first sentence of the function's docstring, with which `alternative` begins.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        figure = draw(*args, **kwargs)
        figure.set_label(first_sentence(inspect.getdoc(draw) or ""))
        plt.close(figure)
        return figure

    return drawn


def first_sentence(text: str) -> str:
    """The first sentence of a docstring in one line, without marks of code."""
    return re.split(r"(?<=\.)\s|\n\n", text.strip())[0].replace("\n", " ").replace("`", "")


def alternative(figure: Figure) -> str:
    """What a figure shows, in words: its label, then titles, axes, legends and names, in at most 300 characters."""
    shown = [ax for ax in figure.axes if ax.get_visible()]
    legends = [*figure.legends, *(legend for ax in shown if (legend := ax.get_legend()))]
    parts = {
        "Title": [figure.get_suptitle()],
        "Panels": [ax.get_title() for ax in shown],
        "Across": [ax.get_xlabel() for ax in shown],
        "Upwards": [ax.get_ylabel() for ax in shown],
        "Legend": [entry.get_text() for legend in legends for entry in legend.get_texts()],
        "Named": [word for ax in shown for word in named(ax)],
    }
    lines = [f"{name}: {words}." for name, texts in parts.items() if (words := listed(texts))]
    return shorten(" ".join([str(figure.get_label()) or "A figure.", *lines]), ALT_LENGTH, placeholder=" …")


def named(ax: Axes) -> list[str]:
    """The words written into a picture or along its axes; the numbers there would only fill an alternative text."""
    marks = [*ax.texts, *ax.get_yticklabels(), *ax.get_xticklabels()]
    return [text for mark in marks if re.search(r"[^\W\d_]{2}", text := mark.get_text()) and "\\math" not in text]


def listed(texts: Iterable[str]) -> str:
    """Each text once, in one line and without the marks of formulas: 'loss; alpha'."""
    plain = (" ".join(re.sub(r"\\[,;:!]|[${}\\]", "", text).split()) for text in texts)
    return "; ".join(dict.fromkeys(filter(None, plain)))


def spoken(figure: Figure) -> tuple[str, dict[str, str]] | None:
    """A figure as Jupyter stores it: its PNG, and what it shows in words as the picture's `alt`."""
    picture = print_figure(figure, base64=True)
    return picture and (picture, {"alt": alternative(figure)})


def bare(ax: Axes) -> Axes:
    """The same without ticks, and so without the style's grid: for pictures."""
    ax.set(xticks=[], yticks=[])
    return ax


def class_names(names: Sequence[str]) -> list[str]:
    """Names of classes as a picture can show them, whatever characters they hold.

    A dollar sign begins no formula; what no font of this machine can draw is called by the number of its class.
    """
    lines = [" ".join(name.split()) for name in names]
    fonts = [{font_of(character) for character in line} for line in lines]
    more = {font for found in fonts if None not in found for font in found if font}
    plt.rcParams["font.family"] = list(dict.fromkeys([*plt.rcParams["font.family"], *sorted(map(str, more))]))
    return [
        f"class {number}" if None in found or not line else line.replace("$", r"\$")
        for number, (line, found) in enumerate(zip(lines, fonts, strict=True))
    ]


@cache
def font_of(character: str) -> str | None:
    """The font that can draw a character: "" for the usual one, else the name of another; None where there is none."""
    usual = font_manager.findfont(font_manager.FontProperties())
    if ord(character) in font_manager.get_font(usual).get_charmap():
        return ""
    every = [f for f in font_manager.fontManager.ttflist if not f.name.startswith("Last Resort")]  # that draws boxes
    return next((f.name for f in every if ord(character) in font_manager.get_font(f.fname).get_charmap()), None)


def style() -> None:
    """The book's look; call once in a notebook."""
    pd.set_option("display.max_colwidth", None, "display.precision", 3)
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    plt.rcParams.update(
        {"figure.dpi": 100, "savefig.bbox": "tight", "axes.titlesize": "medium", "figure.constrained_layout.use": True}
    )
    shell: Any = get_ipython()
    if shell is not None:
        # Jupyter's own formatter comes with the backend, which is loaded late: ours has to come after it.
        plt.switch_backend(plt.get_backend())
        shell.display_formatter.formatters["image/png"].for_type(Figure, spoken)
