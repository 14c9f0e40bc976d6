"""The optimiser that consolidates: golden values and invariants; the number in a name is that of the chapter's test."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cllib import metaplasticity
from cllib.checkpoints import digest
from cllib.contract import StopAt, Stopped, tiny_stream, trained
from cllib.errors import UserError
from cllib.metaplasticity import GATES, MetaplasticAdam, f_meta, frozen, groups, rescaled, weaken
from cllib.models.binary import BinaryMLP, binary_weights
from cllib.models.networks import MLP
from cllib.randomness import generator, seeded
from cllib.recipes import Recipe
from cllib.streams.tasks import TaskSequence
from cllib.threads import one_thread
from cllib.training import Keeper, train

SHAPES = ((3, 4), (5,), (2, 3, 2, 2), (1, 1), ())


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=generator(seed, "x"))


def tensors(dtype: torch.dtype = torch.float32, scale: float = 0.5, seed: int = 0) -> list[nn.Parameter]:
    return [nn.Parameter(normal(*s, seed=seed + k, scale=scale).to(dtype)) for k, s in enumerate(SHAPES)]


def gradients(steps: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Iterator[list[Tensor]]:
    """Gradients with a drift, so that first moments are not all noise."""
    for t in range(steps):
        draws = [normal(*s, seed=1000 * (k + 1) + t) for k, s in enumerate(SHAPES)]
        yield [(scale * (g + 0.5 * (-1) ** k)).to(dtype) for k, g in enumerate(draws)]


def stepped(optimiser: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], gs: Sequence[Tensor | None]) -> None:
    for p, g in zip(parameters, gs, strict=True):
        p.grad = None if g is None else g.clone()
    optimiser.step()


def one_step(w: float, g: float, m: float, gate: str = "shrinking", lr: float = 0.01) -> float:
    """By how much the first step moves a single weight, in float64."""
    p = nn.Parameter(torch.tensor([[w]], dtype=torch.float64))
    stepped(MetaplasticAdam([p], lr, meta=m, gate=gate), [p], [torch.full_like(p, g)])
    return float(p.detach() - w)


# --- 1: the function ---


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 50), st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=9), st.integers(-4, 4))
def test_1_what_consolidates_is_even_bounded_and_of_the_product(m: float, ws: list[float], power: int) -> None:
    for dtype in (torch.float32, torch.float64):
        w, c = torch.tensor(ws, dtype=dtype), 2.0**power
        f = f_meta(m, w)
        assert (f_meta(0.0, w) == 1).all() and (f_meta(m, torch.zeros_like(w)) == 1).all()
        assert torch.equal(f, f_meta(m, -w)) and (f >= 0).all() and (f <= 1).all()
        assert torch.equal(f_meta(m / c, c * w), f) or m / c < 1e-300


def test_1_it_falls_with_m_and_with_the_weight() -> None:
    grid = torch.linspace(0, 3, 61, dtype=torch.float64)
    table = torch.stack([f_meta(float(m), grid) for m in grid])  # [m, |W|]
    assert (table.diff(dim=0) <= 0).all() and (table.diff(dim=1) <= 0).all()
    assert (table[1:, 1:].diff(dim=0) < 0).any(1).all() and (table[1:, 1:].diff(dim=1) < 0).any(1).all()
    small = torch.linspace(1e-4, 0.01, 50, dtype=torch.float64)
    torch.testing.assert_close(f_meta(2.0, small), 1 - (2 * small) ** 2, atol=1e-6, rtol=0)


@pytest.mark.parametrize("m", [0.5, 1.35, 8.0, 32.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 5e-7)])
def test_1_the_step_computes_the_same_function(m: float, dtype: torch.dtype, tolerance: float) -> None:
    w = torch.linspace(-12 / m, 12 / m, 4000, dtype=dtype)  # 0 is not among them
    new = -(2.0**20) * w.sign()
    left = new.clone()
    weaken(left, w, w.sign(), m)  # a step so long that rounding of its end does not matter, of which f is left
    wanted = 1 - torch.tanh(m * w) ** 2
    torch.testing.assert_close((w - left.double()).div(w - new.double()).to(dtype), wanted, atol=tolerance, rtol=0)
    assert torch.equal(f_meta(m, w), wanted)


# --- 2: one step ---


@pytest.mark.parametrize("m", [0.3, 1.35, 4.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_2_a_first_step_is_weakened_towards_zero_and_plain_away_from_it(m: float, sign: int) -> None:
    w, g = 0.5 * sign, 0.7 * sign
    plain = one_step(w, g, 0.0)
    assert one_step(w, g, m) == pytest.approx(plain * (1 - np.tanh(m * 0.5) ** 2), rel=1e-9)
    assert abs(one_step(w, g, m)) < 0.99 * abs(plain)
    assert one_step(w, -g, m) == one_step(w, -g, 0.0), "bit for bit"


@settings(max_examples=40, deadline=None)
@given(st.floats(-12, 1), st.sampled_from([1, -1]))
def test_2_the_first_step_has_the_size_of_the_original(exponent: float, sign: int) -> None:
    g, lr = sign * 10**exponent, 0.01
    p = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
    stepped(MetaplasticAdam([p], lr), [p], [torch.full((1, 1), g, dtype=torch.float64)])
    assert float(-p.detach()) == pytest.approx(sign * lr * abs(g) / (abs(g) + 1e-8 / sqrt(0.001)), rel=1e-9)


# --- 3: the gate follows the first moment ---


def test_3_the_gate_follows_the_moment_not_the_gradient() -> None:
    m, lr = 2.0, 0.01
    ends = {}
    for meta in (0.0, m):
        p = nn.Parameter(torch.tensor([[0.5]], dtype=torch.float64))
        optimiser = MetaplasticAdam([p], lr, meta=meta)
        for _ in range(5):
            stepped(optimiser, [p], [torch.ones(1, 1, dtype=torch.float64)])
        with torch.no_grad():
            p.fill_(0.5)
        stepped(optimiser, [p], [torch.full((1, 1), -0.1, dtype=torch.float64)])  # u stays positive: towards zero
        assert float(optimiser.state[p]["exp_avg"]) > 0
        ends[meta] = float(p.detach()) - 0.5
    assert ends[0.0] < 0 and ends[m] == pytest.approx(ends[0.0] * (1 - np.tanh(m * 0.5) ** 2), rel=1e-9)


def test_3_without_a_moment_nothing_is_gated() -> None:
    assert one_step(0.5, 0.0, 9.0) == 0 and one_step(0.0, 1.0, 9.0) == one_step(0.0, 1.0, 0.0)


# --- the equations, written out ---


class Naive:
    """The equations with plain numbers of float64, tensor by tensor, weight by weight."""

    def __init__(self, weights: Sequence[Tensor], lr: float, decay: float, metas: Sequence[float]) -> None:
        self.w = [np.array(w.detach().double().numpy()) for w in weights]
        self.u, self.v = [np.zeros_like(w) for w in self.w], [np.zeros_like(w) for w in self.w]
        self.lr, self.decay, self.metas, self.t = lr, decay, metas, 0

    def step(self, gs: Sequence[Tensor]) -> None:
        self.t += 1
        a = self.lr * sqrt(1 - 0.999**self.t) / (1 - 0.9**self.t)
        for k, (gradient, m) in enumerate(zip(gs, self.metas, strict=True)):
            w = self.w[k]
            g = gradient.double().numpy() + self.decay * w
            self.u[k] = 0.9 * self.u[k] + (1 - 0.9) * g
            self.v[k] = 0.999 * self.v[k] + (1 - 0.999) * g * g
            shrinks = np.sign(w) * self.u[k] > 0
            f = 1 - np.tanh(m * np.abs(w)) ** 2
            self.w[k] = w - a * np.where(shrinks, f * self.u[k], self.u[k]) / (np.sqrt(self.v[k]) + 1e-8)


@pytest.mark.parametrize("decay", [0.0, 1e-7, 0.05])
@pytest.mark.parametrize("scale", [1.0, 1e-8])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_4_fifty_steps_follow_the_equations(dtype: torch.dtype, tolerance: float, scale: float, decay: float) -> None:
    parameters, metas = tensors(dtype), (1.35, 0.0, 8.0, 2.0, 0.0)
    parts = [{"params": [p], "meta": m} for p, m in zip(parameters, metas, strict=True)]
    optimiser, naive = MetaplasticAdam(parts, 0.01, weight_decay=decay), Naive(parameters, 0.01, decay, metas)
    ungated = Naive(parameters, 0.01, decay, [0.0] * 5)
    for gs in gradients(50, scale, dtype):
        stepped(optimiser, parameters, gs)
        naive.step(gs)
        ungated.step(gs)
        for p, w in zip(parameters, naive.w, strict=True):
            torch.testing.assert_close(p.detach().double(), torch.tensor(w), atol=tolerance, rtol=tolerance)
    made = [float(np.abs(a - b).max()) for a, b in zip(naive.w, ungated.w, strict=True)]
    assert [difference > 1e-3 for difference in made] == [m > 0 for m in metas], "what gating changed"


def test_4_a_network_learns_as_in_the_original_which_swaps_weights_and_signs() -> None:
    """Hidden weights are put away, signs put in their place, and back before the step; in float64, 50 batches."""
    with seeded(1, "init"):
        clean = BinaryMLP(hidden=(8, 8)).build((1, 4, 4), 3).double()
    swapped, start = deepcopy(clean), deepcopy(clean)
    optimiser = MetaplasticAdam(groups(clean, (5.0,)), 0.005, weight_decay=1e-7)
    hidden = {name: w.detach().clone() for name, w in binary_weights(swapped).items()}
    names = [name for name, _ in swapped.named_parameters()]
    naive = Naive([*swapped.parameters()], 0.005, 1e-7, [5.0 if name in hidden else 0.0 for name in names])
    for t in range(50):
        x, y = normal(10, 16, seed=t).double(), torch.arange(10) % 3
        optimiser.zero_grad()
        nn.functional.cross_entropy(clean(x), y).backward()
        optimiser.step()
        with torch.no_grad():
            for name, p in swapped.named_parameters():
                value = torch.tensor(naive.w[names.index(name)])
                p.copy_(torch.where(value < 0, -1.0, 1.0) if name in hidden else value)
        swapped.zero_grad()
        for name, layer in swapped.named_children():
            x = nn.functional.linear(x, layer.weight) if name.startswith("fc") else layer(x)
        nn.functional.cross_entropy(x, y).backward()
        naive.step([p.grad for p in swapped.parameters()])
        for p, w in zip(clean.parameters(), naive.w, strict=True):
            torch.testing.assert_close(p.detach(), torch.tensor(w), atol=1e-9, rtol=0)
    flips = [(a < 0) != (b < 0) for a, b in zip(start.parameters(), clean.parameters(), strict=True) if a.dim() > 1]
    assert all(flipped.any() for flipped in flips)


def test_tensors_larger_than_a_block_are_gated_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor is worked through in pieces; wherever these end."""
    ends = []
    for size in (metaplasticity.BLOCK, 7):
        monkeypatch.setattr(metaplasticity, "BLOCK", size)
        p = nn.Parameter(normal(5, 9))
        optimiser = MetaplasticAdam([p], 0.01, meta=3.0, gate="shuffled")
        for t in range(5):
            stepped(optimiser, [p], [normal(5, 9, seed=t + 1)])
        ends.append(p.detach().clone())
    assert torch.equal(*ends)


