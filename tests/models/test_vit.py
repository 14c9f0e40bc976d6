"""The three vision transformers: the released size, the released faults, and their correction."""

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cllib.errors import UserError
from cllib.models.binary import BinaryLinear, binary_weights, sign
from cllib.models.vit import MEAN, NETS, STD, FixedBinaryLinear, Prepared, SignedNorm, Transformer, ViT, gradient_reach
from cllib.randomness import generator, seeded
from cllib.recipes import Recipe
from cllib.streams import Experience, Stream

TINY = ViT("bvit", 28, patch=7, dim=64, depth=2, heads=4, mlp_ratio=2.0)  # that of the chapter
SMALL = ViT("bvit", 16, patch=4, dim=24, depth=4, heads=4, mlp_ratio=2.0)
CLASSES = 5


def images(count: int = 10, channels: int = 1, side: int = 16) -> Tensor:
    return torch.rand(count, channels, side, side, generator=generator(0, "images"))


def labels(count: int = 10) -> Tensor:
    return torch.arange(count) % CLASSES


def built(config: ViT) -> Transformer:
    with seeded(1, "init"):
        return config.build((1, 16, 16), CLASSES)


def gradients(network: nn.Module) -> dict[str, Tensor | None]:
    F.cross_entropy(network(images()), labels()).backward()
    return {name: p.grad for name, p in network.named_parameters()}


def kind(gradient: Tensor | None) -> str:
    if gradient is None:
        return "none"
    return "nonzero" if float(gradient.abs().max()) > 0 else "zero"


# --- sizes ---


@cache
def released(net: str, as_published: bool = False) -> Transformer:
    """At the released size, without values."""
    with torch.device("meta"):
        return ViT(net, as_published=as_published).build((3, 64, 64), 200)


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize(("net", "binary"), [("vit", 0), ("bvit", 19_027_968), ("hybrid", 9_437_184)])
def test_the_released_size(net: str, binary: int, as_published: bool) -> None:
    network = released(net, as_published)
    parameters = dict(network.named_parameters())
    assert sum(p.numel() for p in parameters.values()) == 29_249_480 and len(parameters) == 56
    assert sum(p.numel() for p in binary_weights(network).values()) == binary
    assert all(f"{name.removesuffix('weight')}bias" in parameters for name in binary_weights(network))
    assert parameters["pos"].shape == (1, 197, 768) and parameters["patches.weight"].shape == (768, 3, 16, 16)
    assert parameters["layers.block_4.fc1.weight"].shape == (3072, 768)


@pytest.mark.parametrize("net", NETS)
def test_the_size_of_the_chapter(net: str) -> None:
    network = replace(TINY, net=net).build((1, 28, 28), 10)
    assert sum(p.numel() for p in network.parameters()) == 72_074 and network.pos.shape == (1, 17, 64)


@pytest.mark.parametrize("net", NETS)
def test_modules_are_named_as_released(net: str) -> None:
    assert list(released(net).layers) == ["block_1", "block_2", "block_3", "block_4", "norm", "head"]


