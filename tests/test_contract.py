"""Every learner keeps the contract; learners that do not are told why."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cllib.contract import CHECKS, ContractBroken, candidates, check_learner
from cllib.experiments import Config
from cllib.learners import LEARNERS
from cllib.learners.er import ER
from cllib.learners.lwf import LwF
from cllib.learners.naive import Losses, Naive
from cllib.optim import fusible
from cllib.randomness import generator
from cllib.recipes import Recipe
from cllib.streams import Experience

CANDIDATES = candidates()


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("config", CANDIDATES.values(), ids=CANDIDATES)
def test_learners_keep_the_contract(config: Config, check: str) -> None:
    CHECKS[check](config)


# --- learners that break a promise, one each, and what they are told ---


class Unseeded(Naive):
    def correct(self) -> None:
        for p in self.parameters():
            p.grad += 1e-3 * torch.rand(p.shape, generator=torch.Generator().manual_seed(torch.seed() % 2**31))


class Ambient(Naive):
    def correct(self) -> None:
        for p in self.parameters():
            p.grad *= 1 + np.random.rand()


class Deaf(Naive):
    """Does not hear its seed, nor anything else."""

    def begin(self, experience: Experience) -> None:
        for p in self.parameters():
            nn.init.constant_(p, 0.1)

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        return self.predict(x)


class SharesState(Naive):
    def state_dict(self) -> dict[str, Any]:
        return {"network": dict(self.network.state_dict()), "optimiser": self.optimiser.state_dict()}


class KeepsObjects(Naive):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "seen": {1, 2}}


class ForgetsMomentum(Naive):
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])

    def state_dict(self) -> dict[str, Any]:
        return {"network": super().state_dict()["network"]}


class ForgetsGenerators(ER):
    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        del state["memory"]["draws"], state["memory"]["picks"]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        own = {"draws": self.memory.draws.get_state(), "picks": self.memory.picks.get_state()}
        super().load_state_dict({**state, "memory": {**state["memory"], **own}})


class Hoards(ER):
    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        self.memory.size += len(y)
        self.memory.items = {}
        self.memory.seen = 0
        self.hoard = torch.cat([*getattr(self, "hoard", []), *x])[:, None]
        self.memory.add(x=self.hoard, y=self.hoard[:, 0, 0, 0].long())


class Hides(Naive):
    def __init__(self, *parts: Any, **named: Any) -> None:
        super().__init__(*parts, **named)
        self.extra = torch.zeros(2000)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "extra": self.extra.clone()}


class Thaws(Naive):
    def correct(self) -> None:
        with torch.no_grad():
            for p in self.network.parameters():
                p *= 0.999


class NeverOff(LwF):
    """Inherits what switches LwF off, and adds what that does not reach."""

    def correct(self) -> None:
        self.network[-1].bias.grad += 1e-3


class NeverOffDraws(LwF):
    """Switched off, it still draws from the generator that dropout uses."""

    def correct(self) -> None:
        torch.rand(1)


class PredictsInTrainingMode(Naive):
    def predict(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.network(x)


class PredictsAndLeavesEval(Naive):
    def predict(self, x: Tensor) -> Tensor:
        self.network.eval()
        with torch.no_grad():
            return self.network(x)


class PredictsAndCounts(Naive):
    asked = 0

    def predict(self, x: Tensor) -> Tensor:
        self.asked += 1
        return super().predict(x)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "asked": self.asked}


class SpoilsBatch(Naive):
    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        return super().observe(x.mul_(2), y)


class KeepsViews(Naive):
    last = torch.empty(0)

    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        self.last = x

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "last": self.last.clone()}


class Probabilities(Naive):
    def predict(self, x: Tensor) -> Tensor:
        return super().predict(x)[:, :2]


class KeepsGraph(Naive):
    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        super().observe(x, y)
        return self.network(x)


class OnCPU(Naive):
    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        logits, losses = super().objective(x, y)
        return logits, {"loss": losses["loss"] + (logits * torch.ones(logits.shape)).mean() * 0}


class Waits(Naive):
    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        logits, losses = super().objective(x, y)
        return logits, losses if losses["loss"].item() < 1e9 else {}


class WaitsAtTheEnd(Naive):
    def finish(self, experience: Experience) -> None:
        self.last = float(next(iter(self.losses.values())))


class AssignsFromCPU(Naive):
    """Where the "meta" device, which has no values, could not look."""

    chooses = True

    def finish(self, experience: Experience) -> None:
        nth = torch.empty_like(experience.y)
        nth[experience.y == experience.y[0]] = torch.arange(int((experience.y == experience.y[0]).sum()))


class DrawsFromCPU(Naive):
    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        return super().objective(x + torch.rand(x.shape, device=x.device, generator=generator(self.seed, "mine")), y)


class DrawsOnTheDevice(Naive):
    """As it should be."""

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        draws = generator(self.seed, "mine", x.device)
        return super().objective(x + torch.rand(x.shape, device=x.device, generator=draws), y)


class DrawsOnCPU(Naive):
    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        noise = torch.rand(x.shape, generator=generator(self.seed, "mine", x.device))
        return super().objective(x + noise.to(x.device), y)


class AnotherPath(Naive):
    def correct(self) -> None:
        for p in self.parameters():
            p.grad.mul_(1 if p.device.type == "cpu" else 1 + 1e-6)


class AfterTheStep(Naive):
    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        super().observe(x, y)
        return self.predict(x)


class Doubles(Naive):
    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        return super().observe(x, y).double()


class NeverSteps(Naive):
    def correct(self) -> None:
        self.optimiser.zero_grad()


class Climbs(Naive):
    def correct(self) -> None:
        for p in self.parameters():
            p.grad.neg_()


class IgnoresTheTask(Naive):
    def cross_entropy(self, logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        return nn.functional.cross_entropy(logits, y, reduction=reduction)


class HoardsInAList(Naive):
    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        self.hoard = [*getattr(self, "hoard", []), x.clone()]


class AsksTheBatch(Naive):
    def predict(self, x: Tensor) -> Tensor:
        return super().predict(x - x.mean(0))


@dataclass(frozen=True)
class Unchecked:
    strength: float = 1.0


class Gullible(Naive):
    Settings = Unchecked
    off = None


@pytest.mark.parametrize(
    ("wrong", "check", "sentence"),
    [
        (Unseeded, "seeds", "two runs with one seed differ: draw from randomness.generator"),
        (Deaf, "seeds", "the seed does not reach the learner"),
        (Ambient, "ambient", "generators that belong to nobody"),
        (SharesState, "state", "return copies of the tensors"),
        (KeepsObjects, "state", "set in a state"),
        (ForgetsMomentum, "resume", "must be in state_dict"),
        (ForgetsGenerators, "resume", "must be in state_dict"),
        (Hoards, "memory", "buffer_size is 10: the memory must be bounded"),
        (Hides, "memory", "name every tensor that is kept"),
        (Thaws, "frozen", "frozen parameter 0.1.weight changed"),
        (NeverOff, "off", "differs from naive training"),
        (NeverOffDraws, "off", "must neither draw from shared generators"),
        (PredictsInTrainingMode, "predict", "use evaluation mode"),
        (PredictsAndLeavesEval, "predict", "restore train"),
        (PredictsAndCounts, "predict", "changed the learner's state"),
        (SpoilsBatch, "batch", "observe changed the batch"),
        (KeepsViews, "batch", "keeps a view of its batch"),
        (Probabilities, "shapes", r"predict returned \[10, 2\] where logits \[10, 6\]"),
        (KeepsGraph, "shapes", "with a graph"),
        (AfterTheStep, "shapes", "return those from before the step"),
        (Doubles, "shapes", "observe returned torch.float64 for samples in torch.float32"),
        (NeverSteps, "learns", "does it step"),
        (Climbs, "learns", "does it step"),
        (IgnoresTheTask, "told", "use self.cross_entropy"),
        (HoardsInAList, "memory", "memory that grows with the stream"),
        (AsksTheBatch, "predict", "when others are asked with it"),
        (OnCPU, "device", "mixes devices or waits"),
        (Waits, "device", "mixes devices or waits"),
        (WaitsAtTheEnd, "device", r"mixes devices or waits.*item at"),
        (AssignsFromCPU, "device", "mixes devices or waits"),
        (DrawsFromCPU, "device", "device type for generator"),
        (DrawsOnCPU, "device", "device type for generator"),
        (AnotherPath, "device", "on another device the learner ends elsewhere"),
        (Gullible, "settings", "strength = -1 is accepted"),
    ],
)
def test_a_wrong_learner_is_told_what_is_wrong(
    wrong: type[Naive], check: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEARNERS, "wrong", wrong)
    like = CANDIDATES["er"] if issubclass(wrong, ER) else CANDIDATES["naive"]
    settings = like.settings if issubclass(wrong, ER) else wrong.Settings()
    config = replace(like, learner="wrong", settings=settings)
    with pytest.raises(ContractBroken, match=sentence):
        CHECKS[check](config)
    with pytest.raises(ContractBroken):
        check_learner(config)


def test_draws_where_the_samples_are_keep_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEARNERS, "mine", DrawsOnTheDevice)
    CHECKS["device"](replace(CANDIDATES["naive"], learner="mine"))


def test_what_the_device_check_needs_is_gone_afterwards() -> None:
    CHECKS["device"](CANDIDATES["metaplastic"])
    assert fusible([torch.ones(1)]) and not torch.__future__.get_overwrite_module_params_on_conversion()


OWN = """
import torch
from cllib.contract import CHECKS, ContractBroken
from cllib.learners import LEARNERS
from cllib.learners.naive import Naive
from cllib.recipes import Recipe

class Mine(Naive):
    pass

class Wrong(Naive):
    def correct(self):
        for p in self.parameters():
            p.grad += torch.ones(p.shape)

LEARNERS |= {"mine": Mine, "wrong": Wrong}
torch.ones(2, requires_grad=True).sum().backward()
CHECKS["device"](Recipe("mine"))
try:
    CHECKS["device"](Recipe("wrong"))
except ContractBroken as broken:
    print(broken)
torch.ones(2, requires_grad=True).sum().backward()
try:
    torch.zeros(2, device="virtual")
except RuntimeError:
    print("no such device here")
"""


def test_the_device_check_can_be_had_after_training_and_leaves_the_process_alone(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("if __name__ == '__main__':\n" + indent(OWN, "    "))
    done = subprocess.run([sys.executable, tmp_path / "own.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith("the learner mixes devices") and "same device" in first and last == "no such device here"


def test_a_learner_joins_by_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Naive):
        """Plain training under another name."""

    monkeypatch.setitem(LEARNERS, "mine", Mine)
    assert "mine" in candidates()
    check_learner(candidates()["mine"])
    check_learner(Recipe("mine"))  # as a reader would call it, with the defaults
