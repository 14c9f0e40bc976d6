"""What the whole book would take in the paper profile: steps counted, seconds a step measured, GPU time estimated.

No data are loaded: a stand-in stream has the published sizes, and one picture of noise for all of its samples.
"""

import json
import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cllib import chapters, durations
from cllib.datasets.files import write_atomic
from cllib.experiments import Config, Program
from cllib.learners.heads import LearnerConfig
from cllib.recipes import Recipe
from cllib.results import device_name
from cllib.runs import ROOT, versions
from cllib.streams import plane_stream
from cllib.streams.base import Experience, Stream
from cllib.threads import one_thread

MEASURED, PAGE = ROOT / "data" / "cost.json", ROOT / "book" / "cost.md"
STEPS = 2  # that are timed, after one that sets up
RATE, FLOOR = 20e12, 5e-3  # of one card: operations a second, and the least that a step takes, both assumed
ONLINE = 200  # samples that are timed where they come one by one
CARDS = 8


@dataclass(frozen=True)
class Task:
    """Runs of one kind. batch: samples a step is measured with, None: as it is; apart: no two runs in one program."""

    chapter: str
    table: str
    label: str
    config: Config
    stream: Stream
    runs: int
    batch: int | None = None
    apart: bool = False

    @property
    def many(self) -> int:
        """Runs in one program."""
        return self.runs if isinstance(self.config, LearnerConfig) and not self.apart else 1


@dataclass(frozen=True)
class Cost:
    """A task's figures. steps: of one program; seconds: a step of it on one CPU thread; gpu_seconds: None if unknown.

    flops: counted for a step; share: part of the batch that was measured, both figures being scaled by it.
    """

    chapter: str
    table: str
    label: str
    runs: int
    many: int
    steps: int
    seconds: float
    flops: float
    share: float
    gpu_seconds: float | None = None

    @property
    def programs(self) -> int:
        """How many there are."""
        return self.runs // self.many

    @property
    def cpu_hours(self) -> float:
        """Of all runs, on one thread."""
        return self.programs * self.steps * self.seconds / 3600

    @property
    def gpu_hours(self) -> float:
        """Of all runs on one card: measured, or estimated from the operations."""
        return self.programs * self.longest

    @property
    def longest(self) -> float:
        """Hours of one program on one card."""
        step = max(self.flops / RATE, FLOOR) if self.gpu_seconds is None else self.gpu_seconds
        return self.steps * step / 3600


# --- what there is to run ---


def stand_in(
    name: str, sizes: Sequence[int], shape: tuple[int, ...], classes: int, shared: bool = False, scenario: str = "class"
) -> Stream:
    """A stream with experiences of these sizes; shared: all have all classes, else each its own."""
    noise = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    each = classes // len(sizes) if not shared else classes

    def part(k: int, size: int) -> Experience:
        own = range(0 if shared else k * each, each if shared else (k + 1) * each)
        return Experience(noise.expand(size, *shape), torch.arange(size) % each + own[0], tuple(own), k)

    parts = tuple(part(k, size) for k, size in enumerate(sizes))
    tests = tuple(part(k, len(parts[k].classes)) for k in range(len(sizes)))
    return Stream(name, classes, parts, tests, (), scenario=scenario)


def seen(config: Recipe, stream: Stream) -> Stream:
    """The stream as the network sees it: what a frozen part before it makes is of another shape."""
    network: Any = config.network
    front = network.front(stream.shape) if hasattr(network, "front") else None
    if front is None:
        return stream
    with torch.no_grad():
        made = front(stream.experiences[0].x[:1].clone())
    return stream.map(lambda e: replace(e, x=made.expand(len(e), *made.shape[1:])))


def tasks() -> Iterator[Task]:
    """The main tables of every chapter, and some of the others, in the paper profile."""
    yield from heads()
    yield from metaplastic()
    yield from latent()
    yield from brain()
    yield from birt()
    yield from beside()


