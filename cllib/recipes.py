"""What a run of a network is made of: a method, a network, an optimiser, and how the stream is shown."""

import json
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import PurePath
from typing import Any

import torch
from torch import nn

from cllib import metaplasticity
from cllib.errors import UserError, flag, listed, one_of, whole, within
from cllib.feeds import Batches
from cllib.fingerprint import Registry, name_of
from cllib.learners import LEARNERS
from cllib.learners.naive import Naive
from cllib.learners.taskwise import Taskwise
from cllib.models.binary import SCOPES, BinaryCNN, BinaryMLP
from cllib.models.conv_front import ConvMLP
from cllib.models.convit import ConViT
from cllib.models.latent_vit import LatentViT
from cllib.models.networks import CNN, MLP, look_at
from cllib.models.plain_vit import PlainViT
from cllib.models.replay_vae import ReplayVAE
from cllib.models.split import Split
from cllib.models.vit import ViT
from cllib.optim import fusible
from cllib.options import build, convert
from cllib.randomness import seeded
from cllib.streams.base import Stream, inputs
from cllib.streams.latent import seen_by
from cllib.streams.scenarios import StreamConfig


def sgd(network: nn.Module, recipe: "Recipe", seed: int) -> torch.optim.Optimizer:
    """Gradient descent with momentum."""
    rate, decay = recipe.step_size, recipe.weight_decay
    # foreach: the same bits for less overhead
    return torch.optim.SGD(learning(network), rate, recipe.momentum, weight_decay=decay, foreach=True)


def adam(network: nn.Module, recipe: "Recipe", seed: int) -> torch.optim.Optimizer:
    """Adam, the decay added to the gradient."""
    return torch.optim.Adam(
        learning(network), recipe.step_size, weight_decay=recipe.weight_decay, fused=fusible(network.parameters())
    )


def adamw(network: nn.Module, recipe: "Recipe", seed: int) -> torch.optim.Optimizer:
    """Adam, the decay apart from the gradient."""
    return torch.optim.AdamW(
        learning(network), recipe.step_size, weight_decay=recipe.weight_decay, fused=fusible(network.parameters())
    )


def metaplastic(network: nn.Module, recipe: "Recipe", seed: int) -> torch.optim.Optimizer:
    """Adam that consolidates (`cllib.metaplasticity`)."""
    parts = metaplasticity.groups(network, recipe.meta, recipe.meta_scope)
    return metaplasticity.MetaplasticAdam(
        parts, recipe.step_size, weight_decay=recipe.weight_decay, gate=recipe.gate, seed=seed
    )


