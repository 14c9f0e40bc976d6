"""Golden traces and invariants of the Memory Head; the number in a name is that in chapter 1, rules 5."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cllib.errors import UserError
from cllib.losses import hinge, hinge_gradient, xent, xent_gradient
from cllib.models.memory_head import (
    PER_RUN,
    Bank,
    MemoryHead,
    MemoryHeadConfig,
    MemoryHeadLayer,
    answers,
    answers_by_unit,
    attend,
    attend_pre,
    best,
    query,
    responses,
    stack_rates,
)
from cllib.optim import SGD, Adam

KEYS = torch.tensor([(1, 0), (0, 1), (-0.6, -0.8)])
UNITS = torch.tensor([(0.1, 0.2, 0, -0.1, 0.3, 0.1), (0.2, -0.1, 0.05, 0, 0.1, -0.2), (-0.3, 0.1, 0.1, 0.2, -0.2, 0)])
SAMPLES = torch.tensor([(0.9, 0.1), (-0.5, 0.5), (-0.5, 0.6), (0.2, -0.9), (0.9, 0)])
LABELS = torch.tensor([0, 1, 1, 0, 0])
TRACE = MemoryHeadConfig(units=3, key_step=0.1, sharpness=5, match_threshold=0.9, use_threshold=2, age_threshold=2)

GOLDEN = {
    "euclidean POST": (
        TRACE,
        [0.65316, 0.74611, 0.64510, 0.79183, 0.58756],
        [0, 1, 1, 2, 2],
        [(0.98649, 0.00648), (-0.5, 0.50702), (0.2, -0.9)],
        [2, 2, 1],
        [1, 3, 2],
        [
            (0.17973, 0.20463, 0.08859, -0.17973, 0.29537, 0.01141),
            (0.24639, -0.15103, -0.04277, -0.04639, 0.15103, -0.10723),
            (-0.29128, 0.06078, 0.14358, 0.19128, -0.16078, -0.04358),
        ],
    ),
    "cosine POST with the released bug (P1)": (
        replace(TRACE, distance="cosine", threshold_bug=True),
        [0.65187, 0.72945, 0.63755, 0.62623, 0.53503],
        [1, 2, 3, 4, 5],
        [(0.99993, 0.01147), (-0.70126, 0.71290), (1, 0)],
        [3, 2, 0],
        [1, 3, 7],
        None,
    ),
    "cosine PRE (CNU)": (
        replace(TRACE, distance="cosine", when="PRE"),
        [0.65190, 0.72247, 0.63577, 0.82433, 0.58995],
        [0, 1, 1, 2, 2],
        [(0.99996, 0.00913), (-0.70126, 0.71290), (0.21693, -0.97619)],
        [2, 2, 1],
        [1, 3, 2],
        [
            (0.17903, 0.20459, 0.08782, -0.17903, 0.29541, 0.01218),
            (0.2485, -0.15314, -0.04699, -0.0485, 0.15314, -0.10301),
            (-0.28941, 0.05236, 0.15294, 0.18941, -0.15236, -0.05294),
        ],
    ),
}


def on(labels: Tensor, gradient=xent_gradient):
    """logits -> gradient of the summed loss."""
    return lambda logits: gradient(logits, labels)


def rates(*values: float) -> Tensor:
    return torch.tensor(values)


def head(config: MemoryHeadConfig, seeds=(0,), inputs: int = 3, outputs: int = 4) -> MemoryHead:
    return MemoryHead(inputs, outputs, [config] * len(seeds), seeds)


def samples(steps: int, runs: int = 1, batch: int = 1, inputs: int = 3, outputs: int = 4, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(steps, runs, batch, inputs, generator=g)
    return x, torch.randint(outputs, (steps, runs, batch), generator=g)


def learn(mh: MemoryHead, x: Tensor, y: Tensor, step_size: float = 0.1, optimiser=None) -> Tensor:
    """All steps of `x: [T, R, B, n]`; returns the logits."""
    optimiser = optimiser or SGD(torch.full((len(mh.seeds),), step_size), torch.zeros(len(mh.seeds)))
    said = []
    for sample, label in zip(x, y, strict=True):
        logits, gradients = mh.learn(sample, on(label))
        optimiser.step(mh.parameters, gradients)
        said.append(logits)
    return torch.stack(said)


# --- golden traces (12) ---


def check_trace(bank, losses, scrambled, expected) -> None:
    _, golden_losses, golden_scrambles, keys, usage, age, units = expected
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(golden_losses), atol=1.5e-5, rtol=0)
    assert scrambled == golden_scrambles
    torch.testing.assert_close(bank.keys[0], torch.tensor(keys, dtype=torch.float32), atol=1.5e-5, rtol=0)
    assert bank.usage[0].tolist() == usage
    assert bank.age[0].tolist() == age
    if units is not None:
        torch.testing.assert_close(bank.memories[0].flatten(1), torch.tensor(units), atol=1.5e-5, rtol=0)


@pytest.mark.parametrize("name", GOLDEN)
def test_12_golden_trace_in_closed_form(name: str) -> None:
    mh = head(GOLDEN[name][0], inputs=2, outputs=2)
    mh.bank.keys[:], mh.bank.memories[:] = KEYS, UNITS.view(3, 2, 3)
    optimiser, losses, scrambled = SGD(rates(0.1), rates(0.0)), [], []
    for x, y in zip(SAMPLES, LABELS, strict=True):
        y = y.view(1, 1)
        logits, gradients = mh.learn(x.view(1, 1, 2), on(y))
        optimiser.step(mh.parameters, gradients)
        losses.append(float(xent(logits, y)))
        scrambled.append(int(mh.bank.scrambles))
    check_trace(mh.bank, losses, scrambled, GOLDEN[name])


@pytest.mark.parametrize("name", GOLDEN)
def test_12_golden_trace_through_autograd(name: str) -> None:
    layer = MemoryHeadLayer(2, 2, GOLDEN[name][0])
    layer.keys.copy_(KEYS)
    layer.memories.data.copy_(UNITS.view(3, 2, 3))
    optimiser, losses, scrambled = torch.optim.SGD(layer.parameters(), lr=0.1), [], []
    for x, y in zip(SAMPLES, LABELS, strict=True):
        optimiser.zero_grad()
        loss = F.cross_entropy(layer(x[None]), y[None])
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        scrambled.append(int(layer.scrambles))
    check_trace(layer._bank(), losses, scrambled, GOLDEN[name])


# --- the closed form is the layer ---

VARIANTS = {
    "euclidean": {},
    "wide": {"width": 2.5},
    "wide, gradient keys": {"width": 2.5, "key_update": "grad_WTA", "scramble": False},
    "cosine": {"distance": "cosine"},
    "cosine with the bug": {"distance": "cosine", "threshold_bug": True},
    "dot_scaled": {"distance": "dot_scaled"},
    "PRE": {"when": "PRE"},
    "CNU": {"distance": "cosine", "when": "PRE"},
    "vanilla memory": {"memory_update": "vanilla"},
    "gradient keys": {"key_update": "grad_WTA", "scramble": False},
    "gradient keys, vanilla": {"key_update": "grad_WTA", "scramble": False, "memory_update": "vanilla"},
    "all gradient": {"key_update": "grad_not_WTA", "scramble": False, "memory_update": "vanilla"},
    "cosine gradient keys": {"key_update": "grad_WTA", "scramble": False, "distance": "cosine"},
    "dot gradient keys": {"key_update": "grad_WTA", "scramble": False, "distance": "dot_scaled"},
    "own keys per neuron": {"shared_keys": False},
    "own keys, PRE": {"shared_keys": False, "when": "PRE"},
    "own keys, gradient": {"shared_keys": False, "key_update": "grad_WTA", "scramble": False},
    "no bias": {"bias": False},
    "sign": {"query": "sign"},
    "fresh memories": {"random_memories": True},
    "fresh memories, own keys": {"random_memories": True, "shared_keys": False},
    "delta 1": {"top": 1},
    "delta 5": {"top": 5, "units": 7},
    "reduced": {"query": "resize1d", "key_size": 2},
    "counted before": {"counted": "before"},
    "counted before, own keys, PRE": {"counted": "before", "shared_keys": False, "when": "PRE"},
}
BUSY = MemoryHeadConfig(
    units=6, top=2, key_step=0.1, sharpness=3, match_threshold=0.7, use_threshold=3, age_threshold=4
)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("name", VARIANTS)
def test_7_closed_form_equals_autograd(name: str, optimiser: str, batch: int) -> None:
    config = replace(BUSY, **VARIANTS[name])
    x, y = samples(25, batch=batch)
    mh, layer = head(config), MemoryHeadLayer(3, 4, config, seed=0)
    ours = {"sgd": SGD, "adam": Adam}[optimiser](rates(0.05), rates(0.01))
    theirs = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimiser](
        layer.parameters(), lr=0.05, weight_decay=0.01
    )
    for sample, label in zip(x, y, strict=True):
        logits, gradients = mh.learn(sample, on(label))
        ours.step(mh.parameters, gradients)
        theirs.zero_grad()
        out = layer(sample[0])
        F.cross_entropy(out, label[0], reduction="sum").backward()
        theirs.step()
        torch.testing.assert_close(logits[0], out, atol=2e-4, rtol=1e-3)
    assert torch.equal(mh.bank.scrambles, layer.scrambles)
    assert torch.equal(mh.bank.usage, layer.usage) and torch.equal(mh.bank.age, layer.age)
    torch.testing.assert_close(mh.bank.keys, layer.keys.data, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(mh.bank.memories, layer.memories.data, atol=2e-4, rtol=1e-3)
    if config.scramble:
        assert int(mh.bank.scrambles.sum()) > 0, "the trial never scrambled: it proves nothing about it"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_8_batched_runs_equal_separate_runs(name: str, batch: int) -> None:
    config, seeds = replace(BUSY, **VARIANTS[name]), [3, 1, 4, 1, 5]
    numbers = [{"key_step": 0.1 * k, "sharpness": 1.0 + k, "match_threshold": 0.5 + 0.1 * k} for k in range(5)]
    configs = [replace(config, use_threshold=1 + k, age_threshold=2 + k, **n) for k, n in enumerate(numbers)]
    x, y = samples(40, runs=5, batch=batch)
    rho = rates(0.01, 0.05, 0.1, 0.2, 0.3)
    together = MemoryHead(3, 4, configs, seeds)
    learn(together, x, y, optimiser=SGD(rho, rho / 10))
    q = together.banks
    for k, (own, seed) in enumerate(zip(configs, seeds, strict=True)):
        alone = MemoryHead(3, 4, [own], [seed])
        learn(alone, x[:, k : k + 1], y[:, k : k + 1], optimiser=SGD(rho[k : k + 1], rho[k : k + 1] / 10))
        mine = slice(k * q, (k + 1) * q)
        assert torch.equal(together.bank.scrambles[mine], alone.bank.scrambles)
        torch.testing.assert_close(together.bank.keys[mine], alone.bank.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.bank.memories[mine], alone.bank.memories, atol=1e-5, rtol=1e-5)
    assert set(numbers[0]) | {"use_threshold", "age_threshold"} == set(PER_RUN)


def test_8_own_keys_with_equal_rows_equal_shared_keys() -> None:
    shared = head(replace(BUSY, scramble=False))
    own = head(replace(BUSY, scramble=False, shared_keys=False))
    own.bank.keys[:] = shared.bank.keys
    own.bank.memories[:] = shared.bank.memories[0].transpose(0, 1).unsqueeze(2)  # [q, m, 1, i]
    x, y = samples(30)
    torch.testing.assert_close(learn(own, x, y), learn(shared, x, y))
    torch.testing.assert_close(own.bank.keys, shared.bank.keys.expand(4, -1, -1))


# --- invariants 1 to 7 ---


def test_1_one_unit_is_a_linear_layer() -> None:
    mh, linear = head(MemoryHeadConfig(units=1, top=1)), nn.Linear(3, 4)
    with torch.no_grad():
        linear.weight.copy_(mh.bank.memories[0, 0, :, :-1])
        linear.bias.copy_(mh.bank.memories[0, 0, :, -1])
    optimiser = torch.optim.SGD(linear.parameters(), lr=0.1)
    x, y = samples(50)
    said = learn(mh, x, y)
    for sample, label, logits in zip(x, y, said, strict=True):
        optimiser.zero_grad()
        out = linear(sample[0])
        torch.testing.assert_close(logits[0], out, atol=1e-6, rtol=1e-5)
        F.cross_entropy(out, label[0]).backward()
        optimiser.step()


responses_and_top = st.integers(1, 12).flatmap(
    lambda m: st.tuples(st.lists(st.floats(-2, 2, width=32), min_size=m, max_size=m), st.integers(1, m))
)


@given(responses_and_top, st.floats(0, 50))
def test_2_attention_is_a_distribution_over_exactly_delta_units(case: tuple[list[float], int], gamma: float) -> None:
    r, top = torch.tensor(case[0]).view(1, 1, -1), case[1]
    index, alpha = attend(r, torch.tensor(gamma), top)
    assert alpha.shape == index.shape == (1, 1, top)
    assert (alpha >= 0).all() and torch.isclose(alpha.sum(), torch.tensor(1.0), atol=1e-5)
    assert len(set(index.flatten().tolist())) == top
    chosen, rest = r[0, 0, index[0, 0]], r[0, 0, [j for j in range(r.shape[-1]) if j not in index[0, 0]]]
    assert len(rest) == 0 or chosen.min() >= rest.max()


@given(responses_and_top)
def test_2_best_takes_the_first_index_on_ties(case: tuple[list[float], int]) -> None:
    r, top = torch.tensor([round(v) for v in case[0]], dtype=torch.float32).view(1, 1, -1), case[1]
    values, index = best(r, top)
    wanted, places = r.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(values, wanted[..., :top]) and torch.equal(index, places[..., :top])


def test_2_gamma_zero_spreads_evenly_and_delta_one_is_the_winner_alone() -> None:
    assert torch.equal(attend(torch.rand(2, 3, 7), torch.tensor(0.0), 4)[1], torch.full((2, 3, 4), 0.25))
    mh = head(replace(BUSY, top=1))
    x = samples(1)[0][0]
    winner = responses(mh.bank.keys, x, "euclidean").argmax(-1)
    alone = mh.bank.memories[0, winner[0, 0]] @ torch.cat([x[0, 0], torch.ones(1)])
    torch.testing.assert_close(mh.logits(x)[0, 0], alone)


def test_3_one_step_changes_one_unit_and_one_key() -> None:
    mh = head(replace(BUSY, scramble=False))
    x, y = samples(20)
    for sample, label in zip(x, y, strict=True):
        keys, units = mh.bank.keys.clone(), mh.bank.memories.clone()
        learn(mh, sample[None], label[None])
        assert (mh.bank.keys != keys).any(-1).sum() == 1
        assert (mh.bank.memories != units).flatten(2).any(-1).sum() == 1


def test_3_without_key_step_keys_stay() -> None:
    mh = head(replace(BUSY, scramble=False, key_step=0))
    keys = mh.bank.keys.clone()
    learn(mh, *samples(20))
    assert torch.equal(mh.bank.keys, keys)


@pytest.mark.parametrize("name", [name for name, told in VARIANTS.items() if "counted" not in told])
def test_5_when_a_batch_is_counted_matters_from_two_samples_on(name: str) -> None:
    for batch in (1, 3):
        heads = [head(replace(BUSY, **VARIANTS[name], counted=when)) for when in ("after", "before")]
        said = [learn(one, *samples(40, batch=batch)) for one in heads]
        same = torch.equal(heads[0].bank.usage, heads[1].bank.usage) and torch.equal(said[0], said[1])
        still = heads[0].config.key_update != "ad_hoc_WTA"  # keys that move with the memories, by the optimiser
        assert same == (batch == 1 or still)


@pytest.mark.parametrize("name", VARIANTS)
def test_3_evaluation_changes_nothing(name: str) -> None:
    config = replace(BUSY, **VARIANTS[name])
    mh, layer = head(config), MemoryHeadLayer(3, 4, config).eval()
    before, state = mh.state_dict(), {k: v.clone() for k, v in layer.state_dict().items()}
    x = samples(1, batch=5)[0][0]
    layer(x[0]).sum().backward()
    torch.testing.assert_close(mh.logits(x)[0], layer(x[0]))
    assert all(torch.equal(value, before[key]) for key, value in mh.state_dict().items())
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())


@pytest.mark.parametrize("when", ["POST", "PRE"])
def test_4_cosine_keys_keep_unit_length(when: str) -> None:
    mh = head(replace(BUSY, distance="cosine", when=when))
    for sample, label in zip(*samples(30), strict=True):
        learn(mh, sample[None], label[None])
        torch.testing.assert_close(mh.bank.keys.norm(dim=-1), torch.ones(1, 6))


@given(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3), st.integers(0, 5))
@settings(max_examples=50)
def test_4_euclidean_response_is_one_on_the_key_only(point: list[float], j: int) -> None:
    keys = torch.linspace(-1, 1, 18).view(1, 6, 3)
    r = responses(keys, torch.tensor(point).view(1, 1, 3), "euclidean")
    assert (r <= 1).all() and (r >= 0).all()
    assert responses(keys, keys[:, j : j + 1], "euclidean")[0, 0, j] == 1
    far = (torch.tensor(point) - keys[0]).norm(dim=-1) > 1e-2
    assert (r[0, 0][far] < 1).all()


@given(st.floats(0, 3**0.5))
@settings(max_examples=30)
def test_4_keys_never_move_past_the_sample(beta: float) -> None:
    mh = head(replace(BUSY, scramble=False, key_step=beta))
    x = samples(1)[0][0]
    winner = responses(mh.bank.keys, x, "euclidean").argmax()
    before = x[0, 0] - mh.bank.keys[0, winner]
    mh.learn(x, on(torch.zeros(1, 1, dtype=torch.long)))
    after = x[0, 0] - mh.bank.keys[0, winner]
    assert (after * before >= -1e-6).all() and after.norm() <= before.norm() + 1e-6


def test_5_counters_without_scrambling() -> None:
    mh = head(replace(BUSY, scramble=False, age_threshold=0))
    ages = mh.bank.age.clone()
    for t, (sample, label) in enumerate(zip(*samples(20), strict=True)):
        winner = int(responses(mh.bank.keys, sample, "euclidean").argmax())
        learn(mh, sample[None], label[None])
        ages = ages + 1
        ages[0, winner] = 1
        assert torch.equal(mh.bank.age, ages)
        assert mh.bank.usage.sum() == t + 1


def test_5_after_a_scramble_the_key_is_the_sample_and_the_memory_the_winners() -> None:
    mh, fired = head(BUSY), 0
    for sample, label in zip(*samples(40), strict=True):
        bank = mh.bank
        winner = int(responses(bank.keys, sample, "euclidean").argmax())
        old, count = bank.memories[0, winner].clone(), int(bank.scrambles)
        weak = (bank.usage[0] < 3) & (bank.age[0] >= 4)
        oldest = int(torch.where(weak, bank.age[0], -1).argmax())
        _, gradients = mh.learn(sample, on(label))
        if int(bank.scrambles) > count:
            fired += 1
            assert torch.equal(bank.keys[0, oldest], sample[0, 0])
            assert torch.equal(bank.memories[0, oldest], old)
            assert bank.usage[0, oldest] == (1 if oldest == winner else 0)
        SGD(rates(0.1), rates(0.0)).step(mh.parameters, gradients)
    assert fired > 3


def test_6_thresholds_that_never_scramble() -> None:
    assert (head(BUSY).bank.age == BUSY.age_threshold).all()
    eager = head(replace(BUSY, match_threshold=1.0, age_threshold=0))
    learn(eager, *samples(30))
    assert eager.bank.scrambles > 0
    for never in ({"use_threshold": 0}, {"match_threshold": 0.0}):
        mh = head(replace(BUSY, age_threshold=0, **never))
        learn(mh, *samples(30))
        assert mh.bank.scrambles == 0


def test_7_wta_and_vanilla_differ_in_the_gradient_of_rows_2_to_delta_only() -> None:
    config = replace(BUSY, scramble=False, top=3)
    wta, vanilla = head(config), head(replace(config, memory_update="vanilla"))
    x, y = samples(1)
    (a, ga), (b, gb) = wta.learn(x[0], on(y[0])), vanilla.learn(x[0], on(y[0]))
    assert torch.equal(a, b)
    assert torch.equal(ga["memories"].values[:, 0], gb["memories"].values[:, 0])
    assert ga["memories"].index.shape == (1, 1) and gb["memories"].index.shape == (1, 3)
    assert (gb["memories"].values[:, 1:] != 0).any()


def test_p5_winner_take_all_gradient_keys_move_every_attended_key() -> None:
    mh = head(replace(BUSY, scramble=False, key_update="grad_WTA", top=3))
    x, y = samples(1)
    rows = mh.learn(x[0], on(y[0]))[1]["keys"]
    assert rows.index.unique().numel() == 3 and (rows.values.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("loss", [(hinge, hinge_gradient), (xent, xent_gradient)])
def test_7_loss_gradients_equal_autograd(loss) -> None:
    value, gradient = loss
    logits = torch.randn(5, 7, 4, requires_grad=True)
    labels = torch.randint(4, (5, 7))
    (wanted,) = torch.autograd.grad(value(logits, labels).sum(), logits)
    torch.testing.assert_close(gradient(logits.detach(), labels), wanted)


# --- what has no number ---


def test_post_trains_the_old_winner_and_pre_the_replaced_key() -> None:
    """Pitfall P3: with POST the sample that scrambled still trains the old winner's memory."""
    for when in ("POST", "PRE"):
        mh = head(replace(BUSY, when=when, match_threshold=1.0, age_threshold=0))
        x, y = samples(1)
        winner = int(responses(mh.bank.keys, x[0], "euclidean").argmax())
        trained = int(mh.learn(x[0], on(y[0]))[1]["memories"].index)
        assert (trained == winner) is (when == "POST" or winner == 0)
        assert mh.bank.scrambles == 1


