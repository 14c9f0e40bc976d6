"""Latent replay: mini-batches, buffer, head and optimiser, against plain computations."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cllib.contract import Stopped, tiny_stream
from cllib.errors import UserError
from cllib.experiments import compare
from cllib.feeds import Portion, portion
from cllib.learners.cwr import Rows, consolidate, counted
from cllib.learners.latent_replay import DAMPING, STIFFEST, LatentReplaySettings
from cllib.learners.si import PathPenalty
from cllib.models.latent_vit import LatentViT
from cllib.models.networks import MLP
from cllib.randomness import generator, seeded
from cllib.recipes import Recipe, parse
from cllib.results import MEASURED_FIELDS
from cllib.streams.base import Experience, Stream
from cllib.streams.latent import latents
from cllib.training import train

STILL: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0}
CLASSES = 6


pytestmark = pytest.mark.usefixtures("one_thread")


# --- a stream whose samples say who they are: [number, label, noise ...] ---


def numbered(groups: Sequence[Sequence[int]] = ((0, 1), (1, 2, 3), (4,), (0, 5)), each: int = 12) -> Stream:
    """Experiences of `each` samples; x[0]: a number of its own, x[1]: its label."""
    draws, parts, first = generator(0, "numbered"), [], 0
    for own in groups:
        y = torch.tensor([own[k % len(own)] for k in range(each)])
        noise = torch.randn(each, 4, generator=draws)
        x = torch.cat([torch.arange(first, first + each)[:, None].float(), y[:, None].float(), noise], 1)
        parts.append(Experience(x, y, tuple(sorted(set(own)))))
        first += each
    test = parts[0]
    return Stream("numbered", CLASSES, tuple(parts), (replace(test, classes=tuple(range(CLASSES))),), ())


def ignored(x: Tensor) -> Tensor:
    """The samples without their numbers."""
    return x[:, 2:]


class Blind(nn.Module):
    """A small network that does not look at numbers and labels, with a classifier without bias."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, classes, bias=False)
        self.heard: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.heard.append(x.detach().clone())
        logits: Tensor = self.head(torch.tanh(self.body(ignored(x))))
        return logits


@dataclass(frozen=True)
class BlindNet:
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        return Blind(classes)


def recipe(network: Any = None, **changes: Any) -> Recipe:
    training = {name: changes.pop(name) for name in [*changes] if name in {f.name for f in fields(Recipe)}}
    told = {"step_size": 0.1, "batch_size": 4, "epochs": 2, **training}
    return Recipe("latent", LatentReplaySettings(**{"buffer_size": 8, **changes}), network or BlindNet(), **told)


Watch = Callable[[int, Any], None]


def run(made: Recipe, stream: Stream | None = None, watch: Watch | None = None, **options: Any) -> tuple[Any, Any]:
    stream = stream or numbered()
    learner, feed = made.build(stream, 1), made.feed(stream, 1)
    return learner, train(learner, stream, feed, progress=False, watch=watch, **options)


def borders(made: Recipe, stream: Stream | None = None) -> list[Any]:
    """The learner's state after each experience (and before the first), without the steps between."""
    stream = stream or numbered()
    learner, feed = made.build(stream, 1), made.feed(stream, 1)
    found = [learner.state_dict()]
    with seeded(1, "noise"):
        for e, present in enumerate(stream.experiences):
            learner.begin(present)
            for x, y in feed.batches(e):
                learner.observe(x, y)
            learner.finish(present)
            found.append(learner.state_dict())
    return found


# --- settings ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("buffer_size", -1),
        ("dtype", "bfloat"),
        ("schedule", "random"),
        ("later_epochs", 0),
        ("later_step_size", -1.0),
        ("unseen", "kept"),
        ("cwr", 1),
        ("unique_classes", "yes"),
        ("reset_head", None),
        ("strength", -1.0),
    ],
)
def test_16_impossible_settings_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name}"):
        LatentReplaySettings(**{name: value})


def test_a_command_line_can_name_it() -> None:
    pairs = {"network": "latent_vit", "replay_block": "2", "buffer_size": "7", "cwr": "false", "later_step_size": "0.5"}
    made = parse(("latent",), pairs)[1]["latent"]
    assert made.network == LatentViT(replay_block=2) and made.settings.buffer_size == 7 and not made.settings.cwr
    assert made.settings.later_step_size == 0.5 and made.settings.later_epochs is None


# --- mini-batches and the buffer ---


