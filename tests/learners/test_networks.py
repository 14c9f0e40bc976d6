"""Learners of networks: each does what its equations say, against a plain computation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cllib.contract import Noisy, check_resume, tiny_stream
from cllib.errors import UserError
from cllib.learners import LEARNERS
from cllib.learners.cwr import consolidate
from cllib.learners.ewc import FISHERS, VALUES, fisher
from cllib.learners.lwf import distillation
from cllib.learners.naive import Naive
from cllib.models.binary import BinaryCNN, BinaryMLP, binary_weights
from cllib.models.networks import CNN, MLP, logits_of
from cllib.models.norms import batch_logits
from cllib.randomness import generator, seeded
from cllib.recipes import Recipe, parse
from cllib.training import train

STREAM = tiny_stream()
RATE = 0.1


def made(learner: str, scenario: str = "class", **settings: Any) -> Any:
    stream = tiny_stream(scenario)
    recipe = Recipe(learner, LEARNERS[learner].Settings(**settings), MLP((7,)), step_size=RATE, batch_size=4)
    found = recipe.build(stream, 1)
    found.begin(stream.experiences[0])
    return found


def batch(e: int, k: int, count: int = 4) -> tuple[Tensor, Tensor]:
    experience = STREAM.experiences[e]
    return experience.x[k * count : (k + 1) * count], experience.y[k * count : (k + 1) * count]


def weights(learner: Naive) -> list[Tensor]:
    return [p.detach().clone() for p in learner.network.parameters()]


def gradients(learner: Naive, loss: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(learner.network.parameters()))


def assert_step(learner: Naive, before: list[Tensor], direction: Any) -> None:
    """The parameters moved by -rate * direction."""
    for old, new, g in zip(before, weights(learner), direction, strict=True):
        torch.testing.assert_close(new, old - RATE * g, atol=1e-6, rtol=1e-5)


def test_naive_is_a_torch_loop() -> None:
    learner = made("naive")
    x, y = batch(0, 0)
    before, wanted = weights(learner), gradients(learner, F.cross_entropy(learner.network(x), y))
    said = learner.network(x).detach()
    assert torch.equal(learner.observe(x, y), said)
    assert_step(learner, before, wanted)


def test_told_experiences_leave_other_logits_out() -> None:
    learner = made("naive", "task")
    x, y = batch(0, 0)
    wanted = gradients(learner, F.cross_entropy(learner.network(x)[:, :2], y))
    before = weights(learner)
    learner.observe(x, y)
    assert_step(learner, before, wanted)


def stored(learner: Any) -> dict[str, Tensor]:
    """What the learner's next draw will be, without drawing."""
    state = learner.memory.picks.get_state()
    found = learner.memory.draw(learner.settings.replay_size)
    learner.memory.picks.set_state(state.clone())
    return found


def test_er_averages_over_new_and_replayed_samples() -> None:
    learner = made("er", buffer_size=6, replay_size=3)
    learner.observe(*batch(0, 0))
    (x, y), items, before = batch(0, 1), stored(learner), weights(learner)
    both, labels = torch.cat([x, items["x"]]), torch.cat([y, items["y"]])
    wanted = gradients(learner, F.cross_entropy(learner.network(both), labels))
    learner.observe(x, y)
    assert_step(learner, before, wanted)


@pytest.mark.parametrize(("name", "alpha", "beta"), [("der", 0.7, 0.0), ("der++", 0.7, 0.4), ("der++", 0.0, 0.4)])
def test_der_holds_stored_logits_and_a_second_draw(name: str, alpha: float, beta: float) -> None:
    learner = made(name, buffer_size=6, replay_size=3, alpha=alpha, beta=beta)
    first_logits = learner.observe(*batch(0, 0))
    assert torch.equal(learner.memory.all()["logits"], first_logits), "logits before the step are what is stored"
    (x, y), before, state = batch(0, 1), weights(learner), learner.memory.picks.get_state()
    loss = F.cross_entropy(learner.network(x), y)
    if alpha:
        one = learner.memory.draw(3)
        loss = loss + alpha * (learner.network(one["x"]) - one["logits"]).square().mean()
    if beta:
        two = learner.memory.draw(3)
        loss = loss + beta * F.cross_entropy(learner.network(two["x"]), two["y"])
    learner.memory.picks.set_state(state.clone())
    wanted = gradients(learner, loss)
    learner.observe(x, y)
    assert_step(learner, before, wanted)


def test_agem_projects_when_it_would_climb_and_only_then() -> None:
    projected = 0
    for k in range(1, 6):
        learner = made("agem", buffer_size=8, replay_size=4)
        learner.observe(*batch(0, 0))
        (x, y), items, before = batch(k % 3, k), stored(learner), weights(learner)
        g = torch.cat([p.flatten() for p in gradients(learner, F.cross_entropy(learner.network(x), y))])
        loss = F.cross_entropy(learner.network(items["x"]), items["y"])
        r = torch.cat([p.flatten() for p in gradients(learner, loss)])
        projected += int(g @ r < 0)
        g = g - min(float(g @ r), 0.0) / float(r @ r) * r
        learner.observe(x, y)
        moved = torch.cat([(a - b).flatten() for a, b in zip(before, weights(learner), strict=True)])
        torch.testing.assert_close(moved, RATE * g, atol=1e-6, rtol=1e-4)
    assert 0 < projected < 5, "both cases must have been met"


