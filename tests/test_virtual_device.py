"""The device that tests run on: it refuses what an accelerator refuses, and nothing that one would do."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib import optim, virtual_device
from cllib.checkpoints import digest
from cllib.contract import same, tiny_stream, trained
from cllib.errors import UserError
from cllib.exaggeration import Exaggeration
from cllib.fingerprint import code_hash
from cllib.learners import LEARNERS
from cllib.models.binary import BinaryCNN, BinaryMLP
from cllib.models.conv_front import ConvMLP
from cllib.models.convit import ConViT
from cllib.models.latent_vit import LatentViT, QuickDropout
from cllib.models.networks import CNN, MLP
from cllib.models.plain_vit import PlainViT
from cllib.models.replay_vae import ReplayVAE
from cllib.models.vit import ViT
from cllib.randomness import generator, normal
from cllib.recipes import NETWORKS, Recipe
from cllib.streams.base import Stream
from cllib.training import train
from cllib.virtual_device import NAME, VirtualTensor


def there(*values: float, **told: Any) -> Tensor:
    return torch.tensor(values, **told).to(NAME)


def counted(counter: Any, act: Callable[[], Any]) -> int:
    before = counter.total()
    act()
    return int(counter.total() - before)


# --- what it does ---


def test_it_computes_what_the_cpu_computes() -> None:
    x, w = torch.randn(4, 3, generator=generator(0, "x")), torch.randn(2, 3, generator=generator(0, "w"))
    y = F.linear(x.to(NAME), w.to(NAME)).relu().softmax(-1)
    assert y.device == torch.device(NAME, 0) and isinstance(y, VirtualTensor)
    assert torch.equal(y.cpu(), F.linear(x, w).relu().softmax(-1))
    assert torch.equal(torch.arange(2, 5, device=NAME).cpu(), torch.arange(2, 5))
    assert torch.equal(torch.eye(3, device=NAME).cpu(), torch.eye(3))
    made = torch.tensor([1, 2], device=NAME)
    assert torch.equal(torch.zeros(3, device=NAME).index_fill_(0, made, 1.0).cpu(), torch.tensor([0.0, 1, 1]))


def test_a_network_trains_there_as_on_the_cpu() -> None:
    ends = []
    for device in ("cpu", NAME):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 6))
        network = deepcopy(network).to(device)
        optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
        for t in range(3):
            x, y = torch.randn(5, 1, 4, 4, generator=generator(t, "x")), torch.arange(5)
            optimiser.zero_grad()
            F.cross_entropy(network(x.to(device)), y.to(device)).backward()
            optimiser.step()
        ends.append(digest(dict(network.state_dict())))
    assert ends[0] == ends[1]


# --- what it refuses, as CUDA does ---

REFUSED: dict[str, Callable[[], Any]] = {
    "add": lambda: there(1, 2) + torch.ones(2),
    "add to the cpu": lambda: torch.ones(2).add_(there(1, 2)),
    "matrix": lambda: there(1.0, 2) @ torch.ones(2),
    "cat": lambda: torch.cat([there(1, 2), torch.ones(2)]),
    "where": lambda: torch.where(there(1, 0).bool(), torch.ones(2), there(1.0, 2)),
    "loss": lambda: F.cross_entropy(torch.ones(2, 3, device=NAME), torch.tensor([0, 1])),
    "index of the cpu's": lambda: torch.arange(3)[there(0, 1).long()],
    "assign": lambda: there(1, 2, 3).__setitem__(there(1, 0, 1).bool(), torch.arange(2)),
    "scatter": lambda: there(1.0, 2).scatter(0, torch.tensor([0]), there(3.0)),
    "numpy": lambda: there(1, 2).numpy(),
    "draw from a CPU generator": lambda: torch.rand(3, device=NAME, generator=generator(0, "x")),
    "fill from a CPU generator": lambda: torch.zeros(3, device=NAME).normal_(generator=generator(0, "x")),
    "shuffle from a CPU generator": lambda: torch.randperm(3, device=NAME, generator=generator(0, "x")),
    "choose from a CPU generator": lambda: there(0.5, 0.5).multinomial(1, generator=generator(0, "x")),
    "draw on the CPU": lambda: torch.rand(3, generator=generator(0, "x", NAME)),
    "shuffle on the CPU": lambda: torch.randperm(3, generator=generator(0, "x", NAME)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_is_refused(name: str) -> None:
    with virtual_device.alike(), pytest.raises((RuntimeError, TypeError)):
        REFUSED[name]()


def test_what_cuda_takes_is_taken() -> None:
    x = there(1.0, 2, 3)
    assert (x + torch.tensor(1.0)).tolist() == [2, 3, 4] and (x * 2).tolist() == [2, 4, 6]
    assert x[torch.tensor([2, 0])].tolist() == [3, 1] and x[[1]].tolist() == [2]
    x[torch.tensor([0])] = 5.0
    x[x > 4] = torch.tensor(7.0)
    assert x.tolist() == [7, 2, 3] and torch.where(x > 2, x, torch.tensor(0.0)).tolist() == [7, 0, 3]


def test_generators_of_the_device_draw_what_the_cpu_draws() -> None:
    """They are made in one place, go on from where they were put, and count as the device's."""
    here, far = generator(3, "x"), generator(3, "x", NAME)
    assert far.device.type == NAME and here.device.type == "cpu"
    for _ in range(2):
        with virtual_device.alike():
            drawn = torch.randn(4, generator=far, device=NAME)
        assert torch.equal(torch.randn(4, generator=here), drawn.cpu())
    kept = far.get_state()
    first = normal((2, 3), far, there(1.0))
    far.set_state(kept)
    assert torch.equal(first.cpu(), normal((2, 3), far, there(1.0)).cpu()) and first.device.type == NAME
    assert generator(3, "x", "meta").device.type == "cpu"