def heads() -> Iterator[Task]:
    """Chapter 1: the Memory Head on the plane and on CIFAR-100's features, all seeds in one program."""
    name = "01_memory_head"
    p = chapters.settings(name, "paper", device="cpu", image_stream="ns-digits")
    for stream in p.streams:
        yield Task(name, "table", f"MH m=16, {stream}", p.experiment(), plane_stream(stream), p.seeds)
    features = stand_in("ns-cifar100", [420] * 300, (512,), 300)
    features = features.map(lambda e: replace(e, y=e.y % 100, classes=(e.classes[0] % 100,)))
    features = replace(features, classes=100)
    yield Task(name, "images", "MH m=16, ns-cifar100", p.experiment(), features, p.image_seeds)


def metaplastic() -> Iterator[Task]:
    """Chapter 2: the sweep on six permutations of MNIST, and three transformers on Tiny-ImageNet."""
    name = "02_metaplasticity"
    p = chapters.settings(name, "paper", device="cpu")
    stream = stand_in("6 x pMNIST", [60_000] * len(p.tasks), (1, 28, 28), 10, True, "domain")
    for m in p.metas:
        yield Task(name, "sweep", f"m={m:g}", replace(p.base(), meta=(m,)).experiment(), stream, p.seeds)
    images = stand_in("Tiny-ImageNet, 5 groups", [20_000] * 5, (3, 224, 224), 200)
    for net in ("vit", "bvit", "hybrid"):
        told = {"net": net, "task_sequence": p.vit_tasks, "epochs_per_task": p.vit_epochs, "meta_scope": "matrices"}
        runs = len(p.others) * len(p.vit_metas)
        yield Task(name, "transformers", net, p.own(meta=(1.35,), **told).experiment(), images, runs, 4)


def latent() -> Iterator[Task]:
    """Chapter 3: the comparison on CORe50, and the map of cuts."""
    name = "03_latent_replay"
    p = chapters.settings(name, "paper", device="cpu", weights="random")
    stream = stand_in("NICv2-391", [2999, *[300] * 390], (3, 128, 128), 50, True)
    for label, recipe in p.compared(stream).items():
        yield Task(name, "main", label, recipe, stream, p.seeds, 10)
    for depth in p.depths:  # a cut halfway stands for all of this depth
        runs = p.other_seeds * sum(d == depth for d, _ in p.cells())
        yield Task(name, "map", f"D={depth}", p.cuts()[f"D={depth} F={depth // 4 * 2}"], stream, runs, 10)


def brain() -> Iterator[Task]:
    """Chapter 4: the comparison on ten tasks of CIFAR-100."""
    name = "04_brain_inspired_replay"
    p = chapters.settings(name, "paper", device="cpu")
    stream = stand_in("CIFAR-100, 10 tasks", [5000] * 10, (3, 32, 32), 100)
    for label, recipe in p.methods().items():
        yield Task(name, "main", label, recipe, stream, p.seeds)


def birt() -> Iterator[Task]:
    """Chapter 5: the comparison on ten tasks of CIFAR-100, and the smaller tables."""
    name = "05_birt"
    p = chapters.settings(name, "paper", device="cpu")
    stream = stand_in("CIFAR-100, 10 tasks", [5000] * 10, (3, 32, 32), 100)
    for label, recipe in p.methods().items():
        yield Task(name, "main", label, recipe, stream, p.seeds, 8)
    for table, made in (("noise", p.light.noises()), ("released", p.light.released()), ("memory", p.light.memories())):
        yield Task(name, table, f"{len(made)} settings", p.light.birt(), stream, len(made) * p.other_seeds, 8)


def beside() -> Iterator[Task]:
    """Chapter 6: every method on ten tasks of CIFAR-100, one scenario standing for all."""
    name = "06_side_by_side"
    p = chapters.settings(name, "paper", device="cpu")
    runs = p.seeds * len(p.scenarios)
    for sees, shape in (("pixels", (3, 32, 32)), ("features", (1024,))):
        stream = stand_in("CIFAR-100, 10 tasks", [5000] * 10, shape, 100)
        for label, config in p.configs(stream, sees).items():
            if label != "GDumb":  # it learns between experiences
                yield Task(name, "main", label, config, stream, runs, 16, apart=True)


# --- what a step costs ---


