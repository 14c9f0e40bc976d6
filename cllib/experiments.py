"""Several learners on one stream with the same seeds: run together where they can be, kept, never run twice."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch import nn

from cllib import results, runs
from cllib.checkpoints import Keeper, read
from cllib.datasets.files import checksum, is_file
from cllib.errors import UserError, one_of, whole
from cllib.feeds import Batches, Online
from cllib.fingerprint import code_hash, is_foreign
from cllib.learners.heads import LearnerConfig, build
from cllib.learners.heads.vanilla import Vanilla
from cllib.models.memory_head import PER_RUN, MemoryHeadConfig
from cllib.randomness import generator, seeded
from cllib.recipes import Recipe
from cllib.results import Record, records
from cllib.streams.base import Experience, Stream, flattened, orders
from cllib.streams.latent import latents, seen_by
from cllib.threads import one_thread
from cllib.training import Exam, Learner, Outcome, train
from cllib.watching import TensorBoard, each

Config = LearnerConfig | Recipe
# Of what `training.train` can be told, this changes what a record holds.
MATTERING = ("track_every", "probe_every", "probe_size", "eval_chunk", "track_norms", "track_classes", "exam_every")
TOLD = signature(train).parameters
OPTIONS = (
    *(name for name in TOLD if name not in ("learner", "stream", "feed", "keeper")),
    "checkpoint_every",
    "tensorboard",
)


@dataclass(frozen=True)
class Program:
    """What is run in one go: one run of a network, or R (configuration, seed) pairs of chapter 1, configuration-major.

    order: "published", or "own": every run draws its sample order inside experiences from its seed. weights: what
    stands for the initial values of a network of the reader's own (`initial_weights`).
    """

    configs: tuple[Config, ...]
    seeds: tuple[int, ...]
    order: str = "own"
    weights: str = ""

    @property
    def recipe(self) -> Recipe | None:
        """The recipe of a network's run."""
        first = self.configs[0]
        return first if isinstance(first, Recipe) else None

    def describe(self) -> list[dict[str, Any]]:
        """Every configuration as plain values; of what these name on this machine, the content."""
        told = [described(config) for config in self.configs]
        return [each | {"initial weights": self.weights} for each in told] if self.weights else told

    def labels(self) -> list[str]:
        """What the configurations are called where nobody names them."""
        return [c.learner if isinstance(c, Recipe) else f"{type(c.head).__name__} {c.method}" for c in self.configs]

    def name(self, stream: Stream) -> str:
        """A folder name for people."""
        return f"{stream.name}/{', '.join(self.labels()[:3])}, seeds {', '.join(map(str, self.seeds[:3]))}"

    def code(self) -> str:
        """Hash of the code it runs."""
        if self.recipe is not None:
            return code_hash(train, records, *self.recipe.code())
        heads = [config.head for config in self.configs if isinstance(config, LearnerConfig)]
        return code_hash(train, records, start_heads, flattened, *{type(head) for head in heads[:1]})

    def defaults(self) -> dict[str, Any]:
        """What `train` is told where the caller says nothing."""
        if self.recipe is None:
            return {"track_every": 50}
        return {"track_every": 50 * self.recipe.batch_size, "probe_every": 50}

    def shown(self, stream: Stream, data: str, store: Path) -> Stream:
        """The stream as the learner sees it: through the frozen part of its network, where that stands before it.

        data: the stream's hash; small latents are kept in the store.
        """
        network: Any = None if self.recipe is None else self.recipe.network
        front = network.front(stream.shape) if hasattr(network, "front") else None
        if front is None:
            return stream
        front.eval()
        device = stream.experiences[0].x.device
        told = {"data": data, "front": code_hash(front), "code": code_hash(seen_by)}
        told |= {"device": device.type}
        told |= runs.versions()
        return seen_by(front.to(device), stream, told, store / "latents")

    def start(self, stream: Stream, device: str | torch.device) -> tuple[Learner, Batches | Online]:
        """The learner before its first step, and how the stream is shown to it."""
        if self.recipe is not None:
            return self.recipe.build(stream, self.seeds[0], device), self.recipe.feed(stream, self.seeds[0])
        pairs = list(product(self.configs, self.seeds))
        configs, seeds = [config for config, _ in pairs], [seed for _, seed in pairs]
        return start_heads(stream, configs, seeds, self.order == "own", device)  # type: ignore[arg-type]


