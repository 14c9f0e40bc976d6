"""Noise versions of the ns- data sets."""

import pytest
import torch

from cllib.datasets.noise import EFFECTIVE_STD, add_noise, noise_generator, noise_versions
from cllib.errors import UserError


def test_levels_are_the_papers() -> None:
    assert pytest.approx((0, 0.25 * 0.1, 0.5 * 0.2)) == EFFECTIVE_STD


def test_noise_has_the_level_asked_for_and_stays_within_zero_and_one() -> None:
    grey = torch.full((50, 3, 16, 16), 0.5)
    original, weak, strong = noise_versions(grey)
    assert torch.equal(original, grey)
    assert weak.std().item() == pytest.approx(0.025, rel=0.02) and strong.std().item() == pytest.approx(0.1, rel=0.02)
    assert weak.mean().item() == pytest.approx(0.5, abs=1e-3)
    black, white = (
        add_noise(torch.zeros(9, 99), 0.1, noise_generator(0, 0.1)),
        add_noise(torch.ones(9, 99), 0.1, noise_generator(0, 0.1)),
    )
    assert black.min() == 0 and 0.4 < (black == 0).float().mean() < 0.6
    assert white.max() == 1 and 0.4 < (white == 1).float().mean() < 0.6


def test_noise_does_not_depend_on_the_batch_cut() -> None:
    x = torch.full((7, 3, 5, 5), 0.5)
    whole = add_noise(x, 0.1, noise_generator(3, 0.1))
    draws = noise_generator(3, 0.1)
    assert torch.equal(torch.cat([add_noise(part, 0.1, draws) for part in x.split([2, 4, 1])]), whole)


def test_seeds_levels_and_samples_draw_independent_noise() -> None:
    x = torch.full((2, 4000), 0.5)
    one, other = (list(noise_versions(x, (0.05, 0.1), seed)) for seed in (0, 1))
    draws = torch.cat([*one, *other]) - 0.5  # [8, 4000]
    correlation = torch.corrcoef(draws) - torch.eye(8)
    assert correlation.abs().max() < 0.08  # 5 standard errors
    assert torch.equal(one[1], next(noise_versions(x, (0.1,), 0)))  # a level alone is the level among others


@pytest.mark.parametrize("std", [-0.1, float("nan"), "0.1"])
def test_an_impossible_level_is_refused(std: float) -> None:
    with pytest.raises(UserError, match="noise"):
        add_noise(torch.zeros(1, 1), std, torch.Generator())