def test_two_optimisers_at_once_do_not_meet_in_their_memory() -> None:
    """The memory for intermediate values is shared by all optimisers of a thread."""
    alone = []
    for k in range(2):
        (p,) = tensors(seed=k)[:1]
        optimiser = MetaplasticAdam([p], 0.01, meta=3.0)
        for gs in gradients(10):
            stepped(optimiser, [p], gs[:1])
        alone.append(p.detach().clone())
    parameters = [tensors(seed=k)[0] for k in range(2)]
    optimisers = [MetaplasticAdam([p], 0.01, meta=3.0) for p in parameters]
    for gs in gradients(10):
        for p, optimiser in zip(parameters, optimisers, strict=True):
            stepped(optimiser, [p], gs[:1])
    assert all(torch.equal(a, p) for a, p in zip(alone, parameters, strict=True))


def test_a_closure_is_called_for_the_loss() -> None:
    p = nn.Parameter(torch.tensor([[2.0]]))
    optimiser = MetaplasticAdam([p], 0.01, meta=1.0)

    def loss() -> Any:
        optimiser.zero_grad()
        value = p.square().sum()
        value.backward()
        return value

    assert float(optimiser.step(loss).detach()) == 4 and float(p.detach()) == pytest.approx(
        2 - 0.01 * f_meta(1.0, p).item()
    )


