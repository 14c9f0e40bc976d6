"""Networks that begin in place change nobody's samples: they do as their twins that make new tensors."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import Normalize

from cllib.attention import switched
from cllib.attribution import integrated_gradients
from cllib.checkpoints import digest
from cllib.contract import CHECKS, Noisy, candidates, tiny_stream
from cllib.experiments import compare
from cllib.models import norms
from cllib.models.convit import ConViT
from cllib.models.networks import logits_of
from cllib.models.split import Split, as_split
from cllib.recipes import Recipe
from cllib.results import stream_hash
from cllib.robustness import asked, survey
from cllib.streams.base import Stream
from cllib.streams.latent import latents
from cllib.training import Exam, train


class Shift(nn.Module):
    """Pixels around zero, as many a network begins."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.5).div_(0.5) if self.inplace else x.sub(0.5).div(0.5)


class Blind(Shift):
    """Does not look at the first row of an image."""

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.inplace else x.clone()
        x[:, :, 0] = 3.0
        return x


class Halve(Shift):
    """Writes into what a view of its samples shares with them."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        return rows.mul_(0.5) if self.inplace else rows.mul(0.5)


FIRST: dict[str, Callable[[bool], nn.Module]] = {
    "shift": Shift,
    "blind": Blind,
    "halve": Halve,
    "Normalize": lambda inplace: Normalize((0.4,), (0.7,), inplace=inplace),
    "Hardtanh": lambda inplace: nn.Hardtanh(0.3, 0.6, inplace=inplace),
    "Dropout": lambda inplace: nn.Dropout(0.3, inplace=inplace),
    "SELU": lambda inplace: nn.SELU(inplace=inplace),
}


@dataclass(frozen=True)
class Begins:
    """A network with a first layer of somebody's own."""

    first: str
    inplace: bool

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """x: `[B, *shape]` to logits `[B, classes]`."""
        body = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(inplace=True))
        return nn.Sequential(FIRST[self.first](self.inplace), body, nn.Dropout(0.2), nn.Linear(12, classes))


LEARNED = {name: c for name, c in candidates().items() if isinstance(c, Recipe) and isinstance(c.network, Noisy)}
LEARNED = {name: config for name, config in LEARNED.items() if config.meta_scope == "binary"}


def in_bytes(stream: Stream) -> Stream:
    return stream.map(lambda e: replace(e, x=(e.x * 255).round().to(torch.uint8)))


def twins(recipe: Recipe, first: str, stream: Stream, store: Path) -> list[Any]:
    learners = {name: replace(recipe, network=Begins(first, name == "in place")) for name in ("new", "in place")}
    return compare("twins", stream, learners, [0], store=store, probe_every=3)


def check_twins(recipe: Recipe, first: str, stream: Stream, store: Path) -> None:
    before = stream_hash(stream)
    new, own = twins(recipe, first, stream, store)
    assert stream_hash(stream) == before
    for name in ("test", "curve", "online", "masked"):
        assert np.array_equal(getattr(new, name), getattr(own, name)), name
    assert stream_hash(stream) == before


@pytest.mark.parametrize("learner", LEARNED)
def test_every_learner_is_the_same_with_its_twin(learner: str, tmp_path: Path) -> None:
    check_twins(LEARNED[learner], "shift", tiny_stream(), tmp_path)


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("learner", ["naive", "er", "ewc", "lwf"])
def test_every_first_layer_is_the_same_as_its_twin(learner: str, first: str, tmp_path: Path) -> None:
    check_twins(LEARNED[learner], first, tiny_stream("task"), tmp_path)


@pytest.mark.parametrize("learner", ["naive", "er", "gdumb pixels", "birt"])
def test_images_in_bytes_too(learner: str, tmp_path: Path) -> None:
    check_twins(LEARNED[learner], "shift", in_bytes(tiny_stream()), tmp_path)


def test_the_twins_that_begin_apart_would_differ() -> None:
    """The first layer has to matter, or nothing is shown."""
    stream, ends = tiny_stream(), []
    for first in FIRST:
        recipe = replace(LEARNED["naive"], network=Begins(first, False))
        learner = recipe.build(stream, 0)
        train(learner, stream, recipe.feed(stream, 0), progress=False)
        ends.append(digest(learner.state_dict()))
    assert len({*ends}) == len(FIRST)