def test_mir_replays_what_the_step_would_hurt_most() -> None:
    learner = made("mir", buffer_size=12, replay_size=2, pool=6)
    for k in range(3):
        learner.observe(*batch(0, k))
    (x, y), items, before = batch(1, 0), learner.memory.all(), weights(learner)
    old = F.cross_entropy(learner.network(items["x"]), items["y"], reduction="none").detach()
    step = gradients(learner, F.cross_entropy(learner.network(x), y))
    with torch.no_grad():
        for p, g in zip(learner.network.parameters(), step, strict=True):
            p -= RATE * g
        new = F.cross_entropy(learner.network(items["x"]), items["y"], reduction="none")
        for p, b in zip(learner.network.parameters(), before, strict=True):
            p.copy_(b)
    worst = (new - old).topk(2).indices
    both, labels = torch.cat([x, items["x"][worst]]), torch.cat([y, items["y"][worst]])
    wanted = gradients(learner, F.cross_entropy(learner.network(both), labels))
    learner.observe(x, y)
    assert_step(learner, before, wanted)


def test_mir_with_a_pool_of_one_is_er() -> None:
    final = []
    for learner in (made("mir", buffer_size=8, replay_size=3, pool=1), made("er", buffer_size=8, replay_size=3)):
        for k in range(5):
            learner.observe(*batch(0, k))
        final.append(weights(learner))
    for a, b in zip(*final, strict=True):
        torch.testing.assert_close(a, b)


def test_gdumb_starts_over_from_the_initial_weights() -> None:
    learner = made("gdumb", buffer_size=8, memory_epochs=1, memory_batch=8)
    start = weights(learner)
    for k in range(4):
        learner.observe(*batch(0, k))
    assert all(torch.equal(a, b) for a, b in zip(start, weights(learner), strict=True)), "no step while samples come"
    for _ in range(2):  # the second end of an experience gives the same as the first
        learner.finish(STREAM.experiences[0])
        items = learner.memory.all()
        first = weights(learner)
    reference = made("naive")
    wanted = gradients(reference, F.cross_entropy(reference.network(items["x"]), items["y"]))
    for old, new, g in zip(start, first, wanted, strict=True):
        torch.testing.assert_close(new, old - RATE * g, atol=1e-6, rtol=1e-4)


def reference_fisher(network: nn.Module, x: Tensor, y: Tensor, variant: str) -> list[Tensor]:
    """Sample by sample, with plain autograd."""
    parameters = list(network.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    if variant == "batched":
        g = torch.autograd.grad(F.cross_entropy(network(x), y), parameters)
        return [part.square() for part in g]
    for sample, label in zip(x, y, strict=True):
        log_p = torch.log_softmax(network(sample[None])[0], -1)
        for c in range(len(log_p)) if variant == "exact" else [int(label)]:
            g = torch.autograd.grad(log_p[c], parameters, retain_graph=True)
            weight = float(log_p[c].detach().exp()) if variant == "exact" else 1.0
            total = [t + weight * part.square() for t, part in zip(total, g, strict=True)]
    return [t / len(y) for t in total]


@pytest.mark.parametrize("variant", ["exact", "empirical", "batched"])
def test_fisher_information_equals_sample_by_sample_autograd(variant: str) -> None:
    learner, (x, y) = made("naive"), batch(0, 0, 10)
    found = fisher(learner.network, x, y, None, variant, generator(0, "fisher"))
    for a, b in zip(found, reference_fisher(learner.network, x, y, variant), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-4)


class Rounded(torch.autograd.Function):
    """A function of somebody's own, which knows nothing but forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Layers(nn.Module):
    """Layers in a row, one of which may be met again, be asked for what then counts as given, or lend its weight."""

    def __init__(
        self,
        *layers: nn.Module,
        again: int = 1,
        tied: bool = False,
        detached: bool = False,
        function: Any = torch.tanh,
    ) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Sequential(*layers), nn.Linear(8, 8), nn.Linear(8, 6)
        self.again, self.tied, self.detached, self.function = again, tied, detached, function

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        z = z + self.middle(z).detach() if self.detached else z
        for _ in range(self.again):
            z = self.function(self.middle(z))
        return self.last(z + z @ self.middle.weight if self.tied else z)


class Tokens(nn.Module):
    """The rows of an image look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(4, 8))
        self.embed, self.attend = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.last = nn.LayerNorm(8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        z = self.embed(x.flatten(1, 2)) + self.place  # [B, 4, 8]
        z = self.norm(z + self.attend(z, z, z, need_weights=False)[0])
        return self.last(z.mean(1))


class Folded(nn.Module):
    """The rows of an image as if each were a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.row, self.last = nn.Linear(4, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        z = self.row(x.reshape(-1, 4)).relu().reshape(len(x), -1, 8)
        return self.last(z.mean(1))


def pruned() -> nn.Module:
    return prune.random_unstructured(nn.Linear(8, 8), "weight", 0.3)


class Watched(Layers):
    """One layer is also asked where no gradient is kept."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            aside = self.middle(self.first(x))
        return super().forward(x) + 0 * aside.sum()


def stack() -> list[nn.Module]:
    return [nn.Flatten(), nn.Linear(16, 8)]


OWN: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: Layers(*stack()),
    "no bias": lambda: Layers(nn.Flatten(), nn.Linear(16, 8, bias=False)),
    "in place": lambda: Layers(*stack(), nn.ReLU(inplace=True), function=torch.tanh_),
    "met twice": lambda: Layers(*stack(), again=2),
    "once for nothing": lambda: Layers(*stack(), detached=True),
    "tied": lambda: Layers(*stack(), tied=True),
    "own function": lambda: Layers(*stack(), function=Rounded.apply),
    "weight norm": lambda: Layers(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(16, 8))),
    "half frozen": lambda: Layers(*stack(), nn.Linear(8, 8).requires_grad_(False), nn.Dropout(0.5)),
    "pruned": lambda: Layers(*stack(), pruned()),
    "old weight norm": lambda: Layers(*stack(), nn.utils.weight_norm(nn.Linear(8, 8))),
    "rows as samples": Folded,
    "asked without a gradient": lambda: Watched(*stack()),
    "convolution": lambda: Layers(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8)),
    "group norm": lambda: Layers(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 8)),
    "attention": Tokens,
}


