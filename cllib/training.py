"""The one loop: a learner meets a stream, sample by sample, and is tested after every experience."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cllib.learners.heads import LearnerConfig, build
from cllib.learners.heads.vanilla import Vanilla
from cllib.metrics import Array
from cllib.randomness import generator
from cllib.streams import Experience, Stream, orders

Watch = Callable[[int, Vanilla], None]


@dataclass(frozen=True)
class Outcome:
    """What R runs over one stream gave.

    test, validation: accuracy matrices `[R, E, E]`, `[R, E, E_val]`; online: accuracy on each sample before learning
    it, averaged over windows, `[R, W]`, ending at `samples: [W]`; scrambles: keys replaced, `[R]` (0 for other heads);
    norms: size of every parameter after each experience, `[R, E]` (empty unless asked for);
    seconds: wall clock; cpu_seconds: of the process; sizes: floats one run keeps, by part.
    """

    test: Array
    validation: Array
    online: Array
    samples: Array
    scrambles: Array
    norms: dict[str, Array]
    seconds: float
    cpu_seconds: float
    sizes: dict[str, int]


def evaluate(learner: Vanilla, tests: Sequence[Experience], chunk: int = 10_000) -> Tensor:
    """Accuracy of every run on every test set, `[R, J]`; `chunk` samples are scored at once."""
    if not tests:
        return torch.zeros(learner.runs, 0)
    x, y = torch.cat([test.x for test in tests]), torch.cat([test.y for test in tests])
    answers = torch.cat([learner.predict(piece).argmax(-1) for piece in x.split(chunk)], 1)
    right = (answers == y).double()  # [R, T]
    return torch.stack([part.mean(1) for part in right.split([len(test) for test in tests], 1)], 1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: the tensors of an online step are so small that sharing them makes it three times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def learn_experience(learner: Vanilla, x: Tensor, y: Tensor, step: Callable[[], None]) -> Tensor:
    """Show `x: [n, R, 1, d]`, `y: [n, R, 1]` one by one; which were right before learning them: `[n, R]`."""
    answers = []
    for sample, label in zip(x, y, strict=True):
        answers.append(learner.observe(sample, label).argmax(-1))
        step()
    return (torch.stack(answers) == y).squeeze(-1)


def ordered(experience: Experience, order: Tensor, runs: int) -> tuple[Tensor, Tensor]:
    """An experience in each run's order, samples first: x `[n, R, 1, d]`, y `[n, R, 1]`."""
    order = order.to(experience.y.device).expand(runs, -1).T.unsqueeze(-1)  # [n, R, 1]
    return experience.x[order].contiguous(), experience.y[order].contiguous()


@torch.no_grad()
def train(
    learner: Vanilla,
    stream: Stream,
    order: Sequence[Tensor],
    track_every: int = 50,
    eval_chunk: int = 10_000,
    track_norms: bool = False,
    watch: Watch | None = None,
    progress: bool = False,
) -> Outcome:
    """Run a learner over a stream in the given sample order (from `streams.orders`), one sample at a time, no task id.

    watch: called as `watch(samples seen, learner)` before the first and after every sample; progress: show a bar.
    """
    start, cpu = time.perf_counter(), time.process_time()
    tests, validations, right, sizes = [], [], [], []
    bar = tqdm(total=len(stream), desc=stream.name, disable=not progress, leave=False)

    def step() -> None:
        bar.update()
        if watch is not None:
            watch(learner.t, learner)

    if watch is not None:
        watch(0, learner)
    for experience, positions in zip(stream.experiences, order, strict=True):
        learner.begin(experience)
        right.append(learn_experience(learner, *ordered(experience, positions, learner.runs), step))
        learner.finish(experience)
        tests.append(evaluate(learner, stream.tests, eval_chunk))
        validations.append(evaluate(learner, stream.validations, eval_chunk))
        sizes.append(norms(learner) if track_norms else {})
    bar.close()
    online, samples = windows(torch.cat(right).T, track_every)
    return Outcome(
        test=torch.stack(tests, 1).cpu().numpy(),
        validation=torch.stack(validations, 1).cpu().numpy(),
        online=online,
        samples=samples,
        scrambles=scrambles(learner),
        norms={name: np.stack([size[name] for size in sizes], 1) for name in sizes[0]},
        seconds=time.perf_counter() - start,
        cpu_seconds=time.process_time() - cpu,
        sizes=learner.sizes(),
    )


def windows(right: Tensor, every: int) -> tuple[Array, Array]:
    """Mean of `right: [R, T]` over windows of `every` samples (the last may be shorter), and where each window ends."""
    parts = right.double().split(every, 1)
    ends = np.minimum(np.arange(1, len(parts) + 1) * every, right.shape[1]).astype(np.float64)
    return torch.stack([part.mean(1) for part in parts], 1).cpu().numpy(), ends


def norms(learner: Vanilla) -> dict[str, Array]:
    """Euclidean norm of every parameter of each run: `[R]` each."""
    named = learner.head.parameters.items()
    return {name: p.reshape(learner.runs, -1).norm(dim=1).double().cpu().numpy() for name, p in named}


def scrambles(learner: Vanilla) -> Array:
    """Keys replaced so far in each run, all its banks together, `[R]`."""
    bank = getattr(learner.head, "bank", None)
    if bank is None:
        return np.zeros(learner.runs)
    return bank.scrambles.view(learner.runs, -1).sum(1).double().cpu().numpy()


def run(
    stream: Stream,
    configs: Sequence[LearnerConfig],
    seeds: Sequence[int],
    shuffle: bool = False,
    device: str | torch.device = "cpu",
    **options: object,
) -> Outcome:
    """R (configuration, seed) pairs over one stream in one program.

    shuffle: every run draws its own sample order inside experiences from its seed; otherwise all see the published
    order. options: passed on to `train`.
    """
    stream = stream.to(device)
    learner = build(stream, configs, seeds, device)
    order = orders(stream, [generator(seed, "order") for seed in seeds] if shuffle else None)
    return train(learner, stream, order, **options)  # type: ignore[arg-type]


class Snapshots:
    """A `watch` that keeps what run 0 says on a grid of points, and its keys, after given numbers of samples.

    Args:
        grid: points `[G, n]`.
        at: numbers of samples seen.
    """

    def __init__(self, grid: Tensor, at: Sequence[int]) -> None:
        self.grid, self.wanted = grid, set(at)
        self.classes: dict[int, Array] = {}
        self.keys: dict[int, Array] = {}

    def __call__(self, t: int, learner: Vanilla) -> None:
        if t in self.wanted:
            self.classes[t] = learner.predict(self.grid)[0].argmax(-1).cpu().numpy()
            bank = getattr(learner.head, "bank", None)
            if bank is None or learner.head.config.query != "identity":  # type: ignore[attr-defined]
                self.keys[t] = np.zeros((0, 2))  # no keys, or none that are points of the plane
            else:
                own = learner.head.banks  # type: ignore[attr-defined]
                self.keys[t] = bank.keys[:own].flatten(0, 1).cpu().numpy().copy()
