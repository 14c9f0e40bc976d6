"""The convolutions before brain-inspired replay: what they compute, what freezes them, and which files they take."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cllib.errors import UserError
from cllib.models.conv_front import FILE, ConvFront, ConvMLP, conv_front, from_original
from cllib.models.networks import MLP
from cllib.randomness import generator, seeded

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTHS, STRIDES = (3, 16, 32, 64, 128, 256), (1, 2, 2, 2, 2)
State = dict[str, Tensor]


def images(n: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=generator(seed, "images"))


def original() -> State:
    """A checkpoint by the original's names, its numbers sines of their positions, variances positive."""
    made: State = {}
    for i, (a, b) in enumerate(pairwise(WIDTHS), 1):
        shapes: dict[str, tuple[int, ...]] = {"conv.weight": (b, a, 3, 3), "conv.bias": (b,)}
        shapes |= {f"bn.{leaf}": (b,) for leaf in ("weight", "bias", "running_mean", "running_var")} if i < 5 else {}
        for k, (leaf, shape) in enumerate(shapes.items()):
            values = torch.sin(0.37 * torch.arange(torch.Size(shape).numel()) + k + i).view(shape)
            scale = (2 / (9 * a)) ** 0.5 if leaf == "conv.weight" else 1
            made[f"convLayer{i}.{leaf}"] = values.abs() + 0.5 if leaf == "bn.running_var" else values * scale
        if i < 5:
            made[f"convLayer{i}.bn.num_batches_tracked"] = torch.tensor(39000)
    return made


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "C3-5x16-bn"
    torch.save({"state": original()}, path)
    return path


