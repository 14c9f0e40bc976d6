"""Chapter 2, metaplasticity: its parameters."""

import typing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from cllib.chapters.common import Chapter, check_sharing, once
from cllib.datasets import tiny_imagenet
from cllib.datasets.files import cache_folder
from cllib.errors import UserError, flag, one_of, whole, within
from cllib.learners.ewc import EWCSettings
from cllib.learners.si import SISettings
from cllib.ledger import published
from cllib.metaplasticity import PUBLISHED_STEPS, groups, rescaled
from cllib.models.binary import BinaryCNN, BinaryMLP
from cllib.models.vit import NETS as VITS
from cllib.models.vit import ViT
from cllib.options import fit
from cllib.recipes import Recipe
from cllib.streams import Stream, TaskSequence
from cllib.streams.tasks import in_parts, task
from cllib.threads import cores

NAME = "02_metaplasticity"
DEFAULT_META = 1.35  # the published m of permuted MNIST
NETS = ("bnn", "dnn", "bcnn", "bcnn_usps", *VITS)
CONVOLUTIONAL = ("bcnn", "bcnn_usps")
PARTS = ("sweep", "controls", "baselines", "two", "streams", "vits", "released", "reruns", "own")
SCENARIOS = ("task", "domain")
SMALL_VIT = {"image_size": 28, "resize": 28, "patch": 7, "dim": 64, "depth": 2, "heads": 4, "mlp_ratio": 2.0}
LARGE_VIT = {"image_size": 224, "resize": 256, "patch": 16, "dim": 768, "depth": 4, "heads": 12, "mlp_ratio": 4.0}
SMALL_CNN: dict[str, Any] = {"channels": (16, 16, 32, 32), "hidden": (64,)}  # bcnn, outside the paper profile
# For MNIST and USPS: 1600 features to 10 classes.
USPS_CNN: dict[str, Any] = {
    **{"channels": (64, 64), "side": 5, "padding": 1, "per_group": 1, "hidden": (), "pool": "average"},
    **{"norm": "batch", "affine": False},
}
USED_BY = (
    (("norm", "norm_gamma", "init"), ("bnn", "dnn", *CONVOLUTIONAL)),
    (("hidden_layers",), ("bnn", "dnn")),
    ((*SMALL_VIT, "as_published", "binarize_attention"), VITS),
)
# What a parameter that is None stands for, by profile: of all nets, of vision transformers, of the convolutional net.
SMOKE = {
    "epochs_per_task": 1,
    "batch_size": 50,
    "lr": 0.005,
    "hidden_layers": (16, 16),
    "task_sequence": ("pdigits",) * 3,
}
QUICK = {"epochs_per_task": 3, "batch_size": 100, "lr": 0.005, "hidden_layers": (256, 256)}
PAPER = {"epochs_per_task": 40, "batch_size": 100, "lr": 0.005, "hidden_layers": (4096, 4096)}
AUTO: dict[str, dict[str, dict[str, Any]]] = {
    "smoke": {"all": {**SMOKE, **SMALL_VIT}, "vit": {}, "bcnn": {}},
    "quick": {"all": {**QUICK, **SMALL_VIT, "task_sequence": ("pFMNIST-6k",) * 3}, "vit": {}, "bcnn": {"lr": 1e-3}},
    "paper": {
        "all": {**PAPER, **LARGE_VIT, "task_sequence": ("pMNIST",) * 6},
        "vit": {"epochs_per_task": 100, "batch_size": 20, "lr": 0.00099, "task_sequence": ("imgnet-5",)},
        "bcnn": {"epochs_per_task": 200, "batch_size": 64, "lr": 1e-4, "task_sequence": ("cifar10",)},
    },
}