@pytest.mark.parametrize(
    ("net", "signed", "binary"),
    [
        ("vit", [], []),
        ("bvit", ["block.norm1", "block.norm2", "norm"], ["block.fc1", "block.fc2", "head"]),
        ("hybrid", ["block.norm1", "norm"], ["block.fc1"]),
    ],
)
@pytest.mark.parametrize("as_published", [False, True])
def test_what_is_binary_where(net: str, signed: list[str], binary: list[str], as_published: bool) -> None:
    network = released(net, as_published)

    def found(of: type[nn.Module]) -> list[str]:
        modules = [name for name, m in network.layers.named_modules() if isinstance(m, of)]
        return list(dict.fromkeys(name.replace("block_1", "block") for name in modules if "block_1" in name or
                                  "block" not in name))  # fmt: skip

    assert sorted(found(SignedNorm)) == sorted(signed) and sorted(found(BinaryLinear)) == sorted(binary)
    layers = [m for m in network.modules() if isinstance(m, BinaryLinear)]
    assert all(layer.binarize_input for layer in layers)
    assert all((layer.scale == 1) == as_published for layer in layers)
    norms = [m for m in network.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 9 and all(norm.eps == 1e-6 for norm in norms)


def test_attention_is_binary_on_request() -> None:
    names = set(binary_weights(built(replace(SMALL, binarize_attention=True))))
    more = {f"layers.block_{k}.attn.{part}.weight" for k in range(1, 5) for part in ("qkv", "proj")}
    assert names == set(binary_weights(built(SMALL))) | more


# --- gradients ---


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_11_every_tensor_of_a_corrected_network_learns(net: str, attention: bool) -> None:
    network = built(replace(SMALL, net=net, binarize_attention=attention))
    assert network.depth_used == 4
    found = gradients(network)
    assert len(found) == 56 and {name for name, g in found.items() if kind(g) != "nonzero"} == set()


@pytest.mark.parametrize("net", ["bvit", "hybrid"])
def test_11_as_published_only_the_head_learns(net: str) -> None:
    network = built(replace(SMALL, net=net, as_published=True))
    assert network.depth_used == 3
    found = gradients(network)
    assert Counter(kind(g) for g in found.values()) == {"zero": 42, "none": 12, "nonzero": 2}
    assert {name for name, g in found.items() if kind(g) == "nonzero"} == {"layers.head.weight", "layers.head.bias"}
    assert all(("block_4" in name) == (g is None) for name, g in found.items())


def test_11_as_published_the_real_network_only_loses_its_last_block() -> None:
    network = built(replace(SMALL, net="vit", as_published=True))
    found = gradients(network)
    assert network.depth_used == 3
    assert Counter(kind(g) for g in found.values()) == {"nonzero": 44, "none": 12}
    assert all(("block_4" in name) == (g is None) for name, g in found.items())


@pytest.mark.parametrize("as_published", [False, True])
def test_11_the_reach_of_gradients_can_be_asked_for(as_published: bool) -> None:
    network = built(replace(SMALL, as_published=as_published))
    reach = gradient_reach(network, images(), labels())
    assert all(p.grad is None for p in network.parameters())
    words = {"none": "none", "zero": "zero", "nonzero": "some"}
    assert reach == {name: words[kind(g)] for name, g in gradients(network).items()}


def learned(config: ViT, steps: int = 5) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], nn.Module]:
    """Hidden weights and B before and after a few steps with the decay of the released command: W, B, B after."""
    part = Experience(images(), labels(), tuple(range(CLASSES)))
    stream = Stream("x", CLASSES, (part,), (part,), ())
    recipe = Recipe(network=config, optimizer="metaplastic", meta=(1.0,), step_size=0.02, weight_decay=1e-7)
    learner = recipe.build(stream, 1)
    layers = {name: m for name, m in learner.network.named_modules() if isinstance(m, BinaryLinear)}
    start = {name: m.weight.detach().clone() for name, m in layers.items()}
    binary = {name: m.binary().detach().clone() for name, m in layers.items()}
    for _ in range(steps):
        learner.observe(part.x, part.y)
    return start, binary, {name: m.binary().detach() for name, m in layers.items()}, learner.network


@pytest.mark.parametrize("net", ["bvit", "hybrid"])
def test_11_signs_change_in_a_corrected_network_and_never_as_published(net: str) -> None:
    start, before, after, network = learned(replace(SMALL, net=net))
    assert all(torch.equal(before[name], sign(w)) for name, w in start.items())
    assert all((before[name] != after[name]).any() for name in before)
    start, before, after, network = learned(replace(SMALL, net=net, as_published=True))
    moved = [name for name, w in start.items() if not torch.equal(w, network.get_submodule(name).weight)]
    used = [name for name in before if "block_4" not in name]
    assert moved == used, "the optimiser steps: decay moves what has no gradient"
    assert all(torch.equal(before[name], sign(w)) for name, w in start.items())
    assert all(torch.equal(before[name], after[name]) for name in before)
    if net == "bvit":
        head = network.layers["head"]
        assert not torch.equal(sign(head.weight.detach()), head.binary().detach()), "else nothing was shown"


def test_as_published_inputs_are_not_scaled() -> None:
    with seeded(0, "init"):
        layer = FixedBinaryLinear(6, 3)
    x = torch.randn(4, 6, generator=generator(0, "x"))
    x[0, :3] = 0.0
    torch.testing.assert_close(layer(x), x.sign() @ layer.weight.sign().T + layer.bias)
    assert "first" in layer.state_dict(), "a run that goes on needs the first signs"


# --- the forward pass ---


