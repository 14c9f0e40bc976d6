"""Every picture of the book, drawn from streams, snapshots and saved records. Nothing is trained here.

Functions take data and return a matplotlib Figure, or HTML for what moves.
"""

from cllib.figures.base import style
from cllib.figures.plane import (
    attention_regions,
    ends,
    film,
    plane_grid,
    player,
    scatter,
    seen,
    show_stream,
    surface,
    surfaces,
)
from cllib.figures.runs import (
    LiveCurves,
    beside_published,
    confused,
    confusion,
    intervals,
    live,
    online,
    selection,
    stability,
    verdicts,
)
from cllib.figures.weights import curves, flip_costs, gates, histograms, quadratic, tradeoff

__all__ = [
    "LiveCurves",
    "attention_regions",
    "beside_published",
    "confused",
    "confusion",
    "curves",
    "ends",
    "film",
    "flip_costs",
    "gates",
    "histograms",
    "intervals",
    "live",
    "online",
    "plane_grid",
    "player",
    "quadratic",
    "scatter",
    "seen",
    "selection",
    "show_stream",
    "stability",
    "style",
    "surface",
    "surfaces",
    "tradeoff",
    "verdicts",
]
