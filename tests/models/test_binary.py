"""Binarized networks: signs, their gradients, and which tensors are hidden weights."""

from dataclasses import replace
from itertools import pairwise
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cllib.contract import tiny_stream
from cllib.errors import UserError
from cllib.models.binary import (
    BinaryCNN,
    BinaryConv2d,
    BinaryLinear,
    BinaryMLP,
    SignActivation,
    binarized,
    binary_weights,
    gated,
    sign,
    sign_clipped,
    straight_through,
)
from cllib.models.norms import KINDS
from cllib.models.vit import NETS, ViT
from cllib.randomness import generator, seeded
from cllib.recipes import Recipe

SMALL_CNN = BinaryCNN(channels=(4, 4, 6, 6), hidden=(8,))
SMALL_VIT = {"image_size": 8, "patch": 4, "dim": 8, "depth": 2, "heads": 2}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "x"))


def test_the_sign_of_zero_is_one_for_weights_and_zero_for_activations() -> None:
    x = torch.tensor([-2.0, -1e-30, -0.0, 0.0, 1e-30, 3.0])
    for weights in (sign, binarized):
        assert weights(x).tolist() == [-1, -1, 1, 1, 1, 1]
    for activations in (straight_through, sign_clipped, SignActivation()):
        assert activations(x).tolist() == [-1, -1, 0, 0, 1, 1]
    assert x.tolist() == [-2.0, pytest.approx(-1e-30), -0.0, 0.0, pytest.approx(1e-30), 3.0], "no change in place"


def test_6_binary_values_are_never_zero() -> None:
    layer = BinaryLinear(5, 4)
    with torch.no_grad():
        layer.weight[0] = 0
    assert layer.binary().unique().tolist() == [-1, 1] and (layer.binary()[0] == 1).all()


def test_6_hidden_weights_stay_real_and_signs_flip_where_they_cross_zero() -> None:
    stream, flips = tiny_stream(), 0
    recipe = Recipe(network=BinaryMLP(hidden=(9,)), optimizer="metaplastic", step_size=0.02, meta=(1.0,), batch_size=6)
    learner = recipe.build(stream, 1)
    for x, y in recipe.feed(stream, 1).batches(0):
        before = {name: w.detach().clone() for name, w in binary_weights(learner.network).items()}
        learner.observe(x, y)
        for name, w in binary_weights(learner.network).items():
            binary = sign(w.detach())
            assert (w.abs() != 1).all() and set(binary.unique().tolist()) == {-1, 1}
            crossed = (w >= 0) != (before[name] >= 0)
            assert torch.equal(crossed, binary != sign(before[name]))
            flips += int(crossed.sum())
    assert flips > 10, "steps of 0.02 from weights below 0.05: some must have crossed"


def test_7_activations_pass_gradients_where_they_are_at_most_one() -> None:
    x = torch.tensor([-3.0, -1 - 1e-6, -1.0, -0.5, 0.0, 0.5, 1.0, 1 + 1e-6, 2.0], requires_grad=True)
    c = torch.arange(1.0, 10.0)
    (c * sign_clipped(x)).sum().backward()
    assert torch.equal(x.grad, c * torch.tensor([0, 0, 1, 1, 1, 1, 1, 0, 0]))
    module = x.detach().clone().requires_grad_()
    (c * SignActivation()(module)).sum().backward()
    assert torch.equal(module.grad, x.grad)


@pytest.mark.parametrize("through", [binarized, straight_through])
def test_7_weights_and_inputs_pass_gradients_everywhere(through: Any) -> None:
    x = torch.tensor([-50.0, -1.0, 0.0, 2.0], requires_grad=True)
    c = torch.tensor([1.0, -2.0, 3.0, 4.0])
    (c * through(x)).sum().backward()
    assert torch.equal(x.grad, c)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 9))