@pytest.mark.parametrize("schedule", ["shuffled", "legacy"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_8_labels_stay_with_their_samples_all_along(schedule: str, dtype: str) -> None:
    """Every sample says its label: what is stored, and what is trained on, must agree with it."""
    targets: list[Tensor] = []

    def watch(step: int, learner: Any) -> None:
        if len(learner.buffer):
            x, y = learner.buffer.take(torch.arange(len(learner.buffer)))
            assert torch.equal(x[:, 1].long(), y)
        if step == 0:
            plain = learner.cross_entropy
            learner.cross_entropy = lambda logits, y: targets.append(y) or plain(logits, y)

    learner, _ = run(recipe(schedule=schedule, dtype=dtype), watch=watch)
    heard = learner.network.heard
    assert len(heard) == len(targets) > 20
    for x, y in zip(heard, targets, strict=True):
        assert torch.equal(x[:, 1].round().long(), y)
    assert any(
        len(y) == 4 and len(set(x[:, 0].div(12).long().tolist())) > 1 for x, y in zip(heard, targets, strict=True)
    )


@pytest.mark.parametrize("schedule", ["shuffled", "legacy"])
def test_b10_what_is_replayed_beside_what(schedule: str) -> None:
    """Each epoch goes through the buffer once; legacy pairs the same samples in every epoch."""
    stream = numbered(each=12)
    made = recipe(schedule=schedule, later_epochs=3)
    states, learner = borders(made, stream), made.build(stream, 1)
    learner.load_state_dict(states[1])
    learner.begin(stream.experiences[1])
    part = portion(12, 8, 4)
    assert part == learner.part == made.feed(stream, 1).portions[1] == Portion(2, 2, 6)
    for x, y in made.feed(stream, 1).batches(1):
        learner.observe(x, y)
    heard = learner.network.heard
    assert len(heard) == 3 * part.steps
    stored = states[1]["buffer"]["x"][:, 0].tolist()
    epochs = [heard[k * part.steps : (k + 1) * part.steps] for k in range(3)]
    replayed = [[x[part.new :, 0].tolist() for x in epoch] for epoch in epochs]
    for epoch in replayed:
        assert sorted(n for step in epoch for n in step) == sorted(stored), "each stored sample once"
        assert [len(step) for step in epoch] == [2, 2, 2, 2, 0, 0], "it may run out"
    if schedule == "legacy":
        assert [n for step in replayed[0] for n in step] == stored and replayed[0] == replayed[1] == replayed[2]
        assert all(torch.equal(a, b) for a, b in zip(epochs[0], epochs[2], strict=True))
    else:
        assert replayed[0] != replayed[1] != replayed[2] and replayed[0] != [stored[:2], stored[2:4]]


def test_b10_orders_of_the_buffer_belong_to_seed_experience_and_epoch() -> None:
    learner = borders_learner(1)
    here = [learner._order(epoch).tolist() for epoch in (0, 1)]
    learner.learned += 1
    assert learner._order(0).tolist() not in here and here[0] != here[1]
    assert borders_learner(2)._order(0).tolist() != here[0] == borders_learner(1)._order(0).tolist()


def borders_learner(seed: int) -> Any:
    """A learner with a full buffer, in its second experience."""
    stream, made = numbered(), recipe()
    learner = made.build(stream, seed)
    learner.load_state_dict(borders(made, stream)[1])
    return learner


def test_1_3_new_samples_come_first_and_the_loss_is_the_mean_over_all() -> None:
    stream, made = numbered(), recipe(momentum=0.0)
    states, learner = borders(made, stream), made.build(stream, 1)
    learner.load_state_dict(states[2])
    learner.begin(stream.experiences[2])
    x, y = next(made.feed(stream, 1).batches(2))
    old = [p.detach().clone() for p in learner.network.parameters()]
    slots = learner._slice()
    ox, oy = learner.buffer.take(slots)
    logits = learner.network(torch.cat([x, ox]))
    loss = F.cross_entropy(logits, torch.cat([y, oy]))
    wanted = torch.autograd.grad(loss, list(learner.network.parameters()))
    said = learner.observe(x, y)
    assert torch.equal(said, logits[: len(y)].detach()) and len(oy) == learner.part.replayed > 0
    assert torch.equal(learner.right, logits.argmax(-1) == torch.cat([y, oy])) and len(learner.right) == 4
    assert float(learner.losses["loss"]) == pytest.approx(loss.item())
    for p, before, g in zip(learner.network.parameters(), old, wanted, strict=True):
        torch.testing.assert_close(p.detach(), before - 0.1 * g)


def test_8_the_buffer_is_filled_once_and_then_replaced_by_the_rule() -> None:
    stream = numbered([(0, 1), (2, 3), (4, 5), (0, 2), (1, 5), (3,)], each=12)
    states = borders(recipe(buffer_size=8), stream)
    stores = [state["buffer"]["x"][:, 0].long() for state in states[1:]]
    assert all(len(store) == 8 for store in stores)
    for e, (before, after) in enumerate(pairwise(stores), 1):
        changed = before != after
        assert changed.sum() == 8 // (e + 1), "exactly h slots, each with another sample"
        assert (after[changed] // 12 == e).all(), "of the experience that just ended"
    assert (stores[0] // 12 == 0).all() and len(set(stores[0].tolist())) == 8
    assert all(len(set(store.tolist())) == 8 for store in stores), "no sample twice"


def test_8_any_sample_can_be_chosen_and_any_slot() -> None:
    """Over many draws each of the 12 samples comes into the buffer, and each slot is replaced, about as often."""
    stream, taken, slots = numbered([(0, 1), (2, 3)], each=12), torch.zeros(12), torch.zeros(8)
    for seed in range(150):
        learner = recipe(epochs=1).build(stream, seed)
        feed = recipe(epochs=1).feed(stream, seed)
        learner.observe = lambda x, y, learner=learner: learner.remember(x, y, torch.empty(0))  # no training
        for e, present in enumerate(stream.experiences):
            before = learner.buffer.items["x"][:, 0].clone() if e else None
            learner.begin(present)
            for x, y in feed.batches(e):
                learner.observe(x, y)
            learner.finish(present)
        now = learner.buffer.items["x"][:, 0]
        slots += now != before
        taken += torch.bincount(now[now >= 12].long() - 12, minlength=12)
    assert slots.sum() == 150 * 4 and taken.sum() == 150 * 4
    assert (slots - 75).abs().max() < 4 * 150**0.5 / 2 and (taken - 50).abs().max() < 4 * (150 * 2 / 9) ** 0.5


def test_1_3_what_is_left_over_is_neither_trained_on_nor_stored() -> None:
    stream = numbered([(0, 1), (2, 3)], each=14)
    made = recipe(buffer_size=9, epochs=1)
    part = portion(14, 9, 4)
    assert part.new * part.steps < 14 or part == Portion(2, 2, 7)
    stream = numbered([(0, 1), (2, 3)], each=11)
    part = portion(11, 9, 4)
    assert part == Portion(2, 2, 5)
    learner, _ = run(made, stream)
    shown = {int(n) for x in learner.network.heard for n in x[:, 0] if n >= 11}
    stored = {int(n) for n in learner.buffer.items["x"][:, 0] if n >= 11}
    assert len(shown) == 10 and stored <= shown and len(stored) == 4


def test_8_stored_samples_are_those_of_the_first_epoch_whatever_the_number_of_epochs() -> None:
    one, three = (run(recipe(epochs=1, later_epochs=later))[0] for later in (1, 3))
    assert torch.equal(one.buffer.items["x"], three.buffer.items["x"])
    x = numbered().experiences
    known = {float(row[0]): row for part in x for row in part.x}
    assert all(torch.equal(row, known[float(row[0])]) for row in one.buffer.items["x"])


def test_8_counts_by_class_sum_to_the_buffer() -> None:
    learner, outcome = run(recipe(), track_classes=True)
    assert outcome.held.shape == (1, 4, CLASSES) and (outcome.held.sum(-1) == 8).all()
    assert outcome.held[0, 0, :2].sum() == 8 and outcome.held[0, 0, 2:].sum() == 0
    labels = learner.buffer.items["x"][:, 1].long()
    assert outcome.held[0, -1].tolist() == torch.bincount(labels, minlength=CLASSES).tolist()
    assert learner.held(CLASSES).tolist() == outcome.held[0, -1].tolist()


def test_8_nothing_is_held_before_the_first_experience_ends() -> None:
    learner = recipe().build(numbered(), 1)
    assert learner.held(CLASSES).tolist() == [0] * CLASSES and len(learner.buffer) == 0


def test_1_3_padding_is_trained_on_and_may_be_stored_but_is_not_counted() -> None:
    stream = numbered([(0, 1), (2, 3)], each=10)
    learner, _ = run(recipe(batch_size=4, buffer_size=12, epochs=1), stream)
    assert [len(x) for x in learner.network.heard[:3]] == [4, 4, 4] and len(learner.buffer) == 12
    state = borders(recipe(batch_size=4, buffer_size=12, epochs=1), stream)[1]
    numbers = state["buffer"]["x"][:, 0].long()
    assert torch.bincount(numbers).tolist() == [2, 2, *[1] * 8], "the first two, once more"
    assert state["rows"]["past"].tolist() == [5, 5, 0, 0, 0, 0]


def test_b13_a_buffer_with_fewer_samples_than_experiences_is_warned_about() -> None:
    with pytest.warns(UserWarning, match="buffer_size = 3: nothing of the last 1 experiences is stored"):
        recipe(buffer_size=3).feed(numbered(), 1)
    with pytest.warns(UserWarning, match="buffer_size = 20: the first experience gives 12, and so it stays"):
        recipe(buffer_size=20).feed(numbered(), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (0, 4, 12):
            recipe(buffer_size=size).feed(numbered(), 1)


@pytest.mark.filterwarnings("ignore:buffer_size")
def test_b13_what_comes_after_a_small_buffer_is_used_up_is_not_stored() -> None:
    states = borders(recipe(buffer_size=3))
    stores = [state["buffer"]["x"][:, 0] for state in states[1:]]
    assert torch.equal(stores[2], stores[3]) and (stores[3] // 12 != 3).all() and not torch.equal(stores[0], stores[1])


@pytest.mark.filterwarnings("ignore:buffer_size")
@pytest.mark.parametrize("schedule", ["shuffled", "legacy"])
def test_b12_a_first_experience_that_is_too_small_sets_the_size_for_ever(schedule: str) -> None:
    stream = numbered([(0, 1), (2, 3), (4, 5)], each=12)
    made = recipe(buffer_size=20, schedule=schedule)
    states = borders(made, stream)
    assert [len(state["buffer"]["y"]) for state in states[1:]] == [12, 12, 12]
    wanted = portion(12, 20 if schedule == "legacy" else 12, 4)
    assert made.feed(stream, 1).portions[1] == wanted == Portion(*states[2]["part"])
    changed = [int((a["buffer"]["x"] != b["buffer"]["x"])[:, 0].sum()) for a, b in pairwise(states[1:])]
    assert changed == [min(10, wanted.new * wanted.steps), 6]


def test_an_epoch_is_never_cut_short_where_the_buffer_counts_on_it() -> None:
    with pytest.raises(UserError, match="iterations = 2: must be a whole number at least 6"):
        recipe(buffer_size=12, iterations=2).feed(numbered(each=12), 1)
    assert recipe(buffer_size=0, iterations=2).feed(numbered(each=12), 1).steps(1) == 2


@pytest.mark.parametrize("iterations", [6, 40])
@pytest.mark.filterwarnings("ignore:buffer_size")
def test_feed_and_learner_split_alike_however_few_steps_there_are(iterations: int) -> None:
    stream, made = numbered(each=12), recipe(buffer_size=12, iterations=iterations)
    feed, learner = made.feed(stream, 1), made.build(stream, 1)
    for e, present in enumerate(stream.experiences):
        learner.begin(present)
        assert learner.part == feed.portions[e]
        for x, y in feed.batches(e):
            learner.observe(x, y)
        learner.finish(present)


def test_7_sizes_that_make_no_mini_batch_are_refused_before_the_run() -> None:
    with pytest.raises(UserError, match="batch_size = 50"):
        recipe(batch_size=50).feed(numbered(), 1)
    with pytest.raises(UserError, match="batch_size = 1"):
        recipe(batch_size=1).feed(numbered(), 1)


# --- the head ---


def rows_of(classes: int, width: int, seed: int) -> Tensor:
    return torch.randn(classes, width, generator=generator(seed, "rows"))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 30),
    st.lists(st.integers(0, 9), min_size=5, max_size=5),
    st.lists(st.integers(0, 9), min_size=5, max_size=5),
)
def test_9_consolidation_by_hand(seed: int, past: list[int], now: list[int]) -> None:
    kept, trained = rows_of(5, 3, seed), rows_of(5, 3, seed + 1)
    found = consolidate(kept, trained, torch.tensor(past).float(), torch.tensor(now).float())
    seen = [c for c in range(5) if now[c]]
    mu = sum(float(trained[c].sum()) for c in seen) / max(1, 3 * len(seen))
    for c in range(5):
        if c not in seen:
            assert torch.equal(found[c], kept[c]), "rows of other classes stay, bit for bit"
            continue
        a = (past[c] / now[c]) ** 0.5
        torch.testing.assert_close(found[c], (a * kept[c] + trained[c] - mu) / (a + 1), atol=1e-5, rtol=1e-5)
    assert sum(float((trained[c] - mu).sum()) for c in seen) == pytest.approx(0, abs=1e-4)


def test_9_a_new_class_is_its_row_less_the_mean() -> None:
    kept, trained = torch.zeros(3, 4), rows_of(3, 4, 0)
    found = consolidate(kept, trained, torch.zeros(3), torch.tensor([5.0, 2.0, 0.0]))
    assert torch.equal(found[:2], trained[:2] - trained[:2].mean()) and not found[2].any()
    twice = consolidate(kept, trained, torch.zeros(3), torch.tensor([5.0, 2.0, 0.0]), torch.tensor([3.0, 1.0, 0.0]))
    mean = (3 * trained[0] + trained[1]).mean() / 4
    torch.testing.assert_close(twice[:2], trained[:2] - mean)


def test_9_how_much_stays_depends_on_what_came_before() -> None:
    kept, trained = rows_of(2, 3, 0), rows_of(2, 3, 1)
    found = consolidate(kept, trained, torch.tensor([4.0, 7.0]), torch.tensor([1.0, 7.0]))
    w = trained - trained.mean()
    torch.testing.assert_close(found[0], (2 * kept[0] + w[0]) / 3)
    torch.testing.assert_close(found[1], (kept[1] + w[1]) / 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 100), st.integers(1, 30))
def test_9_b1_many_visits_are_one_with_a_power(visits: int, past: int, now: int) -> None:
    kept, trained = rows_of(2, 3, 0).double(), rows_of(2, 3, 1).double()
    before, counts, times = (torch.tensor([v, 0.0]).double() for v in (past, now, visits))
    found = consolidate(kept, trained, before, counts, times)
    w, a, row = trained[0] - trained[0].mean(), (past / now) ** 0.5, kept[0]
    for _ in range(visits):
        row = (a * row + w) / (a + 1)
    torch.testing.assert_close(found[0], row)
    assert torch.equal(found[1], kept[1])
    q = a / (a + 1)
    torch.testing.assert_close(found[0], q**visits * kept[0] + (1 - q**visits) * w)


def test_9_b1_the_example_of_the_spec() -> None:
    for a, share in ((3.16, 0.9997), (10.0, 0.943)):
        one = consolidate(
            torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([a**2]), torch.ones(1), torch.tensor([30.0])
        )
        assert float(one) == 0, "a single row less its own mean"
        kept = consolidate(
            torch.ones(1, 1), torch.ones(1, 1), torch.tensor([a**2]), torch.ones(1), torch.tensor([30.0])
        )
        assert 1 - float(kept) == pytest.approx(share, abs=2e-3)


def test_9_one_visit_each_is_the_plain_rule() -> None:
    kept, trained, past, now = (
        rows_of(4, 3, 0),
        rows_of(4, 3, 1),
        torch.tensor([0.0, 3, 5, 2]),
        torch.tensor([2.0, 1, 0, 2]),
    )
    plain = consolidate(kept, trained, past, now)
    torch.testing.assert_close(consolidate(kept, trained, past, now, (now > 0).float()), plain)


def test_9_labels_are_counted() -> None:
    assert counted(torch.tensor([1, 1, 4]), torch.zeros(5)).tolist() == [0, 2, 0, 0, 1]
    assert counted(torch.empty(0, dtype=torch.long), torch.ones(2)).tolist() == [0, 0]


@pytest.mark.parametrize("bias", [True, False])
def test_9_rows_are_read_and_written_with_their_bias(bias: bool) -> None:
    layer = nn.Linear(3, 4, bias=bias)
    rows = Rows(layer)
    assert rows.read().shape == (4, 3 + bias) and not rows.kept.any()
    new = rows_of(4, 3 + bias, 0)
    rows.write(new)
    assert torch.equal(rows.read(), new) and torch.equal(layer.weight, new[:, :3])
    rows.kept = new
    rows.load(torch.tensor([True, False, True, False]))
    assert torch.equal(rows.read(), new * torch.tensor([1.0, 0, 1, 0])[:, None])


@pytest.mark.parametrize("left", [True, False])
def test_9_b2_rows_of_classes_never_seen_are_zero_or_left(left: bool) -> None:
    layer = nn.Linear(3, 4, bias=False)
    rows, trained = Rows(layer), layer.weight.detach().clone()
    rows.now = torch.tensor([2.0, 0, 1, 0])
    rows.finish(left=left)
    own = [0, 2]
    assert torch.equal(layer.weight[own], rows.kept[own]) and rows.past.tolist() == [2, 0, 1, 0] and not rows.now.any()
    assert torch.equal(layer.weight[[1, 3]], trained[[1, 3]]) if left else not layer.weight[[1, 3]].any()
    assert not rows.kept[[1, 3]].any()


def test_9_an_experience_starts_from_the_kept_rows_of_batch_and_buffer() -> None:
    stream, made = numbered(), recipe()
    states = borders(made, stream)
    for e in (1, 2, 3):
        learner = made.build(stream, 1)
        learner.load_state_dict(states[e])
        learner.begin(stream.experiences[e])
        own = {*stream.experiences[e].y.tolist(), *states[e]["buffer"]["y"].tolist()}
        for c in range(CLASSES):
            wanted = states[e]["rows"]["kept"][c] if c in own else torch.zeros(5)
            assert torch.equal(learner.network.head.weight[c], wanted)
        assert len(own) < CLASSES or e == 3


@pytest.mark.parametrize("unique", [True, False])
def test_9_10_heads_of_a_whole_run_by_hand(unique: bool) -> None:
    """Consolidated rows and counts after every experience, from trained rows and labels alone."""
    stream, made = numbered(), recipe(unique_classes=unique, epochs=1)
    learner, feed = made.build(stream, 1), made.feed(stream, 1)
    cw, past = torch.zeros(CLASSES, 5).double(), [0] * CLASSES
    for e, present in enumerate(stream.experiences):
        stored = learner.buffer.items["y"].tolist() if e else []
        learner.begin(present)
        for x, y in feed.batches(e):
            learner.observe(x, y)
        trained = learner.network.head.weight.detach().double()
        ids = [*sorted(set(present.y.tolist())), *stored]  # as released: a set of labels and a list of tensors
        visits = sorted(set(ids)) if unique or e == 0 else ids
        mu = torch.stack([trained[c] for c in visits]).mean()
        for c in visits:
            now = present.y.tolist().count(c) + stored.count(c)
            a = (past[c] / now) ** 0.5
            cw[c] = (a * cw[c] + trained[c] - mu) / (a + 1)
        for c in set(ids):
            past[c] += present.y.tolist().count(c) + stored.count(c)
        learner.finish(present)
        torch.testing.assert_close(learner.rows.kept.double(), cw, atol=1e-5, rtol=1e-4)
        assert learner.rows.past.tolist() == past
        assert torch.equal(learner.network.head.weight, learner.rows.kept)
    assert sum(past) == 4 * 12 + 3 * 8, "replayed samples are counted, once an experience"


@pytest.mark.parametrize("unseen", ["zero", "left"])
@pytest.mark.parametrize("unique", [True, False])
def test_9_answers_in_the_middle_are_those_if_the_experience_ended_now(unseen: str, unique: bool) -> None:
    stream, made = numbered(), recipe(unseen=unseen, unique_classes=unique)
    learner, feed, x = made.build(stream, 1), made.feed(stream, 1), numbered().tests[0].x
    for e, present in enumerate(stream.experiences):
        learner.begin(present)
        for k, batch in enumerate(feed.batches(e)):
            learner.observe(*batch)
            if k == 3:
                break
        rows = learner.rows.read()
        said = learner.predict(x)
        assert torch.equal(learner.rows.read(), rows), "and the rows are put back"
        learner.finish(present)
        torch.testing.assert_close(learner.predict(x), said)
        unknown = (learner.rows.past == 0).nonzero().flatten()
        if len(unknown):
            assert (said[:, unknown] == 0).all() == (unseen == "zero")


def test_without_cwr_the_head_is_left_alone() -> None:
    stream, made = numbered(), recipe(cwr=False)
    learner, feed = made.build(stream, 1), made.feed(stream, 1)
    for e, present in enumerate(stream.experiences):
        before = learner.network.head.weight.detach().clone()
        learner.begin(present)
        assert torch.equal(learner.network.head.weight, before) and before.any()
        for batch in feed.batches(e):
            learner.observe(*batch)
        before, x = learner.network.head.weight.detach().clone(), stream.tests[0].x
        said = learner.predict(x)
        learner.finish(present)
        assert torch.equal(learner.network.head.weight, before) and torch.equal(learner.predict(x), said)


def test_18_without_a_buffer_it_is_cwr_star_bit_for_bit() -> None:
    stream = numbered()
    mine, first = run(recipe(buffer_size=0, momentum=0.0), stream)
    told: dict[str, Any] = {"network": BlindNet(), "step_size": 0.1, "batch_size": 4, "epochs": 2}
    other = Recipe("cwr*", None, **told)
    other = replace(other, settings=replace(other.settings, freeze=False))
    plain, second = run(other, stream)
    for a, b in zip(mine.network.state_dict().values(), plain.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert (first.test == second.test).all() and (first.online == second.online).all()
    assert torch.equal(mine.rows.past * 2, plain.rows.past), "that one counts each epoch"
    assert len(mine.buffer) == 0 and mine.held(CLASSES).sum() == 0


def test_18_without_buffer_and_cwr_it_is_naive_training_but_for_the_new_optimiser() -> None:
    stream = numbered()
    mine, first = run(recipe(buffer_size=0, cwr=False, momentum=0.0), stream)
    plain, second = run(Recipe("naive", network=BlindNet(), step_size=0.1, batch_size=4, epochs=2), stream)
    for a, b in zip(mine.network.state_dict().values(), plain.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert (first.test == second.test).all()


# --- the optimiser ---


def test_11_the_optimiser_is_new_once_and_then_lives_on() -> None:
    stream, made = numbered(), recipe(momentum=0.9, later_step_size=0.03, later_epochs=1)
    learner, feed = made.build(stream, 1), made.feed(stream, 1)
    rates, kept = [], []
    for e, present in enumerate(stream.experiences):
        learner.begin(present)
        rates.append(learner.optimiser.param_groups[0]["lr"])
        kept.append({k: v["momentum_buffer"] for k, v in learner.optimiser.state.items()})
        steps = [learner.observe(*batch) for batch in feed.batches(e)]
        assert len(steps) == (2 * 3 if e == 0 else learner.part.steps)
        if e:
            assert learner.optimiser.param_groups[0]["lr"] == 0.03
        learner.finish(present)
    assert rates == [0.1, 0.03, 0.03, 0.03]
    assert [len(momenta) for momenta in kept] == [0, 0, 3, 3], "cleared before the second experience, and never again"
    assert all(kept[2][p] is kept[3][p] for p in kept[2]), "the very same momenta"
    assert all(m.abs().sum() > 0 for m in kept[3].values())


def test_11_a_run_by_hand_with_momentum_and_decay() -> None:
    """torch.optim.SGD, made anew before the second experience, on the same mini-batches."""
    stream, made = numbered(), recipe(momentum=0.9, weight_decay=0.01, cwr=False, later_step_size=0.02)
    learner, _ = run(made, stream)
    other = made.build(stream, 1)
    inputs, network = learner.network.heard, other.network
    first = made.feed(stream, 1).steps(0)
    for k, x in enumerate(inputs):
        if k in (0, first):
            rate = 0.02 if k else 0.1
            optimiser = torch.optim.SGD(network.parameters(), rate, 0.9, weight_decay=0.01)
        optimiser.zero_grad()
        F.cross_entropy(network(x), x[:, 1].long()).backward()
        optimiser.step()
    for a, b in zip(learner.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_11_without_a_later_step_size_the_first_one_stays() -> None:
    learner, _ = run(recipe(momentum=0.9))
    assert learner.optimiser.param_groups[0]["lr"] == 0.1
    zero, _ = run(recipe(later_step_size=0.0))
    first = borders(recipe(later_step_size=0.0))[1]["network"]
    assert torch.equal(zero.network.body.weight, first["body.weight"]), "a step size of 0 is one"


@pytest.mark.parametrize("reset", [True, False])
def test_b11_momentum_of_the_head_is_forgotten_on_request(reset: bool) -> None:
    stream, made = numbered(), recipe(momentum=0.9, reset_head=reset)
    learner, feed = made.build(stream, 1), made.feed(stream, 1)
    for e, present in enumerate(stream.experiences[:3]):
        learner.begin(present)
        state = learner.optimiser.state
        assert (learner.network.head.weight in state) == (e == 2 and not reset)
        assert (learner.network.body.weight in state) == (e == 2)
        for batch in feed.batches(e):
            learner.observe(*batch)
        learner.finish(present)


# --- synaptic intelligence ---


def test_1_6_the_penalty_is_that_of_the_equations() -> None:
    """One parameter, steps by hand: T += g (new - old); S += T / (moved^2 + 1e-7); F = min(-S, 1e-3), not below 0."""
    p = nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 0.0]))
    penalty, strength = PathPenalty([p], DAMPING, (0, STIFFEST)), 3.0
    anchor, total, importance = p.detach().clone(), torch.zeros(4), torch.zeros(4)
    for e in range(3):
        start, path = p.detach().clone(), torch.zeros(4)
        for k in range(4):
            g = torch.tensor([0.3, -0.1, 0.02, 0.2]) * (k + 1) * (1 if e < 2 else -1)
            p.grad = g.clone()
            penalty.correct([p], strength)
            whole = g + strength * importance * (p.detach() - anchor)
            torch.testing.assert_close(p.grad, whole)
            old = p.detach().clone()
            with torch.no_grad():
                p -= torch.tensor([1e-3, 0.1, 0.01, -0.05]) * p.grad  # the last one climbs
            penalty.follow([p])
            path += whole * (p.detach() - old)
        torch.testing.assert_close(penalty.path[0], path)
        penalty.finish([p])
        total += path / ((p.detach() - start) ** 2 + 1e-7)
        importance, anchor = (-total).clamp(0, 1e-3), p.detach().clone()
        torch.testing.assert_close(penalty.total[0], total)
        torch.testing.assert_close(penalty.importance[0], importance)
        assert torch.equal(penalty.anchor[0], anchor) and not penalty.path[0].any()
    assert (importance[:3] > 0).all() and importance[3] == 0 and (DAMPING, STIFFEST) == (1e-7, 1e-3)


def test_1_6_the_head_is_free_and_the_body_is_pulled() -> None:
    stream, made = numbered(), recipe(strength=1e3, step_size=0.05)
    learner, _ = run(made, stream)
    assert learner.penalty is not None
    assert [t.shape for t in learner.penalty.importance] == [(5, 4), (5,)]
    assert (learner.penalty.importance[0] > 0).any()
    plain, _ = run(recipe(step_size=0.05), stream)
    assert plain.penalty is None and "importance" not in plain.parts() and "importance" in learner.parts()
    assert not torch.equal(plain.network.body.weight, learner.network.body.weight)
    first = [borders(recipe(strength=s, step_size=0.05), stream)[1]["network"] for s in (0.0, 1e3)]
    assert torch.equal(first[0]["body.weight"], first[1]["body.weight"]), "no pull in the first experience"


def test_1_6_the_penalty_moves_along_the_path_of_the_whole_gradient() -> None:
    stream, made = numbered(), recipe(strength=50.0, momentum=0.0, cwr=False)
    learner, feed = made.build(stream, 1), made.feed(stream, 1)
    paths = torch.zeros(5, 4)
    for e, present in enumerate(stream.experiences[:2]):
        learner.begin(present)
        paths.zero_()
        for batch in feed.batches(e):
            before = learner.network.body.weight.detach().clone()
            learner.observe(*batch)
            paths += learner.network.body.weight.grad * (learner.network.body.weight.detach() - before)
        torch.testing.assert_close(learner.penalty.path[0], paths)
        learner.finish(present)


# --- going on after a stop ---


@pytest.mark.parametrize(
    "changes", [{}, {"schedule": "legacy", "strength": 1.0}, {"dtype": "int8", "unique_classes": False}]
)
def test_17_a_state_holds_everything(changes: dict[str, Any]) -> None:
    stream, made = numbered(), recipe(momentum=0.9, later_step_size=0.05, **changes)
    whole, _ = run(made, stream)
    learner, feed, cuts = made.build(stream, 1), made.feed(stream, 1), 0
    for e, present in enumerate(stream.experiences):
        learner.begin(present)
        for batch in feed.batches(e):
            learner.observe(*batch)
            cuts += 1
            if cuts % 4 == 1:
                state, learner = learner.state_dict(), made.build(stream, 1)
                learner.load_state_dict(state)
        learner.finish(present)
        state, learner = learner.state_dict(), made.build(stream, 1)
        learner.load_state_dict(state)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, learner.network.state_dict()[name])
    assert all(torch.equal(v, learner.buffer.items[k]) for k, v in whole.buffer.items.items())


# --- with the transformer ---


def pictures(groups: Sequence[Sequence[int]] = ((0, 1), (2, 3), (1, 4)), each: int = 6, tests: int = 8) -> Stream:
    """Random images, uint8."""
    draws = generator(0, "pictures")

    def part(count: int, own: Sequence[int]) -> Experience:
        x = torch.randint(0, 256, (count, 3, 32, 32), generator=draws, dtype=torch.uint8)
        y = torch.tensor([own[k % len(own)] for k in range(count)])
        return Experience(x, y, tuple(sorted(set(own))))

    trains = tuple(part(each, own) for own in groups)
    return Stream("pictures", 5, trains, (part(tests, range(5)),), ())


def vit(frozen: int | None = 4, **changes: Any) -> LatentViT:
    return LatentViT(**{"replay_block": frozen, "depth": 6, **changes})


def vit_recipe(network: LatentViT, **changes: Any) -> Recipe:
    told = {"batch_size": 3, "buffer_size": 4, "momentum": 0.9, "weight_decay": 5e-4, "step_size": 0.01, **changes}
    return recipe(network, **told)


def seen(network: LatentViT, stream: Stream) -> Stream:
    """The stream as latents, made here."""
    front = network.front(stream.shape)
    assert front is not None
    return stream.map(lambda e: replace(e, x=latents(front, e.x)))


@pytest.mark.parametrize("frozen", [0, 5, 6])
def test_2_what_is_frozen_keeps_its_bits_and_all_else_learns(frozen: int) -> None:
    """The whole network on images, replaying images."""
    stream, made = pictures(), vit_recipe(vit(frozen))
    start = made.build(stream, 1).network.state_dict()
    replayed: list[int] = []

    def watch(step: int, learner: Any) -> None:
        replayed.append(len(learner.right) - learner.part.new)
        assert all(p.grad is None for p in learner.network.lower.parameters())

    learner, _ = run(made, stream, watch=watch)
    assert max(replayed) > 0
    for name, value in learner.network.state_dict().items():
        assert torch.equal(value, start[name]) == name.startswith("lower."), name
    held = {id(p) for group in learner.optimiser.param_groups for p in group["params"]}
    assert held == {id(p) for p in learner.network.upper.parameters()}


@pytest.mark.parametrize(("frozen", "dropout"), [(0, 0.0), (4, 0.1), (6, 0.0)])
def test_caching_latents_is_training_on_images(frozen: int, dropout: float) -> None:
    """Latents once a sample, or the frozen part at every step: the same weights, buffer labels and answers."""
    stream, network = pictures(), vit(frozen, dropout=dropout, attention_dropout=dropout)
    made = vit_recipe(network)
    whole, first = run(made, stream)
    upper, second = run(made, seen(network, stream))
    for name, value in upper.network.state_dict().items():
        torch.testing.assert_close(whole.network.upper.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    assert torch.equal(whole.buffer.items["y"], upper.buffer.items["y"])
    front = network.front(stream.shape)
    torch.testing.assert_close(latents(front, whole.buffer.items["x"]), upper.buffer.items["x"], atol=1e-5, rtol=1e-4)
    assert (first.test == second.test).all() and (first.online == second.online).all()


def test_6_storing_the_class_token_alone_is_the_same_training() -> None:
    stream, found = pictures(), []
    for store in ("tokens", "cls"):
        network = vit(6, store=store, dropout=0.3)
        learner, outcome = run(vit_recipe(network), seen(network, stream))
        found.append((learner, outcome))
    (tokens, first), (cls, second) = found
    for a, b in zip(tokens.network.parameters(), cls.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert (first.test == second.test).all() and torch.equal(tokens.buffer.items["x"][:, :1], cls.buffer.items["x"])
    assert tokens.bytes()["buffer"] > 10 * cls.bytes()["buffer"]


def test_images_can_be_replayed_where_nothing_is_frozen() -> None:
    stream, made = pictures(), vit_recipe(vit(None), dtype="pixels")
    learner, _ = run(made, stream)
    assert learner.buffer.items["x"].dtype == torch.uint8 and learner.buffer.items["x"].shape == (4, 3, 32, 32)
    rows = {tuple(x.flatten()[:50].tolist()) for part in stream.experiences for x in part.x}
    assert all(tuple(x.flatten()[:50].tolist()) in rows for x in learner.buffer.items["x"]), "bit for bit"
    start = made.build(stream, 1).network.state_dict()
    assert not any(torch.equal(v, start[k]) for k, v in learner.network.state_dict().items())


MEASURED = {*MEASURED_FIELDS}


@pytest.mark.parametrize("cut", [1, 4, 5, 9])
def test_17_a_stopped_run_on_latents_ends_with_the_same_record(cut: int, tmp_path: Path) -> None:
    stream, made = pictures(), vit_recipe(vit(4), dtype="float16", schedule="shuffled", later_epochs=1)
    options: dict[str, Any] = {"track_classes": True, "probe_every": 3, "progress": False}

    def stop(step: int, learner: Any) -> None:
        if step == cut:
            raise Stopped

    (wanted,) = compare("x", stream, {"latent": made}, [1], store=tmp_path / "one", **options)
    with suppress(Stopped):
        compare("x", stream, {"latent": made}, [1], store=tmp_path / "two", watch=stop, checkpoint_every=1, **options)
    steps: list[int] = []
    (found,) = compare(
        "x", stream, {"latent": made}, [1], store=tmp_path / "two", watch=lambda s, _: steps.append(s), **options
    )
    total = sum(made.feed(seen(vit(4), stream), 1).steps(e) for e in range(3))
    assert steps[-1] == total == 10 and (cut == 1 or steps[0] == cut)
    for f in fields(found):
        if f.name not in MEASURED:
            assert getattr(found, f.name) == getattr(wanted, f.name), f.name
    assert wanted.held and wanted.by_class and wanted.masked


def test_settings_reach_a_run() -> None:
    """Whatever is set differently gives another network."""
    stream = tiny_stream()
    base: dict[str, Any] = {"network": MLP((7,)), "batch_size": 5, "momentum": 0.9, "buffer_size": 10}
    made = {
        "base": {},
        "legacy": {"schedule": "legacy"},
        "int8": {"dtype": "int8"},
        "later epochs": {"later_epochs": 1},
        "later rate": {"later_step_size": 0.01},
        "no cwr": {"cwr": False},
        "b1": {"unique_classes": False},
        "head": {"reset_head": True},
        "strength": {"strength": 100.0},
        "small": {"buffer_size": 6},
    }
    found = {}
    for name, changes in made.items():
        learner, _ = run(recipe(**{**base, **changes}), stream)
        found[name] = tuple(torch.cat([p.detach().flatten() for p in learner.network.parameters()]).tolist())
    assert len(set(found.values())) == len(made)
