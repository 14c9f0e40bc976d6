"""The network that dreams: densities, gates, prior, sizes (7.3, no. 1, 2, 12; golden values of 7.4)."""

from dataclasses import replace
from math import log, pi
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from cllib.errors import UserError
from cllib.learners.generative_replay import distilled
from cllib.models.conv_front import ConvFront
from cllib.models.replay_vae import (
    VAE,
    ReplayVAE,
    divergence_from_standard,
    log_modes,
    log_prior,
    log_prior_of,
    recon_error,
)
from cllib.randomness import generator, seeded

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = ReplayVAE(hidden=30, latent=4, gates=0.6, modes=2)
SHAPE, CLASSES = (1, 4, 4), 6
CONV: dict[str, Any] = {"stem": "conv", "reconstruction": "mse", "hidden": 20, "latent": 3}


def S(rows: int, columns: int, k: float, a: float = 1.0) -> Tensor:
    """The numbers that golden values are computed from."""
    return a * torch.sin(0.7 * torch.arange(rows)[:, None] + 1.3 * torch.arange(columns) + k)


def made(config: ReplayVAE = TINY, seed: int = 1, shape: tuple[int, ...] = SHAPE, classes: int = CLASSES) -> VAE:
    with seeded(seed, "init"):
        return config.build(shape, classes)


def near(found: Tensor, *wanted: float) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted), atol=2e-6, rtol=2e-6)


# --- golden values (7.4): 6 classes, J = 2, z = 5 ---

MEANS, LOGVARS, Z = S(12, 5, 0.1).view(6, 2, 5), S(12, 5, 0.9, 0.5).view(6, 2, 5), S(4, 5, 0.4)
LABEL = torch.tensor([0, 3, 5, 1])
MU, LOGVAR = S(4, 5, 0.2), S(4, 5, 1.1, 0.3)
STUDENT, TEACHER = S(4, 6, 0.8, 2), S(4, 4, 0.5, 2)
SOFT = F.pad((TEACHER / 2).softmax(-1), (0, 2))
ALL = torch.ones(6, dtype=torch.bool)


def test_7_4_golden_distillation() -> None:
    rows = torch.stack([distilled(STUDENT[i : i + 1], SOFT[i : i + 1], ALL, 2.0) for i in range(4)])
    near(rows, 6.672299, 7.070485, 7.466587, 7.755092)
    assert float(distilled(STUDENT, SOFT, ALL, 2.0)) == pytest.approx(7.241116, abs=2e-6)


def test_7_4_golden_prior_of_hard_labels() -> None:
    near(log_prior_of(Z, MEANS[LABEL], LOGVARS[LABEL]), -0.19314, -4.88793, -0.535301, -0.533523)


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (SOFT, (-1.217839, -0.798503, -1.262851, -1.875535)),
        (torch.full((6,), 1 / 6), (-1.062502, -1.051488, -1.227495, -1.489976)),
        (torch.tensor([0.5, 0, 0.5, 0, 0, 0]), (-0.877224, -1.208021, -1.85501, -1.284911)),
    ],
    ids=["soft", "all modes", "classes 0 and 2"],
)
def test_7_4_golden_prior_of_weighted_classes(weights: Tensor, wanted: tuple[float, ...]) -> None:
    near(log_prior(Z, MEANS, LOGVARS, weights), *wanted)


def test_7_4_golden_divergence_from_the_prior() -> None:
    network = made(replace(TINY, latent=5))
    network.means.data, network.logvars.data = MEANS, LOGVARS
    seen = network.look(torch.zeros(4, *SHAPE))._replace(mu=MU, logvar=LOGVAR)
    near(network.divergence(seen, Z, LABEL, None).detach(), 0.126614, 4.810928, 0.461058, 0.471979)
    means = [network.divergence(seen, Z, *which).mean().item() / 16 for which in ((None, SOFT), (LABEL, None))]
    assert means == pytest.approx([0.076178, 0.091728], abs=2e-6)


def test_7_4_golden_reconstruction_error() -> None:
    near(recon_error(S(4, 16, 0.6), S(4, 16, 0.3), "mse"), 0.022359, 0.021011, 0.021855, 0.023491)


def test_7_4_golden_cross_entropy() -> None:
    assert float(F.cross_entropy(STUDENT, LABEL)) == pytest.approx(2.904726, abs=2e-6)


