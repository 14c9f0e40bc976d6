"""Own networks of odd shape: learners train them as the same network in ordinary order, or say why not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cllib.contract import candidates, tiny_stream
from cllib.errors import UserError
from cllib.experiments import Config
from cllib.learners import LEARNERS
from cllib.models.networks import classes_of, classifier, look_at
from cllib.recipes import Recipe
from cllib.training import train

STREAM = tiny_stream()
ASKS = ("cwr*", "latent", "birt")  # for the classifier
LONE = "network = .*: no linear layer makes its logits alone; .*name it by a method get_classifier()"


class Own(nn.Module):
    """Two layers and a classifier, registered in an order of one's own."""

    def __init__(self, order: str, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        for name in order.split():
            setattr(self, name, parts[name])

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu(self.first(x.flatten(1)))))


class Averaged(Own):
    def forward(self, x: Tensor) -> Tensor:
        z = self.features(x)
        return (self.head(z) + self.aux(z)) / 2


class Beside(Own):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)) + self.aux(self.features(x)).detach()


class Convolved(Own):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.features(x)[..., None, None]).flatten(1)


class Shifted(Own):
    """Its bias is no layer's, and 0 at the start."""

    def __init__(self, order: str, parts: dict[str, nn.Module]) -> None:
        super().__init__(order, parts)
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)) + self.bias


class Named(Shifted):
    def get_classifier(self) -> nn.Module:
        return self.head


class Aux(Own):
    """A second head that only training hears of."""

    def forward(self, x: Tensor) -> Any:
        z = self.features(x)
        return (self.head(z), self.aux(z)) if self.training else self.head(z)


class Sure(Own):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.head(self.features(x)), -1)


@dataclass(frozen=True)
class Odd:
    """kind: of the network; order: in which its parts are registered; head: how the classifier is made."""

    kind: str = "Own"
    order: str = "first second head"
    head: str = "plain"
    outputs: int = 6

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        parts: dict[str, nn.Module] = {
            "first": nn.Linear(16, 6),
            "second": nn.Linear(6, 8),
        }  # first: as wide as classes
        parts["head"] = HEADS[self.head](self.outputs)
        parts |= {"aux": nn.Linear(8, 6), "conv": nn.Conv2d(8, 6, 1)}
        return KINDS[self.kind](self.order, parts)


KINDS: dict[str, type[Own]] = {
    kind.__name__: kind for kind in (Own, Averaged, Beside, Convolved, Shifted, Named, Aux, Sure)
}
HEADS: dict[str, Callable[[int], nn.Module]] = {
    "plain": lambda outputs: nn.Linear(8, outputs),
    "bare": lambda outputs: nn.Linear(8, outputs, bias=False),
    "deep": lambda outputs: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, outputs), nn.Identity()),
    "normed": lambda outputs: nn.utils.parametrizations.weight_norm(nn.Linear(8, outputs)),
}
RIGHT = {  # the odd one, and the same in ordinary order
    "head first": (Odd(order="head first second"), Odd()),
    "head in the middle": (Odd(order="first head second"), Odd()),
    "unused head behind": (Odd(order="first second head aux"), Odd(order="first second head")),
    "unused head before": (Odd(order="aux head first second"), Odd(order="first second head")),
    "no bias": (Odd(order="head second first", head="bare"), Odd(head="bare")),
    "head of several layers": (Odd(order="head first second", head="deep"), Odd(head="deep")),
    "log-probabilities": (Odd("Sure", "head first second"), Odd("Sure")),
    "named by itself": (Odd("Named", "head first second"), Odd("Named")),
}
ALONE = {
    "two heads averaged": Odd("Averaged", "head aux first second"),
    "a frozen head beside": Odd("Beside", "head aux first second"),
    "a convolution": Odd("Convolved", "head first second conv"),
    "weights made from others": Odd(head="normed"),
    "a bias behind": Odd("Shifted"),
}


