"""Pictures that set methods side by side: what a scenario asks, how far each method comes, and what that costs."""

import textwrap
from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from cllib.figures.base import CLASS_COLOURS, bare, class_names, closed
from cllib.metrics import interval
from cllib.results import Record

NO_BREAK = "\u00a0"
ASKED = {
    "class": "class: which of all so far?",
    "task": "task: which of its task, which is told?",
    "domain": "domain: which one of any task?",
}


@closed
def questions(
    pictures: Sequence[Sequence[Tensor]], names: Sequence[Sequence[str]], scenarios: Sequence[str], classes: int = 0
) -> Figure:
    """One stream of tasks, and what each scenario asks about it: images of every task, and the allowed answers below.

    pictures: of every task one image `[C, H, W]` a class; names: of those classes; classes: of every task, where not
    all are shown.
    """
    tasks, each = len(pictures), len(pictures[0])
    words, short = ([class_names([name[:length] for name in task]) for task in names] for length in (None, 8))
    figure, axes = plt.subplots(1, tasks * each, figsize=(1.15 * tasks * each, 1.6 + 0.16 * len(scenarios)))
    for k, ax in enumerate(axes):
        task, place = divmod(k, each)
        image = pictures[task][place].float()
        bare(ax).imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray")
        ax.set_title(f"task {task + 1}" if place == 0 else "", fontsize="small", loc="left")
        lines = [_answers(scenario, task, place, short, classes or each) for scenario in scenarios]
        ax.set_xlabel("\n".join([words[task][place], *lines]), fontsize=7)
    asked = "     ".join(ASKED[scenario] for scenario in scenarios)
    figure.suptitle(asked, fontsize=9)
    return figure


def _answers(scenario: str, task: int, place: int, names: Sequence[Sequence[str]], classes: int) -> str:
    """The right answer to a scenario's question, and of how many."""
    answer = str(place) if scenario == "domain" else names[task][place]
    return f"{scenario}: {answer} of {classes * (task + 1) if scenario == 'class' else classes}"


@closed
def side_by_side(found: Mapping[str, Sequence[Record]], metric: str = "Acc") -> Figure:
    """Every method's mean and 95 % interval with all its seeds, a panel a scenario.

    found: by the panel's title, records in the order of the rows.
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
        ax.set(title=f"{title} (n = {made[0].n})", xlabel=metric)
    axes[0][0].set_yticks(range(len(labels)), labels)
    axes[0][0].invert_yaxis()
    return figure


@closed
def accuracy_against_compute(found: Mapping[str, Sequence[Record]], own: Collection[str] = ()) -> Figure:
    """Accuracy at the end against CPU seconds of a run, a panel a scenario; the larger a dot, the more it carries.

    Upper left is best. What is carried from step to step is everything but the optimiser: network, samples, copies.
    own: labels to colour, the others stay grey.
    """
    figure, axes = plt.subplots(1, len(found), figsize=(4.6 * len(found), 4.6), squeeze=False)
    labels = list(dict.fromkeys(record.label for made in found.values() for record in made))
    for ax, (title, made) in zip(axes[0], found.items(), strict=True):
        for record in made:
            mean, half = interval(record.metric("Acc"))
            at, number = (record.cpu_seconds / record.n, mean), labels.index(record.label) + 1
            bound = None if np.isinf(half) else half
            ax.errorbar(*at, yerr=bound, fmt="none", color="0.8", linewidth=1, zorder=1)
            colour = CLASS_COLOURS[number % 10] if record.label in own else (0.6, 0.6, 0.6)
            ax.scatter(*at, s=30 + 60 * np.log2(1 + carried(record) / 2**20), color=colour, zorder=2, alpha=0.7)
            ax.annotate(str(number), at, fontsize=7, ha="center", va="center", zorder=3)
        ax.set(title=f"{title} (n = {made[0].n})", xlabel="CPU seconds a run", xscale="log")
        ax.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    axes[0][0].set_ylabel("accuracy at the end")
    named = "   ".join(f"{k}\u00a0{label.replace(' ', NO_BREAK)}" for k, label in enumerate(labels, 1))
    figure.supxlabel("\n".join(textwrap.wrap(named, 44 * len(found), break_on_hyphens=False)), fontsize=8)
    return figure


def carried(record: Record) -> int:
    """Bytes that one run carries from step to step, the optimiser's left out."""
    return sum(size for part, size in record.bytes.items() if part != "optimiser")
