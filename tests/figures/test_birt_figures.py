"""Pictures of BiRT show what they are given, say over how many seeds, and leave nothing open."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cllib import figures
from cllib.calibration import calibration_error, reliability
from cllib.figures.diagrams import REPLAYED
from cllib.metrics import interval
from cllib.results import Record

TESTS = np.array(
    [
        [[0.9, 0.0, 0.1], [0.6, 0.8, 0.0], [0.3, 0.6, 0.9]],
        [[1.0, 0.0, 0.1], [0.8, 0.6, 0.0], [0.5, 0.4, 0.7]],
    ]
)
BEFORE = np.array(
    [
        [[0.9, 0.0, 0.1], [0.2, 1.0, 0.0], [0.0, 0.3, 0.9]],
        [[1.0, 0.0, 0.1], [0.4, 0.8, 0.0], [0.2, 0.1, 0.9]],
    ]
)
SEMANTIC = np.clip(TESTS - 0.05, 0, 1)
CONFUSION = [
    [[2, 0, 0, 0, 1, 1], [0, 3, 0, 1, 0, 0], [0, 0, 4, 0, 0, 0], [0, 0, 0, 4, 0, 0], [0, 0, 0, 0, 4, 0], [0] * 5 + [4]],
    [[4, 0, 0, 0, 0, 0], [0, 4, 0, 0, 0, 0], [0, 0, 0, 0, 2, 2], [0, 0, 0, 0, 2, 2], [0, 0, 0, 0, 4, 0], [0] * 5 + [4]],
]
COLOURS = [colors.to_hex(c) for c in figures.base.CLASS_COLOURS]


@pytest.fixture(autouse=True)
def the_books_look() -> Iterator[None]:
    """As in a notebook; and no figure stays open."""
    with plt.rc_context(), pd.option_context("display.max_colwidth", 50, "display.precision", 6):
        figures.style()
        before = plt.get_fignums()
        yield
        assert plt.get_fignums() == before


@pytest.fixture
def record(made: list[Record]) -> Record:
    """BiRT over two seeds and three tasks of two classes."""
    moments = {"before fine-tuning": BEFORE.tolist(), "semantic memory": SEMANTIC.tolist()}
    own: dict[str, Any] = {"label": "BiRT", "seeds": [3, 4], "confusion": CONFUSION, "bytes": {"buffer": 4096}}
    learner = {"settings": {"replay": "representations", "dtype": "float32"}}
    return replace(made[0], test=TESTS.tolist(), moments=moments, learner=learner, **own)


def plain(record: Record, **changes: Any) -> Record:
    """The same without moments of its own."""
    return replace(record, **{"label": "joint", "moments": {}, **changes})


def drawn(figure: Figure) -> list[Any]:
    """The panels, after everything was really drawn."""
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    return [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]


def test_the_flow_names_all_noises() -> None:
    (ax,) = drawn(figures.flow())
    said = " ".join(text.get_text() for text in ax.texts)
    assert {"M", "T", "A", "S", "X"} <= set(re.findall(r"\b[MTASX]\b", said))
    assert len(ax.patches) == len(REPLAYED.boxes)


def test_representations_are_maps_of_patches_in_three_colours() -> None:
    draws = torch.Generator().manual_seed(0)
    images, r = torch.rand(4, 1, 8, 8, generator=draws), 0.01 * torch.randn(4, 16, 5, generator=draws)
    # one direction explains nearly all: from left to right, row after row
    r += torch.arange(16.0)[:, None] * torch.tensor([0.0, 0.0, 0.0, 0.6, 0.8])
    panels = drawn(figures.represented(images, r, ["a", "b", "c", "d"]))
    assert [ax.get_title() for ax in panels] == ["a", "b", "c", "d", "", "", "", ""]
    assert [ax.get_ylabel() for ax in panels] == ["image", "", "", "", "r", "", "", ""]
    for ax, image in zip(panels, images, strict=False):
        np.testing.assert_allclose(ax.images[0].get_array(), image.expand(3, -1, -1).permute(1, 2, 0))
    maps = [np.asarray(ax.images[0].get_array()) for ax in panels[4:]]
    assert all(one.shape == (4, 4, 3) and one.min() >= 0 and one.max() <= 1 for one in maps)
    red = maps[0][..., 0].ravel()
    red = red if red[0] < red[-1] else 1 - red
    np.testing.assert_allclose(red, np.clip((np.arange(16) - 0.3) / 14.4, 0, 1), atol=0.05)
    same = drawn(figures.represented(images.expand(-1, 3, -1, -1), r, ["a", "b", "c", "d"]))
    np.testing.assert_allclose(same[4].images[0].get_array(), maps[0])


def test_every_representation_needs_a_title() -> None:
    before = plt.get_fignums()
    with pytest.raises(ValueError):
        figures.represented(torch.rand(2, 1, 4, 4), torch.rand(2, 4, 6), ["one"])
    for number in set(plt.get_fignums()) - set(before):
        plt.close(number)


def test_the_sawtooth_falls_before_fine_tuning_and_rises_after_it(record: Record) -> None:
    figure = figures.sawtooth([record, plain(record)])
    (ax,) = drawn(figure)
    lines = {line.get_label(): line for line in ax.lines}
    after, before = [0.95, 0.7, (0.3 + 0.6 + 0.9 + 0.5 + 0.4 + 0.7) / 6], [0.95, 0.6, 0.4]
    zigzag = lines["BiRT (n = 2)"].get_ydata()
    np.testing.assert_allclose(zigzag, np.stack([before, after], 1).ravel())
    at = lines["BiRT (n = 2)"].get_xdata()
    assert (np.diff(at) > 0).all() and at[1::2].tolist() == [1, 2, 3]
    np.testing.assert_allclose(lines["joint (n = 2)"].get_ydata(), after)
    markers = {line.get_marker(): line for line in ax.lines if line.get_linestyle() == "None"}
    np.testing.assert_allclose(markers["v"].get_ydata(), before)
    np.testing.assert_allclose(markers["^"].get_ydata(), after)
    assert markers["v"].get_markerfacecolor() == "white"  # empty: before fine-tuning
    np.testing.assert_allclose(lines["guessing"].get_ydata(), [1 / 2, 1 / 4, 1 / 6])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["BiRT (n = 2)", "joint (n = 2)", "guessing"]
    band = ax.collections[0].get_paths()[0].vertices
    mean, half = interval([1.8 / 3, 1.6 / 3])
    edges = band[np.isclose(band[:, 0], 3), 1]
    assert half > 0.1 and {*edges.round(6)} == {round(mean - half, 6), round(mean + half, 6)}


def test_a_sawtooth_of_one_seed_has_no_band_and_without_tuning_no_teeth(record: Record) -> None:
    one = replace(record, seeds=[3], test=TESTS[:1].tolist(), moments={"before fine-tuning": TESTS[:1].tolist()})
    (ax,) = drawn(figures.sawtooth([one]))
    (line,) = (line for line in ax.lines if line.get_label() == "BiRT (n = 1)")
    np.testing.assert_allclose(line.get_ydata(), [0.9, 0.7, 0.6])
    band = ax.collections[0].get_paths()[0].vertices
    assert set(band[:, 1].round(6)) <= {0.9, 0.7, 0.6}


def test_memories_are_three_heat_maps_of_means(record: Record) -> None:
    panels = drawn(figures.memories(record))
    titles = ["BiRT: f_w before fine-tuning (n = 2)", "BiRT: f_w (n = 2)", "BiRT: f_s (n = 2)"]
    assert [ax.get_title() for ax in panels] == titles
    for ax, matrices in zip(panels, (BEFORE, TESTS, SEMANTIC), strict=True):
        np.testing.assert_allclose(ax.collections[0].get_array().reshape(3, 3), matrices.mean(0))
        assert ax.collections[0].get_clim() == (0, 1)
        assert [text.get_text() for text in ax.texts] == [f"{value:.2f}" for value in matrices.mean(0).ravel()]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("tested on task", "after task")
        assert [text.get_text() for text in ax.get_yticklabels()] == ["1", "2", "3"]


def test_memories_that_a_method_does_not_have_are_left_out(record: Record) -> None:
    (ax,) = drawn(figures.memories(plain(record)))
    assert ax.get_title() == "joint: f_w (n = 2)"
    many = plain(record, test=np.full((2, 12, 12), 0.5).tolist())
    (ax,) = drawn(figures.memories(many))
    assert not ax.texts and ax.collections[0].get_array().size == 144


def test_preferred_tasks_are_bars_of_shares_beside_what_they_should_be(record: Record) -> None:
    uneven = [[[4, 0, 0, 0, 0, 0]] * 4 + [[0, 0, 0, 0, 1, 1]] * 2] * 2  # the last task has half as many samples
    panels = drawn(figures.preferred([record, plain(record, confusion=uneven)], [2, 2, 2]))
    assert [ax.get_title() for ax in panels] == ["BiRT\n(n = 2)", "joint\n(n = 2)"]
    heights = [[bar.get_height() for bar in ax.patches] for ax in panels]
    shares = np.array([[5, 9, 10], [8, 0, 16]]) / 24
    np.testing.assert_allclose(heights[0], shares.mean(0))
    np.testing.assert_allclose(heights[1], [0.8, 0, 0.2])
    for ax, wanted in zip(panels, ([1 / 3] * 3, [0.4, 0.4, 0.2]), strict=True):
        line = next(line for line in ax.lines if line.get_drawstyle() != "default")
        np.testing.assert_allclose(line.get_ydata(), wanted)
    dots = [line for line in panels[0].lines if line.get_marker() == "."]
    assert len(dots) == 2, "one a seed"
    for dot, share in zip(dots, shares, strict=True):
        np.testing.assert_allclose(dot.get_ydata(), share)
        assert list(dot.get_xdata()) == [1, 2, 3]


def test_preferred_tasks_may_have_different_widths(record: Record) -> None:
    (ax,) = drawn(figures.preferred([record], [4, 2]))
    np.testing.assert_allclose(
        [bar.get_height() for bar in ax.patches], [(14 / 24 + 8 / 24) / 2, (10 / 24 + 16 / 24) / 2]
    )


def test_balance_has_a_dot_a_seed_and_a_cross_a_method(record: Record) -> None:
    (ax,) = drawn(figures.balance([record, plain(record)]))
    crosses = [line for line in ax.lines if line.get_marker() == "X"]
    dots = [line for line in ax.lines if line.get_marker() == "."]
    stability, plasticity = np.array([0.45, 0.45]), np.array([(0.9 + 0.8 + 0.9) / 3, (1.0 + 0.6 + 0.7) / 3])
    np.testing.assert_allclose(dots[0].get_xdata(), stability)
    np.testing.assert_allclose(dots[0].get_ydata(), plasticity)
    np.testing.assert_allclose([crosses[0].get_xdata()[0], crosses[0].get_ydata()[0]], [0.45, plasticity.mean()])
    assert [line.get_label() for line in crosses] == ["BiRT (n = 2)", "joint (n = 2)"]
    lines = next(c for c in ax.collections if hasattr(c, "levels"))
    np.testing.assert_allclose(lines.levels, np.arange(0.1, 1, 0.1))
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        s, p = path.vertices.T
        np.testing.assert_allclose(2 * s * p / (s + p), level, atol=0.01)


def test_robustness_has_a_panel_a_kind_and_a_line_a_method() -> None:
    rows = [
        (kind, method, level, 0.9 - 0.1 * level - 0.3 * (method == "joint") + 0.02 * seed, seed)
        for kind in ("noise", "PGD")
        for method in ("BiRT", "joint")
        for level in (0, 1, 2)
        for seed in (0, 1)
    ]
    figure = figures.robust(pd.DataFrame(rows, columns=["kind", "method", "level", "accuracy", "seed"]))
    panels = drawn(figure)
    assert [ax.get_title() for ax in panels] == ["noise", "PGD"]
    assert [ax.get_xlabel() for ax in panels] == ["severity", "eps, in 255ths"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["BiRT", "joint"]
    handles = [colors.to_hex(handle.get_color()) for handle in legend.legend_handles]
    assert handles == COLOURS[:2]
    for ax in panels:
        lines = {colors.to_hex(line.get_color()): line for line in ax.lines if len(line.get_xdata()) == 3}
        for colour, start in zip(handles, (0.91, 0.61), strict=True):
            np.testing.assert_allclose(lines[colour].get_ydata(), [start, start - 0.1, start - 0.2])


def test_reliability_has_a_dot_a_bin_and_the_error_above_it() -> None:
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.9, 0.1]])
    tables = {"BiRT": reliability(p, torch.tensor([0, 0, 1, 1])), "joint": reliability(p, torch.tensor([0, 0, 0, 0]))}
    errors = {name: calibration_error(table) for name, table in tables.items()}
    panels = drawn(figures.reliable(tables, errors))
    assert [ax.get_title() for ax in panels] == [f"{name}\nECE {errors[name]:.3f}" for name in tables]
    assert panels[0].get_title() == f"BiRT\nECE {3 / 4 * (0.9 - 2 / 3) + 1 / 4 * 0.6:.3f}"
    np.testing.assert_allclose(panels[0].collections[0].get_offsets(), [[0.6, 0], [0.9, 2 / 3]], atol=1e-6)
    sizes = panels[0].collections[0].get_sizes()
    assert sizes[1] == pytest.approx(3 * sizes[0])
    np.testing.assert_allclose(panels[0].lines[0].get_xydata(), [[0, 0], [1, 1]])


def test_anatomy_counts_sums_and_moves() -> None:
    shares = np.linspace(0, 1, 1000)
    row = np.full(16, 1 / 16)
    disturbed = {1.0: row + 1, 0.1: row + 0.1}
    logits, moved = np.array([1.0, -2.0, 0.5]), np.array([[1.1, -2.0, 0.4], [0.9, -2.1, 0.5]])
    left, middle, right = drawn(figures.anatomy(shares, row, disturbed, logits, moved))
    assert sum(bar.get_height() for bar in left.patches) == 1000 and left.get_ylabel() == "of 1,000 draws"
    told = [line.get_label() for line in middle.lines]
    assert told == [r"$\sigma$ = 1: sum 17.00", r"$\sigma$ = 0.1: sum 2.60", "undisturbed: sum 1.00"]
    for line, values in zip(middle.lines, (row + 1, row + 0.1, row), strict=True):
        np.testing.assert_allclose(line.get_ydata(), values)
    np.testing.assert_allclose(right.lines[-1].get_ydata(), logits)
    points = {(float(x), float(y)) for line in right.lines[:-1] for x, y in line.get_xydata()}
    assert points == {(float(c), float(y)) for values in moved for c, y in enumerate(values)}


def test_lags_have_a_dot_where_f_s_was_updated() -> None:
    runs = {"updates last": [(5, 1.0, 0), (6, 2.0, 0), (7, 0.1, 1), (8, 0.5, 1), (9, 0.2, 3)], "lost": [(5, 1.0, 0)]}
    (ax,) = drawn(figures.lags(runs))
    lines = {line.get_label(): line for line in ax.lines}
    assert {"updates last: 3 updates", "lost: 0 updates"} <= set(lines)
    np.testing.assert_allclose(lines["updates last: 3 updates"].get_xydata(), [row[:2] for row in runs["updates last"]])
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert dots[0].get_xydata().tolist() == [[7, 0.1], [9, 0.2]] and not len(dots[1].get_xdata())
    assert ax.get_ylim()[0] == 0


def test_bytes_are_a_line_a_kind_of_memory_from_small_to_large(record: Record) -> None:
    def stored(replay: str, dtype: str, size: int, level: float) -> Record:
        learner = {"settings": {"replay": replay, "dtype": dtype}}
        return replace(record, learner=learner, bytes={"buffer": size}, test=(0 * TESTS + level).tolist())

    made = [
        stored("representations", "float32", 8192, 0.8),
        stored("representations", "float32", 2048, 0.6),
        stored("images", "float32", 512, 0.4),
        stored("representations", "int8", 1024, 0.7),
    ]
    (ax,) = drawn(figures.bytes_against(made))
    found = {c.get_label(): c.lines[0].get_xydata().tolist() for c in ax.containers}
    assert list(found) == ["r, float32", "images", "r, int8"]
    np.testing.assert_allclose(found["r, float32"], [[2, 0.6], [8, 0.8]])
    np.testing.assert_allclose(found["images"], [[0.5, 0.4]])
    np.testing.assert_allclose(found["r, int8"], [[1, 0.7]])
    assert ax.get_xscale() == "log" and ax.get_ylabel() == "accuracy at the end (n = 2)"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(found)


def test_bytes_have_the_interval_of_the_accuracy(record: Record) -> None:
    (ax,) = drawn(figures.bytes_against([record]))
    mean, half = interval([0.6, 1.6 / 3])
    (segment,) = ax.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(segment, [[4, mean - half], [4, mean + half]])


@pytest.mark.parametrize(("side", "place"), [(4, (2, 2)), (8, (4, 4)), (7, (3, 3))])
def test_gated_attention_is_looked_at_from_the_middle(side: int, place: tuple[int, int]) -> None:
    n = side**2
    maps = torch.arange(float(2 * 3 * n * n)).view(2, 3, n, n)
    gates = torch.tensor([[0.73, 0.5, 0.1], [0.2, 0.994, 0.0]])
    panels = drawn(figures.gated_attention(maps, gates, ["layer 1 (g)", "layer 2 (f)"]))
    assert [ax.get_title() for ax in panels] == ["0.73", "0.50", "0.10", "0.20", "0.99", "0.00"]
    assert [ax.get_ylabel() for ax in panels] == ["layer 1 (g)", "", "", "layer 2 (f)", "", ""]
    middle = place[0] * side + place[1]
    for ax, own in zip(panels, maps.flatten(0, 1), strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), own[middle].view(side, side))
        assert ax.lines[0].get_xydata().tolist() == [[place[1], place[0]]]
        assert ax.images[0].get_clim()[0] == 0
