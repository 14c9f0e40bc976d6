"""What keeps classes apart (7.3, no. 9, 10, 11; golden values of 7.4)."""

from math import exp, inf, log
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from cllib.errors import UserError
from cllib.exaggeration import (
    Exaggeration,
    belonging,
    class_means,
    contrastive,
    kl,
    mean_over,
    one_each,
    overlap,
    released_js,
    repulsion,
    rivals,
    true_js,
)
from cllib.randomness import generator

pytestmark = pytest.mark.usefixtures("one_thread")

SEED = st.integers(0, 10**6)
Pair = tuple[Tensor, Tensor]


def S(rows: int, columns: int, k: float, a: float = 1.0) -> Tensor:
    """The numbers that golden values are computed from."""
    return a * torch.sin(0.7 * torch.arange(rows)[:, None] + 1.3 * torch.arange(columns) + k)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "drawn"), dtype=torch.float64)


def normals(seed: int, rows: int = 6, z: int = 4) -> Pair:
    return drawn(seed, rows, z), drawn(seed + 1, rows, z)


def near(found: Tensor, *wanted: float) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted), atol=2e-6, rtol=2e-6)


# --- golden values (7.4) ---

ONE, OTHER = (S(4, 5, 0.2), S(4, 5, 1.1, 0.3)), (S(4, 5, 1.7), S(4, 5, 2.3, 0.3))
PROJECTED, SCORES, LABEL = F.normalize(S(8, 3, 0.2), dim=-1), S(4, 4, 0.5, 2), torch.tensor([0, 1, 0, 2])


def test_7_4_golden_divergences() -> None:
    near(1 / released_js(*ONE, *OTHER), 0.506639, 0.520557, 0.523293, 0.508672)
    near(1 / kl(*ONE, *OTHER), 0.400293, 0.415382, 0.42117, 0.396961)
    near(1 / released_js(*ONE, *ONE), *[1.3035565] * 4)


@pytest.mark.parametrize(
    ("targets", "temperature", "wanted"),
    [("label", 1.0, 37.893665), ("label", 0.07, 20.519367), ("raw", 1.0, 32.7332), ("softmax", 1.0, 31.35607)],
)
def test_7_4_golden_contrast(targets: str, temperature: float, wanted: float) -> None:
    found = contrastive(PROJECTED, belonging(LABEL, SCORES, targets), temperature)
    assert float(found) == pytest.approx(wanted, rel=1e-6)


# --- distributions ---


@settings(max_examples=30, deadline=None)
@given(SEED)
def test_9_kl_is_torch_s_and_0_of_equals(seed: int) -> None:
    (m, s), (m2, s2) = normals(seed), normals(seed + 5)
    wanted = kl_divergence(Normal(m, (s / 2).exp()), Normal(m2, (s2 / 2).exp())).sum(-1)
    torch.testing.assert_close(kl(m, s, m2, s2), wanted)
    torch.testing.assert_close(kl(m, s, m, s), torch.zeros(6, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(SEED, st.integers(1, 7))
def test_9_the_released_divergence_is_symmetric_and_never_below_that_of_equals(seed: int, z: int) -> None:
    one, other = normals(seed, z=z), normals(seed + 5, z=z)
    torch.testing.assert_close(released_js(*one, *one), torch.full((6,), z / 2 * (1 - log(2)), dtype=torch.float64))
    torch.testing.assert_close(released_js(*one, *other), released_js(*other, *one))
    assert (released_js(*one, *other) > z / 2 * (1 - log(2))).all()


def test_9_the_released_middle_is_the_average_of_two_variables() -> None:
    one, other = normals(0), normals(5)
    middle = (one[0] + other[0]) / 2, ((one[1].exp() + other[1].exp()) / 4).log()
    wanted = sum(
        kl_divergence(Normal(m, (s / 2).exp()), Normal(middle[0], (middle[1] / 2).exp())).sum(-1) / 2
        for m, s in (one, other)
    )
    assert isinstance(wanted, Tensor)
    torch.testing.assert_close(released_js(*one, *other), wanted)


@settings(max_examples=20, deadline=None)
@given(SEED)
def test_the_true_divergence_is_symmetric_0_of_equals_and_at_most_log_2(seed: int) -> None:
    one, other, noise = normals(seed), normals(seed + 5), drawn(seed + 9, 2, 8, 6, 4)
    found = true_js(*one, *other, noise)
    torch.testing.assert_close(found, true_js(*other, *one, noise.flip(0)))
    assert (found <= log(2)).all() and not torch.equal(found, true_js(*other, *one, noise))
    torch.testing.assert_close(true_js(*one, *one, noise), torch.zeros(6, dtype=torch.float64))
    far = one[0] + 100, one[1]
    torch.testing.assert_close(true_js(*one, *far, noise), torch.full((6,), log(2), dtype=torch.float64))


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.0), (2.0, 0.5), (0.0, 3.0), (6.0, 2.0)])
def test_the_true_divergence_is_that_of_numeric_integration(mean: float, std: float) -> None:
    """200,000 draws a side: the standard error is below log(2) / 2 / 447 = 8e-4, for each term spans little more."""
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    p, q = Normal(0.0, 1.0).log_prob(x), Normal(mean, std).log_prob(x)
    mixture = torch.logaddexp(p, q) - log(2)
    wanted = torch.trapezoid((p.exp() * (p - mixture) + q.exp() * (q - mixture)) / 2, x)
    zero, other = torch.zeros(1).double(), (torch.tensor([mean]).double(), torch.tensor([2 * log(std)]).double())
    found = true_js(zero, zero, *other, drawn(3, 2, 200_000, 1))
    assert float(found) == pytest.approx(float(wanted), abs=5e-3) and float(wanted) > 0.02


