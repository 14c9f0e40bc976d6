"""Figures draw what they are given: every panel, every label, and a film that needs no network."""

import re

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cllib import figures, ledger
from cllib.experiments import compare, run, vary
from cllib.learners.heads import LearnerConfig
from cllib.models.classic import ClassicConfig
from cllib.models.memory_head import MemoryHeadConfig
from cllib.results import Record
from cllib.streams import plane_stream, thinned
from cllib.watching import Snapshots

STREAM = thinned(plane_stream("modes-cdi"), 20)
MH, LP = LearnerConfig(MemoryHeadConfig(units=4)), LearnerConfig(ClassicConfig("lp"))
STEP = 0.5


@pytest.fixture(scope="module")
def made() -> list[Record]:
    return compare("table", STREAM, {"lp": LP, "MH": MH, "MH m=8": vary(MH, units=8)}, [1, 2, 3], "quick", None)


@pytest.fixture(scope="module")
def shots() -> dict[str, Snapshots]:
    grid = figures.plane_grid(STEP)
    heads = {"linear": LP, "MH": MH}
    made = {name: Snapshots(grid, [0, 7, *figures.ends(STREAM)]) for name in heads}
    for name, config in heads.items():
        run(STREAM, [config], [0], watch=made[name])
    return made


def visible(figure: Figure) -> list:
    return [ax for ax in figure.axes if ax.get_visible()]


def test_grid_runs_along_x_first() -> None:
    grid = figures.plane_grid(STEP)
    side = round(len(grid) ** 0.5)
    assert side**2 == len(grid) and (grid.view(side, side, 2)[0, :, 0].diff() > 0).all()
    assert torch.equal(grid[0], torch.tensor([-1.01, -1.01]))


def test_released_grid_has_its_size() -> None:
    assert len(figures.plane_grid(0.01)) == 203**2


def test_stream_has_a_panel_per_step() -> None:
    drawn = visible(figures.show_stream(STREAM))
    assert [ax.get_title() for ax in drawn][1] == f"2: c1 d0, n = {len(STREAM.experiences[1])}"
    assert len(drawn) == 8
    assert len(visible(figures.show_stream(plane_stream("modes-iid")))) == 1


def test_surfaces_has_a_row_per_head_and_stars_on_the_keys(shots: dict[str, Snapshots]) -> None:
    figure = figures.surfaces(shots, STREAM, STEP)
    assert len(figure.axes) == 16 and "after 3" in figure.axes[2].get_title()
    stars = figure.axes[15].collections[-1].get_offsets()
    np.testing.assert_allclose(stars, shots["MH"].keys[len(STREAM)])
    image = figure.axes[15].images[0].get_array()
    np.testing.assert_array_equal(image.ravel(), shots["MH"].classes[len(STREAM)])


def test_film_holds_all_frames_and_asks_no_other_host(shots: dict[str, Snapshots]) -> None:
    html = figures.film(shots, STREAM, STEP, "what it shows").data
    assert html.count("data:image/png;base64,") == len(shots["MH"].classes) + 1
    assert not re.search(r"https?://", html)
    assert 'alt="what it shows"' in html and f'max="{len(shots["MH"].classes) - 1}"' in html


def test_numbers_become_figures(made: list[Record]) -> None:
    assert len(visible(figures.confusion(made[:2], STREAM))) == 3  # two matrices and a colour bar
    assert len(figures.online(made, STREAM).axes[0].lines) == 3 + 7
    bars = figures.intervals(made)
    assert [label.get_text() for label in bars.axes[0].get_yticklabels()] == ["lp", "MH", "MH m=8"]
    judged = ledger.ledger("01_memory_head", made)
    assert (
        len(visible(figures.beside_published(judged[judged["source"] == "figure 6"], ["modes-ci", "modes-cdi"]))) == 2
    )
    assert figures.verdicts(judged).axes[0].patches


def test_drawing_leaves_no_open_figure(made: list[Record]) -> None:
    before = plt.get_fignums()
    figures.intervals(made)
    assert plt.get_fignums() == before


def test_attention_regions_are_the_nearest_keys() -> None:
    keys = np.array([[-0.8, 0.0], [0.8, 0.0]])
    alpha = np.full(len(figures.plane_grid(STEP)), 0.7)
    winners = figures.attention_regions(keys, alpha, STEP, ("who", "how")).axes[0].images[0].get_array()
    assert (winners[:, 0] == 0).all() and (winners[:, -1] == 1).all()
