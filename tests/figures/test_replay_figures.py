"""Pictures of dreams show what they are given."""

from dataclasses import replace

import numpy as np
import torch

from cllib import figures
from cllib.results import Record
from samples import with_accuracy


def test_dreams_are_blank_before_their_class_has_come() -> None:
    ages = [{0: torch.rand(2, 1, 3, 3)}, {0: torch.rand(2, 1, 3, 3), 1: torch.rand(2, 1, 3, 3)}]
    figure = figures.dreams(ages, ["zero", "one"])
    shown = np.array([len(ax.images) for ax in figure.axes]).reshape(2, 2)
    assert shown.tolist() == [[1, 1], [0, 1]]
    assert figure.axes[0].images[0].get_array().shape == (3, 6, 3)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["after task 1", "after task 2"]


def test_a_cloud_has_dots_and_crosses_of_every_class() -> None:
    points = np.arange(12.0).reshape(6, 2)
    figure = figures.cloud(points, [0, 0, 1, 1, 1, 0], [False, True, True, False, False, False], ["a", "b"])
    counts = [len(part.get_offsets()) for part in figure.axes[0].collections]
    assert counts == [2, 1, 2, 1]


def test_open_units_says_how_many_are_open() -> None:
    gate = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 1]])
    figure = figures.open_units(gate, 1 - gate * 0, ["a", "b"])
    assert "50% open" in figure.axes[0].get_title() and "100% open" in figure.axes[1].get_title()
    shared = figure.axes[2].collections[0].get_array().reshape(2, 2)
    np.testing.assert_allclose(shared, [[1, 0.5], [0.5, 1]])


def test_a_sweep_shows_differences_paired_by_seed(made: list[Record]) -> None:
    base = with_accuracy(made[0], [0.5, 0.7, 0.6])
    better = with_accuracy(made[0], [0.51, 0.71, 0.61])
    figure = figures.sweep({"repulsion": {1e-6: base, 1.0: better}}, base)
    ax = figure.axes[0]
    lines = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_color() == "0.75"]
    assert len(lines) == base.n
    for line in lines:
        np.testing.assert_allclose(line.get_ydata(), [0, 0.01], atol=1e-9)


def test_competition_puts_shares_beside_runners_up(made: list[Record]) -> None:
    base = replace(made[0], confusion=[[[3, 1], [0, 4]]])
    figure = figures.competition(base, torch.tensor([[0.0, 1], [1, 0]]), ["a", "b"])
    left, right = (figure.axes[k].collections[0].get_array().reshape(2, 2) for k in (0, 1))
    np.testing.assert_allclose(left, [[0.75, 0.25], [0, 1]])
    np.testing.assert_allclose(right, [[0, 1], [1, 0]])
