"""Features of enlarged, cut and flipped images: what the network is shown, how often, and what becomes of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cllib.datasets import features as cache
from cllib.datasets.backbones import Backbone, backbone
from cllib.datasets.cifar_features import cut, features, standardized
from cllib.datasets.images import to_float
from cllib.datasets.labelled import Labelled
from cllib.errors import UserError

SIDE = 20  # of the square: images are enlarged to 22


class Shown(nn.Module):
    """The pixels themselves as features, and a record of them."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.images.append(x.clone())
        return x.flatten(1)


@pytest.fixture
def net() -> Backbone:
    return Backbone("shown", Shown(), SIDE, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "no weights")


@pytest.fixture
def data() -> Labelled:
    draws = torch.Generator().manual_seed(0)
    train, test = (torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=draws) for n in (6, 4))
    return Labelled("noise", train, torch.arange(6) % 3, test, torch.arange(4) % 3, ("a", "b", "c"))


def enlarged(x: Tensor) -> Tensor:
    large = interpolate(to_float(x.permute(0, 2, 3, 1)), (22, 22), mode="bilinear", antialias=True)
    return (large - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / 0.2  # as the network was trained


def run(data: Labelled, net: Backbone, folder: Path, **options: object) -> Labelled:
    return features(data, net, folder=folder, progress=False, **options)  # type: ignore[arg-type]


def test_the_network_sees_squares_of_every_image_once_a_pass(data: Labelled, net: Backbone, tmp_path: Path) -> None:
    made = run(data, net, tmp_path, passes=3, batch_size=4)
    assert made.train_x.shape == (18, 3 * SIDE * SIDE) and made.train_x.dtype == torch.float32
    assert made.train_y.tolist() == data.train_y.tolist() * 3 and made.names == data.names
    seen, test = torch.cat(net.model.images).split([18, 4])
    torch.testing.assert_close(test, enlarged(data.test_x)[..., 1:21, 1:21])
    large = enlarged(data.train_x).repeat(3, 1, 1, 1)
    where = []
    for square, image in zip(seen, large, strict=True):
        options = {
            (top, left, flip): image[:, top : top + SIDE, left : left + SIDE].flip([-1] if flip else [])
            for top in range(3)
            for left in range(3)
            for flip in (False, True)
        }
        where += [place for place, option in options.items() if torch.allclose(square, option, atol=1e-6)]
    assert len(where) == 18 and len(set(where[:6])) > 1 and where[:6] != where[6:12]
    assert torch.equal(made.test_x, standardized(test.flatten(1)))
    assert torch.equal(made.train_x, standardized(seen.flatten(1)))


def test_draws_are_seeded_whatever_the_batch(data: Labelled, net: Backbone, tmp_path: Path) -> None:
    first = run(data, net, tmp_path / "a", passes=2, seed=5)
    again = run(data, net, tmp_path / "b", passes=2, seed=5, batch_size=1)
    other = run(data, net, tmp_path / "b", passes=2, seed=6)
    fewer = run(data, net, tmp_path / "c", passes=1, seed=5)
    torch.testing.assert_close(first.train_x, again.train_x)
    assert not torch.allclose(first.train_x, other.train_x) and torch.equal(first.test_x, other.test_x)
    assert torch.equal(fewer.train_x, first.train_x[:6])


def test_what_was_computed_is_read_back(data: Labelled, net: Backbone, tmp_path: Path) -> None:
    first = run(data, net, tmp_path, passes=2)
    shown = len(net.model.images)
    again = run(data, net, tmp_path, passes=2)
    assert len(net.model.images) == shown and torch.equal(first.train_x, again.train_x)
    assert len(list(tmp_path.glob("features-*.safetensors"))) == 3
    plain = cache.extract(data.test_x.permute(0, 2, 3, 1), net, (0.0,), folder=tmp_path, progress=False)
    assert plain.shape == (1, 4, 3 * SIDE * SIDE) and len(net.model.images) > shown  # not taken for the uncut ones


def test_a_real_network_makes_rows_of_features(data: Labelled, tmp_path: Path) -> None:
    made = run(data, backbone("test_resnet", "random", image_size=32), tmp_path, passes=2)
    assert made.train_x.shape == (12, made.shape[0]) and made.train_x.isfinite().all()
    assert made.train_x.std(0).max() > 0  # not the same for all


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 40), st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_rows_are_divided_by_their_variance(seed: int, n: int, d: int, scale: float) -> None:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + 3
    made = standardized(x)
    torch.testing.assert_close(made.mean(1), torch.zeros(n, dtype=torch.float64), atol=1e-6 / x.var(1).min(), rtol=0)
    torch.testing.assert_close(made.var(1, correction=0), 1 / x.var(1, correction=0))


def test_features_that_are_all_the_same_become_zeros() -> None:
    assert standardized(torch.full((2, 5), 0.25)).tolist() == [[0.0] * 5] * 2


@given(st.integers(1, 9), st.integers(0, 4), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_every_place_is_possible_and_none_outside(side: int, room: int, seed: int) -> None:
    whole = side + room
    x = torch.arange(float(whole * whole)).view(1, 1, whole, whole).repeat(300, 1, 1, 1)
    squares = cut(x, side, torch.Generator().manual_seed(seed))
    assert squares.shape == (300, 1, side, side)
    corner = squares[:, 0].amin((1, 2)).long()
    for place in (corner // whole, corner % whole):
        assert set(place.tolist()) == set(range(room + 1))
    flipped = squares[:, 0, 0, 0] > squares[:, 0, 0, -1]
    assert side == 1 or 90 < int(flipped.sum()) < 210


@pytest.mark.parametrize("options", [{"passes": 0}, {"passes": 1.5}, {"seed": -1}, {"batch_size": 0}])
def test_impossible_options_are_refused(
    data: Labelled, net: Backbone, tmp_path: Path, options: dict[str, object]
) -> None:
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=rf"^{name} = {value!r}: must be"):
        run(data, net, tmp_path, **options)


def test_grey_images_and_floats_are_refused(data: Labelled, net: Backbone, tmp_path: Path) -> None:
    grey = replace(data, train_x=data.train_x[:, :1], test_x=data.test_x[:, :1])
    floats = replace(data, train_x=data.train_x.float(), test_x=data.test_x.float())
    for wrong in (grey, floats):
        with pytest.raises(UserError, match=r"^noise: features need colour images"):
            run(wrong, net, tmp_path)