# --- what it counts ---


@pytest.mark.parametrize(
    "act",
    [
        lambda x: x[0].item(),
        lambda x: float(x.sum()),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 1],
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: f"{x.sum():.1f}",
        lambda x: repr(x),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: torch.equal(x, x),
    ],
)
def test_what_is_waited_for_is_counted_with_its_line(act: Callable[[Tensor], Any]) -> None:
    x = there(1.0, 2, 3)
    virtual_device.fetches.clear()
    act(x)
    assert virtual_device.fetches and all(f"{__file__}:" in where for where in virtual_device.fetches)


def test_what_is_not_waited_for_is_not_counted() -> None:
    x = there(1.0, 2, 3)
    quiet: list[Callable[[], Any]] = [lambda: x.sum() + x[1:], lambda: x.argmax(), lambda: x.clone().fill_(2)]
    assert [counted(virtual_device.fetches, act) for act in quiet] == [0, 0, 0]
    assert counted(virtual_device.uploads, lambda: torch.ones(2).to(NAME)) == 1
    assert counted(virtual_device.uploads, lambda: x[torch.tensor([0])]) == 1


# --- what it leaves as it was ---


def test_both_devices_take_one_path_for_a_while() -> None:
    before = optim.FUSED_ON, QuickDropout.forward, torch.__future__.get_overwrite_module_params_on_conversion()
    recipe = Recipe("er", optimizer="metaplastic")
    hashed = code_hash(train, *recipe.code())
    with virtual_device.alike():
        assert not optim.fusible([torch.ones(1)]) and QuickDropout.forward is nn.Dropout.forward
    with pytest.raises(ZeroDivisionError), virtual_device.alike():
        1 / 0  # noqa: B018
    after = optim.FUSED_ON, QuickDropout.forward, torch.__future__.get_overwrite_module_params_on_conversion()
    assert after == before and optim.fusible([torch.ones(1)]) and code_hash(train, *recipe.code()) == hashed


# --- every learner with every network ---


def images(side: int, channels: int, scenario: str) -> Stream:
    """The tiny stream as images of another size, with half of its samples."""
    stream = tiny_stream(scenario)

    def enlarge(x: Tensor) -> Tensor:
        return F.interpolate(x[::2], size=(side, side)).expand(-1, channels, -1, -1).contiguous()

    return stream.map(lambda e: replace(e, x=enlarge(e.x), y=e.y[::2]))


@dataclass(frozen=True)
class Case:
    """A small network of a kind, and the images that it takes."""

    network: Any
    side: int = 4
    channels: int = 1


NETS = {
    "mlp": Case(MLP((8,), 0.2)),
    "cnn": Case(CNN((4, 6))),
    "bnn": Case(BinaryMLP(hidden=(9,))),
    "bcnn": Case(BinaryCNN(channels=(4, 4), hidden=(8,)), 8),
    "vit": Case(ViT(image_size=8, patch=4, dim=16, heads=2, depth=2), 8, 3),
    "latent_vit": Case(LatentViT(weights="random", depth=2, replay_block=1), 32, 3),
    "conv_mlp": Case(ConvMLP(hidden=(8,)), 32, 3),
    "replay_vae": Case(ReplayVAE(hidden=12, latent=3, gates=0.5, modes=2)),
    "convit": Case(ConViT(patch=2, dim=8, heads=2, layers=3)),
    "plain_vit": Case(PlainViT(patch=2, dim=8, heads=2)),
}
SMALL: dict[str, Any] = {"buffer_size": 10, "replay_size": 4, "memory_epochs": 2, "fisher_samples": 8, "tune_epochs": 2}
SMALL |= {"exaggerate": Exaggeration(repulsion=0.1, contrastive=0.01)}


def settings(learner: str) -> Any:
    kind = LEARNERS[learner].Settings
    return kind(**{name: value for name, value in SMALL.items() if name in kind.__dataclass_fields__})


def test_every_network_has_its_case() -> None:
    assert {*NETS} == {*NETWORKS}


PAIRS = [(learner, net) for learner in LEARNERS for net in NETS if net != "convit" or learner == "birt"]  # it grows


@pytest.mark.pairs
@pytest.mark.parametrize(("scenario", "optimizer"), [("class", "sgd"), ("task", "metaplastic")])
@pytest.mark.parametrize(("learner", "network"), PAIRS)
def test_every_learner_with_every_network_ends_on_the_device_as_on_the_cpu(
    learner: str, network: str, scenario: str, optimizer: str
) -> None:
    case = NETS[network]
    told: dict[str, Any] = {"meta": (1.35,), "meta_scope": "matrices"} if optimizer == "metaplastic" else {}
    recipe = Recipe(learner, settings(learner), case.network, optimizer, 0.02, **told)
    stream = images(case.side, case.channels, scenario)
    with virtual_device.alike():
        try:
            one, wanted = trained(recipe, stream=stream)
        except UserError as error:
            pytest.skip(f"not together: {error}")
        other, found = trained(recipe, stream=stream, device=NAME)
    assert same(found, wanted)
    assert digest(other.state_dict()) == digest(one.state_dict())