@pytest.mark.parametrize("variant", ["exact", "empirical"])
@pytest.mark.parametrize("own", OWN)
def test_fisher_information_of_any_network_is_that_of_plain_autograd(own: str, variant: str) -> None:
    with seeded(3, "init"):
        network = OWN[own]()
    x, y = torch.cat([batch(e, 0, 12)[0] for e in range(3)]), torch.cat([batch(e, 0, 12)[1] for e in range(3)])
    found = fisher(network, x, y, None, variant, generator(0, "fisher"))
    assert network.training and not any(m._forward_hooks for m in network.modules())
    network.eval()
    learning = {p: f for p, f in zip([p for p in network.parameters() if p.requires_grad], found, strict=True)}
    for p in network.parameters():
        p.requires_grad_(True)  # the reference asks for all
    for p, wanted in zip(network.parameters(), reference_fisher(network, x, y, variant), strict=True):
        if p in learning:
            torch.testing.assert_close(learning[p], wanted, atol=1e-9, rtol=2e-5)


@pytest.mark.parametrize("variant", FISHERS)
def test_fisher_information_holds_no_gradient_of_every_sample(variant: str) -> None:
    """No tensor is larger than the largest parameter, or the batch: gradients of all samples would be."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            made = op(*args, **(kwargs or {}))
            largest = max([largest, *(t.numel() for t in tree_leaves(made) if isinstance(t, Tensor))])
            return made

    network = Layers(nn.Flatten(), nn.Linear(16, 256), nn.Conv1d(1, 1, 9), nn.Linear(248, 8))
    network.first.insert(2, nn.Unflatten(1, (1, 256)))
    network.first.insert(4, nn.Flatten())
    x, y = STREAM.experiences[0].x.repeat(20, 1, 1, 1), STREAM.experiences[0].y.repeat(20)
    with Watch():
        fisher(network, x, y, None, variant, generator(0, "fisher"))
    assert largest <= max(x.numel(), 32 * 256)


def test_sampled_fisher_is_the_exact_one_on_average() -> None:
    learner, (x, y) = made("naive"), batch(0, 0, 10)
    many = x.repeat(400, 1, 1, 1), y.repeat(400)
    sampled = fisher(learner.network, *many, None, "sampled", generator(0, "fisher"))
    exact = fisher(learner.network, x, y, None, "exact", generator(0, "fisher"))
    a, b = (torch.cat([part.flatten() for part in parts]) for parts in (sampled, exact))
    assert abs(float(a.sum() / b.sum()) - 1) < 0.05, "the trace over 4000 draws, whose relative error is about 2 %"
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.98


def test_fisher_of_a_told_experience_counts_its_own_classes_only() -> None:
    learner, (x, y) = made("naive", "task"), batch(0, 0, 6)
    found = fisher(learner.network, x, y, learner.rivals, "exact", generator(0, "fisher"))
    head = found[-1]  # bias of the classifier
    assert (head[:2] > 0).all() and (head[2:] == 0).all()


@pytest.mark.parametrize("decay", [None, 0.5])
def test_ewc_pulls_back_to_every_anchor(decay: float | None) -> None:
    learner = made("ewc", strength=3.0, fisher="empirical", fisher_samples=24, decay=decay)
    anchors = []
    for e in (0, 1):
        for k in range(3):
            learner.observe(*batch(e, k))
        learner.finish(STREAM.experiences[e])
        x, y = STREAM.experiences[e].x, STREAM.experiences[e].y
        anchors.append((reference_fisher(learner.network, x, y, "empirical"), weights(learner)))
    if decay is not None:
        merged = [decay * a + b for a, b in zip(anchors[0][0], anchors[1][0], strict=True)]
        anchors = [(merged, anchors[1][1])]
    assert len(learner.anchors) == len(anchors)
    (x, y), before = batch(2, 0), weights(learner)
    with torch.no_grad():
        for p in learner.network.parameters():
            p += 0.01 * torch.randn(p.shape, generator=generator(1, "shift"))
    before, loss = weights(learner), F.cross_entropy(learner.network(x), y)
    for information, anchor in anchors:
        for p, f, a in zip(learner.network.parameters(), information, anchor, strict=True):
            loss = loss + 3.0 / 2 * (f * (p - a).square()).sum()
    wanted = gradients(learner, loss)
    learner.observe(x, y)
    assert_step(learner, before, wanted)


@pytest.mark.parametrize("path", ["full", "batch"])
def test_si_follows_the_loss_along_the_path(path: str) -> None:
    learner = made("si", strength=2.0, damping=0.05, path=path)
    start = weights(learner)
    omega = [torch.zeros_like(p) for p in start]
    for e in (0, 1):
        w, anchor = [torch.zeros_like(p) for p in start], weights(learner)
        for k in range(3):
            (x, y), before = batch(e, k), weights(learner)
            own = F.cross_entropy(learner.network(x), y)
            parameters = list(learner.network.parameters())
            penalty = sum((o * (p - a).square()).sum() for o, p, a in zip(omega, parameters, anchor, strict=True))
            full = gradients(learner, own + 2.0 * penalty) if e else gradients(learner, own)
            followed = full if path == "full" else gradients(learner, F.cross_entropy(learner.network(x), y))
            learner.observe(x, y)
            assert_step(learner, before, full)
            moved = [new - old for new, old in zip(weights(learner), before, strict=True)]
            w = [total - g * d for total, g, d in zip(w, followed, moved, strict=True)]
        learner.finish(STREAM.experiences[e])
        shifts = [new - old for new, old in zip(weights(learner), anchor, strict=True)]
        omega = [o + t.clamp(min=0) / (d**2 + 0.05) for o, t, d in zip(omega, w, shifts, strict=True)]
        for found, wanted in zip(learner.importance, omega, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-4)


def test_distillation_is_zero_where_teacher_and_student_agree() -> None:
    logits = torch.randn(5, 3, generator=generator(0, "x"))
    assert float(distillation(logits, logits + 7, 2.0)) == pytest.approx(0, abs=1e-6)
    taught = torch.randn(5, 3, generator=generator(1, "x"))
    p, q = (torch.softmax(o / 2, -1) for o in (taught, logits))
    assert float(distillation(logits, taught, 2.0)) == pytest.approx(
        4 * float((p * (p / q).log()).sum(1).mean()), rel=1e-4
    )


@pytest.mark.parametrize(("scenario", "blocks"), [("class", [[0, 1, 2, 3]]), ("task", [[0, 1], [2, 3]])])
def test_lwf_is_taught_old_classes_by_the_last_network(scenario: str, blocks: list[list[int]]) -> None:
    learner, stream = made("lwf", scenario, strength=0.8, temperature=3.0), tiny_stream(scenario)
    for e in (0, 1):
        for k in range(3):
            learner.observe(*batch(e, k))
        learner.finish(stream.experiences[e])
    assert learner.blocks == blocks
    learner.observe(*batch(2, 0))
    (x, y), before = batch(2, 1), weights(learner)
    logits, taught = learner.network(x), learner.teacher(x).detach()
    loss = F.cross_entropy(logits, y) if scenario == "class" else F.cross_entropy(logits[:, 4:6], y - 4)
    parts = [distillation(logits[:, b], taught[:, b], 3.0) for b in blocks]
    wanted = gradients(learner, loss + 0.8 * sum(parts) / len(parts))
    learner.observe(x, y)
    assert_step(learner, before, wanted)


def test_cwr_consolidation() -> None:
    trained, now = torch.tensor([[1.0, 3.0], [5.0, 7.0], [9.0, 9.0]]), torch.tensor([1.0, 2.0, 0.0])
    first = consolidate(torch.zeros(3, 2), trained, torch.zeros(3), now)
    assert torch.equal(first, torch.tensor([[-3.0, -1.0], [1.0, 3.0], [0.0, 0.0]])), "W - mu for new classes, exactly"
    assert float(first[:2].sum()) == 0
    again = consolidate(first, trained, torch.tensor([4.0, 2.0, 0.0]), torch.tensor([1.0, 2.0, 0.0]))
    w = trained[:2] - 4
    torch.testing.assert_close(again[0], (2 * first[0] + w[0]) / 3)  # past 4, now 1: a = 2
    torch.testing.assert_close(again[1], (first[1] + w[1]) / 2)  # past = now: the mean
    assert torch.equal(again[2], first[2]), "classes that were not seen keep their rows"


def test_cwr_starts_from_kept_rows_and_tests_with_all() -> None:
    learner = made("cwr*")
    body = weights(learner)[0]
    assert (learner.rows.read() == 0).all(), "new classes start at 0"
    for e in (0, 1):
        learner.begin(STREAM.experiences[e])
        own = list(STREAM.experiences[e].classes)
        for k in range(3):
            learner.observe(*batch(e, k))
        if e:
            assert torch.equal(weights(learner)[0], body), "the body is frozen after the first experience"
        learner.finish(STREAM.experiences[e])
        body = weights(learner)[0]
        assert (learner.rows.kept[own] != 0).any(1).all()
        assert torch.equal(learner.rows.read(), learner.rows.kept)
    assert (learner.rows.kept[4:] == 0).all(), "classes never seen have rows of 0"
    learner.begin(STREAM.experiences[2])
    assert (learner.rows.read() == 0).all(), "rows of other classes are put away"


def test_joint_is_shown_everything_so_far() -> None:
    recipe = Recipe("joint", network=MLP((7,)), batch_size=4, epochs=2)
    seen = [{int(y) for _, labels in recipe.feed(STREAM, 1).batches(e) for y in labels} for e in range(3)]
    assert [len(labels) for labels in seen] == [2, 4, 6]
    assert [recipe.feed(STREAM, 1).steps(e) for e in range(3)] == [
        replace(recipe, learner="naive").feed(STREAM, 1).steps(e) for e in range(3)
    ]
    learner = recipe.build(STREAM, 1)
    train(learner, STREAM, recipe.feed(STREAM, 1), progress=False)
    assert learner.bytes()["data"] == sum(e.x.nbytes + e.y.nbytes for e in STREAM.experiences)


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_every_learner_runs_in_every_scenario(learner: str, scenario: str) -> None:
    stream, recipe = tiny_stream(scenario), Recipe(learner, network=CNN((4, 6)), batch_size=8)
    outcome = train(recipe.build(stream, 0), stream, recipe.feed(stream, 0), progress=False, probe_every=2)
    assert outcome.test.shape == (1, 3, 3) and outcome.confusion.sum() == sum(len(t) for t in stream.tests)
    assert not outcome.diverged.any()


def test_variants_are_named() -> None:
    assert FISHERS == ("exact", "sampled", "empirical", "batched")
    with pytest.raises(UserError, match=r"fisher = 'diagonal': allowed are exact"):
        LEARNERS["ewc"].Settings(fisher="diagonal")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learner": "icarl"}, "learner = 'icarl': allowed are naive, joint, er"),
        ({"optimizer": "lion"}, "optimizer = 'lion': allowed are sgd"),
        ({"optimizer": "adam", "momentum": 0.9}, "only optimizer = 'sgd' takes one"),
        ({"step_size": -1}, "step_size = -1"),
        ({"momentum": 1.5}, "momentum = 1.5"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"iterations": 0}, "iterations = 0"),
        ({"settings": LEARNERS["er"].Settings()}, "learner = 'naive' takes Nothing"),
    ],
)
def test_impossible_recipes_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe(**wrong)


def test_networks_refuse_what_they_cannot_take() -> None:
    with pytest.raises(UserError, match="takes images"):
        CNN().build((5,), 2)
    with pytest.raises(UserError, match="channels is empty"):
        CNN(())
    with pytest.raises(UserError, match="no linear layer"):
        LEARNERS["cwr*"](LEARNERS["cwr*"].Settings(), nn.Conv2d(1, 2, 3), None, 0)


def noisy(learner: str, momentum: float = 0.0, **settings: Any) -> Any:
    """A learner whose network has BatchNorm and dropout, in the first experience."""
    recipe = Recipe(learner, LEARNERS[learner].Settings(**settings), Noisy(), step_size=RATE, momentum=momentum)
    found = recipe.build(STREAM, 1)
    found.begin(STREAM.experiences[0])
    return found


def statistics(network: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in network.buffers()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_si_counts_a_negative_path_as_none() -> None:
    learner = made("si")
    learner.path = [torch.full_like(w, -1.0) for w in learner.path]
    learner.finish(STREAM.experiences[0])
    assert all((omega == 0).all() for omega in learner.importance)


def test_cwr_counts_samples_over_all_experiences() -> None:
    learner = made("cwr*")
    for _ in range(2):
        learner.begin(STREAM.experiences[0])
        for k in range(3):
            learner.observe(*batch(0, k))
        learner.finish(STREAM.experiences[0])
    assert float(learner.rows.past.sum()) == 24 and float(learner.rows.past[2:].sum()) == 0


def test_cwr_freezes_the_statistics_of_the_body_too() -> None:
    learner = noisy("cwr*")
    learner.observe(*batch(0, 0))
    learner.finish(STREAM.experiences[0])
    before = statistics(learner.network)
    learner.begin(STREAM.experiences[1])
    learner.observe(*batch(1, 0))
    assert same(statistics(learner.network), before)


def test_cwr_keeps_old_classes_in_play_while_it_learns_new_ones() -> None:
    learner = made("cwr*")
    for k in range(6):
        learner.observe(*batch(0, k))
    learner.finish(STREAM.experiences[0])
    x = STREAM.tests[0].x
    old = learner.predict(x)[:, :2]
    learner.begin(STREAM.experiences[1])
    rows = learner.rows.read()
    torch.testing.assert_close(learner.predict(x)[:, :2], old)
    assert torch.equal(learner.rows.read(), rows), "predicting puts the training rows back"


def test_lwf_is_taught_in_evaluation_mode() -> None:
    learner = noisy("lwf")
    learner.observe(*batch(0, 0))
    learner.finish(STREAM.experiences[0])
    again = noisy("lwf")
    again.load_state_dict(learner.state_dict())
    for one in (learner, again):
        one.observe(*batch(1, 0))
        assert not any(module.training for module in one.teacher.modules())
        assert torch.equal(one.teacher(batch(1, 1)[0]), one.teacher(batch(1, 1)[0]))


def test_mir_looks_without_changing_statistics() -> None:
    learner = noisy("mir")
    learner.observe(*batch(0, 0))
    before, items = statistics(learner.network), learner.memory.all()
    first, second = (learner.rise(*batch(0, 1), items["x"], items["y"]) for _ in range(2))
    assert same(statistics(learner.network), before) and torch.equal(first, second)


def test_gdumb_starts_over_with_its_optimiser_too() -> None:
    learner = made("gdumb", buffer_size=8, memory_epochs=3, memory_batch=8)
    learner.optimiser.param_groups[0]["momentum"] = 0.9
    learner.fresh["param_groups"][0]["momentum"] = 0.9
    learner.observe(*batch(0, 0, 8))
    ends = []
    for _ in range(2):
        learner.finish(STREAM.experiences[0])
        ends.append(weights(learner))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_er_draws_before_it_stores() -> None:
    learner = made("er", buffer_size=100, replay_size=100)
    for k in range(3):
        shown = []
        learner.network.register_forward_hook(lambda _, inputs, __, seen=shown: seen.append(len(inputs[0])))
        learner.observe(*batch(0, k))
        assert shown[0] == 4 + 4 * k, "the new batch, and what was stored before it"


class FirstTwo(nn.Module):
    """A network that has no other classes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[:, :2]


