"""Event files that TensorBoard reads, and curves that are drawn while a learner trains."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from cllib import figures
from cllib.contract import tiny_stream
from cllib.errors import UserError
from cllib.experiments import compare
from cllib.learners.birt import BiRTSettings
from cllib.learners.latent_replay import LatentReplaySettings
from cllib.models.convit import ConViT
from cllib.models.networks import MLP
from cllib.randomness import generator
from cllib.recipes import Recipe
from cllib.results import Record
from cllib.streams import Experience, Stream
from cllib.training import train
from cllib.watching import Copies, Lag, ReleasedScalars, TensorBoard, each, learning

ER = Recipe("er", network=MLP((8,)), batch_size=8, epochs=2)


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    store = tmp_path_factory.mktemp("store")
    learners = {"naive": Recipe(network=MLP((8,)), batch_size=8), "er": ER}
    return compare("x", tiny_stream(), learners, [1, 2], store=store, probe_every=2)


def test_tensorboard_files_hold_losses_and_accuracies(tmp_path: Path) -> None:
    (record,) = compare(
        "x", tiny_stream(), {"er": ER}, [1], store=tmp_path / "s", tensorboard=tmp_path / "tb", probe_every=3
    )
    (folder,) = {path.parent for path in (tmp_path / "tb").rglob("events.*")}
    assert folder.name == record.runs[0] and "er, seeds 1" in str(folder)
    found = events(folder)
    assert {"loss", "test loss", "accuracy", "accuracy/0", "accuracy/1", "accuracy/2"} == set(found)
    assert [step for step, _ in found["test loss"]] == [6, 12, 18]
    assert [step for step, _ in found["loss"]] == [1, 3, 6, 6, 7, 9, 12, 12, 13, 15, 18, 18]
    assert found["accuracy"][-1][1] == pytest.approx(float(np.mean(record.test[0][-1])), abs=1e-4)


def test_a_resumed_run_hides_what_it_does_again(tmp_path: Path) -> None:
    first, second = TensorBoard(tmp_path), TensorBoard(tmp_path)
    for step in (1, 2, 3):
        first(step, {"loss": 10.0})
    second(3, {"loss": 20.0})
    assert events(tmp_path)["loss"] == [(1, 10.0), (2, 10.0), (3, 20.0)]


def test_copies_are_the_network_as_it_was() -> None:
    stream, recipe = tiny_stream(), Recipe(network=MLP((8,)), batch_size=8)
    learner, copies = recipe.build(stream, 0), Copies([0, 3, 9])
    found = train(learner, stream, recipe.feed(stream, 0), watch=copies, progress=False)
    assert list(copies.networks) == [0, 3, 9] == [0, *found.ends[::2]]
    first, _, last = (torch.cat([p.flatten() for p in net.parameters()]) for net in copies.networks.values())
    now = torch.cat([p.flatten() for p in learner.network.parameters()])
    assert torch.equal(last, now) and not torch.equal(first, now)
    assert not any(net.training for net in copies.networks.values())


def test_each_tells_all() -> None:
    told: list[int] = []
    each([lambda step, _: told.append(step), lambda step, _: told.append(-step)])(3, {})
    assert told == [3, -3]


def test_live_curves_start_over_with_every_run_and_update_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, figure: object) -> None:
            shown.append("update")

    monkeypatch.setattr("cllib.figures.runs.display", lambda figure, display_id: shown.append("new") or Handle())
    curves = figures.LiveCurves(seconds=0)
    for step, loss in ((1, 3.0), (2, 2.0), (1, 5.0)):
        curves(step, {"loss": loss, "accuracy": 0.5, "accuracy/0": 0.5})
    assert shown == ["new", "update", "update"]
    assert curves.present["loss"] == [(1, 5.0)] and len(curves.runs) == 2
    left, right = curves.figure().axes
    assert len(left.lines) == 1 and len(right.lines) == 2


def test_stability_shows_a_line_a_test_set_and_wants_a_curve(records: list[Record]) -> None:
    figure = figures.stability(records)
    assert [len(ax.lines) for ax in figure.axes] == [3 + 2, 3 + 2]  # test sets, and borders
    (bare,) = compare("x", tiny_stream(), {"naive": Recipe(network=MLP((8,)))}, [1], probe_every=0)
    with pytest.raises(UserError, match="naive: no curve was measured"):
        figures.stability([bare])


def test_confused_shows_shares_of_each_class(records: list[Record]) -> None:
    mesh = figures.confused(records[1], list("abcdef")).axes[0].collections[0]
    assert np.allclose(mesh.get_array().reshape(6, 6).sum(1), 1)


# --- what the released program writes ---


def labelled() -> Stream:
    """Two experiences of two and three classes, and one test."""
    draws = generator(0, "labelled")

    def part(classes: tuple[int, ...], count: int) -> Experience:
        y = torch.tensor([classes[k % len(classes)] for k in range(count)])
        return Experience(torch.randn(count, 4, generator=draws) + y[:, None], y, classes)

    return Stream("two", 5, (part((0, 1), 8), part((2, 3, 4), 9)), (part((0, 1, 2, 3, 4), 11),), ())


class Told:
    """A log and a watch that keep what they are told beside the released scalars."""

    def __init__(self, probe_every: int = 0) -> None:
        self.written: list[tuple[str, float, int]] = []
        self.scalars = ReleasedScalars(lambda *entry: self.written.append(entry))
        self.gradients: list[dict[str, Tensor]] = []
        self.replays: list[tuple[float, float]] = []
        stream = labelled()
        recipe = Recipe("latent", LatentReplaySettings(buffer_size=4), MLP((3,)), batch_size=4, epochs=2, step_size=0.1)
        self.learner, feed = recipe.build(stream, 1), recipe.feed(stream, 1)
        self.steps = [feed.steps(e) for e in (0, 1)]
        self.outcome = train(
            self.learner, stream, feed, watch=self.watch, log=self.log, track_classes=True, progress=False,
            probe_every=probe_every,
        )  # fmt: skip

    def watch(self, step: int, learner: Any) -> None:
        self.scalars.watch(step, learner)
        if step:
            parameters = learner.network.named_parameters()
            self.gradients.append({n: p.grad.clone() for n, p in parameters if "bias" not in n})
            self.replays.append((float(learner.losses["loss"]), float(learner.right.double().mean())))

    def log(self, step: int, scalars: Any) -> None:
        self.scalars.log(step, scalars)

    def found(self, name: str) -> list[tuple[int, float]]:
        return [(step, value) for own, value, step in self.written if own == name]


@pytest.mark.parametrize("probe_every", [0, 2])
def test_1_8_released_scalars_by_hand(probe_every: int) -> None:
    told = Told(probe_every)
    total = sum(told.steps)
    assert told.found("train_loss") == [(k, pytest.approx(loss)) for k, (loss, _) in enumerate(told.replays, 1)]
    assert told.found("train_accuracy") == [(k, pytest.approx(right)) for k, (_, right) in enumerate(told.replays, 1)]
    assert len(told.replays) == total
    assert told.found("test_accuracy") == [(e, pytest.approx(told.outcome.test[0, e, 0])) for e in (0, 1)]
    for c in range(5):
        assert told.found(f"{c}/class accuracy") == [(e, pytest.approx(told.outcome.by_class[0, e, c])) for e in (0, 1)]
        assert told.found(f"{c}/rm count") == [(e, told.outcome.held[0, e, c]) for e in (0, 1)]
    test = labelled().tests[0]
    loss = F.cross_entropy(told.learner.predict(test.x), test.y)
    assert [step for step, _ in told.found("test_loss")] == [0, 1]
    assert told.found("test_loss")[1][1] == pytest.approx(float(loss), rel=1e-5)
    parts = told.gradients[: told.steps[0]], told.gradients[told.steps[0] :]
    for name in ("1.weight", "3.weight"):
        means = [sum(float(g[name].abs().mean()) for g in part) / len(part) for part in parts]
        assert told.found(f"{name}/avg_grad") == [(e, pytest.approx(means[e], rel=1e-5)) for e in (0, 1)]
        largest = [max(float(g[name].abs().max()) for g in part) for part in parts]
        assert told.found(f"{name}/max_grad") == [(e, pytest.approx(largest[e])) for e in (0, 1)]


def test_1_8_no_other_names_are_written() -> None:
    names = {name for name, _, _ in Told().written}
    each = {f"{c}/{what}" for c in range(5) for what in ("class accuracy", "rm count")}
    gradients = {f"{name}/{what}" for name in ("1.weight", "3.weight") for what in ("avg_grad", "max_grad")}
    assert names == {"train_loss", "train_accuracy", "test_loss", "test_accuracy", *each, *gradients}


def test_1_8_frozen_tensors_have_no_gradients_to_write() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 2).requires_grad_(False), torch.nn.Linear(2, 2))
    assert [name for name, _ in learning(network)] == ["1.weight"]


def test_1_8_tensorboard_can_be_what_writes(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        scalars = ReleasedScalars(writer.add_scalar)
        scalars.log(7, {"accuracy": 0.25, "test loss": 1.5, "by_class/3": 0.5, "held/3": 2.0})
        scalars.log(9, {"accuracy": 0.5, "test loss": 1.0})
    found = events(tmp_path)
    assert found["test_accuracy"] == [(0, 0.25), (1, 0.5)] and found["test_loss"] == [(0, 1.5), (1, 1.0)]
    assert found["3/class accuracy"] == [(0, 0.5)] and found["3/rm count"] == [(0, 2.0)]


# --- how far BiRT's semantic memory is behind ---


class Half(nn.Module):
    """A part of f with a divergence head."""

    def __init__(self, weight: list[float], divergence: float) -> None:
        super().__init__()
        self.body = nn.ParameterList([torch.tensor(weight[:2]), torch.tensor(weight[2:])])
        self.divergence = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.divergence.weight, divergence)
        self.register_buffer("statistic", torch.tensor([divergence]))


def test_a_lag_is_the_distance_of_what_both_memories_have() -> None:
    lag = Lag()
    working, semantic = Half([1.0, 2.0, 3.0], 7.0), Half([4.0, 2.0, -1.0], 100.0)
    working.new_head = nn.Linear(3, 3)  # what f alone has
    learner = SimpleNamespace(semantic=None, split=SimpleNamespace(above=working), updates=0)
    lag(3, learner)
    assert lag.rows == []
    learner.semantic = semantic
    lag(4, learner)
    learner.updates = 2
    with torch.no_grad():
        semantic.body[1].fill_(3.0)
    lag(5, learner)
    assert lag.rows == [(4, 5.0, 0), (5, 3.0, 2)]  # 3 and 4 make 5


def lag_of(rate: float, ema: float = 0.0) -> tuple[Lag, Any, list[int]]:
    network = ConViT(patch=2, dim=8, heads=2, layers=2, drop_path=0.0)
    how = BiRTSettings(buffer_size=12, tune_epochs=0, ema=ema, ema_rate=rate, merge=False)
    stream = tiny_stream()
    recipe = Recipe("birt", how, network, "adamw", 0.01, batch_size=8)
    learner, feed, lag = recipe.build(stream, 0), recipe.feed(stream, 0), Lag()
    apart = []

    def watch(step: int, learner: Any) -> None:
        lag(step, learner)
        apart.append(distance(learner))

    found = train(learner, stream, feed, watch=watch, progress=False)
    learner.apart = apart[-1]  # before the end of the experience, at which the teacher takes over what is new
    return lag, learner, found.ends.tolist()


def distance(learner: Any) -> float:
    """Between all that f_w and f_s share, taken parameter by parameter; 0 before there is an f_s."""
    slow = {} if learner.semantic is None else dict(learner.semantic.named_parameters())
    now = {n: p for n, p in learner.split.above.named_parameters() if not n.startswith("divergence")}
    gaps = [(slow[name] - p).detach().flatten() for name, p in now.items() if name in slow]
    return float(torch.cat(gaps).norm()) if gaps else 0.0


@pytest.mark.usefixtures("one_thread")
def test_a_lag_has_a_row_a_step_after_the_first_experience() -> None:
    lag, learner, ends = lag_of(rate=0.0)
    assert [step for step, _, _ in lag.rows] == list(range(ends[0] + 1, ends[-1] + 1))
    assert {updates for _, _, updates in lag.rows} == {0}
    away = [distance for _, distance, _ in lag.rows]
    assert 0 < away[0] < away[-1]
    assert away[-1] == pytest.approx(learner.apart, rel=1e-5)
    assert distance(learner) < away[-1]


@pytest.mark.usefixtures("one_thread")
def test_a_lag_tells_updates_and_is_nothing_right_after_a_snapshot() -> None:
    lag, learner, ends = lag_of(rate=1.0)
    assert [updates for _, _, updates in lag.rows] == list(range(1, ends[-1] - ends[0] + 1))
    assert learner.updates == lag.rows[-1][2] and {distance for _, distance, _ in lag.rows} == {0.0}
    half, _, _ = lag_of(rate=1.0, ema=0.5)
    assert all(distance > 0 for _, distance, _ in half.rows)
