"""Pictures of chapter 6: every method has its row, its dot and its name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

from cllib import figures
from cllib.figures.compare import carried
from cllib.results import Record


def named(record: Record, label: str, **changes: object) -> Record:
    return replace(record, label=label, **changes)  # type: ignore[arg-type]


def dots_of(ax: Axes) -> list[PathCollection]:
    return [points for points in ax.collections if isinstance(points, PathCollection)]


def test_every_method_has_a_row_in_every_panel(made: list[Record]) -> None:
    a, b = made
    figure = figures.side_by_side({"class": [a, b], "task": [b, named(a, "third")]})
    first, second = figure.axes
    assert [text.get_text() for text in first.get_yticklabels()] == [a.label, b.label, "third"]
    assert first.get_title() == "class (n = 3)" and second.get_title() == "task (n = 3)"
    rows = [offset for points in dots_of(second) for offset in np.asarray(points.get_offsets()).tolist()]
    assert {row for _, row in rows} == {1.0, 2.0}
    values = sorted(x for x, row in rows if row == 2.0)
    assert values == pytest.approx(sorted(a.metric("Acc").tolist()))


def test_dots_lie_at_seconds_and_accuracy_and_grow_with_what_is_carried(made: list[Record]) -> None:
    light = named(made[0], "light", bytes={"network": 2**18, "optimiser": 2**30}, cpu_seconds=3.0)
    heavy = named(made[0], "heavy", bytes={"network": 2**18, "buffer": 2**22}, cpu_seconds=30.0)
    assert carried(light) == 2**18
    figure = figures.accuracy_against_compute({"class": [light, heavy]}, ["heavy"])
    (ax,) = figure.axes
    dots = dots_of(ax)
    assert [tuple(dot.get_offsets()[0]) for dot in dots] == [
        pytest.approx((1.0, light.metric("Acc").mean())),
        pytest.approx((10.0, heavy.metric("Acc").mean())),
    ]
    assert dots[1].get_sizes()[0] > dots[0].get_sizes()[0]
    assert [text.get_text() for text in ax.texts] == ["1", "2"]
    assert [tuple(text.xy) for text in ax.texts] == [tuple(dot.get_offsets()[0]) for dot in dots]
    assert "1\u00a0light" in figure.get_supxlabel() and "2\u00a0heavy" in figure.get_supxlabel()
    grey, coloured = (dot.get_facecolor()[0, :3].tolist() for dot in dots)
    assert len(set(grey)) == 1 and len(set(coloured)) > 1


def test_questions_tell_how_many_answers_compete() -> None:
    pictures = [[torch.rand(1, 4, 4) for _ in range(2)] for _ in range(3)]
    names = [["cat", "dog"], ["car", "bus"], ["oak", "elm"]]
    axes = figures.questions(pictures, names, ("class", "task", "domain")).axes
    assert len(axes) == 6
    assert axes[3].get_xlabel().split("\n") == ["bus", "class: bus of 4", "task: bus of 2", "domain: 1 of 2"]
