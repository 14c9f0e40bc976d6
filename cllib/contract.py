"""What every learner promises, as checks that anybody can run on a learner of their own (cf. scikit-learn's
`check_estimator`).

    from cllib.contract import check_learner
    check_learner(Recipe("mine"))     # raises ContractBroken with a sentence that says what is wrong, and where to look

A check takes a configuration, `Recipe` or `LearnerConfig`, and trains it on a tiny stream, in batches of five.
"""

import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from joblib.externals.loky import ProcessPoolExecutor
from torch import Tensor, nn

from cllib.checkpoints import Keeper, State, digest, read, write
from cllib.datasets.labelled import Labelled
from cllib.errors import UserError
from cllib.exaggeration import Exaggeration
from cllib.experiments import Config, Program
from cllib.feeds import Batches
from cllib.learners import LEARNERS
from cllib.learners.heads import METHODS, LearnerConfig
from cllib.models.binary import BinaryMLP
from cllib.models.classic import ClassicConfig
from cllib.models.convit import ConViT
from cllib.models.memory_head import MemoryHeadConfig
from cllib.models.networks import MLP, classifier, logits_of
from cllib.models.norms import transductive
from cllib.models.replay_vae import ReplayVAE
from cllib.recipes import Recipe
from cllib.streams.base import Stream, flattened, inputs
from cllib.streams.scenarios import sequence, split
from cllib.training import Learner, Outcome, train

SEED = 7
GENERATOR_BYTES = 5056  # of a CPU generator's state: no memory of samples
ALLOWANCE = 1.05, 2048  # a learner's state may exceed the bytes it owns up to by this factor and so many bytes


class ContractBroken(AssertionError):
    """A learner does not keep a promise; the message says which, and what to do."""


def require(kept: bool, sentence: str) -> None:
    """Raise ContractBroken with the sentence unless the promise is kept."""
    if not kept:
        raise ContractBroken(sentence)


# --- the stage ---


def tiny_stream(scenario: str = "class") -> Stream:
    """Three experiences of two classes, 24 samples each, [1, 4, 4]; the classes are blobs a learner can tell apart."""
    draws = torch.Generator().manual_seed(0)
    centres = torch.rand(6, 1, 4, 4, generator=draws)

    def blobs(each: int) -> tuple[Tensor, Tensor]:
        y = torch.arange(6).repeat(each)
        return (centres[y] + 0.2 * torch.randn(len(y), 1, 4, 4, generator=draws)).clamp(0, 1), y

    data = Labelled("blobs", *blobs(12), *blobs(5), names=tuple("abcdef"))
    return sequence("tiny", split(data, 3), scenario)