# --- densities against torch's ---


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "drawn"), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 6))
def test_1_4_the_prior_is_a_mixture_of_normals(seed: int, classes: int, modes: int, d: int) -> None:
    z, means, logvars = drawn(seed, 4, d), drawn(seed + 1, classes, modes, d), drawn(seed + 2, classes, modes, d)
    q = drawn(seed + 3, 4, classes).softmax(-1)
    each = Normal(means, (logvars / 2).exp()).log_prob(z[:, None, None]).sum(-1) + d / 2 * log(2 * pi)
    torch.testing.assert_close(log_modes(z, means.flatten(0, 1), logvars.flatten(0, 1)), each.flatten(1))
    torch.testing.assert_close(log_prior(z, means, logvars, q), (each.exp().mean(-1) * q).sum(-1).log())
    own = torch.arange(4) % classes
    hard = log_prior_of(z, means[own], logvars[own])
    torch.testing.assert_close(hard, each[torch.arange(4), own].exp().mean(-1).log())
    torch.testing.assert_close(log_prior(z, means, logvars, F.one_hot(own, classes).double()), hard)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(3)))
def test_2_the_order_of_a_class_s_modes_means_nothing(seed: int, order: list[int]) -> None:
    z, means, logvars, q = (
        drawn(seed, 4, 5),
        drawn(seed + 1, 2, 3, 5),
        drawn(seed + 2, 2, 3, 5),
        torch.tensor([0.3, 0.7]),
    )
    torch.testing.assert_close(log_prior(z, means[:, order], logvars[:, order], q), log_prior(z, means, logvars, q))


def test_2_one_mode_is_a_single_gaussian_and_its_own_posterior_costs_nothing() -> None:
    network = made(replace(TINY, modes=1))
    seen = network.look(torch.rand(6, *SHAPE))._replace(mu=network.means[:, 0], logvar=network.logvars[:, 0])
    z = network.draw(torch.randn(6, 4), torch.arange(6), torch.zeros(6, dtype=torch.long))
    assert torch.equal(network.divergence(seen, z, torch.arange(6), None), torch.zeros(6)), "exactly"
    other = network.divergence(seen._replace(mu=seen.mu + 1), z, torch.arange(6), None)
    assert (other != 0).all()


def test_1_4_the_standard_prior_is_compared_in_closed_form() -> None:
    mu, logvar = drawn(0, 3, 5), drawn(1, 3, 5)
    wanted = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(divergence_from_standard(mu, logvar), wanted)
    network = made(replace(TINY, prior="standard"))
    seen = network.look(torch.rand(3, *SHAPE))
    found = network.divergence(seen, torch.full((3, 4), torch.nan), None, None)
    torch.testing.assert_close(found, divergence_from_standard(seen.mu, seen.logvar))
    noise = torch.randn(3, 4)
    assert network.draw(noise, LABEL[:3], LABEL[:3]) is noise and network.means.numel() == 0


def test_1_7_latent_values_of_classes_are_drawn_from_their_modes() -> None:
    network, noise = made(), torch.randn(4, 4)
    label, mode = torch.tensor([5, 0, 2, 2]), torch.tensor([0, 1, 0, 1])
    z = network.draw(noise, label, mode)
    for i in range(4):
        m, s = network.means[label[i], mode[i]], network.logvars[label[i], mode[i]]
        torch.testing.assert_close(z[i], m + s.exp().sqrt() * noise[i])


