"""Chapter 6, side by side: its parameters, its streams, and every method of the book on them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cllib import runs
from cllib.chapters.common import Chapter, once
from cllib.datasets import cifar, digits, fashion_6k, folder
from cllib.datasets.files import cache_folder
from cllib.datasets.labelled import Labelled, coloured, resized, resplit, subset
from cllib.datasets.labelled import padded as bordered
from cllib.errors import UserError, listed, one_of, whole, within
from cllib.experiments import Config
from cllib.feeds import padded
from cllib.fingerprint import code_hash
from cllib.learners.birt import BiRTSettings
from cllib.learners.der import DERPlusSettings
from cllib.learners.er import ReplaySettings
from cllib.learners.ewc import EWCSettings
from cllib.learners.gdumb import GDumbSettings
from cllib.learners.heads import LearnerConfig
from cllib.learners.latent_replay import LatentReplaySettings
from cllib.learners.lwf import LwFSettings
from cllib.learners.mir import MIRSettings
from cllib.learners.si import SISettings
from cllib.models.binary import BinaryCNN, BinaryMLP
from cllib.models.conv_front import conv_front
from cllib.models.convit import ConViT
from cllib.models.memory_head import MemoryHeadConfig
from cllib.models.networks import CNN, MLP
from cllib.models.replay_vae import ReplayVAE
from cllib.recipes import Recipe
from cllib.results import stream_hash
from cllib.streams.base import Stream
from cllib.streams.latent import seen_by
from cllib.streams.scenarios import SCENARIOS, class_order, sequence, split
from cllib.threads import cores

NAME = "06_side_by_side"
LABEL_BYTES, FLOAT_BYTES = 8, 4  # of one number; a pixel of an image takes one byte


@dataclass(frozen=True)
class Data:
    """Images and the networks they are learned with.

    load: from a folder; convolve: as the frozen convolutions take them; network, binary, vae, transformer: of the
    common methods, of metaplasticity, of brain-inspired replay and of BiRT.
    """

    load: Callable[[Path], Labelled]
    convolve: Callable[[Labelled], Labelled]
    network: Any
    binary: Any
    vae: ReplayVAE
    transformer: ConViT


def squared(data: Labelled) -> Labelled:
    """Images as three channels of 32 x 32 pixels."""
    data = bordered(data, 2) if data.shape[1:] == (28, 28) else resized(data, 32)
    return data if data.shape[0] == 3 else coloured(data)


SMALL = ConViT(patch=7, dim=32, heads=4, layers=3, drop_path=0.0, std=0.1)
CLOTHES = Data(
    lambda where: fashion_6k.load(),
    squared,
    MLP((200, 200)),
    BinaryMLP((200, 200)),
    ReplayVAE(hidden=200, latent=50),
    SMALL,
)
DATA = {
    "clothes": CLOTHES,
    "digits": replace(CLOTHES, load=lambda where: resplit(digits.labelled(), 5), transformer=replace(SMALL, patch=2)),
    "cifar100": Data(
        lambda where: cifar.load("cifar100", where, download=True),
        squared,
        CNN((64, 128, 256, 512)),
        BinaryCNN(),
        ReplayVAE(hidden=2000, latent=100, stem="conv", reconstruction="mse"),
        ConViT(normalize="cifar"),
    ),
    "folder": Data(
        lambda where: folder.load(where, 32),
        squared,
        CNN((32, 64, 128)),
        BinaryCNN((16, 16, 32, 32), hidden=(64,)),
        ReplayVAE(hidden=400, latent=100, stem="conv", reconstruction="mse"),
        replace(SMALL, patch=8),
    ),
}


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    chapter: of this book, 0: a standard baseline; sees: "pixels" or "features"; form: what had to be changed so that
    it can take part, or why it cannot; make: its configuration on a stream.
    """

    chapter: int
    sees: str
    make: Callable[["SideBySideChapter", Stream], Config]
    form: str = ""