def test_7_a_binary_layer_is_a_layer_of_signs(
    inputs: int, outputs: int, batch: int, bias: bool, scaled: bool, seed: int
) -> None:
    layer, x = BinaryLinear(inputs, outputs, bias, scaled=scaled), normal(batch, inputs, seed=seed).requires_grad_()
    with torch.no_grad():
        layer.weight.copy_(normal(outputs, inputs, seed=seed + 1) * 3)
    leaf, copy = sign(layer.weight.detach()).requires_grad_(), x.detach().clone().requires_grad_()
    scale = inputs**-0.5 if scaled else 1.0
    wanted = F.linear(copy, leaf) * scale + (layer.bias.detach() if bias else 0)
    found = layer(x)
    assert torch.equal(found, wanted)
    pull = normal(batch, outputs, seed=seed + 2)
    (pull * found).sum().backward()
    (pull * wanted).sum().backward()
    assert torch.equal(layer.weight.grad, leaf.grad) and torch.equal(x.grad, copy.grad)
    if bias:
        torch.testing.assert_close(layer.bias.grad, pull.sum(0))


def test_7_a_binary_convolution_is_a_convolution_of_signs() -> None:
    layer, x = BinaryConv2d(2, 3, 3, padding=1, bias=True), normal(4, 2, 5, 5).requires_grad_()
    leaf, copy = sign(layer.weight.detach()).requires_grad_(), x.detach().clone().requires_grad_()
    found, wanted = layer(x), F.conv2d(copy, leaf, layer.bias, padding=1)
    assert torch.equal(found, wanted)
    found.square().sum().backward()
    wanted.square().sum().backward()
    assert torch.equal(layer.weight.grad, leaf.grad) and torch.equal(x.grad, copy.grad)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_a_layer_that_signs_its_input_does_so_without_a_clip(kind: str) -> None:
    draw = generator(0, "x")
    layer: Any = BinaryLinear(6, 3, binarize_input=True)
    x = 5 * torch.randn(2, 6, generator=draw)
    if kind == "convolution":
        layer, x = BinaryConv2d(1, 3, 3, binarize_input=True), 5 * torch.randn(2, 1, 4, 4, generator=draw)
    x.requires_grad_()
    signs = x.detach().sign().requires_grad_()
    found = layer(x)
    layer.binarize_input = False
    wanted = layer(signs)
    assert torch.equal(found, wanted) and float(x.detach().abs().max()) > 1
    found.sum().backward()
    wanted.sum().backward()
    assert torch.equal(x.grad, signs.grad)


def test_signs_can_be_differentiated_sample_by_sample() -> None:
    layer, x = BinaryLinear(4, 3), normal(5, 4)
    weight = {"weight": layer.weight.detach()}

    def loss(parameters: Any, sample: Tensor) -> Tensor:
        return sign_clipped(torch.func.functional_call(layer, parameters, (sample[None],))).square().mean()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weight, x)["weight"]
    for sample, found in zip(x, each, strict=True):
        torch.testing.assert_close(found, torch.func.grad(loss)(weight, sample)["weight"])


# --- the networks ---


def by_hand(network: nn.Sequential, x: Tensor) -> Tensor:
    """The forward pass of the original's MLP with statistics of the batch: signs, sums, norms."""
    x = x.flatten(1)
    count = sum(isinstance(m, BinaryLinear) for m in network)
    for k in range(1, count + 1):
        layer, scale = network.get_submodule(f"fc{k}"), network.get_submodule(f"norm{k}")
        total = x @ torch.where(layer.weight < 0, -1.0, 1.0).double().T
        mean, variance = total.mean(0), total.var(0, unbiased=False)
        total = (total - mean) / (variance + 1e-5).sqrt() * scale.weight + scale.bias
        x = total.sign() if k < count else total
    return x


def test_the_mlp_is_that_of_the_original() -> None:
    with seeded(0, "init"), torch.no_grad():
        network = BinaryMLP(hidden=(7, 5)).build((1, 3, 3), 4).double()
        for k in (1, 2, 3):
            network.get_submodule(f"norm{k}").weight.uniform_(0.5, 2)
            network.get_submodule(f"norm{k}").bias.normal_()
    assert list(dict(network.named_children())) == [
        *("flat", "fc1", "norm1", "act1", "fc2", "norm2", "act2", "fc3", "norm3")
    ]
    x = torch.rand(6, 1, 3, 3, generator=generator(0, "x")).double()
    for mode in (network.train(), network.eval()):  # the batch's statistics, in testing too
        torch.testing.assert_close(mode(x), by_hand(network, x))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 9), max_size=3), st.booleans(), st.booleans(), st.integers(2, 5))