@dataclass(frozen=True)
class MetaplasticityChapter(Chapter):
    """Chapter 2. Behind each knob: the flag of the original command lines.

    The knobs from `net` on describe one experiment, the reader's own; the figures and tables use those before it. None
    stands for what the profile takes for this net (`AUTO`).
    """

    parts: tuple[str, ...] = PARTS  # which parts of the chapter are run
    workers: int | None = None  # processes that share the runs on a CPU; None: one a core
    data_dir: str | None = None  # where MNIST, Fashion-MNIST ... are or go, and Tiny-ImageNet lies
    tasks: tuple[str, ...] = ("pFMNIST-6k",) * 3  # of the sweep, the controls and the baselines
    widths: tuple[int, ...] = (256, 256)  # their hidden layers
    epochs: int = 3  # theirs a task
    metas: tuple[float, ...] = (0.0, 0.5, 1.0, 1.35, 3.0)  # m as published, in the sweep
    rescale: bool = True  # whether m grows where a task has fewer steps than published
    images: int | None = None  # of each class to train with; None: all
    other_seeds: int = 3  # runs behind baselines, two data sets, streams and transformers
    two: tuple[str, ...] = ("FMNIST-6k", "digits")  # two data sets, one after the other
    stream_data: tuple[str, ...] = ("FMNIST-6k",)  # data sets for stream learning
    stream_parts: tuple[int, ...] = (1, 20)  # into how many parts each is cut; cifar10 always 1 and 20
    stream_epochs: int = 3  # a part
    vit_tasks: tuple[str, ...] = ("FMNIST-6k-5",)  # for the three transformers
    vit_metas: tuple[float, ...] = (0.0, 30.0)  # theirs, as they are
    vit_epochs: int = 3
    flips: int = 1500  # signs flipped at once, to measure importance
    reruns: tuple[str, ...] = ()  # published experiments to run again, by name; "all": every one

    net: str = "bnn"  # --net, and those of the transformer project
    task_sequence: tuple[str, ...] | None = None  # --task-sequence
    lr: float | None = None  # --lr
    gamma: float = 1.0  # --gamma: task i has the step size lr / gamma^i
    epochs_per_task: int | None = None  # --epochs-per-task
    decay: float = 1e-7  # --decay
    meta: tuple[float, ...] | None = None  # --meta: one m, or one a layer, as it is; None: 1.35, rescaled; ewc, si: 0
    meta_scope: str | None = None  # binary | matrices | none; None: matrices for the real-valued nets, else binary
    gate: str = "shrinking"  # shrinking | growing | both | shuffled: the rule, and controls
    scenario: str = "task"  # --scenario: task: each task keeps its norms; domain: one set for all
    norm: str | None = None  # --norm: batch | running (both "bn") | instance ("in"); None: as released for this net
    norm_gamma: str = "ones"  # initial scale of norms: ones | uniform
    init: str | None = None  # --init: uniform | gauss | xavier
    init_width: float = 0.1  # --init-width
    hidden_layers: tuple[int, ...] | None = None  # --hidden-layers
    batch_size: int | None = None
    reset: bool = True  # a new optimiser in every task
    ewc: bool = False  # --ewc
    ewc_lambda: float = 5000.0  # --ewc-lambda
    si: bool = False  # --si
    si_lambda: float = 0.1  # --si-lambda
    bin_path: bool = False  # --bin-path: SI's path integral along signs, not hidden weights
    rnd_consolidation: bool = False  # --rnd-consolidation: EWC's importance shuffled
    interleaved: bool = False  # --interleaved: all tasks at once, the upper bound
    subsets: int = 0  # --nb-subset: instead of tasks, one data set in so many parts; 0: tasks
    train_size: int | None = None  # images of each class
    test_size: int | None = None
    image_size: int | None = None  # of the transformers: side of what they see
    resize: int | None = None  # side images are enlarged to before that is cut out
    patch: int | None = None
    dim: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_ratio: float | None = None
    binarize_attention: bool = False
    as_published: bool = False  # the released wiring of the transformers
    features: bool = True  # CIFAR tasks as features of a frozen network, as published; else images
    backbone: str = "resnet18.tv_in1k"
    backbone_weights: str = "pretrained"  # or the path of a checkpoint
    passes: int = 10  # times each image is seen when features are made

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sharing(self.parts, PARTS, self.workers)
        for name in ("epochs", "other_seeds", "stream_epochs", "vit_epochs", "flips"):
            whole(name, getattr(self, name), 1)
        for count in self.stream_parts:
            whole("stream_parts", count, 1)
        if len(self.stream_parts) != 2 or len(self.two) != 2:
            wrong = "stream_parts" if len(self.stream_parts) != 2 else "two"
            raise UserError(f"{wrong} = {getattr(self, wrong)!r}: must be two")
        for name in ("metas", "vit_metas"):
            for m in getattr(self, name):
                within(name, m, 0)
            if len(getattr(self, name)) < 2 or getattr(self, name)[0] != 0:
                raise UserError(f"{name} = {getattr(self, name)!r}: must begin with 0, and name another coefficient")
        one_of("net", self.net, NETS)
        one_of("scenario", self.scenario, SCENARIOS)
        for name in ("tasks", "two", "stream_data", "vit_tasks"):
            for keyword in getattr(self, name):
                task(keyword)
        experiments = dict.fromkeys(t["experiment"] for t in published(NAME)["tables"] if "settings" in t)
        for name in self.reruns:
            one_of("reruns", name, ("all", *experiments))
        whole("subsets", self.subsets, 0)
        self._check_tables()
        self._check_nets()
        self.experiment()
        self.sequence()
        if self.meta and len(self.meta) > 1:
            with torch.device("meta"):  # no memory, no time: only to count its layers
                groups(self.network().build((3, 64, 64), 10), self.meta, self.scope)

    def _check_tables(self) -> None:
        """Raise UserError for what the figures and tables cannot be made with."""
        for name in ("metas", "vit_metas", "stream_parts"):
            shown = [f"{value:g}" for value in getattr(self, name)]
            if len(set(shown)) < len(shown):
                raise UserError(f"{name} = {getattr(self, name)!r}: each may be named once")
        if self.images is not None:
            whole("images", self.images, 1)
        BinaryMLP(self.widths)
        self.tasks_of(self.vit_tasks)
        for keywords in (self.tasks, self.two, *((name,) for name in self.stream_data)):
            if any(one.groups for one in self.tasks_of(keywords).tasks):
                raise UserError(f"{keywords}: groups of classes only in vit_tasks and task_sequence")

    def _check_nets(self) -> None:
        """Raise UserError for knobs that this net has no use for."""
        for name in ("as_published", "binarize_attention"):
            flag(name, getattr(self, name))
        defaults = {f.name: f.default for f in fields(self)}
        for names, nets in USED_BY:
            for name in names:
                if getattr(self, name) != defaults[name] and self.net not in nets:
                    raise UserError(
                        f"{name} = {getattr(self, name)!r}: only for net = {', '.join(nets)}, not {self.net!r}"
                    )
        if self.as_published and self.meta is not None:
            raise UserError(f"meta = {self.meta!r}: as_published = True trains with plain Adam, which knows no m")
        if self.net not in VITS and self.norm != "instance" and self.value("batch_size") == 1:
            raise UserError("batch_size = 1: BatchNorm needs two samples at least")
        within("ewc_lambda", self.ewc_lambda, 0, 1e12)
        if self.ewc and self.si:
            raise UserError("ewc = True, si = True: choose one of them")
        for name, needed in (("bin_path", "si"), ("rnd_consolidation", "ewc")):
            if getattr(self, name) and not getattr(self, needed):
                raise UserError(f"{name} = True: only with {needed} = True")
        if self.subsets and len(self.value("task_sequence")) != 1:
            raise UserError(f"subsets = {self.subsets}: takes one data set, task_sequence names several")

    # --- what stands behind None ---

    def value(self, name: str) -> Any:
        """A parameter, or what the profile takes where it is None."""
        family = "vit" if self.net in VITS else self.net
        table = AUTO[self.profile]
        given = getattr(self, name)
        if name == "resize" and given is None:
            given = self.image_size  # who says what the net sees does not mean a piece of something larger
        return given if given is not None else {**table["all"], **table.get(family, {})}[name]

    @property
    def scope(self) -> str:
        """What metaplasticity applies to."""
        return self.meta_scope or ("matrices" if self.net in ("dnn", "vit") else "binary")

    @property
    def crew(self) -> int | None:
        """Processes that share the runs; None on a GPU: this one alone."""
        return None if self.on == "cuda" else self.workers or cores()

    @property
    def others(self) -> list[int]:
        """The seeds of the smaller experiments."""
        return self.runs[: self.other_seeds]

    # --- the reader's own experiment ---

    def sequence(self) -> TaskSequence:
        """Its tasks. Raises UserError for what is no task."""
        return self.tasks_of(self.value("task_sequence"), self.train_size, self.test_size, self.interleaved)

    def stream(self) -> Stream:
        """Its data, loaded. Raises UserError for data that cannot be had."""
        return in_parts(self.sequence(), self.subsets, self.seed) if self.subsets else self.sequence().build()

    def tasks_of(
        self,
        keywords: tuple[str, ...],
        train_size: int | None = None,
        test_size: int | None = None,
        interleaved: bool = False,
    ) -> TaskSequence:
        """A sequence with the chapter's folder and features."""
        return TaskSequence(
            keywords,
            self.seed,
            train_size=train_size,
            test_size=test_size,
            interleaved=interleaved,
            data_dir=self.data_dir,
            features=self.features,
            backbone=self.backbone,
            backbone_weights=self.backbone_weights,
            passes=self.passes,
            device=self.on,
        )

    def network(self) -> BinaryMLP | BinaryCNN | ViT:
        """Its network."""
        if self.net in VITS:
            sizes: dict[str, Any] = {name: self.value(name) for name in SMALL_VIT}
            switches = {"binarize_attention": self.binarize_attention, "as_published": self.as_published}
            return ViT(self.net, init_width=self.init_width, **sizes, **switches)
        init = self.init or ("xavier" if self.net == "bcnn" else "uniform")
        norm = self.norm or ("running" if self.subsets else "released")  # as published for stream learning
        how: dict[str, Any] = {"norm": norm, "gamma": self.norm_gamma, "init": init, "init_width": self.init_width}
        how |= {"affine": not self.subsets or self.net == "bcnn"}  # as published for stream learning
        if self.net == "bcnn_usps":
            return BinaryCNN(**{**how, **USPS_CNN, "norm": self.norm or USPS_CNN["norm"]})
        if self.net == "bcnn":
            return BinaryCNN(**how) if self.profile == "paper" else BinaryCNN(**SMALL_CNN, **how)
        return BinaryMLP(self.value("hidden_layers"), self.net == "bnn", **how)

    def experiment(self) -> Recipe:
        """How it is trained. Raises UserError for a value its parts refuse."""
        learner, settings = "naive", None  # type: str, Any
        if self.ewc:
            learner = "ewc"
            few = 5000 if self.profile == "paper" else 500
            settings = EWCSettings(self.ewc_lambda, "empirical", few, values="signs", shuffled=self.rnd_consolidation)
        if self.si:
            learner, settings = "si", SISettings(self.si_lambda, values="signs" if self.bin_path else "hidden")
        plain = {"optimizer": "adam"}  # all that the released transformer program has
        rule = {
            "optimizer": "metaplastic",
            "meta": self.meta or (0.0 if self.ewc or self.si else DEFAULT_META,),
            "meta_scope": self.scope,
            "gate": self.gate,
        }
        optimiser: dict[str, Any] = plain if self.as_published else rule
        return Recipe(
            learner,
            settings,
            self.network(),
            step_size=self.value("lr"),
            weight_decay=self.decay,
            batch_size=self.value("batch_size"),
            epochs=self.value("epochs_per_task"),
            **optimiser,
            reset=self.reset and not self.subsets and not self.si,  # SI keeps one optimiser, as published
            gamma=self.gamma,
            own_norms=self.scenario == "task" and not self.subsets,
        )

    def experiment_on(self, stream: Stream) -> Recipe:
        """The same for this stream: where the rule acts alone and `meta` is None, 1.35 for the steps its tasks have."""
        if self.meta or self.as_published or self.ewc or self.si:
            return self.experiment()
        return replace(self, meta=(self.scaled(DEFAULT_META, self.steps(stream)[0]),)).experiment()

    def single(self, seed: int) -> tuple[Stream, Recipe]:
        """The stream and the learner of one run of it. Raises UserError for data that cannot be had."""
        parts = (in_parts, self.sequence(), self.subsets, self.seed)
        stream = once(*parts) if self.subsets else once(TaskSequence.build, self.sequence())
        return stream, self.experiment_on(stream)

    def steps(self, stream: Stream) -> list[int]:
        """How many steps its own experiment takes in each experience of a stream."""
        feed = self.experiment().feed(stream, self.seed)
        return [feed.steps(e) for e in range(len(stream.experiences))]

    # --- the figures and tables ---

    def scaled(self, m: float, steps: int, published: int = PUBLISHED_STEPS) -> float:
        """The coefficient used for a published m, where a task has so many steps (`metaplasticity.rescaled`)."""
        return rescaled(m, steps, published) if self.rescale and m else m

    def base(self) -> "MetaplasticityChapter":
        """The chapter with the settings of the sweep as its own experiment."""
        return self.own(net="bnn", task_sequence=self.tasks, hidden_layers=self.widths, epochs_per_task=self.epochs)

    def own(self, **changes: Any) -> "MetaplasticityChapter":
        """The chapter with another experiment of its own: the defaults, these changes; everything else as it is."""
        first = [f.name for f in fields(self)].index("net")
        plain = {f.name: f.default for f in fields(self)[first:]}
        kept = {name: getattr(self, name) for name in ("features", "backbone", "backbone_weights", "passes")}
        hints = typing.get_type_hints(type(self))
        typed = {name: fit(name, v, hints[name]) for name, v in changes.items() if v is not None}
        return replace(self, **{**plain, **kept, **typed})

    def streaming(self, data: str) -> list[tuple["MetaplasticityChapter", float, int]]:
        """Stream learning on a data set: its experiments, with the published m and the steps that it was meant for."""
        common: dict[str, Any] = {"task_sequence": (data,), "train_size": self.images}
        m = published(NAME)["published_m"]
        if data == "cifar10":  # convolutions, 200 epochs of 782 batches
            each = [self.own(net="bcnn", subsets=count, **common) for count in (1, 20)]
            return [(one, float(m["stream of CIFAR-10"]), 156_400) for one in each]
        mlp = {"hidden_layers": self.widths, "epochs_per_task": self.stream_epochs}
        each = [self.own(subsets=count, **mlp, **common) for count in self.stream_parts]
        return [(one, m["stream of Fashion-MNIST"], 12_000) for one in each]

    def check_data(self) -> None:
        """Raise UserError if images that nobody can download are wanted and not there."""
        wanted = (*(self.vit_tasks if "vits" in self.parts else ()),)
        wanted += (*(self.value("task_sequence") if "own" in self.parts else ()),)
        if any(keyword.startswith("imgnet") for keyword in wanted):
            tiny_imagenet.located(Path(self.data_dir) if self.data_dir else cache_folder())


DEFAULTS: dict[str, dict[str, Any]] = {
    "smoke": {
        "seeds": 2,
        "other_seeds": 2,
        "tasks": ("pdigits",) * 3,
        "widths": (16, 16),
        "epochs": 1,
        "metas": (0.0, 1.35),
        "images": 40,
        "two": ("digits", "pdigits"),
        "stream_parts": (1, 3),
        "stream_data": ("digits",),
        "stream_epochs": 1,
        "vit_tasks": ("FMNIST-6k-5",),
        "vit_epochs": 1,
        "flips": 20,
    },
    "quick": {},
    "paper": {
        "tasks": ("pMNIST",) * 6,
        "widths": (4096, 4096),
        "epochs": 40,
        "two": ("MNIST", "FMNIST"),
        "stream_data": ("FMNIST", "cifar10"),
        "stream_parts": (1, 60),
        "stream_epochs": 20,
        "vit_tasks": ("imgnet-5",),
        "vit_metas": (0.0, 1.35),
        "vit_epochs": 100,
        "flips": 1000,
        "reruns": ("all",),
    },
}