@dataclass(frozen=True)
class Stage:
    """A network with a part that must not learn, a linear layer, before layers that do."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """x: `[B, *shape]` to logits `[B, classes]`."""
        body = nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), 12), nn.ReLU())
        return nn.Sequential(body.requires_grad_(False), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, classes))


@dataclass(frozen=True)
class Noisy:
    """A network with everything that has a state: BatchNorm and dropout."""

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """x: `[B, *shape]` to logits `[B, classes]`."""
        first = nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2))
        return nn.Sequential(first, nn.Linear(12, classes))


def candidates() -> dict[str, Config]:
    """Every learner of the package, small, with momentum: what the contract is held against in the tests."""
    small = {"buffer_size": 10, "replay_size": 4, "memory_epochs": 2, "fisher_samples": 8}
    made: dict[str, Config] = {}
    for name, kind in LEARNERS.items():
        own = {f.name for f in fields(kind.Settings)}
        settings = kind.Settings(**{k: v for k, v in small.items() if k in own})
        made[name] = Recipe(name, settings, Noisy(), momentum=0.9, step_size=0.02, batch_size=5, epochs=2)
    for name in ("der++", "gdumb"):  # images in bytes
        settings = replace(made[name].settings, dtype="pixels")  # type: ignore[union-attr]
        made[f"{name} pixels"] = replace(made[name], settings=settings)
    made |= metaplastic_candidates()
    made |= brain_inspired_candidates()
    made |= transformer_candidates()
    switched: dict[str, Any] = {"schedule": "legacy", "unique_classes": False, "unseen": "left", "reset_head": True}
    numbers: dict[str, Any] = {"dtype": "int8", "strength": 0.5, "later_epochs": 3, "later_step_size": 0.01}
    settings = LEARNERS["latent"].Settings(buffer_size=10, **switched, **numbers)
    made["latent switched"] = Recipe("latent", settings, Noisy(), momentum=0.9, step_size=0.02, batch_size=5, epochs=2)
    heads: dict[str, ClassicConfig | MemoryHeadConfig] = {
        "mlp": ClassicConfig("mlp", 6),
        "mh": MemoryHeadConfig(units=6, use_threshold=5, age_threshold=5),
    }
    for name, head in heads.items():
        for method in METHODS:
            made[f"{name} {method}"] = LearnerConfig(head, method, buffer_size=6, replay_size=3, gdumb_epochs=2)
    return made


def metaplastic_candidates() -> dict[str, Config]:
    """What binarized networks add: the optimiser that consolidates, borders between tasks, signs that are held."""
    told: dict[str, Any] = {"batch_size": 5, "epochs": 2, "step_size": 0.02}
    adam: dict[str, Any] = {"optimizer": "metaplastic", "meta": (1.35,), "weight_decay": 1e-7, **told}
    border: dict[str, Any] = {"reset": True, "gamma": 1.1, "own_norms": True}
    network = BinaryMLP(hidden=(9,))
    made: dict[str, Config] = {
        "metaplastic": Recipe("naive", network=Noisy(), meta_scope="matrices", **border, **adam),
        "metaplastic binary": Recipe("naive", network=network, **border, **adam),
    }
    for name in ("ewc", "si"):
        settings = LEARNERS[name].Settings(values="signs", **({"fisher_samples": 8} if name == "ewc" else {}))
        made[f"{name} signs"] = Recipe(name, settings, network, **adam)
    return made


def brain_inspired_candidates() -> dict[str, Config]:
    """Networks that dream for themselves, with everything that holds them and keeps their classes apart."""
    everything: dict[str, Any] = {"repulsion": 0.1, "recon_repulsion": 0.01, "recon_attraction": 0.01}
    exaggerate = Exaggeration(**everything, contrastive=0.01, divergence="true js", factor=20.0)
    settings = LEARNERS["generative"].Settings(replay_size=4, si=0.5, exaggerate=exaggerate)
    network = ReplayVAE(hidden=12, latent=3, gates=0.5, modes=2)
    told: dict[str, Any] = {"optimizer": "adam", "step_size": 0.02, "batch_size": 5, "epochs": 2}
    by_task = LEARNERS["generative"].Settings(distill=False)
    return {
        "brain-inspired": Recipe("generative", settings, network, **told),
        "brain-inspired by task": Recipe("generative", by_task, replace(network, tasks=3, prior="standard"), **told),
    }


def transformer_candidates() -> dict[str, Config]:
    """A transformer that grows, g frozen, with every noise and both memories; the same as released; image replay."""
    told: dict[str, Any] = {"optimizer": "adamw", "step_size": 0.02, "batch_size": 5, "epochs": 2}
    network = ConViT(patch=2, dim=8, heads=2, layers=3)
    small: dict[str, Any] = {"buffer_size": 10, "ema_rate": 0.3, "ema": 0.5, "tune_epochs": 2}
    released: dict[str, Any] = {"recipe": "released", "dtype": "float16", "warmup_epochs": 1, "gate": "batch"}
    kinds = {
        "birt transformer": {"label_p": 0.5, "extrapolation": 0.5},
        "birt released": {**released, "freeze_old": True},
        "birt images": {"replay": "images"},
    }
    made = {name: LEARNERS["birt"].Settings(**small, **own) for name, own in kinds.items()}
    return {name: Recipe("birt", settings, network, **told) for name, settings in made.items()}


class Stopped(Exception):
    """The stand-in for a kill, where a real one would take too long."""


class StopAt(Keeper):
    """Saves once, at the n-th opportunity, and stops the run there."""

    def __init__(self, path: Path, cut: int) -> None:
        super().__init__(path, "contract")
        self.left = cut

    def due(self, step: int, border: bool = False) -> bool:
        self.left -= 1
        return self.left == 0

    def save(self, state: State) -> None:
        super().save(state)
        raise Stopped


def small(config: Config) -> Config:
    """The configuration with batches that fit the tiny stream."""
    return config if isinstance(config, LearnerConfig) else replace(config, batch_size=5, epochs=2, iterations=None)


def trained(
    config: Config, seed: int = SEED, stream: Stream | None = None, device: str = "cpu", **options: Any
) -> tuple[Learner, Outcome]:
    """The configuration's learner after the tiny stream, and what the loop measured."""
    stream = tiny_stream() if stream is None else stream
    stream = (flattened(stream) if isinstance(config, LearnerConfig) else stream).to(device)
    learner, feed = Program((small(config),), (seed,)).start(stream, device)
    return learner, train(learner, stream, feed, progress=False, **options)