def recipe(learner: str, network: Any) -> Recipe:
    made: Config = candidates()[learner]
    assert isinstance(made, Recipe)
    return Recipe(learner, made.settings, network, step_size=0.02, batch_size=5, epochs=2)


def trained(learner: str, network: Any) -> Tensor:
    """Logits at the end."""
    made = recipe(learner, network)
    run = made.build(STREAM, 3)
    train(run, STREAM, made.feed(STREAM, 3), progress=False)
    return run.predict(torch.cat([test.x for test in STREAM.tests]))


@pytest.mark.parametrize("odd", RIGHT)
@pytest.mark.parametrize("learner", LEARNERS)
def test_the_order_of_layers_does_not_matter(learner: str, odd: str) -> None:
    made, ordinary = RIGHT[odd]
    torch.testing.assert_close(trained(learner, made), trained(learner, ordinary), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("odd", ALONE)
@pytest.mark.parametrize("learner", LEARNERS)
def test_who_asks_for_a_classifier_that_is_none_is_told(learner: str, odd: str) -> None:
    if learner in ASKS:
        with pytest.raises(UserError, match=LONE) as told:
            trained(learner, ALONE[odd])
        assert len(str(told.value).splitlines()) == 1
    else:
        assert trained(learner, ALONE[odd]).isfinite().all()


@pytest.mark.parametrize("learner", LEARNERS)
def test_answers_that_are_no_logits_are_refused(learner: str) -> None:
    with pytest.raises(UserError, match="network = Aux: answers with a tuple, must be a tensor of logits"):
        trained(learner, Odd("Aux", "first second head aux"))


@pytest.mark.parametrize("outputs", [5, 13])
@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
@pytest.mark.parametrize("learner", LEARNERS)
def test_logits_are_as_many_as_classes(learner: str, scenario: str, outputs: int) -> None:
    stream, network = tiny_stream(scenario), Odd(outputs=outputs)
    wanted = rf"network = Own: answers 2 samples with \[2, {outputs}\], must be \[2, {stream.classes}\]"
    with pytest.raises(UserError, match=wanted):
        recipe(learner, network).build(stream, 0)


def test_a_network_in_training_mode_is_looked_at_without_a_trace() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 6))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state, x = torch.get_rng_state(), STREAM.tests[0].x
    look_at(network, x, 6)
    assert torch.equal(torch.get_rng_state(), state) and all(m.training for m in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(m._forward_hooks for m in network.modules()) and all(p.grad is None for p in network.parameters())
    assert classifier(network) is network[-1] and classes_of(network) == 6


def test_a_name_that_leads_nowhere_does_not_count() -> None:
    class Lost(Own):
        def get_classifier(self) -> nn.Module:
            return self.aux

    network = Lost("aux head first second", {"first": nn.Linear(16, 6), "second": nn.Linear(6, 8),
                                             "head": nn.Linear(8, 6), "aux": nn.Linear(8, 6)})  # fmt: skip
    look_at(network, STREAM.tests[0].x, 6)
    assert classifier(network) is network.head


def test_a_network_that_nobody_looked_at_is_not_guessed_at() -> None:
    parts = {"first": nn.Linear(16, 6), "second": nn.Linear(6, 8), "head": nn.Linear(8, 6)}
    with pytest.raises(UserError, match=LONE):
        classifier(Own("head first second", parts))


TIMM = {"deit_tiny_distilled_patch16_224": False, "levit_128s": False, "efficientformer_l1": False,
        "repvit_m0_9": False, "crossvit_tiny_240": False, "vit_tiny_patch16_224": True, "resnet10t": True}  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_of_two_heads_none_is_the_classifier(name: str) -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=6).eval()
    side = network.default_cfg["input_size"][-1]
    look_at(network, torch.rand(2, 3, side, side), 6)
    if TIMM[name]:
        assert classifier(network) is network.get_classifier()
    else:
        with pytest.raises(UserError, match=LONE):
            classifier(network)
