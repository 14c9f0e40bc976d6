"""Pictures of networks that dream: what they dream, where it lies, which classes compete, what helps and how much."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from cllib.attention import photo
from cllib.figures.base import CLASS_COLOURS, bare, class_names, closed
from cllib.metrics import Array, interval, row_normalised
from cllib.results import Record


@closed
def dreams(ages: Sequence[Mapping[int, Tensor]], names: Sequence[str]) -> Figure:
    """What is dreamed of each class (row) after every task (group of columns); blank before the class has come.

    ages: after each task, images `[n, C, H, W]` by class.
    """
    each, names = len(next(iter(ages[0].values()))), class_names(names)
    figure, axes = plt.subplots(
        len(names), len(ages), figsize=(0.42 * each * len(ages) + 0.8, 0.46 * len(names) + 0.5), squeeze=False
    )
    for column, made in enumerate(ages):
        axes[0][column].set_title(f"after task {column + 1}", fontsize="small")
        for row in range(len(names)):
            ax = bare(axes[row][column])
            if row in made:
                images = made[row].expand(-1, 3, -1, -1).clamp(0, 1)
                strip = np.concatenate([photo(image).numpy() for image in images], 1)  # [H, n W, 3]
                ax.imshow(strip, aspect="auto")
            else:
                ax.set_frame_on(False)
    for row, name in enumerate(names):
        axes[row][0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
    return figure


@closed
def cloud(points: Array, labels: Sequence[int], dreamed: Sequence[bool], names: Sequence[str]) -> Figure:
    """Real samples (dots) and dreamed ones (crosses) in two dimensions, `points: [n, 2]`, coloured by class."""
    figure, ax = plt.subplots(figsize=(7.5, 5.4))
    label, made, names = np.asarray(labels), np.asarray(dreamed), class_names(names)
    colours = sns.color_palette("husl", len(names))
    for c, name in enumerate(names):
        for kind, marker, size in ((False, "o", 14), (True, "x", 18)):
            own = points[(label == c) & (made == kind)]
            look = {"marker": marker, "s": size, "color": colours[c], "alpha": 0.75, "linewidths": 1}
            ax.scatter(own[:, 0], own[:, 1], label=None if kind else name, **look)
    bare(ax).set(title="dots: real test samples; crosses: dreams")
    ax.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@closed
def competition(record: Record, runner: Tensor, names: Sequence[str]) -> Figure:
    """Left what test samples of each class were taken for, right which class the teacher puts second in its dreams."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6))
    shares = row_normalised(np.sum(record.confusion, 0))
    parts = ((shares, f"{record.label}: taken for (n = {record.n})"), (runner.cpu().numpy(), "runner-up in dreams"))
    for ax, (matrix, title) in zip(axes, parts, strict=True):
        few = len(names) <= 20
        labels = class_names(names) if few else "auto"
        sns.heatmap(
            matrix,
            ax=ax,
            vmin=0,
            vmax=1,
            cmap="cividis",
            square=True,
            annot=len(names) <= 10,
            fmt=".2f",
            annot_kws={"size": 7},
            xticklabels=labels,
            yticklabels=labels,
            cbar=ax is axes[1],
        )
        ax.set(title=title, ylabel="class")
        ax.tick_params(axis="y", rotation=0)
    axes[0].set_xlabel("answer")
    axes[1].set_xlabel("second")
    return figure


@closed
def open_units(first: Tensor, second: Tensor, names: Sequence[str]) -> Figure:
    """Which hidden units of the decoder each context may use (white), and which share of them two contexts share."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.4), width_ratios=(2, 2, 1.25))
    names = class_names(names)
    for ax, gate, title in zip(axes, (first, second), ("first layer", "second layer"), strict=False):
        g = gate.cpu().numpy()
        ax.imshow(g, aspect="auto", cmap="gray", interpolation="none")
        ax.set(title=f"{title}: {g.mean():.0%} open", xlabel="unit", yticks=range(len(names)), yticklabels=names)
        ax.grid(False)
    g = first.cpu().numpy()
    shared = (g @ g.T) / np.maximum(g.sum(1)[:, None], 1)
    sns.heatmap(shared, ax=axes[2], vmin=0, vmax=1, cmap="cividis", square=True, xticklabels=names, yticklabels=names)
    axes[2].set_title("shared with another, first layer")
    axes[2].tick_params(axis="y", rotation=0)
    return figure


@closed
def sweep(made: Mapping[str, Mapping[float, Record]], reference: Record) -> Figure:
    """What a strength changes, paired by seed: a panel a kind, a grey line a seed, mean and 95 % interval.

    made: by kind and strength.
    """
    columns = min(2, len(made))
    lines = -(-len(made) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(5.2 * columns, 2.9 * lines), squeeze=False, sharey=True)
    base = reference.metric("Acc")
    for ax, (kind, records) in zip(axes.flat, made.items(), strict=False):
        differences = np.array([record.metric("Acc") - base for record in records.values()])  # [S, n]
        _paired(ax, [f"{strength:g}" for strength in records], differences)
        ax.set(title=f"{kind} (n = {reference.n})", xlabel="strength")
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy gained")
    for ax in axes.flat[len(made) :]:
        ax.set_visible(False)
    return figure


def _paired(ax: Axes, ticks: Sequence[str], differences: NDArray[np.float64]) -> None:
    """Differences `[S, n]` at S places."""
    places = np.arange(len(ticks))
    ax.axhline(0, color="0.4", linewidth=1)
    ax.plot(places, differences, color="0.75", linewidth=1)
    for place, row in zip(places, differences, strict=True):
        mean, half = interval(row)
        error = 0 if np.isinf(half) else half
        ax.errorbar(place, mean, yerr=error, fmt="o", color=CLASS_COLOURS[0], capsize=4, zorder=3)
    ax.set_xticks(places, ticks)
