"""Pictures of hidden weights show what they are given."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from cllib import figures, importance
from cllib.errors import UserError
from cllib.models.binary import BinaryMLP
from cllib.models.vit import ViT
from cllib.results import Record
from samples import with_accuracy


def shown(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.get_visible()]


def test_gates_are_one_at_zero_and_fall_faster_with_m() -> None:
    left, right = shown(figures.gates((0, 1, 2)))
    flat, one, two = (line.get_ydata() for line in left.get_lines())
    assert (np.asarray(flat) == 1).all() and (np.asarray(two) <= np.asarray(one)).all()
    assert len(right.get_lines()) == 6


def test_histograms_have_a_panel_a_matrix_and_tell_what_is_frozen() -> None:
    net = BinaryMLP((8, 8)).build((6,), 3)
    with torch.no_grad():
        net.get_submodule("fc1").weight.fill_(9.0)
    weights = importance.by_layer(net)
    assert list(weights) == ["fc1.weight", "fc2.weight", "fc3.weight"]
    panels = shown(figures.histograms({"a": weights, "b": weights}, {"a": 1.0, "b": 0.0}))
    titles = [ax.get_title() for ax in panels]
    assert (
        titles[0] == "fc1_weight\nfrozen: 100% / 0%" and titles[1] == "fc2_weight\nfrozen: 0% / 0%" and len(titles) == 3
    )
    small = ViT("bvit", image_size=8, patch=4, dim=8, depth=2, heads=2).build((1, 8, 8), 3)
    assert "layers.block_2.fc1.weight" in importance.by_layer(small) and "cls" in importance.by_layer(small)


def test_tradeoff_has_a_line_a_task_and_one_for_the_mean(made: list[Record]) -> None:
    records = [with_accuracy(made[0], [0.2, 0.4]), with_accuracy(made[0], [0.5, 0.7])]
    (ax,) = shown(figures.tradeoff(records, (0, 1.35)))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["task 1", "task 2", "mean (Acc)"]
    assert ax.containers[-1].lines[0].get_ydata().tolist() == pytest.approx([0.3, 0.6])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "1.35"]


def test_curves_need_a_curve(made: list[Record]) -> None:
    with pytest.raises(UserError, match="no curve was measured"):
        figures.curves([made[0]], 0, "accuracy")


def test_flip_costs_and_the_quadratic_task_are_drawn() -> None:
    rows = pd.DataFrame({"bin": [0, 0, 1, 1], "size": [0.1, 0.1, 0.2, 0.2], "cost": [1e-6, 3e-6, 4e-6, 6e-6]})
    (ax,) = shown(figures.flip_costs({"fc1": rows}))
    assert ax.containers[0].lines[0].get_ydata().tolist() == pytest.approx([2, 5])
    task = importance.random_task(20)
    start = torch.zeros(20, dtype=torch.float64)
    path = importance.descend(task, start, 0.01, 30)
    plane = importance.descend(importance.plane_task(), torch.zeros(2, dtype=torch.float64), 0.1, 30)
    assert len(shown(figures.quadratic(task, path, 0.01, plane))) == 2
