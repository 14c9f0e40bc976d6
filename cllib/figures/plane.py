"""Pictures of the plane: streams, decision surfaces, films."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from html import escape

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from cllib.figures.base import CLASS_COLOURS, closed
from cllib.metrics import Array
from cllib.streams import Stream
from cllib.watching import Snapshots

MARKERS = "os^D"
LIMIT = 1.01  # the plane is drawn over [-LIMIT, LIMIT]^2, as in the released code


def plane_grid(step: float) -> Tensor:
    """Points over the plane, row by row: `[G, 2]`."""
    ticks = torch.arange(-LIMIT, LIMIT + step / 2, step)
    return torch.cartesian_prod(ticks, ticks).flip(1)


@closed
def show_stream(stream: Stream) -> Figure:
    """What arrives, one panel per experience; earlier samples stay as grey dots."""
    count = len(stream.experiences)
    columns = min(count, 4)
    figure, axes = plt.subplots(
        -(-count // columns), columns, figsize=(2.6 * columns, 2.7 * -(-count // columns)), squeeze=False
    )
    for i, ax in enumerate(axes.flat):
        ax.set_visible(i < count)
        for earlier in stream.experiences[: min(i, count)]:
            ax.scatter(earlier.x[:, 0], earlier.x[:, 1], s=2, color="0.85")
        if i < count:
            scatter(ax, stream.experiences[i].x, stream.experiences[i].y)
            ax.set_title(f"{i + 1}: {stream.experiences[i].name}, n = {len(stream.experiences[i])}")
            _plane(ax)
    figure.suptitle(f"{stream.name.upper()}: {len(stream)} samples in {count} steps")
    return figure


def scatter(ax: Axes, x: Tensor, y: Tensor, size: float = 5) -> None:
    """Points `[n, 2]` in their class's colour and marker."""
    for c in y.unique().tolist():
        mine = x[y == c]
        ax.scatter(mine[:, 0], mine[:, 1], s=size, color=CLASS_COLOURS[c], marker=MARKERS[c % 4], linewidths=0)


def _plane(ax: Axes) -> None:
    ax.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), xticks=[], yticks=[], aspect="equal")


def surface(ax: Axes, classes: Array, step: float, keys: Array, x: Tensor, y: Tensor, count: int) -> None:
    """Regions of the predicted class over the plane, the samples seen so far, and the keys as stars."""
    side = len(torch.arange(-LIMIT, LIMIT + step / 2, step))
    image = classes.reshape(side, side)
    extent = (-LIMIT, LIMIT, -LIMIT, LIMIT)
    colours = ListedColormap(CLASS_COLOURS[:count])
    ax.imshow(
        image,
        origin="lower",
        extent=extent,
        cmap=colours,
        vmin=-0.5,
        vmax=count - 0.5,
        alpha=0.25,
        interpolation="nearest",
    )
    scatter(ax, x, y, size=3)
    ax.scatter(keys[:, 0], keys[:, 1], marker="*", s=110, color="white", edgecolor="black", linewidths=0.8, zorder=3)
    _plane(ax)


def seen(stream: Stream, t: int) -> tuple[Tensor, Tensor]:
    """The first t samples of a stream in published order: `[t, n]`, `[t]`."""
    x, y = (torch.cat([getattr(e, name) for e in stream.experiences]) for name in ("x", "y"))
    return x[:t], y[:t]


def ends(stream: Stream) -> list[int]:
    """Samples seen at the end of each experience."""
    return np.cumsum([len(e) for e in stream.experiences]).tolist()


@closed
def surfaces(heads: Mapping[str, Snapshots], stream: Stream, step: float) -> Figure:
    """The paper's Figure 1: a row per head, a panel after each experience."""
    times = ends(stream)
    figure, axes = plt.subplots(
        len(heads), len(times), figsize=(1.75 * len(times), 1.9 * len(heads) + 0.3), squeeze=False
    )
    for line, (row, (name, shots)) in enumerate(zip(axes, heads.items(), strict=True)):
        for i, (ax, t) in enumerate(zip(row, times, strict=True)):
            surface(ax, shots.classes[t], step, shots.keys[t], *seen(stream, t), stream.classes)
            if line == 0:
                ax.set_title(f"after {i + 1}\n({stream.experiences[i].name})", fontsize=9)
        row[0].set_ylabel(name)
    return figure