def shown(config: Config) -> Stream:
    """The tiny stream in the form the learner takes."""
    return flattened(tiny_stream()) if isinstance(config, LearnerConfig) else tiny_stream()


def samples(config: Config) -> Tensor:
    """Test samples, `[T, ...]`."""
    return inputs(shown(config).tests[0].x)


def before(config: Config, steps: int = 0) -> tuple[Learner, Iterator[tuple[Tensor, Tensor]]]:
    """A learner in its first experience after so many steps, and the batches that come next."""
    stream = shown(config)
    learner, feed = Program((small(config),), (SEED,)).start(stream, "cpu")
    learner.begin(stream.experiences[0])
    batches = feed.batches(0)
    for _ in range(steps):
        learner.observe(*next(batches))
    return learner, batches


def state(learner: Learner) -> str:
    """A digest of all that a learner says it is."""
    try:
        return digest(learner.state_dict())
    except TypeError as error:
        raise ContractBroken(f"state_dict holds what a checkpoint cannot: {error}") from error


# --- the promises ---


def check_shapes(config: Config) -> None:
    """`observe` and `predict` give one row of finite logits a sample, without a graph behind them."""
    learner, batches = before(config)
    x, y = next(batches)
    tests = samples(config)
    said = {
        "observe": (learner.observe(x, y), y.shape),
        "predict": (learner.predict(tests), (*y.shape[:-1], len(tests))),
    }
    for name, (logits, rows) in said.items():
        require(isinstance(logits, Tensor), f"{name} returned {type(logits).__name__}: it must return logits, a tensor")
        wanted = [*rows, tiny_stream().classes]
        require(
            list(logits.shape) == wanted, f"{name} returned {list(logits.shape)} where logits {wanted} were expected"
        )
        require(
            not logits.requires_grad,
            f"{name} returned logits with a graph: detach them, or memory grows with the steps",
        )
        require(logits.dtype == x.dtype, f"{name} returned {logits.dtype} for samples in {x.dtype}")
        require(bool(logits.isfinite().all()), f"{name} returned logits that are not finite numbers on harmless data")
    check_before_step(config)


def check_before_step(config: Config) -> None:
    """`observe` returns what the network said *before* the step: online accuracy is measured with it."""
    plain = (
        config if isinstance(config, LearnerConfig) else replace(config, network=MLP((6,)))
    )  # the same in both modes
    learner, batches = before(plain, 2)
    x, y = next(batches)
    network = getattr(learner, "network", None)
    expected = learner.predict(x[0]) if network is None else logits_of(network, x)
    require(
        torch.allclose(learner.observe(x, y), expected, atol=1e-5),
        "observe returned other logits than the network gave just before: return those from before the step",
    )


def check_seeds(config: Config) -> None:
    """The same seed gives the same bits, another seed others."""
    once, again, other = (trained(config, seed)[0] for seed in (SEED, SEED, SEED + 1))
    require(
        state(once) == state(again),
        "two runs with one seed differ: draw from randomness.generator(seed, purpose), never from an unseeded source",
    )
    require(state(once) != state(other), "runs with different seeds are equal: the seed does not reach the learner")


def check_ambient(config: Config) -> None:
    """What other code draws does not matter."""
    states = []
    for ambient in (1, 2):
        torch.manual_seed(ambient)
        np.random.seed(ambient)
        random.seed(ambient)
        states.append(state(trained(config)[0]))
    require(
        states[0] == states[1],
        "the result depends on generators that belong to nobody (random, numpy.random, torch's before training): "
        "use randomness.generator(seed, purpose)",
    )


def check_state(config: Config) -> None:
    """`state_dict` holds plain values and tensors of its own, and a loaded learner says the same."""
    learner, batches = before(config, 3)
    kept = learner.state_dict()
    sealed = state(learner)
    learner.observe(*next(batches))
    require(
        digest(kept) == sealed,
        "a state_dict changed while the learner went on: return copies of the tensors (clone), not themselves",
    )
    other, _ = before(config)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "checkpoint.pt", kept, "contract")
        other.load_state_dict(read(Path(folder) / "checkpoint.pt", "contract"))
    require(state(other) == sealed, "load_state_dict followed by state_dict does not give the same state back")
    other.observe(*next(batches))
    require(
        digest(kept) == sealed,
        "training after load_state_dict changed the loaded state: copy what you take over (clone)",
    )


