"""What all pictures share: colours, the book's look, and figures that a notebook shows once."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

P = ParamSpec("P")
CLASS_COLOURS = sns.color_palette("colorblind", 10)


def closed(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """A drawing function whose figure a notebook shows once: as the cell's value, not again when the cell ends."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        figure = draw(*args, **kwargs)
        plt.close(figure)
        return figure

    return drawn


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