# --- 4: without gating it is Adam ---


@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_4_without_m_it_is_adam(decay: float) -> None:
    nets = [tensors() for _ in range(4)]
    ours: list[torch.optim.Optimizer] = [
        MetaplasticAdam(nets[0], 0.005, weight_decay=decay, meta=0.0),
        MetaplasticAdam([{"params": nets[1], "meta": 0.0}], 0.005, weight_decay=decay, meta=7.0, gate="both"),
        torch.optim.Adam(nets[2], 0.005, weight_decay=decay),
        MetaplasticAdam(nets[3], 0.005, weight_decay=decay, meta=7.0),
    ]
    for gs in gradients(30):
        for net, optimiser in zip(nets, ours, strict=True):
            stepped(optimiser, net, gs)
    for plain, ungated, torchs, gated in zip(*nets, strict=True):
        assert torch.equal(plain, ungated)
        torch.testing.assert_close(plain, torchs, atol=1e-5, rtol=0)
        assert not torch.equal(plain, gated)


def test_4_a_gate_that_is_open_is_bitwise_no_gate() -> None:
    """A coefficient so small that f is 1 leaves the bits of plain Adam, though the steps are computed."""
    nets = tensors(), tensors()
    both = MetaplasticAdam(nets[0], 0.005, meta=1e-12), MetaplasticAdam(nets[1], 0.005)
    for gs in gradients(30):
        for net, optimiser in zip(nets, both, strict=True):
            stepped(optimiser, net, gs)
    assert all(torch.equal(a, b) for a, b in zip(*nets, strict=True))


