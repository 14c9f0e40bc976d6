"""Pictures of BiRT: where data flow, what is stored, both memories, what noise does."""

from collections.abc import Mapping, Sequence
from math import isqrt

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cllib.attention import cut_square, photo
from cllib.calibration import recency
from cllib.errors import UserError
from cllib.figures.base import CLASS_COLOURS, bare, closed
from cllib.metrics import Array, interval, of_seen
from cllib.results import Record


@closed
def represented(images: Tensor, r: Tensor, titles: Sequence[str]) -> Figure:
    """Images and what is stored of them: the first three principal components of r as red, green and blue.

    images: `[n, C, H, W]` in [0, 1]; r: `[n, N, D]`, of N square patches. Raises UserError if the images cannot be cut
    so.
    """
    grid = cut_square(images, r.shape[1])
    flat = r.double().flatten(0, 1)  # [n N, D]
    centred = flat - flat.mean(0)
    _, _, axes_of = np.linalg.svd(centred.cpu().numpy(), full_matrices=False)
    parts = centred.cpu().numpy() @ axes_of[:3].T  # [n N, 3]
    low, high = np.quantile(parts, 0.02, axis=0), np.quantile(parts, 0.98, axis=0)
    maps = ((parts - low) / (high - low)).clip(0, 1).reshape(len(r), grid.rows, grid.columns, 3)
    figure, axes = plt.subplots(2, len(images), figsize=(1.05 * len(images) + 0.6, 2.5), squeeze=False)
    for (above, below), image, colours, title in zip(axes.T, images, maps, titles, strict=True):
        bare(above).imshow(photo(image.expand(3, -1, -1).clamp(0, 1)).numpy())
        bare(below).imshow(colours)
        above.set_title(title, fontsize="small")
    axes[0][0].set_ylabel("image", fontsize="small")
    axes[1][0].set_ylabel("r", fontsize="small")
    return figure


@closed
def sawtooth(records: Sequence[Record]) -> Figure:
    """Accuracy on all classes so far after every task, before (below) and after fine-tuning; mean and 95 % interval."""
    figure, ax = plt.subplots(figsize=(9, 4.4))
    for k, record in enumerate(records):
        colour, after = CLASS_COLOURS[k % len(CLASS_COLOURS)], of_seen(record.test)  # [n, T]
        tasks = np.arange(1, after.shape[1] + 1)
        bands = np.array([interval(column) for column in after.T])
        half = np.nan_to_num(bands[:, 1], posinf=0)
        before = of_seen(record.moments["before fine-tuning"]) if "before fine-tuning" in record.moments else after
        if np.allclose(before, after):
            ax.plot(tasks, bands[:, 0], "o-", color=colour, markersize=4, label=f"{record.label} (n = {record.n})")
        else:
            x = np.stack([tasks - 0.12, tasks], 1).ravel()
            y = np.stack([before.mean(0), bands[:, 0]], 1).ravel()
            ax.plot(x, y, "-", color=colour, label=f"{record.label} (n = {record.n})")
            ax.plot(tasks - 0.12, before.mean(0), "v", color=colour, markersize=5, markerfacecolor="white")
            ax.plot(tasks, bands[:, 0], "^", color=colour, markersize=5)
        ax.fill_between(tasks, bands[:, 0] - half, bands[:, 0] + half, color=colour, alpha=0.13, linewidth=0)
    chance = 1 / np.cumsum([len(records[0].confusion[0]) / len(tasks)] * len(tasks))
    ax.plot(tasks, chance, color="0.5", linestyle=":", label="guessing")
    ax.set(xlabel="tasks learned (empty: before fine-tuning)", ylabel="accuracy on classes so far", ylim=(0, 1.02))
    ax.set_xticks(tasks)
    figure.legend(loc="outside lower center", fontsize="small", ncols=4)
    return figure


@closed
def memories(record: Record) -> Figure:
    """Accuracy on every task (column) after every task (row): before fine-tuning, after it, and of the slow copy.

    Mean over seeds; the slow copy before it is updated at the border.
    """
    kinds = {"f_w before fine-tuning": "before fine-tuning", "f_w": "", "f_s": "semantic memory"}
    found = {title: record.moments.get(name) if name else record.test for title, name in kinds.items()}
    shown = {title: np.mean(matrix, 0) for title, matrix in found.items() if matrix is not None}
    figure, axes = plt.subplots(1, len(shown), figsize=(3.9 * len(shown), 3.6), squeeze=False)
    for ax, (title, matrix) in zip(axes[0], shown.items(), strict=True):
        tasks = range(1, len(matrix) + 1)
        few = len(matrix) <= 10
        sns.heatmap(
            matrix,
            ax=ax,
            vmin=0,
            vmax=1,
            cmap="cividis",
            square=True,
            annot=few,
            fmt=".2f",
            annot_kws={"size": 8},
            xticklabels=list(tasks) if few else 5,
            yticklabels=list(tasks) if few else 5,
            cbar=ax is axes[0][-1],
        )
        ax.set(title=f"{record.label}: {title} (n = {record.n})", xlabel="tested on task", ylabel="after task")
        ax.tick_params(axis="y", rotation=0)
    return figure