def test_1_6_binary_errors_are_cross_entropies_of_pixels() -> None:
    out, target = S(3, 16, 0.1, 2).view(3, *SHAPE), torch.rand(3, *SHAPE)
    network = made()
    wanted = F.binary_cross_entropy(network.shown(out), target, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(network.error(out, target), wanted)
    plain = made(replace(TINY, reconstruction="mse"))
    assert torch.equal(plain.shown(out), out)
    torch.testing.assert_close(plain.error(out, target), (out - target).square().flatten(1).mean(1) / 2)


def test_1_6_as_released_binary_errors_saturate_at_pixels_of_1() -> None:
    """-t log p - (1 - t) log(1 - p) of p = sigmoid(l) in single precision, logarithms of at least -100."""
    target = torch.tensor([[0.0, 0.25, 1.0]])
    for logit, saturated in ((-3.0, False), (0.0, False), (9.0, False), (18.0, True), (150.0, True)):
        out = torch.full((1, 3), logit, requires_grad=True)
        p = np.float32(1) / (np.float32(1) + np.exp(-np.float32(logit)))
        assert (p == 1) == saturated
        wanted = [-t * max(-100, log(p)) - (1 - t) * (max(-100, log(1 - p)) if p < 1 else -100) for t in (0, 0.25, 1)]
        found = recon_error(out, target, "saturating bce")
        torch.testing.assert_close(found, torch.tensor([sum(wanted) / 3]), atol=1e-5, rtol=1e-4)
        (g,) = torch.autograd.grad(found.sum(), out)
        assert bool(g.any()) != saturated, "and then nothing is learned"
        plain = recon_error(out, target, "bce")
        assert torch.allclose(found, plain, rtol=1e-4) != saturated
        assert torch.autograd.grad(plain.sum(), out)[0].any()


def test_1_6_errors_that_saturate_are_a_setting() -> None:
    network, plain = made(replace(TINY, reconstruction="saturating bce")), made()
    out, target = 40 * S(3, 16, 0.1).view(3, *SHAPE), torch.rand(3, *SHAPE)
    assert torch.equal(network.shown(out), plain.shown(out)), "what is dreamed is the same"
    torch.testing.assert_close(network.error(out, target), recon_error(out, target, "saturating bce"))
    assert (network.error(out, target) > 1.2 * plain.error(out, target)).all()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network.error(out, target), recon_error(out, target, "saturating bce"))


# --- gates ---


@pytest.mark.parametrize(("gates", "tasks"), [(0.8, None), (0.3, None), (0.6, 9)])
def test_1_gates_are_zeros_and_ones_in_their_share(gates: float, tasks: int | None) -> None:
    network = made(replace(TINY, hidden=2000, gates=gates, tasks=tasks))
    rows = tasks or CLASSES
    for gate in (network.gate1, network.gate2):
        assert gate.shape == (rows, 2000) and set(gate.unique().tolist()) == {0.0, 1.0}
        assert abs(float(gate.mean()) - (1 - gates)) < 3 * (gates * (1 - gates) / gate.numel()) ** 0.5
    assert network.by_task == (tasks is not None) and network.gated
    same = (network.gate1 == network.gate2).float().mean()
    assert abs(float(same) - (gates**2 + (1 - gates) ** 2)) < 0.03, "layers are drawn apart"
    assert len({tuple(row.tolist()) for row in network.gate1}) == rows


def test_1_gates_survive_a_state_dict_and_belong_to_the_seed() -> None:
    one, again, other = made(), made(), made(seed=2)
    assert torch.equal(one.gate1, again.gate1) and torch.equal(one.gate2, again.gate2)
    assert not torch.equal(one.gate1, other.gate1)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.gate1, other.gate1) and torch.equal(one.gate2, other.gate2)


def test_1_one_hot_weights_are_the_label_bit_for_bit() -> None:
    network = made()
    by_label, by_weights = network.gates_of(LABEL), network.gates_of(F.one_hot(LABEL, CLASSES).float())
    assert by_label and by_weights and all(torch.equal(a, b) for a, b in zip(by_label, by_weights, strict=True))
    z = torch.randn(4, 4)
    assert torch.equal(network.decode(z, by_label), network.decode(z, by_weights))


def test_1_soft_weights_mix_gates() -> None:
    network = made()
    soft = network.gates_of(torch.tensor([[0.25, 0, 0.75, 0, 0, 0]]))
    assert soft
    torch.testing.assert_close(soft[1][0], 0.25 * network.gate2[0] + 0.75 * network.gate2[2])


def test_1_5_gates_shut_units_of_both_hidden_layers_and_act_before_the_relu() -> None:
    network, heard = made(), {}
    for name in ("dec2", "out"):
        getattr(network, name).register_forward_pre_hook(lambda _, args, name=name: heard.update({name: args[0]}))
    z, gates = torch.randn(4, 4), network.gates_of(LABEL)
    assert gates
    x = network.decode(z, gates)
    for name, gate in (("dec2", gates[0]), ("out", gates[1])):
        assert not heard[name][gate == 0].any() and heard[name][gate == 1].any()
    g = torch.relu(gates[0] * (z @ network.dec1.weight.T + network.dec1.bias))
    g = torch.relu(gates[1] * (g @ network.dec2.weight.T + network.dec2.bias))
    torch.testing.assert_close(x, (g @ network.out.weight.T + network.out.bias).view(4, *SHAPE))
    fractional = network.decode(z, (gates[0] * 0.5, gates[1]))
    assert not torch.allclose(fractional, x)