def test_4_epsilon_stands_outside_the_bias_correction() -> None:
    """At |g| = 1e-8 the first step is 3 % of the step size, where today's Adam makes half of it."""
    ends = {}
    for kind in (MetaplasticAdam, torch.optim.Adam):
        p = nn.Parameter(torch.ones(1, 1))
        stepped(kind([p], lr=0.01), [p], [torch.full((1, 1), 1e-8)])
        ends[kind] = float(1 - p.detach()) / 0.01
    assert ends[MetaplasticAdam] == pytest.approx(1 / (1 + 1 / sqrt(0.001)), rel=1e-2)
    assert ends[torch.optim.Adam] == pytest.approx(0.5, rel=1e-2)


def test_4_decay_alone_moves_weights_as_in_the_original() -> None:
    """20 steps without a gradient, decay 1e-7: mean |w| 0.795 -> 0.759 as in the original, 0.717 with today's Adam."""
    start, ends = normal(200, 200), {}
    for kind in (MetaplasticAdam, torch.optim.Adam):
        p = nn.Parameter(start * (0.795 / start.abs().mean()))
        optimiser = kind([p], lr=0.005, weight_decay=1e-7)
        for _ in range(20):
            stepped(optimiser, [p], [torch.zeros_like(p)])
        ends[kind] = float(p.detach().abs().mean())
    assert ends[MetaplasticAdam] == pytest.approx(0.759, abs=2e-3)
    assert ends[torch.optim.Adam] == pytest.approx(0.717, abs=2e-3)


# --- 5: what is exempt ---


