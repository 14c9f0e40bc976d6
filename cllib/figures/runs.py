"""Pictures of results: matrices, curves, intervals, verdicts."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cllib.errors import UserError
from cllib.figures.base import CLASS_COLOURS, class_names, closed
from cllib.figures.plane import ends
from cllib.metrics import interval
from cllib.results import Record
from cllib.streams import Stream

VERDICT_COLOURS = {"reproduced": 2, "not reproduced": 3, "mechanism only": 1, "not run": 7}


@closed
def confusion(records: Sequence[Record], stream: Stream) -> Figure:
    """Each record's accuracy matrix, mean over seeds: row i after experience i, column j on test set j."""
    figure, axes = plt.subplots(1, len(records), figsize=(3.9 * len(records), 3.7), squeeze=False)
    names = [e.name for e in stream.experiences]
    large = len(names) > 12
    for ax, record in zip(axes[0], records, strict=True):
        sns.heatmap(
            np.mean(record.test, 0),
            ax=ax,
            vmin=0,
            vmax=1,
            cmap="cividis",
            square=True,
            cbar=ax is axes[0][-1],
            annot=not large,
            fmt=".2f",
            annot_kws={"size": 7},
            xticklabels=5 if large else names,
            yticklabels=5 if large else names,
        )
        ax.set(title=f"{record.label} (n = {record.n})", xlabel="tested on", ylabel="trained through")
        ax.tick_params(axis="x", rotation=90)
        ax.tick_params(axis="y", rotation=0)
    return figure


@closed
def online(records: Sequence[Record], stream: Stream) -> Figure:
    """Accuracy on each sample just before it is learned, per window, mean and 95 % interval over seeds."""
    figure, ax = plt.subplots(figsize=(9, 3.2))
    for record in records:
        values = np.asarray(record.online)
        bands = np.array([interval(column) for column in values.T])
        half = np.nan_to_num(bands[:, 1], posinf=0)
        ax.plot(record.samples, bands[:, 0], label=f"{record.label} (n = {record.n})")
        ax.fill_between(record.samples, bands[:, 0] - half, bands[:, 0] + half, alpha=0.2)
    for end in ends(stream)[:-1]:
        ax.axvline(end, color="0.6", linestyle=":", linewidth=1)
    ax.set(xlabel="samples seen", ylabel="accuracy before learning", ylim=(-0.02, 1.02))
    ax.legend(loc="lower right")
    return figure


