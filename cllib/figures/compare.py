"""Pictures that set methods side by side: what a scenario asks, how far each method comes, and what that costs."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cllib.figures.base import CLASS_COLOURS, bare, closed
from cllib.metrics import interval
from cllib.results import Record

ASKED = {
    "class": "class: which of all so far?",
    "task": "task: which of these two, told which task it is?",
    "domain": "domain: first or second of its task?",
}


@closed
def questions(pictures: Sequence[Sequence[Tensor]], names: Sequence[Sequence[str]], scenarios: Sequence[str]) -> Figure:
    """One stream of tasks, and what each scenario asks about it: images of every task, and the allowed answers below.

    pictures: of every task one image `[C, H, W]` a class; names: of those classes.
    """
    tasks, each = len(pictures), len(pictures[0])
    figure, axes = plt.subplots(1, tasks * each, figsize=(1.15 * tasks * each, 1.9 + 0.3 * len(scenarios)))
    for k, ax in enumerate(axes):
        task, place = divmod(k, each)
        image = pictures[task][place].float()
        bare(ax).imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray")
        ax.set_title(f"task {task + 1}" if place == 0 else "", fontsize="small", loc="left")
        lines = [_answers(scenario, task, place, names) for scenario in scenarios]
        ax.set_xlabel("\n".join([names[task][place], *lines]), fontsize=7)
    asked = "     ".join(ASKED[scenario] for scenario in scenarios)
    figure.suptitle(asked, fontsize=9)
    return figure


def _answers(scenario: str, task: int, place: int, names: Sequence[Sequence[str]]) -> str:
    """The right answer to a scenario's question, and of how many."""
    so_far = sum(len(group) for group in names[: task + 1])
    counts = {"class": so_far, "task": len(names[task]), "domain": len(names[task])}
    answer = str(place) if scenario == "domain" else names[task][place]
    return f"{scenario}: {answer[:8]} of {counts[scenario]}"


@closed
def side_by_side(found: Mapping[str, Sequence[Record]], metric: str = "Acc") -> Figure:
    """Every method's mean and 95 % interval with all its seeds, a panel a scenario.

    found: by the panel's title, records in the order of the rows. Light rows see features of a frozen network.
    """
    labels = list(dict.fromkeys(record.label for made in found.values() for record in made))
    size = (3.4 * len(found) + 1.4, 0.27 * len(labels) + 1.1)
    figure, axes = plt.subplots(1, len(found), figsize=size, sharey=True, squeeze=False)
    for ax, (title, made) in zip(axes[0], found.items(), strict=True):
        for record in made:
            values, row = record.metric(metric), labels.index(record.label)
            mean, half = interval(values)
            ax.scatter(values, np.full(len(values), row), s=8, color="0.7", zorder=1)
            bound = None if np.isinf(half) else half
            ax.errorbar(mean, row, xerr=bound, fmt="o", markersize=4, color=CLASS_COLOURS[0], capsize=2)
        ax.set(title=f"{title} (n = {made[0].n})", xlabel=metric, xlim=(min(0, ax.get_xlim()[0]), 1.02))
    axes[0][0].set_yticks(range(len(labels)), labels)
    axes[0][0].invert_yaxis()
    return figure


@closed
def accuracy_against_compute(found: Mapping[str, Sequence[Record]]) -> Figure:
    """Accuracy at the end against CPU seconds of a run, a panel a scenario; the larger a dot, the more it carries.

    Upper left is best. What is carried from step to step is everything but the optimiser: network, samples, copies.
    """
    figure, axes = plt.subplots(1, len(found), figsize=(4.6 * len(found), 4.4), sharey=True, squeeze=False)
    for ax, (title, made) in zip(axes[0], found.items(), strict=True):
        for k, record in enumerate(made):
            mean, half = interval(record.metric("Acc"))
            seconds = record.cpu_seconds / record.n
            size = 8 * np.sqrt(carried(record) / 2**18)
            bound = None if np.isinf(half) else half
            ax.errorbar(seconds, mean, yerr=bound, fmt="none", color="0.75", linewidth=1, zorder=1)
            ax.scatter(seconds, mean, s=size**1.5, color=CLASS_COLOURS[k % 10], zorder=2, alpha=0.8)
        _named(ax, made)
        ax.set(title=f"{title} (n = {made[0].n})", xlabel="CPU seconds a run", xscale="log")
    axes[0][0].set_ylabel("accuracy at the end")
    return figure


def carried(record: Record) -> int:
    """Bytes that one run carries from step to step, the optimiser's left out."""
    return sum(size for part, size in record.bytes.items() if part != "optimiser")


def _named(ax: Axes, made: Sequence[Record]) -> None:
    """Names beside the dots, from the highest down, each moved away from the one before where they would overlap."""
    last = np.inf
    for record in sorted(made, key=lambda r: -r.metric("Acc").mean()):
        height = float(record.metric("Acc").mean())
        place = min(height, last - 0.035)
        at = (record.cpu_seconds / record.n, height)
        arrow = {"arrowstyle": "-", "color": "0.8", "linewidth": 0.5}
        ax.annotate(record.label, at, (1.02, place), textcoords=("axes fraction", "data"), fontsize=7, arrowprops=arrow)
        last = place
