"""Norms as a group: their state, answers that depend on the batch, and statistics held still."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cllib.contract import Noisy
from cllib.models.binary import BinaryCNN, BinaryMLP, binary_weights
from cllib.models.networks import MLP, logits_of
from cllib.models.norms import (
    BATCH,
    batch_logits,
    batch_norms,
    fixed_statistics,
    norm_state,
    set_norm_state,
    transductive,
)
from cllib.models.vit import ViT
from cllib.randomness import generator, seeded

SHAPE = (1, 16, 16)
NETWORKS: dict[str, Any] = {
    "mlp batch": BinaryMLP(hidden=(6,)),
    "mlp running": BinaryMLP(hidden=(6,), norm="running"),
    "mlp instance": BinaryMLP(hidden=(6,), norm="instance"),
    "mlp without parameters": BinaryMLP(hidden=(6,), affine=False),
    "mlp real": BinaryMLP(hidden=(6,), binary=False),
    "cnn batch": BinaryCNN(channels=(4, 4, 6, 6), hidden=(8,), norm="batch"),
    "cnn running": BinaryCNN(channels=(4, 4, 6, 6), hidden=(8,)),
    "bvit": ViT("bvit", 16, patch=8, dim=8, depth=2, heads=2),
    "noisy": Noisy(),
    "plain": MLP((6,)),
}


def built(name: str) -> Any:
    with seeded(0, "init"):
        return NETWORKS[name].build(SHAPE, 3)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *SHAPE, generator=generator(seed, "images"))


def disturb(network: nn.Module, seed: int) -> None:
    """Every tensor becomes another, counters included."""
    draws = generator(seed, "disturbance")
    with torch.no_grad():
        for tensor in network.state_dict().values():
            change = torch.rand(tensor.shape, generator=draws) + 0.5
            tensor.add_(change if tensor.is_floating_point() else 3)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(NETWORKS)), st.integers(0, 99))
def test_12_the_state_of_the_norms_comes_back_and_nothing_else(name: str, seed: int) -> None:
    network = built(name)
    network(images(5))  # running statistics leave their start
    kept = norm_state(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    disturb(network, seed)
    disturbed = {key: value.clone() for key, value in network.state_dict().items()}
    assert not any(torch.equal(before[key], disturbed[key]) for key in before)
    assert all(torch.equal(kept[key], before[key]) for key in kept), "copies, no views"
    set_norm_state(network, kept)
    for key, value in network.state_dict().items():
        assert torch.equal(value, (before if key in kept else disturbed)[key]), key
    assert not any(key in kept for key in binary_weights(network))


def test_12_what_belongs_to_the_norms() -> None:
    def names(name: str) -> list[str]:
        return list(norm_state(built(name)))

    pair = ["weight", "bias"]
    running = [*pair, "running_mean", "running_var", "num_batches_tracked"]
    assert names("mlp batch") == [f"norm{k}.{key}" for k in (1, 2) for key in pair]
    assert names("mlp running") == [f"norm{k}.{key}" for k in (1, 2) for key in running]
    assert names("mlp instance") == names("mlp without parameters") == names("plain") == []
    blocks = [f"layers.block_{k}.norm{n}.{key}" for k in (1, 2) for n in (1, 2) for key in pair]
    assert names("bvit") == [*blocks, "layers.norm.weight", "layers.norm.bias"]


def test_setting_the_state_keeps_the_parameters_of_the_optimiser() -> None:
    network = built("mlp batch")
    mine = [id(p) for p in network.parameters()]
    set_norm_state(network, norm_state(network))
    assert [id(p) for p in network.parameters()] == mine and all(p.requires_grad for p in network.parameters())


def test_which_networks_look_at_the_batch_in_testing() -> None:
    for name in NETWORKS:
        network, x = built(name), images(8)
        alone = torch.allclose(logits_of(network, x)[:3], logits_of(network, x[:3]), atol=1e-5)
        assert transductive(network) == (not alone), name
        assert transductive(network) == (name in ("mlp batch", "mlp without parameters", "cnn batch"))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3 * BATCH + 2))
def test_test_batches_are_equal_bounded_and_every_sample_is_answered_in_its_place(count: int) -> None:
    seen: list[int] = []

    class Echo(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return torch.stack([x[:, 0], x.mean(0).expand(len(x), -1)[:, 0]], 1)

    x = torch.arange(float(count))[:, None]
    logits = batch_logits(Echo(), x)
    assert torch.equal(logits[:, 0], x[:, 0])
    assert sum(seen) == count and max(seen) <= BATCH and max(seen) - min(seen) <= 1
    assert len(seen) == max(1, -(-count // BATCH))
    assert torch.equal(batch_logits(Echo(), x), logits), "the same batches each time"
    if count > 2 * BATCH:  # mixed: no batch is a stretch of the test set
        assert float(logits[:, 1].unique().diff().max()) < count / 8


def test_batches_of_a_test_are_mixed_in_an_order_of_their_own() -> None:
    network, x = built("mlp batch"), images(50)
    before = torch.get_rng_state()
    torch.testing.assert_close(batch_logits(network, x), logits_of(network, x))  # one batch: the order cannot matter
    assert torch.equal(torch.get_rng_state(), before)


# --- statistics held still ---


@pytest.mark.parametrize("name", ["mlp batch", "mlp without parameters", "cnn batch"])
def test_held_statistics_give_one_by_one_what_the_batch_gives(name: str) -> None:
    """In float64, with norms that shift, for a sum that equals its mean has a sign that depends on how it was made."""
    network, x = built(name).double(), images(12).double()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
                module.bias.uniform_(0.1, 0.2, generator=generator(0, "shift"))
    wanted = logits_of(network, x)
    with fixed_statistics(network, x):
        assert not any(m.training for m in network.modules())
        torch.testing.assert_close(torch.cat([network(sample[None]) for sample in x]), wanted)
        assert torch.equal(network(x[:1]), network(x[:1])), "asking does not move them"
    assert all(m.running_mean is None and m.running_var is None for m in batch_norms(network))
    assert all(m.training for m in network.modules()) and not any(m._forward_pre_hooks for m in network.modules())


def test_held_statistics_are_let_go_when_something_fails() -> None:
    network, x = built("mlp batch"), images(4)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ZeroDivisionError), fixed_statistics(network, x):
        raise ZeroDivisionError
    assert all(m.running_mean is None for m in batch_norms(network)) and network.training
    with pytest.raises(RuntimeError), fixed_statistics(network, x[:, :, :3]):
        pass
    assert not any(m._forward_pre_hooks for m in network.modules())
    assert state.keys() == network.state_dict().keys()


def test_running_statistics_are_left_alone() -> None:
    network, x = built("noisy"), images(8)
    network(x)
    norm = next(m for m in network.modules() if isinstance(m, nn.BatchNorm1d))
    before = norm.running_mean.clone()
    with fixed_statistics(network, x):
        assert torch.equal(network(x), network(x))
    assert torch.equal(norm.running_mean, before)
