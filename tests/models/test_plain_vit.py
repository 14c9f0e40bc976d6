"""The plain vision transformer in two parts: against plain loops, its cut, and its fault on request (BiRT spec, 2)."""

from dataclasses import replace
from math import pi
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.contract import tiny_stream
from cllib.errors import UserError
from cllib.models.convit import MLPHalf
from cllib.models.plain_vit import PlainHalf, PlainViT
from cllib.models.split import Split
from cllib.randomness import seeded
from cllib.recipes import Recipe
from cllib.training import train

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = PlainViT(patch=2, dim=12, heads=3, layers=3, cut=1)
SHAPE = (3, 6, 6)


def images(count: int = 3) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def built(config: PlainViT = SMALL, classes: int = 5) -> Split:
    with seeded(1, "init"):
        return config.build(SHAPE, classes)


def shaken(network: Any) -> Any:
    """The network with every weight somewhere else."""
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.3 * torch.randn(p.shape, generator=draws)
    return network.eval()


def attention(half: PlainHalf, x: Tensor, noise: Tensor | None = None) -> Tensor:
    """The attention half of a block on tokens `[B, T, D]`, head by head."""
    normed = F.layer_norm(x, x.shape[-1:], half.norm.weight, half.norm.bias)
    q, k, v = (normed @ half.qkv.weight.T + half.qkv.bias).chunk(3, -1)
    d = x.shape[-1] // half.heads
    parts = []
    for h in range(half.heads):
        own = slice(h * d, (h + 1) * d)
        a = (q[..., own] @ k[..., own].mT / d**0.5).softmax(-1)
        parts.append((a if noise is None else a + noise[:, h]) @ v[..., own])
    return x + torch.cat(parts, -1) @ half.proj.weight.T + half.proj.bias


def gelu(x: Tensor) -> Tensor:
    """The approximation: x / 2 (1 + tanh(sqrt(2 / pi) (x + .044715 x^3)))."""
    return x / 2 * (1 + ((2 / pi) ** 0.5 * (x + 0.044715 * x**3)).tanh())


def feed(half: MLPHalf, x: Tensor) -> Tensor:
    normed = F.layer_norm(x, x.shape[-1:], half.norm.weight, half.norm.bias)
    wide = gelu(normed @ half.mlp[0].weight.T + half.mlp[0].bias)
    assert wide.shape[-1] == 4 * x.shape[-1]
    return x + wide @ half.mlp[2].weight.T + half.mlp[2].bias


def unsplit(network: Split, x: Tensor) -> Tensor:
    """Logits as if the network had never been cut."""
    below, above = network.below, network.above
    places = F.unfold(2 * x - 1, 2, stride=2).mT
    z = places @ below.patches.weight.flatten(1).T + below.patches.bias
    z = torch.cat([below.cls.expand(len(x), -1, -1), z], 1) + below.pos
    for half in [*below.halves, *above.halves]:
        z = attention(half, z) if isinstance(half, PlainHalf) else feed(half, z)
    return z[:, 0] @ above.head.weight.T + above.head.bias


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_i1_two_parts_are_one_network_wherever_it_is_cut(cut: int) -> None:
    network = shaken(built(replace(SMALL, cut=cut)))
    with torch.no_grad():
        r = network.represent(images())
        assert r.shape == (3, 1 + 9, 12)
        logits = network(images())
        assert torch.equal(network.above(r), logits) and logits.shape == (3, 5)
        torch.testing.assert_close(logits, unsplit(network, images()), atol=2e-6, rtol=2e-6)
    kinds = [PlainHalf, MLPHalf] * 3
    assert [type(half) for half in network.below.halves] == kinds[: 2 * cut], "whole blocks"
    assert [type(half) for half in network.above.halves] == kinds[2 * cut :]
    assert not any(isinstance(m, nn.Dropout) for m in network.modules())


def test_i18_noise_disturbs_attention_above_the_cut() -> None:
    network = shaken(built(replace(SMALL, layers=3, cut=2)))
    r, e = network.represent(images()), torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(4))
    asked = []

    def noise(*told: int) -> tuple[Tensor, Tensor]:
        asked.append(told)
        return torch.tensor([0, 2]), e

    with torch.no_grad():
        everywhere = torch.zeros(3, 3, 10, 10)
        everywhere[[0, 2]] = e
        z = feed(network.above.halves[1], attention(network.above.halves[0], r, everywhere))
        found = network.above(r, noise)
        torch.testing.assert_close(found, network.above.head(z[:, 0]), atol=1e-4, rtol=1e-4)
        assert torch.equal(found[1], network.above(r)[1]) and not torch.isclose(found[0], network.above(r)[0]).all()
    assert asked == [(3, 3, 10)]


def test_a_detached_g_never_learns() -> None:
    stream = tiny_stream()
    for detached in (True, False):
        config = PlainViT(patch=2, dim=8, heads=2, layers=2, cut=1, detached=detached)
        recipe = Recipe("naive", network=config, optimizer="adam", step_size=0.01, weight_decay=0.1, batch_size=5)
        learner: Any = recipe.build(stream, 1)
        before = {name: value.clone() for name, value in learner.network.state_dict().items()}
        outcome = train(learner, stream, recipe.feed(stream, 1), progress=False)
        moved = {n for n, value in learner.network.state_dict().items() if not torch.equal(value, before[n])}
        assert outcome.test.shape == (1, 3, 3) and any(name.startswith("above") for name in moved)
        assert any(name.startswith("below") for name in moved) == (not detached)


def test_one_head_over_all_classes_is_what_is_tuned() -> None:
    network = built(classes=7)
    above: Any = network.above
    assert network.classes == 7 and not above.grows and above.grown == 0 and above.tuned() == [above.head]
    e = above.embed(above.body(network.represent(images()), None), first=1)
    assert e.shape == (3, 12) and torch.equal(above.answer(e), network(images())) and above.diverge(e) is None
    above.grow(2)
    assert network(images()).shape == (3, 7)


def test_initial_weights_and_the_number_of_them() -> None:
    network = PlainViT().build((3, 32, 32), 10)
    below: Any = network.below
    block = 4 * 48 + (3 * 48 * 48 + 3 * 48) + (48 * 48 + 48) + (2 * 4 * 48 * 48 + 4 * 48 + 48)
    start = 3 * 16 * 48 + 48 + 48 + 65 * 48
    assert sum(p.numel() for p in below.parameters()) == start + 2 * block
    assert sum(p.numel() for p in network.above.parameters()) == 2 * block + 48 * 10 + 10
    for name, p in network.named_parameters():
        numbers = p.detach()
        if "norm" in name:
            continue
        if name.endswith("bias"):
            assert not numbers.any(), name
        else:  # 5 sigma of a standard deviation
            assert abs(float(numbers.std()) - 0.02) < 5 * 0.02 / (2 * p.numel()) ** 0.5, name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch", 0),
        ("dim", 0),
        ("dim", 1.5),
        ("heads", 0),
        ("heads", 5),
        ("layers", 0),
        ("cut", -1),
        ("cut", 4),
        ("detached", 1),
    ],
)
def test_impossible_settings_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        replace(SMALL, **{name: value})
    assert str(caught.value).startswith(f"{name} = {value!r}: ")


@pytest.mark.parametrize("shape", [(16,), (3, 6, 4), (3, 5, 5)])
def test_images_that_do_not_divide_into_patches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"^patch = 2: takes square images .*not \["):
        SMALL.build(shape, 4)