def start_heads(
    stream: Stream, configs: Sequence[LearnerConfig], seeds: Sequence[int], shuffle: bool, device: str | torch.device
) -> tuple[Vanilla, Online]:
    """R (configuration, seed) pairs of chapter 1 before their first sample, and how the stream is shown to them."""
    learner = build(stream, configs, seeds, device)
    draws = [generator(seed, "order") for seed in seeds] if shuffle else None
    return learner, Online(stream, orders(stream, draws), learner.runs)


def described(config: Config) -> dict[str, Any]:
    """A configuration as plain values, with the checksum of every file that one of them names."""
    if isinstance(config, Recipe):
        told = config.describe()
    else:
        told = {**asdict(config), "head": {"model": type(config.head).__name__, **asdict(config.head)}}
    files = {text: checksum(text, "sha256") for text in texts_in(told) if is_file(text)}
    return told | {"files": files} if files else told


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a tree of plain values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from texts_in(item)


def initial_weights(config: Config, stream: Stream) -> str:
    """What stands for the values that a network of the reader's own starts from; "" for the networks of this package.

    Whatever `build` reads, and wherever it finds it, counts by its content, for it is built and looked at; one that
    takes long to build can have a method `fingerprint()` that says it instead.
    """
    network = config.network if isinstance(config, Recipe) else None
    if network is None or not is_foreign(type(network)) or "fingerprint" in vars(type(network)):
        return ""
    front, shape = network.front(stream.shape) if hasattr(network, "front") else None, stream.shape
    if front is not None:
        shape = tuple(latents(front, stream.experiences[0].x[:1].cpu()).shape[1:])
    with seeded(0, "init"):
        built = nn.ModuleList([network.build(shape, stream.classes), *([] if front is None else [front])])
    return code_hash(built)  # all that its modules hold