def by_hand(network: Transformer, config: ViT, x: Tensor) -> Tensor:
    """The forward pass of a corrected network, written out."""
    dim, heads, net = config.dim, config.heads, config.net

    def norm(layer: nn.LayerNorm, t: Tensor, binary: bool) -> Tensor:
        t = (t - t.mean(-1, keepdim=True)) / (t.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        t = t * layer.weight + layer.bias
        return t.sign() if binary else t

    def linear(layer: nn.Linear, t: Tensor, binary: bool) -> Tensor:
        if not binary:
            return t @ layer.weight.T + layer.bias
        return t.sign() @ sign(layer.weight).T / t.shape[-1] ** 0.5 + layer.bias

    tokens = F.conv2d(x, network.patches.weight, network.patches.bias, stride=config.patch).flatten(2).mT
    t = torch.cat([network.cls.expand(len(x), 1, dim), tokens], 1) + network.pos
    for k in range(1, config.depth + 1):
        block = network.layers[f"block_{k}"]
        qkv = linear(block.attn.qkv, norm(block.norm1, t, net != "vit"), config.binarize_attention)
        q, key, v = (part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in qkv.split(dim, -1))
        weights = (q @ key.mT * (dim // heads) ** -0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        t = t + linear(block.attn.proj, mixed, config.binarize_attention)
        wide = F.gelu(linear(block.fc1, norm(block.norm2, t, net == "bvit"), net != "vit"))
        t = t + linear(block.fc2, wide, net == "bvit")
    return linear(network.layers["head"], norm(network.layers["norm"], t, net != "vit")[:, 0], net == "bvit")


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_the_forward_pass_is_the_written_one(net: str, attention: bool) -> None:
    config = replace(SMALL, net=net, binarize_attention=attention, depth=2)
    with seeded(1, "init"):
        network = config.build((1, 16, 16), CLASSES).double()
    x = images().double()
    # In float64 no value is so near to zero that its sign depends on how the sum was made.
    torch.testing.assert_close(network(x), by_hand(network, config, x), atol=1e-9, rtol=1e-9)


def test_signed_norms_pass_gradients_where_they_are_at_most_one() -> None:
    x, c = 2 * torch.randn(5, 8, generator=generator(0, "x")), torch.randn(5, 8, generator=generator(1, "x"))
    found, blocked = SignedNorm(8, raw=False), SignedNorm(8, raw=True)
    for norm in (found, blocked):
        assert torch.equal(norm(x), F.layer_norm(x, (8,), eps=1e-6).sign()) and (norm(0 * x) == 0).all()
        (c * norm(x)).sum().backward()
    small = (F.layer_norm(x, (8,), eps=1e-6).abs() <= 1).float()
    assert 0 < float(small.mean()) < 1
    torch.testing.assert_close(found.bias.grad, (c * small).sum(0))
    assert float(blocked.bias.grad.abs().max()) == float(blocked.weight.grad.abs().max()) == 0


def test_initial_values() -> None:
    network, raw = built(SMALL), built(replace(SMALL, as_published=True))
    hidden = torch.cat([w.flatten() for w in binary_weights(network).values()]).detach()
    assert 0.049 < float(hidden.abs().max()) <= 0.05
    assert float(network.pos.detach().std()) == pytest.approx(0.02, rel=0.15) and not network.cls.any()
    assert not raw.pos.any() and not raw.cls.any()
    widest = float(binary_weights(raw)["layers.block_1.fc1.weight"].detach().abs().max())
    assert 0.19 < widest <= 24**-0.5, "torch's own: U(-1, 1) / sqrt(fan in)"


# --- what the network sees ---


def test_images_are_normalised_only_in_colour() -> None:
    grey, colour = images(2), images(2, 3)
    assert torch.equal(Prepared(16, 1, 16)(grey), grey)
    wanted = torch.stack([(colour[:, c] - MEAN[c]) / STD[c] for c in range(3)], 1)
    torch.testing.assert_close(Prepared(16, 3, 16)(colour), wanted)


def test_images_are_enlarged_and_their_centre_is_cut_out() -> None:
    x = torch.zeros(1, 1, 64, 64)
    x[..., 24:40, 24:40] = 1  # the middle quarter
    seen = Prepared(224, 1, 256)(x)
    assert seen.shape == (1, 1, 224, 224)
    on = (seen[0, 0] > 0.5).nonzero()
    assert on.min(0).values.tolist() == [80, 80] and on.max(0).values.tolist() == [143, 143], "24 * 4 - 16 on"
    small = Prepared(16, 1, 16)(x)
    assert small.shape == (1, 1, 16, 16) and float(small.mean()) == pytest.approx(1 / 16, rel=0.02), "shrunk, not cut"


def test_nothing_of_the_preparation_is_saved() -> None:
    assert not [name for name in built(SMALL).state_dict() if "prepared" in name]


# --- what is refused ---


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"net": "swin"}, "net = 'swin': allowed are vit, bvit, hybrid"),
        ({"image_size": 0}, "image_size = 0"),
        ({"patch": 5}, "patch = 5: must divide image_size = 16"),
        ({"heads": 5}, "heads = 5: must divide dim = 24"),
        ({"resize": 8}, "resize = 8: must be a whole number at least 16"),
        ({"depth": 0}, "depth = 0"),
        ({"mlp_ratio": 0}, "mlp_ratio = 0"),
        ({"init_width": 0.0}, "init_width = 0.0"),
        ({"as_published": 1}, "as_published = 1: must be true or false"),
        ({"binarize_attention": None}, "binarize_attention = None"),
        ({"as_published": True, "binarize_attention": True}, "not together with as_published = True"),
    ],
)
def test_impossible_transformers_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SMALL, **wrong)


@pytest.mark.parametrize("shape", [(5,), (1, 16, 12)])
def test_inputs_that_are_no_square_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="takes square images"):
        SMALL.build(shape, 3)
