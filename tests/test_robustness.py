"""Damage and attacks by hand, and a survey that leaves the network as it found it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cllib.contract import tiny_stream
from cllib.errors import UserError
from cllib.learners.birt import BiRTSettings
from cllib.models.convit import ConViT
from cllib.models.networks import MLP
from cllib.models.plain_vit import PlainViT
from cllib.randomness import generator, seeded
from cllib.recipes import Recipe
from cllib.robustness import PGD_LEVELS, SEVERITIES, accuracy, asked, pgd, survey, worsened

pytestmark = pytest.mark.usefixtures("one_thread")

NET = ConViT(patch=2, dim=8, heads=2, layers=3, drop_path=0.3, std=0.3)


def images(count: int = 3, channels: int = 1, side: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, side, side, generator=generator(seed, "images"))


def linear(classes: int = 2, pixels: int = 64, seed: int = 0, scale: float = 0.3) -> nn.Module:
    with seeded(seed, "linear"):
        network = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
    with torch.no_grad():
        network[1].weight.copy_(scale * torch.randn(classes, pixels, generator=generator(seed, "weights")))
    return network


# --- natural damage ---


@pytest.mark.parametrize("kind", list(SEVERITIES))
def test_severity_0_changes_nothing(kind: str) -> None:
    x, draws = images(), generator(0, "x")
    before = draws.get_state()
    assert torch.equal(worsened(x, kind, 0, draws), x)
    assert torch.equal(draws.get_state(), before)


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_noise_is_normal_with_the_listed_deviation_and_cut_off(severity: int) -> None:
    x = images(4, 3)
    std = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    noise = torch.randn(x.shape, generator=generator(3, "x"))
    found = worsened(x, "noise", severity, generator(3, "x"))
    torch.testing.assert_close(found, (x + std * noise).clamp(0, 1))
    assert float(found.min()) == 0 and float(found.max()) == 1  # some were outside
    grey = torch.full((1, 1, 300, 300), 0.5)
    if std <= 0.1:
        assert float((worsened(grey, "noise", severity, generator(1, "x")) - 0.5).std()) == pytest.approx(std, rel=0.02)


def test_contrast_shrinks_an_image_towards_its_own_mean() -> None:
    x = torch.tensor([[[[0.0, 1.0]], [[0.5, 0.9]]], [[[0.2, 0.2]], [[0.4, 0.4]]]])  # means .6 and .3
    for severity, left in enumerate((0.7, 0.5, 0.4, 0.3, 0.2), 1):
        wanted = torch.tensor(
            [
                [[[0.6 - 0.6 * left, 0.6 + 0.4 * left]], [[0.6 - 0.1 * left, 0.6 + 0.3 * left]]],
                [[[0.3 - 0.1 * left, 0.3 - 0.1 * left]], [[0.3 + 0.1 * left, 0.3 + 0.1 * left]]],
            ]
        )
        torch.testing.assert_close(worsened(x, "contrast", severity, generator(0, "x")), wanted)


def blurred(x: Tensor, std: float, reach: int) -> Tensor:
    """Along rows, then columns, reflected at the borders."""
    at = torch.arange(-reach, reach + 1).double()
    kernel = torch.exp(-(at**2) / (2 * std**2))
    kernel = kernel / kernel.sum()
    wide = F.pad(x.double(), [reach] * 4, mode="reflect")
    rows = sum(kernel[k] * wide[..., k : k + x.shape[-2], :] for k in range(2 * reach + 1))
    return sum(kernel[k] * rows[..., k : k + x.shape[-1]] for k in range(2 * reach + 1)).float()


@pytest.mark.parametrize(
    ("severity", "std", "reach"), [(1, 0.4, 1), (2, 0.6, 2), (3, 0.8, 2), (4, 1.0, 3), (5, 1.5, 5)]
)
def test_blur_is_a_gaussian_of_the_listed_deviation(severity: int, std: float, reach: int) -> None:
    x = images(2, 3, 28)
    torch.testing.assert_close(worsened(x, "blur", severity, generator(0, "x")), blurred(x, std, reach))


@pytest.mark.parametrize("side", [4, 5, 7, 8])
@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_blur_works_on_small_images(severity: int, side: int) -> None:
    x = images(2, 1, side)
    found = worsened(x, "blur", severity, generator(0, "x"))
    assert found.shape == x.shape and float(found.std()) < float(x.std())
    flat = torch.full((1, 1, side, side), 0.4)
    torch.testing.assert_close(worsened(flat, "blur", severity, generator(0, "x")), flat)


def test_damage_grows_with_severity() -> None:
    x = images(2, 1, 28)
    assert {len(levels) for levels in SEVERITIES.values()} == {5}
    for kind in SEVERITIES:
        away = [float((worsened(x, kind, level, generator(0, "x")) - x).abs().mean()) for level in range(6)]
        assert away == sorted(set(away)) and away[0] == 0


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(SEVERITIES)), st.integers(0, 5), st.integers(0, 1000))
def test_what_is_damaged_stays_an_image(kind: str, severity: int, seed: int) -> None:
    found = worsened(images(2, 1, 8, seed), kind, severity, generator(seed, "x"))
    assert found.shape == (2, 1, 8, 8) and float(found.min()) >= 0 and float(found.max()) <= 1


@pytest.mark.parametrize("severity", [-1, 6, 1.5])
def test_there_are_five_severities(severity: Any) -> None:
    with pytest.raises(UserError, match=r"severity = .*between 0 and 5"):
        worsened(images(), "blur", severity, generator(0, "x"))


# --- projected gradient ascent ---


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("eps", [1 / 255, 0.1, 0.6])
def test_of_a_linear_model_of_two_classes_it_finds_the_worst_case(eps: float, steps: int) -> None:
    network, x, y = linear(), images(6), torch.tensor([0, 1, 1, 0, 1, 0])
    weight = network[1].weight.detach()
    away = (weight[1 - y] - weight[y]).view_as(x)  # what raises the other logit over the right one
    wanted = (x + eps * away.sign()).clamp(0, 1)
    torch.testing.assert_close(pgd(network, x, y, eps, steps), wanted, atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.integers(1, 6), st.integers(0, 1000))
def test_it_stays_within_eps_and_an_image(eps: float, steps: int, seed: int) -> None:
    with seeded(seed, "network"):
        network = MLP((16,)).build((1, 8, 8), 4)
    x, y = images(5, seed=seed), torch.tensor([0, 1, 2, 3, 0])
    found = pgd(network, x, y, eps, steps)
    assert float((found - x).abs().max()) <= eps + 1e-6
    assert float(found.min()) >= 0 and float(found.max()) <= 1
    before, after = (float(F.cross_entropy(network(part), y).detach()) for part in (x, pgd(network, x, y, 0.002)))
    assert after > before


def test_without_room_it_changes_nothing_and_asks_nobody() -> None:
    def never(x: Tensor) -> Tensor:
        raise AssertionError("asked")

    x = images()
    assert torch.equal(pgd(never, x, torch.zeros(3, dtype=torch.long), 0.0), x)


def test_it_starts_at_the_image_and_takes_five_steps_of_half_eps() -> None:
    network, seen = linear(), []
    x, y = 0.4 + 0.2 * images(4), torch.tensor([0, 1, 0, 1])

    def answer(at: Tensor) -> Tensor:
        seen.append(at.detach().clone())
        return network(at)

    away = (network[1].weight[1 - y] - network[1].weight[y]).detach().view_as(x).sign()
    found = pgd(answer, x, y, 0.1)
    assert len(seen) == 5
    for at, reached in zip([*seen, found], (0, 0.05, 0.1, 0.1, 0.1, 0.1), strict=True):
        torch.testing.assert_close(at, x + reached * away, atol=1e-6, rtol=0)
    assert not found.requires_grad


def test_it_lowers_the_accuracy_of_a_linear_model() -> None:
    network, x = linear(5), images(200)
    y = network(x).argmax(-1)
    found = [accuracy(network, pgd(network, x, y, eps), y) for eps in (0, 0.01, 0.05, 0.2)]
    assert found[0] == 1 and found == sorted(found, reverse=True) and found[-1] < 0.2 and len(set(found)) > 2


def test_a_sample_is_attacked_whatever_is_beside_it() -> None:
    network, x, y = MLP((16,)).build((1, 8, 8), 3), images(4), torch.tensor([0, 1, 2, 0])
    alone = torch.cat([pgd(network, x[k : k + 1], y[k : k + 1], 0.05) for k in range(4)])
    torch.testing.assert_close(pgd(network, x, y, 0.05), alone)


@pytest.mark.parametrize(("given", "said"), [({"eps": -0.1}, "eps"), ({"eps": 0.1, "steps": 0}, "steps")])
def test_impossible_attacks_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said} = "):
        pgd(linear(), images(), torch.tensor([0, 1, 0]), **given)


# --- a survey ---


def trained_on_two(network: Any = NET, **changes: Any) -> Any:
    """BiRT after two experiences of six classes, its g frozen."""
    stream = tiny_stream()
    how = BiRTSettings(buffer_size=12, tune_epochs=1, attention_std=0.1, **changes)
    recipe = Recipe("birt", how, network, "adamw", 0.01, batch_size=12)
    learner = recipe.build(stream, 0)
    for experience in stream.experiences[:2]:
        learner.begin(experience)
        learner.observe(experience.x[:12], experience.y[:12])
        learner.finish(experience)
    return learner


def held_out() -> tuple[Tensor, Tensor]:
    parts = tiny_stream().tests[:2]
    return torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])


def test_a_survey_has_every_kind_and_level_and_nothing_beside() -> None:
    network, x = linear(3), images(40)
    y = network(x).argmax(-1)
    y[::4] = 0  # not all of them right
    rows = survey(network, x, y, 5)
    wanted = [(kind, level) for kind in ("noise", "contrast", "blur") for level in range(6)]
    assert [row[:2] for row in rows] == [*wanted, *(("PGD", level) for level in (0, 1, 2, 4, 8))]
    assert PGD_LEVELS == (0, 1, 2, 4, 8)
    clean = accuracy(network, x, y)
    assert {found for _, level, found in rows if level == 0} == {clean}
    for kind, level, found in rows:
        worse = pgd(network, x, y, level / 255) if kind == "PGD" else worsened(x, kind, level, generator(5, kind))
        assert found == accuracy(network, worse, y)
    assert len({found for kind, _, found in rows if kind == "PGD"}) > 2


def test_adversaries_have_so_many_255ths(monkeypatch: pytest.MonkeyPatch) -> None:
    room: list[float] = []

    def noted(answer: Any, x: Tensor, y: Tensor, eps: float) -> Tensor:
        room.append(255 * eps)
        return x

    monkeypatch.setattr("cllib.robustness.pgd", noted)
    survey(linear(3), images(4), torch.arange(4) % 3, 0)
    assert room == pytest.approx([0, 1, 2, 4, 8])


def test_the_same_seed_surveys_the_same() -> None:
    network, x, y = linear(3), images(60), torch.arange(60) % 3
    first, again, other = (survey(network, x, y, seed) for seed in (1, 1, 2))
    assert first == again != other
    differ = {kind for (kind, _, one), (_, _, two) in zip(first, other, strict=True) if one != two}
    assert differ == {"noise"}, "nothing else is random"


@pytest.mark.parametrize("network", [NET, PlainViT(patch=2, dim=8, heads=2, layers=2, cut=1)])
def test_an_attack_reaches_through_a_frozen_g(network: Any) -> None:
    learner = trained_on_two(network)
    assert not any(p.requires_grad for p in learner.split.below.parameters())
    x, y = held_out()
    answer = asked(learner)
    right = answer(x).argmax(-1)
    worse = pgd(answer, x, right, 0.1)
    assert float((worse - x).abs().max()) > 0.09
    assert float(F.cross_entropy(answer(worse), right)) > float(F.cross_entropy(answer(x), right))
    assert survey(answer, x, y, 0)[0][2] == accuracy(learner.predict, x, y)


def test_an_attack_reaches_through_a_g_that_is_detached() -> None:
    with seeded(0, "init"):
        network = PlainViT(patch=2, dim=8, heads=2, layers=2, cut=1, detached=True).build((1, 8, 8), 3)
    x = images(4)
    assert float((pgd(network.eval(), x, torch.tensor([0, 1, 2, 0]), 0.1) - x).abs().max()) > 0.09


def test_what_is_asked_answers_as_the_learner_does_and_is_left_without_gradients() -> None:
    learner = trained_on_two()
    x, y = held_out()
    wanted = learner.predict(x)
    learner.network.train()
    for p in learner.network.parameters():
        p.grad = None
    answer = asked(learner)
    torch.testing.assert_close(answer(x), wanted)
    assert answer(x).shape == (len(x), 6)
    assert (answer(x)[:, 4:] < answer(x)[:, :4].amin(-1, keepdim=True)).all(), "classes that have not come"
    survey(answer, x, y, 0)
    assert not learner.network.training
    assert all(p.grad is None and not p.requires_grad for p in learner.network.parameters())


def test_a_learner_that_adds_nothing_is_its_network() -> None:
    stream = tiny_stream()
    learner = Recipe(network=MLP((8,)), batch_size=8).build(stream, 0)
    x = stream.tests[0].x
    assert torch.equal(asked(learner)(x), learner.network(x)) and not learner.network.training
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(asked(learner)(at).sum(), at)
    assert float(gradient.abs().sum()) > 0


def test_accuracy_is_a_share_without_a_graph() -> None:
    def answer(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return torch.tensor([[1.0, 0], [0, 1], [0, 1], [2, 1]])

    assert accuracy(answer, images(4), torch.tensor([0, 1, 0, 0])) == 0.75