def check_resume(config: Config, cuts: tuple[int, ...] = (1, 4, 10, 11, 12, 21, 24, 32)) -> None:
    """Stopped after any step or experience and started again, a run ends with the bits of one that was not."""
    learner, wanted = trained(config)
    for cut in cuts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.pt"
            with suppress(Stopped):
                trained(config, keeper=StopAt(path, cut))
            resumed, found = trained(config, keeper=Keeper(path, "contract", keep=False))
        require(
            state(resumed) == state(learner) and same(found, wanted),
            f"stopped after step {cut} and resumed, the run ends elsewhere than without the stop: what later steps "
            "depend on (generators, counters, memories, teachers, optimiser) must be in state_dict",
        )


def same(found: Outcome, wanted: Outcome) -> bool:
    """Whether two runs measured the same, times aside."""
    names = (
        "test",
        "validation",
        "masked",
        "by_class",
        "held",
        "confusion",
        "online",
        "samples",
        "curve",
        "steps",
        "scrambles",
        "diverged",
    )
    if found.moments.keys() != wanted.moments.keys():
        return False
    pairs = [(found.moments[name], values) for name, values in wanted.moments.items()]
    pairs += [(getattr(found, name), getattr(wanted, name)) for name in names]
    return all(np.array_equal(one, other) for one, other in pairs)


def check_memory(config: Config) -> None:
    """A buffer holds no more than its size, and `bytes` owns up to all that is kept."""
    learner, _ = trained(config)
    size = getattr(getattr(config, "settings", config), "buffer_size", None)
    parts: dict[str, list[Tensor]] = learner.parts() if hasattr(learner, "parts") else {}
    for part in parts.get("buffer", []):
        require(
            size is None or len(part) <= size,
            f"the buffer holds {len(part)} samples, buffer_size is {size}: the memory must be bounded",
        )
    held, told = sum(kept_bytes(learner.state_dict())), sum(learner.bytes().values())
    require(
        held <= ALLOWANCE[0] * told + ALLOWANCE[1],
        f"state_dict holds {held} bytes, bytes() owns up to {told}: name every tensor that is kept in parts()",
    )
    if isinstance(config, LearnerConfig):
        return  # heads draw the indices of a whole stream beforehand: a matter of speed, not of memory
    lying = sum(t.nbytes for t in {id(t): t for t in tensors_in(vars(learner))}.values())
    require(
        lying <= ALLOWANCE[0] * told + ALLOWANCE[1],
        f"the learner holds tensors of {lying} bytes, bytes() owns up to {told}: memory that grows with the stream, or "
        "leftovers of a step?",
    )