@closed
def preferred(records: Sequence[Record], widths: list[int]) -> Figure:
    """Share of answers that fall into each task at the end, a panel a record; the line is what they should be."""
    figure, axes = plt.subplots(1, len(records), figsize=(2.3 * len(records) + 0.4, 2.7), sharey=True, squeeze=False)
    for ax, record in zip(axes[0], records, strict=True):
        shares = np.array([recency(_tensor(one), widths).numpy() for one in record.confusion])  # [n, T]
        true = np.array([recency(_tensor(one).T, widths).numpy() for one in record.confusion]).mean(0)
        ax.bar(range(1, len(widths) + 1), shares.mean(0), color=CLASS_COLOURS[0], alpha=0.85)
        ax.plot(range(1, len(widths) + 1), shares.T, ".", color="0.3", markersize=3)
        ax.step(range(1, len(widths) + 1), true, where="mid", color="black", linewidth=1.2)
        ax.set(title=f"{record.label}\n(n = {record.n})", xlabel="task")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.title.set_fontsize("small")
    axes[0][0].set_ylabel("share of answers")
    return figure


def _tensor(counts: Sequence[Sequence[int]]) -> Tensor:
    import torch

    return torch.tensor(counts)


@closed
def balance(records: Sequence[Record]) -> Figure:
    """Stability against plasticity, a dot a seed and a cross for the mean, with lines of equal trade-off."""
    figure, ax = plt.subplots(figsize=(6.2, 5))
    grid = np.linspace(0.01, 1, 200)
    s, p = np.meshgrid(grid, grid)
    lines = ax.contour(s, p, 2 * s * p / (s + p), levels=np.arange(0.1, 1, 0.1), colors="0.8", linewidths=0.8)
    ax.clabel(lines, fontsize=7)
    for k, record in enumerate(records):
        colour = CLASS_COLOURS[k % len(CLASS_COLOURS)]
        at = record.metric("Stab"), record.metric("Plast")
        ax.plot(*at, ".", color=colour, alpha=0.6)
        ax.plot(at[0].mean(), at[1].mean(), "X", color=colour, markersize=9, label=f"{record.label} (n = {record.n})")
    ax.set(
        xlabel="stability: old tasks at the end", ylabel="plasticity: tasks just learned", xlim=(0, 1), ylim=(0, 1.02)
    )
    ax.legend(fontsize="small", loc="lower right")
    return figure


@closed
def robust(table: pd.DataFrame) -> Figure:
    """Accuracy against what was done to the test images: a panel a kind, a line a method, mean and 95 % interval.

    table: columns kind, method, level, accuracy, one row a seed.
    """
    kinds = list(table["kind"].unique())
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.3 * len(kinds), 3.4), sharey=True, squeeze=False)
    for ax, kind in zip(axes[0], kinds, strict=True):
        for k, name in enumerate(table["method"].unique()):
            own = table[(table["kind"] == kind) & (table["method"] == name)]
            rows = [(level, *interval(values.to_numpy())) for level, values in own.groupby("level")["accuracy"]]
            levels, mean, half = (np.array(column) for column in zip(*rows, strict=True))
            half = np.nan_to_num(half, posinf=0)
            ax.plot(levels, mean, "o-", color=CLASS_COLOURS[k], markersize=4)
            ax.fill_between(levels, mean - half, mean + half, color=CLASS_COLOURS[k], alpha=0.13, linewidth=0)
        ax.set(title=kind, xlabel="eps, in 255ths" if kind == "PGD" else "severity", ylim=(0, 1.02))
    handles = [plt.Line2D([], [], color=CLASS_COLOURS[k], marker="o") for k in range(table["method"].nunique())]
    figure.legend(handles, list(table["method"].unique()), loc="outside lower center", ncols=4, fontsize="small")
    return figure


@closed
def reliable(tables: Mapping[str, pd.DataFrame], errors: Mapping[str, float]) -> Figure:
    """How often a network is right when it is so sure; size: samples (`calibration.reliability`)."""
    figure, axes = plt.subplots(1, len(tables), figsize=(2.9 * len(tables), 3), sharey=True, squeeze=False)
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        ax.plot([0, 1], [0, 1], color="0.6", linestyle=":")
        ax.plot(table["confidence"], table["accuracy"], color=CLASS_COLOURS[0], linewidth=1)
        size = 120 * table["samples"] / table["samples"].max()
        ax.scatter(table["confidence"], table["accuracy"], s=size, color=CLASS_COLOURS[0], alpha=0.7)
        ax.set(title=f"{name}\nECE {errors[name]:.3f}", xlabel="confidence", xlim=(0, 1.03), ylim=(-0.03, 1.03))
        ax.title.set_fontsize("small")
    axes[0][0].set_ylabel("accuracy")
    return figure