def network(**told: Any) -> nn.Module:
    with seeded(0, "init"):
        return BinaryMLP(hidden=(9,), **told).build((1, 4, 4), 6)


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 40), st.sampled_from(GATES))
def test_5_what_is_not_gated_does_not_depend_on_m(m: float, gate: str) -> None:
    nets = network(), network()
    ours = MetaplasticAdam(groups(nets[0], (m,)), 0.05, gate=gate), MetaplasticAdam(nets[1].parameters(), 0.05)
    for t in range(5):
        for net, optimiser in zip(nets, ours, strict=True):
            named = dict(net.named_parameters())
            gs = [normal(*p.shape, seed=100 * t + k) for k, p in enumerate(named.values())]
            stepped(optimiser, list(named.values()), gs)
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        if name not in binary_weights(nets[0]):
            assert a.dim() == 1 and torch.equal(a, b)
        elif m > 5:
            assert not torch.equal(a, b)


def test_5_groups_hold_every_parameter_once_under_its_coefficient() -> None:
    net = network()
    ours = groups(net, (1.0, 2.0))
    assert [(part["meta"], [tuple(p.shape) for p in part["params"]]) for part in ours] == [
        (1.0, [(9, 16)]),
        (2.0, [(6, 9)]),
        (0.0, [(9,), (9,), (6,), (6,)]),
    ]
    for meta in ((1.0,), (1.0, 1.0)):
        shared, rest = groups(net, meta)
        assert [len(part["params"]) for part in (shared, rest)] == [2, 4] and shared["meta"] == 1.0
    (alone,) = groups(net, (3.0,), "none")
    assert alone["meta"] == 0 and len(alone["params"]) == 6
    net.fc1.weight.requires_grad_(False)
    assert sum(len(part["params"]) for part in groups(net, (1.0,))) == 5


def test_5_coefficients_of_layers_reach_their_layer() -> None:
    made = []
    for meta in ((0.0, 0.0), (30.0, 0.0), (0.0, 30.0)):
        net = network(init_width=2.0)
        optimiser = MetaplasticAdam(groups(net, meta), 0.05)
        for t in range(3):
            gs = [normal(*p.shape, seed=100 * t + k) for k, p in enumerate(net.parameters())]
            stepped(optimiser, list(net.parameters()), gs)
        made.append([net.fc1.weight, net.fc2.weight])
    plain, first, second = made
    assert not torch.equal(plain[0], first[0]) and torch.equal(plain[1], first[1])
    assert torch.equal(plain[0], second[0]) and not torch.equal(plain[1], second[1])


@pytest.mark.parametrize(
    ("meta", "scope", "message"),
    [
        ((1.0, 2.0, 3.0), "binary", r"meta = \(1.0, 2.0, 3.0\): give one .* or one for each of the 2 layers of "
         r"meta_scope = 'binary': fc1, fc2$"),
        ((1.0, 2.0), "none", r"each of the 0 layers of meta_scope = 'none': none$"),
        ((), "binary", r"meta = \(\): give one coefficient"),
        ((1.0,), "all", "meta_scope = 'all': allowed are"),
    ],
)  # fmt: skip
def test_5_another_number_of_coefficients_is_refused_in_one_line(meta: Any, scope: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        groups(network(), meta, scope)
    assert "\n" not in str(caught.value)


def test_parameters_without_a_gradient_stay() -> None:
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimiser = MetaplasticAdam([used, unused], 0.1, weight_decay=0.5, meta=1.0)
    stepped(optimiser, [used, unused], [torch.ones(2, 2), None])
    assert torch.equal(unused, torch.ones(2, 2)) and not torch.equal(used, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gate": "none"}, "gate = 'none': allowed are shrinking, growing, both, shuffled"),
        ({"meta": -1.0}, "meta = -1.0: must be a number at least 0"),
        ({"meta": float("nan")}, "meta = nan"),
        ({"meta": float("inf")}, "meta = inf"),
    ],
)
def test_impossible_optimisers_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MetaplasticAdam(tensors(), **wrong)
    if "meta" in wrong:
        with pytest.raises(UserError, match=message):
            MetaplasticAdam([{"params": tensors(), **wrong}])


# --- 8: scale ---


