"""What a run of a network is made of: a method, a network, an optimiser, and how the stream is shown."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

import torch

from cllib.errors import UserError, one_of, whole, within
from cllib.fingerprint import name_of
from cllib.learners import LEARNERS
from cllib.learners.naive import Naive
from cllib.models.networks import MLP, NETWORKS
from cllib.options import build, convert
from cllib.randomness import seeded
from cllib.streams.base import Stream
from cllib.streams.scenarios import StreamConfig
from cllib.training import Batches

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class Recipe:
    """Raises UserError at construction for impossible values.

    learner: a name in `LEARNERS`; settings: an instance of that learner's `Settings` (None: the defaults); network: a
    frozen dataclass with `build(shape, classes)`, such as `models.networks.MLP`; optimizer: one of `OPTIMIZERS`, with
    momentum for "sgd"; batch_size, epochs, iterations: see `training.Batches`.
    """

    learner: str = "naive"
    settings: Any = None
    network: Any = field(default_factory=MLP)
    optimizer: str = "sgd"
    step_size: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 32
    epochs: int = 1
    iterations: int | None = None

    def __post_init__(self) -> None:
        one_of("learner", self.learner, tuple(LEARNERS))
        one_of("optimizer", self.optimizer, tuple(OPTIMIZERS))
        wanted = self.kind.Settings
        if self.settings is None:
            object.__setattr__(self, "settings", wanted())
        if type(self.settings) is not wanted:
            raise UserError(f"settings = {self.settings!r}: learner = {self.learner!r} takes {wanted.__name__}")
        for name in ("step_size", "weight_decay"):
            within(name, getattr(self, name), 0)
        within("momentum", self.momentum, 0, 0.9999)
        if self.momentum and self.optimizer != "sgd":
            raise UserError(f"momentum = {self.momentum!r}: only optimizer = 'sgd' takes one")
        for name in ("batch_size", "epochs"):
            whole(name, getattr(self, name), 1)
        if self.iterations is not None:
            whole("iterations", self.iterations, 1)
        if not is_dataclass(self.network) or not hasattr(self.network, "build"):
            raise UserError(
                f"network = {self.network!r}: must be a dataclass with build(shape, classes), such as MLP()"
            )

    @property
    def kind(self) -> type[Naive]:
        """The learner's class."""
        return LEARNERS[self.learner]

    def build(self, stream: Stream, seed: int, device: str | torch.device = "cpu") -> Naive:
        """The learner for a stream that lies on the device; its initial weights depend on the seed alone."""
        with seeded(seed, "init"):
            network = self.network.build(stream.shape, stream.classes).to(device)
        extra = {"momentum": self.momentum} if self.optimizer == "sgd" else {}
        wanted = [p for p in network.parameters() if p.requires_grad]
        optimiser = OPTIMIZERS[self.optimizer](wanted, lr=self.step_size, weight_decay=self.weight_decay, **extra)
        return self.kind(self.settings, network, optimiser, seed, stream.rivals())

    def feed(self, stream: Stream, seed: int) -> Batches:
        """How the stream is shown to the learner."""
        return Batches(stream, seed, self.batch_size, self.epochs, self.iterations, self.kind.joint)

    def describe(self) -> dict[str, Any]:
        """The recipe as plain values, with the names of the classes."""
        named = {"settings": self.settings, "network": self.network}
        told = {**asdict(self), **{name: {"kind": type(part).__name__, **asdict(part)} for name, part in named.items()}}
        plain: dict[str, Any] = json.loads(json.dumps(told, default=name_of))
        return plain


PLAIN = ("optimizer", "step_size", "momentum", "weight_decay", "batch_size", "epochs", "iterations")


def parse(learners: tuple[str, ...], pairs: Mapping[str, str]) -> tuple[StreamConfig, dict[str, Recipe]]:
    """A stream and a recipe a learner from the `name=text` pairs of a command line.

    A pair sets the stream, the network, the training, or every named learner that has such a setting. Raises UserError
    for an unknown learner or name, or an impossible value.
    """
    for learner in learners:
        one_of("learner", learner, tuple(LEARNERS))
    network = pairs.get("network", "mlp")
    one_of("network", network, tuple(NETWORKS))
    settings = {learner: LEARNERS[learner].Settings for learner in learners}
    names = [f.name for kind in (StreamConfig, NETWORKS[network], *settings.values()) for f in fields(kind)]
    allowed = dict.fromkeys((*names, *PLAIN, "network"))
    for name in pairs:
        if name not in allowed:
            raise UserError(f"{name}: no such setting here; allowed are {', '.join(allowed)}")
    hints = {f.name: f.type for f in fields(Recipe)}
    plain = {name: convert(name, text, hints[name]) for name, text in pairs.items() if name in PLAIN}
    built = build(NETWORKS[network], pairs)
    recipes = {n: Recipe(n, build(kind, pairs), network=built, **plain) for n, kind in settings.items()}
    return build(StreamConfig, pairs), recipes