@closed
def stability(records: Sequence[Record]) -> Figure:
    """Accuracy on an excerpt of each test set while training, a panel a record, mean and 95 % interval over seeds.

    A dip right after a border that heals later is the stability gap (De Lange et al. 2023): tests at borders alone
    never show it. Raises UserError for a record without a curve.
    """
    width = 4.2 * min(2, len(records))
    rows = -(-len(records) // 2)
    figure, axes = plt.subplots(
        rows, min(2, len(records)), figsize=(width * 1.2, 2.6 * rows), squeeze=False, sharey=True
    )
    for ax, record in zip(axes.flat, records, strict=False):
        curve = np.asarray(record.curve)  # [n, K, J]
        if not curve.size:
            raise UserError(f"{record.label}: no curve was measured; run it with probe_every above 0")
        for j in range(curve.shape[-1]):
            bands = np.array([interval(column) for column in curve[..., j].T])
            half = np.nan_to_num(bands[:, 1], posinf=0)
            colour = CLASS_COLOURS[j % len(CLASS_COLOURS)]
            ax.plot(record.steps, bands[:, 0], color=colour, linewidth=1.2, label=f"test set {j}")
            ax.fill_between(record.steps, bands[:, 0] - half, bands[:, 0] + half, color=colour, alpha=0.2, linewidth=0)
        for end in record.ends[:-1]:
            ax.axvline(end, color="0.6", linestyle=":", linewidth=1)
        title = f"{record.label} (n = {record.n}), {record.excerpt or 'some'} test images"
        ax.set(title=title, xlabel="steps", ylim=(-0.02, 1.02))
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy")
    if np.shape(records[0].curve)[-1] <= 10:
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    for ax in axes.flat[len(records) :]:
        ax.set_visible(False)
    return figure


@closed
def confused(record: Record, names: Sequence[str] | None = None) -> Figure:
    """What samples of each class (row) were taken for (column) at the end, as shares of the row, all seeds together.

    names: of the classes, where the record has none or other ones are wanted.
    """
    names = names or record.names
    counts = np.sum(record.confusion, 0)  # [C, C]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 3 + 0.12 * len(shares)
    figure, ax = plt.subplots(figsize=(side + 0.8, side))
    labels = class_names(names) if 0 < len(names) <= 20 else "auto"
    sns.heatmap(shares, ax=ax, vmin=0, vmax=1, cmap="cividis", square=True, xticklabels=labels, yticklabels=labels)
    ax.set(title=f"{record.label} (n = {record.n})", xlabel="answer", ylabel="class")
    return figure


class LiveCurves:
    """A `log` for JupyterLab: the curves of a run, drawn again while it trains.

    Args:
        seconds: between two drawings, at least.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds, self.drawn = seconds, 0.0
        self.runs: list[dict[str, list[tuple[int, float]]]] = []
        self.last = np.inf
        self.handle: Any = None

    def __call__(self, step: int, scalars: Mapping[str, float]) -> None:
        if step < self.last:
            self.runs.append({})  # the steps start over: another run
        self.last = step
        for name, value in scalars.items():
            self.runs[-1].setdefault(name, []).append((step, value))
        if time.monotonic() - self.drawn >= self.seconds:
            self.show()

    def show(self) -> None:
        """Draw the present run, in place of what was drawn before."""
        figure = self.figure()
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        self.drawn = time.monotonic()

    @property
    def present(self) -> dict[str, list[tuple[int, float]]]:
        """Points of the present run, by name."""
        return self.runs[-1] if self.runs else {}

    def figure(self) -> Figure:
        """Left the losses, right the test accuracy: each test set, and their mean."""
        return live(self.present)


@closed
def live(points: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Curves by name, each a list of (step, value): accuracies on the right, everything else on the left."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
    for name, values in points.items():
        of_test = name.startswith("accuracy/")
        ax = right if name.startswith("accuracy") else left
        look = {"linewidth": 0.8, "alpha": 0.6} if of_test else {"linewidth": 1.8, "label": name}
        ax.plot(*zip(*values, strict=True), **look, **({"color": "0.2"} if name == "accuracy" else {}))
    left.set(xlabel="steps", ylabel="loss")
    right.set(xlabel="steps", ylabel="test accuracy", ylim=(-0.02, 1.02))
    for ax in (left, right):
        if ax.get_legend_handles_labels()[0]:
            ax.legend(fontsize="small")
    return figure


@closed
def intervals(records: Sequence[Record], metrics: Sequence[str] = ("Acc", "Forg")) -> Figure:
    """A line per record: mean, 95 % interval, every seed; a panel per metric. The first is the reference."""
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(5.2 * len(metrics), 0.34 * len(records) + 1), sharey=True, squeeze=False
    )
    for ax, metric in zip(axes[0], metrics, strict=True):
        for row, record in enumerate(records):
            values = record.metric(metric)
            mean, half = interval(values)
            ax.scatter(values, np.full(len(values), row), s=9, color="0.7", zorder=1)
            ax.errorbar(
                mean, row, xerr=0 if np.isinf(half) else half, fmt="o", color=CLASS_COLOURS[0 if row else 3], capsize=3
            )
        ax.axvline(records[0].metric(metric).mean(), color="0.6", linestyle=":", linewidth=1)
        ax.set(xlabel=f"{metric} (n = {records[0].n} each)")
    axes[0][0].set_yticks(range(len(records)), [record.label for record in records])
    axes[0][0].invert_yaxis()
    return figure


@closed
def beside_published(rows: pd.DataFrame, streams: Sequence[str]) -> Figure:
    """Published value (with its 95 % interval where known) and ours, a panel a stream.

    rows: label, stream, published, published_half, ours, half (NaN where missing).
    """
    streams = [stream for stream in streams if stream in set(rows["stream"])]
    columns = min(3, len(streams))
    lines = -(-len(streams) // columns)
    labels = list(dict.fromkeys(rows["label"]))
    figure, axes = plt.subplots(
        lines,
        columns,
        figsize=(3.7 * columns, (0.3 * len(labels) + 0.8) * lines),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for ax, stream in zip(axes.flat, streams, strict=False):
        part = rows[rows["stream"] == stream].set_index("label").reindex(labels)
        y = np.arange(len(labels))
        _dots(ax, part["published"], part["published_half"], y - 0.15, "published, n = 3", 3, "s")
        _dots(ax, part["ours"], part["half"], y + 0.15, "ours", 0, "o")
        ax.set(title=stream, xlim=(0.1, 1.05), yticks=y, yticklabels=labels)
    axes[0][0].invert_yaxis()
    axes[0][0].legend(fontsize=7, loc="lower left")
    figure.supxlabel("Acc, mean and 95 % interval")
    return figure


def _dots(ax: Axes, x: pd.Series, half: pd.Series, y: NDArray[Any], name: str, colour: int, marker: str) -> None:
    error = half.replace(np.inf, np.nan).fillna(0).clip(upper=1)
    ax.errorbar(
        x, y, xerr=error, fmt=marker, markersize=4, color=CLASS_COLOURS[colour], capsize=2, linewidth=1, label=name
    )


@closed
def selection(rows: pd.DataFrame) -> Figure:
    """What choosing on the test set is worth: a dot per stream and head, best on test against validation's choice."""
    figure, ax = plt.subplots(figsize=(5, 4.4))
    sns.scatterplot(rows, x="validation", y="test", hue="label", style="stream", s=70, ax=ax)
    ax.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    ax.set(
        xlabel="test accuracy, settings chosen on validation",
        ylabel="test accuracy, settings chosen on test",
        xlim=(0.3, 1.03),
        ylim=(0.3, 1.03),
    )
    ax.legend(fontsize=7, loc="lower right")
    return figure


@closed
def verdicts(ledger: pd.DataFrame) -> Figure:
    """How many claims of each source got which verdict."""
    counts = ledger.groupby(["source", "verdict"], sort=False).size().unstack(fill_value=0)
    counts = counts.reindex(columns=[v for v in VERDICT_COLOURS if v in counts])
    figure, ax = plt.subplots(figsize=(8, 0.45 * len(counts) + 1))
    counts.plot.barh(stacked=True, ax=ax, color=[CLASS_COLOURS[VERDICT_COLOURS[v]] for v in counts], width=0.7)
    ax.set(xlabel="claims", ylabel="")
    ax.invert_yaxis()
    ax.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.4, 1.0), frameon=False)
    return figure