def test_9_overlap_is_the_length_that_intervals_share() -> None:
    """Standard deviations of 1 and 1/2: [-2, 2] with [-1, 1] moved by 0, 2.5, 3 and 7."""
    zero, half = torch.zeros(4, 1), torch.full((4, 1), 2 * log(0.5))
    moved = torch.tensor([[0.0], [2.5], [3.0], [7.0]])
    for one, other in (((zero, zero), (moved, half)), ((moved, half), (zero, zero))):
        near(overlap(*one, *other), 2.0, 0.5, 0.0, 0.0)
    near(overlap(zero[:1].expand(1, 3), zero[:1].expand(1, 3), zero[:1].expand(1, 3), half[:1].expand(1, 3)), 6.0)


@settings(max_examples=20, deadline=None)
@given(SEED)
def test_9_overlap_is_symmetric_and_at_most_the_shorter_interval(seed: int) -> None:
    one, other = normals(seed), normals(seed + 5)
    found, shorter = overlap(*one, *other), 4 * torch.minimum((one[1] / 2).exp(), (other[1] / 2).exp()).sum(-1)
    torch.testing.assert_close(found, overlap(*other, *one))
    assert ((found >= 0) & (found <= shorter + 1e-9)).all()
    torch.testing.assert_close(overlap(*one, *one), 4 * (one[1] / 2).exp().sum(-1))


DIVERGENCES: dict[str, Any] = {"kl": kl, "js": released_js, "true js": true_js, "overlap": overlap}


@pytest.mark.parametrize("divergence", list(DIVERGENCES))
def test_2_2_repulsion_is_the_mean_inverse_over_the_kept_samples(divergence: str) -> None:
    one, other, noise = normals(0), normals(5), drawn(9, 2, 8, 6, 4)
    kept = torch.tensor([True, False, True, True, False, False])
    how = Exaggeration(divergence=divergence)
    each = DIVERGENCES[divergence](*one, *other, *([noise] if divergence == "true js" else []))
    wanted = each[kept].mean() if divergence == "overlap" else (1 / each[kept]).mean()
    torch.testing.assert_close(repulsion(how, one, other, kept, noise), wanted)
    assert float(repulsion(how, one, other, torch.zeros(6, dtype=torch.bool), noise)) == 0


@pytest.mark.parametrize("divergence", list(DIVERGENCES))
def test_2_2_gradients_reach_both_sides_of_a_pair(divergence: str) -> None:
    parts = [part.requires_grad_() for part in (*normals(0), *normals(5))]
    noise, kept = drawn(9, 2, 8, 6, 4), torch.arange(6) > 0
    value = repulsion(Exaggeration(divergence=divergence), (parts[0], parts[1]), (parts[2], parts[3]), kept, noise)
    for g in torch.autograd.grad(value, parts):
        assert g[1:].any() and not g[0].any() and g.isfinite().all(), "and not those that are left out"


def pushed_apart_from_themselves(divergence: str) -> Tensor:
    """The gradient where the competitor is missing, so that a sample stands in that is left out: itself."""
    mu, logvar = drawn(0, 6, 4).requires_grad_(), torch.zeros(6, 4, dtype=torch.float64)
    kept, stand_in = torch.arange(6) > 0, torch.zeros(6, dtype=torch.long)
    noise = drawn(9, 2, 8, 6, 4)
    value = repulsion(Exaggeration(divergence=divergence), (mu, logvar), (mu[stand_in], logvar[stand_in]), kept, noise)
    return torch.autograd.grad(value, mu)[0]


@pytest.mark.parametrize("divergence", ["kl", "js", "true js", "overlap"])
def test_9_a_sample_that_is_left_out_gives_no_nan_even_against_itself(divergence: str) -> None:
    assert pushed_apart_from_themselves(divergence).isfinite().all()