def test_the_mlp_has_the_parameters_it_says(hidden: list[int], binary: bool, affine: bool, classes: int) -> None:
    config = BinaryMLP(hidden=tuple(hidden), binary=binary, affine=affine)
    network = config.build((2, 3), classes)
    widths = (6, *hidden, classes)
    weights = sum(a * b for a, b in pairwise(widths))
    norms = 2 * sum(widths[1:]) if affine else 0
    assert sum(p.numel() for p in network.parameters()) == weights + norms
    assert sum(p.numel() for p in binary_weights(network).values()) == (weights if binary else 0)
    assert network(torch.rand(4, 2, 3)).shape == (4, classes)


def test_the_real_twin_has_real_weights_and_relus() -> None:
    network, x = BinaryMLP(hidden=(7,), binary=False).build((9,), 4), torch.rand(6, 9, generator=generator(0, "x"))
    hidden = network.norm1(x @ network.fc1.weight.T).relu()
    torch.testing.assert_close(network(x), network.norm2(hidden @ network.fc2.weight.T))
    assert float(network.fc1.weight.detach().abs().max()) <= 0.05, "it starts as the binary one does"


@pytest.mark.parametrize("norm", ["batch", "running", "instance"])
@pytest.mark.parametrize("affine", [True, False])
def test_norms_are_what_is_asked_for(norm: str, affine: bool) -> None:
    for config, shape in ((BinaryMLP(hidden=(7,), norm=norm, affine=affine), (9,)), (SMALL_CNN, (1, 16, 16))):
        if isinstance(config, BinaryCNN):
            config = BinaryCNN(channels=(4, 4, 6, 6), hidden=(8,), norm=norm, affine=affine)
        with seeded(0, "init"):
            network = config.build(shape, 3).double()
        norms = [m for m in network.modules() if isinstance(m, KINDS)]
        assert norms and all(getattr(m, "track_running_stats", False) == (norm == "running") for m in norms)
        assert all(bool(list(m.parameters())) == (affine and norm != "instance") for m in norms)
        x = torch.rand(5, *shape, generator=generator(0, "x")).double()
        network.eval()
        alone = torch.allclose(network(x)[:2], network(x[:2]), atol=1e-9)
        assert alone == (norm != "batch"), "whether a sample's answer depends on its batch"


