"""Chapter 5, BiRT: its parameters."""

from dataclasses import dataclass, fields, replace
from typing import Any

from cllib.augment import AUGMENTS
from cllib.chapters.birt_settings import SETTINGS, Images, Setting, setting_stream
from cllib.chapters.common import Chapter, check_sharing, once
from cllib.errors import UserError, flag, one_of, whole, within
from cllib.learners.birt import BiRTSettings
from cllib.learners.der import DERPlusSettings
from cllib.models.convit import ConViT
from cllib.models.plain_vit import PlainViT
from cllib.recipes import Recipe
from cllib.streams.base import Stream
from cllib.threads import cores

NAME = "05_birt"
USUAL = ("main", "noise", "released", "memory", "student", "look")
PARTS = (*USUAL, "reference")  # the last one was run beforehand
QUIET: dict[str, Any] = {"mixup_p": 0.0, "label_p": 0.0, "attention_p": 0.0, "supervision_p": 0.0, "extrapolation": 0.0}
UNTAUGHT: dict[str, Any] = {**QUIET, "consistency": 0.0}  # without noise, nobody teaches
PLAIN: dict[str, Any] = {"recipe": "paper", "consistency": 0.0, "tune_epochs": 0, **QUIET}


@dataclass(frozen=True)
class BiRTChapter(Chapter):
    """Chapter 5. Behind each knob its symbol in the paper or its name in the released program.

    The knobs from `setting` on describe one method, BiRT, on one setting; every table varies it. None: as the setting
    or the recipe has it.
    """

    parts: tuple[str, ...] = USUAL  # which parts of the chapter are run
    workers: int | None = None  # processes that share the runs on a CPU; None: one a core
    other_seeds: int = 3  # runs behind everything but the main comparison
    light_epochs: int | None = 4  # epochs a task in all tables but the main one
    compared: tuple[str, ...] = (
        *("joint", "fine-tuning only", "image replay", "DER++", "representation replay"),
        "BiRT",
    )
    stds: tuple[float, ...] = (0.1, 1.0)  # of attention noise, in the ablation
    emas: tuple[float, ...] = (0.99,)  # gamma, of slower averages
    buffers: tuple[int, ...] = (20,)  # of the smaller and larger memories
    differences: tuple[str, ...] = ("as the paper says", "as released")  # between the recipes; more: see DIFFERENCES
    damaged: int = 100  # test images that are damaged
    live: bool = True  # draw the curves while the first run trains, in JupyterLab
    data_dir: str | None = None  # where CIFAR, Tiny-ImageNet or ImageNet-100 lie
    train_size: int | None = None  # only the first so many of each class

    setting: str = "digits-5-100"  # a row of the published table
    recipe: str = "paper"  # paper | released
    tasks: int | None = None
    epochs: int | None = None  # a task
    batch_size: int | None = None
    lr: float | None = None
    buffer_size: int | None = None  # M, memory_size
    replay_from: int = 1  # k
    augment: str | None = None
    ema: float | None = None  # gamma, ema_alpha
    ema_rate: float | None = None  # alpha_e, ema_frequency
    replay_weight: float = 1.0  # alpha
    consistency: float = 1.0  # rho
    beta_new: float | None = None  # beta_1, distill_weight
    beta_replay: float | None = None  # beta_2, distill_weight_buffer
    divergence: float = 0.1
    loss: str = "bce"  # bce | ce
    mixup_p: float | None = None  # M
    label_p: float | None = None  # T
    label_range: str | None = None  # seen | new
    attention_p: float = 0.5  # A
    attention_std: float | None = None
    supervision_p: float = 0.4  # S
    supervision_std: float = 0.01
    extrapolation: float | None = None  # X
    gate: str = "sample"  # sample | batch
    supervise_mixed: bool | None = None  # from here on what paper and released program do differently
    supervise_new: bool | None = None
    persistent: bool | None = None
    scaled: bool | None = None  # auto_kd
    by_width: bool | None = None
    alternating: bool | None = None
    deterministic: bool | None = None
    settled: bool | None = None
    freeze_old: bool = False
    merge: bool = True
    distance: str = "l2"  # l2 | squared, as the students had it
    tune_epochs: int = 20
    dtype: str = "float32"  # of what is stored: float32 | float16 | int8
    halved: bool = False  # multiply matrices in bfloat16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sharing(self.parts, PARTS, self.workers)
        whole("other_seeds", self.other_seeds, 1)
        whole("damaged", self.damaged, 1)
        for name in ("light_epochs", "train_size", "tasks", "epochs", "batch_size", "buffer_size"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1)
        for name in ("compared", "stds", "emas", "buffers", "differences"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty: give one at least")
        for method in self.compared:
            one_of("compared", method, tuple(METHODS))
        for std in self.stds:
            within("stds", std, 0)
        for ema in self.emas:
            within("emas", ema, 0, 1)
        for size in self.buffers:
            whole("buffers", size, 1)
        for name in self.differences:
            one_of("differences", name, tuple(DIFFERENCES))
        flag("live", self.live)
        one_of("setting", self.setting, tuple(SETTINGS))
        if self.lr is not None:
            within("lr", self.lr, 1e-12)
        if self.augment is not None:
            one_of("augment", self.augment, AUGMENTS)
        self.trained("birt", self.settings(), self.network())

    # --- the setting ---

    @property
    def how(self) -> Setting:
        """What the method is run with where the parameters do not say."""
        return SETTINGS[self.setting]

    @property
    def images(self) -> Images:
        """What the images are learned with."""
        return self.how.images

    @property
    def crew(self) -> int:
        """Processes that share the runs."""
        return 1 if self.on != "cpu" else self.workers or cores()

    @property
    def few(self) -> list[int]:
        """The seeds of everything but the main comparison."""
        return list(range(self.seed, self.seed + self.other_seeds))

    @property
    def longer(self) -> "BiRTChapter":
        """The chapter with the training of the specification's prototype, on digits."""
        return replace(self, epochs=30, augment="shift")

    @property
    def light(self) -> "BiRTChapter":
        """The chapter with the epochs of the smaller tables."""
        return replace(self, epochs=self.light_epochs or self.epochs)

    def stream(self) -> Stream:
        """The stream. Raises UserError for data not at hand."""
        return setting_stream(self.setting, self.tasks, self.data_dir, self.train_size)

    def network(self, **changes: Any) -> ConViT:
        """The transformer."""
        return replace(self.images.network, replay_from=self.replay_from, **changes)

    def settings(self, **changes: Any) -> BiRTSettings:
        """Of BiRT, or with changes."""
        own = {f.name for f in fields(BiRTSettings)}
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name in own}
        told |= {
            "buffer_size": self.buffer_size or self.how.buffer,
            "warmup_epochs": self.images.warmup,
            "tune_step_size": self.images.tune_lr,
        }
        table = ("ema", "ema_rate", "beta_new", "beta_replay")
        defaults = {name: getattr(self.how, name) for name in table}
        released = changes.get("recipe", self.recipe) == "released"  # never with the smaller noise of small settings
        std = Images.attention_std if released else self.images.attention_std
        defaults |= {"augment": self.images.augment, "attention_std": std}
        told |= {name: value for name, value in defaults.items() if told.get(name) is None}
        return BiRTSettings(**{**told, **changes})

    def trained(self, learner: str, settings: Any, network: Any) -> Recipe:
        """A method with the setting's training."""
        return Recipe(
            learner,
            settings,
            network,
            optimizer="adamw",
            step_size=self.lr or self.images.lr,
            weight_decay=1e-6,
            batch_size=self.batch_size or self.images.batch,
            epochs=self.epochs or self.images.epochs,
            halved=self.halved,
        )

    def birt(self, **changes: Any) -> Recipe:
        """BiRT, or with changes."""
        return self.trained("birt", self.settings(**changes), self.network())

    def single(self, seed: int) -> tuple[Stream, Recipe]:
        """The stream and the learner of one run. Raises UserError for data not at hand."""
        return once(setting_stream, self.setting, self.tasks, self.data_dir, self.train_size), self.birt()

    # --- the tables ---

    def methods(self) -> dict[str, Recipe]:
        """The comparison."""
        return {name: METHODS[name](self) for name in self.compared}

    def noises(self) -> dict[str, Recipe]:
        """Every noise alone, attention noise by its size, and all together."""
        own = self.settings()
        made = {"none": QUIET, "M: representations": _only(own, "mixup_p"), "T: labels": _only(own, "label_p")}
        for std in self.stds:
            made[f"A: attention, {std:g}"] = {**_only(own, "attention_p"), "attention_std": std}
        made |= {"S: supervision": _only(own, "supervision_p"), "all": {}}
        return {label: self.birt(**changes) for label, changes in made.items()}

    def released(self) -> dict[str, Recipe]:
        """Both recipes, or the paper's with one difference of the released program at a time."""
        return {label: self.birt(**{"recipe": "paper", **DIFFERENCES[label]}) for label in self.differences}

    def memories(self) -> dict[str, Recipe]:
        """The semantic memory by gamma, no fine-tuning, and the episodic memory by size and type."""
        hows: dict[str, dict[str, Any]] = {"BiRT": {}, "no fine-tuning": {"tune_epochs": 0}}
        hows |= {f"gamma {ema:g}": {"ema": ema} for ema in self.emas}
        hows |= {f"M {size}": {"buffer_size": size} for size in self.buffers}
        hows["in int8"] = {"dtype": "int8"}
        made = {label: self.birt(**changes) for label, changes in hows.items()}
        for size in (*self.buffers, self.settings().buffer_size):
            made[f"image replay, M {size}"] = self.birt(replay="images", buffer_size=size, **PLAIN)
        return made

    def student(self) -> dict[str, Recipe]:
        """The students' plain transformer, all data so far: whole, cut, and with their g that never learns."""
        cut = replace(PlainViT(), patch=self.images.network.patch)
        nets = {"whole": replace(cut, cut=0), "cut in two": cut, "g detached": replace(cut, detached=True)}
        how = self.settings(replay="all", loss="ce", **PLAIN)
        return {label: self.trained("birt", how, network) for label, network in nets.items()}

    def reference(self) -> dict[str, Recipe]:
        """What the specification's prototype was run with; beforehand, for it takes long (see `longer`)."""
        hows: dict[str, dict[str, Any]] = {
            "all noises, A 1, shares": {"attention_std": 1.0, "scaled": True},
            "all noises, A 1": {"attention_std": 1.0},
            "all noises, A .1, shares": {"attention_std": 0.1, "scaled": True},
            "A 1 alone, shares": {**_only(self.settings(), "attention_p"), "attention_std": 1.0, "scaled": True},
            "no noise, shares": {**QUIET, "scaled": True},
            "no noise, no teacher": UNTAUGHT,
            "labels .5, shares": {"attention_std": 1.0, "label_p": 0.5, "scaled": True},
            "no fine-tuning, shares": {"attention_std": 1.0, "tune_epochs": 0, "scaled": True},
        }
        return {label: self.birt(**changes) for label, changes in hows.items()}