@pytest.mark.parametrize("variant", ["exact", "empirical"])
def test_fisher_of_a_told_experience_is_that_of_a_network_without_other_classes(variant: str) -> None:
    learner, (x, y) = made("naive", "task"), batch(0, 0, 6)
    found = fisher(learner.network, x, y, learner.rivals, variant, generator(0, "fisher"))
    for a, b in zip(found, reference_fisher(FirstTwo(learner.network), x, y, variant), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-4)


@pytest.mark.parametrize("name", ["agem", "ewc", "si"])
def test_parameters_that_are_not_used_are_left_alone(name: str) -> None:
    recipe = Recipe(name, network=WithSpare(), weight_decay=0.5, step_size=RATE)
    learner = recipe.build(STREAM, 1)
    for e in (0, 1):
        learner.begin(STREAM.experiences[e])
        for k in range(2):
            learner.observe(*batch(e, k))
        learner.finish(STREAM.experiences[e])
    assert torch.equal(learner.network.spare, torch.ones(3)), "weight decay included"


@dataclass(frozen=True)
class WithSpare:
    """A network with a parameter that no output depends on."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        network = MLP((7,)).build(shape, classes)
        network.spare = nn.Parameter(torch.ones(3))
        return network


def test_der_holds_only_logits_that_compete() -> None:
    learner = made("der", "task", buffer_size=6, replay_size=3)
    learner.observe(*batch(0, 0))
    items = stored(learner)
    squares = (learner.network(items["x"]) - items["logits"])[:, :2].square()
    (x, y), before = batch(0, 1), weights(learner)
    loss = F.cross_entropy(learner.network(x)[:, :2], y) + 0.5 * squares.mean()
    wanted = gradients(learner, loss)
    learner.observe(x, y)
    assert_step(learner, before, wanted)


# --- binarized networks: hidden weights, or their signs, are held, and norms are free ---


def binarized(learner: str, norm: str = "batch", **settings: Any) -> Any:
    """A learner of a binarized network, in the first experience; its hidden weights start wide enough to matter."""
    network = BinaryMLP(hidden=(7,), norm=norm, init_width=0.3)
    recipe = Recipe(learner, LEARNERS[learner].Settings(**settings), network, step_size=RATE, batch_size=4)
    found = recipe.build(STREAM, 1)
    found.begin(STREAM.experiences[0])
    return found


def held(learner: Naive, values: str) -> list[Tensor]:
    """What a method holds, parameter by parameter."""
    binary = binary_weights(learner.network) if values == "signs" else {}
    named = learner.network.named_parameters()
    return [torch.where(p < 0, -1.0, 1.0) if name in binary else p.detach().clone() for name, p in named]


def is_norm(learner: Naive) -> list[bool]:
    return [name.startswith("norm") for name, _ in learner.network.named_parameters()]


def without_norms(learner: Naive, importance: list[Tensor], values: str) -> list[Tensor]:
    free = is_norm(learner) if values != "parameters" else [False] * len(importance)
    return [torch.zeros_like(f) if norm else f for f, norm in zip(importance, free, strict=True)]


def frozen_norms_fisher(learner: Naive, x: Tensor, y: Tensor) -> list[Tensor]:
    """Sample by sample with plain autograd, norms with the statistics that the whole batch has in each layer."""
    network, parameters = learner.network, list(learner.network.parameters())

    def forward(z: Tensor, statistics: list[tuple[Tensor, Tensor]] | None) -> tuple[Tensor, list[Any]]:
        z, taken = z.flatten(1), []
        for k in (1, 2):
            layer, norm = network.get_submodule(f"fc{k}"), network.get_submodule(f"norm{k}")
            z = z @ layer.binary().T
            taken.append((z.mean(0).detach(), z.var(0, unbiased=False).detach()))
            mean, variance = taken[-1] if statistics is None else statistics[k - 1]
            z = (z - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
            z = network.act1(z) if k == 1 else z
        return z, taken

    _, statistics = forward(x, None)
    total = [torch.zeros_like(p) for p in parameters]
    for sample, label in zip(x, y, strict=True):
        log_p = torch.log_softmax(forward(sample[None], statistics)[0][0], -1)
        g = torch.autograd.grad(log_p[label], parameters)
        total = [t + part.square() for t, part in zip(total, g, strict=True)]
    return [t / len(y) for t in total]


def test_fisher_information_of_a_network_that_looks_at_the_batch() -> None:
    learner, (x, y) = binarized("ewc"), batch(0, 0, 10)
    for k in range(3):
        learner.observe(*batch(0, k))
    before = [p.detach().clone() for p in learner.network.parameters()]
    found = fisher(learner.network, x, y, None, "empirical", generator(0, "fisher"))
    for a, b in zip(found, frozen_norms_fisher(learner, x, y), strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-3)
    assert all(float(f.abs().max()) > 0 for f in found)
    assert same(before, weights(learner)) and learner.network.training
    assert learner.network.norm1.running_mean is None


@pytest.mark.parametrize("variant", FISHERS)
def test_every_fisher_can_be_had_of_a_binarized_network(variant: str) -> None:
    for network in (BinaryMLP(hidden=(5,)), BinaryCNN(channels=(3, 3), hidden=(4,))):
        settings = LEARNERS["ewc"].Settings(fisher=variant, fisher_samples=9, values="signs")
        stream = tiny_stream() if isinstance(network, BinaryMLP) else enlarged()
        recipe = Recipe("ewc", settings, network, optimizer="metaplastic", batch_size=8)
        outcome = train(recipe.build(stream, 0), stream, recipe.feed(stream, 0), progress=False)
        assert not outcome.diverged.any()


def enlarged() -> Any:
    """The tiny stream with images of 8 x 8, which two convolutions leave something of."""
    return tiny_stream().map(lambda e: replace(e, x=e.x.repeat_interleave(2, 2).repeat_interleave(2, 3)))


def test_networks_that_look_at_the_batch_are_asked_in_batches_of_a_test() -> None:
    learner, x = binarized("naive"), STREAM.tests[0].x.repeat(150, 1, 1, 1)
    x = x + 0.1 * torch.rand(x.shape, generator=generator(0, "x")) * torch.linspace(0, 1, len(x))[:, None, None, None]
    said = learner.predict(x)
    assert len(x) == 1500 and torch.equal(said, batch_logits(learner.network, x))
    assert not torch.allclose(said, logits_of(learner.network, x), atol=1e-3), "two batches of 750 are not one of 1500"
    assert torch.equal(
        binarized("naive", "running").predict(x[:9]), logits_of(binarized("naive", "running").network, x[:9])
    )


@pytest.mark.parametrize("decay", [None, 0.5])
@pytest.mark.parametrize("values", VALUES)
def test_ewc_holds_signs_or_hidden_weights(values: str, decay: float | None) -> None:
    told = {"fisher": "empirical", "fisher_samples": 24, "decay": decay}
    learner, anchors = binarized("ewc", strength=3.0, values=values, **told), []
    for e in (0, 1):
        for k in range(3):
            learner.observe(*batch(e, k))
        learner.finish(STREAM.experiences[e])
        information = frozen_norms_fisher(learner, STREAM.experiences[e].x, STREAM.experiences[e].y)
        anchors.append((without_norms(learner, information, values), held(learner, values)))
    if decay is not None:
        merged = [decay * a + b for a, b in zip(anchors[0][0], anchors[1][0], strict=True)]
        anchors = [(merged, anchors[1][1])]
    assert len(learner.anchors) == len(anchors)
    with torch.no_grad():
        for p in learner.network.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator(1, "shift"))
    (x, y), before, now = batch(2, 0), weights(learner), held(learner, values)
    wanted = list(gradients(learner, F.cross_entropy(learner.network(x), y)))
    plain = [g.clone() for g in wanted]
    for information, anchor in anchors:
        wanted = [
            g + 3.0 * f * (p - a) for g, f, p, a in zip(wanted, information, now, anchor, strict=True)
        ]  # of signs the difference is -2, 0 or 2, and passes straight through
    learner.observe(x, y)
    assert_step(learner, before, wanted)
    pulled = [not torch.equal(a, b) for a, b in zip(plain, wanted, strict=True)]
    assert pulled == [values == "parameters" or not norm for norm in is_norm(learner)], "what is held"
    if values == "signs":
        jumps = {float(d) for p, a in zip(now, anchors[-1][1], strict=True) if p.dim() > 1 for d in (p - a).flatten()}
        assert {-2.0, 0.0, 2.0} == jumps


def test_random_consolidation_shuffles_inside_each_tensor() -> None:
    told = {"fisher": "empirical", "fisher_samples": 24, "values": "signs"}
    found = {}
    for shuffled in (False, True):
        learner = binarized("ewc", strength=0.0, shuffled=shuffled, **told)
        for k in range(3):
            learner.observe(*batch(0, k))
        learner.finish(STREAM.experiences[0])
        found[shuffled] = learner.anchors[0]
    assert same(found[True]["parameters"], found[False]["parameters"])
    for real, control, norm in zip(found[False]["fisher"], found[True]["fisher"], is_norm(learner), strict=True):
        assert real.shape == control.shape
        torch.testing.assert_close(real.flatten().sort().values, control.flatten().sort().values)
        assert torch.equal(real, control) == norm, "norms are free, and so are zero before and after"
    again = binarized("ewc", strength=0.0, shuffled=True, **told)
    for k in range(3):
        again.observe(*batch(0, k))
    again.finish(STREAM.experiences[0])
    assert same(again.anchors[0]["fisher"], found[True]["fisher"]), "drawn from the run's seed"


@pytest.mark.parametrize(("path", "displacement"), [("full", "own"), ("batch", "own"), ("full", "previous")])
@pytest.mark.parametrize("values", VALUES)
def test_si_walks_along_hidden_weights_or_their_signs(values: str, path: str, displacement: str) -> None:
    """displacement = "previous" is what the released metaplasticity program does along hidden weights."""
    learner = binarized("si", strength=2.0, damping=0.05, path=path, values=values, displacement=displacement)
    walked = "signs" if values == "signs" else "parameters"
    pulled = "parameters" if values == "parameters" else "signs"
    omega, flips = [torch.zeros_like(p) for p in weights(learner)], 0
    for e in (0, 1, 2):
        w, start, anchor = [torch.zeros_like(o) for o in omega], held(learner, walked), held(learner, pulled)
        last = [torch.zeros_like(o) for o in omega]
        for k in range(4):
            (x, y), before = batch(e, k), weights(learner)
            place, now = held(learner, walked), held(learner, pulled)
            own = list(gradients(learner, F.cross_entropy(learner.network(x), y)))
            full = [g + 2 * 2.0 * o * (p - a) for g, o, p, a in zip(own, omega, now, anchor, strict=True)]
            learner.observe(x, y)
            assert_step(learner, before, full)
            moved = [new - old for new, old in zip(held(learner, walked), place, strict=True)]
            flips += sum(int((d.abs() == 2).sum()) for d in moved)
            followed = full if path == "full" else own
            by = moved if displacement == "own" else last
            w, last = [total - g * d for total, g, d in zip(w, followed, by, strict=True)], moved
        learner.finish(STREAM.experiences[e])
        shifts = [new - old for new, old in zip(held(learner, walked), start, strict=True)]
        omega = [o + t.clamp(min=0) / (d**2 + 0.05) for o, t, d in zip(omega, w, shifts, strict=True)]
        omega = without_norms(learner, omega, values)
        for found, wanted in zip(learner.importance, omega, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-3)
        assert same(learner.anchor, held(learner, pulled))
    assert (flips > 0) == (values == "signs")
    assert all(bool(o.any()) for o, norm in zip(omega, is_norm(learner), strict=True) if not norm)


def test_the_displacement_of_the_step_before_is_carried_over_a_stop() -> None:
    settings = LEARNERS["si"].Settings(strength=2.0, values="hidden", displacement="previous")
    check_resume(Recipe("si", settings, BinaryMLP((7,)), batch_size=4, step_size=0.05), (2, 11))


@pytest.mark.parametrize("name", ["ewc", "si"])
def test_of_a_real_network_signs_are_the_weights(name: str) -> None:
    """Nothing is binary and there are no norms: all three settings are one."""
    final = []
    for values in VALUES:
        learner = made(name, values=values, strength=3.0)
        for e in (0, 1):
            for k in range(3):
                learner.observe(*batch(e, k))
            learner.finish(STREAM.experiences[e])
        final.append(weights(learner))
    assert same(final[0], final[1]) and same(final[0], final[2])


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("ewc", {"values": "weights"}, "values = 'weights': allowed are parameters, hidden, signs"),
        ("ewc", {"shuffled": 1}, "shuffled = 1: must be true or false"),
        ("si", {"values": "binary"}, "values = 'binary': allowed are parameters, hidden, signs"),
        ("si", {"displacement": "last"}, "displacement = 'last': allowed are own, previous"),
    ],
)
def test_impossible_values_are_refused(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LEARNERS[name].Settings(**wrong)


# --- recipes with the optimiser that consolidates ---


METAPLASTIC = Recipe(network=BinaryMLP(hidden=(7,)), optimizer="metaplastic", meta=(3.0,), batch_size=4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"meta": ()}, "meta is empty: give one coefficient, or one a layer"),
        ({"meta": 1.35}, "meta = 1.35: must be a list"),
        ({"meta": (1.0, -1.0)}, "meta = -1.0: must be a number at least 0"),
        ({"meta": ("1",)}, "meta = '1': must be a number"),
        ({"meta_scope": "all"}, "meta_scope = 'all': allowed are binary, matrices, none"),
        ({"gate": "off"}, "gate = 'off': allowed are shrinking, growing, both, shuffled"),
        ({"momentum": 0.9}, "momentum = 0.9: only optimizer = 'sgd' takes one"),
        ({"gamma": 0}, "gamma = 0: must be a number at least 1e-06"),
        ({"reset": 1}, "reset = 1: must be true or false"),
        ({"own_norms": "yes"}, "own_norms = 'yes': must be true or false"),
        ({"optimizer": "adam"}, r"meta = \(3.0,\): only for optimizer = 'metaplastic'"),
        ({"optimizer": "adam", "meta": (0.0,), "gate": "both"}, "gate = 'both': only for optimizer = 'metaplastic'"),
        ({"optimizer": "sgd", "meta": (0.0,), "meta_scope": "none"}, "meta_scope = 'none': only for optimizer"),
    ],
)
def test_impossible_metaplastic_recipes_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(METAPLASTIC, **wrong)


def test_another_number_of_coefficients_is_refused_when_the_network_is_known() -> None:
    with pytest.raises(UserError, match="give one coefficient, or one for each of the 2 layers"):
        replace(METAPLASTIC, meta=(1.0, 2.0, 3.0)).build(STREAM, 0)
    learner = replace(METAPLASTIC, meta=(1.0, 2.0)).build(STREAM, 0)
    assert [group["meta"] for group in learner.optimiser.param_groups] == [1.0, 2.0, 0.0]


def test_what_the_optimiser_is_told() -> None:
    told = replace(METAPLASTIC, step_size=0.03, weight_decay=1e-7, gate="both", meta_scope="none")
    optimiser = told.build(STREAM, 5).optimiser
    assert [(g["gate"], g["seed"]) for g in optimiser.param_groups] == [("both", 5)]
    assert [(g["lr"], g["weight_decay"], g["meta"], g["betas"]) for g in optimiser.param_groups] == [
        (0.03, 1e-7, 0.0, (0.9, 0.999))
    ]
    gated, rest = METAPLASTIC.build(STREAM, 5).optimiser.param_groups
    assert [p.dim() for p in gated["params"]] == [2, 2] and all(p.dim() == 1 for p in rest["params"])


def test_a_metaplastic_recipe_is_described_and_its_code_is_hashed() -> None:
    recipe = replace(METAPLASTIC, reset=True)
    described = recipe.describe()
    assert described["meta"] == [3.0] and described["gate"] == "shrinking" and described["reset"] is True
    assert described["network"]["kind"] == "BinaryMLP" and described["network"]["norm"] == "batch"
    names = [getattr(part, "__name__", None) for part in recipe.code()]
    assert "metaplastic" in names and "Taskwise" in names
    assert "Taskwise" not in [getattr(part, "__name__", None) for part in METAPLASTIC.code()]


def test_coefficients_come_from_a_command_line() -> None:
    pairs = {"optimizer": "metaplastic", "meta": "1.35, 2", "meta_scope": "matrices", "reset": "true", "gamma": "2"}
    _, recipes = parse(("naive",), pairs)
    found = recipes["naive"]
    assert found.meta == (1.35, 2.0) and found.meta_scope == "matrices" and found.reset and found.gamma == 2.0


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_takes_the_optimiser_that_consolidates(learner: str) -> None:
    recipe = replace(METAPLASTIC, learner=learner, settings=None, batch_size=8, reset=True, own_norms=True)
    outcome = train(recipe.build(STREAM, 0), STREAM, recipe.feed(STREAM, 0), progress=False)
    assert outcome.test.shape == (1, 3, 3) and not outcome.diverged.any()