def test_pre_attends_anew_for_a_batch_and_keeps_its_choice_for_one_sample() -> None:
    keys = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])
    bank = Bank(keys, torch.zeros(1, 3, 1, 3), *torch.zeros(2, 1, 3, dtype=torch.int32), torch.zeros(1))
    config = MemoryHeadConfig(units=3, top=2, when="PRE")
    gamma = stack_rates([config], 1, "cpu")
    psi = torch.tensor([[[0.9, 0.0], [-0.9, 0.0]]])
    chosen = torch.tensor([[[0, 1], [0, 1]]])  # as if the keys had been elsewhere before
    winner = chosen[..., 0]
    assert attend_pre(bank, psi, winner, chosen, gamma, config)[1].tolist() == [[[1, 0], [2, 0]]]
    _, index, alpha = attend_pre(bank, psi[:, :1], winner[:, :1], chosen[:, :1], gamma, config)
    assert index.tolist() == [[[0, 1]]] and alpha[0, 0, 0] < 0.5  # kept in place, though unit 1 answers more strongly


def test_state_dict_resumes_bit_exactly() -> None:
    x, y = samples(40, runs=2)
    config = replace(BUSY, random_memories=True)
    straight, first, second = (head(config, seeds=(1, 2)) for _ in range(3))
    learn(straight, x, y)
    learn(first, x[:17], y[:17])
    second.load_state_dict(first.state_dict())
    learn(second, x[17:], y[17:])
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in straight.state_dict().items())