def measured(task: Task, device: str) -> tuple[float, float, float]:
    """Seconds and operations of a step, both scaled to the whole batch, and which part of that was measured."""
    if isinstance(task.config, LearnerConfig):
        return (*online(task.config, task.stream, task.many, device), 1.0)
    batch = min(task.batch or task.config.batch_size, task.config.batch_size)
    share = batch / task.config.batch_size
    recipe = replace(task.config, batch_size=batch, epochs=1, **shorter(task.config, share))
    few = [replace(e, x=e.x[: 2 * batch], y=e.y[: 2 * batch]) for e in task.stream.experiences[:2]]
    stream = seen(recipe, replace(task.stream, experiences=tuple(few), tests=task.stream.tests[:2]).to(device))
    with warnings.catch_warnings():  # that the buffer of so short a stream will not be filled
        warnings.simplefilter("ignore")
        learner, feed = recipe.build(stream, 0, device), recipe.feed(stream, 0)
    for e in (0, 1):  # the second experience: there is something to replay, to keep, to be taught by
        learner.begin(stream.experiences[e])
        shown = list(feed.batches(e))[: STEPS + 1]
        if e == 0:
            for x, y in shown:
                learner.observe(x, y)
            learner.finish(stream.experiences[e])
    return (*timed(learner.observe, shown, device), share)


def shorter(recipe: Recipe, share: float) -> dict[str, Any]:
    """What makes an experience a few steps long, its replayed samples cut like the new ones.

    Images are not changed at random, which is not the network's work.
    """
    told = {"later_epochs": 1, "tune_epochs": 1, "augment": "none"}
    changes: dict[str, Any] = {name: value for name, value in told.items() if getattr(recipe.settings, name, None)}
    if replayed := getattr(recipe.settings, "replay_size", None):
        changes["replay_size"] = max(1, round(share * replayed))
    iterations = None if hasattr(recipe.settings, "later_epochs") else STEPS + 1  # a buffer wants whole epochs
    return {"iterations": iterations, "settings": replace(recipe.settings, **changes)}


def online(config: LearnerConfig, stream: Stream, many: int, device: str) -> tuple[float, float]:
    """The same for heads, many runs at once, sample after sample; their operations are too few to count."""
    learner, feed = Program((config,), tuple(range(many)), "published").start(stream.to(device), device)
    learner.begin(stream.experiences[0])
    shown = [(x, y) for (x, y), _ in zip(feed.batches(0), range(ONLINE), strict=False)]
    return timed(learner.observe, shown, device)[0], 0.0


def timed(observe: Any, shown: Sequence[Any], device: str) -> tuple[float, float]:
    """Seconds a step after the first, and the operations of the last one (multiplications and additions)."""
    observe(*shown[0])
    wait(device)
    begin = time.process_time() if device == "cpu" else time.perf_counter()
    for x, y in shown[1:]:
        observe(x, y)
    wait(device)
    spent = (time.process_time() if device == "cpu" else time.perf_counter()) - begin
    with FlopCounterMode(display=False) as counter:
        observe(*shown[-1])
    return spent / (len(shown) - 1), float(counter.get_total_flops())


def wait(device: str) -> None:
    """Until a GPU has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def steps(task: Task) -> int:
    """Steps of one program."""
    return durations.steps(Program((task.config,), (0,)), task.stream)


def measure(path: Path = MEASURED) -> None:
    """Measure every task, on a GPU too where there is one, and write the figures to a file."""
    costs = []
    for task in tasks():
        with one_thread():
            seconds, flops, share = measured(task, "cpu")
        gpu = measured(task, "cuda")[0] / share if torch.cuda.is_available() else None
        named = task.chapter, task.table, task.label, task.runs, task.many
        costs.append(Cost(*named, steps(task), seconds / share, flops / share, share, gpu))
    gpu_name = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    where = {"cpu": f"{device_name('cpu')}, one thread", "processor": processor(), "gpu": gpu_name}
    told = {"date": date.today().isoformat(), **where, "versions": versions(), "costs": [asdict(c) for c in costs]}
    write_atomic(path, (json.dumps(told, indent=1) + "\n").encode())


def processor() -> str:
    """What the processor is called, where the system says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


# --- the page ---