def film(heads: Mapping[str, Snapshots], stream: Stream, step: float, alt: str) -> HTML:
    """The same through time, as a film with a slider; frames are those the snapshots share."""
    times = sorted(set.intersection(*(set(shots.classes) for shots in heads.values())))
    return player([_frame(heads, stream, step, t) for t in times], [f"{t} samples" for t in times], alt)


def _frame(heads: Mapping[str, Snapshots], stream: Stream, step: float, t: int) -> bytes:
    figure, axes = plt.subplots(1, len(heads), figsize=(3.4 * len(heads), 3.5), squeeze=False)
    for ax, (name, shots) in zip(axes[0], heads.items(), strict=True):
        surface(ax, shots.classes[t], step, shots.keys[t], *seen(stream, t), stream.classes)
        now = int(np.searchsorted(ends(stream), max(t, 1)))
        ax.set_title(f"{name}: sample {t}, {stream.experiences[now].name}", fontsize=10)
    raw = io.BytesIO()
    figure.savefig(raw, dpi=80, bbox_inches=None)
    plt.close(figure)
    small = io.BytesIO()
    Image.open(raw).convert("RGB").quantize(96).save(small, "PNG", optimize=True)
    return small.getvalue()


# Nothing moves by itself. A screen reader hears the slider's value when asked, not four times a second.
PLAYER = """<figure class="film" id="{key}" role="group" aria-label="Film: {alt}" style="margin:0">
<img alt="{alt}" src="{first}" style="max-width:100%">
<figcaption><button type="button" aria-label="Play" aria-pressed="false">&#9654; / &#10073;&#10073;</button>
<input type="range" min="0" max="{last}" value="0" style="width:60%" aria-label="Frame" aria-valuetext="{label}">
<output aria-live="off">{label}</output></figcaption> <script>(() => {{
  const box = document.getElementById("{key}"), frames = {frames}, labels = {labels};
  const [image, slider, label, button] = ["img", "input", "output", "button"].map(tag => box.querySelector(tag));
  const show = i => {{
    slider.value = i; image.src = frames[i]; label.textContent = labels[i];
    slider.setAttribute("aria-valuetext", labels[i]);
  }};
  const pause = matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 250;
  let timer = null;
  slider.oninput = () => show(+slider.value);
  button.onclick = () => {{
    timer = timer ? clearInterval(timer) : setInterval(() => show((+slider.value + 1) % frames.length), pause);
    button.setAttribute("aria-pressed", Boolean(timer));
  }};
}})();</script></figure>"""


def player(frames: Sequence[bytes], labels: Sequence[str], alt: str) -> HTML:
    """PNG frames as a film with a slider and a button: one piece of HTML, no library, no network."""
    urls = ["data:image/png;base64," + base64.b64encode(frame).decode() for frame in frames]
    key = "film-" + hashlib.sha256(b"".join(frames)).hexdigest()[:12]
    return HTML(
        PLAYER.format(
            key=key,
            alt=escape(alt),
            first=urls[0],
            last=len(urls) - 1,
            label=escape(labels[0]),
            frames=urls,
            labels=list(labels),
        )
    )


# --- the mechanism ---


@closed
def attention_regions(keys: Array, winner_alpha: Array, step: float, names: Sequence[str]) -> Figure:
    """Which key wins where, and the winner's alpha over the plane, `winner_alpha: [G]`."""
    side = len(torch.arange(-LIMIT, LIMIT + step / 2, step))
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.9))
    grid = plane_grid(step).numpy()
    nearest = ((grid[:, None] - keys[None]) ** 2).sum(-1).argmin(1).reshape(side, side)
    extent = (-LIMIT, LIMIT, -LIMIT, LIMIT)
    axes[0].imshow(nearest, origin="lower", extent=extent, cmap="tab20", alpha=0.5, interpolation="nearest")
    mesh = axes[1].imshow(
        winner_alpha.reshape(side, side), origin="lower", extent=extent, cmap="viridis", vmin=0.5, vmax=1
    )
    figure.colorbar(mesh, ax=axes[1], label="alpha of the winner")
    for ax, name in zip(axes, names, strict=True):
        ax.scatter(keys[:, 0], keys[:, 1], marker="*", s=130, color="white", edgecolor="black", zorder=3)
        ax.set_title(name)
        _plane(ax)
    return figure
