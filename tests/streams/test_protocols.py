"""The experiments of brain-inspired replay: the numbers they are run with, and what their streams hold."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cllib.datasets import digits
from cllib.datasets.labelled import Labelled
from cllib.errors import UserError
from cllib.randomness import generator
from cllib.streams import protocols
from cllib.streams.base import Experience, inputs
from cllib.streams.protocols import PROTOCOLS, protocol_stream

# --- the table (1.1, 1.5, 1.8, 7.2) ---


@pytest.mark.parametrize(
    ("name", "tasks", "iters", "batch", "lr", "hidden", "latent"),
    [
        ("split MNIST", 5, 2000, 128, 1e-3, 400, 100),
        ("permuted MNIST", 100, 2000, 256, 1e-4, 2000, 100),
        ("CIFAR-100", 10, 5000, 256, 1e-4, 2000, 100),
        ("CIFAR-10", 5, 5000, 256, 1e-4, 2000, 100),
        ("digits", 5, 200, 64, 1e-3, 200, 20),
        ("permuted digits", 10, 200, 64, 1e-3, 200, 20),
        ("convolved digits", 5, 200, 64, 1e-3, 200, 20),
        ("MNIST-10k", 5, 200, 128, 1e-3, 400, 100),
        ("convolved MNIST-10k", 5, 200, 128, 1e-3, 400, 100),
    ],
)
def test_1_1_what_is_trained_how_long(
    name: str, tasks: int, iters: int, batch: int, lr: float, hidden: int, latent: int
) -> None:
    how = PROTOCOLS[name]
    assert (how.tasks, how.iters, how.batch, how.lr) == (tasks, iters, batch, lr)
    assert (how.hidden, how.latent) == (hidden, latent)


def test_1_1_which_go_through_the_convolutions_and_which_permute() -> None:
    conv = {"CIFAR-10", "CIFAR-100", "convolved digits", "convolved MNIST-10k"}
    assert {name for name, how in PROTOCOLS.items() if how.conv} == conv
    assert {name for name, how in PROTOCOLS.items() if how.permuted} == {"permuted digits", "permuted MNIST"}
    assert all(
        how.scenarios == (("domain",) if how.permuted else ("class", "task", "domain")) for how in PROTOCOLS.values()
    )
    assert PROTOCOLS["CIFAR-100"].tuned, "only brain-inspired replay freezes them, as published"


@pytest.mark.parametrize(
    ("name", "scenario", "gates", "c", "c_replay", "ewc"),
    [
        ("split MNIST", "class", 0.8, 0.1, 0.1, 1e5),
        ("split MNIST", "task", 0.8, 10, 10, 1e9),
        ("permuted MNIST", "domain", 0.8, 10, 1, 1),
        ("CIFAR-100", "class", 0.7, 1, 1e8, 1),
        ("CIFAR-100", "task", 0.0, 100, 100, 1e3),
    ],
)
def test_1_5_1_8_what_the_paper_chose(
    name: str, scenario: str, gates: float, c: float, c_replay: float, ewc: float
) -> None:
    how = PROTOCOLS[name]
    assert (how.gates[scenario], how.c[scenario], how.c_replay[scenario], how.ewc[scenario]) == (
        gates,
        c,
        c_replay,
        ewc,
    )


def test_1_5_gates_beside_synaptic_intelligence() -> None:
    assert PROTOCOLS["CIFAR-100"].with_si == 0.6 and PROTOCOLS["split MNIST"].with_si is None
    for name in ("convolved digits", "convolved MNIST-10k"):
        assert PROTOCOLS[name].gates["class"] == 0.7
    assert PROTOCOLS["digits"].gates == PROTOCOLS["MNIST-10k"].gates == dict.fromkeys(("class", "task", "domain"), 0.8)


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_scenario_of_a_protocol_has_its_numbers(name: str) -> None:
    how = PROTOCOLS[name]
    for values in (how.gates, how.c, how.c_replay, how.ewc):
        assert set(how.scenarios) <= set(values) and all(value >= 0 for value in values.values())


# --- streams that need no download ---


def samples(parts: tuple[Experience, ...]) -> int:
    return sum(len(part) for part in parts)


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
@pytest.mark.parametrize(("name", "shape"), [("digits", (1, 8, 8)), ("convolved digits", (3, 32, 32))])
def test_7_2_digits_are_five_tasks_of_two_and_every_fifth_is_a_test(
    name: str, shape: tuple[int, ...], scenario: str
) -> None:
    stream = protocol_stream(name, scenario)
    assert stream.name == f"{name}, {scenario}" and stream.scenario == scenario and stream.shape == shape
    assert stream.classes == (2 if scenario == "domain" else 10) and stream.whole and stream.note == ""
    assert len(stream.experiences) == len(stream.tests) == 5 and not stream.validations
    assert samples(stream.experiences) == 1437 and samples(stream.tests) == 360
    for k, part in enumerate(stream.experiences):
        own = (0, 1) if scenario == "domain" else (2 * k, 2 * k + 1)
        assert part.classes == own == tuple(part.y.unique().tolist()) == tuple(stream.tests[k].y.unique().tolist())
    assert (stream.rivals() is None) == (scenario != "task")


def test_7_2_tests_are_the_samples_whose_number_divides_by_five() -> None:
    x, y = digits.load()
    stream = protocol_stream("digits", "class")
    chosen = torch.arange(1797) % 5 == 0
    for part, rows in ((stream.tests, chosen), (stream.experiences, ~chosen)):
        for k, piece in enumerate(part):
            own = rows & (y // 2 == k)
            assert torch.equal(piece.x.flatten(1), x[own]) and torch.equal(piece.y, y[own])


def test_7_2_permuted_digits_are_ten_copies_with_the_first_as_it_is() -> None:
    stream, plain = protocol_stream("permuted digits", "domain"), protocol_stream("digits", "class", tasks=1)
    assert len(stream.experiences) == 10 and stream.classes == 10 and stream.shape == (1, 8, 8)
    first = plain.experiences[0].x
    assert torch.equal(stream.experiences[0].x, first)
    for part in stream.experiences[1:]:
        assert len(part) == 1437 and not torch.equal(part.x, first)
        assert torch.equal(part.x.flatten(1).sort(1).values, first.flatten(1).sort(1).values)
    again, other = (protocol_stream("permuted digits", "domain", permutation_seed=s) for s in (0, 1))
    assert torch.equal(again.experiences[3].x, stream.experiences[3].x)
    assert not torch.equal(other.experiences[3].x, stream.experiences[3].x)


def test_7_2_digits_for_the_convolutions_are_grey() -> None:
    x = protocol_stream("convolved digits", "class").tests[0].x
    assert torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2]) and 0 <= x.min() < x.max() <= 1


def test_1_1_the_order_of_classes_belongs_to_its_seed() -> None:
    x, y = digits.load()
    natural, one, again, other = (protocol_stream("digits", "class", order_seed=s) for s in (None, 12, 12, 13))

    def order(stream: Any) -> list[int]:
        """Which digit each label stands for, known by its pixels."""
        known = {row.numpy().tobytes(): int(label) for row, label in zip(x, y, strict=True)}
        firsts = [part.x[part.y == c][0] for part in stream.experiences for c in part.classes]
        return [known[row.flatten().numpy().tobytes()] for row in firsts]

    assert order(natural) == list(range(10)) and sorted(order(one)) == list(range(10))
    assert order(one) == order(again) and len({tuple(order(s)) for s in (natural, one, other)}) == 3
    assert one.whole and one.note == "class order 12" and natural.note == ""
    assert protocol_stream("permuted digits", "domain", order_seed=12).note == "", "nothing to order"


def test_other_numbers_of_tasks_and_samples_are_not_the_whole() -> None:
    fewer = protocol_stream("digits", "class", tasks=2)
    assert not fewer.whole and fewer.note == "2 tasks" and fewer.experiences[0].classes == tuple(range(5))
    assert protocol_stream("digits", "class", tasks=5).whole
    small = protocol_stream("digits", "class", train_size=7)
    assert not small.whole and small.note == "7 of each class"
    assert [len(part) for part in small.experiences] == [14] * 5 and samples(small.tests) == 360
    both = protocol_stream("digits", "class", tasks=2, order_seed=3, train_size=7)
    assert both.note == "2 tasks, class order 3, 7 of each class" and not both.whole
    with pytest.raises(UserError, match=r"^experiences = 3: 10 classes divide into 1, 2, 5, 10"):
        protocol_stream("digits", "class", tasks=3)


# --- streams that would be downloaded, from stand-ins ---


def stand_in(name: str, shape: tuple[int, ...], classes: int) -> Labelled:
    """Random images class after class, three of each to train and five to test."""
    draws = generator(0, name)

    def part(each: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(256, (each * classes, *shape), dtype=torch.uint8, generator=draws)
        return x, torch.arange(each * classes) // each

    return Labelled(name, *part(3), *part(5), names=tuple(map(str, range(classes))))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """What is loaded, and from where."""
    heard: list[tuple[str, Path]] = []

    def load(name: str, folder: Path, download: bool) -> Labelled:
        heard.append((name, folder))
        assert download
        shape, classes = ((1, 28, 28), 10) if name == "mnist" else ((3, 32, 32), 100 if name == "cifar100" else 10)
        return stand_in(name, shape, classes)

    for module in (protocols.mnist, protocols.cifar):
        monkeypatch.setattr(module, "load", load)
    return heard


@pytest.mark.parametrize(
    ("name", "source", "scenario", "shape", "sizes"),
    [
        ("split MNIST", "mnist", "class", (1, 28, 28), (30, 50)),
        ("MNIST-10k", "mnist", "class", (1, 28, 28), (40, 10)),
        ("convolved MNIST-10k", "mnist", "class", (3, 32, 32), (40, 10)),
        ("permuted MNIST", "mnist", "domain", (1, 32, 32), (3000, 5000)),
        ("CIFAR-10", "cifar10", "class", (3, 32, 32), (30, 50)),
        ("CIFAR-100", "cifar100", "task", (3, 32, 32), (300, 500)),
    ],
)
def test_1_1_what_is_downloaded_and_in_what_shape(
    asked: list[tuple[str, Path]],
    tmp_path: Path,
    name: str,
    source: str,
    scenario: str,
    shape: tuple[int, ...],
    sizes: tuple[int, int],
) -> None:
    stream = protocol_stream(name, scenario, data_dir=str(tmp_path))
    assert asked == [(source, tmp_path)]
    assert stream.shape == shape and (samples(stream.experiences), samples(stream.tests)) == sizes
    assert len(stream.experiences) == PROTOCOLS[name].tasks and stream.whole


def test_7_2_mnist_10k_is_made_of_the_test_images_alone(asked: list[tuple[str, Path]]) -> None:
    source = stand_in("mnist", (1, 28, 28), 10)
    stream = protocol_stream("MNIST-10k", "class")
    chosen = torch.arange(50) % 5 == 0
    for part, rows in ((stream.tests, chosen), (stream.experiences, ~chosen)):
        assert torch.equal(torch.cat([piece.x for piece in part]), source.test_x[rows])
        assert torch.equal(torch.cat([piece.y for piece in part]), source.test_y[rows])
    wide = protocol_stream("convolved MNIST-10k", "class").tests[0].x
    inner = stream.tests[0].x[:, 0]
    assert torch.equal(wide[:, 2, 2:-2, 2:-2], inner) and int(wide.sum()) == 3 * int(inner.sum())


def test_1_1_permuted_mnist_has_a_border_of_zeros_before_it_is_permuted(asked: list[tuple[str, Path]]) -> None:
    stream = protocol_stream("permuted MNIST", "domain", tasks=2)
    source = stand_in("mnist", (1, 28, 28), 10).train_x
    one, two = (part.x for part in stream.experiences)
    assert torch.equal(one[:, :, 2:-2, 2:-2], source) and int(one.sum()) == int(source.sum())
    edge = torch.ones(32, 32, dtype=torch.bool)
    edge[2:-2, 2:-2] = False
    assert not one[:, :, edge].any() and two[:, :, edge].any(), "the border takes part in the permutation"
    assert float(inputs(one).max()) <= 1