@pytest.mark.parametrize("learner", ["naive", "er", "der++", "gdumb", "lwf", "mir", "agem", "joint"])
def test_learners_of_such_networks_keep_the_contract(learner: str) -> None:
    config = replace(LEARNED[learner], network=Begins("shift", True))
    for name in ("batch", "predict", "state"):
        CHECKS[name](config)


# --- where no learner stands between ---


class Keeps:
    """What an own learner may be: it changes what it is shown."""

    def predict(self, x: Tensor) -> Tensor:
        return x.sub_(0.5).flatten(1)[:, :6]


@pytest.mark.parametrize("chunk", [4, 10_000])
def test_an_exam_shows_copies_whoever_takes_it(chunk: int) -> None:
    stream = tiny_stream()
    exam = Exam(stream.tests, chunk=chunk)
    first, second = (exam.answers(Keeps()).given for _ in range(2))  # type: ignore[arg-type]
    assert torch.equal(first, second) and torch.equal(exam.x, torch.cat([test.x for test in stream.tests]))


def own(first: str = "shift", inplace: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return Begins(first, inplace).build((1, 4, 4), 6)


@pytest.mark.parametrize("first", FIRST)
def test_a_network_is_asked_with_copies(first: str) -> None:
    x = tiny_stream().tests[0].x
    sealed, network = x.clone(), own(first)
    for ask in (logits_of, norms.tested, lambda n, x: integrated_gradients(n, x, 1), lambda n, x: latents(n.eval(), x)):
        wanted, found = ask(own(first, False), x), ask(network, x)
        assert torch.equal(wanted, found) and torch.equal(x, sealed)
    assert not network._forward_pre_hooks, "left as it was found"


def test_attacks_and_noise_leave_images_alone() -> None:
    stream = tiny_stream()
    x, y = stream.tests[0].x, stream.tests[0].y
    sealed, made = x.clone(), []
    for inplace in (False, True):
        recipe = Recipe("naive", network=Begins("shift", inplace), batch_size=5)
        made.append(survey(asked(recipe.build(stream, 0)), x, y, 0))
        assert torch.equal(x, sealed)
    network = own().eval()
    assert survey(network, x, y, 0)[:6] == survey(network, x, y, 0)[:6] and torch.equal(x, sealed)
    assert made[0] == made[1]


@dataclass(frozen=True)
class InTwo:
    """A network in two parts, of which the lower one begins in place."""

    inplace: bool

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """x: `[B, *shape]` to logits `[B, classes]`."""
        above = nn.Sequential(nn.Flatten(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, classes))
        return Split(Shift(self.inplace), as_split(above).above, classes)


@pytest.mark.parametrize("replay", ["representations", "images"])
def test_a_network_in_two_parts_is_handed_copies_below(replay: str, tmp_path: Path) -> None:
    stream, made = tiny_stream(), []
    sealed = stream_hash(stream)
    for inplace in (False, True):
        settings = replace(LEARNED["birt"].settings, replay=replay, freeze=None)
        learner = replace(LEARNED["birt"], settings=settings, network=InTwo(inplace))
        made += compare("parts", stream, {"birt": learner}, [0], store=tmp_path)
        assert stream_hash(stream) == sealed
    assert np.array_equal(made[0].test, made[1].test) and np.array_equal(made[0].online, made[1].online)


def test_what_networks_are_is_not_changed_by_being_handed_copies() -> None:
    """Learners' networks can be copied and moved to other processes, and switched by who looks into them."""
    stream = tiny_stream()
    learner: Any = Recipe("birt", network=ConViT(patch=2, dim=8, heads=2, layers=3)).build(stream, 0)
    with switched(learner.network, detached=True):
        assert sum(len(m._forward_pre_hooks) for m in learner.network.modules()) == 2  # as a whole, and below
    again: Any = Recipe("naive").kind(None, learner.network, learner.optimiser, 0)
    assert sum(len(m._forward_pre_hooks) for m in again.network.modules()) == 2, "once"