@closed
def anatomy(shares: Array, row: Array, disturbed: Mapping[float, Array], logits: Array, moved: Array) -> Figure:
    """The noises themselves: lambda of M, one row of attention under A, one sample's teacher logits under S.

    shares: `[n]`; row: `[N]`; disturbed: the same row by the size of the noise; logits: `[C]`; moved: `[n, C]`.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.5, 3))
    left.hist(shares, bins=40, color=CLASS_COLOURS[0])
    left.set(title=r"M: $\lambda\sim$ Beta(.1, .1)", xlabel=r"$\lambda$", ylabel=f"of {len(shares):,} draws")
    for k, (std, values) in enumerate(disturbed.items()):
        middle.plot(
            values, color=CLASS_COLOURS[k + 1], linewidth=1, label=rf"$\sigma$ = {std:g}: sum {values.sum():.2f}"
        )
    middle.plot(row, color="black", linewidth=2, label=f"undisturbed: sum {row.sum():.2f}")
    middle.set(title="A: one row of attention", xlabel="patch")
    middle.legend(fontsize="x-small")
    classes = np.arange(len(logits))
    right.plot(np.repeat(classes[None], len(moved), 0).T, moved.T, ".", color=CLASS_COLOURS[2], markersize=4, alpha=0.4)
    right.plot(classes, logits, "_", color="black", markersize=10)
    right.set(title="S: what the teacher says of one sample", xlabel="class", ylabel="logit")
    return figure


@closed
def lags(runs: Mapping[str, Sequence[tuple[int, float, int]]]) -> Figure:
    """How far the slow copy is behind, over steps; a dot where it was updated (`watching.Lag`)."""
    figure, ax = plt.subplots(figsize=(9, 3.2))
    for k, (name, rows) in enumerate(runs.items()):
        steps, away, updates = (np.array(column) for column in zip(*rows, strict=True))
        ax.plot(steps, away, color=CLASS_COLOURS[k], linewidth=1, label=f"{name}: {updates[-1]} updates")
        moved = np.flatnonzero(np.diff(updates)) + 1
        ax.plot(steps[moved], away[moved], "o", color=CLASS_COLOURS[k], markersize=5)
    ax.set(xlabel="steps", ylabel=r"$|\theta_s-\theta_w|$", ylim=(0, None))
    ax.legend(fontsize="small")
    return figure


@closed
def bytes_against(records: Sequence[Record]) -> Figure:
    """Accuracy at the end against bytes of stored samples, mean and 95 % interval."""
    figure, ax = plt.subplots(figsize=(7, 4.2))
    kinds: dict[str, list[Record]] = {}
    for record in records:
        image = record.learner["settings"].get("replay") == "images"
        kinds.setdefault("images" if image else f"r, {record.learner['settings']['dtype']}", []).append(record)
    for k, (kind, own) in enumerate(kinds.items()):
        own = sorted(own, key=lambda record: record.bytes["buffer"])
        x = [record.bytes["buffer"] / 1024 for record in own]
        bands = np.array([interval(record.metric("Acc")) for record in own])
        error = np.nan_to_num(bands[:, 1], posinf=0)
        ax.errorbar(x, bands[:, 0], yerr=error, fmt="o-", color=CLASS_COLOURS[k], capsize=3, label=kind, linewidth=1)
    ax.set(xscale="log", xlabel="KiB of stored samples", ylabel=f"accuracy at the end (n = {records[0].n})")
    ax.legend(title="what is stored", fontsize="small")
    return figure


@closed
def gated_attention(maps: Tensor, gates: Tensor, layers: Sequence[str]) -> Figure:
    """Where the middle patch of one image looks, a row a layer and a column a head, with the share of position.

    maps: `[L, h, N, N]` of a network for square images, so N is a square; gates: `[L, h]`. Raises UserError for others.
    """
    count, heads, n, _ = maps.shape
    side = isqrt(n)
    if side**2 != n:
        raise UserError(f"maps of {n} patches: must be those of a square image")
    middle = side // 2 * side + side // 2
    figure, axes = plt.subplots(count, heads, figsize=(1.35 * heads + 0.8, 1.5 * count), squeeze=False)
    for line, row, gate, name in zip(axes, maps, gates, layers, strict=True):
        for ax, own, share in zip(line, row, gate, strict=True):
            _patch(bare(ax), own[middle].view(side, side), divmod(middle, side))
            ax.set_title(f"{float(share):.2f}", fontsize=8)
        line[0].set_ylabel(name, fontsize="small")
    return figure


def _patch(ax: Axes, weights: Tensor, place: tuple[int, int]) -> None:
    """A map over patches, with a cross where it is looked from."""
    ax.imshow(weights.cpu().numpy(), cmap="cividis", vmin=0)
    ax.plot(place[1], place[0], "x", color="white", markersize=5)