def test_instance_norm_is_over_the_features_of_a_sample() -> None:
    network, x = BinaryMLP(hidden=(), norm="instance").build((9,), 4), torch.rand(3, 9, generator=generator(0, "x"))
    total = network.fc1(x)
    wanted = (total - total.mean(1, keepdim=True)) / (total.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(network(x), wanted)


def test_hidden_weights_start_as_asked() -> None:
    def started(**told: Any) -> Tensor:
        with seeded(0, "init"):
            return BinaryMLP(hidden=(100,), **told).build((100,), 100).fc1.weight.detach()

    uniform, gauss, xavier = started(), started(init="gauss", init_width=0.3), started(init="xavier")
    assert 0.049 < float(uniform.abs().max()) <= 0.05 and float(uniform.std()) == pytest.approx(0.1 / 12**0.5, rel=0.03)
    assert float(gauss.std()) == pytest.approx(0.3, rel=0.05)
    assert float(xavier.std()) == pytest.approx((2 / 200) ** 0.5, rel=0.05)
    assert float(started(init_width=2.0).abs().max()) == pytest.approx(20 * float(uniform.abs().max()), rel=1e-5)


def test_the_scale_of_norms_starts_at_one_or_below() -> None:
    for gamma in ("ones", "uniform"):
        scale = BinaryMLP(hidden=(200,), gamma=gamma).build((9,), 3).norm1.weight.detach()
        assert (scale == 1).all() if gamma == "ones" else (0 <= scale.min() < 0.1 and 0.9 < scale.max() <= 1)


def test_norms_are_those_of_the_released_programs_unless_asked_for() -> None:
    kinds = {BinaryMLP(): False, BinaryMLP(binary=False): True, SMALL_CNN: True}
    for config, running in kinds.items():
        network = config.build((1, 16, 16), 3)
        norms = [m for m in network.modules() if isinstance(m, KINDS)]
        assert norms and all(m.track_running_stats == running for m in norms)
        assert config.norm == ("running" if running else "batch"), "what is described says which"
        assert replace(config, norm="instance").norm == "instance"


def test_the_convolutions_of_the_paper() -> None:
    with torch.device("meta"):
        network = BinaryCNN().build((3, 32, 32), 10)
    assert sum(p.numel() for p in network.parameters()) == 18_238_356
    shapes = {name: list(w.shape) for name, w in binary_weights(network).items()}
    assert list(shapes) == [*(f"conv{k}.weight" for k in range(1, 7)), *(f"fc{k}.weight" for k in range(1, 4))]
    assert shapes["conv6.weight"] == [512, 512, 3, 3]
    linear = [shapes[f"fc{k}.weight"] for k in (1, 2, 3)]
    assert linear == [[2048, 4608], [2048, 2048], [10, 2048]], "32, halved twice, less 2, halved: 3 x 3 of 512"
    padded = [network.get_submodule(f"conv{k}").padding[0] for k in range(1, 7)]
    assert padded == [1, 1, 1, 1, 1, 0]
    names = list(dict(network.named_children()))
    assert names[:7] == ["conv1", "norm1", "act1", "conv2", "pool2", "norm2", "act2"]
    assert names[-7:] == ["act_fc1", "fc2", "drop2", "norm_fc2", "act_fc2", "fc3", "norm_fc3"]
    assert [name for name in names if "drop" in name] == ["drop1", "drop2"], "one after each hidden linear layer"


def test_kernels_may_be_larger() -> None:
    network = BinaryCNN((4, 6), per_group=1, side=5, hidden=(), pool="average").build((1, 28, 28), 10)
    shapes = {name: list(w.shape) for name, w in binary_weights(network).items()}
    assert shapes == {"conv1.weight": [4, 1, 5, 5], "conv2.weight": [6, 4, 5, 5], "fc1.weight": [10, 150]}
    assert not any(isinstance(m, nn.Dropout) for m in network), "no hidden layer, nothing to drop"


@pytest.mark.parametrize("pool", ["max", "average"])
def test_a_small_binary_cnn_learns_a_gradient_everywhere(pool: str) -> None:
    with seeded(0, "init"):
        network = BinaryCNN(channels=(4, 4, 6, 6), hidden=(8,), pool=pool, dropout=0.0).build((1, 16, 16), 3)
    x, y = torch.rand(9, 1, 16, 16, generator=generator(0, "x")), torch.arange(9) % 3
    F.cross_entropy(network(x), y).backward()
    assert all(float(p.grad.abs().max()) > 0 for p in network.parameters())
    kinds = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}
    assert sum(isinstance(m, kinds[pool]) for m in network) == 2


# --- which tensors are gated ---


def vit(net: str, **told: Any) -> nn.Module:
    return ViT(net, **SMALL_VIT, **told).build((1, 8, 8), 3)


def block(k: int, *layers: str) -> list[str]:
    return [f"layers.block_{k}.{layer}.weight" for layer in layers]


FC, ATTENTION = ("fc1", "fc2"), ("attn.qkv", "attn.proj")
EVERY = [*block(1, *ATTENTION, *FC), *block(2, *ATTENTION, *FC)]
GATED: list[tuple[Any, str, list[str]]] = [
    (BinaryMLP(hidden=(5, 5)).build((9,), 3), "binary", ["fc1.weight", "fc2.weight", "fc3.weight"]),
    (BinaryMLP(hidden=(5, 5)).build((9,), 3), "matrices", ["fc1.weight", "fc2.weight", "fc3.weight"]),
    (BinaryMLP(hidden=(5,), binary=False).build((9,), 3), "binary", []),
    (BinaryMLP(hidden=(5,), binary=False).build((9,), 3), "matrices", ["fc1.weight", "fc2.weight"]),
    (
        SMALL_CNN.build((1, 16, 16), 3),
        "binary",
        [*(f"conv{k}.weight" for k in range(1, 5)), "fc1.weight", "fc2.weight"],
    ),
    (vit("vit"), "binary", []),
    (vit("vit"), "matrices", ["patches.weight", *EVERY, "layers.head.weight"]),
    (vit("hybrid"), "binary", [*block(1, "fc1"), *block(2, "fc1")]),
    (vit("hybrid"), "matrices", ["patches.weight", *EVERY, "layers.head.weight"]),
    (vit("bvit"), "binary", [*block(1, *FC), *block(2, *FC), "layers.head.weight"]),
    (vit("bvit"), "matrices", ["patches.weight", *EVERY, "layers.head.weight"]),
    (vit("bvit", binarize_attention=True), "binary", [*EVERY, "layers.head.weight"]),
    (vit("vit", binarize_attention=True), "binary", [*block(1, *ATTENTION), *block(2, *ATTENTION)]),
]


