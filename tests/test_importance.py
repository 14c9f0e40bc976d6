"""The quadratic binary task against its theory, and sign flips; the number in a name is that of the chapter's test."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cllib.errors import UserError
from cllib.importance import (
    BINS,
    QuadraticTask,
    bins_of,
    by_layer,
    descend,
    mean_loss,
    plane_task,
    random_task,
    sign_flips,
)
from cllib.models.binary import BinaryCNN, BinaryMLP, sign
from cllib.models.networks import MLP
from cllib.models.vit import ViT
from cllib.randomness import generator, seeded


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "x"), dtype=torch.float64)


def any_task(size: int, seed: int) -> QuadraticTask:
    """Symmetric, with eigenvalues of both signs."""
    half = normal(size, size, seed=seed)
    return QuadraticTask(half + half.T, 3 * normal(size, seed=seed + 1))


# --- the quadratic binary task ---


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6))
def test_10_the_cost_of_a_flip_is_exact(size: int, seed: int) -> None:
    task, b = any_task(size, seed), sign(normal(size, seed=seed + 2))
    flipped = b.repeat(size, 1)
    flipped.diagonal().mul_(-1)
    wanted = torch.stack([task.loss(one) - task.loss(b) for one in flipped])
    scale = float(task.loss(b).abs() + task.hessian.abs().sum())
    torch.testing.assert_close(task.flip_cost(b), wanted, rtol=1e-9, atol=1e-11 * scale)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6))
def test_10_the_gradient_is_that_of_the_loss(size: int, seed: int) -> None:
    task, b = any_task(size, seed), normal(size, seed=seed + 2).requires_grad_()
    (g,) = torch.autograd.grad(task.loss(b), b)
    torch.testing.assert_close(task.gradient(b.detach()), g, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 10**6), st.floats(1e-3, 1), st.integers(1, 60))
def test_10_hidden_weights_are_the_sum_of_all_steps(size: int, seed: int, eta: float, steps: int) -> None:
    task, start = any_task(size, seed), 0.01 * normal(size, seed=seed + 2)
    path = descend(task, start, eta, steps)
    assert path.shape == (steps + 1, size) and torch.equal(path[0], start)
    total = sum(task.hessian @ (torch.where(w < 0, -1.0, 1.0).double() - task.goal) for w in path[:-1])
    torch.testing.assert_close(path[-1] - path[0], -eta * total, rtol=1e-9, atol=1e-9 * steps)


def test_10_the_size_of_a_weight_tells_the_cost_of_a_flip() -> None:
    """Measured: correlation 0.97 at 500 weights."""
    task, eta, steps = random_task(500), 0.01, 1000
    w = descend(task, 0.01 * normal(500, seed=7), eta, steps)[-1]
    cost = task.flip_cost(sign(w))
    assert float(torch.corrcoef(torch.stack([w.abs(), cost]))[0, 1]) > 0.9
    predicted, drifting = task.predicted_cost(w, eta, steps), w.abs() > 0.3 * w.abs().max()
    assert 50 < int(drifting.sum()) < 450
    assert float((predicted / cost)[drifting].median()) == pytest.approx(1, abs=0.05)
    assert float((predicted / cost)[drifting].sub(1).abs().quantile(0.9)) < 0.25


def test_10_the_random_task_is_that_of_the_paper() -> None:
    task = random_task(200, seed=3)
    values = torch.linalg.eigvalsh(task.hessian)
    assert 10.5 <= float(values.min()) < 11.5 and 28.5 < float(values.max()) <= 29.5
    assert float(values.mean()) == pytest.approx(20, abs=1.5)
    assert -4 <= float(task.goal.min()) < -3.5 and 3.5 < float(task.goal.max()) <= 4
    assert torch.equal(task.hessian, random_task(200, seed=3).hessian), "drawn from its seed"
    assert not torch.equal(task.goal, random_task(200, seed=4).goal)
    torch.testing.assert_close(task.hessian, task.hessian.T)
    off = task.hessian - torch.diag(task.hessian.diagonal())
    assert float(off.abs().mean()) > 0.1, "directions are turned"


def test_10_the_plane() -> None:
    path = descend(plane_task(), torch.tensor([0.01, 0.02], dtype=torch.float64), 0.35, 500)
    x, y = path[-1].tolist()
    assert x == pytest.approx(205.13, abs=0.01) and abs(y) < 0.2
    slope = float((path[-1, 0] - path[100, 0]) / 400)
    assert slope == pytest.approx(1.172 * 0.35, rel=2e-3)
    assert len(path[:, 1].sign().unique()) == 2 and float(path[:, 1].abs().max()) < 1, "it oscillates about zero"


@pytest.mark.parametrize(("eta", "steps", "message"), [(-1.0, 5, "eta = -1.0"), (0.1, 0, "steps = 0")])
def test_impossible_descents_are_refused(eta: float, steps: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        descend(plane_task(), torch.zeros(2, dtype=torch.float64), eta, steps)
    with pytest.raises(UserError, match="size = 0"):
        random_task(0)


# --- sign flips ---


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 10, width=32), min_size=1, max_size=40), st.integers(1, 12), st.sampled_from(BINS))
def test_bins_hold_every_weight_once_in_order_of_size(sizes: list[float], bins: int, equal: str) -> None:
    w = torch.tensor([*sizes, 1.0])
    parts = bins_of(w, bins, equal)
    assert len(parts) == bins and sorted(torch.cat(parts).tolist()) == list(range(len(w)))
    edges = [(float(w[part].min()), float(w[part].max())) for part in parts if len(part)]
    assert all(a[1] <= b[0] for a, b in pairwise(edges))
    if equal == "count":
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    else:
        width = float(w.max()) / bins
        for k, part in enumerate(parts):
            assert all(k * width - 1e-4 <= float(value) <= (k + 1) * width + 1e-4 for value in w[part])


def learned(config: Any, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of float64 after some steps of plain Adam on samples whose first pixels tell the class."""
    with seeded(seed, "init"):
        network = config.build((6,), 3).double()
    x = torch.randn(90, 6, generator=generator(1, "x")).double()
    y = x[:, :3].argmax(1)
    optimiser = torch.optim.Adam(network.parameters(), 0.005)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimiser.step()
    return network, x, y


