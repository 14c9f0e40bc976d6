"""The noises of BiRT one by one: what they leave alone, what they change, and how often (BiRT spec, 1.5, I15-I19)."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cllib import noises
from cllib.learners.birt import binary_cross_entropy
from cllib.noises import FREQUENT, AttentionNoise, coefficient, extrapolated, gated, mixed, relabelled, supervised
from cllib.randomness import generator, normal

NUMBERS = st.integers(0, 10**6)


def draws(seed: int = 0) -> torch.Generator:
    return generator(seed, "noise")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "numbers"))


# --- who gets a noise ---


@pytest.mark.parametrize("gate", noises.GATES)
def test_i15_a_chance_of_nothing_picks_nobody_and_certainty_everybody(gate: str) -> None:
    for seed in range(50):
        assert not gated(7, 0.0, gate, draws(seed)).any()
        assert gated(7, 1.0, gate, draws(seed)).all()


def test_i15_a_chance_of_nothing_picks_nobody_whatever_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(*shape))  # the least that can be drawn
    for gate in noises.GATES:
        assert not gated(3, 0.0, gate, draws()).any() and attention(0.0, gate=gate)(3, 1, 2) is None


@pytest.mark.parametrize("p", [0.05, 0.4])
def test_samples_have_their_chances_each_for_itself(p: float) -> None:
    chosen = gated(20_000, p, "sample", draws())
    assert chosen.shape == (20_000,) and chosen.dtype == torch.bool
    sigma = (p * (1 - p) / 20_000) ** 0.5
    assert abs(float(chosen.float().mean()) - p) < 5 * sigma, "a binomial count, 5 sigma"
    pairs = chosen.view(-1, 2).all(1).float().mean()
    assert abs(float(pairs) - p * p) < 5 * (p * p / 10_000) ** 0.5


@pytest.mark.parametrize("p", [0.05, 0.4])
def test_a_batch_has_one_chance(p: float) -> None:
    one = draws()
    chosen = torch.stack([gated(5, p, "batch", one) for _ in range(4000)])
    assert chosen.shape == (4000, 5) and (chosen == chosen[:, :1]).all()
    assert abs(float(chosen[:, 0].float().mean()) - p) < 5 * (p * (1 - p) / 4000) ** 0.5, "5 sigma"


# --- M, representation mix-up (I16) ---


def test_the_coefficient_is_beta_distributed() -> None:
    one = draws()
    shares = torch.tensor([coefficient(0.1, one) for _ in range(4000)], dtype=torch.float64)
    assert ((shares >= 0) & (shares <= 1)).all()
    assert abs(float(shares.mean()) - 0.5) < 5 * (1 / 4.8 / 4000) ** 0.5, "variance 1 / (4 (2 a + 1)), 5 sigma"
    for low, share in ((0.05, 0.245), (0.2, 0.12)):  # as measured for the spec
        found = float(((shares > low) & (shares < 1 - low)).double().mean())
        assert abs(found - share) < 5 * (share / 4000) ** 0.5
    even = torch.tensor([coefficient(1.0, one) for _ in range(2000)], dtype=torch.float64).sort().values
    assert float((even - torch.linspace(0, 1, 2000)).abs().max()) < 0.05, "uniform; Kolmogorov's distance at 1e-4"


def test_the_coefficient_depends_on_the_generator_alone() -> None:
    torch.manual_seed(0)
    first = [coefficient(0.1, draws(3)) for _ in range(3)]
    torch.manual_seed(1)
    assert [coefficient(0.1, draws(3)) for _ in range(3)] == first and len({*first}) == 1
    one = draws(3)
    assert coefficient(0.1, one) == first[0] != coefficient(0.1, one)


@settings(max_examples=50, deadline=None)
@given(NUMBERS, st.integers(1, 9), st.floats(0, 1))
def test_i16_mixed_rows_lie_between_a_row_and_its_partner(seed: int, count: int, share: float) -> None:
    g = generator(seed, "mix")
    x, chosen = torch.randn(count, 2, 3, generator=g), torch.rand(count, generator=g) < 0.5
    partner, before = torch.randperm(count, generator=g), x.clone()
    found = mixed(x, share, partner, chosen)
    assert torch.equal(x, before) and torch.equal(found[~chosen], x[~chosen]), "bit for bit"
    for i in range(count):
        if chosen[i]:
            torch.testing.assert_close(found[i], share * before[i] + (1 - share) * before[int(partner[i])])


def test_i16_a_coefficient_of_one_changes_nothing_and_of_zero_everything() -> None:
    x, partner = numbers(5, 4), torch.tensor([1, 2, 3, 4, 0])
    everybody = torch.ones(5, dtype=torch.bool)
    assert torch.equal(mixed(x, 1.0, partner, everybody), x)
    assert torch.equal(mixed(x, 0.0, partner, everybody), x[partner])
    assert torch.equal(mixed(x, 0.3, partner, ~everybody), x)


@settings(max_examples=50, deadline=None)
@given(NUMBERS, st.integers(1, 6), st.integers(2, 7), st.floats(0, 1))
def test_i16_the_loss_of_mixed_targets_is_the_mean_of_both_losses(
    seed: int, count: int, classes: int, share: float
) -> None:
    g = generator(seed, "targets")
    logits, y = torch.randn(count, classes, generator=g).double(), torch.randint(classes, (count,), generator=g)
    target, partner = F.one_hot(y, classes).double(), torch.randperm(count, generator=g)
    soft = mixed(target, share, partner, torch.ones(count, dtype=torch.bool))
    torch.testing.assert_close(soft.sum(1), torch.ones(count).double())
    both = [binary_cross_entropy(logits, part) for part in (target, target[partner])]
    torch.testing.assert_close(binary_cross_entropy(logits, soft), share * both[0] + (1 - share) * both[1])


# --- T, label noise (I17) ---


@settings(max_examples=40, deadline=None)
@given(NUMBERS, st.integers(1, 30), st.integers(0, 5), st.integers(1, 5))
def test_i17_new_labels_lie_in_their_range_and_others_stay(seed: int, count: int, low: int, width: int) -> None:
    g = generator(seed, "labels")
    y, chosen = torch.randint(20, (count,), generator=g), torch.rand(count, generator=g) < 0.5
    found = relabelled(y, chosen, low, low + width, g)
    assert torch.equal(found[~chosen], y[~chosen]) and found.dtype == y.dtype
    assert ((found[chosen] >= low) & (found[chosen] < low + width)).all()


def test_i17_every_label_of_the_range_comes_and_some_stay_what_they_were() -> None:
    y = torch.arange(4).repeat(5000)
    everybody = torch.ones(len(y), dtype=torch.bool)
    found = relabelled(y, everybody, 0, 4, draws())
    counts = torch.bincount(found, minlength=4)
    assert len(counts) == 4 and (abs(counts / len(y) - 0.25) < 5 * (0.25 * 0.75 / len(y)) ** 0.5).all(), "5 sigma"
    for p in (1.0, 0.05):  # the expected share of changed labels: p (1 - 1 / K)
        chosen = gated(len(y), p, "sample", draws(1))
        changed = float((relabelled(y, chosen, 0, 4, draws(2)) != y).float().mean())
        share = p * (1 - 1 / 4)
        assert abs(changed - share) < 5 * (share * (1 - share) / len(y)) ** 0.5
    fresh = relabelled(y, everybody, 2, 4, draws())
    assert set(fresh.tolist()) == {2, 3}


# --- X, extrapolation ---


def exaggerated(x: Tensor, y: Tensor, share: float, often: list[int]) -> Tensor:
    """By definition: label after label, the first and the last of its samples."""
    out = x.clone()
    for label in often:
        own = [i for i in range(len(y)) if int(y[i]) == label]
        out[own[0]] = x[own[0]] + share * (x[own[0]] - x[own[-1]])
    return out


def test_first_samples_move_away_from_the_last_of_their_class() -> None:
    x, y = numbers(7, 2, 3), torch.tensor([4, 0, 4, 1, 0, 4, 2])
    before = x.clone()
    found = extrapolated(x, y, 0.5, 6)
    assert torch.equal(x, before)
    torch.testing.assert_close(found, exaggerated(x, y, 0.5, [4, 0, 1, 2]))
    torch.testing.assert_close(found[0], 1.5 * x[0] - 0.5 * x[5])
    torch.testing.assert_close(found[1], 1.5 * x[1] - 0.5 * x[4])
    assert torch.equal(found[2:], x[2:]), "a class of one sample has nothing to move away from"
    assert torch.equal(extrapolated(x, y, 0.0, 6), x)


def test_only_the_most_frequent_labels_are_extrapolated() -> None:
    y = torch.cat([torch.arange(9).repeat_interleave(torch.tensor([1, 4, 2, 6, 3, 7, 1, 5, 2]))])
    y = y[torch.randperm(len(y), generator=draws())]
    x = numbers(len(y), 3)
    found = extrapolated(x, y, 0.5, 9)
    torch.testing.assert_close(found, exaggerated(x, y, 0.5, [5, 3, 7, 1, 4]))
    changed = (found != x).any(1)
    assert int(changed.sum()) == FREQUENT == 5 and {int(label) for label in y[changed]} == {5, 3, 7, 1, 4}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=20), st.floats(0, 2), NUMBERS)
def test_extrapolation_moves_one_sample_of_at_most_five_labels(labels: list[int], share: float, seed: int) -> None:
    y, x = torch.tensor(labels), numbers(len(labels), 4, seed=seed)
    found = extrapolated(x, y, share, 8)
    changed = [i for i in range(len(y)) if not torch.equal(found[i], x[i])]
    moved = [labels[i] for i in changed]
    assert len(moved) == len(set(moved)) <= FREQUENT and all(labels.index(labels[i]) == i for i in changed)
    torch.testing.assert_close(found, exaggerated(x, y, share, moved))
    counts = Counter(labels)
    rare = sorted(counts.values())[-FREQUENT:][0]
    assert all(counts[label] >= rare for label in moved)
    must = [label for label, n in counts.items() if n > rare and n > 1]
    assert share < 1e-3 or set(must) <= set(moved)


def test_fewer_classes_than_five_are_enough() -> None:
    x, y = numbers(3, 2), torch.tensor([1, 1, 0])
    torch.testing.assert_close(extrapolated(x, y, 0.5, 2), exaggerated(x, y, 0.5, [1]))


# --- S, supervision noise (I19) ---


def test_i19_the_teachers_logits_get_a_noise_of_mean_zero() -> None:
    logits, chosen = numbers(2000, 50), torch.arange(2000) % 2 == 0
    found = supervised(logits, chosen, 0.01, draws())
    assert torch.equal(found[~chosen], logits[~chosen])
    added = (found - logits)[chosen].double()  # 50,000 numbers; 5 sigma each
    assert abs(float(added.mean())) < 5 * 0.01 / 50_000**0.5
    assert abs(float(added.std()) - 0.01) < 5 * 0.01 / 100_000**0.5
    assert added.abs().max() < 0.06 and (added != 0).float().mean() > 0.99, "each logit its own"
    within = float((added.abs() < 0.01).double().mean())
    assert abs(within - 0.6827) < 5 * (0.22 / 50_000) ** 0.5, "normal, not uniform"


def test_i15_supervision_noise_of_no_size_changes_no_bit() -> None:
    logits = numbers(6, 4)
    assert torch.equal(supervised(logits, torch.ones(6, dtype=torch.bool), 0.0, draws()), logits)
    assert torch.equal(supervised(logits, torch.zeros(6, dtype=torch.bool), 1.0, draws()), logits)


# --- A, attention noise (I18) ---


def attention(
    p: float, std: float = 1.0, gate: str = "sample", first: int = 0, seed: int = 0, dtype: torch.dtype = torch.float32
) -> AttentionNoise:
    return AttentionNoise(p, std, gate, draws(seed), first, torch.empty(1, dtype=dtype))


@pytest.mark.parametrize("gate", noises.GATES)
def test_i15_attention_noise_that_never_comes_is_none(gate: str) -> None:
    for seed in range(20):
        noise = attention(0.0, gate=gate, seed=seed)
        assert noise(9, 2, 4) is None and noise(9, 2, 4) is None
    assert attention(1.0, gate=gate, first=9)(9, 2, 4) is None, "nobody is left"


def test_i18_attention_noise_spares_the_first_rows() -> None:
    drawn = attention(1.0, first=4)(9, 2, 5)
    assert drawn is not None
    rows, e = drawn
    assert rows.tolist() == [4, 5, 6, 7, 8] and e.shape == (5, 2, 5, 5)
    drawn = attention(1.0, gate="batch", first=4)(9, 2, 5)
    assert drawn is not None and drawn[0].tolist() == [4, 5, 6, 7, 8] and drawn[1].shape == (5, 2, 5, 5)


@pytest.mark.parametrize("gate", noises.GATES)
def test_i18_attention_noise_is_normal_on_every_weight(gate: str) -> None:
    drawn = attention(1.0, 0.3, gate)(20, 4, 25)
    assert drawn is not None
    e = drawn[1].double()  # 50,000 numbers; 5 sigma each
    assert abs(float(e.mean())) < 5 * 0.3 / e.numel() ** 0.5
    assert abs(float(e.std()) - 0.3) < 5 * 0.3 / (2 * e.numel()) ** 0.5
    for one, other in ((e[0], e[1]), (e[:, 0], e[:, 1]), (e[..., 0, :], e[..., 1, :]), (e[..., 0], e[..., 1])):
        assert not torch.equal(one, other)
    sums = 1 + e.sum(-1)
    assert abs(float(sums.std()) - 0.3 * 25**0.5) < 5 * 0.3 * 25**0.5 / (2 * sums.numel()) ** 0.5, "no row sums to 1"


def test_i18_samples_are_picked_in_every_layer_anew() -> None:
    noise, chosen = attention(0.5, first=3), []
    for _ in range(400):
        drawn = noise(13, 1, 2)
        rows = torch.zeros(13) if drawn is None else torch.zeros(13).index_fill(0, drawn[0], 1)
        chosen.append(rows)
        assert drawn is None or (drawn[1].shape == (len(drawn[0]), 1, 2, 2) and drawn[0].dtype == torch.long)
    share = torch.stack(chosen)
    assert not share[:, :3].any()
    assert abs(float(share[:, 3:].mean()) - 0.5) < 5 * 0.5 / 4000**0.5, "a binomial count, 5 sigma"
    assert len({tuple(rows.tolist()) for rows in share}) > 100


def test_a_batch_gate_is_the_same_in_all_layers() -> None:
    heard = []
    for seed in range(300):
        noise = attention(0.3, gate="batch", seed=seed)
        layers = [noise(5, 1, 2) for _ in range(3)]
        assert len({layer is None for layer in layers}) == 1
        heard.append(layers[0] is not None)
        if layers[0] is not None and layers[1] is not None:
            assert not torch.equal(layers[0][1], layers[1][1]), "but not its numbers"
    assert abs(sum(heard) / 300 - 0.3) < 5 * (0.21 / 300) ** 0.5, "a binomial count, 5 sigma"


def test_attention_noise_has_the_type_it_is_told() -> None:
    drawn = attention(1.0, dtype=torch.float64)(2, 1, 2)
    assert drawn is not None and drawn[1].dtype == torch.float64
    like = torch.empty(1, dtype=torch.float16, device="meta")
    drawn = AttentionNoise(1.0, 1.0, "sample", draws(), 0, like)(2, 1, 2)
    assert drawn is not None and drawn[1].dtype == torch.float16
    assert drawn[0].device.type == drawn[1].device.type == "meta"


# --- where numbers are made ---


def test_numbers_are_made_where_the_generator_is_and_brought_to_where_they_are_wanted() -> None:
    found = normal((3, 2), draws(), torch.empty(0, dtype=torch.float64))
    assert torch.equal(found, torch.randn(3, 2, generator=draws()).double()), "whatever type is wanted"
    assert normal([2], draws(), torch.empty(0, device="meta")).device.type == "meta"


def test_generators_are_on_the_cpu_unless_there_is_a_gpu_to_draw_for() -> None:
    for device in ("cpu", "meta", torch.device("meta"), torch.device("cpu")):
        one = generator(3, "noise", device)
        assert one.device.type == "cpu"
        assert torch.equal(torch.rand(4, generator=one), torch.rand(4, generator=generator(3, "noise")))