def tensors_in(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Every tensor that can be reached from a value, gradients aside."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors_in(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type | ModuleType):
        yield from tensors_in(vars(value), seen)


def kept_bytes(value: Any) -> Iterator[int]:
    """Bytes of every tensor in a tree, generators aside."""
    if isinstance(value, Tensor):
        yield 0 if value.dtype == torch.uint8 and value.numel() % GENERATOR_BYTES == 0 else value.nbytes
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from kept_bytes(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from kept_bytes(item)


def check_frozen(config: Config) -> None:
    """What needs no gradient gets none, and keeps its bits."""
    if isinstance(config, LearnerConfig):
        return  # heads have no frozen part: it is the features
    learner, _ = trained(replace(config, network=Stage(), weight_decay=0.01))
    fresh, _ = before(replace(config, network=Stage()))
    for (name, p), old in zip(frozen(learner), frozen(fresh), strict=True):
        require(p.grad is None, f"frozen parameter {name} has a gradient: skip what does not require one")
        require(torch.equal(p, old[1]), f"frozen parameter {name} changed: skip what does not require a gradient")


def frozen(learner: Any) -> list[tuple[str, nn.Parameter]]:
    """The parameters of the stage's frozen part."""
    return [(name, p) for name, p in learner.network.named_parameters() if name.startswith("0.")]


def check_off(config: Config) -> None:
    """With its strength at nothing, a learner is plain training, bit for bit."""
    if isinstance(config, LearnerConfig) or config.kind.off is None:
        return
    for scenario in ("class", "task"):
        stream = tiny_stream(scenario)
        off = replace(config, settings=replace(config.settings, **config.kind.off))
        plain = replace(config, learner="naive", settings=None)
        (mine, first), (naive, second) = (trained(c, stream=stream) for c in (off, plain))
        equal = digest(mine.state_dict()["network"]) == digest(naive.state_dict()["network"])
        require(
            equal and same(first, second),
            f"with {dict(config.kind.off)} the learner differs from naive training (scenario {scenario!r}): what is "
            "switched off must neither draw from shared generators nor touch the gradient",
        )


def check_told(config: Config) -> None:
    """Where the experience is told, only its own classes compete: the rows of others get no gradient."""
    if isinstance(config, LearnerConfig):
        return  # heads take no experience labels
    stream, plain = tiny_stream("task"), replace(config, network=MLP((6,)), weight_decay=0.0)
    learner: Any = Program((small(plain),), (SEED,)).start(stream, "cpu")[0]
    learner.begin(stream.experiences[0])
    old = classifier(learner.network).bias.detach().clone()
    for x, y in Batches(stream, SEED, 5).batches(0):
        learner.observe(x, y)
    others = torch.tensor([c for c in range(stream.classes) if c not in stream.experiences[0].classes])
    require(
        torch.equal(classifier(learner.network).bias.detach()[others], old[others]),
        "rows of classes that do not compete were trained: use self.cross_entropy, which knows the rivals of a label",
    )


def check_learns(config: Config) -> None:
    """Two classes that a line can part, and nothing before them to remember, are learned."""
    if isinstance(config, LearnerConfig):
        return  # two dozen single samples are too few for a head to be judged by
    able = replace(config, step_size=0.1, network=MLP((16,)), batch_size=5, epochs=20)
    stream = replace(shown(config), experiences=shown(config).experiences[:1], tests=shown(config).tests[:1])
    learner, feed = Program((able,), (SEED,)).start(stream, "cpu")
    accuracy = float(train(learner, stream, feed, progress=False).test[0, -1, -1])
    require(accuracy > 0.7, f"accuracy {accuracy:.2f} on two classes just learned, 0.50 is a guess: does it step?")


def check_predict(config: Config) -> None:
    """`predict` changes nothing, and says the same twice; of a sample alone too, unless its norms look at the batch."""
    learner, _ = before(config, 2)
    x = samples(config)
    copy, was, drawn, modes = x.clone(), state(learner), torch.get_rng_state(), training_modes(learner)
    once, again = learner.predict(x), learner.predict(x)
    require(
        (hasattr(learner, "network") and transductive(learner.network))
        or torch.allclose(learner.predict(x[:3]), once[..., :3, :], atol=1e-5),
        "predict says something else about a sample when others are asked with it: use evaluation mode",
    )
    require(torch.equal(once, again), "predict says something else the second time: use evaluation mode (no dropout)")
    require(state(learner) == was, "predict changed the learner's state: BatchNorm in training mode, or a counter?")
    require(torch.equal(torch.get_rng_state(), drawn), "predict drew from torch's global generator")
    require(training_modes(learner) == modes, "predict left modules in another mode: restore train() or eval()")
    require(torch.equal(x, copy), "predict changed the samples it was shown")


def training_modes(learner: Any) -> list[bool]:
    """Training or evaluation, of every module."""
    return [module.training for module in learner.network.modules()] if hasattr(learner, "network") else []


def check_batch(config: Config) -> None:
    """`observe` leaves its batch alone, and keeps copies of it, no views."""
    learner, batches = before(config, 1)
    x, y = (part.clone() for part in next(batches))
    copies = x.clone(), y.clone()
    learner.observe(x, y)
    require(torch.equal(x, copies[0]) and torch.equal(y, copies[1]), "observe changed the batch it was shown")
    was = state(learner)
    x.zero_()
    y.zero_()
    require(
        state(learner) == was, "the learner keeps a view of its batch: store copies (clone, or index into a buffer)"
    )


def check_device(config: Config) -> None:
    """Everything lives where the network lives, so that on another device a run ends with the bits of the CPU's.

    Shown on `virtual_device`, which computes on the CPU, refuses what an accelerator refuses, and notices what it would
    be waited for: values are not fetched back step by step. Learners that must see some say so (`waits`; `chooses`, if
    only between experiences). In a process of its own, for torch does not let go of a device, and takes none that comes
    after the first backward pass; unless the device is there.
    """
    kind = None if isinstance(config, LearnerConfig) else config.kind
    if f"{__package__}.virtual_device" in sys.modules:
        complaint = elsewhere(config, kind)
    else:
        with ProcessPoolExecutor(1) as apart:
            complaint = apart.submit(elsewhere, config, kind).result()
    require(not complaint, complaint)


MIXES = (
    "the learner mixes devices or waits for values: make tensors with device=x.device, and keep .item(), .tolist() and "
    "`if tensor` out of the steps: "
)
ENDS = (
    "on another device the learner ends elsewhere: make its generators with randomness.generator(seed, purpose, device)"
    ", and let no step depend on where tensors are"
)


def elsewhere(config: Config, kind: Any) -> str:
    """What is wrong on another device, or nothing. kind: the class that the configuration calls by its name."""
    from cllib import virtual_device  # which makes itself known to torch, for the rest of the process

    if not isinstance(config, LearnerConfig):
        LEARNERS[config.learner] = kind
    options: dict[str, Any] = {"probe_every": 3, "track_norms": True, "track_classes": True}
    with virtual_device.alike():
        learner, wanted = trained(config, **options)
        try:
            other, found = trained(config, device=virtual_device.NAME, **options)
            fetched = [] if isinstance(config, LearnerConfig) else fetches(config, virtual_device)
        except (RuntimeError, NotImplementedError) as error:
            return MIXES + str(error).splitlines()[0][:150]
    if fetched:
        return MIXES + ", ".join(fetched)
    return "" if state(other) == state(learner) and same(found, wanted) else ENDS


def fetches(config: Recipe, device: Any) -> list[str]:
    """What a learner has fetched from a device where it says it does not."""
    stream, found = shown(config).to(device.NAME), Counter[str]()
    learner, _ = Program((small(config),), (SEED,)).start(stream, device.NAME)

    def watched(may: bool, act: Callable[..., Any], *given: Any) -> None:
        before = device.fetches.copy()
        act(*given)
        found.update({} if may else device.fetches - before)

    for present in stream.experiences[:2]:
        learner.begin(present)
        for k in range(3):
            index = torch.arange(5 * k, 5 * k + 5, device=device.NAME)
            watched(config.kind.waits, learner.observe, present.x[index], present.y[index])
        watched(config.kind.waits or config.kind.chooses, learner.finish, present)
    watched(config.kind.waits, learner.predict, stream.tests[0].x)
    return [*found]


def check_settings(config: Config) -> None:
    """An impossible setting is refused at construction, by its name."""
    config_is_head = isinstance(config, LearnerConfig)
    settings: Any = config if isinstance(config, LearnerConfig) else config.settings
    for field in fields(settings):
        value = getattr(settings, field.name)
        if not isinstance(value, int | float | str | None) or (isinstance(value, bool) and config_is_head):
            continue
        wrong: list[Any] = ["no such thing"] if isinstance(value, str) else [-1, float("nan"), "three"]
        wrong += [2.5] if isinstance(value, int) and not isinstance(config, LearnerConfig) else []
        for bad in wrong:
            try:
                replace(settings, **{field.name: bad})
            except UserError as error:
                require(field.name in str(error), f"the refusal of {field.name} = {bad!r} does not name it: {error}")
            else:
                raise ContractBroken(f"{field.name} = {bad!r} is accepted: check settings in __post_init__")


CHECKS: dict[str, Callable[[Config], None]] = {
    "shapes": check_shapes,
    "seeds": check_seeds,
    "ambient": check_ambient,
    "state": check_state,
    "resume": check_resume,
    "memory": check_memory,
    "frozen": check_frozen,
    "off": check_off,
    "predict": check_predict,
    "told": check_told,
    "learns": check_learns,
    "batch": check_batch,
    "device": check_device,
    "settings": check_settings,
}


def check_learner(config: Config) -> None:
    """Hold a learner to all promises. Raises ContractBroken at the first that is not kept."""
    for name, check in CHECKS.items():
        try:
            check(config)
        except ContractBroken as broken:
            raise ContractBroken(f"{name}: {broken}") from None
        except Exception as error:
            raise ContractBroken(f"{name}: the learner raised {type(error).__name__}: {error}") from error