def test_1_no_share_shut_is_no_gates_at_all() -> None:
    network, open_ = made(replace(TINY, gates=0.0)), torch.ones(4, 30)
    assert not network.gated and network.gates_of(LABEL) is None and network.gate1.numel() == 0
    z = torch.randn(4, 4)
    torch.testing.assert_close(network.decode(z), network.decode(z, (open_, open_)))


# --- the network ---


def test_1_2_what_the_encoder_computes() -> None:
    network, x = made(), torch.rand(3, *SHAPE)
    h = torch.relu(x.flatten(1) @ network.enc1.weight.T + network.enc1.bias)
    h = torch.relu(h @ network.enc2.weight.T + network.enc2.bias)
    seen = network.look(x)
    torch.testing.assert_close(seen.hidden, h)
    torch.testing.assert_close(seen.logits, h @ network.classifier.weight.T + network.classifier.bias)
    torch.testing.assert_close(seen.mu, h @ network.mu.weight.T + network.mu.bias)
    torch.testing.assert_close(seen.logvar, h @ network.logvar.weight.T)
    assert torch.equal(network(x), seen.logits) and network.logvar.bias is None


OTHERS = [{"gates": 0.0}, {"gates": 0.2}, {"tasks": 3}, {"prior": "standard"}, {"modes": 5}]


@pytest.mark.parametrize("change", OTHERS, ids=str)
def test_weights_of_layers_belong_to_the_seed_whatever_the_gates_and_the_prior(change: dict[str, Any]) -> None:
    built, drawn = [], []
    for config in (TINY, replace(TINY, **change)):
        with seeded(1, "init"):
            built.append(config.build(SHAPE, CLASSES))
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn), "nor is what is drawn next"
    one, other = (dict(network.named_parameters()) for network in built)
    layers = [name for name in one if name not in ("means", "logvars")]
    assert len(layers) == 15 and all(torch.equal(one[name], other[name]) for name in layers)
    assert not any(torch.equal(p, one[name]) for name, p in made(seed=2).named_parameters())


def test_1_4_modes_start_standard_normal() -> None:
    network = made(replace(TINY, latent=100, modes=10))
    for modes in (network.means, network.logvars):
        assert modes.shape == (CLASSES, 10, 100) and modes.requires_grad
        assert abs(modes.mean().item()) < 4 / 6000**0.5 and abs(modes.std().item() - 1) < 4 / 12000**0.5
    assert not torch.equal(network.means, network.logvars)


