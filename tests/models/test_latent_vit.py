"""The transformer in two parts: sizes, the cut, and an independent computation of what it says."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scipy.ndimage import zoom
from torch import Tensor, nn

from cllib.errors import UserError
from cllib.models.latent_vit import (
    BACKBONES,
    MEANS,
    Cut,
    LatentViT,
    Lower,
    Part,
    Upper,
    class_only,
    macs,
    own_weights,
    stored,
    structure,
    zoomed,
)
from cllib.models.networks import classifier
from cllib.pretraining import named
from cllib.randomness import generator, seeded

STILL: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0}
TINY = LatentViT(**STILL)
B16 = LatentViT("b16", depth=12, replay_block=12, weights="pretrained")
CLASSES = 50


def images(count: int = 4, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=generator(seed, "images"))


def cut(config: LatentViT = TINY, classes: int = CLASSES) -> Cut:
    with seeded(1, "init"):
        return config.whole(classes)


def count(parts: list[Part], **wanted: Any) -> int:
    return sum(p.count for p in parts if all(getattr(p, name) == value for name, value in wanted.items()))


# --- sizes ---


@pytest.mark.parametrize(
    ("backbone", "depth", "side", "total"),
    [
        ("b16", 12, 128, 85_735_680),
        ("b32", 12, 128, 87_468_288),
        ("tiny", 6, 32, 217_664),
    ],
)
def test_1_parameters_of_the_whole_network(backbone: str, depth: int, side: int, total: int) -> None:
    weights = "own" if backbone == "tiny" else "pretrained"
    config = LatentViT(backbone, depth=depth, replay_block=depth, weights=weights)
    assert config.side == side and count(structure(config, CLASSES)) == total


@pytest.mark.parametrize(
    ("config", "trainable"),
    [
        (B16, 39_936),
        (replace(B16, replay_block=6), 42_567_168),
        (replace(B16, replay_block=6, depth=6), 39_936),
        (LatentViT(), 70_272),
    ],
)
def test_1_parameters_that_learn(config: LatentViT, trainable: int) -> None:
    assert count(structure(config, CLASSES), frozen=False) == trainable


@pytest.mark.parametrize("name", list(BACKBONES))
def test_1_parameters_of_a_block(name: str) -> None:
    depth = BACKBONES[name].blocks
    weights = "pretrained" if BACKBONES[name].pretrained else "own"
    parts = structure(LatentViT(name, depth=depth, replay_block=1, weights=weights), CLASSES)
    for number in (1, 2, depth):
        own = [p for p in parts if p.name.startswith(f"block {number}:")]
        assert sum(p.count for p in own) == BACKBONES[name].block_parameters and sum(p.entries for p in own) == 16
        assert {p.frozen for p in own} == {number == 1} and {p.section for p in own} == {
            "lat" if number == 1 else "end"
        }
    assert not [p for p in parts if p.name.startswith(f"block {depth + 1}")]
    assert BACKBONES["b16"].block_parameters == BACKBONES["b32"].block_parameters == 7_087_872


@pytest.mark.parametrize(
    ("backbone", "tokens", "dim"),
    [("b16", 65, 768), ("b32", 17, 768), ("l32", 17, 1024), ("l16", 65, 1024), ("tiny", 17, 64), ("tiny4", 65, 64)],
)
def test_1_1_sizes_are_those_of_the_table(backbone: str, tokens: int, dim: int) -> None:
    weights = "pretrained" if BACKBONES[backbone].pretrained else "own"
    config = LatentViT(backbone, depth=2, replay_block=2, weights=weights)
    assert config.tokens == tokens == config.grid**2 + 1 and config.latent_shape == (tokens, dim)
    assert replace(config, store="cls").latent_shape == (1, dim)
    with torch.device("meta"):
        lower, upper = Lower(config), Upper(replace(config, replay_block=1), CLASSES)
        x = torch.empty(2, 3, config.side, config.side)
    assert lower(x).shape == (2, tokens, dim) and upper(lower(x)).shape == (2, CLASSES)


@pytest.mark.parametrize("frozen", [0, 6, 12])
def test_16_the_state_has_199_entries(frozen: int) -> None:
    parts = structure(replace(B16, replay_block=frozen), CLASSES)
    assert sum(p.entries for p in parts) == 199
    assert [p.section for p in parts][-3:] == ["end", "end", "output"], "bottom up"
    assert count(parts, section="start") == 16 * 16 * 3 * 768 + 768
    assert count(parts, section="output") == 50 * 768 and not any(
        "bias" in p.name for p in parts if p.section == "output"
    )
    frozen_parts = [p for p in parts if p.frozen]
    assert frozen_parts == parts[: len(frozen_parts)] and all(p.section in ("start", "lat") for p in frozen_parts)
    assert count(frozen_parts) == 768 + 65 * 768 + 16 * 16 * 3 * 768 + 768 + frozen * 7_087_872


def test_1_nothing_is_frozen_where_no_block_is_named() -> None:
    parts = structure(replace(TINY, replay_block=None), CLASSES)
    assert not any(p.frozen for p in parts) and count(parts) == 217_664


def test_structure_is_that_of_the_network() -> None:
    network = cut()
    found = {(tuple(p.shape), not p.requires_grad) for p in network.parameters()}
    parts = structure(TINY, CLASSES)
    assert {(p.shape, p.frozen) for p in parts} == found and len(parts) == len(list(network.parameters()))
    assert [p.shape for p in parts] == [tuple(p.shape) for p in network.parameters()]


@pytest.mark.parametrize(("backbone", "block"), [("b16", 466.6e6), ("b32", 120.8e6)])
def test_3_multiplications_are_those_of_the_formula(backbone: str, block: float) -> None:
    config = LatentViT(backbone, depth=12, replay_block=6, weights="pretrained")
    one = macs(replace(config, replay_block=0, depth=1), 0, 1) / 3  # forward, and twice that backward
    patches = macs(replace(config, replay_block=1, depth=1), 1, 0) - one
    assert one == pytest.approx(block, rel=1e-3)
    if backbone == "b16":
        assert patches == pytest.approx(37.7e6, rel=2e-3)
    assert macs(config, 16, 84) == pytest.approx(16 * (patches + 6 * one) + 100 * 6 * 3 * one)


# --- an independent computation, from the stored weights ---


def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w + b


def block_by_hand(x: Tensor, state: dict[str, Tensor], k: int, heads: int = 4) -> Tensor:
    """x' = u + W2 gelu(W1 LN2 u), u = x + Wo concat softmax(q k' / sqrt d_h) v, in doubles."""
    w = {name.removeprefix(f"blocks.{k}."): v.double() for name, v in state.items() if name.startswith(f"blocks.{k}.")}
    y, d = norm(x, w["norm1.weight"], w["norm1.bias"]), x.shape[-1]
    queries, keys, values = (
        y @ w["attn.qkv.weight"][i * d : (i + 1) * d].T + w["attn.qkv.bias"][i * d : (i + 1) * d] for i in range(3)
    )
    width, mixed = d // heads, []
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        scores = queries[..., own] @ keys[..., own].transpose(1, 2) / math.sqrt(width)
        mixed.append(scores.exp() / scores.exp().sum(-1, keepdim=True) @ values[..., own])
    u = x + torch.cat(mixed, -1) @ w["attn.proj.weight"].T + w["attn.proj.bias"]
    z = norm(u, w["norm2.weight"], w["norm2.bias"]) @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
    z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    return u + z @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]


def tokens_by_hand(x: Tensor, state: dict[str, Tensor], blocks: int, normalize: str = "half") -> Tensor:
    """Patch by patch, row by row; then the blocks."""
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in MEANS[normalize])
    x, side = (x.double() - mean) / std, state["patch_embed.proj.weight"].shape[-1]
    kernel, bias = (state[f"patch_embed.proj.{name}"].double() for name in ("weight", "bias"))
    grid = x.shape[-1] // side
    pieces = [x[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side] for i in range(grid) for j in range(grid)]
    patches = torch.stack([piece.flatten(1) @ kernel.flatten(1).T + bias for piece in pieces], 1)
    cls = state["cls_token"].double().expand(len(x), -1, -1)
    z = torch.cat([cls, patches], 1) + state["pos_embed"].double()
    for k in range(blocks):
        z = block_by_hand(z, state, k)
    return z


@pytest.mark.parametrize("frozen", [0, 2, 4, 6])
def test_4_latents_are_those_of_an_independent_forward(frozen: int) -> None:
    config, x = replace(TINY, replay_block=frozen), images()
    front = config.front((3, 32, 32))
    assert front is not None
    wanted = tokens_by_hand(x, own_weights("tiny"), frozen)
    torch.testing.assert_close(front(x).double(), wanted, atol=3e-5, rtol=1e-4)
    assert torch.equal(front(x), cut(config).latents(x))


@pytest.mark.parametrize(("depth", "frozen"), [(6, 0), (6, 4), (6, 6), (3, 2), (1, 1), (1, 0)])
def test_4_logits_are_those_of_an_independent_forward(depth: int, frozen: int) -> None:
    config, x, state = replace(TINY, depth=depth, replay_block=frozen), images(), own_weights("tiny")
    network = cut(config).eval()
    z = norm(tokens_by_hand(x, state, depth)[:, 0], state["norm.weight"].double(), state["norm.bias"].double())
    torch.testing.assert_close(network(x).double(), z @ network.upper.head.weight.double().T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frozen", [0, 4, 6])
def test_4_the_upper_part_on_latents_is_the_whole(frozen: int) -> None:
    config, x = replace(TINY, replay_block=frozen), images()
    with seeded(1, "init"):
        upper = config.build(config.latent_shape, CLASSES).eval()
    assert isinstance(upper, Upper)
    network = cut(config).eval()
    assert torch.equal(upper.head.weight, network.upper.head.weight), "both start from the same classifier"
    assert torch.equal(upper(network.latents(x)), network(x))
    assert torch.equal(upper(config.front((3, 32, 32))(x)), network(x))  # type: ignore[misc]


def test_4_training_mode_does_not_reach_below_the_cut() -> None:
    network = cut(LatentViT(dropout=0.5, attention_dropout=0.5))
    assert network.training and not any(m.training for m in network.lower.modules()), "as it is made"
    network.train()
    assert (
        network.training and network.upper.blocks[0].training and not any(m.training for m in network.lower.modules())
    )
    x = images()
    assert torch.equal(network.latents(x), network.eval().latents(x))
    free = cut(LatentViT(replay_block=None, dropout=0.5)).train()
    assert free.lower.training and not torch.equal(free(x), free(x)) and torch.equal(free.latents(x), free.latents(x))


def test_4_latents_do_not_depend_on_what_is_replayed() -> None:
    network, x = cut().train(), images()
    alone, heard = network.latents(x), []
    network.upper.register_forward_pre_hook(lambda _, args: heard.append(args[0].detach().clone()))
    network(x, torch.randn(3, 17, 64))
    assert torch.equal(heard[0][:4], alone) and len(heard[0]) == 7


def test_5_new_samples_come_first() -> None:
    network, x, z = cut().eval(), images(), cut().latents(images(3, seed=5))
    both = network(x, z)
    torch.testing.assert_close(both[:4], network(x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(both[4:], network.upper(z), atol=1e-6, rtol=1e-5)
    assert both.shape == (7, CLASSES)


# --- gradients ---


def test_3_gradients_stop_at_the_cut() -> None:
    x, y, z = images().requires_grad_(), torch.arange(7), torch.randn(3, 17, 64, requires_grad=True)
    network = cut().train()
    F.cross_entropy(network(x, z), y).backward()
    assert x.grad is None and z.grad is not None and (z.grad != 0).any(2).all()
    assert all(p.grad is None for p in network.lower.parameters())
    assert all(p.grad is not None and (p.grad != 0).any() for p in network.upper.parameters())


@pytest.mark.parametrize("frozen", [0, 4, 6])
def test_3_leaving_the_graph_out_below_changes_no_gradient(frozen: int) -> None:
    x, y, z = images(), torch.arange(7), torch.randn(3, 17, 64)
    found = []
    for detached in (True, False):
        network = cut(replace(TINY, replay_block=frozen)).train()
        network.detached = detached
        if not detached:
            network.lower.requires_grad_(True)
        F.cross_entropy(network(x, z), y).backward()
        found.append([p.grad for p in network.upper.parameters()])
        assert all((p.grad is None) == detached for p in network.lower.parameters())
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-6)


def test_3_the_gradient_at_the_replay_block_is_that_of_a_detached_network() -> None:
    network, x, y = cut(), images(), torch.arange(4)
    network.detached = False
    network.lower.requires_grad_(True)
    below = network.latents(x)
    below.retain_grad()
    F.cross_entropy(network.upper(below), y).backward()
    apart = cut().latents(x).requires_grad_()
    F.cross_entropy(network.upper(apart), y).backward()
    torch.testing.assert_close(below.grad, apart.grad, atol=1e-8, rtol=1e-6)


def test_no_blocks_named_lets_everything_learn() -> None:
    network = cut(replace(TINY, replay_block=None)).train()
    F.cross_entropy(network(images()), torch.arange(4)).backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in network.parameters())
    assert TINY.front((3, 32, 32)) is not None and replace(TINY, replay_block=None).front((3, 32, 32)) is None


# --- only the class token ---


def test_6_the_class_token_alone_gives_the_same_logits_and_gradients() -> None:
    x, y, found = images(), torch.arange(4), []
    for whole in (False, True):
        network = cut(replace(TINY, replay_block=2)).train()
        network.upper.whole = whole
        logits = network(x)
        F.cross_entropy(logits, y).backward()
        found.append([logits, *(p.grad for p in network.upper.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_6_the_last_block_is_computed_for_the_class_token_alone_unless_asked() -> None:
    network, whole = cut(replace(TINY, replay_block=3)), [0, 0, 0]
    for k, block in enumerate(network.upper.blocks):
        block.register_forward_hook(lambda *_, k=k: whole.__setitem__(k, whole[k] + 1))
    network(images())
    assert whole == [1, 1, 0]
    network.upper.whole = True
    network(images())
    assert whole == [2, 2, 1]


@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_6_the_class_token_of_a_block_is_that_of_the_whole_block(tokens: int) -> None:
    block = cut().upper.blocks[0].eval()
    z = torch.randn(3, tokens, 64, generator=generator(0, "z"))
    torch.testing.assert_close(class_only(block, z), block(z)[:, :1], atol=1e-6, rtol=1e-5)
    assert class_only(block, z).shape == (3, 1, 64)


@pytest.mark.parametrize(("dropout", "attention"), [(0.4, 0.0), (0.0, 0.4)])
def test_6_the_class_token_alone_has_the_same_dropout_in_distribution(dropout: float, attention: float) -> None:
    block = cut(LatentViT(dropout=dropout, attention_dropout=attention)).upper.blocks[0].train()
    with torch.no_grad():
        block.attn.qkv.bias[128:] += 2  # a bias of the values is dropped with its token too
    z = torch.randn(1, 17, 64, generator=generator(0, "z")).expand(4000, -1, -1)
    with seeded(0, "dropout"), torch.no_grad():
        one, other = class_only(block, z)[:, 0], block(z)[:, 0]
    spread = other.std(0)
    assert (spread > 0.01).any() and torch.allclose(one.std(0), spread, rtol=0.15, atol=1e-3)
    assert ((one.mean(0) - other.mean(0)).abs() < 6 * spread / 4000**0.5 + 1e-6).all()


def test_6_only_the_class_token_is_stored_where_it_is_enough() -> None:
    both = [replace(TINY, replay_block=6, store=store) for store in ("tokens", "cls")]
    tokens, cls = (config.front((3, 32, 32)) for config in both)
    x = images()
    assert torch.equal(cls(x), tokens(x)[:, :1])  # type: ignore[misc]
    uppers = [cut(config).upper.eval() for config in both]
    assert torch.equal(uppers[0](tokens(x)), uppers[1](cls(x)))  # type: ignore[misc]


# --- dropout and how pixels come in ---


def test_b6_dropout_is_on_branches_and_attention_and_nowhere_else() -> None:
    block = LatentViT(dropout=0.2, attention_dropout=0.3).block()
    found = {name: m.p for name, m in block.named_modules() if isinstance(m, nn.Dropout)}
    assert found == {"attn.attn_drop": 0.3, "attn.proj_drop": 0.2, "mlp.drop1": 0.0, "mlp.drop2": 0.2}
    assert LatentViT().dropout == LatentViT().attention_dropout == 0.1


@pytest.mark.parametrize("normalize", list(MEANS))
def test_b5_pixels_are_normalised_as_asked(normalize: str) -> None:
    config, x = replace(TINY, replay_block=1, normalize=normalize), images()
    wanted = tokens_by_hand(x, own_weights("tiny"), 1, normalize)
    torch.testing.assert_close(config.lower()(x).double(), wanted, atol=3e-5, rtol=1e-4)


def test_b3_the_class_token_is_loaded_unless_asked_otherwise() -> None:
    own = own_weights("tiny")["cls_token"]
    assert torch.equal(TINY.lower().cls, own) and own.abs().max() > 0
    zero = replace(TINY, class_token="zero")
    assert not zero.lower().cls.any()
    state = {**own_weights("tiny"), "cls_token": torch.zeros_like(own)}
    torch.testing.assert_close(
        zero.lower()(images()).double(), tokens_by_hand(images(), state, 4), atol=3e-5, rtol=1e-4
    )
    assert torch.equal(zero.lower().pos, TINY.lower().pos)


@pytest.mark.parametrize(("old", "new"), [(4, 8), (24, 8), (12, 4), (3, 1), (2, 5)])
def test_1_1_positions_are_zoomed_linearly_as_released(old: int, new: int) -> None:
    table = torch.rand(1, old**2 + 1, 5, generator=generator(0, "table"), dtype=torch.float64)
    found = zoomed(table, new)
    assert found.shape == (1, new**2 + 1, 5) and torch.equal(found[:, :1], table[:, :1])
    square = table[0, 1:].reshape(old, old, 5).numpy()
    if new > 1:
        wanted = torch.from_numpy(zoom(square, (new / old, new / old, 1), order=1)).reshape(-1, 5)
        torch.testing.assert_close(found[0, 1:], wanted)


def test_1_1_positions_of_the_same_grid_are_left_alone() -> None:
    table = torch.rand(1, 17, 5)
    assert torch.equal(zoomed(table, 4), table)
    larger = replace(TINY, image_size=64)
    assert larger.lower().pos.shape == (1, 65, 64) and larger.tokens == 65 and larger.grid == 8
    assert larger.lower()(images(2, 64)).shape == (2, 65, 64)


# --- weights ---


def test_own_weights_are_shipped_and_are_those_of_the_backbone() -> None:
    for name in ("tiny", "tiny4"):
        config = LatentViT(name, replay_block=None, **STILL)
        network, state = cut(config), own_weights(name)
        found = named(network)
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


def test_a_file_of_weights_is_the_same_as_the_shipped_one(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(named(cut(replace(TINY, replay_block=None))), path)
    other = replace(TINY, weights=str(path))
    assert torch.equal(cut(other).eval()(images()), cut().eval()(images()))
    assert other.fingerprint() == TINY.fingerprint() and other.lower().told == TINY.lower().told


def test_16_a_state_dict_gives_the_same_logits_back() -> None:
    network = cut().eval()
    with seeded(2, "init"):
        other = replace(TINY, weights="random").whole(CLASSES).eval()
    assert not torch.equal(other(images()), network(images()))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(images()), network(images()))


def test_random_weights_below_belong_to_nobody_and_above_to_the_seed() -> None:
    config = replace(TINY, weights="random")
    with seeded(1, "init"):
        one = config.whole(CLASSES)
    with seeded(2, "init"):
        drawn = torch.rand(1)
    with seeded(2, "init"):
        two = config.whole(CLASSES)
    with seeded(2, "init"):
        config.lower()
        assert torch.equal(torch.rand(1), drawn), "the frozen part draws from no generator of the run"
    lower = (network.lower.state_dict().values() for network in (one, two))
    assert all(torch.equal(a, b) for a, b in zip(*lower, strict=True))
    assert not torch.equal(one.upper.blocks[0].attn.qkv.weight, two.upper.blocks[0].attn.qkv.weight)
    assert config.fingerprint() == "random" != TINY.fingerprint()


def test_what_latents_depend_on_is_told() -> None:
    base = replace(TINY, replay_block=6)
    others = [
        replace(base, replay_block=4),
        replace(base, store="cls"),
        replace(base, normalize="imagenet"),
        replace(base, class_token="zero"),
        replace(base, weights="random"),
        replace(base, image_size=64),
    ]
    told = {config.lower().told for config in (base, *others)}
    assert len(told) == 7 and "" not in told
    same = replace(base, dropout=0.3, attention_dropout=0.2)
    assert same.lower().told == base.lower().told
    shallow = replace(TINY, replay_block=2)
    assert replace(shallow, depth=3).lower().told == shallow.lower().told, "what lies above does not matter"


def test_weights_above_and_below_come_from_the_right_blocks() -> None:
    state, network = own_weights("tiny"), cut(replace(TINY, depth=5, replay_block=3))
    assert len(network.lower.blocks) == 3 and len(network.upper.blocks) == 2
    for k, block in enumerate([*network.lower.blocks, *network.upper.blocks]):
        for name, value in block.state_dict().items():
            assert torch.equal(value, state[f"blocks.{k}.{name}"])
    assert torch.equal(network.upper.norm.weight, state["norm.weight"])
    assert torch.equal(network.upper.norm.bias, state["norm.bias"])
    assert network.upper.norm.eps == network.upper.blocks[0].norm1.eps == 1e-6
    assert classifier(network) is network.upper.head and network.upper.head.bias is None


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"replay_block": 7}, r"replay_block = 7: .*depth = 6"),
        ({"depth": 3}, r"replay_block = 4: .*depth = 3"),
        ({"depth": 7}, r"depth = 7: backbone = 'tiny' has 6 blocks"),
        ({"depth": 0}, "depth = 0"),
        ({"replay_block": -1}, "replay_block = -1"),
        ({"replay_block": 2.0}, "replay_block = 2.0"),
        ({"image_size": 33}, "image_size = 33: must be a multiple of the patch, 8"),
        ({"image_size": 0}, "image_size = 0"),
        ({"store": "cls"}, r"store = 'cls': .* 4 and 6"),
        ({"store": "cls", "replay_block": None}, r"store = 'cls': .* None and 6"),
        ({"store": "patches"}, "store = 'patches'"),
        ({"dropout": 1.0}, "^dropout = 1.0"),
        ({"dropout": -0.1}, "^dropout = -0.1"),
        ({"attention_dropout": 2}, "attention_dropout = 2"),
        ({"class_token": "ones"}, "class_token = 'ones'"),
        ({"normalize": "none"}, "normalize = 'none'"),
        ({"backbone": "b8"}, "backbone = 'b8'"),
        ({"weights": "pretrained"}, "weights = 'pretrained': none for 'tiny'"),
        ({"backbone": "b16", "weights": "own"}, "weights = 'own': only for the tiny"),
        ({"backbone": "b16", "depth": 13, "weights": "random"}, "depth = 13: backbone = 'b16' has 12 blocks"),
        ({"backbone": "b32", "image_size": 120, "weights": "random"}, "image_size = 120: .* 32"),
    ],
)
def test_16_what_cannot_be_is_refused_at_construction(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        LatentViT(**changes)


def test_16_the_edges_are_allowed() -> None:
    for changes in ({"replay_block": 0}, {"replay_block": 6}, {"depth": 1, "replay_block": 0}, {"dropout": 0.95}):
        LatentViT(**changes)
    assert replace(TINY, replay_block=6, store="cls").latent_shape == (1, 64)


@pytest.mark.parametrize(
    ("backbone", "depth", "frozen", "told"),
    [
        ("b16", 8, 6, (7, (9, 14), "lat_features.6.norm2.bias")),
        ("b16", 12, 12, (13, (13, 14), "lat_features.12.norm2.bias")),
        ("b32", 12, 0, (1, (13, 14), "lat_features.0.pos_embedding")),
        ("l16", 8, 6, (7, (9, 26), "lat_features.6.norm2.bias")),
    ],
)
def test_16_the_released_program_is_told_the_same(backbone: str, depth: int, frozen: int, told: Any) -> None:
    config = LatentViT(backbone, depth=depth, replay_block=frozen, weights="pretrained")
    assert config.released == told
    below, (low, high), _ = told  # list index of a block: its number + 1
    lower = [i - 1 for i in range(2, config.size.blocks + 2) if i <= below]
    used = [i - 1 for i in range(2, config.size.blocks + 2) if not low < i < high]
    assert lower == list(range(1, frozen + 1)) and used == list(range(1, depth + 1))


def test_16_the_released_program_freezes_something_always() -> None:
    with pytest.raises(UserError, match="replay_block = None"):
        _ = replace(TINY, replay_block=None).released


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 28, 28), (3, 32), (16, 64)])
def test_inputs_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="image_size = 32"):
        TINY.build(shape, CLASSES)
    if len(shape) == 3:
        with pytest.raises(UserError, match="image_size = 32"):
            TINY.front(shape)


def test_images_make_the_whole_network_and_latents_the_upper_part() -> None:
    assert isinstance(TINY.build((3, 32, 32), 5), Cut) and isinstance(TINY.build((17, 64), 5), Upper)
    with pytest.raises(UserError):
        replace(TINY, replay_block=None).build((17, 64), 5)
    with pytest.raises(UserError):
        replace(TINY, replay_block=6, store="cls").build((17, 64), 5)


def test_weights_that_cannot_be_read_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        replace(TINY, weights=str(tmp_path / "nowhere")).lower()
    (tmp_path / "torn").write_bytes(b"torn")
    with pytest.raises(UserError, match="torn"):
        stored(tmp_path / "torn")
    state = own_weights("tiny")
    save_file({k: v for k, v in state.items() if not k.startswith("blocks.5")}, tmp_path / "short.safetensors")
    short = replace(TINY, weights=str(tmp_path / "short.safetensors"))
    with pytest.raises(UserError, match=r"short.safetensors': blocks.5.attn.qkv.weight is missing"):
        short.upper(5)


@pytest.mark.parametrize("wrong", ["names", "width", "patch"])
def test_weights_of_another_network_are_refused(tmp_path: Path, wrong: str) -> None:
    state, path = own_weights("tiny"), tmp_path / "other.safetensors"
    if wrong == "names":
        state = {f"model.{name}": value for name, value in state.items()}
    elif wrong == "width":
        state["cls_token"] = torch.zeros(1, 1, 32)
    else:
        state["patch_embed.proj.weight"] = torch.zeros(64, 3, 4, 4)
    save_file(state, path)
    with pytest.raises(UserError, match="weights"):
        replace(TINY, weights=str(path)).lower()