@pytest.mark.parametrize("c", [0.5, 2.0, 4.0])
def test_8_scale_larger_weights_and_steps_with_a_smaller_m_are_the_same(c: float) -> None:
    recipe = Recipe(network=BinaryMLP(hidden=(12, 9)), optimizer="metaplastic", meta=(8.0,), step_size=0.01)
    stream, learners = tiny_stream(), []
    for scale in (1.0, c):
        learner = replace(recipe, meta=(8.0 / scale,)).build(stream, 1)
        with torch.no_grad():
            for w in binary_weights(learner.network).values():
                w.mul_(scale)
        gated, rest = learner.optimiser.param_groups
        gated["lr"] *= scale
        assert len(gated["params"]) == 3 and rest["lr"] == 0.01
        learners.append(learner)
    start = [w.detach().clone() for w in binary_weights(learners[0].network).values()]
    for k, (x, y) in enumerate(replace(recipe, batch_size=4, iterations=30).feed(stream, 1).batches(0)):
        said = [learner.observe(x, y) for learner in learners]
        assert torch.equal(*said), f"after {k} steps"
        for a, b in zip(*(learner.network.named_parameters() for learner in learners), strict=True):
            factor = c if a[0] in binary_weights(learners[0].network) else 1.0
            assert torch.equal(a[1] * factor, b[1]), (a[0], k)
    assert k == 29
    signs = [(a < 0) != (w < 0) for a, w in zip(start, binary_weights(learners[0].network).values(), strict=True)]
    assert all(flipped.any() for flipped in signs), "signs have changed, and in both alike"


def test_8_rescaled_coefficients() -> None:
    assert rescaled(1.35, 24_000) == 1.35 and rescaled(1.0, 6000) == 2.0 and rescaled(2.0, 100, 400) == 4.0


# --- 9: frozen weights ---


