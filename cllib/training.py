"""The one loop: a learner meets a stream batch by batch, is tested as it goes, and can be killed at any moment.

A learner is anything that keeps the contract (`cllib.contract`): those for networks in `learners`, one run each, and
those of chapter 1 in `learners.heads`, R runs at once. Tensors of the latter have a leading run axis.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cllib.checkpoints import Keeper
from cllib.errors import UserError, whole
from cllib.feeds import Feed
from cllib.metrics import examined
from cllib.randomness import global_state, seeded, set_global_state
from cllib.streams.base import Experience, Stream, handed
from cllib.threads import one_thread


class Learner(Protocol):
    """What the loop asks of a learner; `cllib.contract` says what each part promises.

    One with `told = True` is asked `predict(x, j)`, the samples of test set j alone.
    """

    @property
    def seed(self) -> int: ...
    def begin(self, experience: Experience) -> None: ...
    def observe(self, x: Tensor, y: Tensor) -> Tensor: ...
    def finish(self, experience: Experience) -> None: ...
    def predict(self, x: Tensor) -> Tensor: ...
    def sizes(self) -> dict[str, int]: ...
    def bytes(self) -> dict[str, int]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any) -> None: ...


Array = NDArray[np.float64]
Watch = Callable[[int, Any], None]
Log = Callable[[int, Mapping[str, float]], None]


# --- testing ---


@dataclass(frozen=True)
class Answers:
    """The class given to every sample of an exam, `[..., T]`.

    masked: the same where only the classes compete that could (`Stream.masks`; None if not asked); finite: whether all
    logits were numbers, `[...]`; loss: mean cross-entropy over all classes, `[...]` (0 if not asked).
    """

    given: Tensor
    masked: Tensor | None
    finite: Tensor
    loss: Tensor


class Exam:
    """Test sets, put side by side once and taken often.

    Args:
        tests: J of them; rivals: `Stream.rivals()`, which restrict an answer to the classes of its experience.
        chunk: samples predicted at once; masks: like rivals, for a second answer to the same question.
    """

    def __init__(
        self,
        tests: Sequence[Experience],
        rivals: Tensor | None = None,
        chunk: int = 10_000,
        masks: Tensor | None = None,
    ) -> None:
        self.sizes, self.chunk = [len(test) for test in tests], chunk
        self.x = torch.cat([test.x for test in tests]) if tests else torch.empty(0)
        self.y = torch.cat([test.y for test in tests]) if tests else torch.empty(0, dtype=torch.long)
        self.rivals, self.masks = rivals, masks

    def answers(self, learner: Learner, loss: bool = False) -> Answers:
        """What a learner answers to every sample. loss: also how sure it was."""
        given, masked, finite, total = [], [], [], torch.zeros(())
        for logits, y in self.sheets(learner):
            finite.append(logits.isfinite().flatten(-2).all(-1))
            total = total - logits.log_softmax(-1)[..., range(len(y)), y].sum(-1).cpu() if loss else total
            given.append(best(logits, y, self.rivals))
            masked += [] if self.masks is None else [best(logits, y, self.masks)]
        second = torch.cat(masked, -1) if masked else None
        return Answers(torch.cat(given, -1), second, torch.stack(finite).all(0), total / len(self.y))

    def sheets(self, learner: Learner) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits `[..., n, C]` and labels `[n]`, in order; a learner that is told shows its test sets apart."""
        told = getattr(learner, "told", False)
        first = 0
        for j, size in enumerate(self.sizes if told else [len(self.y)]):
            for start in range(first, first + size, self.chunk):
                rows = slice(start, min(start + self.chunk, first + size))
                x = handed(self.x[rows])
                yield learner.predict(x, j) if told else learner.predict(x), self.y[rows]  # type: ignore[call-arg]
            first += size

    def accuracies(self, answers: Tensor) -> Tensor:
        """Share of right answers in every test set, `[..., J]`."""
        right = (answers == self.y).double()  # [..., T]
        return torch.stack([part.mean(-1) for part in right.split(self.sizes, -1)], -1)

    def by_class(self, answers: Tensor, classes: int) -> Tensor:
        """Share of right answers of every class, `[..., C]`; 0 for one that is not asked about."""
        right = (answers == self.y).double()  # [..., T]
        count = torch.bincount(self.y, minlength=classes).clamp(min=1)
        return right.new_zeros(*right.shape[:-1], classes).index_add_(-1, self.y, right) / count

    def confusion(self, answers: Tensor, classes: int) -> Tensor:
        """How often a sample of class i (row) was given class j, all test sets together: `[R, C, C]`."""
        pairs = (self.y * classes + answers).reshape(-1, len(self.y))  # [R, T]
        counts = [torch.bincount(row, minlength=classes**2) for row in pairs]
        return torch.stack(counts).view(-1, classes, classes)


