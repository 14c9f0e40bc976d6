"""Generative replay: losses by hand, what is drawn, what is frozen, what is held, and what is switched off (7.3)."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal

from cllib.checkpoints import digest
from cllib.contract import tiny_stream
from cllib.errors import UserError
from cllib.exaggeration import Exaggeration, belonging, contrastive, kl, overlap, released_js, true_js
from cllib.learners.generative_replay import PURPOSES, SEPARATE, GenerativeReplaySettings, distilled
from cllib.learners.si import PathPenalty
from cllib.models.networks import MLP, classifier
from cllib.models.replay_vae import VAE, ReplayVAE
from cllib.randomness import generator
from cllib.recipes import Recipe, parse
from cllib.streams.base import Experience, Stream
from cllib.streams.latent import seen_by
from cllib.training import train

pytestmark = pytest.mark.usefixtures("one_thread")

DREAMS = ReplayVAE(hidden=24, latent=4, gates=0.5, modes=2)
PLAIN = MLP((24, 24))
OWN = ReplayVAE(hidden=16, latent=3, prior="standard", gates=0.0)  # a generator of its own
Batch = tuple[Tensor, Tensor]


def recipe(network: Any = DREAMS, **changes: Any) -> Recipe:
    told: dict[str, Any] = {"optimizer": "adam", "step_size": 0.01, "batch_size": 8, "epochs": 4}
    told |= {name: changes.pop(name) for name in ("optimizer", "step_size", "epochs") if name in changes}
    return Recipe("generative", GenerativeReplaySettings(**changes), network, **told)


def at(
    made: Recipe, e: int, steps: int = 0, stream: Stream | None = None, seed: int = 1
) -> tuple[Any, Iterator[Batch]]:
    """The learner in its experience e after so many steps of it, and the batches that come next."""
    stream = stream or tiny_stream()
    learner, feed = made.build(stream, seed), made.feed(stream, seed)
    for k in range(e + 1):
        learner.begin(stream.experiences[k])
        batches = feed.batches(k)
        for x, y in islice(batches, steps if k == e else None):
            learner.observe(x, y)
        if k < e:
            learner.finish(stream.experiences[k])
    return learner, batches


def rewound(learner: Any) -> Any:
    """A copy of the learner's generators, by purpose, as they are now."""
    return {purpose: draws.clone_state() for purpose, draws in learner.draws.items()}


def go_back(learner: Any, draws: Any) -> None:
    for purpose, kept in draws.items():
        learner.draws[purpose].set_state(kept.get_state())


def objective(learner: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Any, Any, Any]:
    """Logits and losses, the replayed samples they are of, and the generators as they were after those were drawn."""
    start = rewound(learner)
    old = learner._replay(x)
    between = rewound(learner)
    go_back(learner, start)
    logits, losses = learner.objective(x, y)
    return logits, losses, old, between


