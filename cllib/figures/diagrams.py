"""The idea of each method as boxes and arrows."""

from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from cllib.figures.base import CLASS_COLOURS, closed

Point = tuple[float, float]
GREY, BLUE, ORANGE, GREEN = 7, 0, 1, 2


@dataclass(frozen=True)
class Diagram:
    """boxes: by name: place of the lower left corner, size, colour; arrows: from, to, text."""

    size: Point
    boxes: dict[str, tuple[Point, Point, int]]
    arrows: tuple[tuple[Point, Point, str], ...]


def drawn(diagram: Diagram) -> Figure:
    """A diagram as a figure; its axes fit what is on them."""
    figure, ax = plt.subplots(figsize=diagram.size)
    for name, ((x, y), (width, height), colour) in diagram.boxes.items():
        box = FancyBboxPatch((x, y), width, height, "round,pad=0.03", facecolor=(*CLASS_COLOURS[colour], 0.25))
        box.set_edgecolor("0.3")
        ax.add_patch(box)
        ax.text(x + width / 2, y + height / 2, name, ha="center", va="center", fontsize=9)
    for (x, y), (to_x, to_y), text in diagram.arrows:
        ax.annotate("", (to_x, to_y), (x, y), arrowprops={"arrowstyle": "->", "color": "0.3"})
        beside = 0.08 if x == to_x else 0.0  # a vertical arrow has its text on the right
        across = x != to_x and y != to_y
        label = ax.text((x + to_x) / 2 + beside - 0.3 * across, (y + to_y) / 2 + 0.05, text, fontsize=8)
        label.set(ha="left" if beside else "center", va="center" if beside else "bottom")
    corners = [(x + w, y + h) for (x, y), (w, h), _ in diagram.boxes.values()]
    low = min(y for (_, y), _, _ in diagram.boxes.values())
    ax.set(xlim=(-0.2, max(x for x, _ in corners) + 0.2), ylim=(low - 0.2, max(y for _, y in corners) + 0.2))
    ax.set_axis_off()
    return figure


KEYS = Diagram(
    (9.6, 2.9),
    {
        "sample x": ((0.0, 0.6), (1.3, 0.7), GREY),
        "keys k\none is nearest": ((2.4, 1.2), (1.9, 0.8), ORANGE),
        "memory units M\nwhole linear layers": ((2.4, -0.7), (1.9, 0.8), BLUE),
        "weights for\nthis sample": ((5.6, -0.7), (1.6, 0.8), GREEN),
        "logits": ((7.9, 0.6), (1.3, 0.7), GREY),
    },
    (
        ((1.3, 1.1), (2.4, 1.6), "compare"),
        ((3.35, 1.2), (3.35, 0.1), "softmax"),
        ((4.3, -0.3), (5.6, -0.3), "mix"),
        ((1.3, 0.8), (7.9, 0.8), ""),
        ((7.2, -0.2), (8.3, 0.6), ""),
    ),
)
LATENTS = Diagram(
    (9.6, 2.9),
    {
        "new images": ((0.0, 1.0), (1.3, 0.7), GREY),
        "blocks 1 to F\nfrozen": ((2.2, 1.0), (1.6, 0.7), BLUE),
        "buffer\nR latents": ((2.2, -0.6), (1.6, 0.8), ORANGE),
        "mini-batch\nof latents": ((4.8, 1.0), (1.5, 0.7), GREY),
        "blocks F+1 to D\nlearn": ((7.0, 1.0), (1.6, 0.7), GREEN),
        "classifier\nCWR*": ((7.0, -0.6), (1.6, 0.8), GREEN),
    },
    (
        ((1.3, 1.35), (2.2, 1.35), "once"),
        ((3.8, 1.35), (4.8, 1.35), "new"),
        ((3.0, 1.0), (3.0, 0.2), "some"),
        ((3.8, -0.1), (5.2, 1.0), "replayed"),
        ((6.3, 1.35), (7.0, 1.35), ""),
        ((7.8, 1.0), (7.8, 0.2), "class token"),
    ),
)
DREAMS = Diagram(
    (9.6, 2.9),
    {
        "new samples": ((0.0, 1.0), (1.4, 0.7), GREY),
        "encoder\nand classifier": ((2.4, 1.0), (1.7, 0.7), GREEN),
        "latent z": ((5.0, 1.0), (1.4, 0.7), ORANGE),
        "decoder\ngated by class": ((7.3, 1.0), (1.7, 0.7), GREEN),
        "copy of the whole network\nas it was after the last task": ((4.4, -0.6), (2.7, 0.8), BLUE),
        "dreams\nand what it sees in them": ((0.0, -0.6), (2.4, 0.8), GREY),
    },
    (
        ((1.4, 1.35), (2.4, 1.35), ""),
        ((4.1, 1.35), (5.0, 1.35), ""),
        ((6.4, 1.35), (7.3, 1.35), "feedback"),
        ((4.4, -0.2), (2.4, -0.2), "dreams of a class"),
        ((1.6, 0.2), (2.7, 1.0), "learned too"),
    ),
)
REPLAYED = Diagram(
    (9.6, 3.1),
    {
        "images": ((0.0, 1.0), (1.3, 0.7), GREY),
        "g\nfrozen after task 1": ((2.0, 1.0), (1.7, 0.7), BLUE),
        "episodic memory\nrepresentations r": ((2.0, -0.6), (1.7, 0.8), GREY),
        "f_w\nworking memory": ((5.0, 1.0), (1.9, 0.7), GREEN),
        "f_s\nsemantic memory": ((5.0, -0.6), (1.9, 0.8), ORANGE),
        "labels": ((7.9, 1.0), (1.3, 0.7), GREY),
        "consistency": ((7.9, -0.6), (1.3, 0.8), GREY),
    },
    (
        ((1.3, 1.35), (2.0, 1.35), ""),
        ((3.7, 1.35), (5.0, 1.35), "new"),
        ((2.85, 1.0), (2.85, 0.2), "herding"),
        ((3.7, -0.1), (5.0, 1.1), "M, T (X)"),
        ((3.7, -0.3), (5.0, -0.3), "M (X)"),
        ((5.95, 1.0), (5.95, 0.2), "now and then"),
        ((6.9, 1.35), (7.9, 1.35), "A inside"),
        ((6.9, -0.2), (7.9, -0.2), "S"),
        ((6.9, 1.15), (8.3, 0.2), ""),
    ),
)


@closed
def keyed() -> Figure:
    """How a Memory Head answers: keys say which memory units make up the weights for a sample."""
    return drawn(KEYS)


@closed
def latents_replayed() -> Figure:
    """Latent replay: frozen blocks see an image once, and what they say is stored and replayed."""
    return drawn(LATENTS)


@closed
def dreaming() -> Figure:
    """Replay through feedback: the network decodes what it could have seen, and its copy teaches it."""
    return drawn(DREAMS)


@closed
def flow() -> Figure:
    """BiRT: where samples, representations and answers go, and where noise comes in."""
    return drawn(REPLAYED)