# --- who competes ---


@settings(max_examples=40, deadline=None)
@given(SEED, st.integers(2, 6))
def test_9_own_class_and_competitor_are_the_two_largest(seed: int, classes: int) -> None:
    scores = 3 * drawn(seed, 9, classes)
    own, other, kept = rivals(scores)
    ranked = scores.sort(-1, descending=True).indices
    assert torch.equal(own, ranked[:, 0]) and torch.equal(other, ranked[:, 1])
    assert (own != other).all() and kept.all() and kept.dtype == torch.bool


@settings(max_examples=40, deadline=None)
@given(SEED, st.floats(1.01, 200))
def test_9_the_factor_keeps_those_whose_competitor_is_close(seed: int, factor: float) -> None:
    scores = 3 * drawn(seed, 40, 5)
    p = scores.softmax(-1).sort(-1, descending=True).values
    assert torch.equal(rivals(scores, factor).kept, p[:, 0] < factor * p[:, 1])
    assert rivals(scores, inf).kept.all() and not rivals(scores, 1.0).kept.any() and not rivals(scores, 0.5).kept.any()
    larger = rivals(scores, 2 * factor).kept
    assert (larger | ~rivals(scores, factor).kept).all(), "a larger factor keeps more"


def test_9_probabilities_of_the_factor_are_at_temperature_1() -> None:
    scores = torch.tensor([[log(3.0), 0.0, -50.0]])
    assert not rivals(scores, 2.9).kept and rivals(scores, 3.1).kept


def test_9_ties_are_two_classes_that_compete() -> None:
    own, other, kept = rivals(torch.zeros(5, 3), 1.0001)
    assert (own != other).all() and kept.all() and not rivals(torch.zeros(5, 3), 1.0).kept.any()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), SEED)
def test_one_sample_of_every_class_that_comes_first(own: list[int], seed: int) -> None:
    order = torch.rand(len(own), generator=generator(seed, "order"))
    row, there = one_each(torch.tensor(own), 5, order)
    assert there.tolist() == [c in own for c in range(5)] and row.shape == (5,)
    for c in set(own):
        members = [i for i, label in enumerate(own) if label == c]
        assert int(row[c]) in members and order[row[c]] == order[members].max()


def test_every_member_of_a_class_can_stand_for_it() -> None:
    own, draws = torch.tensor([0, 1, 0, 0, 1]), generator(0, "order")
    rows = torch.stack([one_each(own, 2, torch.rand(5, generator=draws))[0] for _ in range(600)])
    counts = torch.bincount(rows[:, 0], minlength=5)
    assert not counts[[1, 4]].any() and (counts[[0, 2, 3]] - 200).abs().max() < 4 * (600 * 2 / 9) ** 0.5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=8), SEED)
def test_means_are_over_the_kept_alone(kept: list[bool], seed: int) -> None:
    values, mask = drawn(seed, len(kept)).requires_grad_(), torch.tensor(kept)
    found = mean_over(values, mask)
    wanted = values[mask].mean() if any(kept) else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(found, wanted)
    (g,) = torch.autograd.grad(found, values)
    torch.testing.assert_close(g, mask.double() / max(1, sum(kept)))


def test_9_nothing_kept_is_0_with_no_gradient_whatever_the_values() -> None:
    values = torch.tensor([inf, torch.nan, 2.0], requires_grad=True)
    found = mean_over(values, torch.zeros(3, dtype=torch.bool))
    found.backward()
    assert float(found.detach()) == 0 and values.grad is not None and torch.equal(values.grad, torch.zeros(3))
    assert float(mean_over(values.detach(), torch.tensor([False, False, True]))) == 2


# --- reconstructions ---


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=10), SEED)
def test_10_exemplars_are_means_of_their_class_alone(own: list[int], seed: int) -> None:
    x, label = drawn(seed, len(own), 2, 3), torch.tensor(own)
    means, there = class_means(x, label, 5)
    assert means.shape == (5, 2, 3) and there.tolist() == [c in own for c in range(5)]
    for c in set(own):
        torch.testing.assert_close(means[c], x[label == c].mean(0))
        if own.count(c) == 1:
            torch.testing.assert_close(means[c], x[own.index(c)])
    assert not means[~there].any()
    more = class_means(torch.cat([x, 9 + x]), torch.cat([label, torch.full_like(label, 4)]), 5)[0]
    torch.testing.assert_close(more[:4], means[:4])


# --- contrast ---