def page(told: Mapping[str, Any]) -> str:
    """The book's page, from what `measure` wrote."""
    costs = [Cost(**cost) for cost in told["costs"]]
    by_chapter: dict[str, list[Cost]] = {}
    for cost in costs:
        by_chapter.setdefault(cost.chapter, []).append(cost)
    rows = [total(name, group) for name, group in by_chapter.items()] + [total("**all rows**", costs)]
    details = [detail(cost) for cost in costs]
    return PROSE.format(
        **{name: told[name] for name in ("date", "processor", "cpu")},
        torch=told["versions"]["torch"],
        gpu=f"measured on {told['gpu']}" if told["gpu"] else ESTIMATED.format(rate=RATE / 1e12, floor=FLOOR * 1000),
        totals="\n".join(rows),
        details="\n".join(details),
        cards=CARDS,
    )


def total(name: str, costs: Sequence[Cost]) -> str:
    """A row of the first table."""
    cpu, gpu, longest = sum(c.cpu_hours for c in costs), sum(c.gpu_hours for c in costs), max(c.longest for c in costs)
    several = max(gpu / CARDS, longest)
    runs = sum(c.runs for c in costs)
    return f"| {name} | {runs} | {cpu:,.0f} | {gpu:,.1f} | {longest:,.1f} | {gpu / 24:.1f} | {several / 24:.1f} |"


def detail(cost: Cost) -> str:
    """A row of the second table."""
    together = f"{cost.runs} in one program" if cost.many > 1 else f"{cost.runs}"
    gpu = max(cost.flops / RATE, FLOOR) if cost.gpu_seconds is None else cost.gpu_seconds
    times = f"{cost.seconds * 1000:,.1f} | {cost.flops / 1e9:,.1f} | {gpu * 1000:,.1f}"
    place = f"{cost.chapter} | {cost.table} | {cost.label}"
    return f"| {place} | {together} | {cost.steps:,} | {times} | {cost.cpu_hours:,.1f} | {cost.gpu_hours:,.1f} |"


ESTIMATED = (
    "**an estimate, not a measurement**: the operations of a step, counted, at an assumed {rate:g} · 10¹² a second on "
    "one card, and never less than an assumed {floor:g} ms a step, for a card waits for Python in small networks"
)
PROSE = """# What the paper profile costs, at least

In the `quick` profile every chapter takes minutes. In the `paper` profile, at the papers' sizes and seeds, it is a
matter of days on a card. This page says how many, for the main tables: what it leaves out is said below, so
the sums are lower bounds. It is written by `cllib cost`, from figures that
`cllib cost --measure` takes.

- **Runs and steps** follow from the settings; data are not needed for that.
- **Seconds a step on a CPU** were measured on {date}, {processor} ({cpu}, processor time, torch {torch}), in the
  second experience of a stream of noise with the published shapes, where there is something to replay. Large
  networks were measured with a part of their batch, and scaled by it.
- **GPU-hours** are {gpu}.

| chapter | runs | CPU-hours, one thread | GPU-hours | of the longest run | days on one card | days on {cards} |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
{totals}

Runs divide over cards, a single run does not: on {cards} cards it takes as long as the longest one at least. Small
runs share a card (`--gpus 0.25`), which these figures do not count on.

**Not counted**: tests, checkpoints, images changed at random, what a method does between experiences (importances,
herding, fine-tuning), features and latents that are computed once, and the tables that have no row below: in chapter 1
the competitors, the grid and the ablations (thousands of runs, in programs of a few minutes), in chapter 2 the
controls, baselines, streams and reruns, in chapter 3 the small tables, in chapter 4 all but the main comparison, in
chapter 5 the students' networks, in chapter 6 GDumb, which learns between experiences, and the choice of settings. In
chapter 3's map a cut halfway stands for all of its depth.

| chapter | table | what | runs | steps of one | ms a step, CPU | 10⁹ operations | ms, GPU | CPU-hours | GPU-hours |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
{details}
"""


def write(measure_first: bool, figures: Path = MEASURED, to: Path = PAGE) -> Path:
    """Write the page, from figures taken before or now, and return its path."""
    if measure_first or not figures.exists():
        measure(figures)
    write_atomic(to, page(json.loads(figures.read_text())).encode())
    return to
