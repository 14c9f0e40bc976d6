"""The loop: what it shows, measures, saves and goes on from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cllib.checkpoints import Keeper
from cllib.contract import StopAt, Stopped, tiny_stream, trained
from cllib.errors import UserError
from cllib.experiments import compare
from cllib.learners import LEARNERS
from cllib.learners.heads import LearnerConfig
from cllib.learners.naive import Naive
from cllib.models.binary import BinaryMLP
from cllib.models.memory_head import MemoryHeadConfig
from cllib.models.networks import CNN, MLP
from cllib.recipes import Recipe
from cllib.streams import Experience, StreamConfig
from cllib.training import EARLY, Exam, History, Outcome, excerpt, probed, train

STREAM = tiny_stream()
NAIVE = Recipe(network=MLP((7,)), batch_size=5, epochs=2)


def run(recipe: Recipe = NAIVE, stream: Any = STREAM, **options: Any) -> Outcome:
    return train(recipe.build(stream, 1), stream, recipe.feed(stream, 1), progress=False, **options)


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


# --- learners that are told which test set it is, and answers where the experience is told after all ---


class Scripted:
    """Says what it is given to say, and notes what it is asked; told or not."""

    def __init__(self, logits: Tensor, told: bool) -> None:
        self.logits, self.told = logits, told
        self.asked: list[tuple[int | None, list[int]]] = []

    def predict(self, x: Tensor, experience: int | None = None) -> Tensor:
        """x: `[n, 1]`, the rows of the script."""
        self.asked.append((experience, x[:, 0].long().tolist()))
        return self.logits[..., x[:, 0].long(), :]


def numbered(sizes: Sequence[int], classes: Sequence[tuple[int, ...]], seed: int = 0) -> list[Experience]:
    """Test sets whose samples are numbered through, with labels of their own classes."""
    draws, parts, first = torch.Generator().manual_seed(seed), [], 0
    for size, own in zip(sizes, classes, strict=True):
        y = torch.tensor(own)[torch.randint(len(own), (size,), generator=draws)]
        parts.append(Experience(torch.arange(first, first + size).float()[:, None], y, own))
        first += size
    return parts


BLOCKS = ((0, 1), (2, 3), (4, 5))
MASK = torch.kron(torch.eye(3), torch.ones(2, 2)).bool()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=3, max_size=3), st.integers(1, 12), st.booleans(), st.integers(0, 2))
def test_every_test_set_is_asked_in_order_and_apart_where_it_is_told(
    sizes: list[int], chunk: int, told: bool, runs: int
) -> None:
    tests, total = numbered(sizes, BLOCKS), sum(sizes)
    logits = torch.randn(*[2] * runs, total, 6, generator=torch.Generator().manual_seed(1))
    learner, exam = Scripted(logits, told), Exam(tests, None, chunk, MASK)
    answers = exam.answers(learner)
    assert [row for _, rows in learner.asked for row in rows] == list(range(total)), "each sample once"
    assert all(len(rows) <= chunk for _, rows in learner.asked)
    if told:
        assert all(set(rows) <= set(tests[j].x[:, 0].long().tolist()) for j, rows in learner.asked)
        assert len(learner.asked) == sum(-(-size // chunk) for size in sizes)
    else:
        assert {j for j, _ in learner.asked} == {None} and len(learner.asked) == -(-total // chunk)
    assert torch.equal(answers.given, logits.argmax(-1)) and answers.finite.shape == logits.shape[:-2]
    y = torch.cat([test.y for test in tests])
    masked = torch.stack(
        [logits[..., 2 * (c // 2) : 2 * (c // 2) + 2][..., k, :] for k, c in enumerate(y.tolist())], -2
    )
    assert torch.equal(answers.masked, masked.argmax(-1) + 2 * (y // 2))


def test_without_masks_there_is_no_second_answer() -> None:
    tests = numbered([3, 2, 4], BLOCKS)
    assert Exam(tests).answers(Scripted(torch.zeros(9, 6), False)).masked is None


@pytest.mark.parametrize("told", [True, False])
def test_one_number_that_is_none_is_noticed_in_any_test_set(told: bool) -> None:
    tests = numbered([3, 2, 4], BLOCKS)
    for row in (0, 4, 8):
        logits = torch.zeros(2, 9, 6)
        logits[1, row, 3] = torch.nan
        assert Exam(tests, None, 4).answers(Scripted(logits, told)).finite.tolist() == [True, False]


def test_masked_accuracies_are_those_of_a_told_test() -> None:
    """The scenario "class" trains and answers over all classes; told after all, only those of the experience count."""
    outcome = run()
    assert outcome.masked.shape == outcome.test.shape
    assert (outcome.masked >= outcome.test).all() and (outcome.masked > outcome.test).any()
    learner = NAIVE.build(STREAM, 1)
    train(learner, STREAM, NAIVE.feed(STREAM, 1), progress=False)
    for j, test in enumerate(STREAM.tests):
        own = learner.predict(test.x)[:, 2 * j : 2 * j + 2]
        assert outcome.masked[0, -1, j] == float((own.argmax(1) + 2 * j == test.y).double().mean())


def test_masked_accuracies_are_not_measured_where_they_say_nothing() -> None:
    single = replace(
        STREAM,
        experiences=tuple(replace(e, x=e.x[e.y == e.y[0]], y=e.y[e.y == e.y[0]]) for e in STREAM.experiences),
        tests=tuple(replace(t, classes=t.classes[:1]) for t in STREAM.tests),
    )
    for stream in (tiny_stream("task"), tiny_stream("domain"), single):
        assert run(stream=stream).masked.shape == (1, 3, 0)
    assert run(stream=replace(STREAM, tests=())).masked.shape == (1, 3, 0)


def test_masks_are_of_classes_that_come_together_and_apart_from_others() -> None:
    mask = STREAM.masks()
    assert torch.equal(mask, MASK) and mask.device == STREAM.experiences[0].y.device
    assert torch.equal(mask, tiny_stream("task").rivals()) and STREAM.rivals() is None
    assert tiny_stream("task").masks() is None and tiny_stream("domain").masks() is None

    def with_classes(*groups: tuple[int, ...]) -> Any:
        return replace(STREAM, tests=tuple(replace(t, classes=g) for t, g in zip(STREAM.tests, groups, strict=True)))

    assert with_classes((0, 1), (1, 2), (4, 5)).masks() is None, "a class in two groups"
    assert with_classes((0,), (2,), (4,)).masks() is None, "one class each: nothing is left to choose"
    assert with_classes((0, 1), (0, 1), (0, 1)).masks() is None, "the same classes each time"
    assert with_classes((0, 1), (0, 1), (4, 5)).masks() is not None, "two domains of one group"
    uneven = with_classes((0,), (1, 2, 3), (4, 5)).masks()
    assert [row.nonzero().flatten().tolist() for row in uneven] == [
        [0],
        [1, 2, 3],
        [1, 2, 3],
        [1, 2, 3],
        [4, 5],
        [4, 5],
    ]


TRANSDUCTIVE = replace(NAIVE, network=BinaryMLP(hidden=(9,)), optimizer="metaplastic", step_size=0.02)


@pytest.mark.parametrize("own_norms", [True, False])
def test_what_is_tested_beside_a_test_set_does_not_matter(own_norms: bool) -> None:
    """Not even where norms use the statistics of the test batch: test sets are asked apart."""
    recipe = replace(TRANSDUCTIVE, own_norms=own_norms)
    learner = recipe.build(STREAM, 1)
    assert learner.told
    train(learner, STREAM, recipe.feed(STREAM, 1), progress=False)
    together = Exam(STREAM.tests).answers(learner).given.split([len(test) for test in STREAM.tests])
    others = [replace(test, x=1 - test.x) for test in STREAM.tests]
    for j, test in enumerate(STREAM.tests):
        among = [*others[:j], test, *others[j + 1 :]]
        found = Exam(among).answers(learner).given.split([len(t) for t in among])[j]
        assert torch.equal(found, together[j])
    mixed = learner.predict(torch.cat([test.x for test in STREAM.tests])).argmax(1)
    assert not torch.equal(mixed, torch.cat(together)), "asked in one batch they would have been other answers"


def test_a_network_of_one_batch_has_one_accuracy_whatever_is_asked_when() -> None:
    """A test set's column does not change with the other columns of the matrix."""
    whole = run(TRANSDUCTIVE)
    for j in range(3):
        alone = run(TRANSDUCTIVE, replace(STREAM, tests=STREAM.tests[j : j + 1]))
        assert np.array_equal(alone.test[:, :, 0], whole.test[:, :, j])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 120))
