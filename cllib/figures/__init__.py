"""Every picture of the book, drawn from streams, snapshots and saved records. Nothing is trained here.

Functions take data and return a matplotlib Figure, or HTML for what moves.
"""

from cllib.figures.attention import attributions, rollouts
from cllib.figures.base import style
from cllib.figures.latent import along, composition, confusions, cuts, films, stages
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
from cllib.figures.replay import cloud, competition, dreams, open_units, sweep
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
    "along",
    "attention_regions",
    "attributions",
    "beside_published",
    "cloud",
    "competition",
    "composition",
    "confused",
    "confusion",
    "confusions",
    "curves",
    "cuts",
    "dreams",
    "ends",
    "film",
    "films",
    "flip_costs",
    "gates",
    "histograms",
    "intervals",
    "live",
    "online",
    "open_units",
    "plane_grid",
    "player",
    "quadratic",
    "rollouts",
    "scatter",
    "seen",
    "selection",
    "show_stream",
    "stability",
    "stages",
    "style",
    "surface",
    "surfaces",
    "sweep",
    "tradeoff",
    "verdicts",
]