@pytest.mark.parametrize(("network", "scope", "names"), GATED)
def test_what_is_gated(network: nn.Module, scope: str, names: list[str]) -> None:
    found = gated(network, scope)
    assert list(found) == names
    assert all(found[name] is network.get_parameter(name) for name in names), "the parameters themselves, no copies"
    assert gated(network, "none") == {}


@pytest.mark.parametrize("net", NETS)
def test_tokens_norms_and_biases_are_never_gated(net: str) -> None:
    network = vit(net)
    left = set(dict(network.named_parameters())) - set(gated(network, "matrices"))
    assert {"cls", "pos"} < left
    rest = {name for name in left if name not in ("cls", "pos")}
    assert all(name.endswith(".bias") or "norm" in name for name in rest)
    assert not any(name.endswith(".bias") or "norm" in name for name in gated(network, "matrices"))


def test_frozen_tensors_are_not_gated() -> None:
    network = BinaryMLP(hidden=(5,)).build((9,), 3)
    network.fc1.weight.requires_grad_(False)
    assert list(gated(network, "binary")) == list(binary_weights(network)) == ["fc2.weight"]


def test_a_layer_alone_is_a_network_too() -> None:
    assert list(binary_weights(BinaryLinear(3, 2))) == ["weight"]


# --- what is refused ---


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (BinaryMLP, {"norm": "layer"}, "norm = 'layer': allowed are batch, running, instance"),
        (BinaryMLP, {"affine": 1}, "affine = 1: must be true or false"),
        (BinaryMLP, {"gamma": "zeros"}, "gamma = 'zeros': allowed are ones, uniform"),
        (BinaryMLP, {"init": "kaiming"}, "init = 'kaiming': allowed are uniform, gauss, xavier"),
        (BinaryMLP, {"init_width": 0}, "init_width = 0: must be"),
        (BinaryMLP, {"hidden": 5}, "hidden = 5: must be a list"),
        (BinaryMLP, {"hidden": (5, 0)}, "hidden = 0: must be a whole number"),
        (BinaryMLP, {"binary": "yes"}, "binary = 'yes'"),
        (BinaryCNN, {"channels": ()}, r"channels = \(\): must be a multiple of per_group = 2"),
        (BinaryCNN, {"channels": (4, 4, 4)}, r"channels = \(4, 4, 4\): must be a multiple of per_group = 2"),
        (BinaryCNN, {"hidden": (0,)}, "channels and hidden = 0"),
        (BinaryCNN, {"per_group": 0}, "per_group = 0"),
        (BinaryCNN, {"dropout": 1.0}, "dropout = 1.0"),
        (BinaryCNN, {"pool": "mean"}, "pool = 'mean': allowed are max, average"),
        (BinaryCNN, {"norm": None}, "norm = None"),
        (BinaryCNN, {"side": 0}, "side = 0"),
    ],
)
def test_impossible_networks_are_refused(kind: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**wrong)


def test_images_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match=r"takes images \[C, H, W\], not inputs of shape \[9\]"):
        BinaryCNN().build((9,), 3)
    with pytest.raises(UserError, match=r"images of shape \[1, 8, 8\]: too small for 6 binary convolutions"):
        BinaryCNN().build((1, 8, 8), 3)
    with pytest.raises(UserError, match="meta_scope = 'all': allowed are binary, matrices, none"):
        gated(BinaryLinear(3, 2), "all")
    assert prod(SMALL_CNN.build((1, 16, 16), 3)(torch.rand(2, 1, 16, 16)).shape) == 6
