"""Diagrams of ideas: everything named is there, inside the picture, and arrows begin and end at boxes."""

import pytest

from cllib import figures
from cllib.figures.diagrams import DREAMS, KEYS, LATENTS, REPLAYED, Diagram, Point

ALL = {
    "keyed": (figures.keyed, KEYS),
    "latents_replayed": (figures.latents_replayed, LATENTS),
    "dreaming": (figures.dreaming, DREAMS),
    "flow": (figures.flow, REPLAYED),
}


def touches(point: Point, diagram: Diagram) -> bool:
    """Whether a point lies on the border of a box."""
    for (x, y), (w, h), _ in diagram.boxes.values():
        inside = x - 1e-9 <= point[0] <= x + w + 1e-9 and y - 1e-9 <= point[1] <= y + h + 1e-9
        on_edge = min(abs(point[0] - x), abs(point[0] - x - w), abs(point[1] - y), abs(point[1] - y - h)) < 1e-9
        if inside and on_edge:
            return True
    return False


@pytest.mark.parametrize("name", ALL)
def test_every_box_and_arrow_is_drawn_inside_the_picture(name: str) -> None:
    draw, diagram = ALL[name]
    figure = draw()
    figure.canvas.draw()
    (ax,) = figure.axes
    said = {text.get_text() for text in ax.texts}
    assert set(diagram.boxes) | {text for *_, text in diagram.arrows} <= said | {""}
    assert len(ax.patches) == len(diagram.boxes)
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    for (x, y), (w, h), _ in diagram.boxes.values():
        assert left <= x and x + w <= right and low <= y and y + h <= high


@pytest.mark.parametrize("name", ALL)
def test_arrows_lead_from_box_to_box(name: str) -> None:
    diagram = ALL[name][1]
    assert all(touches(start, diagram) and touches(end, diagram) for start, end, _ in diagram.arrows)