def test_excerpts_are_the_same_share_of_each_test_set(sizes: list[int], size: int) -> None:
    tests = numbered(sizes, [(0, 1)] * len(sizes))
    parts = excerpt(tests, size)
    each = max(1, size // len(sizes))
    for test, part in zip(tests, parts, strict=True):
        rows = part.x[:, 0]
        assert len(part) == min(each, len(test)) and part.classes == test.classes
        assert torch.equal(part.y, test.y[(rows - test.x[0, 0]).long()])
        gaps = rows.diff()
        assert (gaps > 0).all() and (len(gaps) == 0 or float(gaps.max() - gaps.min()) <= 1), "evenly spread"
    assert excerpt([], 5) == []


# --- classes one by one, and one test for all experiences ---


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 40), st.integers(0, 2))
def test_accuracies_by_class_are_those_of_the_confusion_matrix(seed: int, size: int, runs: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    y = torch.randint(5, (size,), generator=draws)
    exam = Exam([Experience(torch.zeros(size, 1), y, tuple(range(6)))])
    answers = torch.randint(6, (*[2] * runs, size), generator=draws)
    found = exam.by_class(answers, 6)
    assert found.shape == (*[2] * runs, 6) and (found[..., 5] == 0).all()
    confusion = exam.confusion(answers, 6).double()
    wanted = confusion.diagonal(dim1=1, dim2=2) / confusion.sum(-1).clamp(min=1)
    torch.testing.assert_close(found.reshape(-1, 6), wanted)
    share = torch.bincount(y, minlength=6) / size
    torch.testing.assert_close((found * share).sum(-1), exam.accuracies(answers)[..., 0])


@pytest.mark.parametrize("own", ["naive", "latent"])
def test_classes_are_tracked_on_request(own: str) -> None:
    recipe = replace(NAIVE, learner=own, settings=None)
    if own == "latent":
        recipe = replace(recipe, settings=replace(recipe.settings, buffer_size=10))
    told: list[Any] = []
    outcome = run(recipe, track_classes=True, log=lambda step, scalars: told.append((step, scalars)))
    assert outcome.by_class.shape == (1, 3, 6)
    confusion = outcome.confusion[0]
    assert np.allclose(outcome.by_class[0, -1], np.diag(confusion) / confusion.sum(1))
    assert np.allclose(outcome.by_class.mean(-1), outcome.test.mean(-1)), "as many tests of each class"
    assert outcome.held.shape == (1, 3, 6 if own == "latent" else 0)
    assert own == "naive" or (outcome.held.sum(-1) == 10).all()
    for e, (step, scalars) in enumerate(told):
        assert step == outcome.ends[e] and "test loss" in scalars
        assert [scalars[f"by_class/{c}"] for c in range(6)] == pytest.approx(outcome.by_class[0, e].tolist())
        assert ("held/0" in scalars) == (own == "latent")
        if own == "latent":
            assert [scalars[f"held/{c}"] for c in range(6)] == outcome.held[0, e].tolist()
    plain = run(recipe)
    assert plain.by_class.shape == plain.held.shape == (1, 3, 0) and np.array_equal(plain.test, outcome.test)


def test_the_loss_of_a_test_is_the_mean_over_its_samples() -> None:
    """Over several test sets of unequal size, asked in chunks; computed only where somebody is told."""
    tests = numbered([3, 8, 2], BLOCKS)
    logits = torch.randn(13, 6, generator=torch.Generator().manual_seed(1))
    y = torch.cat([test.y for test in tests])
    for told in (True, False):
        answers = Exam(tests, None, 4).answers(Scripted(logits, told), loss=True)
        torch.testing.assert_close(answers.loss, torch.nn.functional.cross_entropy(logits, y))
    assert float(Exam(tests).answers(Scripted(logits, False)).loss) == 0
    two = Exam(tests).answers(Scripted(torch.stack([logits, 2 * logits]), False), loss=True).loss
    assert two.shape == (2,) and float(two[1]) == pytest.approx(float(torch.nn.functional.cross_entropy(2 * logits, y)))


def one_test(*groups: tuple[int, ...]) -> Any:
    """The tiny stream's samples in experiences with these classes, and one test of everything."""
    x, y = (torch.cat([getattr(part, name) for part in STREAM.experiences]) for name in ("x", "y"))
    rows = [torch.isin(y, torch.tensor(group)) for group in groups]
    trains = tuple(Experience(x[r], y[r], group) for r, group in zip(rows, groups, strict=True))
    tests = [torch.cat([getattr(part, name) for part in STREAM.tests]) for name in ("x", "y")]
    return replace(STREAM, experiences=trains, tests=(Experience(*tests, tuple(range(6))),), validations=())


@pytest.mark.parametrize(
    ("groups", "came"),
    [
        (((0, 1), (2,), (1, 3)), [[0, 1], [0, 1, 2], [0, 1, 2, 3]]),
        (((4,), (4,), (0, 5)), [[4], [4], [0, 4, 5]]),
        (((0, 1, 2, 3, 4), (5,)), [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]),
        (((0, 1, 2, 3, 4, 5), (5,)), None),
        (((0, 1),), None),
    ],
)
def test_with_one_test_the_classes_so_far_compete(groups: Any, came: list[list[int]] | None) -> None:
    stream = one_test(*groups)
    for e in range(len(groups)):
        mask = stream.masks(e)
        if came is None:
            assert mask is None and stream.masks() is None
            continue
        assert mask.shape == (6, 6) and mask.dtype == torch.bool and (mask == mask[0]).all()
        assert mask[0].nonzero().flatten().tolist() == came[e]
    if came is not None:
        assert torch.equal(stream.masks(), stream.masks(len(groups) - 1))
        assert stream.to("meta").masks(0).device.type == "meta"
    for scenario in ("task", "domain"):
        assert replace(stream, scenario=scenario).masks(0) is None


@pytest.mark.parametrize("learner", ["naive", "cwr*", "any"])
def test_masked_accuracies_of_one_test_are_among_the_classes_so_far(learner: str) -> None:
    """Each row with the classes that had come by then, not those that were to come."""
    stream = one_test((0, 1), (2, 3), (4,))
    recipe, wanted = replace(NAIVE, learner="naive" if learner == "any" else learner, settings=None), []
    made = recipe.build(stream, 1)
    if learner == "any":  # one that answers with classes it has not met
        logits = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
        made.predict = lambda x, experience=None: logits[: len(x)]

    def log(step: int, scalars: Any) -> None:
        known = made.predict(stream.tests[0].x)[:, : (2, 4, 5)[len(wanted)]]
        wanted.append(float((known.argmax(1) == stream.tests[0].y).double().mean()))

    outcome = train(made, stream, recipe.feed(stream, 1), log=log, progress=False)
    assert outcome.masked.shape == (1, 3, 1) and outcome.masked[0, :, 0].tolist() == pytest.approx(wanted)
    assert outcome.masked[0, 0, 0] <= 2 / 6 + 1e-9 and (learner != "any" or wanted[0] != wanted[-1])


# --- moments at the end of an experience ---


class Fixed:
    """Answers everything with one class."""

    def __init__(self, c: int) -> None:
        self.c = c

    def predict(self, x: torch.Tensor, experience: int | None = None) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full((len(x),), self.c), 6).float()


