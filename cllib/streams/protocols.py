"""The experiments of brain-inspired replay (van de Ven et al. 2020), and small ones that need no download.

A protocol says what the stream is, how long it is trained on, and what the paper chose by a search: `PROTOCOLS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cllib.datasets import cifar, digits, mnist
from cllib.datasets.files import cache_folder
from cllib.datasets.labelled import Labelled, coloured, padded, resized, resplit, subset
from cllib.streams.base import Stream
from cllib.streams.scenarios import class_order, permuted, sequence, split

Load = Callable[[Path], Labelled]
FIFTH = 5  # of the small data sets one sample in so many is for tests


@dataclass(frozen=True)
class Protocol:
    """Names are the paper's: tasks; iters, batch, lr: of training; hidden: H; latent: z.

    conv: whether images go through the convolutions; tuned: whether the methods that are compared go on training those,
    as published, or keep them frozen too, which takes a tenth of the time; scenarios: those it was, or can be, run in.

    By scenario: gates (dg_prop), ablated (dg_prop without one part, or of plain replay with gates, by that part), c of
    synaptic intelligence alone, c_replay of that beside replay, and lambda of EWC. with_si: dg_prop beside synaptic
    intelligence, class by class; None: the same.
    """

    load: Load
    tasks: int = 5
    iters: int = 2000
    batch: int = 128
    lr: float = 1e-3
    hidden: int = 400
    latent: int = 100
    conv: bool = False
    tuned: bool = True
    permuted: bool = False
    scenarios: tuple[str, ...] = ("class", "task", "domain")
    gates: Mapping[str, float] = field(default_factory=lambda: {"class": 0.8, "task": 0.8, "domain": 0.8})
    ablated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    with_si: float | None = None
    c: Mapping[str, float] = field(default_factory=lambda: {"class": 0.1, "task": 10.0, "domain": 10.0})
    c_replay: Mapping[str, float] = field(default_factory=lambda: {"class": 0.1, "task": 10.0, "domain": 1.0})
    ewc: Mapping[str, float] = field(default_factory=lambda: {"class": 1e5, "task": 1e9, "domain": 1.0})


def small_digits(where: Path) -> Labelled:
    """scikit-learn's digits, every fifth for tests."""
    return resplit(digits.labelled(), FIFTH)


def large_digits(where: Path) -> Labelled:
    """The same, enlarged and grey in three channels, as the convolutions take them."""
    return coloured(resized(small_digits(where), 32))


def mnist_tests(where: Path) -> Labelled:
    """MNIST's 10,000 test images, every fifth for tests."""
    data = mnist.load("mnist", where, download=True)
    own = replace(data, name="mnist_10k", train_x=data.test_x[:1], train_y=data.test_y[:1])
    return resplit(replace(own, test_x=data.test_x[1:], test_y=data.test_y[1:]), FIFTH)


def large_mnist_tests(where: Path) -> Labelled:
    """The same, with black borders and in three channels, as the convolutions take them."""
    return coloured(padded(mnist_tests(where), 2))


def whole_mnist(where: Path) -> Labelled:
    """MNIST as it comes."""
    return mnist.load("mnist", where, download=True)


CIFAR = Protocol(
    lambda where: cifar.load("cifar100", where, download=True),
    tasks=10,
    iters=5000,
    batch=256,
    lr=1e-4,
    hidden=2000,
    conv=True,
    gates={"class": 0.7, "task": 0.0, "domain": 0.7},
    ablated={
        "feedback": {"class": 0.7, "task": 0.3},
        "class prior": {"class": 0.6, "task": 0.0},
        "distillation": {"class": 0.8, "task": 0.0},
        "internal": {"class": 0.9, "task": 0.8},
        "gates alone": {"class": 0.7, "task": 0.1},
    },
    with_si=0.6,
    c={"class": 1.0, "task": 100.0, "domain": 1.0},
    c_replay={"class": 1e8, "task": 100.0, "domain": 1e8},
    ewc={"class": 1.0, "task": 1e3, "domain": 1.0},
)
PERMUTED = Protocol(
    lambda where: padded(whole_mnist(where), 2),
    tasks=100,
    batch=256,
    lr=1e-4,
    hidden=2000,
    permuted=True,
    scenarios=("domain",),
    ablated={
        "feedback": {"domain": 0.8},
        "class prior": {"domain": 0.0},
        "distillation": {"domain": 0.6},
        "gates alone": {"domain": 0.2},
    },
)
SMALL = Protocol(small_digits, iters=200, batch=64, hidden=200, latent=20)
PROTOCOLS: dict[str, Protocol] = {
    "digits": SMALL,
    "permuted digits": replace(SMALL, tasks=10, permuted=True, scenarios=("domain",)),
    "convolved digits": replace(
        SMALL,
        load=large_digits,
        conv=True,
        tuned=False,
        gates={"class": 0.7, "task": 0.7, "domain": 0.7},
    ),
    "MNIST-10k": Protocol(mnist_tests, iters=200),
    "convolved MNIST-10k": replace(
        SMALL,
        load=large_mnist_tests,
        batch=128,
        hidden=400,
        latent=100,
        conv=True,
        tuned=False,
        gates={"class": 0.7, "task": 0.7, "domain": 0.7},
    ),
    "split MNIST": Protocol(whole_mnist),
    "permuted MNIST": PERMUTED,
    "CIFAR-10": replace(CIFAR, load=lambda where: cifar.load("cifar10", where, download=True), tasks=5),
    "CIFAR-100": CIFAR,
}


def protocol_stream(
    name: str,
    scenario: str,
    tasks: int | None = None,
    order_seed: int | None = None,
    data_dir: str | None = None,
    train_size: int | None = None,
    permutation_seed: int = 0,
) -> Stream:
    """The stream of a protocol, called "NAME, SCENARIO".

    tasks: None: as the protocol has; order_seed: draws the order of the classes, None: as numbered; data_dir: where the
    data lie or are downloaded to (the cache folder where None); train_size: only the first so many of each class.
    Raises UserError for data that cannot be had, or classes that do not divide.
    """
    how = PROTOCOLS[name]
    data = how.load(Path(data_dir) if data_dir else cache_folder())
    data = subset(data, train_size) if train_size else data
    count = tasks or how.tasks
    if how.permuted:
        parts = permuted(data, count, permutation_seed)
    else:
        parts = split(data, count, None if order_seed is None else class_order(data.classes, order_seed))
    notes = [f"{count} tasks"] if tasks else []
    notes += [f"class order {order_seed}"] if order_seed is not None and not how.permuted else []
    notes += [f"{train_size} of each class"] if train_size else []
    stream = sequence(f"{name}, {scenario}", parts, scenario)
    return replace(stream, whole=train_size is None and (tasks is None or tasks == how.tasks), note=", ".join(notes))