@settings(max_examples=20, deadline=None)
@given(SEED, st.floats(0.07, 3))
def test_2_4_the_contrastive_loss_by_hand(seed: int, temperature: float) -> None:
    u, w = F.normalize(drawn(seed, 6, 3), dim=-1), drawn(seed + 1, 6, 6).abs()
    total = 0.0
    for i in range(6):
        others = [k for k in range(6) if k != i]
        e = {k: exp(float(u[i] @ u[k]) / temperature) for k in others}
        each = sum(float(w[i, j]) * log(e[j] / sum(e.values())) for j in others)
        total -= temperature / 0.07 * each / sum(float(w[i, j]) for j in others) / 6
    assert float(contrastive(u, w, temperature)) == pytest.approx(total)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_11_equal_projections_are_a_guess_among_all_others(temperature: float) -> None:
    u = F.normalize(torch.ones(8, 3), dim=-1)
    found = contrastive(u, belonging(LABEL, SCORES, "label"), temperature)
    assert float(found) == pytest.approx(temperature / 0.07 * log(7), rel=1e-5)


@pytest.mark.parametrize("targets", ["label", "softmax", "raw"])
def test_11_neither_the_order_of_views_nor_that_of_samples_matters(targets: str) -> None:
    plain = contrastive(PROJECTED, belonging(LABEL, SCORES, targets), 0.5)
    swapped = PROJECTED.roll(4, 0)
    torch.testing.assert_close(contrastive(swapped, belonging(LABEL, SCORES, targets), 0.5), plain)
    order = torch.tensor([2, 0, 3, 1])
    moved = PROJECTED.view(2, 4, 3)[:, order].flatten(0, 1)
    torch.testing.assert_close(contrastive(moved, belonging(LABEL[order], SCORES[order], targets), 0.5), plain)


def test_11_names_of_labels_do_not_matter() -> None:
    assert torch.equal(belonging(LABEL, SCORES, "label"), belonging(torch.tensor([7, 2, 7, 5])[:4], SCORES, "label"))
    columns = SCORES[:, [3, 1, 0, 2]]
    torch.testing.assert_close(belonging(LABEL, columns, "softmax"), belonging(LABEL, SCORES, "softmax"))


def test_2_4_what_belongs_together() -> None:
    same = belonging(LABEL, SCORES, "label")
    assert same.shape == (8, 8) and torch.equal(same[:4, :4], (LABEL[:, None] == LABEL).float())
    assert torch.equal(same[:4, :4], same[4:, :4]) and torch.equal(same, same.T)
    torch.testing.assert_close(belonging(LABEL, SCORES, "raw")[:4, 4:], SCORES @ SCORES.T)
    p = SCORES.softmax(-1)
    torch.testing.assert_close(belonging(LABEL, SCORES, "softmax")[4:, :4], p @ p.T)


def test_2_4_the_contrastive_loss_brings_equals_together() -> None:
    v = S(8, 3, 0.2).requires_grad_()
    weights = belonging(LABEL, SCORES, "label")
    before = contrastive(F.normalize(v, dim=-1), weights, 1.0)
    (g,) = torch.autograd.grad(before, v)
    assert g.isfinite().all() and g.any()
    assert contrastive(F.normalize(v - 1e-3 * g, dim=-1), weights, 1.0) < before


# --- settings ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repulsion", -1.0),
        ("recon_repulsion", float("nan")),
        ("recon_attraction", "much"),
        ("contrastive", inf),
        ("divergence", "js2"),
        ("pair", "both"),
        ("factor", -1.0),
        ("targets", "hard"),
        ("temperature", 0.0),
        ("dropout", 1.0),
        ("head_step_size", -1e-8),
        ("averaged", 1),
        ("same_noise", None),
    ],
)
def test_impossible_settings_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        Exaggeration(**{name: value})
    assert str(caught.value).startswith(f"{name} = {value!r}: ")


@pytest.mark.parametrize("name", ["repulsion", "recon_repulsion", "recon_attraction", "contrastive", "same_noise"])
def test_a_strength_of_nothing_is_off(name: str) -> None:
    options: dict[str, Any] = {"factor": 20.0, "divergence": "kl", "pair": "prior", "averaged": False, "dropout": 0.1}
    assert not Exaggeration(**options).on and not Exaggeration(**options).repels
    how = Exaggeration(**{**options, name: True if name == "same_noise" else 1e-6})
    assert how.on and how.repels == (name not in ("contrastive", "same_noise"))


def test_2_2_the_released_repulsion_is_bounded() -> None:
    """1 / (0.1534 z), of equal distributions: 0.0652 for z = 100."""
    equal = torch.zeros(3, 100)
    found = repulsion(Exaggeration(), (equal, equal), (equal, equal), torch.ones(3, dtype=torch.bool), equal)
    assert float(found) == pytest.approx(2 / 100 / (1 - log(2)), rel=1e-5) == pytest.approx(0.0652, abs=1e-4)
