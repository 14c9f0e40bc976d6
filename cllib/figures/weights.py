"""Pictures of hidden weights: how the gate acts on them, how they are spread, and what they are worth."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from cllib.errors import UserError
from cllib.figures.base import CLASS_COLOURS, closed
from cllib.importance import QuadraticTask
from cllib.metaplasticity import f_meta
from cllib.metrics import interval
from cllib.models.binary import sign
from cllib.results import Record

DASHES = ("-", "--", ":", "-.")


@closed
def gates(ms: Sequence[float]) -> Figure:
    """Left f_meta over the hidden weight, a line a coefficient; right the update that is left of +1 and of -1."""
    w = torch.linspace(-2.5, 2.5, 501)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2))
    for k, m in enumerate(ms):
        look = {"color": CLASS_COLOURS[k % 10], "linestyle": DASHES[k % 4]}
        f = f_meta(m, w)
        left.plot(w, f, label=f"m = {m:g}", **look)
        right.plot(w, torch.where(w < 0, 1.0, f), **look)
        right.plot(w, -torch.where(w > 0, 1.0, f), **look)
    left.set(xlabel="hidden weight W", ylabel=r"$f_{meta} = 1 - \tanh^2(m\,|W|)$")
    right.set(xlabel="hidden weight W", ylabel="what is left of u", ylim=(-1.15, 1.15), yticks=(-1, 0, 1))
    boxed = {"fontsize": "small", "ha": "center", "va": "center", "bbox": {"color": "white", "alpha": 0.8, "pad": 1}}
    right.text(-1.3, 0.75, "u = +1, away from zero:\nnever weakened", **boxed)
    right.text(1.5, 0.75, "u = +1, towards zero:\nweakened", **boxed)
    right.text(1.3, -0.75, "u = -1, away from zero:\nnever weakened", **boxed)
    right.text(-1.5, -0.75, "u = -1, towards zero:\nweakened", **boxed)
    figure.legend(loc="outside lower center", ncols=len(ms), fontsize="small")
    return figure


@closed
def histograms(nets: Mapping[str, Mapping[str, Tensor]], ms: Mapping[str, float], bins: int = 100) -> Figure:
    """Weights of every layer (panels, two columns), networks overlaid.

    nets: by label, the weights by name (`importance.by_layer`); ms: by label the coefficient, to say what share of a
    layer is frozen: f_meta below .001.
    """
    names = list(next(iter(nets.values())))
    rows = -(-len(names) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(9.5, 2.6 * rows), squeeze=False)
    for ax, name in zip(axes.flat, names, strict=False):
        limit = max(float(weights[name].abs().max()) for weights in nets.values())
        told = []
        for k, (label, weights) in enumerate(nets.items()):
            w = weights[name].flatten().cpu()
            counts, edges = np.histogram(w.numpy(), bins=bins, range=(-limit, limit))
            ax.stairs(counts / len(w), edges, color=CLASS_COLOURS[k % 10], label=label, linewidth=1.4)
            frozen = float((f_meta(ms[label], w) < 1e-3).float().mean())
            told.append(f"{frozen:.0%}")
        ax.set_title(f"{name.replace('.', '_')}\nfrozen: {' / '.join(told)}", fontsize="small")
        ax.set(yscale="log", xlabel="hidden weight", ylabel="share")
    for ax in axes.flat[len(names) :]:
        ax.set_visible(False)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return figure


@closed
def tradeoff(records: Sequence[Record], ms: Sequence[float]) -> Figure:
    """Final accuracy on every task over the coefficient, and their mean in black, with 95 % intervals.

    ms: the published coefficient of each record; drawn evenly spaced.
    """
    figure, ax = plt.subplots(figsize=(7.5, 3.6))
    tasks, x = np.shape(records[0].test)[-1], np.arange(len(records))
    for j in range(tasks):
        _line(ax, x, [interval(r.metric(f"t{j + 1}")) for r in records], f"task {j + 1}", CLASS_COLOURS[j % 10], 1.3)
    _line(ax, x, [interval(r.metric("Acc")) for r in records], "mean (Acc)", "black", 2.2)
    ax.set_xticks(x, [f"{m:g}" for m in ms])
    ax.set(
        xlabel="m (as published)", ylabel="test accuracy at the end", title=f"{records[0].stream}, n = {records[0].n}"
    )
    ax.legend(fontsize="small", ncols=2)
    return figure


def _line(
    ax: plt.Axes, x: np.ndarray, bands: Sequence[tuple[float, float]], label: str, colour: object, width: float
) -> None:
    mean, half = np.array(bands).T
    half = np.nan_to_num(half, posinf=0)
    ax.errorbar(x, mean, half, label=label, color=colour, linewidth=width, marker="o", markersize=4, capsize=3)


@closed
def curves(records: Sequence[Record], test: int, ylabel: str) -> Figure:
    """Accuracy on an excerpt of one test set while training, a line a record, mean and 95 % interval.

    x: share of all steps.
    """
    figure, ax = plt.subplots(figsize=(7.5, 3.2))
    for k, record in enumerate(records):
        curve = np.asarray(record.curve)
        if not curve.size:
            raise UserError(f"{record.label}: no curve was measured; run it with probe_every above 0")
        bands = np.array([interval(column) for column in curve[..., test].T])
        half = np.nan_to_num(bands[:, 1], posinf=0)
        x = np.asarray(record.steps) / record.ends[-1]
        look = {"color": CLASS_COLOURS[k % 10], "linestyle": DASHES[k % 4]}
        told = f"n = {record.n}; {record.excerpt or 'some'} test images in all"
        ax.plot(x, bands[:, 0], label=f"{record.label} ({told})", **look)
        ax.fill_between(x, bands[:, 0] - half, bands[:, 0] + half, color=CLASS_COLOURS[k % 10], alpha=0.15, linewidth=0)
    ax.set(xlabel="share of the stream", ylabel=ylabel)
    ax.legend(fontsize="small")
    return figure


@closed
def flip_costs(flips: Mapping[str, pd.DataFrame]) -> Figure:
    """Rise of the loss per flipped sign over the size of the weights, a panel a layer, mean and 95 % interval."""
    figure, axes = plt.subplots(1, len(flips), figsize=(3.6 * len(flips), 3), squeeze=False)
    for ax, (name, rows) in zip(axes[0], flips.items(), strict=True):
        groups = [group for _, group in rows.groupby("bin")]
        bands = np.array([interval(group["cost"]) for group in groups]) * 1e6
        ax.errorbar(
            [group["size"].iloc[0] for group in groups],
            bands[:, 0],
            np.nan_to_num(bands[:, 1], posinf=0),
            fmt="o-",
            color=CLASS_COLOURS[0],
            markersize=4,
            capsize=3,
        )
        ax.axhline(0, color="0.6", linewidth=1)
        ax.set(title=name, xlabel="mean |W| of the bin")
    axes[0][0].set_ylabel("rise of the loss per flip, x 10⁻⁶")
    return figure


@closed
def quadratic(task: QuadraticTask, path: Tensor, eta: float, plane: Tensor, bins: int = 15) -> Figure:
    """Left the two hidden weights of the plane task over time; right the cost of a flip over |W| at d dimensions.

    path: `[T + 1, d]` of `task`; plane: `[T + 1, 2]`. Dots: weights; line: the theory for those that drift; squares:
    means of bins.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.3))
    left.plot(plane[:, 0], label="W_x: drifts, important", color=CLASS_COLOURS[0])
    left.plot(plane[:, 1], label="W_y: oscillates", color=CLASS_COLOURS[3], linestyle="--")
    left.set(xlabel="steps", ylabel="hidden weight")
    left.legend(fontsize="small")
    w, steps = path[-1], len(path) - 1
    cost, size = task.flip_cost(sign(w)), w.abs() / w.abs().max()
    right.scatter(size, cost, s=5, alpha=0.35, color=CLASS_COLOURS[0], linewidths=0)
    order = size.argsort()
    right.plot(size[order], task.predicted_cost(w, eta, steps)[order], color="black", linewidth=1, label="theory")
    place = (size * bins).long().clamp(max=bins - 1)
    filled = [k for k in range(bins) if (place == k).any()]
    means = [float(cost[place == k].mean()) for k in filled]
    right.scatter(
        [(k + 0.5) / bins for k in filled], means, marker="s", color=CLASS_COLOURS[3], s=28, label="mean of bin"
    )
    right.set(xlabel="|W| / max |W|", ylabel="rise of the loss if its sign flips")
    right.legend(fontsize="small")
    return figure