def by_hand(x: Tensor, state: State, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Features of images from a checkpoint of the original, in double precision."""
    x = (x.double() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    w = {name: value.double() for name, value in state.items()}
    for i, stride in enumerate(STRIDES, 1):
        x = F.conv2d(x, w[f"convLayer{i}.conv.weight"], w[f"convLayer{i}.conv.bias"], stride, padding=1)
        if i < 5:
            g, b, m, v = (w[f"convLayer{i}.bn.{k}"] for k in ("weight", "bias", "running_mean", "running_var"))
            x = F.relu(F.batch_norm(x, m, v, g, b, eps=1e-5))
    return x.flatten(1)


# --- what they compute ---


@pytest.mark.parametrize(
    ("statistics", "mean", "std"),
    [
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)),
    ],
)
def test_6_features_are_those_of_an_independent_forward(
    checkpoint: Path, statistics: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    front, x = conv_front(str(checkpoint), statistics), images()
    wanted = by_hand(x, original(), mean, std)
    torch.testing.assert_close(front(x).double(), wanted, atol=1e-4, rtol=1e-4)
    by_pixel = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(front.normalized(x), by_pixel, atol=1e-5, rtol=1e-5)
    assert front.statistics == statistics and front.told.startswith(f"conv front, {statistics} statistics, weights ")


GOLDEN = [-0.00125, 0.70633, -0.26364, -0.25261, -0.27218, -0.28992, 0.0858, 0.07116]  # mean, std, the first ones


def test_6_golden_features_of_a_smooth_image(checkpoint: Path) -> None:
    """x[c, h, w] = sin(0.1 h + 0.2 w + c), normalized already; our own numbers, for weights that are sines."""
    c, h, w = (torch.arange(n).float() for n in (3, 32, 32))
    x = torch.sin(0.1 * h[:, None] + 0.2 * w + c[:, None, None])[None]
    with torch.no_grad():
        f = conv_front(str(checkpoint)).features(x)[0]
    assert [f.mean().item(), f.std().item()] == pytest.approx(GOLDEN[:2], abs=1e-4)
    assert f[:6].tolist() == pytest.approx(GOLDEN[2:], abs=1e-4)


def test_1_2_the_last_layer_is_a_convolution_alone() -> None:
    features = conv_front()(images())
    assert features.shape == (4, 1024) and features.dtype == torch.float32
    assert 0.1 < float((features < 0).float().mean()) < 0.9, "signed"
    assert not torch.allclose(features[0], features[1])


def test_1_2_structure() -> None:
    front = ConvFront()
    layers: Any = list(front.convolutions)
    assert [(m.in_channels, m.out_channels) for m in layers] == list(pairwise(WIDTHS))
    assert [m.stride for m in layers] == [(s, s) for s in STRIDES]
    assert all(m.kernel_size == (3, 3) and m.padding == (1, 1) and m.bias is not None for m in layers)
    norms: Any = list(front.norms)
    assert [m.num_features for m in norms] == list(WIDTHS[1:5]) and {m.eps for m in norms} == {1e-5}
    assert sum(p.numel() for p in front.parameters()) == 393_088
    assert sum(t.numel() for name, t in front.state_dict().items() if "tracked" not in name) == 393_088 + 480
    assert not any(name in front.state_dict() for name in ("mean", "std"))


# --- what freezes them ---


def trained(front: ConvFront) -> tuple[State, State]:
    """Weights and statistics before and after some steps of a network that starts with them."""
    network = nn.Sequential(front, nn.Linear(1024, 2))
    before = {name: value.clone() for name, value in front.state_dict().items()}
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 0.01, weight_decay=0.1)
    for _ in range(3):
        network.train()
        optimiser.zero_grad()
        F.cross_entropy(network(images()), torch.tensor([0, 1, 0, 1])).backward()
        optimiser.step()
    return before, front.state_dict()


def test_5_what_is_frozen_stays_in_evaluation_mode_and_keeps_its_bits() -> None:
    front = conv_front().requires_grad_(False)
    nn.Sequential(front).train()
    assert not front.training and not any(m.training for m in front.modules())
    before, after = trained(front)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in front.parameters())


def test_5_what_is_not_frozen_learns() -> None:
    front = conv_front()
    assert not front.training, "as it is made"
    assert front.train().norms[0].training and not front.eval().norms[0].training
    before, after = trained(front)
    assert not any(torch.equal(before[name], after[name]) for name in before)


# --- weights ---


def test_own_weights_are_shipped_in_half_precision() -> None:
    stored, front = load_file(FILE), conv_front()
    own = front.state_dict()
    assert stored.keys() == own.keys() and FILE.stat().st_size < 1_000_000
    assert {v.dtype for n, v in stored.items() if "tracked" not in n} == {torch.float16}
    assert all(torch.equal(own[name], value.to(own[name].dtype)) for name, value in stored.items())
    assert all(v.isfinite().all() for v in own.values()) and own["convolutions.0.weight"].dtype == torch.float32
    assert not torch.equal(own["convolutions.0.weight"], conv_front("random").state_dict()["convolutions.0.weight"])


def test_random_weights_are_the_same_twice_and_belong_to_nobody() -> None:
    with seeded(1, "init"):
        one = conv_front("random")
        drawn = torch.rand(1)
    with seeded(1, "init"):
        assert torch.equal(torch.rand(1), drawn), "no generator of the run is drawn from"
    with seeded(2, "init"):
        two = conv_front("random")
    assert one.told == two.told != conv_front().told and not one.training
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert torch.equal(one(images()), two(images()))


def test_6_the_original_s_checkpoint_by_our_names(checkpoint: Path) -> None:
    found, kept, front = from_original(checkpoint), original(), conv_front(str(checkpoint)).state_dict()
    assert found.keys() == front.keys() and len(found) == len(kept) == 30
    for i in range(1, 6):
        for leaf in ("weight", "bias"):
            assert torch.equal(front[f"convolutions.{i - 1}.{leaf}"], kept[f"convLayer{i}.conv.{leaf}"])
    for i in range(1, 5):
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(front[f"norms.{i - 1}.{leaf}"], kept[f"convLayer{i}.bn.{leaf}"])


@pytest.mark.parametrize("halves", [True, False])
def test_a_file_by_our_names_is_the_same_as_the_shipped_one(tmp_path: Path, halves: bool) -> None:
    own, path = conv_front().state_dict(), tmp_path / "w.safetensors"
    kept = {n: v.half() if halves and v.is_floating_point() else v for n, v in own.items() if "tracked" not in n}
    save_file(kept, path)  # counters may be left out
    other = conv_front(str(path))
    assert all(torch.equal(v, own[n]) for n, v in other.state_dict().items() if "tracked" not in n)
    assert torch.equal(other(images()), conv_front()(images()))


# --- files that are refused ---


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        conv_front(str(path))
    message = str(caught.value)
    assert message.startswith(f"weights = {str(path)!r}: ")
    return message.removeprefix(f"weights = {str(path)!r}: ")


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("convLayer1.conv.weight", "convolutions.0.weight"),
        ("convLayer5.conv.bias", "convolutions.4.bias"),
        ("convLayer4.bn.running_var", "norms.3.running_var"),
    ],
)
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(tmp_path: Path, name: str, ours: str) -> None:
    state, path = original(), tmp_path / "C3"
    shape = list(state[name].shape)
    state[name] = state[name][1:]
    torch.save({"state": state}, path)
    assert refused(path) == f"{ours} is {[shape[0] - 1, *shape[1:]]}, must be {shape}"
    del state[name]
    torch.save({"state": state}, path)
    assert refused(path) == f"{ours} is missing"
    stored = tmp_path / "w.safetensors"
    save_file({n: v for n, v in conv_front().state_dict().items() if n != ours}, stored)
    assert refused(stored) == f"{ours} is missing"


@pytest.mark.parametrize(
    "kept",
    [
        {"weights": {}},
        {"state": {"fcE.weight": torch.ones(1)}},
        {"state": {"convLayer1.pool.weight": torch.ones(1)}},
        {"state": {"convLayerX.conv.weight": torch.ones(1)}},
        [1, 2],
        {"state": original(), "network": nn.Linear(2, 2)},
    ],
    ids=["no state", "another name", "another kind", "no number", "a list", "code beside the weights"],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, kept: Any) -> None:
    path = tmp_path / "C3"
    torch.save(kept, path)
    assert refused(path).startswith("not a checkpoint of these convolutions (")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for name, start in (("C3", "not a checkpoint"), ("w.safetensors", "cannot be read")):
        assert refused(tmp_path / name).startswith(start), "missing"
        (tmp_path / name).write_bytes(b"no weights at all")
        assert refused(tmp_path / name).startswith(start)
    with pytest.raises(UserError, match=r"^statistics = 'mnist': allowed are cifar10, cifar100$"):
        conv_front(statistics="mnist")


# --- the compared network ---


def test_the_compared_network_starts_from_the_same_convolutions() -> None:
    frozen, free = ConvMLP((7,), freeze=True), ConvMLP((7,))
    front = frozen.front((3, 32, 32))
    assert (
        free.front((3, 32, 32)) is None and front is not None and not any(p.requires_grad for p in front.parameters())
    )
    made: list[nn.Module] = []
    for config, shape in ((frozen, (3, 32, 32)), (frozen, (1024,)), (free, (3, 32, 32))):
        with seeded(1, "init"):
            made.append(config.build(shape, 5).eval())
    x = images()
    inside, head, learning = made
    assert (
        torch.equal(inside(x), head(front(x)))
        and torch.equal(inside(x), learning(x))
        and head(front(x)).shape == (4, 5)
    )
    learn = [sum(p.numel() for p in network.parameters() if p.requires_grad) for network in made]
    alone = sum(p.numel() for p in MLP((7,)).build((1024,), 5).parameters())
    assert learn == [alone, alone, alone + 393_088]
    assert frozen.fingerprint() == free.fingerprint() == conv_front().told != ConvMLP(weights="random").fingerprint()


def test_the_compared_network_refuses_what_it_cannot_take() -> None:
    for config, shape in ((ConvMLP(freeze=True), (1, 28, 28)), (ConvMLP(), (1024,))):
        for call in (config.front, lambda s, config=config: config.build(s, 2)):
            with pytest.raises(UserError, match=r"takes images \[3, 32, 32\], not \["):
                call(shape)
    with pytest.raises(UserError, match=r"^freeze = 1"):
        ConvMLP(freeze=1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^hidden = 0"):
        ConvMLP((0,))