@dataclass(frozen=True)
class SideBySideChapter(Chapter):
    """Chapter 6. The same streams and the same bytes of stored samples for all methods; `Method.form` says who takes
    other steps.

    Settings of single methods are this book's, their papers' or the usual ones; none was chosen on these data.
    """

    seeds: int = 4  # runs behind every number, each with a class order of its own

    workers: int | None = None  # processes that share the runs on a CPU; None: one a core
    scenarios: tuple[str, ...] = SCENARIOS  # class | task | domain
    methods: tuple[str, ...] = ()  # which are compared; none named: all
    reference: str = "ER"  # every other method is compared with it, paired by seed
    data: str = "clothes"  # clothes | digits | cifar100 | folder
    data_dir: str | None = None  # where CIFAR-100 is or goes, or the folder of class folders
    train_size: int | None = None  # only the first so many of each class
    tasks: int = 5
    memory: int = 600  # KiB of stored samples, for whoever stores any
    epochs: int = 3  # a task
    batch_size: int = 32  # new samples a step, and as many stored ones
    lr: float = 1e-3  # Adam's
    probe_every: int = 38  # steps from one point of the curves to the next
    tuning_seeds: int = 2  # runs behind every value that is tried on other data
    ewc: float | None = None  # lambda; None, here and below: chosen on other data
    si: float | None = None  # c
    lwf: float | None = None  # lambda_o
    meta: float | None = None  # m of metaplasticity
    head_lr: float | None = None  # rho of the Memory Head
    head_match: float | None = None  # its tau_alpha
    tune_epochs: int = 10  # of BiRT's balanced fine-tuning
    halved: bool = False  # multiply matrices in bfloat16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None:
            whole("workers", self.workers, 1)
        for name, allowed in (("scenarios", SCENARIOS), ("methods", tuple(METHODS))):
            listed(name, getattr(self, name))
            for value in getattr(self, name):
                one_of(name, value, allowed)
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UserError(f"{name} = {getattr(self, name)}: each may be named once")
        if not self.scenarios:
            raise UserError(f"scenarios is empty: name one at least of {', '.join(SCENARIOS)}")
        one_of("reference", self.reference, self.names)
        one_of("data", self.data, tuple(DATA))
        if self.data == "folder" and not (self.data_dir and Path(self.data_dir).is_dir()):
            raise UserError(f"data = 'folder': data_dir = {self.data_dir!r} must be a folder of class folders")
        for name in ("tasks", "memory", "epochs", "batch_size", "probe_every"):
            whole(name, getattr(self, name), 1)
        whole("tune_epochs", self.tune_epochs, 0)
        if self.train_size is not None:
            whole("train_size", self.train_size, 1)
        whole("tuning_seeds", self.tuning_seeds, 1)
        within("lr", self.lr, 1e-12)
        for name in TRIED:
            within(name, self.value(name), 0 if name != "head_lr" else 1e-12)

    @property
    def own_folder(self) -> Path | None:
        return Path(self.data_dir) if self.data == "folder" and self.data_dir else None

    @property
    def names(self) -> tuple[str, ...]:
        """The methods that are compared, in the book's order."""
        return tuple(name for name in METHODS if not self.methods or name in self.methods)

    def references(self) -> dict[str, str]:
        """By what methods see, the one that the others are compared with."""
        own = METHODS[self.reference].sees
        return {own: self.reference, **({"features": "ER on features"} if own == "pixels" else {"pixels": "ER"})}

    @property
    def crew(self) -> int:
        """Processes that share the runs."""
        return 1 if self.on != "cpu" else self.workers or cores()

    # --- settings chosen on other data ---

    def value(self, name: str) -> float:
        """A setting of `TRIED`, where it is None the middle one of what is tried."""
        given, tried = getattr(self, name), TRIED[name]
        return float(tried[len(tried) // 2] if given is None else given)

    @property
    def elsewhere(self) -> "SideBySideChapter":
        """The chapter on the data that settings are chosen on: the digits, or clothes where digits are compared on."""
        other = "digits" if self.data != "digits" else "clothes"
        return replace(self, data=other, data_dir=None, train_size=None, tasks=5, seeds=self.tuning_seeds)

    def tried(self) -> dict[str, dict[str, "SideBySideChapter"]]:
        """By method, all combinations of what is tried for its settings that are None: the chapter with them."""
        made = {}
        for method in self.names:
            own = [name for name in SETTINGS_OF.get(method, ()) if getattr(self, name) is None]
            points: list[dict[str, Any]] = [
                dict(zip(own, values, strict=True)) for values in product(*(TRIED[name] for name in own))
            ]
            if own:
                made[method] = {_named(point): replace(self, **point) for point in points}
        return made

    def with_best(self, tried: pd.DataFrame) -> "SideBySideChapter":
        """The chapter with the values of the best mean accuracy. tried: method, point, accuracy, a row a scenario."""
        means = tried.groupby(["method", "point"], sort=False)["accuracy"].mean()
        points = self.tried()
        best: dict[str, Any] = {}
        for method in dict.fromkeys(tried["method"]):
            winner = points[method][means[method].idxmax()]
            best |= {name: getattr(winner, name) for name in SETTINGS_OF[method]}
        return replace(self, **best)

    # --- the streams ---

    def labelled(self) -> Labelled:
        """The images. Raises UserError for data that cannot be had."""
        data = DATA[self.data].load(Path(self.data_dir) if self.data_dir else cache_folder())
        return subset(data, self.train_size) if self.train_size else data

    def groups(self, data: Labelled) -> list[tuple[int, ...]]:
        """The classes of every task in the order of the first seed."""
        order, each = class_order(data.classes, self.seed), data.classes // self.tasks
        return [order[k : k + each] for k in range(0, data.classes, each)]

    def stream(self, data: Labelled, scenario: str, seed: int) -> Stream:
        """Groups of classes in an order drawn from the seed. Raises UserError if they do not divide, or one class a
        task leaves nothing to ask.
        """
        if scenario != "class" and data.classes == self.tasks:
            raise UserError(f"tasks = {self.tasks}: one class a task leaves nothing to ask in scenario = {scenario!r}")
        parts = split(data, self.tasks, class_order(data.classes, seed))
        name, note = self.data, f"{self.train_size} of each class, " if self.train_size else ""
        if self.data == "folder":
            name, note = data.name, f"{len(data.train_y)} + {len(data.test_y)} images, {note}"
        made = sequence(f"{name}, {self.tasks} tasks, {scenario}", parts, scenario)
        return replace(made, whole=self.train_size is None, note=f"{note}class order {seed}")

    def streams(self, scenario: str, sees: str = "pixels") -> dict[int, Stream]:
        """A stream a seed; of features: what frozen convolutions make of the same images."""
        data = self.labelled()
        if sees == "features":
            data = DATA[self.data].convolve(data)
        made = {seed: self.stream(data, scenario, seed) for seed in self.runs}
        return made if sees == "pixels" else {seed: self.convolved(stream) for seed, stream in made.items()}

    def convolved(self, stream: Stream) -> Stream:
        """The stream as our frozen convolutions of chapter 4 see it, 1024 features a sample."""
        front = conv_front().requires_grad_(False).to(self.on)
        told = {"front": code_hash(front), "data": stream_hash(stream), "code": code_hash(seen_by)}
        return seen_by(front, stream.to(self.on), {**told, **runs.versions()}, runs.store() / "latents")

    # --- the methods ---

    def recipe(self, learner: str = "naive", settings: Any = None, network: Any = None, **changes: Any) -> Recipe:
        """A method with the training that all share."""
        told = {"optimizer": "adam", "step_size": self.lr, "batch_size": self.batch_size, "epochs": self.epochs}
        network = network or DATA[self.data].network
        return Recipe(learner, settings, network, halved=self.halved, **{**told, **changes})

    def held(self, stream: Stream, extra: int = 0, numbers: int | None = None, least: int = 1) -> int:
        """How many samples fit into the memory, each with its label and so many bytes more, and as many as there are.

        An image takes a byte a number, everything else four. numbers: of what is stored of one sample, where that is
        not what the stream holds. Raises UserError if fewer than `least` fit.
        """
        own = sample_bytes(stream) if numbers is None else numbers * FLOAT_BYTES
        return min(self.fitting(own + LABEL_BYTES + extra, least, "a stored sample"), max(least, len(stream)))

    def fitting(self, each: int, least: int, what: str) -> int:
        """How many pieces of so many bytes fit into the memory. Raises UserError if fewer than `least` do."""
        if self.memory * 1024 < each * least:
            wanted = f"{least} of them: give {-(-each * least // 1024)} KiB"
            raise UserError(f"memory = {self.memory}: {what} takes {each} bytes, and there must be {wanted}")
        return self.memory * 1024 // each

    def single(self, seed: int) -> tuple[Stream, Config]:
        """The reference on the first scenario's stream: what a sweep over this chapter's settings runs."""
        method = METHODS[self.reference]
        told = self.data, self.data_dir, self.train_size, self.tasks, self.device, self.scenarios[0], method.sees, seed
        stream = once(_one_stream, *told)
        return stream, method.make(replace(self, seed=seed, seeds=1), stream)

    def configs(self, stream: Stream, sees: str) -> dict[str, Config]:
        """Those of the compared methods that see pixels, or features."""
        return {name: METHODS[name].make(self, stream) for name in self.names if METHODS[name].sees == sees}

    def steps(self, stream: Stream) -> int:
        """Steps of a task, the first one's."""
        return self.recipe().feed(stream, self.seed).steps(0)


def _one_stream(
    data: str,
    data_dir: str | None,
    train_size: int | None,
    tasks: int,
    device: str,
    scenario: str,
    sees: str,
    seed: int,
) -> Stream:
    """The stream of one seed."""
    told: dict[str, Any] = {"data_dir": data_dir, "train_size": train_size, "tasks": tasks, "device": device}
    return SideBySideChapter(data=data, seed=seed, seeds=1, **told).streams(scenario, sees)[seed]


def dtype(stream: Stream) -> str:
    """How stored samples of a stream are kept: images in bytes, where they came so, features as they are."""
    return "pixels" if stream.experiences[0].x.dtype == torch.uint8 else "float32"


def sample_bytes(stream: Stream) -> int:
    """Bytes of one stored sample."""
    return stream.inputs * (1 if dtype(stream) == "pixels" else FLOAT_BYTES)


def _replaying(learner: str, kind: type) -> Callable[[SideBySideChapter, Stream], Config]:
    """Replay of as many samples as are new, from the common memory."""
    return lambda p, stream: p.recipe(learner, kind(p.held(stream), p.batch_size, dtype(stream)))


def _on_features(make: Callable[[SideBySideChapter, Stream], Config]) -> Callable[[SideBySideChapter, Stream], Config]:
    """The same on the fully connected network that stands on the convolutions."""

    def made(p: SideBySideChapter, stream: Stream) -> Config:
        config = make(p, stream)
        assert isinstance(config, Recipe)
        return replace(config, network=MLP((200, 200)))

    return made


def _derpp(p: SideBySideChapter, stream: Stream) -> Config:
    return p.recipe("der++", DERPlusSettings(p.held(stream, stream.classes * FLOAT_BYTES), p.batch_size, dtype(stream)))


def _gdumb(p: SideBySideChapter, stream: Stream) -> Config:
    """As many steps after a task as the others take in it, on the memory alone."""
    size = p.held(stream)
    epochs = max(1, round(p.steps(stream) * p.batch_size / size))
    return p.recipe("gdumb", GDumbSettings(size, epochs, p.batch_size, dtype(stream)))


def _binary(p: SideBySideChapter, stream: Stream, meta: float) -> Config:
    own = stream.scenario == "task"
    rule: dict[str, Any] = {"optimizer": "metaplastic", "meta": (meta,), "step_size": 0.005, "weight_decay": 1e-7}
    return p.recipe(network=DATA[p.data].binary, reset=True, own_norms=own, **rule)


def _metaplastic(p: SideBySideChapter, stream: Stream) -> Config:
    return _binary(p, stream, p.value("meta"))


def _dreaming(p: SideBySideChapter, stream: Stream) -> Config:
    shut = 0.0 if stream.scenario == "domain" else 0.8
    return p.recipe("generative", None, replace(DATA[p.data].vae, gates=shut))


def _birt(p: SideBySideChapter, stream: Stream) -> Config:
    network = DATA[p.data].transformer
    tokens = prod(side // network.patch for side in stream.shape[1:])
    settings = BiRTSettings(
        buffer_size=p.held(stream, numbers=tokens * network.dim, least=stream.classes),
        attention_std=0.1,
        ema_rate=0.01,
        tune_epochs=p.tune_epochs,
    )
    return p.recipe("birt", settings, network, optimizer="adamw", weight_decay=1e-6)


def _latent(p: SideBySideChapter, stream: Stream) -> Config:
    """Its own mini-batches, of new and stored samples, as large as what others learn from in a step if data suffice."""
    fewest = min(len(task) for task in stream.experiences)
    batch = max(2, min(2 * p.batch_size, fewest))
    most = min(padded(len(stream.experiences[0]), batch), fewest * (batch - 1))
    return p.recipe("latent", LatentReplaySettings(min(p.held(stream), most)), batch_size=batch)


def _memory_head(p: SideBySideChapter, stream: Stream) -> Config:
    unit = stream.inputs + (stream.inputs + 1) * stream.classes + 2  # a key, its layer, usage and age
    units = p.fitting(unit * FLOAT_BYTES, 1, "a memory unit")
    head = MemoryHeadConfig(units, distance="cosine", match_threshold=p.value("head_match"))
    return LearnerConfig(head, step_size=p.value("head_lr"))


def _named(point: dict[str, Any]) -> str:
    """A point as "ewc 100"."""
    return ", ".join(f"{name} {value:g}" for name, value in point.items())


# What is tried for a setting that nobody gave, and which methods have it.
TRIED: dict[str, tuple[float, ...]] = {
    "ewc": (1e2, 1e3, 1e4),
    "si": (10.0, 100.0, 1000.0),
    "lwf": (0.3, 1.0, 3.0),
    "meta": (10.0, 30.0, 100.0),
    "head_lr": (1e-4, 1e-3, 1e-2),
    "head_match": (0.9, 0.95, 0.99),
}
SETTINGS_OF = {
    "EWC": ("ewc",),
    "SI": ("si",),
    "LwF": ("lwf",),
    "metaplasticity": ("meta",),
    "Memory Head": ("head_lr", "head_match"),
}
METHODS: dict[str, Method] = {
    "naive": Method(0, "pixels", lambda p, stream: p.recipe()),
    "joint": Method(0, "pixels", lambda p, stream: p.recipe("joint"), "keeps all data"),
    "EWC": Method(0, "pixels", lambda p, stream: p.recipe("ewc", EWCSettings(p.value("ewc"), "sampled", 200))),
    "SI": Method(0, "pixels", lambda p, stream: p.recipe("si", SISettings(p.value("si")))),
    "LwF": Method(0, "pixels", lambda p, stream: p.recipe("lwf", LwFSettings(p.value("lwf")))),
    "ER": Method(0, "pixels", _replaying("er", ReplaySettings)),
    "A-GEM": Method(0, "pixels", _replaying("agem", ReplaySettings)),
    "MIR": Method(0, "pixels", _replaying("mir", MIRSettings)),
    "DER++": Method(0, "pixels", _derpp, "draws from its memory twice a step"),
    "GDumb": Method(0, "pixels", _gdumb, "learns at borders only, on its memory, for about as many steps"),
    "binarized": Method(2, "pixels", lambda p, stream: _binary(p, stream, 0.0), "control of the next row: m = 0"),
    "metaplasticity": Method(
        2,
        "pixels",
        _metaplastic,
        "needs binary weights: a binarized network of the same widths, under its own optimiser",
    ),
    "BI-R": Method(
        4,
        "pixels",
        _dreaming,
        "stores a decoder, no samples: its bytes are network; colour images it sees through the frozen convolutions",
    ),
    "BiRT": Method(
        5,
        "pixels",
        _birt,
        "needs a network that can be cut: a transformer, set as in chapter 5; tunes after every task",
    ),
    "naive on features": Method(0, "features", _on_features(lambda p, stream: p.recipe())),
    "joint on features": Method(0, "features", _on_features(lambda p, stream: p.recipe("joint")), "keeps all data"),
    "ER on features": Method(0, "features", _on_features(_replaying("er", ReplaySettings))),
    "latent replay": Method(
        3,
        "features",
        _on_features(_latent),
        "needs pretrained lower layers: our convolutions; fills mini-batches by its own rule",
    ),
    "Memory Head": Method(
        1, "features", _memory_head, "needs features; one sample at a time, one pass, whatever `epochs` says"
    ),
}


DEFAULTS: dict[str, dict[str, Any]] = {
    "smoke": {
        "seeds": 2,
        "tuning_seeds": 1,
        "scenarios": ("class",),
        "data": "digits",
        "train_size": 12,
        "epochs": 1,
        "tune_epochs": 1,
        "workers": 1,
    },
    "quick": {},
    "paper": {
        "data": "cifar100",
        "tasks": 10,
        "epochs": 20,
        "memory": 24_000,
        "batch_size": 128,
        "probe_every": 200,
        "tune_epochs": 20,
    },
}