def spied(module: Any, name: str) -> list[tuple[Any, ...]]:
    """What a method of a module is called with from now on."""
    heard: list[tuple[Any, ...]] = []
    real = getattr(module, name)

    def call(*args: Any) -> Any:
        heard.append(args)
        return real(*args)

    setattr(module, name, call)
    return heard


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- distillation (3) ---


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 5), st.floats(0.2, 4))
def test_3_distillation_is_least_where_the_student_is_the_teacher(seed: int, temperature: float, k: float) -> None:
    s = torch.randn(5, 4, generator=generator(seed, "scores"), dtype=torch.float64)
    student, mask = s.clone().requires_grad_(), torch.ones(4, dtype=torch.bool)
    q = (s / temperature).softmax(-1)
    value = distilled(student, q, mask, temperature)
    entropy = torch.distributions.Categorical(q).entropy().mean()
    torch.testing.assert_close(value, temperature**2 * entropy)
    (g,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(g, torch.zeros_like(g))
    other = s.roll(1, 0)
    scaled = distilled(k * other, (k * s / (k * temperature)).softmax(-1), mask, k * temperature)
    torch.testing.assert_close(scaled, k**2 * distilled(other, q, mask, temperature))


def test_3_only_outputs_in_the_mask_compete() -> None:
    logits, q = torch.randn(3, 4), torch.tensor([0.25, 0.75, 0, 0]).expand(3, 4)
    mask = torch.tensor([True, True, True, False])
    wanted = -4 * (q[:, :3] * (logits[:, :3] / 2).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(distilled(logits, q, mask, 2.0), wanted)
    torch.testing.assert_close(distilled(logits, q, mask.expand(3, 4), 2.0), wanted)


@pytest.mark.parametrize("network", [DREAMS, PLAIN], ids=["feedback", "separate"])
def test_3_new_classes_get_zeros_and_leave_the_targets_of_old_ones_as_they_are(network: Any) -> None:
    learner, batches = at(recipe(network, generator=None if network is DREAMS else OWN), 2)
    old = learner._replay(next(batches)[0])
    with torch.no_grad():
        scores = learner.teacher(old.x)
    torch.testing.assert_close(old.scores, scores)
    torch.testing.assert_close(old.q, F.pad((scores[:, :4] / 2).softmax(-1), (0, 2)))
    assert torch.equal(old.label, scores[:, :4].argmax(-1)) and old.task is None
    assert old.mask.tolist() == [True] * 6, "outputs of new classes compete"


# --- the loss by hand (1.6; 6) ---


def posterior_of(learner: Any, seen: Any, draws: Any) -> Tensor:
    noise = torch.randn(seen.mu.shape, generator=draws["latent noise"])
    return seen.mu + (seen.logvar / 2).exp() * noise


def log_density(z: Tensor, m: Tensor, s: Tensor) -> Tensor:
    return Normal(m, (s / 2).exp()).log_prob(z).sum(-1)


def prior_by_hand(network: VAE, z: Tensor, q: Tensor) -> Tensor:
    each = log_density(z[:, None, None], network.means, network.logvars).exp().mean(-1)  # [B, C]
    return (q * each).sum(-1).log()


WEIGHTED = {"recon_weight": 2.0, "kl_weight": 3.0, "class_weight": 0.5}


@pytest.mark.parametrize("distill", [True, False])
@pytest.mark.parametrize("options", [{}, WEIGHTED, {"replay_size": 3}, {"temperature": 0.7}], ids=str)
@pytest.mark.parametrize("e", [0, 1, 2])
def test_6_the_parts_of_the_loss_and_their_weights(e: int, options: dict[str, Any], distill: bool) -> None:
    learner, batches = at(recipe(distill=distill, **options), e, steps=3)
    network, (x, y) = learner.network, next(batches)
    logits, losses, old, draws = objective(learner, x, y)
    t, n, active, temperature = e + 1, len(y), 2 * (e + 1), options.get("temperature", 2.0)
    both = x if old is None else torch.cat([x, old.x])
    seen = network.look(both)
    z = posterior_of(learner, seen, draws)
    q = F.one_hot(y, 6).float() if old is None else torch.cat([F.one_hot(y, 6), old.q])
    out = network.decode(z, (q @ network.gate1, q @ network.gate2))
    pixels = F.binary_cross_entropy(torch.sigmoid(out), both, reduction="none").flatten(1).mean(1)
    divergence = (log_density(z, seen.mu, seen.logvar) - prior_by_hand(network, z, q)) / 16
    wanted = {"recon": pixels[:n].mean() / t, "variat": divergence[:n].mean() / t}
    wanted["pred"] = F.cross_entropy(seen.logits[:n, :active], y) / t
    if e:
        assert len(old.x) == options.get("replay_size", n)
        wanted |= {"recon_r": (1 - 1 / t) * pixels[n:].mean(), "variat_r": (1 - 1 / t) * divergence[n:].mean()}
        logp = (seen.logits[n:, :active] / temperature).log_softmax(-1)
        if distill:
            wanted["distil_r"] = -(1 - 1 / t) * temperature**2 * (old.q[:, :active] * logp).sum(-1).mean()
        else:
            assert torch.equal(old.q, F.one_hot(old.label, 6).float())
            wanted["pred_r"] = (1 - 1 / t) * F.cross_entropy(seen.logits[n:, :active], old.label)
    scales = {"recon": "recon_weight", "variat": "kl_weight", "pred": "class_weight", "distil": "class_weight"}
    assert losses.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = options.get(scales[name.removesuffix("_r")], 1.0)
        torch.testing.assert_close(losses[name], scale * value, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits, seen.logits[:n])


def test_6_the_sum_of_the_logged_parts_is_what_is_learned_from() -> None:
    learner, batches = at(recipe(optimizer="sgd", si=0.0), 1, steps=2)
    x, y = next(batches)
    start = rewound(learner)
    parameters = list(learner.network.parameters())
    old = [p.detach().clone() for p in parameters]
    _, losses = learner.objective(x, y)
    wanted = torch.autograd.grad(torch.stack(list(losses.values())).sum(), parameters)
    go_back(learner, start)
    learner.observe(x, y)
    assert learner.losses.keys() == losses.keys()
    for p, before, g in zip(parameters, old, wanted, strict=True):
        torch.testing.assert_close(p.detach(), before - 0.01 * g)


# --- what is switched off (6) ---

OTHER: dict[str, Any] = {"factor": 3.0, "temperature": 0.3, "dropout": 0.1, "averaged": False, "head_step_size": 1.0}
SILENT = [
    *({"divergence": divergence, "pair": pair} for divergence in ("kl", "true js") for pair in ("posterior", "prior")),
    {"divergence": "overlap", "targets": "raw"},
    {"targets": "softmax", "repulsion": 0.0, "recon_repulsion": 0.0, "recon_attraction": 0.0, "contrastive": 0.0},
]


@pytest.mark.parametrize("options", SILENT, ids=str)
def test_6_an_exaggeration_of_strength_0_is_the_baseline_bit_for_bit(options: dict[str, Any]) -> None:
    plain, found = (
        at(recipe(**changes), 1, steps=6)[0] for changes in ({}, {"exaggerate": Exaggeration(**OTHER, **options)})
    )
    assert digest(plain.state_dict()) == digest(found.state_dict()) and found.projection is None


ON: dict[str, dict[str, Any]] = {
    "repulsion": {"repulsion": 0.5},
    "true js": {"repulsion": 0.5, "divergence": "true js"},
    "prior": {"repulsion": 0.5, "pair": "prior"},
    "reconstruction": {"recon_repulsion": 0.5, "recon_attraction": 0.5},
    "contrastive": {"contrastive": 0.5},
}


@pytest.mark.parametrize("name", list(ON))
def test_6_what_exaggerates_draws_for_itself_alone_and_changes_what_is_learned(name: str) -> None:
    plain, found = (at(recipe(**c), 1, steps=6)[0] for c in ({}, {"exaggerate": Exaggeration(**ON[name])}))
    for purpose in PURPOSES:
        equal = torch.equal(plain.draws[purpose].get_state(), found.draws[purpose].get_state())
        assert equal == (purpose != "exaggeration")
    assert not torch.equal(plain.network.enc1.weight, found.network.enc1.weight)
    assert plain.losses.keys() < found.losses.keys()


def test_6_the_strength_of_an_intelligence_of_0_is_none() -> None:
    assert at(recipe(), 0)[0].penalty is None and at(recipe(si=0.1), 0)[0].penalty is not None


# --- masks (4) ---


@pytest.mark.parametrize(
    "options",
    [{}, {"distill": False}, {"exaggerate": Exaggeration(repulsion=1.0, pair="prior", contrastive=1.0)}, {"si": 1.0}],
    ids=["plain", "hard", "exaggerated", "held"],
)
def test_4_classes_that_have_not_come_get_no_gradient_and_keep_their_bits(options: dict[str, Any]) -> None:
    fresh = recipe(**options).build(tiny_stream(), 1).network
    learner, batches = at(recipe(**options), 1, steps=11)
    learner.observe(*next(batches))
    for name in ("classifier.weight", "classifier.bias", "means", "logvars"):
        p, start = learner.network.get_parameter(name), fresh.get_parameter(name)
        assert not p.grad[4:].any() and torch.equal(p[4:], start[4:]), name
        assert all(p.grad[c].any() for c in (2, 3)) and (p != start)[:4].view(4, -1).any(1).all(), name


# --- samples (7) ---


def counted(learner: Any, count: int) -> tuple[Tensor, Tensor, Tensor, Any, Tensor]:
    """Labels, modes and blocks of what is sampled, the tasks, and the samples themselves."""
    heard = spied(learner.source, "draw")
    x, block, task = learner.sampled(count)
    ((_, label, mode),) = heard
    return label, mode, block, task, x


def chi_squared(values: Tensor, cells: int) -> float:
    found = torch.bincount(values, minlength=cells).double()
    return float(((found - len(values) / cells) ** 2).sum() / (len(values) / cells))


def test_7_old_classes_and_their_modes_are_drawn_uniformly() -> None:
    """Of 8 cells; 29.9 is exceeded with probability 1e-4 (7 degrees of freedom)."""
    learner, _ = at(recipe(), 2)
    label, mode, block, task, x = counted(learner, 4000)
    assert set(label.tolist()) == {0, 1, 2, 3} and not block.any() and task is None
    assert chi_squared(2 * label + mode, 8) < 29.9
    assert x.shape == (4000, 1, 4, 4) and 0 <= float(x.min()) < float(x.max()) <= 1


def test_7_samples_are_decoded_under_the_gates_of_their_class() -> None:
    learner, _ = at(recipe(), 2)
    heard = spied(learner.source, "decode")
    label, *_, x = counted(learner, 12)
    z, source = heard[0][0], learner.source
    gates = source.gate1[label], source.gate2[label]
    torch.testing.assert_close(x, torch.sigmoid(source.decode(z, gates)))


def test_7_noise_is_standard_normal() -> None:
    learner, _ = at(recipe(), 1)
    heard = spied(learner.source, "draw")
    learner.sampled(2000)
    noise = heard[0][0]
    assert noise.shape == (2000, 4) and abs(float(noise.mean())) < 4 / 8000**0.5
    assert abs(float(noise.std()) - 1) < 4 / 16000**0.5


def test_7_the_same_seed_draws_the_same_and_no_gradient_flows() -> None:
    x = torch.rand(8, 1, 4, 4)
    one, again, other = (at(recipe(), 1, seed=seed)[0]._replay(x) for seed in (1, 1, 2))
    assert torch.equal(one.x, again.x) and torch.equal(one.q, again.q) and not torch.equal(one.x, other.x)
    assert not any(t.requires_grad for t in (one.x, one.scores, one.q))
    learner, _ = at(recipe(), 1)
    assert not torch.equal(learner._replay(x).x, learner._replay(x).x), "new ones in every step"
    state = torch.get_rng_state()
    learner._replay(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("network", "own"), [(DREAMS, None), (PLAIN, OWN)], ids=["feedback", "separate"])
def test_7_teacher_and_source_are_the_networks_at_the_end_of_the_last_experience(network: Any, own: Any) -> None:
    learner, batches = at(recipe(network, generator=own), 1)
    assert same(bits(learner.teacher), bits(learner.network)) and same(bits(learner.source), bits(learner.dreamer))
    assert (learner.source is learner.teacher) == (own is None)
    kept = bits(learner.teacher), bits(learner.source)
    for x, y in islice(batches, 4):
        learner.observe(x, y)
    assert same(bits(learner.teacher), kept[0]) and same(bits(learner.source), kept[1])
    assert not same(bits(learner.teacher), bits(learner.network)) and not learner.teacher.training
    assert not any(p.requires_grad for m in (learner.teacher, learner.source) for p in m.parameters())
    learner.finish(tiny_stream().experiences[1])
    assert same(bits(learner.teacher), bits(learner.network)) and same(bits(learner.source), bits(learner.dreamer))


def test_7_where_tasks_are_told_every_old_one_has_equally_many() -> None:
    learner, batches = at(recipe(), 2, stream=tiny_stream("task"))
    label, _, block, _, x = counted(learner, 7)
    assert torch.bincount(block).tolist() == [4, 4] and len(x) == 8 and torch.equal(label // 2, block)
    many = counted(learner, 2000)[0]
    assert chi_squared(many, 4) < 21.1, "probability 1e-4"
    old = learner._replay(next(batches)[0])
    told = torch.arange(6) // 2 == torch.arange(len(old.x))[:, None] % 2
    assert torch.equal(old.mask, told) and not old.q[~told].any()
    torch.testing.assert_close(old.q.sum(-1), torch.ones(len(old.x)))


def test_7_where_tasks_are_told_losses_are_of_their_outputs_averaged_over_old_tasks() -> None:
    learner, batches = at(recipe(), 2, steps=3, stream=tiny_stream("task"))
    x, y = next(batches)
    _, losses, old, _ = objective(learner, x, y)
    student, teacher = learner.network(old.x), learner.teacher(old.x)
    parts = []
    for k in (0, 1):
        rows, own = torch.arange(len(old.x)) % 2 == k, slice(2 * k, 2 * k + 2)
        q = (teacher[rows, own] / 2).softmax(-1)
        parts.append(-4 * (q * (student[rows, own] / 2).log_softmax(-1)).sum(-1).mean())
    torch.testing.assert_close(losses["distil_r"], 2 / 3 * (parts[0] + parts[1]) / 2)
    torch.testing.assert_close(losses["pred"], F.cross_entropy(learner.network(x)[:, 4:], y - 4) / 3)


def test_7_where_labels_are_shared_all_of_them_are_replayed_and_taught() -> None:
    learner, batches = at(recipe(), 1, stream=tiny_stream("domain"))
    assert set(counted(learner, 40)[0].tolist()) == {0, 1}
    x, y = next(batches)
    _, losses, old, _ = objective(learner, x, y)
    assert old.q.shape[1] == 2
    torch.testing.assert_close(losses["distil_r"], distilled(learner.network(old.x), old.q, old.mask, 2.0) / 2)


# --- contexts ---


def test_1_5_gates_by_class_are_those_of_the_label_and_of_what_is_taught() -> None:
    learner, batches = at(recipe(), 1)
    x, y = next(batches)
    heard = spied(learner.network, "gates_of")
    _, _, old, _ = objective(learner, x, y)
    assert len(heard) == 2 and torch.equal(heard[0][0], y) and torch.equal(heard[1][0], old.q)


def test_1_5_gates_by_task_are_those_of_the_experience_and_old_ones_are_drawn() -> None:
    learner, batches = at(recipe(replace(DREAMS, tasks=3)), 2, stream=tiny_stream("domain"))
    x, y = next(batches)
    heard = spied(learner.network, "gates_of")
    _, _, old, _ = objective(learner, x, y)
    assert torch.equal(heard[0][0], torch.full_like(y, 2)) and torch.equal(heard[1][0], old.task)
    assert learner.network.gate1.shape == (3, 24)
    decoded, asked = spied(learner.source, "decode"), spied(learner.source, "gates_of")
    task = counted(learner, 2000)[3]
    assert set(task.tolist()) == {0, 1} and chi_squared(task, 2) < 15.2, "probability 1e-4"
    assert torch.equal(asked[0][0], task) and torch.equal(decoded[0][1][0], learner.source.gate1[task])


# --- the current samples: learning without forgetting ---


def test_lwf_replays_the_new_samples_under_the_teacher_s_scores() -> None:
    learner, batches = at(recipe(PLAIN, replay="current"), 2, steps=3)
    x, y = next(batches)
    _, losses, old, _ = objective(learner, x, y)
    assert old.x is x and learner.dreamer is None and learner.source is None and losses.keys() == {"pred", "distil_r"}
    logits, q = learner.network(x), (learner.teacher(x)[:, :4] / 2).softmax(-1)
    torch.testing.assert_close(losses["pred"], F.cross_entropy(logits, y) / 3)
    wanted = -4 * (q * (logits / 2).log_softmax(-1)[:, :4]).sum(-1).mean()
    torch.testing.assert_close(losses["distil_r"], 2 / 3 * wanted)


def test_lwf_without_distillation_teaches_the_teacher_s_answer() -> None:
    learner, batches = at(recipe(PLAIN, replay="current", distill=False, replay_size=5), 1, steps=3)
    x, y = next(batches)
    _, losses, old, _ = objective(learner, x, y)
    assert torch.equal(old.x, x[:5]) and losses.keys() == {"pred", "pred_r"}
    wanted = F.cross_entropy(learner.network(x[:5])[:, :4], learner.teacher(x[:5])[:, :2].argmax(-1))
    torch.testing.assert_close(losses["pred_r"], wanted / 2)


@pytest.mark.parametrize("network", [PLAIN, DREAMS], ids=["plain", "dreams"])
def test_without_replay_there_are_new_samples_alone_at_full_weight(network: Any) -> None:
    learner, batches = at(recipe(network, replay="none"), 2, steps=3)
    x, y = next(batches)
    _, losses, old, _ = objective(learner, x, y)
    assert old is None and learner.teacher is None and learner.source is None
    assert losses.keys() == ({"pred"} if network is PLAIN else {"pred", "recon", "variat"})
    torch.testing.assert_close(losses["pred"], F.cross_entropy(learner.network(x), y))


# --- a generator of its own ---


@pytest.mark.parametrize("network", [PLAIN, DREAMS], ids=["plain network", "network that could dream"])
def test_losses_of_generator_and_classifier_do_not_mix(network: Any) -> None:
    learner, batches = at(recipe(network, generator=OWN), 1, steps=2)
    _, losses, old, _ = objective(learner, *next(batches))
    assert losses.keys() == {"recon", "variat", "pred", "recon_r", "variat_r", "distil_r"} and len(old.x) == 8
    for name, value in losses.items():
        parts = {part: list(m.parameters()) for part, m in (("net", learner.network), ("dreams", learner.dreamer))}
        reached = {
            part: any(
                g is not None and g.any() for g in torch.autograd.grad(value, ps, retain_graph=True, allow_unused=True)
            )
            for part, ps in parts.items()
        }
        classes = name in ("pred", "distil_r")
        assert reached == {"net": classes, "dreams": not classes}, name


def test_a_generator_of_its_own_learns_beside_the_network() -> None:
    learner, batches = at(recipe(PLAIN), 0)
    assert learner.dreamer.config == SEPARATE and not learner.dreamer.gated and learner.dreamer.means.numel() == 0
    before = bits(learner.dreamer), bits(learner.network)
    learner.observe(*next(batches))
    after = bits(learner.dreamer), bits(learner.network)
    still = {name for name in before[0] if torch.equal(before[0][name], after[0][name])}
    assert still == {"classifier.weight", "classifier.bias", "means", "logvars", "gate1", "gate2"}
    assert not any(torch.equal(before[1][name], after[1][name]) for name in before[1])


def test_the_network_s_weights_are_those_of_plain_training_whatever_dreams() -> None:
    """In the first experience nothing is replayed, so the classifier learns the same with a generator or without."""
    with_it, without = (at(recipe(PLAIN, **c), 0, steps=4)[0] for c in ({"generator": OWN}, {"replay": "none"}))
    for a, b in zip(with_it.network.parameters(), without.network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


# --- frozen convolutions (5) ---


def pictures() -> Stream:
    """Two experiences of six images [3, 32, 32]."""
    draws = generator(0, "pictures")
    parts = [
        Experience(torch.rand(6, 3, 32, 32, generator=draws), torch.arange(6) % 2 + 2 * k, (2 * k, 2 * k + 1))
        for k in (0, 1)
    ]
    return Stream("pictures", 4, tuple(parts), tuple(parts), ())


CONV: dict[str, Any] = {"hidden": 12, "latent": 3, "gates": 0.5, "reconstruction": "mse", "stem": "conv"}


def test_5_features_are_replayed_and_never_pass_the_convolutions(tmp_path: Path) -> None:
    config, stream = ReplayVAE(**CONV), pictures()
    front = config.front(stream.shape)
    assert front is not None
    kept, looked = bits(front), []
    features = seen_by(front, stream, {"test": "pictures"}, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(features.experiences[1].x, front(stream.experiences[1].x))
    front.register_forward_pre_hook(lambda *_: looked.append(1))
    learner, batches = at(recipe(config, epochs=2), 1, stream=features)
    heard = spied(learner.source, "shown")
    x, y = next(batches)
    old = learner._replay(x)
    assert old.x.shape == (6, 1024) and torch.equal(old.x, heard[0][0]) and (old.x < 0).any(), "signed, as decoded"
    learner.observe(x, y)
    assert not looked and same(bits(front), kept) and learner.network.front is None
    assert sum(p.numel() for p in front.parameters() if not p.requires_grad) == 393_088
    assert learner.network.pixels == 3072


@pytest.mark.parametrize("freeze", [True, False])
def test_5_convolutions_inside_keep_their_bits_where_they_are_frozen(freeze: bool) -> None:
    config = ReplayVAE(**CONV, internal=False, freeze=freeze)
    fresh = bits(recipe(config).build(pictures(), 1).network.front)  # type: ignore[union-attr, arg-type]
    learner, batches = at(recipe(config, epochs=1), 1, stream=pictures())
    x, y = next(batches)
    assert learner._replay(x).x.shape == (6, 3, 32, 32)
    learner.observe(x, y)
    assert same(bits(learner.network.front), fresh) == freeze
    assert not same(bits(learner.network.deconvolutions), bits(learner.teacher.deconvolutions))


# --- synaptic intelligence (8) ---


def test_8_the_path_penalty_on_a_convex_loss() -> None:
    """f = sum k (p - a)^2 / 2 by plain gradient descent: importances by hand, and none below 0."""
    p = nn.Parameter(torch.tensor([2.0, -1.0, 0.5]))
    k, rate, c = torch.tensor([1.0, 3.0, 0.2]), 0.1, 0.7
    penalty = PathPenalty([p], 0.1, (None, None))
    omega, start = torch.zeros(3), p.detach().clone()
    for aim in (torch.zeros(3), torch.ones(3)):
        path = torch.zeros(3)
        for _ in range(8):
            p.grad = k * (p.detach() - aim)
            plain = p.grad.clone()
            penalty.correct([p], 2 * c)
            torch.testing.assert_close(p.grad, plain + 2 * c * omega * (p.detach() - start))
            before, g = p.detach().clone(), p.grad.clone()
            p.data -= rate * p.grad
            penalty.follow([p])
            path -= g * (p.detach() - before)
        penalty.finish([p])
        omega = omega + path / ((p.detach() - start) ** 2 + 0.1)
        start = p.detach().clone()
        torch.testing.assert_close(penalty.importance[0], omega)
        assert (omega >= 0).all() and torch.equal(penalty.anchor[0], start) and not penalty.path[0].any()


def test_8_importances_may_be_negative_unless_bounded() -> None:
    found = []
    for lowest in (None, 0.0):
        p = nn.Parameter(torch.tensor([1.0, 1.0]))
        penalty = PathPenalty([p], 0.1, (lowest, None))
        p.grad = torch.tensor([1.0, 1.0])
        penalty.correct([p], 1.0)
        p.data += torch.tensor([0.2, -0.2])
        penalty.follow([p])
        penalty.finish([p])
        found.append(penalty.importance[0].tolist())
    assert found == [pytest.approx([-0.2 / 0.14, 0.2 / 0.14]), pytest.approx([0, 0.2 / 0.14])]


def test_8_nothing_is_held_in_the_first_experience() -> None:
    learner, batches = at(recipe(si=5.0), 0, steps=3)
    plain = at(recipe(), 0, steps=3)[0]
    assert same(bits(learner.network), bits(plain.network))
    learner.observe(*next(batches))
    assert not any(t.any() for t in learner.penalty.importance) and any(t.any() for t in learner.penalty.path)


def test_8_the_penalty_holds_encoder_and_classifier_and_nothing_that_dreams() -> None:
    learner, batches = at(recipe(si=5.0), 1, steps=3)
    x, y = next(batches)
    _, losses = learner.objective(x, y)
    torch.stack(list(losses.values())).sum().backward()
    named = dict(learner.network.named_parameters())
    learner.network.zero_grad()
    start = rewound(learner)
    torch.stack(list(learner.objective(x, y)[1].values())).sum().backward()
    plain = {name: p.grad.clone() for name, p in named.items()}
    go_back(learner, start)
    learner.correct()
    held = [n for n in named if n.startswith(("enc", "classifier"))]
    assert len(held) == len(learner.penalty.importance) == 6
    for name, omega, anchor in zip(held, learner.penalty.importance, learner.penalty.anchor, strict=True):
        p = named[name]
        wanted = plain[name] + 2 * 5.0 * omega * (p.detach() - anchor)
        torch.testing.assert_close(p.grad, wanted)
        assert not torch.equal(p.grad, plain[name]) and torch.equal(anchor, learner.teacher.get_parameter(name))
    assert all(torch.equal(named[name].grad, plain[name]) for name in named if name not in held)  # type: ignore[arg-type]


@pytest.mark.parametrize("lowest", [None, 0.0])
def test_8_the_path_is_that_of_the_whole_gradient(lowest: float | None) -> None:
    """And importances may be negative, where a path goes up (some are made to), unless that is forbidden."""
    learner, batches = at(recipe(si=5.0, lowest=lowest), 1)
    paths = [torch.zeros_like(p) for p in learner._held()]
    totals, anchors = ([t.clone() for t in part] for part in (learner.penalty.total, learner.penalty.anchor))
    for x, y in islice(batches, 5):
        before = [p.detach().clone() for p in learner._held()]
        learner.observe(x, y)
        for path, p, old in zip(paths, learner._held(), before, strict=True):
            path -= p.grad * (p.detach() - old)
    learner.penalty.path[0][:5] += 10
    paths[0][:5] -= 10
    learner.finish(tiny_stream().experiences[1])
    omegas, parts = learner.penalty.importance, (paths, learner._held(), anchors, totals)
    for omega, path, p, old, total in zip(omegas, *parts, strict=True):
        wanted = path / ((p.detach() - old) ** 2 + 0.1) - total
        torch.testing.assert_close(omega, wanted if lowest is None else wanted.clamp(min=0))
    assert any((omega < 0).any() for omega in omegas) == (lowest is None)


# --- exaggerating, by hand ---


class Says(nn.Module):
    """A teacher with an opinion of every sample: class 3 often comes second and never first."""

    def forward(self, x: Tensor) -> Tensor:
        scores = 1.5 * torch.randn(len(x), 6, generator=generator(0, "scores"))
        scores[:, 3] = torch.minimum(scores[:, 3], scores[:, :3].amax(1) - 0.1)
        return scores


def chosen(how: Exaggeration) -> tuple[Any, ...]:
    """A step's exaggeration: losses, replayed samples, what is seen of them, their reconstructions, the draws."""
    learner, batches = at(recipe(exaggerate=replace(how, repulsion=0.0), replay_size=24), 2, steps=4)
    learner.settings, learner.teacher = replace(learner.settings, exaggerate=how), Says()
    x, y = next(batches)
    _, losses, old, draws = objective(learner, x, y)
    seen = learner.network.look(torch.cat([x, old.x]))
    z = posterior_of(learner, seen, draws)[len(y) :]
    out = learner.network.decode(z, learner.network.gates_of(old.q))
    return learner, losses, old, type(seen)(*(t[len(y) :] for t in seen)), out, draws["exaggeration"]


def competing(scores: Tensor, factor: float | None) -> tuple[list[int], list[int], list[bool]]:
    ranked = scores.sort(-1, descending=True)
    p = scores.softmax(-1).sort(-1, descending=True).values
    kept = [factor is None or bool(a < factor * b) for a, b in p[:, :2]]
    return ranked.indices[:, 0].tolist(), ranked.indices[:, 1].tolist(), kept


DIVERGENCE: dict[str, Any] = {"kl": kl, "js": released_js, "overlap": overlap, "true js": true_js}


@pytest.mark.parametrize("divergence", list(DIVERGENCE))
@pytest.mark.parametrize("factor", [None, 4.0])
@pytest.mark.parametrize("pair", ["posterior", "prior"])
def test_9_repulsion_by_hand(pair: str, factor: float | None, divergence: str) -> None:
    how = Exaggeration(repulsion=0.3, pair=pair, factor=factor, divergence=divergence)
    learner, losses, old, seen, _, draws = chosen(how)
    own, other, kept = competing(old.scores[:, :4], factor)
    order = torch.rand(24, generator=draws)
    mode = torch.randint(2, (24,), generator=draws) if pair == "prior" else None
    noise = torch.randn(2, 8, 24, 4, generator=draws)
    terms = []
    for i in range(24):
        members = [j for j in range(24) if own[j] == other[i]]
        if not kept[i] or (mode is None and not members):
            continue
        if mode is None:
            j = max(members, key=lambda j: float(order[j]))
            m, s = seen.mu[j], seen.logvar[j]
        else:
            m, s = learner.network.means[other[i], mode[i]], learner.network.logvars[other[i], mode[i]]
        extra = [noise[:, :, i]] if divergence == "true js" else []
        value = DIVERGENCE[divergence](seen.mu[i], seen.logvar[i], m, s, *extra)
        terms.append(value if divergence == "overlap" else 1 / value.clamp(min=1e-6))
    assert (factor is None) == all(kept) and len(terms) > 3 and (pair == "prior") == (len(terms) == sum(kept))
    torch.testing.assert_close(losses["repulsion_r"], 2 / 3 * 0.3 * torch.stack(terms).mean(), atol=1e-5, rtol=1e-3)
    assert float(learner.kept) == pytest.approx(sum(kept) / 24)


@pytest.mark.parametrize("factor", [None, 4.0])
@pytest.mark.parametrize("averaged", [True, False])
def test_10_reconstructions_by_hand(averaged: bool, factor: float | None) -> None:
    how = Exaggeration(recon_repulsion=0.3, recon_attraction=0.2, averaged=averaged, factor=factor)
    _, losses, old, _, out, draws = chosen(how)
    own, other, kept = competing(old.scores[:, :4], factor)
    order = torch.rand(24, generator=draws)

    def error(c: int, i: int) -> Tensor:
        members = [j for j in range(24) if own[j] == c]
        one = old.x[max(members, key=lambda j: float(order[j]))]
        exemplar = torch.stack([old.x[j] for j in members]).mean(0) if averaged else one
        return F.binary_cross_entropy_with_logits(out[i], exemplar)

    assert 3 not in own and 3 in other and (factor is None) == all(kept)
    near = torch.stack([error(own[i], i) for i in range(24)]).mean()
    away = [1 / error(other[i], i) for i in range(24) if kept[i] and other[i] in own]
    torch.testing.assert_close(losses["recon_atr_r"], 2 / 3 * 0.2 * near, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(losses["recon_rep_r"], 2 / 3 * 0.3 * torch.stack(away).mean(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("averaged", [True, False])
def test_2_3_where_the_factor_keeps_nobody_nothing_is_attracted_either(averaged: bool) -> None:
    how = Exaggeration(recon_repulsion=0.3, recon_attraction=0.2, averaged=averaged, factor=1.0)
    learner, losses, *_ = chosen(how)
    assert float(learner.kept) == 0 and not losses["recon_rep_r"].any() and not losses["recon_atr_r"].any()
    free, losses, *_ = chosen(replace(how, factor=None))
    assert float(free.kept) == 1 and losses["recon_rep_r"] > 0 and losses["recon_atr_r"] > 0


@pytest.mark.parametrize("targets", ["label", "softmax", "raw"])
def test_11_contrast_by_hand(targets: str) -> None:
    how = Exaggeration(contrastive=0.2, targets=targets, temperature=0.5)
    learner, losses, old, seen, _, draws = chosen(how)
    scores = old.scores[:, :4]
    left = torch.rand(2, 24, 24, generator=draws) >= 0.5
    u = F.normalize(learner.projection((seen.hidden * left * 2).flatten(0, 1)), dim=-1)
    assert u.shape == (48, 100)
    torch.testing.assert_close(u.norm(dim=-1), torch.ones(48))
    wanted = 0.2 * contrastive(u, belonging(scores.argmax(-1), scores, targets), 0.5)
    torch.testing.assert_close(losses["contr_r"], wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("step_size", [None, 1e-8, 0.5])
def test_2_4_the_contrastive_head_learns_at_its_own_step_size(step_size: float | None) -> None:
    how = Exaggeration(contrastive=1.0, head_step_size=step_size)
    learner, batches = at(recipe(exaggerate=how, optimizer="sgd"), 1)
    before = learner.projection.weight.detach().clone()
    learner.observe(*next(batches))
    moved = learner.projection.weight.detach() - before
    torch.testing.assert_close(moved, -(0.01 if step_size is None else step_size) * learner.projection.weight.grad)
    assert learner.projection.weight.grad.any() and learner.optimiser.param_groups[0]["lr"] == 0.01


def test_2_1_one_old_class_has_no_competitor() -> None:
    stream = tiny_stream()
    first = stream.experiences[0]
    alone = replace(first, x=first.x[first.y == 0], y=first.y[first.y == 0], classes=(0,))
    stream = replace(stream, experiences=(alone, *stream.experiences[1:]))
    how = Exaggeration(repulsion=1.0, recon_repulsion=1.0, contrastive=1.0)
    learner, batches = at(recipe(exaggerate=how), 1, stream=stream)
    learner.observe(*next(batches))
    names = set(learner.losses)
    assert "contr_r" in names and not names & {"repulsion_r", "recon_rep_r", "recon_atr_r"}
    assert all(value.isfinite() for value in learner.losses.values())


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("divergence", ["kl", "js", "true js", "overlap"])
def test_9_a_competitor_that_is_not_among_the_samples_leaves_the_network_finite(divergence: str, size: int) -> None:
    how = Exaggeration(repulsion=1.0, divergence=divergence)
    learner, _ = at(recipe(exaggerate=how, replay_size=size), 1, steps=12)
    assert all(p.isfinite().all() for p in learner.network.parameters())


@pytest.mark.parametrize("fixed", [True, False])
def test_same_noise_draws_the_same_in_every_step(fixed: bool) -> None:
    learner, batches = at(recipe(exaggerate=Exaggeration(same_noise=fixed)), 1)
    replayed, states = [], []
    state = torch.get_rng_state()
    seen = spied(learner.source, "draw")
    for x, y in islice(batches, 3):
        learner.observe(x, y)
        replayed.append(seen[-1])  # noise and classes
        states.append([draws.get_state() for draws in learner.draws.values()])
    (noise, classes, _), (again, others, _), _ = replayed
    assert len(noise) == 8 and torch.equal(noise, again) == fixed
    assert not torch.equal(classes, others), "the original draws classes from numpy, which it does not reseed"
    equal = [torch.equal(a, b) for a, b in zip(states[0], states[2], strict=True)]
    assert equal == [fixed, False, fixed, True]
    assert torch.equal(torch.get_rng_state(), state), "and the global generator is left alone"


# --- states ---

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "feedback": (DREAMS, {"si": 0.5}),
    "separate": (PLAIN, {"generator": OWN}),
    "separate default": (PLAIN, {"distill": False}),
    "current": (PLAIN, {"replay": "current"}),
    "exaggerated": (DREAMS, {"exaggerate": Exaggeration(repulsion=0.1, recon_repulsion=0.1, contrastive=0.1)}),
    "separate contrastive": (
        PLAIN,
        {"generator": OWN, "exaggerate": Exaggeration(contrastive=0.1, head_step_size=1.0)},
    ),
}


@pytest.mark.parametrize("e", [0, 1])
@pytest.mark.parametrize("name", list(CASES))
def test_a_state_in_the_middle_of_an_experience_is_gone_on_from(name: str, e: int) -> None:
    network, options = CASES[name]
    learner, batches = at(recipe(network, **options), e, steps=5)
    other: Any = recipe(network, **options).build(tiny_stream(), 2)
    state = learner.state_dict()
    other.load_state_dict(state)
    assert digest(other.state_dict()) == digest(state)
    sealed = digest(state)
    for x, y in islice(batches, 4):
        assert torch.equal(learner.observe(x, y), other.observe(x, y))
    for each in (learner, other):
        each.finish(tiny_stream().experiences[e])
    assert digest(other.state_dict()) == digest(learner.state_dict()) != sealed == digest(state)
    assert other._share(True) == learner._share(True) and torch.equal(other.active, learner.active)


def test_all_that_is_kept_is_owned_up_to() -> None:
    learner = at(recipe(PLAIN, generator=OWN, exaggerate=Exaggeration(contrastive=0.1)), 1, steps=1)[0]
    assert learner.parts().keys() == {"network", "optimiser", "teacher", "generator", "old generator", "projection"}
    held = at(recipe(si=0.1), 1)[0].parts()
    assert held.keys() == {"network", "optimiser", "teacher", "importance"}


# --- answers ---


@pytest.mark.parametrize("network", [DREAMS, PLAIN], ids=["dreams", "plain"])
def test_1_9_classes_that_have_not_come_are_never_the_answer(network: Any) -> None:
    stream = tiny_stream()
    x = stream.tests[2].x
    for e in range(3):
        learner, _ = at(recipe(network, generator=None if network is DREAMS else OWN, epochs=1), e, steps=1)
        with torch.no_grad():
            classifier(learner.network).bias.add_(torch.arange(6) * 100)
        said, raw = learner.predict(x), learner.network(x)
        assert (said.argmax(-1) == 2 * e + 1).all() and raw.argmax(-1).eq(5).all()
        assert torch.equal(said[:, : 2 * e + 2], raw[:, : 2 * e + 2])


def test_1_9_where_the_task_is_told_all_logits_are_given() -> None:
    stream = tiny_stream("task")
    learner, _ = at(recipe(epochs=1), 0, steps=1, stream=stream)
    assert torch.equal(learner.predict(stream.tests[2].x), learner.network(stream.tests[2].x))


# --- settings ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replay", "offline"),
        ("generator", PLAIN),
        ("replay_size", 0),
        ("distill", 1),
        ("temperature", 0.0),
        ("recon_weight", -1.0),
        ("kl_weight", float("nan")),
        ("class_weight", -0.5),
        ("si", -1.0),
        ("damping", 0.0),
        ("lowest", 0.5),
        ("exaggerate", 0.5),
    ],
)
def test_impossible_settings_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        GenerativeReplaySettings(**{name: value})
    assert str(caught.value).startswith(f"{name} = {value!r}: ")


@pytest.mark.parametrize("how", [*ON.values(), {"same_noise": True}], ids=str)
def test_exaggerating_needs_dreams_and_the_teacher_s_scores(how: dict[str, Any]) -> None:
    for options in ({"distill": False}, {"replay": "current"}, {"replay": "none"}):
        with pytest.raises(UserError, match=r"^exaggerate: needs replay = 'generative' and distill = True"):
            GenerativeReplaySettings(exaggerate=Exaggeration(**how), **options)  # type: ignore[arg-type]
        GenerativeReplaySettings(exaggerate=Exaggeration(), **options)  # type: ignore[arg-type]


def test_a_command_line_can_name_it() -> None:
    pairs = {"network": "replay_vae", "hidden": "9", "gates": "0.5", "si": "0.1", "lowest": "0", "replay_size": "7"}
    made = parse(("generative",), pairs)[1]["generative"]
    assert made.network == ReplayVAE(hidden=9, gates=0.5)
    assert made.settings == GenerativeReplaySettings(si=0.1, lowest=0.0, replay_size=7)


def test_a_run_from_end_to_end_forgets_less_than_one_without_replay() -> None:
    stream = tiny_stream()
    found = {}
    for name, options in {"BI-R": {}, "none": {"replay": "none"}}.items():
        made = recipe(epochs=25, **options)
        learner = made.build(stream, 1)
        found[name] = float(train(learner, stream, made.feed(stream, 1), progress=False).test[0, -1].mean())
    assert found["none"] == pytest.approx(1 / 3) and found["BI-R"] > 0.6


def test_gates_for_too_few_tasks_are_refused() -> None:
    recipe = Recipe("generative", network=ReplayVAE(hidden=9, latent=3, tasks=2), batch_size=8)
    stream = tiny_stream("domain")
    with pytest.raises(UserError, match="tasks = 2"):
        train(recipe.build(stream, 0), stream, recipe.feed(stream, 0), progress=False)


def test_a_standard_prior_repels_nobody() -> None:
    settings = GenerativeReplaySettings(exaggerate=Exaggeration(repulsion=1e-3, pair="prior"))
    recipe = Recipe("generative", settings, ReplayVAE(hidden=9, latent=3, prior="standard"), batch_size=8)
    stream = tiny_stream()
    with pytest.raises(UserError, match="pair = 'prior'"):
        train(recipe.build(stream, 0), stream, recipe.feed(stream, 0), progress=False)


@pytest.mark.parametrize("network", [ReplayVAE(hidden=9, latent=3), MLP((8,))])
def test_a_used_learner_takes_an_early_state(network: Any) -> None:
    recipe, stream = Recipe("generative", network=network, batch_size=8), tiny_stream()
    learner = recipe.build(stream, 0)
    first = learner.state_dict()
    train(learner, stream, recipe.feed(stream, 0), progress=False)
    learner.load_state_dict(first)
    assert learner.teacher is None and learner.source is None and learner.learned == 0


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_a_class_that_came_in_one_task_is_dreamed_with_its_gates(scenario: str) -> None:
    recipe = Recipe("generative", network=ReplayVAE(hidden=9, latent=3, tasks=3), batch_size=8)
    stream = tiny_stream(scenario)
    learner: Any = recipe.build(stream, 0)
    for e in (0, 1):
        learner.begin(stream.experiences[e])
        learner.finish(stream.experiences[e])
    learner.begin(stream.experiences[2])
    assert learner.owner.tolist() == [0, 0, 1, 1, -1, -1]
    _, _, task = learner.sampled(40)
    assert set(task.tolist()) == {0, 1}