def run(
    stream: Stream,
    configs: Sequence[LearnerConfig],
    seeds: Sequence[int],
    shuffle: bool = False,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Outcome:
    """R (configuration, seed) pairs of chapter 1 over one stream in one program, nothing kept.

    shuffle: every run draws its own sample order inside experiences from its seed; otherwise all see the published
    order. options: passed on to `train`.
    """
    stream = flattened(stream.to(device))
    learner, feed = start_heads(stream, configs, seeds, shuffle, device)
    return train(learner, stream, feed, **options)


def programs(
    learners: Mapping[str, Config], seeds: Sequence[int], order: str, stream: Stream
) -> list[tuple[tuple[str, ...], Program]]:
    """Programs that make every learner with every seed, each with the labels of its configurations."""
    found: list[tuple[tuple[str, ...], Program]] = []
    for group in together({name: c for name, c in learners.items() if isinstance(c, LearnerConfig)}):
        found.append((tuple(group), Program(tuple(group.values()), tuple(seeds), order)))
    for label, config in learners.items():
        if isinstance(config, Recipe):
            weights = initial_weights(config, stream)
            found += [((label,), Program((config,), (seed,), weights=weights)) for seed in seeds]
    return found


def parameters_of(program: Program, **options: Any) -> dict[str, Any]:
    """What tells a program from others on the same data, and what of its options changes a record (`MATTERING`)."""
    options = {**program.defaults(), **options}
    setting = {name: options.get(name, TOLD[name].default) for name in MATTERING}
    return {"configs": program.describe(), "seeds": list(program.seeds), "order": program.order, **setting}


def key_of(program: Program, data: str, device: str, threads: int | None = None, **options: Any) -> dict[str, Any]:
    """All that tells the result of a program from others, as plain values: the arguments of `runs.address`.

    data: the stream's hash; threads: that it is run with, those of this process where None.
    """
    return {
        "parameters": parameters_of(program, **options),
        "data": data,
        "code": program.code(),
        "device": torch.device(device).type,
        "threads": threads or torch.get_num_threads(),
    }


def address_of(program: Program, data: str, device: str, threads: int | None = None, **options: Any) -> str:
    """Where the result of a program is kept (`runs.address`); arguments as in `key_of`."""
    return runs.address(**key_of(program, data, device, threads, **options))


def execute(
    program: Program,
    stream: Stream,
    data: str,
    store: Path,
    device: str = "cpu",
    checkpoint_every: int | None = None,
    tensorboard: Path | None = None,
    copied: Callable[[Path], None] | None = None,
    **options: Any,
) -> list[Record]:
    """The records of a program, one a configuration, from the store where they are there; else by running it.

    A run that was stopped goes on from its last checkpoint. stream: on the device; data: its hash; checkpoint_every,
    copied: see `checkpoints.Keeper`; tensorboard: folder for event files; options: of `training.train`. Raises
    UserError for a damaged checkpoint or record.
    """
    key = key_of(program, data, device, **options)
    address = runs.address(**key)
    options = {**program.defaults(), **options}
    setting = {name: key["parameters"][name] for name in MATTERING}
    with runs.claimed(store / address) as folder:
        made = results.kept(folder)
        if made is None:
            runs.describe(folder, {**key, "stream": stream.name})
            keeper = Keeper(folder / "checkpoint.pt", address, checkpoint_every, program.recipe is not None, copied)
            if tensorboard is not None:
                logs = [TensorBoard(Path(tensorboard) / program.name(stream) / address), options.get("log")]
                options["log"] = each([log for log in logs if log is not None])
            shown = program.shown(stream, data, store)
            learner, feed = program.start(shown, device)
            outcome = train(learner, shown, feed, keeper=keeper, **options)
            made = records(
                stream,
                key["parameters"]["configs"],
                program.seeds,
                outcome,
                device,
                program.order,
                data,
                key["code"],
                address,
            )
            pairs = zip(made, program.labels(), strict=True)
            made = [replace(record, label=label, measuring=setting) for record, label in pairs]
            results.keep(made, folder)
            keeper.tidy()
        return made


def compare(
    experiment: str,
    stream: Stream,
    learners: Mapping[str, Config],
    seeds: Sequence[int],
    profile: str = "quick",
    where: Path | None = None,
    order: str = "published",
    device: str = "cpu",
    store: Path | None = None,
    workers: int | None = None,
    **options: Any,
) -> list[Record]:
    """Every learner with every seed over the stream: one record a learner, in the order given.

    Finished runs are taken from the store (`runs.store()` where None), stopped ones go on. where: the records are also
    saved there, named. order: of samples inside experiences, for the learners of chapter 1: "published", or "own" for
    every run; networks always draw theirs. workers: processes that share the work, each on one thread, so that results
    do not depend on their number; None: this one, on all its threads. options: see `execute` and `training.train`.
    """
    seeds = [int(seed) if isinstance(seed, np.integer) else seed for seed in seeds]
    if not learners:
        raise UserError("nothing to run: give at least one learner")
    check(seeds, order, device, options, workers)
    stream = stream.to(device)
    data, made = results.stream_hash(stream), dict[str, list[Record]]()
    asked = programs(learners, seeds, order, stream)
    every = shared(
        [program for _, program in asked], stream, data, Path(store or runs.store()), device, workers, options
    )
    for (labels, _), found in zip(asked, every, strict=True):
        for label, record in zip(labels, found, strict=True):
            named = replace(record, experiment=experiment, label=label, profile=profile)
            # The same arrays may have been run first under another stream's name.
            told = {"note": stream.note, "whole": stream.whole, "names": list(stream.names)}
            named = replace(named, stream=stream.name, **told)  # type: ignore[arg-type]
            made.setdefault(label, []).append(named)
    pooled = [record for label in learners for record in results.pooled(made[label])]
    if where is not None:
        results.save(pooled, where)
    return pooled


def compare_orders(
    experiment: str,
    streams: Mapping[int, Stream],
    learners: Mapping[str, Config],
    where: Path | None = None,
    **options: Any,
) -> list[Record]:
    """`compare` with a stream a seed, such as one with classes in an order drawn from it: still one record a learner.

    Seeds that share a stream run in one go.
    """
    groups: dict[int, list[int]] = {}
    for seed, stream in streams.items():
        groups.setdefault(id(stream), []).append(seed)
    made = [compare(experiment, streams[seeds[0]], learners, seeds, **options) for seeds in groups.values()]
    joined = results.across([record for group in made for record in group])
    if where is not None:
        results.save(joined, where)
    return joined


def shared(
    asked: Sequence[Program],
    stream: Stream,
    data: str,
    store: Path,
    device: str,
    workers: int | None,
    options: Mapping[str, Any],
) -> list[list[Record]]:
    """What `execute` gives for every program, worked on by so many processes (see `compare`)."""

    def job(program: Program) -> tuple[Any, ...]:
        return program, flattened(stream) if program.recipe is None else stream, data, store, device

    if workers is None:
        return [execute(*job(program), **options) for program in asked]
    if workers == 1 or len(asked) == 1:
        return [alone(*job(program), **options) for program in asked]
    found = [results.kept(store / address_of(program, data, device, 1, **options)) for program in asked]
    missing = [program for program, made in zip(asked, found, strict=True) if made is None]
    options = {**options, "progress": False}  # bars of several processes would write over each other
    # What is large is written once, and seen by all processes, instead of being sent with every run.
    pool = joblib.Parallel(n_jobs=workers, max_nbytes="1M", mmap_mode="c")
    sent = packed(stream)
    with warnings.catch_warnings():  # joblib replaces a worker that has grown, and says so
        warnings.filterwarnings("ignore", "A worker stopped while some jobs")
        ran = iter(pool(joblib.delayed(apart)(program, sent, data, store, device, **options) for program in missing))
    return [next(ran) if made is None else made for made in found]


def packed(stream: Stream) -> Stream:
    """The stream with arrays for tensors, where it lies in memory."""
    if not all(isinstance(part, Experience) for part in stream.experiences):
        return stream
    return stream.map(lambda e: replace(e, x=e.x.numpy(), y=e.y.numpy()))  # type: ignore[arg-type]


def apart(program: Program, sent: Stream, *rest: Any, **options: Any) -> list[Record]:
    """`alone` in a process of its own, with a stream that was `packed`."""
    if isinstance(sent.experiences[0].x, np.ndarray):
        sent = sent.map(lambda e: replace(e, x=torch.from_numpy(e.x), y=torch.from_numpy(e.y)))
    return alone(program, flattened(sent) if program.recipe is None else sent, *rest, **options)


def alone(*job: Any, **options: Any) -> list[Record]:
    """`execute` on one thread."""
    with one_thread():
        return execute(*job, **options)


def restored(
    recipe: Recipe, stream: Stream, record: Record, seed: int, store: Path | None = None, device: str = "cpu"
) -> Any:
    """The learner as it was at the end of one run of a record, from where runs are kept.

    Raises UserError if the run is not kept there.
    """
    if seed not in record.seeds:
        raise UserError(f"seed = {seed!r}: {record.label!r} was run with {record.seeds}")
    address = record.runs[record.seeds.index(seed)]
    folder = Path(store or runs.store())
    path = folder / address / "checkpoint.pt"
    if not path.exists():
        raise UserError(f"{path}: no such file; run {record.label!r} again on this machine")
    shown = Program((recipe,), (seed,)).shown(stream.to(device), record.data, folder)
    learner = recipe.build(shown, seed, device)
    state = read(path, address)
    if state["position"]["experience"] != len(stream.experiences):
        raise UserError(f"{path}: from the middle of the run; delete its folder and run {record.label!r} again")
    learner.load_state_dict(state["learner"])
    return learner


def untold(
    recipe: Recipe, stream: Stream, record: Record, store: Path | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Mean accuracy over the test sets at the end, `[n]`, if nobody told the learner which task is tested.

    For records of learners that keep the norms of every task: here the last ones serve all. "given": all classes
    compete; "masked": those of the sample's experience (as "given" where that says nothing).
    """
    stream = stream.to(device)
    exam, found = Exam(stream.tests, stream.rivals(), masks=stream.masks()), []
    for seed in record.seeds:
        answers = exam.answers(restored(recipe, stream, record, seed, store, device).learner)
        pair = answers.given, answers.given if answers.masked is None else answers.masked
        found.append([float(exam.accuracies(a).mean()) for a in pair])
    return dict(zip(("given", "masked"), np.array(found).T, strict=True))


def check(
    seeds: Sequence[int], order: str, device: str, options: Mapping[str, Any], workers: int | None = None
) -> None:
    """Raise UserError for what `compare` cannot be told."""
    if not seeds:
        raise UserError("nothing to run: give at least one seed")
    for seed in seeds:
        whole("seeds", seed, 0)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds = {list(seeds)}: each may be given once")
    one_of("order", order, ("published", "own"))
    for name in options:
        one_of("option", name, OPTIONS)
    if workers is not None:
        whole("workers", workers, 1)
    for name in ("watch", "log"):
        if workers is not None and workers > 1 and options.get(name) is not None:
            raise UserError(f"{name}: not with workers = {workers}; leave one of them out")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"device = {device!r}: must be 'cpu', or 'cuda' where torch can use a GPU")


# --- chapter 1: many configurations in one program ---


def shape(config: LearnerConfig) -> LearnerConfig:
    """The configuration without the numbers in which runs of one program may differ."""
    head = config.head
    if isinstance(head, MemoryHeadConfig):
        zeros: dict[str, Any] = dict.fromkeys(PER_RUN, 0)
        head = replace(head, **zeros)
    return replace(config, head=head, step_size=0.0, weight_decay=0.0)


def together(learners: Mapping[str, LearnerConfig]) -> list[dict[str, LearnerConfig]]:
    """Learners grouped by `shape`, in order of appearance."""
    groups: dict[LearnerConfig, dict[str, LearnerConfig]] = {}
    for label, config in learners.items():
        groups.setdefault(shape(config), {})[label] = config
    return list(groups.values())


def vary(base: LearnerConfig, **changes: Any) -> LearnerConfig:
    """The configuration with other values, whether they belong to the learner or to its head."""
    mine = {name: value for name, value in changes.items() if name in {f.name for f in fields(LearnerConfig)}}
    others = {name: value for name, value in changes.items() if name not in mine}
    return replace(base, head=replace(base.head, **others), **mine)


def grid(label: str, base: LearnerConfig, **axes: Sequence[Any]) -> dict[str, LearnerConfig]:
    """All combinations of values around a configuration, labelled "LABEL @ name=value ..."."""
    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    return {f"{label} @ " + " ".join(f"{k}={v:g}" for k, v in point.items()): vary(base, **point) for point in points}


def choose(
    experiment: str, stream: Stream, points: Mapping[str, LearnerConfig], seeds: Sequence[int], **options: Any
) -> LearnerConfig:
    """The point with the best mean accuracy on the stream's validation sets (ties as in `results.ranked`).

    The test sets are not even looked at.
    """
    made = compare(experiment, replace(stream, tests=()), points, seeds, **options)
    return points[results.ranked(made, "validation")[0].label]
