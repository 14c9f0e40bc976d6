"""Pictures of replay in a cut network: accuracy under its ceiling, what the buffer holds, costs, films."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from cllib.figures.base import CLASS_COLOURS, bare, class_names, closed
from cllib.metrics import grouped, interval, row_normalised
from cllib.results import Record
from cllib.streams import Stream


@closed
def films(stream: Stream, names: Sequence[str], batches: Sequence[int] = (0, 1, 2, 3), images: int = 20) -> Figure:
    """Images of some batches and of the tests, evenly spread: a row each, with the classes that come in it."""
    names = class_names(names)
    parts = {f"batch {k}": stream.experiences[k] for k in batches} | {"tests": stream.tests[0]}
    figure, axes = plt.subplots(len(parts), images, figsize=(0.62 * images, 0.72 * len(parts)), squeeze=False)
    for line, (title, part) in zip(axes, parts.items(), strict=True):
        for ax, row in zip(line, np.linspace(0, len(part) - 1, images).round().astype(int), strict=True):
            bare(ax).imshow(part.x[row].permute(1, 2, 0).cpu().numpy())
            ax.set_title(names[int(part.y[row])], fontsize=6, pad=1)
        line[0].set_ylabel(title, fontsize="small", rotation=0, ha="right", va="center")
    return figure


@closed
def along(records: Sequence[Record], ceiling: Sequence[float]) -> Figure:
    """Accuracy after every experience, mean and 95 % interval, under the share of classes that have come at all."""
    figure, ax = plt.subplots(figsize=(9, 5))
    batches = np.arange(1, len(ceiling) + 1)
    ax.step(batches, ceiling, where="post", color="0.45", linewidth=1, label="classes seen, as a share: the ceiling")
    for k, record in enumerate(records):
        values = np.asarray(record.test).mean(-1)  # [n, E]
        colour = CLASS_COLOURS[k % len(CLASS_COLOURS)]
        bands = np.array([interval(column) for column in values.T])
        half = np.nan_to_num(bands[:, 1], posinf=0)
        if values.shape[1] == 1:
            ax.axhline(bands[0, 0], color=colour, linestyle="--", label=f"{record.label} (n = {record.n})")
            continue
        ax.plot(batches, bands[:, 0], color=colour, linewidth=1.4, label=f"{record.label} (n = {record.n})")
        ax.fill_between(batches, bands[:, 0] - half, bands[:, 0] + half, color=colour, alpha=0.18, linewidth=0)
    ax.set(
        xlabel="batches learned",
        ylabel=f"accuracy on all {len(records[0].confusion[0])} classes",
        ylim=(0, 1.02),
        xlim=(1, len(ceiling)),
    )
    figure.legend(loc="outside lower center", fontsize="small", ncols=3)
    return figure


@closed
def cuts(table: pd.DataFrame, n: int) -> Figure:
    """What each cut gives and costs: rows depth, columns replay block; accuracy, milliseconds a batch, stored KiB.

    table: columns depth, replay_block, accuracy, milliseconds, kibibytes; n: runs behind an accuracy.
    """
    wanted = {"accuracy": (f"accuracy (n = {n})", ".2f"), "milliseconds": ("ms to learn one batch", ".0f")}
    wanted |= {"kibibytes": ("KiB in the buffer", ".0f")}
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 0.55 * table["depth"].nunique() + 1.6), sharey=True)
    for ax, (column, (title, form)) in zip(axes, wanted.items(), strict=True):
        square = table.pivot(index="depth", columns="replay_block", values=column).sort_index(ascending=False)
        colours = "cividis" if column == "accuracy" else "cividis_r"
        sns.heatmap(square, ax=ax, annot=True, fmt=form, cmap=colours, cbar=False, linewidths=1)
        ax.set(title=title, xlabel="replay block F: blocks frozen", ylabel="depth D: blocks used")
        ax.grid(False)
        ax.tick_params(axis="y", rotation=0)
    for ax in axes[1:]:
        ax.set_ylabel("")
    return figure


@closed
def confusions(record: Record, names: Sequence[str], categories: Sequence[str]) -> Figure:
    """What objects, and what categories (row), were taken for (column), as shares of the row, all seeds together."""
    counts = np.sum(record.confusion, 0)  # [C, C]
    each = len(names) // len(categories)
    figure, axes = plt.subplots(1, 2, figsize=(13, 6.2), width_ratios=(1.15, 1))
    for ax, matrix, labels in ((axes[0], counts, names), (axes[1], grouped(counts, each), categories)):
        few = len(labels) <= 12
        sns.heatmap(
            row_normalised(matrix),
            ax=ax,
            vmin=0,
            vmax=1,
            cmap="cividis",
            square=True,
            cbar=ax is axes[0],
            cbar_kws={"shrink": 0.6},
            annot=few,
            fmt=".2f",
            annot_kws={"size": 7},
            xticklabels=class_names(labels) if few else 5,
            yticklabels=class_names(labels) if few else 5,
        )
        kind = "categories" if few else "classes"
        ax.set(xlabel="answer", ylabel="true", title=f"{record.label}, {len(labels)} {kind} (n = {record.n})")
        ax.tick_params(axis="y", rotation=0)
    for at in range(each, len(names), each):
        axes[0].axhline(at, color="white", linewidth=0.3)
        axes[0].axvline(at, color="white", linewidth=0.3)
    return figure


@closed
def composition(record: Record, categories: Sequence[str]) -> Figure:
    """Whose samples the buffer holds after every batch (one run), and how well each class is known by then."""
    held = np.asarray(record.held)[0]  # [E, C]
    each = held.shape[1] // len(categories)
    batches = np.arange(1, len(held) + 1)
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6.6), height_ratios=(1, 1.25))
    groups = held.reshape(len(held), -1, each).sum(-1).T  # [categories, E]
    above.stackplot(batches, groups, labels=categories, colors=sns.color_palette("husl", len(groups)), linewidth=0)
    above.set(xlim=(1, len(held)), ylabel="stored samples, by category", xticks=[])
    above.set_title(f"{record.label}, seed {record.seeds[0]}")
    above.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=5, frameon=False)
    known = np.mean(record.by_class, 0).T  # [C, E]
    image = below.imshow(
        known,
        aspect="auto",
        cmap="cividis",
        vmin=0,
        vmax=1,
        extent=(0.5, len(held) + 0.5, len(known), 0),
        interpolation="none",
    )
    figure.colorbar(image, ax=below, label=f"accuracy, mean of {record.n}")
    below.set(xlabel="batches learned", ylabel="class")
    below.grid(False)
    return figure


@closed
def stages(tables: dict[str, pd.DataFrame]) -> Figure:
    """Median milliseconds an experience by stage, a bar a setting, and quartiles of the sum (`timing.summary`)."""
    names = [name for name in next(iter(tables.values())).index if name not in ("all", "a step", "a new image")]
    figure, ax = plt.subplots(figsize=(9, 0.5 * len(tables) + 1.5))
    left = np.zeros(len(tables))
    for k, name in enumerate(names):
        width = np.array([table.loc[name, "median, ms"] for table in tables.values()])
        ax.barh(list(tables), width, left=left, color=CLASS_COLOURS[k], label=name)
        left += width
    whole = [table.loc["all"] for table in tables.values()]
    low, high = ([row[q] for row in whole] for q in ("25 %", "75 %"))
    ax.hlines(range(len(tables)), low, high, color="black", linewidth=1.5)
    ax.set(xlabel="milliseconds to learn one batch, median (line: quartiles of the sum)")
    ax.invert_yaxis()
    ax.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure
