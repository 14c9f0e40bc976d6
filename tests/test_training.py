"""The loop: what it shows, measures, saves and goes on from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cllib.checkpoints import Keeper
from cllib.contract import tiny_stream
from cllib.errors import UserError
from cllib.experiments import compare
from cllib.learners.heads import LearnerConfig
from cllib.models.memory_head import MemoryHeadConfig
from cllib.models.networks import CNN, MLP
from cllib.recipes import Recipe
from cllib.streams import Experience, StreamConfig
from cllib.training import EARLY, Batches, Exam, History, Outcome, excerpt, probed, train

STREAM = tiny_stream()
NAIVE = Recipe(network=MLP((7,)), batch_size=5, epochs=2)


def run(recipe: Recipe = NAIVE, stream: Any = STREAM, **options: Any) -> Outcome:
    return train(recipe.build(stream, 1), stream, recipe.feed(stream, 1), progress=False, **options)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 3), st.integers(0, 5))
def test_every_sample_is_shown_once_an_epoch_and_any_step_can_be_gone_back_to(
    size: int, epochs: int, start: int
) -> None:
    feed = Batches(STREAM, 3, size, epochs)
    steps = list(feed.batches(1))
    assert len(steps) == feed.steps(1)
    shown = torch.cat([x for x, _ in steps]).flatten(1)
    for epoch in shown.split(24):
        assert torch.equal(epoch.sort(0).values, STREAM.experiences[1].x.flatten(1).sort(0).values)
    for (x, y), (x2, y2) in zip(steps[start:], feed.batches(1, start), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)


def test_iterations_take_the_place_of_epochs() -> None:
    feed = Batches(STREAM, 3, 10, iterations=7)
    sizes = [len(y) for _, y in feed.batches(0)]
    assert sizes == [10, 10, 4, 10, 10, 4, 10]


def test_epochs_and_experiences_have_orders_of_their_own() -> None:
    first, second = torch.stack([x for x, _ in Batches(STREAM, 3, 24, 2).batches(0)])
    assert not torch.equal(first, second)
    labels = [next(iter(Batches(STREAM, 3, 24).batches(e)))[1] % 2 for e in (0, 1)]
    assert not torch.equal(*labels)


def test_joint_batches_pair_images_with_their_labels() -> None:
    known = {tuple(x.flatten().tolist()): int(y) for e in STREAM.experiences for x, y in zip(e.x, e.y, strict=True)}
    count = 0
    for x, y in Batches(STREAM, 1, 7, iterations=11, joint=True).batches(2):
        assert [known[tuple(sample.flatten().tolist())] for sample in x] == y.tolist()
        count += len(y)
    assert count == 72, "eleven batches are one epoch over everything, the last of them of two samples"


def test_exam_counts_right_answers_and_confusions() -> None:
    tests = [
        Experience(torch.zeros(4, 1), torch.tensor([0, 0, 1, 1]), (0, 1)),
        Experience(torch.zeros(2, 1), torch.tensor([2, 2]), (2,)),
    ]
    exam = Exam(tests)
    answers = torch.tensor([[0, 1, 1, 1, 2, 0], [0, 0, 0, 0, 0, 0]])
    assert exam.accuracies(answers).tolist() == [[0.75, 0.5], [0.5, 0.0]]
    assert exam.confusion(answers, 3).tolist()[0] == [[1, 1, 0], [0, 2, 0], [1, 0, 1]]
    assert exam.accuracies(answers[0]).tolist() == [0.75, 0.5] and exam.confusion(answers[0], 3).shape == (1, 3, 3)


def test_told_experiences_restrict_the_answers() -> None:
    free, told = (run(stream=tiny_stream(scenario)) for scenario in ("class", "task"))
    blocks = np.kron(np.eye(3), np.ones((2, 2))) == 0
    assert (told.confusion[0][blocks] == 0).all() and (free.confusion[0][blocks] > 0).any()


def test_excerpts_are_spread_and_bounded() -> None:
    parts = excerpt(STREAM.tests, 12)
    assert [len(part) for part in parts] == [4, 4, 4]
    assert [len(part) for part in excerpt(STREAM.tests, 1000)] == [10, 10, 10]
    assert [len(part) for part in excerpt(STREAM.tests, 1)] == [1, 1, 1]
    assert torch.equal(parts[0].x[[0, -1]], STREAM.tests[0].x[[0, -1]])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 12), st.integers(0, 7))
def test_online_windows_do_not_depend_on_batches_or_stops(batches: list[int], every: int, fold: int) -> None:
    g, history, right = torch.Generator().manual_seed(0), History(every), []
    for k, size in enumerate(batches):
        logits, y = torch.rand(size, 3, generator=g), torch.randint(3, (size,), generator=g)
        history.note(logits, y)
        right += (logits.argmax(-1) == y).tolist()
        if k == fold:
            other = History(every)
            other.load_state_dict(history.state_dict())
            history = other
    online, ends = history.online()
    wanted = [np.mean(right[k : k + every]) for k in range(0, len(right), every)]
    assert np.allclose(online[0], wanted) and ends[-1] == len(right)


def test_curve_has_points_early_and_regularly() -> None:
    assert [step for step in range(1, 101) if probed(step, 40)] == [*EARLY, 40, 80]
    assert not any(probed(step, 0) for step in range(100))
    outcome = run(probe_every=4)
    assert outcome.steps.tolist() == [s + 10 * e for e in range(3) for s in (1, 3, 4, 8)]
    assert outcome.curve.shape == (1, 12, 3) and outcome.ends.tolist() == [10, 20, 30]


def test_watching_changes_nothing(tmp_path: Path) -> None:
    plain, seen, told = run(), [], []
    watched = run(watch=lambda step, learner: seen.append(step), log=lambda step, scalars: told.append((step, scalars)),
                  probe_every=5, keeper=Keeper(tmp_path / "c.pt", "r", every=1))  # fmt: skip
    assert np.array_equal(plain.test, watched.test) and np.array_equal(plain.online, watched.online)
    assert seen == list(range(31)) and [step for step, _ in told][-1] == 30
    assert {"loss", "accuracy", "accuracy/0", "accuracy/2"} <= set(told[-1][1])


def test_a_finished_run_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path / "c.pt", "r")
    first = run(keeper=keeper)
    steps: list[int] = []
    again = run(keeper=Keeper(tmp_path / "c.pt", "r"), watch=lambda step, _: steps.append(step))
    assert not steps and np.array_equal(first.test, again.test) and again.seconds > 0


def test_divergence_is_told() -> None:
    recipe = Recipe(network=MLP((7,)), batch_size=5, epochs=4, step_size=1e30)
    assert run(recipe).diverged.tolist() == [True] and run().diverged.tolist() == [False]
    (record,) = compare("x", STREAM, {"wild": recipe}, [1])
    assert record.diverged == [True]


@pytest.mark.parametrize("option", ["track_every", "probe_size", "eval_chunk"])
def test_impossible_options_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"{option} = 0"):
        run(**{option: 0})


@pytest.mark.parametrize(("option", "value"), [("batch_size", 0), ("epochs", 0), ("iterations", 0)])
def test_impossible_feeds_are_refused(option: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{option} = 0"):
        Batches(STREAM, 0, **{option: value})


def test_any_learner_runs_on_any_stream_beside_the_memory_head() -> None:
    digits = StreamConfig(train_size=12, test_size=5).build()
    learners = {
        "MH": LearnerConfig(MemoryHeadConfig(units=10, distance="cosine")),
        "er": Recipe("er", network=CNN((4, 8))),
    }
    made = compare("beside", digits, learners, [1, 2])
    assert [(r.label, r.n, np.shape(r.test), np.shape(r.confusion)) for r in made] == [
        ("MH", 2, (2, 5, 5), (2, 10, 10)),
        ("er", 2, (2, 5, 5), (2, 10, 10)),
    ]
    for record in made:
        assert record.bytes and record.energy["how"].startswith("estimate") and record.peak_memory > 1e7
        assert len(record.code) == 16 and record.runs and record.ends


def test_progress_is_quiet_away_from_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    train(NAIVE.build(STREAM, 1), STREAM, NAIVE.feed(STREAM, 1))
    assert capfd.readouterr() == ("", "")
    train(NAIVE.build(STREAM, 1), STREAM, NAIVE.feed(STREAM, 1), progress=True)
    assert "/30" in capfd.readouterr().err


def test_times_and_memory_of_earlier_processes_count(tmp_path: Path) -> None:
    history = History(5)
    state = history.state_dict()
    state |= {"elapsed": torch.tensor([100.0, 50.0], dtype=torch.float64), "memory": 10**15}
    history.load_state_dict(state)
    seconds, cpu_seconds = history.seconds().tolist()
    assert 100 <= seconds < 160 and 50 <= cpu_seconds < 110 and history.peak() == 10**15


def test_a_single_sample_left_over_joins_the_batch_before() -> None:
    sizes = [len(y) for _, y in Batches(STREAM, 0, 23).batches(0)]
    assert sizes == [24] and [len(y) for _, y in Batches(STREAM, 0, 1).batches(0)] == [1] * 24
    assert [len(y) for _, y in Batches(STREAM, 0, 22).batches(0)] == [22, 2]