def _only(own: BiRTSettings, name: str) -> dict[str, Any]:
    """All noises off but one, which has the probability it has."""
    return {**QUIET, name: getattr(own, name)}


DIFFERENCES: dict[str, dict[str, Any]] = {
    "as the paper says": {"recipe": "paper"},
    "as released": {"recipe": "released"},
    "all is mixed": {"mixup_p": 1.0, "supervise_mixed": False},
    "half the labels to new classes": {"label_p": 0.5, "label_range": "new"},
    "extrapolation": {"extrapolation": 0.5},
    "lost updates": {"persistent": False},
    "shares": {"scaled": True},
    "shares by width": {"scaled": True, "by_width": True},
    "passes alternate": {"alternating": True},
    "chosen and stored augmented": {"deterministic": False},
    "attention noise of 1": {"attention_std": 1.0},
    "noise on new supervision": {"supervise_new": True},
    "frozen layers in training mode": {"settled": False},
}


def _derpp(p: BiRTChapter) -> Recipe:
    settings = DERPlusSettings(p.settings().buffer_size, p.batch_size or p.images.batch)
    return p.trained("der++", settings, p.network(tasks=p.tasks or p.how.tasks))


METHODS: dict[str, Any] = {
    "joint": lambda p: p.birt(replay="all", **PLAIN),
    "fine-tuning only": lambda p: p.birt(replay="none", **PLAIN),
    "image replay": lambda p: p.birt(replay="images", **PLAIN),
    "DER++": _derpp,
    "representation replay": lambda p: p.birt(**UNTAUGHT),
    "BiRT": lambda p: p.birt(),
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "smoke": {
        "seeds": 2,
        "other_seeds": 1,
        "epochs": 1,
        "light_epochs": 1,
        "train_size": 20,
        "tasks": 2,
        "stds": (0.1,),
        "tune_epochs": 1,
        "damaged": 30,
        "workers": 1,
    },
    "quick": {"seeds": 3},
    "paper": {
        "seeds": 5,
        "other_seeds": 3,
        "damaged": 1000,
        "light_epochs": 50,
        "differences": tuple(DIFFERENCES),
        "buffers": (200, 1000),
        "setting": "CIFAR-100-10-500",
    },
}
