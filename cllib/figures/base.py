"""What all pictures share: colours, the book's look, an alternative text, and figures that a notebook shows once."""

import inspect
import re
from collections.abc import Callable, Iterable
from functools import wraps
from textwrap import shorten
from typing import Any, ParamSpec

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from IPython.core.getipython import get_ipython
from IPython.core.pylabtools import print_figure
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
    """What a figure shows, in words: its label, then its titles, axes and legends, in at most 300 characters."""
    shown = [ax for ax in figure.axes if ax.get_visible()]
    legends = [*figure.legends, *(legend for ax in shown if (legend := ax.get_legend()))]
    parts = {
        "Title": [figure.get_suptitle()],
        "Panels": [ax.get_title() for ax in shown],
        "Across": [ax.get_xlabel() for ax in shown],
        "Upwards": [ax.get_ylabel() for ax in shown],
        "Legend": [entry.get_text() for legend in legends for entry in legend.get_texts()],
    }
    lines = [f"{name}: {words}." for name, texts in parts.items() if (words := listed(texts))]
    return shorten(" ".join([str(figure.get_label()) or "A figure.", *lines]), ALT_LENGTH, placeholder=" …")


def listed(texts: Iterable[str]) -> str:
    """Each text once, in one line and without the dollars of formulas: 'loss; accuracy'."""
    plain = (" ".join(text.replace("$", "").split()) for text in texts)
    return "; ".join(dict.fromkeys(filter(None, plain)))


def spoken(figure: Figure) -> tuple[str, dict[str, str]] | None:
    """A figure as Jupyter stores it: its PNG, and what it shows in words as the picture's `alt`."""
    picture = print_figure(figure, base64=True)
    return picture and (picture, {"alt": alternative(figure)})


def bare(ax: Axes) -> Axes:
    """The same without ticks, and so without the style's grid: for pictures."""
    ax.set(xticks=[], yticks=[])
    return ax


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
