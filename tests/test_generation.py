"""Scores of generators against closed forms, and dreams that belong to their class."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from cllib.generation import (
    dreams_of,
    f_scores,
    frechet,
    inception_score,
    log_likelihood,
    nearest,
    pictured,
    precision_recall,
    quality,
    runners_up,
)
from cllib.models.replay_vae import ReplayVAE


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_frechet_is_the_closed_form_of_gaussians_with_one_dimension_each() -> None:
    a = torch.randn(20_000, 2, generator=draws()) * torch.tensor([1.0, 2.0])
    b = torch.randn(20_000, 2, generator=draws(1)) * torch.tensor([3.0, 2.0]) + torch.tensor([0.0, 5.0])
    # means differ by 5, standard deviations by 2 and 0: 25 + 4; sampling error well below .5
    assert frechet(a, b) == pytest.approx(29, abs=0.5)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_inception_score_lies_between_one_and_the_number_of_classes() -> None:
    sure = 50 * torch.eye(4).repeat(5, 1)
    assert inception_score(sure) == pytest.approx(4)
    assert inception_score(torch.zeros(6, 4)) == pytest.approx(1)
    assert inception_score(sure[:1].repeat(9, 1)) == pytest.approx(1)


def test_precision_and_recall_of_the_same_and_of_other_samples() -> None:
    real = torch.randn(400, 3, generator=draws())
    again = torch.randn(400, 3, generator=draws(1))
    precision, recall = f_scores(*precision_recall(real, again))
    assert min(precision, recall) > 0.85
    apart = f_scores(*precision_recall(real, again + 100))
    assert max(apart) < 0.05


def test_covering_half_of_reality_costs_recall_not_precision() -> None:
    real = torch.cat([torch.randn(300, 2, generator=draws()), torch.randn(300, 2, generator=draws(1)) + 40])
    half = torch.randn(600, 2, generator=draws(2))
    precision, recall = f_scores(*precision_recall(real, half))
    assert precision > 0.85 and recall < 0.65


def test_the_curve_has_its_published_number_of_angles() -> None:
    precision, recall = precision_recall(torch.randn(60, 2, generator=draws()), torch.randn(60, 2, generator=draws(1)))
    assert precision.shape == recall.shape == (1001,)
    assert np.all((precision >= 0) & (precision <= 1) & (recall >= 0) & (recall <= 1))


@pytest.mark.parametrize("prior", ["standard", "classes"])
def test_log_likelihood_is_exact_where_the_decoder_ignores_the_code(prior: str) -> None:
    net = ReplayVAE(hidden=5, latent=2, gates=0.0, prior=prior).build((4,), 3)
    nn.init.zeros_(net.out.weight)
    nn.init.zeros_(net.out.bias)  # every pixel is a fair coin: log p(x | z) = -4 log 2 for any x
    nn.init.zeros_(net.logvar.weight)
    for p in (*net.mu.parameters(),):
        nn.init.zeros_(p)
    if prior == "classes":
        nn.init.zeros_(net.means)
        nn.init.zeros_(net.logvars)
    x, y = torch.randint(2, (5, 4), generator=draws()).float(), torch.tensor([0, 1, 2, 0, 1])
    found = log_likelihood(net, x, y, draws(), samples=7)
    torch.testing.assert_close(found, torch.full((5,), -4 * math.log(2)))


def test_dreams_of_a_class_do_not_depend_on_which_others_are_asked_for() -> None:
    net = ReplayVAE(hidden=6, latent=3, gates=0.5).build((1, 2, 2), 4).eval()
    both, alone = dreams_of(net, [1, 3], 5), dreams_of(net, [3], 5)
    assert both[1].shape == (5, 1, 2, 2) and not torch.equal(both[1], both[3])
    torch.testing.assert_close(both[3], alone[3])
    assert not torch.equal(dreams_of(net, [3], 5, seed=1)[3], alone[3])


def test_dreamed_features_are_shown_as_the_nearest_image() -> None:
    features, images = torch.tensor([[0.0, 0], [10, 10]]), torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    assert nearest(torch.tensor([[9.0, 8], [1, 1]]), features).tolist() == [1, 0]
    torch.testing.assert_close(pictured(torch.tensor([[9.0, 8]]), features, images), images[1:].float() / 255)
    whole = torch.rand(2, 3, 4, 4)
    assert pictured(whole, whole, images) is whole


def test_runners_up_are_counted_by_row() -> None:
    shares = runners_up(torch.tensor([[3.0, 2, 1], [3, 1, 2], [3, 2, 0], [0, 1, 2]]))
    torch.testing.assert_close(shares, torch.tensor([[0, 2 / 3, 1 / 3], [0, 0, 0], [0, 1, 0]], dtype=torch.float64))


def test_quality_leaves_the_network_alone_and_says_the_same_twice() -> None:
    net = ReplayVAE(hidden=8, latent=3, gates=0.5).build((6,), 2).eval()
    judge = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    x, y = torch.rand(60, 6, generator=draws()), torch.arange(60) % 2
    before = {name: value.clone() for name, value in net.state_dict().items()}
    once, again = quality(net, judge, x, y), quality(net, judge, x, y)
    assert once == again and all(math.isfinite(v) for v in once.values())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