@pytest.mark.parametrize("m", [1.35, 9.1, 50.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_9_consolidated_weights_cannot_shrink_in_float32(m: float, sign: int) -> None:
    w = torch.tensor([[9.1, 12.0, 100.0]]).div(m).mul(1.000001).mul(sign)
    assert (f_meta(m, w) == 0).all()
    p = nn.Parameter(w.clone())
    optimiser = MetaplasticAdam([p], 0.01, meta=m)
    for _ in range(20):
        stepped(optimiser, [p], [torch.full_like(w, float(sign))])
    assert torch.equal(p, w), "not by a bit"
    optimiser = MetaplasticAdam([p], 0.01, meta=m)
    stepped(optimiser, [p], [torch.full_like(w, float(-sign))])
    assert (p.detach().abs() > w.abs()).all()


def test_9_just_below_they_can() -> None:
    assert 0 < float(f_meta(1.0, torch.tensor(9.01))) < 3e-7
    p = nn.Parameter(torch.tensor([[8.0]]))
    stepped(MetaplasticAdam([p], 10.0, meta=1.0), [p], [torch.ones(1, 1)])
    assert float(8 - p.detach()) == pytest.approx(10 * float(f_meta(1.0, torch.tensor(8.0))), abs=3e-6)
    assert p.detach() < 8


def test_9_the_share_of_frozen_weights() -> None:
    net = network()
    with torch.no_grad():
        net.fc1.weight.fill_(0.1)
        net.fc1.weight[0] = -3.0
        net.fc2.weight.fill_(0.0)
    found = frozen(net, 2.0)
    assert found == {"fc1.weight": pytest.approx(1 / 9), "fc2.weight": 0.0}
    assert frozen(net, 0.0) == {"fc1.weight": 0.0, "fc2.weight": 0.0}
    border = float(1 - torch.tanh(torch.tensor(0.2)) ** 2)
    assert frozen(net, 2.0, border + 1e-4)["fc1.weight"] == 1.0
    with torch.no_grad():  # f_meta just above and just below .001
        net.fc1.weight.fill_(4.1 / 2)
        net.fc2.weight.fill_(4.2 / 2)
    assert frozen(net, 2.0) == {"fc1.weight": 0.0, "fc2.weight": 1.0}
    assert frozen(MLP((3,)).build((4,), 2), 2.0) == {}


# --- the controls ---


@pytest.mark.parametrize("sign", [1, -1])
def test_controls_gate_what_they_say(sign: int) -> None:
    w, m = 0.5 * sign, 2.0
    f = 1 - np.tanh(m * 0.5) ** 2
    towards, away = one_step(w, 0.7 * sign, 0.0), one_step(w, -0.7 * sign, 0.0)
    weakened = {
        gate: (one_step(w, 0.7 * sign, m, gate) / towards, one_step(w, -0.7 * sign, m, gate) / away) for gate in GATES
    }
    near = {"rel": 1e-4}
    assert weakened["shrinking"] == (pytest.approx(f, **near), 1)
    assert weakened["growing"] == (1, pytest.approx(f, **near))
    assert weakened["both"] == (pytest.approx(f, **near), pytest.approx(f, **near))
    assert weakened["shuffled"] == (pytest.approx(f, **near), 1), "a single weight is lent its own size"


def shuffle_of(optimiser: MetaplasticAdam, p: nn.Parameter, m: float) -> list[int]:
    """Which weight's size each weight is lent, read off a step towards zero."""
    with torch.no_grad():
        p.copy_(torch.linspace(0.1, 1.5, p.numel()).view_as(p))
    old, u = p.detach().clone(), optimiser.state[p].get("exp_avg")
    lr = optimiser.param_groups[0]["lr"]
    stepped(optimiser, [p], [torch.ones_like(p)])
    assert u is None or (u > 0).all()
    factors = ((old - p.detach()) / lr).flatten()
    expected = f_meta(m, old.flatten())
    return [int((expected - f).abs().argmin()) for f in factors]


def test_controls_the_shuffle_is_fixed_for_a_run_and_drawn_from_its_seed() -> None:
    def lent(seed: int, times: int = 1) -> list[list[int]]:
        p = nn.Parameter(torch.empty(4, 5, dtype=torch.float64))
        optimiser = MetaplasticAdam([p], 1e-3, betas=(0.0, 0.0), meta=1.5, gate="shuffled", seed=seed)
        return [shuffle_of(optimiser, p, 1.5) for _ in range(times)]

    first, second, third = lent(3, 3)
    assert sorted(first) == list(range(20)) and first != list(range(20)), "a permutation inside the tensor"
    assert first == second == third, "the same one at every step"
    assert lent(3) == [first] and lent(4) != [first]


def test_controls_tensors_are_shuffled_apart() -> None:
    pair = [nn.Parameter(torch.empty(4, 5)) for _ in range(2)]
    optimiser = MetaplasticAdam(pair, meta=1.5, gate="shuffled", seed=1)
    stepped(optimiser, pair, [torch.ones(4, 5)] * 2)
    first, second = optimiser.shuffles.values()
    assert not torch.equal(first, second)
    wanted = torch.randperm(20, generator=generator(1, "shuffled sizes 0"))
    assert torch.equal(first, wanted)


def test_controls_the_recipe_tells_the_seed() -> None:
    stream = tiny_stream()
    recipe = Recipe(network=BinaryMLP(hidden=(9,)), optimizer="metaplastic", meta=(30.0,), gate="shuffled")
    (x, y) = next(iter(recipe.feed(stream, 1).batches(0)))
    shuffles = []
    for seed in (1, 1, 2):
        learner = recipe.build(stream, seed)
        learner.observe(x, y)
        shuffles.append(list(learner.optimiser.shuffles.values()))
    assert all(torch.equal(a, b) for a, b in zip(shuffles[0], shuffles[1], strict=True))
    assert not torch.equal(shuffles[0][0], shuffles[2][0])


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("cut", [3, 11, 12, 15])
def test_a_stopped_run_goes_on_with_the_same_bits(gate: str, cut: int, tmp_path: Path) -> None:
    """The shuffle too, though no checkpoint holds it."""
    config = Recipe(
        network=BinaryMLP(hidden=(9,)), optimizer="metaplastic", meta=(30.0, 5.0), gate=gate, step_size=0.02, reset=True
    )
    straight, wanted = trained(config)
    with pytest.raises(Stopped):
        trained(config, keeper=StopAt(tmp_path / "c.pt", cut))
    resumed, found = trained(config, keeper=Keeper(tmp_path / "c.pt", "contract", keep=False))
    assert digest(resumed.state_dict()) == digest(straight.state_dict())
    assert np.array_equal(found.test, wanted.test)


def test_the_state_holds_what_a_checkpoint_can_and_brings_the_step_count_back() -> None:
    nets = tensors(), tensors()
    first, second = (MetaplasticAdam(net, 0.01, meta=3.0) for net in nets)
    steps = list(gradients(12))
    for gs in steps[:6]:
        stepped(first, nets[0], gs)
    digest(first.state_dict())
    second.load_state_dict(deepcopy(first.state_dict()))
    with torch.no_grad():
        for a, b in zip(*nets, strict=True):
            b.copy_(a)
    for gs in steps[6:]:
        stepped(first, nets[0], gs)
        stepped(second, nets[1], gs)
    assert all(second.state[p]["steps"] == int(second.state[p]["step"]) == 12 for p in nets[1])
    assert all(torch.equal(a, b) for a, b in zip(*nets, strict=True))


# --- 14: it remembers ---


@pytest.fixture(scope="module")
def final() -> dict[tuple[float, str], np.ndarray]:
    """Final accuracies, in percent, on four permuted tasks: by coefficient and gate."""
    runs = [(m, "shrinking") for m in (0.0, 16.0, 64.0)]
    with one_thread():
        return learned([*runs, (32.0, "growing"), (16.0, "both")])


def learned(runs: Sequence[tuple[float, str]]) -> dict[tuple[float, str], np.ndarray]:
    stream = TaskSequence(("pFMNIST-6k",) * 4, train_size=200, test_size=100).build()
    found = {}
    for m, gate in runs:
        recipe = Recipe(
            *("naive", None, BinaryMLP(hidden=(128, 128)), "metaplastic"),
            **{"step_size": 0.005, "batch_size": 50, "epochs": 3, "reset": True, "own_norms": True},
            **{"meta": (m,), "gate": gate},
        )
        learner = recipe.build(stream, 0)
        found[m, gate] = 100 * train(learner, stream, recipe.feed(stream, 0), progress=False).test[0, -1]
    return found


# 784-128-128-10, 4 tasks of 2,000 images, 3 epochs, batch 50: 120 steps a task. Measured, final accuracies of t1 to t4,
# seed 0 (seed 1 within 5 points, single tasks included):
#   m =  0             44.8 62.9 75.2 79.2   mean 65.5 (seed 1: 66.8)
#   m = 16             69.7 74.6 77.6 78.2   mean 75.0 (74.7)
#   m = 64             77.5 72.5 49.4 30.9   mean 57.6 (58.9)
#   m = 32, "growing"  17.6 26.0 50.6 77.6   mean 43.0 (42.4)
#   m = 16, "both"     47.1 64.7 74.4 80.1   mean 66.6 (66.5)
def test_14_consolidation_protects_old_tasks(final: dict[tuple[float, str], np.ndarray]) -> None:
    plain, gated = final[0.0, "shrinking"], final[16.0, "shrinking"]
    assert gated.mean() - plain.mean() > 4 and gated[0] - plain[0] > 12
    assert plain[0] < plain[1] < plain[3], "plain training forgets"


def test_14_too_much_of_it_costs_new_tasks(final: dict[tuple[float, str], np.ndarray]) -> None:
    plain, gated = final[0.0, "shrinking"], final[64.0, "shrinking"]
    assert gated[0] > 70 and gated[3] < plain[3] - 25 and gated[0] > gated[3] + 25


def test_14_it_is_the_direction_that_matters(final: dict[tuple[float, str], np.ndarray]) -> None:
    wrong, both = final[32.0, "growing"], final[16.0, "both"]
    assert wrong.mean() < final[0.0, "shrinking"].mean() - 10
    assert both.mean() < final[16.0, "shrinking"].mean() - 3
