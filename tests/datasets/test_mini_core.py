"""mini-CORe: how many films, of what, and that they look like films."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cllib.datasets import digits, mini_core
from cllib.datasets.clips import Clip, Clips
from cllib.errors import UserError
from cllib.randomness import generator


@pytest.fixture(scope="module")
def data() -> Clips:
    return mini_core.load()


def film(data: Clips, clip: Clip) -> Tensor:
    """Its frames, `[frames, 3, 32, 32]`, as floats."""
    return data.images[list(clip.frames)].float()


def test_sizes_are_those_of_the_specification(data: Clips) -> None:
    assert data.images.shape == (6600, 3, 32, 32) and data.images.dtype == torch.uint8
    assert sum(map(len, data.of(data.train))) == 4800 and sum(map(len, data.of(data.test))) == 1800
    assert (len(data.of(data.train)), len(data.of(data.test))) == (400, 150) and data.test == (3, 7, 10)
    assert not set(data.train) & set(data.test) and sorted(data.train + data.test) == list(range(1, 12))
    assert {(clip.session, clip.label) for clip in data.clips} == {(s, c) for s in range(1, 12) for c in range(50)}
    assert [row for clip in data.clips for row in clip.frames] == list(range(6600))  # each image in one film


def test_names_go_category_by_category(data: Clips) -> None:
    assert data.categories == tuple("0123456789") and data.each == 5
    assert data.names[:6] == ("0a", "0b", "0c", "0d", "0e", "1a") and len(set(data.names)) == 50


def test_films_are_the_same_every_time_and_others_with_another_seed(data: Clips) -> None:
    again, other = mini_core.load(), mini_core.load(seed=1)
    assert torch.equal(data.images, again.images) and data.clips == again.clips == other.clips
    assert (data.images != other.images).flatten(1).any(1).all()


def test_first_frames_lengthen_the_first_batch_and_change_nothing_else(data: Clips) -> None:
    longer = mini_core.load(first_frames=40)
    first = [clip for clip in longer.clips if len(clip) == 40]
    assert [(clip.session, clip.label) for clip in first] == [(1, 5 * digit) for digit in range(10)]
    assert longer.images.shape[0] == 6600 + 10 * 28
    for old, new in zip(data.clips, longer.clips, strict=True):
        assert (old.session, old.label) == (new.session, new.label)
        assert len(new) == 40 or torch.equal(film(data, old), film(longer, new))


def test_a_film_moves_in_small_steps(data: Clips) -> None:
    for clip in data.clips:
        frames = film(data, clip)
        steps = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
        whole = (frames[-1] - frames[0]).abs().mean()
        assert 0 < steps.max() < 0.3 * whole  # eleven steps
    ways = {clip: film(data, clip) for clip in data.clips if clip.session == 1}
    assert all((a[0] - b[0]).abs().mean() > 2 for a, b in pairwise(ways.values()))  # another object each


@given(st.integers(1, 50), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_poses_lie_evenly_between_two_and_inside_their_limits(frames: int, seed: int) -> None:
    moves = mini_core.sweep(frames, generator(seed, "test"))
    assert moves.shape == (frames, 2, 3) and moves[:, :, 2].abs().max() <= 0.25
    zoom = torch.linalg.det(moves[:, :, :2]).sqrt() / 1.35
    turn = torch.atan2(moves[:, 1, 0], moves[:, 0, 0]).rad2deg()
    assert (zoom.log() / torch.tensor(1.2).log()).abs().max() < 1.001 and turn.abs().max() < 20.001
    for path in (moves[:, 0, 2], moves[:, 1, 2], zoom.log(), turn):
        even = torch.linspace(path[0].item(), path[-1].item(), frames)
        assert torch.allclose(path, even, atol=1e-4)


def test_every_film_moves_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    white = torch.ones(3, 1, 1)
    monkeypatch.setattr(mini_core, "style", lambda draws: (white, 0 * white, torch.zeros(3, 32, 32)))
    films = [mini_core.load(frames=2, first_frames=2, seed=seed).images.view(11, 50, -1) for seed in (0, 1)]
    of_an_object = torch.cat(films).transpose(0, 1)  # [50, 22, ...]
    assert all(len(own.unique(dim=0)) == 22 for own in of_an_object)


def test_a_session_has_its_own_surroundings(data: Clips) -> None:
    corners = {}
    for session in mini_core.SESSIONS:
        rows = [row for clip in data.of((session,)) for row in clip.frames]
        corners[session] = {tuple(colour) for colour in data.images[rows][:, :, 0, 0].tolist()}
    assert all(len(colours) == 1 for colours in corners.values())  # no object reaches into the corner
    assert len(set.union(*corners.values())) == 11


@pytest.mark.parametrize("seed", range(20))
def test_figure_and_ground_can_be_told_apart(seed: int) -> None:
    figure, ground, texture = mini_core.style(generator(seed, "test"))
    assert figure.shape == ground.shape == (3, 1, 1) and texture.shape == (3, 32, 32)
    assert (figure - ground).abs().sum() > 0.9 and texture.abs().max() < 0.5


def test_what_is_pretrained_on_is_no_object() -> None:
    objects, others = mini_core.samples()
    assert objects.shape == (50, 1, 8, 8) and others.shape == (100, 1, 8, 8)
    both = torch.cat([objects, others]).flatten(1)
    assert len(both.unique(dim=0)) == 150
    x, y = digits.load()
    of = {tuple(sample): label for sample, label in zip(x.flatten(1).tolist(), y.tolist(), strict=True)}
    labels = [of[tuple(sample)] for sample in both.tolist()]
    assert labels == [k // 5 for k in range(50)] + [k // 10 for k in range(100)]


def test_a_film_shows_the_sample_of_its_object(data: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, others = mini_core.samples()
    only = torch.zeros_like(objects)
    only[7] = objects[7]
    monkeypatch.setattr(mini_core, "samples", lambda: (only, others))
    alone = mini_core.load()
    for old, new in zip(data.clips, alone.clips, strict=True):
        frames = film(alone, new)
        if new.label == 7:
            assert torch.equal(frames, film(data, old))
        else:
            assert (frames == frames[0]).all()  # nothing there that moves


def test_pictures_to_pretrain_on_are_of_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = mini_core.others(300)
    assert x.shape == (300, 3, 32, 32) and x.dtype == torch.uint8 and y.shape == (300,)
    assert y.min() >= 0 and y.max() < 100 and len(y.unique()) > 80
    assert torch.equal(x, mini_core.others(300)[0]) and not torch.equal(x, mini_core.others(300, seed=1)[0])
    assert len(x[:, :, 0, 0].unique(dim=0)) > 200  # surroundings of its own
    objects, others = mini_core.samples()
    monkeypatch.setattr(mini_core, "samples", lambda: (1 - objects, others))
    assert torch.equal(x, mini_core.others(300)[0])
    monkeypatch.setattr(mini_core, "samples", lambda: (objects, 1 - others))
    assert (x != mini_core.others(300)[0]).flatten(1).any(1).all()


def test_colours_are_mixed_by_ink() -> None:
    figure, ground = torch.tensor([1.0, 0.0, 0.5]).view(3, 1, 1), torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1)
    still = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    for ink, expected in ((1.0, [255, 0, 128]), (0.0, [0, 255, 128])):
        picture = mini_core.render(torch.full((1, 1, 8, 8), ink), still, figure, ground, torch.zeros(3, 32, 32))
        assert picture[0, :, 16, 16].tolist() == expected


@pytest.mark.parametrize("options", [{"frames": 0}, {"first_frames": 0}, {"frames": 1.5}])
def test_impossible_options_are_refused(options: dict[str, int]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=rf"^{name} = {value}: must be a whole number at least 1$"):
        mini_core.load(**options)