def best(logits: Tensor, y: Tensor, rivals: Tensor | None) -> Tensor:
    """The class with the largest logit, of those that compete with the label: logits `[..., n, C]` to `[..., n]`."""
    return (logits if rivals is None else logits.masked_fill(~rivals[y], -torch.inf)).argmax(-1)


def excerpt(tests: Sequence[Experience], size: int) -> list[Experience]:
    """About `size` test samples in all, evenly spread in each test set, and the same of each."""
    each = max(1, size // max(1, len(tests)))
    rows = [torch.linspace(0, len(t) - 1, min(each, len(t))).long().to(t.y.device) for t in tests]
    return [Experience(t.x[r], t.y[r], t.classes, t.domain) for t, r in zip(tests, rows, strict=True)]


# --- what a run leaves behind ---


@dataclass(frozen=True)
class Outcome:
    """What R runs over one stream gave.

    test, validation: accuracy matrices `[R, E, J]`, `[R, E, J_val]`; masked: as test, where fewer classes compete
    (`Stream.masks`; J = 0 where that says nothing); confusion: at the end, `[R, C, C]`, rows true;
    online: accuracy on each sample before learning it, averaged over windows, `[R, W]`, ending at `samples: [W]`;
    curve: accuracy on excerpts of the test sets, `[R, K, J]`, after `steps: [K]`; excerpts: how many images these are,
    `[J]`; ends: steps done at the end of each experience, `[E]`; scrambles: keys replaced, `[R]` (0 for other heads);
    diverged: whether the last answers were no finite numbers, `[R]`; norms: size of every parameter after each
    experience, `[R, E]` (empty unless asked for); by_class: accuracy on each class, and held: stored samples of each,
    after every experience, `[R, E, C]` (C = 0 unless asked for); seconds: wall clock; cpu_seconds: of the process;
    peak_memory: bytes; sizes, bytes: numbers and bytes one run keeps, by part.
    """

    test: Array
    validation: Array
    masked: Array
    moments: dict[str, Array]
    confusion: Array
    online: Array
    samples: Array
    curve: Array
    steps: Array
    excerpts: Array
    ends: Array
    scrambles: Array
    diverged: Array
    norms: dict[str, Array]
    by_class: Array
    held: Array
    seconds: float
    cpu_seconds: float
    peak_memory: int
    sizes: dict[str, int]
    bytes: dict[str, int]


class History:
    """What the loop has measured so far; all of it goes into the checkpoints.

    Args:
        every: samples a window of the online accuracy.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        kinds = ("test", "validation", "masked", "curve", "by_class", "held")
        self.rows: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
        self.moments: dict[str, list[Tensor]] = {}
        self.steps: list[int] = []
        self.norms: list[dict[str, Tensor]] = []
        self.confusion, self.finite = torch.empty(0), torch.tensor(True)
        self.right = torch.empty(0)  # per window, [..., W]
        self.seen = 0
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.memory = 0  # peak bytes of earlier processes
        self.elapsed = torch.zeros(2, dtype=torch.float64)  # wall clock and CPU seconds of earlier processes
        self.begin = self._now()

    @staticmethod
    def _now() -> Tensor:
        return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)

    def seconds(self) -> Tensor:
        """Wall clock and CPU seconds so far, `[2]`, over all processes that had a hand in it."""
        return self.elapsed + self._now() - self.begin

    def peak(self) -> int:
        """Most bytes that any of the processes has held so far."""
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return max(self.memory, resident, torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0)

    def note(self, logits: Tensor, y: Tensor) -> None:
        """The answers of a step: logits `[..., B, C]`, y `[..., B]`. No synchronisation with a GPU."""
        self.pending.append((logits.argmax(-1), y))

    def fold(self) -> None:
        """Count pending answers into their windows."""
        if not self.pending:
            return
        right = torch.cat([answers == y for answers, y in self.pending], -1).cpu()  # [..., n]
        window = (self.seen + torch.arange(right.shape[-1])) // self.every
        more = torch.zeros(*right.shape[:-1], int(window[-1]) + 1, dtype=torch.float64)
        more.index_add_(-1, window, right.double())
        more[..., : self.right.shape[-1]] += self.right
        self.right, self.pending = more, []
        self.seen += right.shape[-1]

    def online(self) -> tuple[Array, Array]:
        """Accuracy before learning, per window `[R, W]`, and the number of samples at which each window ends, `[W]`."""
        self.fold()
        ends = np.minimum(np.arange(1, self.right.shape[-1] + 1) * self.every, self.seen).astype(np.float64)
        counts = np.diff(ends, prepend=0)
        return self.right.reshape(-1, len(ends)).numpy() / counts, ends

    def stacked(self, name: str, runs: int, experiences: int = 0) -> Array:
        """Rows of one kind, `[R, rows, J]`; J = 0 where nothing of the kind was measured."""
        return matrix(self.rows[name]) if self.rows[name] else np.zeros((runs, experiences, 0))

    def state_dict(self) -> dict[str, Any]:
        self.fold()
        names = ("rows", "moments", "steps", "norms", "confusion", "finite", "right", "seen")
        return {**{name: getattr(self, name) for name in names}, "elapsed": self.seconds(), "memory": self.peak()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def matrix(rows: Sequence[Tensor]) -> Array:
    """Rows `[..., J]` of every run as matrices, `[R, rows, J]`."""
    stacked = torch.stack(tuple(rows), -2)  # [..., rows, J]
    return stacked.reshape(-1, *stacked.shape[-2:]).cpu().numpy()


# --- the loop ---


def train(
    learner: Learner,
    stream: Stream,
    feed: Feed,
    track_every: int = 50,
    probe_every: int = 0,
    probe_size: int = 400,
    eval_chunk: int = 10_000,
    track_norms: bool = False,
    track_classes: bool = False,
    exam_every: int = 1,
    watch: Watch | None = None,
    log: Log | None = None,
    progress: bool | None = None,
    keeper: Keeper | None = None,
) -> Outcome:
    """Run a learner over a stream as `feed` shows it; go on from the keeper's checkpoint where there is one.

    track_every: samples a point of the online accuracy; probe_every: steps from one point of the test curve to the
    next (0: none; see `probed`), on about `probe_size` test samples; track_norms: after every experience also the size
    of every parameter; track_classes: also the accuracy on every class and how many samples of it are stored;
    exam_every: experiences from one test to the next (the last is always tested), so that the accuracy matrix has as
    many rows; watch: called as `watch(steps, learner)` before the first and after every step; log: called as
    `log(steps, scalars)` at every point of the curve and every border; progress: show a bar, None: on a terminal only.
    Raises UserError for a checkpoint that cannot be used, or a stream of which every answer would be right.
    """
    whole("track_every", track_every, 1)
    whole("probe_every", probe_every, 0)
    whole("probe_size", probe_size, 1)
    whole("eval_chunk", eval_chunk, 1)
    whole("exam_every", exam_every, 1)
    stream.ask_something()
    if stream.classes == 1:
        raise UserError(f"stream {stream.name!r}: has one class, which leaves nothing to ask; every answer is right")
    loop = Loop(learner, stream, feed, History(track_every), keeper, watch, log)
    loop.set_exams(eval_chunk, probe_every, probe_size)
    loop.track_norms, loop.track_classes, loop.exam_every = track_norms, track_classes, exam_every
    with seeded(learner.seed, "noise"):  # dropout and the like
        loop.restore()
        with tqdm(total=loop.total, initial=loop.done, desc=stream.name, disable=hidden(progress), leave=False) as bar:
            loop.run(bar)
    return loop.outcome()


def hidden(progress: bool | None) -> bool | None:
    """What tqdm is told: None hides the bar where there is no terminal."""
    return None if progress is None else not progress


EARLY = (1, 3, 9, 27)  # steps after a border at which the curve has points: there old knowledge is lost fastest


def probed(step: int, every: int) -> bool:
    """Whether the curve has a point after this step of an experience: at every so many-th, and `EARLY` on."""
    return bool(every) and (step % every == 0 or (step < every and step in EARLY))


class Loop:
    """One pass over a stream, from wherever it stopped: `experience` and `step` say where that is."""

    track_norms = track_classes = False
    exam_every = 1

    def __init__(
        self,
        learner: Learner,
        stream: Stream,
        feed: Feed,
        history: History,
        keeper: Keeper | None,
        watch: Watch | None,
        log: Log | None,
    ) -> None:
        self.learner, self.stream, self.feed, self.history = learner, stream, feed, history
        self.keeper, self.watch, self.log = keeper, watch, log
        self.steps = [feed.steps(e) for e in range(len(stream.experiences))]
        self.experience, self.step = 0, 0

    @property
    def total(self) -> int:
        return sum(self.steps)

    @property
    def done(self) -> int:
        """Steps since the start of the stream."""
        return sum(self.steps[: self.experience]) + self.step

    def set_exams(self, chunk: int, probe_every: int, probe_size: int) -> None:
        """The tests at every border, and the excerpt that the curve is measured on."""
        rivals, masks, self.probe_every = self.stream.rivals(), self.stream.masks(), probe_every
        parts: dict[str, Sequence[Experience]] = {"test": self.stream.tests, "validation": self.stream.validations}
        parts |= {"curve": excerpt(self.stream.tests, probe_size)} if probe_every else {}
        self.exams = {
            name: Exam(tests, rivals, chunk, masks if name == "test" else None)
            for name, tests in parts.items()
            if tests
        }

    def run(self, bar: tqdm) -> None:
        """Every experience that is left."""
        if self.watch is not None and self.done == 0:
            self.watch(0, self.learner)
        while self.experience < len(self.steps):
            present = self.stream.experiences[self.experience]
            if self.step == 0:
                self.learner.begin(present)
            with one_thread() if self.feed.online else nullcontext():
                self.learn(bar)
            self.finish(present)
            self.border()
            self.experience, self.step = self.experience + 1, 0
            self.save_if_due(border=True)

    def learn(self, bar: tqdm) -> None:
        """The steps that are left of the present experience."""
        learner, history, watch = self.learner, self.history, self.watch
        for x, y in self.feed.batches(self.experience, self.step):
            history.note(learner.observe(x, y), y)
            self.step += 1
            bar.update()
            if watch is not None:
                watch(self.done, learner)
            if probed(self.step, self.probe_every):
                self.probe()
            self.save_if_due()

    def probe(self) -> None:
        """A point of the test curve."""
        if "curve" in self.exams:
            exam = self.exams["curve"]
            self.history.rows["curve"].append(exam.accuracies(exam.answers(self.learner).given))
            self.history.steps.append(self.done)
        self.report("curve")

    def finish(self, present: Experience) -> None:
        """The end of an experience; what the learner calls a moment meanwhile is tested too."""
        if hasattr(self.learner, "moment"):
            self.learner.moment = self.moment
        self.learner.finish(present)

    def moment(self, name: str, asked: Any = None) -> None:
        """A row of an accuracy matrix of that name, of the learner or of whoever else can `predict`."""
        if "test" in self.exams and self.due():
            exam = self.exams["test"]
            given = exam.answers(self.learner if asked is None else asked).given
            self.history.moments.setdefault(name, []).append(exam.accuracies(given))

    def due(self) -> bool:
        """Whether this border is tested."""
        return self.experience in examined(len(self.steps), self.exam_every)

    def border(self) -> None:
        """What is measured between experiences: a row of the accuracy matrices, and the like."""
        history = self.history
        if "validation" in self.exams:
            exam = self.exams["validation"]
            history.rows["validation"].append(exam.accuracies(exam.answers(self.learner).given))
        tell = self.examine() if "test" in self.exams and self.due() else {}
        history.norms += [norms(self.learner)] if self.track_norms else []
        history.fold()
        self.report("test", tell)

    def examine(self) -> dict[str, float]:
        """A row of the accuracy matrix; at the last border also the confusion matrix. Returns what a log is told."""
        exam, history, classes = self.exams["test"], self.history, self.stream.classes
        exam.masks = self.stream.masks(self.experience)
        answers = exam.answers(self.learner, self.log is not None)
        made = {"test": exam.accuracies(answers.given)}
        if answers.masked is not None:
            made["masked"] = exam.accuracies(answers.masked)
        if self.track_classes:
            made["by_class"] = exam.by_class(answers.given, classes)
            made |= {"held": self.learner.held(classes).double()} if hasattr(self.learner, "held") else {}
        for name, row in made.items():
            history.rows[name].append(row)
        if self.experience == len(self.steps) - 1:
            history.confusion = exam.confusion(answers.given, classes)
            history.finite = answers.finite.cpu()
        told = {name: made[name].reshape(-1, classes).mean(0) for name in ("by_class", "held") if name in made}
        tell = {f"{name}/{c}": value for name, row in told.items() for c, value in enumerate(row.tolist())}
        return {"test loss": float(answers.loss.mean()), **tell}

    def report(self, rows: str, more: Mapping[str, float] | None = None) -> None:
        """Tell the log what the last point or border gave, and more."""
        if self.log is None:
            return
        scalars = {name: float(loss) for name, loss in getattr(self.learner, "losses", {}).items()} | dict(more or {})
        if self.history.rows[rows]:
            accuracies = self.history.rows[rows][-1].reshape(-1, len(self.exams[rows].sizes)).mean(0)  # [J]
            scalars |= {f"accuracy/{j}": float(value) for j, value in enumerate(accuracies)}
            scalars["accuracy"] = float(accuracies.mean())
        self.log(self.done, scalars)

    def save_if_due(self, border: bool = False) -> None:
        """Write a checkpoint, where a keeper wants one now."""
        keeper, over = self.keeper, self.experience == len(self.steps)
        if keeper is not None and (keeper.due(self.step, border) or (over and keeper.keep)):
            keeper.save(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, and everything measured."""
        position = {"experience": self.experience, "step": self.step}
        learned = {"learner": self.learner.state_dict(), "generators": global_state()}
        return {"position": position, **learned, "history": self.history.state_dict()}

    def restore(self) -> None:
        """Go back to the checkpoint, where there is one."""
        state = None if self.keeper is None else self.keeper.load()
        if state is not None:
            self.experience, self.step = state["position"]["experience"], state["position"]["step"]
            self.learner.load_state_dict(state["learner"])
            self.history.load_state_dict(state["history"])
            set_global_state(state["generators"])

    def outcome(self) -> Outcome:
        """What the finished run gave."""
        history, learner = self.history, self.learner
        online, samples = history.online()
        seconds, cpu_seconds = history.seconds().tolist()
        runs, experiences = len(online), len(self.steps)
        sizes = [{name: size.numpy() for name, size in row.items()} for row in history.norms]
        return Outcome(
            test=history.stacked("test", runs, experiences),
            validation=history.stacked("validation", runs, experiences),
            masked=history.stacked("masked", runs, experiences),
            moments={name: matrix(rows) for name, rows in history.moments.items()},
            confusion=history.confusion.cpu().numpy(),
            online=online,
            samples=samples,
            curve=history.stacked("curve", runs),
            steps=np.array(history.steps, dtype=np.float64),
            excerpts=np.array(self.exams["curve"].sizes if history.rows["curve"] else [], dtype=np.int64),
            ends=np.cumsum(self.steps),
            scrambles=scrambles(learner),
            diverged=np.broadcast_to(~history.finite.reshape(-1).numpy(), (runs,)),
            by_class=history.stacked("by_class", runs, experiences),
            held=history.stacked("held", runs, experiences),
            norms={name: np.stack([row[name] for row in sizes], 1) for name in (sizes[0] if sizes else ())},
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            peak_memory=history.peak(),
            sizes=learner.sizes(),
            bytes=learner.bytes(),
        )


def norms(learner: Any) -> dict[str, Tensor]:
    """Euclidean norm of every parameter of each run, of those that are no vectors also "mean |...|": `[R]` each."""
    head = getattr(learner, "head", None)
    if head is None:
        named = {name: p.detach() for name, p in learner.network.named_parameters()}
        sizes = {name: p.norm() for name, p in named.items()}
        sizes |= {f"mean |{name}|": p.abs().mean() for name, p in named.items() if p.dim() > 1}
        return {name: size.double().cpu()[None] for name, size in sizes.items()}
    runs = len(head.seeds)
    return {name: p.reshape(runs, -1).norm(dim=1).double().cpu() for name, p in head.parameters.items()}


def scrambles(learner: Any) -> Array:
    """Keys replaced so far in each run, all its banks together, `[R]`; 0 for what has no keys."""
    head = getattr(learner, "head", None)
    runs, bank = 1 if head is None else len(head.seeds), getattr(head, "bank", None)
    return np.zeros(runs) if bank is None else bank.scrambles.view(runs, -1).sum(1).double().cpu().numpy()