def by_hand(network: nn.Module, x: Tensor, y: Tensor) -> float:
    network.eval()
    with torch.no_grad():
        loss = float(F.cross_entropy(network(x), y))
    network.train()
    return loss


@pytest.mark.parametrize("norm", ["batch", "running", "instance"])
def test_the_loss_is_the_mean_over_all_samples(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, x, y = learned(BinaryMLP(hidden=(12,), norm=norm))
    assert mean_loss(network, x, y) == pytest.approx(by_hand(network, x, y), rel=1e-5)
    whole = mean_loss(network, x, y)
    monkeypatch.setattr("cllib.models.norms.CHUNK", 7)
    assert mean_loss(network, x, y) == pytest.approx(whole, rel=1e-5) and network.training
    network = network.float()
    pixels = (x * 10 + 100).clamp(0, 255).to(torch.uint8)
    assert mean_loss(network, pixels, y) == pytest.approx(by_hand(network, pixels.float() / 255, y), rel=1e-5)


def test_flips_of_single_signs_cost_what_flipping_costs() -> None:
    """Bins of one weight each: every row can be computed by hand."""
    network, x, y = learned(BinaryMLP(hidden=(4,), norm="running"))
    before = {name: t.clone() for name, t in network.state_dict().items()}
    table = sign_flips(network, "fc2.weight", x, y, bins=12, flips=1, repeats=2)
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items()), "left as it was"
    assert list(table.columns) == ["bin", "size", "cost"] and table["bin"].tolist() == [
        k for k in range(12) for _ in "ab"
    ]
    weight, order = network.fc2.weight.detach(), network.fc2.weight.detach().abs().flatten().argsort()
    start = by_hand(network, x, y)
    for k, row in table.iterrows():
        index = order[k // 2]
        weight.view(-1)[index] *= -1
        assert row["cost"] == pytest.approx(by_hand(network, x, y) - start, abs=1e-6)
        weight.view(-1)[index] *= -1
        assert row["size"] == pytest.approx(float(weight.view(-1)[index].abs()), rel=1e-6)
    assert table["cost"].abs().max() > 1e-3


def test_flips_are_counted_together_and_drawn_from_a_seed() -> None:
    network, x, y = learned(BinaryMLP(hidden=(8,)))
    parts = {seed: sign_flips(network, "fc1.weight", x, y, 2, 5, 3, seed=seed) for seed in (0, 0, 1)}
    again = sign_flips(network, "fc1.weight", x, y, 2, 5, 3)
    assert parts[0].equals(again) and not parts[0].equals(parts[1])
    all_of_them = sign_flips(network, "fc1.weight", x, y, 1, 48, 1)
    start, weight = by_hand(network, x, y), network.fc1.weight.detach()
    weight.neg_()
    assert all_of_them["cost"][0] * 48 == pytest.approx(mean_loss(network, x, y) - start, rel=1e-4)


def test_large_weights_of_a_trained_network_cost_more() -> None:
    network, x, y = learned(BinaryMLP(hidden=(32,), norm="running"))
    table = sign_flips(network, "fc1.weight", x, y, bins=4, flips=8, repeats=12)
    cost, size = table.groupby("bin")["cost"].mean(), table.groupby("bin")["size"].mean()
    assert size.is_monotonic_increasing and cost[3] > 2 * cost[0]
    assert float(np.corrcoef(table["size"], table["cost"])[0, 1]) > 0.3


def test_bins_with_too_few_weights_are_left_out() -> None:
    network, x, y = learned(BinaryMLP(hidden=(8,)))
    with torch.no_grad():
        network.fc1.weight.view(-1)[0] = 10.0
    table = sign_flips(network, "fc1.weight", x, y, bins=5, flips=3, repeats=2, equal="width")
    assert table["bin"].tolist() == [0, 0], "one weight is far from all others"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "fc3.weight"}, "name = 'fc3.weight': allowed are fc1.weight, fc2.weight"),
        ({"bins": 0}, "bins = 0"),
        ({"flips": 0}, "flips = 0"),
        ({"repeats": 0}, "repeats = 0"),
        ({"equal": "size"}, "equal = 'size': allowed are count, width"),
        ({"flips": 1000}, "flips = 1000: no bin of fc1.weight has as many weights; fewer flips or fewer bins"),
    ],
)
def test_impossible_flips_are_refused(wrong: dict[str, Any], message: str) -> None:
    network, x, y = BinaryMLP(hidden=(4,)).build((6,), 3), torch.rand(5, 6), torch.zeros(5, dtype=torch.long)
    with pytest.raises(UserError, match=message):
        sign_flips(network, **{"name": "fc1.weight", "x": x, "y": y, **wrong})


# --- histograms ---


def test_what_histograms_are_drawn_of() -> None:
    assert list(by_layer(MLP((3,)).build((4,), 2))) == ["1.weight", "3.weight"]
    network = BinaryMLP(hidden=(3,)).build((4,), 2)
    network.fc2.weight.requires_grad_(False)
    found = by_layer(network)
    assert list(found) == ["fc1.weight"] and not found["fc1.weight"].requires_grad
    vit = ViT("vit", 8, patch=4, dim=8, depth=1, heads=2).build((1, 8, 8), 3)
    assert list(by_layer(vit)) == [
        *("cls", "pos", "patches.weight", "layers.block_1.attn.qkv.weight", "layers.block_1.attn.proj.weight"),
        *("layers.block_1.fc1.weight", "layers.block_1.fc2.weight", "layers.head.weight"),
    ]
    cnn = BinaryCNN(channels=(4, 4), hidden=()).build((1, 8, 8), 3)
    assert list(by_layer(cnn)) == ["conv1.weight", "conv2.weight", "fc1.weight"]