def test_unit_by_unit_answers_are_the_same() -> None:
    memories, x1, index = torch.randn(2, 5, 4, 3), torch.randn(2, 9, 3), torch.randint(5, (2, 9, 2))
    torch.testing.assert_close(answers_by_unit(memories, index, x1), answers(memories, index, x1))


def test_fast_responses_are_the_same() -> None:
    keys, psi = torch.randn(2, 5, 40), torch.randn(2, 9, 40)
    torch.testing.assert_close(
        responses(keys, psi, "euclidean", 3.0, fast=True), responses(keys, psi, "euclidean", 3.0)
    )


def test_layer_learns_on_top_of_a_backbone() -> None:
    net = nn.Sequential(
        nn.Linear(3, 5), nn.Tanh(), MemoryHeadLayer(5, 4, replace(BUSY, key_update="grad_WTA", scramble=False))
    )
    x, y = samples(1, batch=8)
    F.cross_entropy(net(x[0, 0]), y[0, 0]).backward()
    assert net[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "size"), [("resize1d", 4), ("resize2d", 4), ("resize2d_sign", 9)])
def test_reduced_queries_have_the_key_size(name: str, size: int) -> None:
    config = MemoryHeadConfig(query=name, key_size=size)
    x = torch.randn(2, 3, 16)
    psi = query(x, config)
    assert psi.shape == (2, 3, size)
    if name == "resize1d":
        torch.testing.assert_close(psi[0], F.interpolate(x[0][:, None], 4, mode="linear")[:, 0])
    if name.endswith("sign"):
        assert set(psi.unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_delta_is_clamped_to_the_units() -> None:
    assert MemoryHeadConfig(units=3, top=9).top == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"units": 0},
        {"top": 0},
        {"key_step": -0.1},
        {"key_step": float("nan")},
        {"sharpness": -1},
        {"width": 0},
        {"use_threshold": -1},
        {"match_threshold": -0.5},
        {"distance": "manhattan"},
        {"when": "DURING"},
        {"counted": "twice"},
        {"query": "resize1d"},
        {"key_size": 3},
        {"threshold_bug": True},
        {"key_update": "grad_WTA"},
        {"key_update": "grad_not_WTA", "scramble": False},
    ],
)
def test_impossible_settings_are_named(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        MemoryHeadConfig(**wrong)


def test_runs_of_one_program_may_differ_in_numbers_only() -> None:
    with pytest.raises(UserError, match="units differs between runs"):
        MemoryHead(3, 4, [BUSY, replace(BUSY, units=7)], [0, 1])
    with pytest.raises(UserError, match="2 configurations for 1 seeds"):
        MemoryHead(3, 4, [BUSY, BUSY], [0])
