"""Images changed at random: what comes out is a change of what went in, and random numbers have one source."""

import random
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cllib.augment import LIGHT, augmented, flipped, moved, randaugmented, recut
from cllib.errors import UserError
from cllib.randomness import generator

MOVES = ("none", "shift", "crop", "resized crop")


def images(count: int = 6, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0) -> Tensor:
    return torch.rand(count, *shape, generator=generator(seed, "images"))


def draws(seed: int = 0) -> torch.Generator:
    return generator(seed, "augment")


def offsets(before: Tensor, after: Tensor, most: int) -> list[tuple[int, int]]:
    """By how much an image was moved, down and right: all that fit."""
    height, width = before.shape[-2:]
    padded = F.pad(before, [most] * 4)
    reach = range(2 * most + 1)
    return [
        (most - y, most - x)
        for y, x in product(reach, reach)
        if torch.equal(padded[..., y : y + height, x : x + width], after)
    ]


def test_no_augmentation_is_the_same_images() -> None:
    x, one = images(), draws()
    assert augmented(x, "none", one) is x and torch.equal(one.get_state(), draws().get_state())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3), st.integers(5, 9), st.integers(5, 9))
def test_every_image_is_moved_by_a_little_and_black_comes_in(
    seed: int, most: int, channels: int, height: int, width: int
) -> None:
    x = images(4, (channels, height, width), seed) + 0.01  # nothing is black
    before, found = x.clone(), moved(x, most, draws(seed))
    assert torch.equal(x, before) and found.shape == x.shape and found.is_contiguous()
    for one, other in zip(x, found, strict=True):
        if not other.any():  # moved out of sight
            assert most >= min(height, width)
            continue
        ((down, right),) = offsets(one, other, most)
        black = int((other == 0).all(0).sum())
        assert black == height * width - (height - abs(down)) * (width - abs(right))


@pytest.mark.parametrize(("kind", "most"), [("shift", 1), ("crop", 4)])
def test_images_are_moved_in_all_directions_alike(kind: str, most: int) -> None:
    count, ways = 4000, (2 * most + 1) ** 2
    x = images(1, (1, 10, 10)).expand(count, -1, -1, -1) + 0.01
    found = augmented(x, kind, draws())
    seen = torch.zeros(2 * most + 1, 2 * most + 1)
    wanted = F.pad(x[0], [most] * 4).unfold(1, 10, 1).unfold(2, 10, 1)[0].flatten(0, 1)  # [ways, 10, 10]
    which = (found[:, 0, None] == wanted).flatten(2).all(2)
    assert (which.sum(1) == 1).all()
    seen = which.float().mean(0)
    assert (abs(seen - 1 / ways) < 5 * (1 / ways / count) ** 0.5).all(), "binomial counts, 5 sigma"


def test_every_other_image_is_mirrored() -> None:
    x = images(2000)
    found = flipped(x, draws())
    same = (found == x).flatten(1).all(1)
    mirrored = (found == x.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert abs(float(mirrored.float().mean()) - 0.5) < 5 * 0.5 / 2000**0.5, "a binomial count, 5 sigma"


def test_a_part_of_an_image_is_enlarged() -> None:
    ramp = torch.linspace(0, 1, 40).expand(40, 40)
    x = torch.stack([ramp, ramp.mT]).expand(60, -1, -1, -1)  # channels tell columns and rows
    found = recut(x, draws())
    assert found.shape == x.shape and found.min() >= 0 and found.max() <= 1
    spans = []
    for along in (found[:, 0], found[:, 1].mT):
        assert (along.diff(dim=2)[..., 2:-2] > -1e-3).all(), "still a ramp"
        assert (along.diff(dim=1).abs() < 1e-3).all(), "and nothing else"
        spans.append(along.amax((1, 2)) - along.amin((1, 2)))  # about the side of the part
        assert 0.2 < float(spans[-1].min()) < 0.5 and float(spans[-1].max()) > 0.8 and spans[-1].max() <= 1
    shape = spans[0] / spans[1]
    assert 0.7 < float(shape.min()) < 0.85 and 1.18 < float(shape.max()) < 1.42, "3:4 to 4:3, of whole pixels"
    assert torch.equal(augmented(x, "resized crop", draws()), found)


@pytest.fixture
def numpy_seeded() -> Iterator[None]:
    """Numpy's own generator, from which timm picks its changes, at a known place."""
    before = np.random.get_state()
    np.random.seed(0)
    yield
    np.random.set_state(before)


@pytest.mark.usefixtures("numpy_seeded")
def test_randaugment_gives_images_again() -> None:
    x, before = images(20, (3, 12, 12)), random.getstate()
    found = randaugmented(x, draws())
    assert random.getstate() == before
    assert found.shape == x.shape and found.dtype == x.dtype and found.min() >= 0 and found.max() <= 1
    torch.testing.assert_close(found * 255, (found * 255).round())
    changed = [not torch.allclose(one, other, atol=1 / 255) for one, other in zip(x, found, strict=True)]
    assert sum(changed) > 10, "most of them are other images"
    assert randaugmented(x[:2].double(), draws()).dtype == torch.float64


@pytest.mark.usefixtures("numpy_seeded")
@pytest.mark.parametrize(("kind", "light"), [("published", "crop"), ("published large", "resized crop")])
def test_what_is_published_is_three_changes_one_after_the_other(kind: str, light: str) -> None:
    x, one = images(5, (3, 12, 12)), draws(4)
    wanted = augmented(x, light, one)
    wanted = randaugmented(flipped(wanted, one), one)
    np.random.seed(0)
    assert torch.equal(augmented(x, kind, draws(4)), wanted) and LIGHT[kind] == light


@pytest.mark.parametrize("kind", MOVES)
def test_random_numbers_come_from_one_generator(kind: str) -> None:
    x, found = images(4, (3, 12, 12)), []
    before = x.clone()
    for ambient in (1, 2):
        torch.manual_seed(ambient)
        random.seed(ambient)
        states = torch.get_rng_state(), random.getstate()
        found.append(augmented(x, kind, draws(7)))
        assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert torch.equal(found[0], found[1]) and torch.equal(x, before)
    one = draws(7)
    first, second = augmented(x, kind, one), augmented(x, kind, one)
    assert torch.equal(first, found[0]) and torch.equal(first, second) == (kind == "none")


@pytest.mark.parametrize("kind", ["published", "published large"])
def test_grey_images_have_no_colours_to_change(kind: str) -> None:
    with pytest.raises(UserError, match=r"^augment = 'published': takes colour images, not 1 channels$"):
        augmented(images(shape=(1, 8, 8)), kind, draws())


def test_an_unknown_kind_is_refused() -> None:
    for kind in ("flip", ""):
        with pytest.raises(UserError, match=f"augment = '{kind}': allowed are none, shift, crop, published"):
            augmented(images(), kind, draws())


def test_no_draw_of_randaugment_is_refused() -> None:
    """At the strongest magnitude posterize would keep 0 bits, which Pillow does not do: 2 % of those draws."""
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(1500, 3, 8, 8, generator=draws)
    assert augmented(x, "published", draws).shape == x.shape