def learning(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that need a gradient."""
    return [p for p in network.parameters() if p.requires_grad]


OPTIMIZERS: dict[str, Callable[[nn.Module, "Recipe", int], torch.optim.Optimizer]] = Registry(
    {"sgd": sgd, "adam": adam, "adamw": adamw, "metaplastic": metaplastic}
)


NETWORKS: dict[str, Any] = {
    "mlp": MLP,
    "cnn": CNN,
    "bnn": BinaryMLP,
    "bcnn": BinaryCNN,
    "vit": ViT,
    "latent_vit": LatentViT,
    "conv_mlp": ConvMLP,
    "replay_vae": ReplayVAE,
    "convit": ConViT,
    "plain_vit": PlainViT,
}
BORDER: dict[str, type[Taskwise]] = Registry({"taskwise": Taskwise})


@dataclass(frozen=True)
class Recipe:
    """Raises UserError at construction for impossible values.

    learner: a name in `LEARNERS`; settings: an instance of that learner's `Settings` (None: the defaults); network: a
    frozen dataclass with `build(shape, classes)`, such as `models.networks.MLP`; optimizer: one of `OPTIMIZERS`, with
    momentum for "sgd", and for "metaplastic" meta, one coefficient or one a layer, meta_scope and gate (see
    `cllib.metaplasticity`); batch_size, epochs, iterations: see `feeds.Batches`; reset, gamma, own_norms: what
    happens at the borders of experiences, see `learners.taskwise`; halved: matrices are multiplied in bfloat16 while
    learning.
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
    meta: tuple[float, ...] = (0.0,)
    meta_scope: str = "binary"
    gate: str = "shrinking"
    reset: bool = False
    gamma: float = 1.0
    own_norms: bool = False
    halved: bool = False

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
        self._check_meta()
        within("gamma", self.gamma, 1e-6)
        for name in ("reset", "own_norms", "halved"):
            flag(name, getattr(self, name))
        if not is_dataclass(self.network) or not hasattr(self.network, "build"):
            raise UserError(
                f"network = {self.network!r}: must be a dataclass with build(shape, classes), such as MLP()"
            )

    def _check_meta(self) -> None:
        """Raise UserError for coefficients that cannot be, or that nothing would use."""
        listed("meta", self.meta)
        if not self.meta:
            raise UserError("meta is empty: give one coefficient, or one a layer")
        for m in self.meta:
            within("meta", m, 0)
        one_of("meta_scope", self.meta_scope, SCOPES)
        one_of("gate", self.gate, metaplasticity.GATES)
        for name in ("meta", "meta_scope", "gate"):
            if getattr(self, name) != getattr(Recipe, name) and self.optimizer != "metaplastic":
                raise UserError(f"{name} = {getattr(self, name)!r}: only for optimizer = 'metaplastic'")

    @property
    def kind(self) -> type[Naive]:
        """The learner's class."""
        return LEARNERS[self.learner]

    @property
    def border(self) -> bool:
        """Whether anything happens between experiences that is not the learner's own."""
        return self.reset or self.gamma != 1 or self.own_norms

    def code(self) -> tuple[Any, ...]:
        """The code that a run of it depends on."""
        picked: tuple[Any, ...] = (Recipe.build, Recipe.feed, self.kind, OPTIMIZERS[self.optimizer])
        picked += (self.settings, self.network)  # what they hold too, such as a function
        picked += (seen_by,) if hasattr(self.network, "front") else ()
        return (*picked, Taskwise) if self.border else picked

    def build(self, stream: Stream, seed: int, device: str | torch.device = "cpu") -> Naive | Taskwise:
        """The learner for a stream that lies on the device; its initial weights depend on the seed alone."""
        with seeded(seed, "init"):
            network = self.network.build(stream.shape, stream.classes).to(device)
            if not (isinstance(network, Split) and network.above.grows):  # which has no classes yet
                shown = next(part for part in (*stream.tests, *stream.experiences) if len(part))  # tests are at hand
                look_at(network, inputs(shown.x[[0, -1]]), stream.classes)
        optimiser = OPTIMIZERS[self.optimizer](network, self, seed)
        learner = self.kind(self.settings, network, optimiser, seed, stream.rivals(), self.batch_size)
        learner.halved, learner.epochs, learner.iterations = self.halved, self.epochs, self.iterations
        return BORDER["taskwise"](learner, self.reset, self.gamma, self.own_norms) if self.border else learner

    def feed(self, stream: Stream, seed: int) -> Batches:
        """How the stream is shown to the learner."""
        return self.kind.feed(self.settings, stream, seed, self.batch_size, self.epochs, self.iterations)

    def describe(self) -> dict[str, Any]:
        """The recipe as plain values, with the names of the classes."""
        named = {"settings": self.settings, "network": self.network}
        told = {**asdict(self), **{name: {"kind": type(part).__name__, **asdict(part)} for name, part in named.items()}}
        if hasattr(self.network, "fingerprint"):
            told["network"]["started from"] = self.network.fingerprint()
        plain: dict[str, Any] = json.loads(json.dumps(told, default=text_of))
        return plain


def text_of(value: Any) -> str:
    """A place as it is written; of what is no plain value, its kind."""
    return str(value) if isinstance(value, PurePath) else name_of(value)


def completed(told: Mapping[str, Any]) -> dict[str, Any]:
    """What `Recipe.describe` gave, perhaps in an older version, with the defaults of the fields that are new since."""
    if told.get("learner") not in LEARNERS:
        return dict(told)
    kinds = {kind.__name__: kind for kind in NETWORKS.values()}
    parts = {"settings": LEARNERS[told["learner"]].Settings, "network": kinds.get(told["network"]["kind"])}
    filled = {name: {**defaults(kind), **told[name]} for name, kind in parts.items() if kind is not None}
    return {**defaults(Recipe), **told, **filled}


def defaults(kind: Any) -> dict[str, Any]:
    """The plain defaults of a dataclass, as `Recipe.describe` writes them."""
    plain = {f.name: f.default for f in fields(kind) if isinstance(f.default, int | float | str | tuple | None)}
    written: dict[str, Any] = json.loads(json.dumps(plain))
    return written


PLAIN = tuple(f.name for f in fields(Recipe) if f.name not in ("learner", "settings", "network"))


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
    hints = typing.get_type_hints(Recipe)
    plain = {name: convert(name, text, hints[name]) for name, text in pairs.items() if name in PLAIN}
    built = build(NETWORKS[network], pairs)
    recipes = {n: Recipe(n, build(kind, pairs), network=built, **plain) for n, kind in settings.items()}
    return build(StreamConfig, pairs), recipes
