"""Chapter 3, latent replay in a vision transformer: its parameters."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cllib.attention import HEADS, NORMALIZE
from cllib.chapters.common import Chapter, check_sharing, once
from cllib.datasets import core50, mini_core
from cllib.errors import UserError, flag, one_of, whole, within
from cllib.feeds import padded, portion
from cllib.learners.latent_replay import LatentReplaySettings
from cllib.memory import DTYPES as STORED
from cllib.models.latent_vit import BACKBONES, OWN, PRETRAINED, RANDOM, LatentViT
from cllib.recipes import Recipe
from cllib.streams.base import Stream
from cllib.streams.nicv2 import NICv2, prep
from cllib.threads import cores

NAME = "03_latent_replay"
DTYPES = tuple(dtype for dtype in STORED if dtype != "pixels")  # of latents
PARTS = ("main", "map", "stores", "released", "speed", "look")


@dataclass(frozen=True)
class LatentReplayChapter(Chapter):
    """Chapter 3. Behind each knob: its name in the released configuration, or where the source had to be edited.

    The knobs from `data` on describe one experiment, latent replay; every table varies it.
    """

    parts: tuple[str, ...] = PARTS  # which parts of the chapter are run
    workers: int | None = None  # processes that share the runs on a CPU; None: one a core
    other_seeds: int = 3  # runs behind everything but the main comparison
    light_epochs: int = 1  # a batch in all tables but the main one
    depths: tuple[int, ...] = (2, 4, 6)  # of the map
    blocks: tuple[int, ...] = (2, 4, 6)  # its replay blocks
    cumulative_epochs: int = 10  # of the upper bound
    timed: int = 8  # batches behind every time
    heads: str = "max"  # how the rollout fuses heads: mean | max | min
    discard: float = 0.9  # share of attention it drops
    normalize_rollout: str = "row"  # row | legacy
    tensorboard: bool = False  # write the released program's scalars
    native: bool = False  # also replay images with nothing frozen, which takes as long as all else

    data: str = "mini"  # mini | core50
    data_dir: str | None = None  # where CORe50 lies
    variant: str = "nicv2_79"  # nicv2_79 | nicv2_196 | nicv2_391
    run: int = 0  # which order of the films
    frames: int = 12  # a film of mini-CORe has
    first_frames: int = 12  # ... in the first batch
    test_every: int | None = None  # of the test frames one in so many is tested
    backbone: str = "tiny"  # tiny | tiny4 | b32 | b16 | l32 | l16; a source edit
    weights: str = "own"  # own | pretrained | random | a file
    image_size: int | None = None  # a source edit
    depth: int = 6  # D: blocks used; two source edits
    replay_block: int = 5  # F: blocks frozen; two source edits and freeze_below_layer
    store: str = "tokens"  # tokens | cls, where F = D
    dropout: float = 0.1
    attention_dropout: float = 0.1
    class_token: str = "pretrained"  # pretrained | zero, as released
    normalize: str = "half"  # half | imagenet, as released
    buffer_size: int = 120  # rm_sz
    buffer_dtype: str = "float32"  # float32 | float16 | int8
    batch_size: int = 30  # mb_size
    epochs: int = 4  # init_train_ep
    later_epochs: int = 4  # inc_train_ep
    lr: float = 0.02  # init_lr
    later_lr: float = 0.005  # inc_lr
    momentum: float = 0.9
    weight_decay: float = 5e-4  # l2
    schedule: str = "shuffled"  # shuffled | legacy, as released
    cwr: bool = True
    unique_classes: bool = True  # false: as released
    unseen: str = "zero"  # zero | left, as released
    reset_head: bool = False
    strength: float = 0.0  # reg_lambda

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sharing(self.parts, PARTS, self.workers)
        for name in ("other_seeds", "light_epochs", "cumulative_epochs", "timed", "epochs", "later_epochs"):
            whole(name, getattr(self, name), 1)
        one_of("heads", self.heads, HEADS)
        within("discard", self.discard, 0, 1)
        one_of("normalize_rollout", self.normalize_rollout, NORMALIZE)
        for name in ("tensorboard", "native"):
            flag(name, getattr(self, name))
        one_of("buffer_dtype", self.buffer_dtype, DTYPES)
        self._check_map()
        self._check_sizes()
        self.recipe()
        if self.weights not in (OWN, PRETRAINED, RANDOM) and not Path(self.weights).is_file():
            raise UserError(f"weights = {self.weights!r}: no such file; else {OWN}, {PRETRAINED} or {RANDOM}")

    def _check_map(self) -> None:
        """Raise UserError for cuts that cannot be made."""
        one_of("backbone", self.backbone, tuple(BACKBONES))
        for name, low in (("depths", 1), ("blocks", 0)):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise UserError(f"{name} = {values!r}: must name one at least, and each once")
            for value in values:
                whole(name, value, low, BACKBONES[self.backbone].blocks)
        if not self.cells():
            raise UserError(f"blocks = {self.blocks!r}: none of them lies within one of depths = {self.depths!r}")

    def _check_sizes(self) -> None:
        """Raise UserError for mini-batches that could not be filled, or more batches in the first than there are."""
        for name in ("batch_size", "buffer_size"):
            whole(name, getattr(self, name), name == "batch_size")
        config = self.stream_config()
        if prep(self.buffer_size) >= config.batches:
            raise UserError(f"buffer_size = {self.buffer_size}: no more than {config.batches} batches can be the first")
        first, later = config.sizes
        full = padded(first, self.batch_size) if self.schedule == "shuffled" else self.buffer_size
        for samples in later:
            portion(samples, min(self.buffer_size, full), self.batch_size)

    # --- the experiment ---

    @property
    def crew(self) -> int:
        """Processes that share the runs."""
        large = self.data == "core50"  # too large to be sent to another process
        return 1 if self.on != "cpu" or large else self.workers or cores()

    @property
    def others(self) -> list[int]:
        """The seeds of everything but the main comparison."""
        return list(range(self.seed, self.seed + self.other_seeds))

    def stream_config(self) -> NICv2:
        """The stream. Raises UserError for an impossible one."""
        mini: dict[str, Any] = {"frames": self.frames, "first_frames": self.first_frames} if self.data == "mini" else {}
        native = mini_core.SIDE if self.data == "mini" else core50.SIDE
        side = None if self.vit().side == native else self.vit().side
        told: dict[str, Any] = {"data_dir": self.data_dir, "image_size": side, "test_every": self.test_every}
        return NICv2(self.data, self.variant, self.run, **mini, **told)

    def vit(self, **changes: Any) -> LatentViT:
        """The network, or another cut of it."""
        names = ("backbone", "image_size", "depth", "replay_block", "store", "dropout", "attention_dropout")
        told = {name: getattr(self, name) for name in (*names, "class_token", "normalize", "weights")}
        return LatentViT(**{**told, **changes})

    def settings(self, **changes: Any) -> LatentReplaySettings:
        """Of the learner, or some of them changed."""
        names = ("buffer_size", "later_epochs", "schedule", "cwr", "unique_classes", "unseen", "reset_head", "strength")
        told = {name: getattr(self, name) for name in names}
        told |= {"dtype": self.buffer_dtype, "later_step_size": self.later_lr}
        return LatentReplaySettings(**{**told, **changes})

    def recipe(self, vit: Mapping[str, Any] | None = None, **changes: Any) -> Recipe:
        """Latent replay, with changes to the network and to the learner's settings."""
        return Recipe(
            "latent",
            self.settings(**changes),
            self.vit(**(vit or {})),
            step_size=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            epochs=self.epochs,
        )

    def single(self, seed: int) -> tuple[Stream, Recipe]:
        """The stream and the learner of one run of it. Raises UserError for data not at hand."""
        return once(NICv2.build, self.stream_config()), self.recipe()

    # --- the tables ---

    @property
    def light(self) -> "LatentReplayChapter":
        """The chapter with the epochs of the smaller tables."""
        return replace(self, later_epochs=self.light_epochs)

    def named(self, table: str) -> str:
        """What the runs of one of those tables are called."""
        return f"{table}, {self.light_epochs} epoch{'s' * (self.light_epochs > 1)} a batch"

    def compared(self, stream: Stream) -> dict[str, Recipe]:
        """The main comparison: everything that sees the stream batch by batch."""
        plain: dict[str, Any] = {"buffer_size": 0, "cwr": False}
        made = {
            "latent replay": self.recipe(),
            "latent replay, no CWR*": self.recipe(cwr=False),
            "naive": self.recipe(**plain),
            "naive, as many steps": self.recipe(**plain, later_epochs=self.matched(stream)),
            "CWR* only": self.recipe(buffer_size=0),
        }
        return {**made, "images replayed": self.replaying_images()} if self.native else made

    def replaying_images(self) -> Recipe:
        """Native replay: nothing is frozen."""
        return self.recipe({"replay_block": None, "store": "tokens"}, dtype="pixels")

    def matched(self, stream: Stream) -> int:
        """Epochs without replay that take about as many steps as those with it."""
        one, wanted = replace(self, later_epochs=1), ({}, {"buffer_size": 0})  # type: tuple[Any, tuple[dict[str, Any], ...]]
        with_replay, alone = (one.recipe(**how).feed(stream, self.seed).steps(1) for how in wanted)
        return max(1, round(self.later_epochs * with_replay / alone))

    def cumulative(self) -> Recipe:
        """The upper bound: the same upper part on all latents at once."""
        naive = replace(self.recipe(), learner="naive", settings=None)
        return replace(naive, epochs=self.cumulative_epochs)

    def released(self) -> dict[str, Recipe]:
        """What the released program does otherwise, one thing at a time, and all at once."""
        rules: dict[str, dict[str, Any]] = {
            "duplicate ids (B1)": {"unique_classes": False},
            "unseen rows left (B2)": {"unseen": "left"},
            "one order for all epochs (B10)": {"schedule": "legacy"},
        }
        network: dict[str, dict[str, Any]] = {
            "zero class token (B3)": {"class_token": "zero"},
            "ImageNet's mean (B5)": {"normalize": "imagenet"},
        }
        make = self.light.recipe
        made = {"as it should be": make()} | {label: make(**changes) for label, changes in rules.items()}
        made |= {label: make(changes) for label, changes in network.items()}
        all_rules, all_network = (
            {name: value for changes in group.values() for name, value in changes.items()} for group in (rules, network)
        )
        return {**made, "all that is released": make(all_network, **all_rules)}

    def stores(self) -> dict[str, Recipe]:
        """The same buffer in other forms; the class token alone needs the cut above the last block."""
        make = self.light.recipe
        top, plain = {"replay_block": self.depth}, {"store": "tokens"}
        made = {dtype: make(plain, dtype=dtype) for dtype in ("float32", "float16", "int8")}
        return made | {f"F = D, {store}": make({**top, "store": store}) for store in ("tokens", "cls")}

    def looking(self) -> Recipe:
        """The network that is looked into: with finer patches where the own ones are too coarse to be seen."""
        fine = "tiny4" if self.backbone == "tiny" and self.weights in ("own", "random") else self.backbone
        return self.light.recipe({"backbone": fine, "store": "tokens", "replay_block": self.depth - 1})

    def speeds(self) -> dict[str, Recipe]:
        """The cuts whose stages are timed: nothing frozen below the embedding, half, all, and all with less stored."""
        half, top = self.depth // 2, self.depth
        cuts = {f"F = {f}": {"replay_block": f, "store": "tokens"} for f in dict.fromkeys((0, half, top))}
        cuts[f"F = {top}, class token"] = {"replay_block": top, "store": "cls"}
        return {label: self.recipe(how) for label, how in cuts.items()}

    def cells(self) -> list[tuple[int, int]]:
        """Depth and replay block of every cut in the map."""
        return [(d, f) for d in self.depths for f in self.blocks if f <= d]

    def cuts(self) -> dict[str, Recipe]:
        """The map."""
        told = {"store": "tokens"}
        return {f"D={d} F={f}": self.light.recipe({**told, "depth": d, "replay_block": f}) for d, f in self.cells()}


DEFAULTS: dict[str, dict[str, Any]] = {
    "smoke": {
        "seeds": 2,
        "other_seeds": 2,
        "frames": 2,
        "first_frames": 10,
        "depths": (1, 2),
        "blocks": (1, 2),
        "depth": 2,
        "replay_block": 1,
        "buffer_size": 80,
        "batch_size": 50,
        "epochs": 1,
        "later_epochs": 1,
        "cumulative_epochs": 1,
        "timed": 2,
        "native": True,
    },
    "quick": {"seeds": 3},
    "paper": {
        "data": "core50",
        "variant": "nicv2_391",
        "backbone": "b16",
        "weights": "pretrained",
        "image_size": 128,
        "depth": 12,
        "replay_block": 6,
        "depths": (6, 8, 10, 12),
        "blocks": (0, 2, 4, 6, 8, 10, 12),
        "light_epochs": 4,
        "native": True,
        "buffer_size": 1500,
        "batch_size": 100,
        "lr": 1e-3,
        "later_lr": 5e-5,
    },
}