class Telling(Naive):
    """Plain training that has itself tested, then shrinks its weights, and has somebody else tested."""

    finished = 0

    def finish(self, experience: Experience) -> None:
        self.moment("before")
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(0.5)
        self.moment("another", Fixed(self.finished))
        self.finished += 1

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "finished": self.finished}

    def load_state_dict(self, state: Any) -> None:
        self.finished = state["finished"]
        super().load_state_dict(state)


@pytest.fixture
def telling(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setitem(LEARNERS, "telling", Telling)
    return replace(NAIVE, learner="telling", settings=None)


def test_a_learner_is_tested_at_moments_it_names(telling: Recipe) -> None:
    seen: list[float] = []
    learner = telling.build(STREAM, 1)
    right = 0.0

    def watch(step: int, one: Any) -> None:  # what it would answer at the end of an experience, before `finish`
        nonlocal right
        x, y = (torch.cat([getattr(t, name) for t in STREAM.tests]) for name in ("x", "y"))
        right = float((one.predict(x).argmax(1) == y).double().mean())
        if step and step % 10 == 0:
            seen.append(right)

    outcome = train(learner, STREAM, telling.feed(STREAM, 1), progress=False, watch=watch)
    assert list(outcome.moments) == ["before", "another"]
    before, another = outcome.moments["before"], outcome.moments["another"]
    assert before.shape == another.shape == outcome.test.shape == (1, 3, 3)
    assert before[0].mean(-1).tolist() == pytest.approx(seen)
    # Of the two classes of a test set one is answered right: class e, in test set e // 2.
    assert another[0].tolist() == [[0.5, 0, 0], [0.5, 0, 0], [0, 0.5, 0]]
    assert not np.array_equal(before, outcome.test) and run().moments == {}


@pytest.mark.parametrize(("every", "rows"), [(1, [0, 1, 2]), (2, [1, 2]), (3, [2])])
def test_moments_are_tested_where_borders_are(telling: Recipe, every: int, rows: list[int]) -> None:
    whole, some = run(telling), run(telling, exam_every=every)
    assert np.array_equal(some.test, whole.test[:, rows])
    for name, matrix in whole.moments.items():
        assert np.array_equal(some.moments[name], matrix[:, rows])


def test_moments_without_tests_are_none(telling: Recipe) -> None:
    outcome = run(telling, replace(STREAM, tests=()))
    assert outcome.moments == {} and outcome.test.shape == (1, 3, 0)


def test_moments_are_asked_as_tests_are(telling: Recipe) -> None:
    told, free = run(telling, tiny_stream("task")), run(telling)
    assert (told.moments["another"] == [[[0.5, 0.5, 0.5]] * 3]).all(), "told the task, the best of its own classes"
    assert not np.array_equal(told.moments["before"], free.moments["before"])


def test_moments_survive_a_stop(telling: Recipe, tmp_path: Path) -> None:
    wanted = run(telling)
    for cut in (4, 11, 13, 22):  # among steps, at borders
        path = tmp_path / f"{cut}.pt"
        with pytest.raises(Stopped):
            run(telling, keeper=StopAt(path, cut))
        resumed = run(telling, keeper=Keeper(path, "contract"))
        assert resumed.moments.keys() == wanted.moments.keys()
        for name, matrix in wanted.moments.items():
            assert np.array_equal(resumed.moments[name], matrix), (cut, name)


def test_a_history_keeps_its_moments() -> None:
    history, other = History(5), History(5)
    history.moments["before"] = [torch.tensor([0.5, 1.0])]
    other.load_state_dict(history.state_dict())
    assert list(other.moments) == ["before"] and other.moments["before"][0].tolist() == [0.5, 1.0]


def test_learners_that_know_no_moments_have_none() -> None:
    learner, outcome = trained(LearnerConfig(MemoryHeadConfig(units=6, use_threshold=5, age_threshold=5)))
    assert not hasattr(learner, "moment") and outcome.moments == {} and outcome.test.shape == (1, 3, 3)


def test_a_learner_alone_names_moments_to_nobody(telling: Recipe) -> None:
    learner = telling.build(STREAM, 1)
    learner.finish(STREAM.experiences[0])
    assert learner.finished == 1


def test_a_stream_of_which_every_answer_is_right_is_not_trained_on() -> None:
    parts = tuple(replace(test, classes=test.classes[:1], y=test.y * 0 + test.classes[0]) for test in STREAM.tests)
    alone = replace(STREAM, tests=parts, experiences=parts, scenario="task")
    with pytest.raises(UserError, match="stream 'tiny': one class an experience leaves nothing to ask"):
        run(NAIVE, alone)


def test_a_stream_of_one_class_is_refused() -> None:
    stream = StreamConfig(experiences=10, scenario="domain").build()
    with pytest.raises(UserError, match="has one class, which leaves nothing to ask"):
        compare("e", stream, {"naive": Recipe()}, [1])