PARTS = {"enc1.weight", "enc1.bias", "enc2.weight", "enc2.bias", "classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("freeze", [None, True, False])
def test_1_8_synaptic_intelligence_holds_encoder_and_classifier(freeze: bool | None) -> None:
    inside = ReplayVAE(**CONV, internal=False, freeze=bool(freeze))
    network = made() if freeze is None else made(inside, shape=(3, 32, 32))
    held = {id(p) for p in network.consolidated()}
    found = {name for name, p in network.named_parameters() if id(p) in held}
    front = {name for name, _ in network.named_parameters() if name.startswith("front.")}
    assert found == PARTS | (front if freeze is False else set()) and bool(front) == (freeze is not None)


# --- numbers of parameters (1.2) ---


def count(network: Any, learning: bool | None = None) -> int:
    return sum(p.numel() for p in network.parameters() if learning is None or p.requires_grad == learning)


@pytest.mark.parametrize(
    ("config", "shape", "classes", "wanted"),
    [
        (ReplayVAE(), (1, 28, 28), 10, 1_075_694),
        (ReplayVAE(hidden=2000, tasks=100), (1, 32, 32), 10, 12_727_134),
        (ReplayVAE(hidden=2000, stem="conv", reconstruction="mse", gates=0.7), (1024,), 100, 12_925_224),
    ],
    ids=["split MNIST", "permuted MNIST", "CIFAR-100"],
)
def test_12_numbers_of_parameters(config: ReplayVAE, shape: tuple[int, ...], classes: int, wanted: int) -> None:
    network = config.build(shape, classes)
    assert count(network) == count(network, learning=True) == wanted


def test_12_the_convolutions_add_what_is_frozen() -> None:
    config = ReplayVAE(**CONV)
    front = config.front((3, 32, 32))
    assert isinstance(front, ConvFront) and count(front, learning=False) == count(front) == 393_088
    assert count(config.build((1024,), 5)) == count(replace(config, stem="none").build((1024,), 5))


def test_1_6_what_the_divergence_is_divided_by() -> None:
    assert made().pixels == 16 and ReplayVAE(**CONV).build((1024,), 2).pixels == 3072
    assert ReplayVAE(**CONV, kl_scale=7).build((1024,), 2).pixels == 7


# --- convolutions inside ---


@pytest.mark.parametrize("freeze", [True, False])
def test_images_are_replayed_where_convolutions_are_inside(freeze: bool) -> None:
    config = ReplayVAE(**CONV, internal=False, freeze=freeze)
    network, x = made(config, shape=(3, 32, 32)), torch.rand(4, 3, 32, 32)
    assert config.front((3, 32, 32)) is None and network.front is not None
    before = {name: value.clone() for name, value in network.front.state_dict().items()}
    seen = network.look(x)
    out = network.decode(seen.mu, network.gates_of(LABEL))
    assert out.shape == (4, 3, 32, 32) and seen.logits.shape == (4, CLASSES) and network.pixels == 3072
    network.error(out, x).sum().backward()
    assert network.dec1.weight.grad is not None and network.dec1.weight.grad.any()
    moved = {name for name, value in network.front.state_dict().items() if not torch.equal(value, before[name])}
    assert bool(moved) != freeze and network.front.norms[0].training != freeze
    assert all((p.grad is None) == freeze for p in network.front.parameters())


def test_reconstructed_images_are_compared_as_the_convolutions_see_them() -> None:
    network, x = made(ReplayVAE(**CONV, internal=False), shape=(3, 32, 32)), torch.rand(2, 3, 32, 32)
    assert network.front is not None
    torch.testing.assert_close(network.shown(network.front.normalized(x)), x)
    assert float(network.error(network.front.normalized(x), x).detach().abs().max()) == 0
    mean, std = torch.tensor([[0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2761]]).view(2, 3, 1, 1)
    wanted = (x - mean) / std
    torch.testing.assert_close(network.error(torch.zeros_like(x), x), wanted.square().flatten(1).mean(1) / 2)


def test_features_are_replayed_where_convolutions_stand_before_the_stream() -> None:
    network = made(ReplayVAE(**CONV), shape=(1024,))
    assert network.front is None and network.decode(torch.randn(2, 3)).shape == (2, 1024)
    assert network(torch.randn(2, 1024)).shape == (2, CLASSES)


# --- refusals ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden", 0),
        ("hidden", 2.5),
        ("latent", 0),
        ("modes", -1),
        ("prior", "normal"),
        ("gates", 1.0),
        ("gates", -0.1),
        ("gates", float("nan")),
        ("tasks", 0),
        ("kl_scale", 0),
        ("reconstruction", "l1"),
        ("stem", "vit"),
        ("internal", 1),
        ("freeze", None),
    ],
)
def test_impossible_settings_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        ReplayVAE(**{name: value})
    assert str(caught.value).startswith(f"{name} = {value!r}: ")


def test_settings_that_do_not_go_together_are_refused() -> None:
    for kind in ("bce", "saturating bce"):
        with pytest.raises(UserError, match=rf"^reconstruction = '{kind}': .*'mse'"):
            ReplayVAE(stem="conv", reconstruction=kind)
    with pytest.raises(UserError, match=r"^freeze = False: .*internal = False"):
        ReplayVAE(**CONV, freeze=False)
    config = ReplayVAE(**CONV)
    for shape in ((1, 28, 28), (3, 28, 28), (1000,)):
        for call in (config.front, lambda s: config.build(s, 2)):
            with pytest.raises(UserError, match=r"^stem = 'conv': .*\[3, 32, 32\], not \["):
                call(shape)
    lost = replace(config, weights="/nowhere.safetensors")
    for call in (lost.front, lambda s: replace(lost, internal=False).build(s, 2)):
        with pytest.raises(UserError, match=r"^weights = '/nowhere.safetensors'"):
            call((3, 32, 32))
