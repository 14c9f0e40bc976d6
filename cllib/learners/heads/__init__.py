"""One file per method, and `build`, which makes any of them from plain settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cllib.errors import one_of, within
from cllib.learners.heads.agem import AGEM
from cllib.learners.heads.der import DER
from cllib.learners.heads.gdumb import GDumb
from cllib.learners.heads.mir import MIR
from cllib.learners.heads.replay import Replay
from cllib.learners.heads.vanilla import Vanilla
from cllib.losses import GRADIENTS
from cllib.models.classic import ClassicConfig, ClassicHead, Ensemble, Head
from cllib.models.memory_head import MemoryHead, MemoryHeadConfig
from cllib.optim import OPTIMIZERS, SGD, Adam
from cllib.streams import Stream

METHODS = ("vanilla", "er_reservoir", "er_random", "agem", "mir", "mir_released", "gdumb", "ensemble", "der", "der++")


@dataclass(frozen=True)
class LearnerConfig:
    """A method and the head it trains.

    Raises UserError at construction for impossible values. `mir_released` and `off_by_one` reproduce what the
    released code really does (rules, P7 and P8); `der`, `der++` are ours.
    """

    head: MemoryHeadConfig | ClassicConfig
    method: str = "vanilla"
    step_size: float = 0.1  # rho (--beta_m)
    weight_decay: float = 0.0
    optimizer: str = "sgd"
    loss: str = "xent"  # of replayed items the mean, of "hinge" the sum, as released ("hinge_mean": the mean)
    buffer_size: int = 24
    replay_size: int = 4  # r (--buffer_batch_size)
    gdumb_epochs: int = 10
    ensemble_size: int = 5  # --ensembled_models
    off_by_one: bool = False

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS)
        one_of("optimizer", self.optimizer, tuple(OPTIMIZERS))
        one_of("loss", self.loss, tuple(GRADIENTS))
        within("step_size", self.step_size, 0)
        within("weight_decay", self.weight_decay, 0)
        for name in ("buffer_size", "replay_size", "gdumb_epochs", "ensemble_size"):
            within(name, getattr(self, name), 1)


def heads(stream: Stream, configs: Sequence[LearnerConfig], seeds: Sequence[int], device: str | torch.device) -> Head:
    """R heads for R configurations of one kind."""
    first = configs[0].head
    if isinstance(first, MemoryHeadConfig):
        settings = [config.head for config in configs]
        return MemoryHead(stream.inputs, stream.classes, settings, seeds, device)  # type: ignore[arg-type]
    return ClassicHead(stream.inputs, stream.classes, first, seeds, device)


def build(
    stream: Stream, configs: Sequence[LearnerConfig], seeds: Sequence[int], device: str | torch.device = "cpu"
) -> Vanilla:
    """One learner that runs R (configuration, seed) pairs in one program.

    The configurations may differ in step size, weight decay and the head's `PER_RUN` numbers; all else is taken from
    the first.
    """
    config, copies = configs[0], configs[0].ensemble_size
    if config.method == "ensemble":
        head: Head = Ensemble(
            lambda s: heads(stream, [c for c in configs for _ in range(copies)], s, device), seeds, copies
        )
    else:
        head = heads(stream, configs, seeds, device)
    rates = [torch.tensor([getattr(c, name) for c in configs], device=device) for name in ("step_size", "weight_decay")]
    if config.method == "ensemble":
        rates = [rate.repeat_interleave(copies) for rate in rates]
    return learner(config, head, OPTIMIZERS[config.optimizer](*rates), stream)


def learner(config: LearnerConfig, head: Head, optimiser: SGD | Adam, stream: Stream) -> Vanilla:
    """The method's learner around a head and an optimiser."""
    if config.method in ("vanilla", "ensemble"):
        return Vanilla(head, optimiser, config.loss)
    size, batch = config.buffer_size, config.replay_size
    if config.method == "gdumb":
        return GDumb(head, optimiser, len(stream), size, batch, stream.classes, config.gdumb_epochs)
    kind, extra = _REPLAYS[config.method]
    if config.method != "er_random":
        extra = {**extra, "off_by_one": config.off_by_one}
    return kind(head, optimiser, config.loss, len(stream), size, batch, **extra)


_REPLAYS: dict[str, tuple[type[Replay], dict[str, Any]]] = {
    "er_reservoir": (Replay, {}),
    "er_random": (Replay, {"keep": "random"}),
    "agem": (AGEM, {}),
    "mir": (MIR, {}),
    "mir_released": (MIR, {"pool": 1}),
    "der": (DER, {}),
    "der++": (DER, {"beta": 0.5}),
}
