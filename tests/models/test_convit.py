"""The transformer of BiRT: attention against plain loops, the cut, growth, and sizes (BiRT spec, 1.2, 1.3, 6.2)."""

from copy import deepcopy
from dataclasses import replace
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
from cllib.models.convit import (
    GPSA,
    SCALES,
    AttentionHalf,
    ClassAttention,
    ConViT,
    MLPHalf,
    TaskBlock,
    Tasks,
    looks,
    nearby,
    neighbours,
)
from cllib.models.split import Split
from cllib.randomness import seeded
from cllib.recipes import Recipe
from cllib.training import train

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ConViT(patch=2, dim=24, heads=4, layers=4)
SHAPE = (3, 8, 8)


def images(count: int = 3, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def built(config: ConViT = SMALL, tasks: tuple[int, ...] = (2, 3), shape: tuple[int, ...] = SHAPE) -> Split:
    with seeded(1, "init"):
        network = config.build(shape, sum(tasks))
        for classes in tasks:
            network.above.grow(classes)
    return network


def shaken(network: Any, by: float = 0.3) -> Any:
    """The network with every weight somewhere else, so that no part of it is as it started."""
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p += by * torch.randn(p.shape, generator=draws)
    return network.eval()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def off(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


# --- sizes (I4) ---


def test_i4_numbers_of_parameters_at_the_published_size() -> None:
    network = ConViT().build((3, 32, 32), 100)
    network.above.grow(10)
    assert count(network.below) == 634_428
    assert count(network.above) == 10_054_138
    network.above.grow(10)
    token_and_head = 384 + 2 * 384 + 384 * 10 + 10
    divergence = 2 * 384 + 384 * 11 + 11
    assert count(network.above) == 10_054_138 + token_and_head + divergence


def test_i4_numbers_of_parameters_at_the_small_size() -> None:
    network = ConViT(patch=2, dim=48, heads=4, layers=4).build((1, 8, 8), 10)
    for _ in range(5):
        network.above.grow(2)
    assert count(network) == 115_033 and network.above.divergence is not None


@pytest.mark.parametrize(
    ("config", "shape", "tokens"),
    [(ConViT(), (3, 32, 32), 64), (ConViT(patch=8), (3, 64, 64), 64), (ConViT(patch=16), (3, 224, 224), 196)],
    ids=["CIFAR", "Tiny ImageNet", "ImageNet-100"],
)
def test_i1_published_representations(config: ConViT, shape: tuple[int, ...], tokens: int) -> None:
    network = config.build(shape, 10).to("meta")
    assert network.represent(torch.empty(2, *shape, device="meta")).shape == (2, tokens, 384)
    assert len(network.below.halves) == 1 and len(network.above.halves) == 9
    assert [type(half) for half in network.below.halves] == [AttentionHalf]
    assert [type(half) for half in network.above.halves] == [MLPHalf, *[AttentionHalf, MLPHalf] * 4]


# --- gated positional self-attention (I2) ---


def by_definition(attn: GPSA, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A `[B, h, N, N]` and the output, from the equation: loops over samples, heads and patches."""
    b, n, dim = x.shape
    h, side = attn.heads, round(n**0.5)
    d = dim // h
    q, k, v = x @ attn.qk.weight[:dim].T, x @ attn.qk.weight[dim:].T, x @ attn.v.weight.T
    maps, out = torch.zeros(b, h, n, n), torch.zeros(b, n, dim)
    for s in range(b):
        for a in range(h):
            own = slice(a * d, (a + 1) * d)
            gate = torch.sigmoid(attn.gating[a])
            for i in range(n):
                content = torch.stack([q[s, i, own] @ k[s, j, own] / d**0.5 for j in range(n)]).softmax(0)
                far = []
                for j in range(n):
                    dx, dy = j % side - i % side, j // side - i // side
                    told = torch.tensor([dx, dy, dx * dx + dy * dy], dtype=x.dtype)
                    far.append(attn.pos_proj.weight[a] @ told + attn.pos_proj.bias[a])
                row = (1 - gate) * content + gate * torch.stack(far).softmax(0)
                maps[s, a, i] = row / row.sum()
            disturbed = maps[s, a] + (0 if noise is None else noise[s, a])
            out[s, :, own] = disturbed @ v[s, :, own]
    return maps, out @ attn.proj.weight.T + attn.proj.bias


@pytest.mark.parametrize(("dim", "heads", "side"), [(12, 4, 3), (8, 2, 2), (10, 5, 3)])
def test_attention_is_its_equation(dim: int, heads: int, side: int) -> None:
    with torch.no_grad():
        attn, x = shaken(GPSA(dim, heads, side)), off((2, side**2, dim))
        maps, out = by_definition(attn, x)
        torch.testing.assert_close(attn.maps(x), maps)
        torch.testing.assert_close(attn(x), out, atol=1e-5, rtol=1e-4)


def test_i2_rows_of_attention_sum_to_one() -> None:
    attn, x = shaken(GPSA(12, 4, 3), 2.0), off((2, 9, 12))
    maps = attn.maps(x)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 4, 9))
    torch.testing.assert_close(attn.positional().sum(-1), torch.ones(4, 9))


def test_i2_gates_choose_between_content_and_position() -> None:
    attn, x, other = shaken(GPSA(12, 4, 3)), off((2, 9, 12)), off((2, 9, 12)).flip(1)
    with torch.no_grad():
        attn.gating.fill_(1e4)
        torch.testing.assert_close(attn.maps(x), attn.positional().expand(2, -1, -1, -1))
        assert torch.equal(attn.maps(x), attn.maps(other)), "whatever the image"
        _, out = by_definition(attn, x)
        torch.testing.assert_close(attn(x), out, atol=1e-5, rtol=1e-4)
        attn.gating.fill_(-1e4)
        before = attn.maps(x)
        attn.pos_proj.weight += 5
        assert torch.equal(attn.maps(x), before), "wherever the patches are"
        q, k = ((x @ half.T).unflatten(-1, (4, 3)).transpose(1, 2) for half in attn.qk.weight.chunk(2))
        torch.testing.assert_close(before, (q @ k.mT / 3**0.5).softmax(-1))
        _, out = by_definition(attn, x)
        torch.testing.assert_close(attn(x), out, atol=1e-5, rtol=1e-4)


def test_i2_gates_belong_to_heads_and_start_at_one() -> None:
    attn, x = GPSA(12, 4, 3), off((2, 9, 12))
    with torch.no_grad():
        assert torch.equal(attn.gating, torch.ones(4)) and abs(float(attn.gating[0].sigmoid()) - 0.731) < 1e-3
        before = attn.maps(x)
        attn.gating[2] = 1e4
        after = attn.maps(x)
    changed = [not torch.equal(before[:, a], after[:, a]) for a in range(4)]
    assert changed == [False, False, True, False]


def test_i18_noise_is_added_to_the_rows_it_picks_after_the_normalisation() -> None:
    attn, x, e = shaken(GPSA(12, 4, 3)), off((4, 9, 12)), off((2, 4, 9, 9))
    asked = []

    def noise(rows: int, heads: int, tokens: int) -> tuple[Tensor, Tensor]:
        asked.append((rows, heads, tokens))
        return torch.tensor([1, 3]), e

    with torch.no_grad():
        plain, found = attn(x), attn(x, noise)
        everywhere = torch.zeros(4, 4, 9, 9)
        everywhere[[1, 3]] = e
        _, wanted = by_definition(attn, x, everywhere)
    assert asked == [(4, 4, 9)]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert torch.equal(found[[0, 2]], plain[[0, 2]]) and not torch.isclose(found[[1, 3]], plain[[1, 3]]).all()
    assert torch.equal(attn(x, lambda *_: None), plain)


# --- where heads look at the start (1.2) ---


def test_neighbours_are_told_by_where_they_lie() -> None:
    told = neighbours(3)
    assert told.shape == (9, 9, 3) and told.dtype == torch.float32
    assert told[4, 4].tolist() == [0, 0, 0] and told[4, 5].tolist() == [1, 0, 1], "patch 5 is right of the centre"
    assert told[4, 7].tolist() == [0, 1, 1] and told[4, 0].tolist() == [-1, -1, 2]
    assert told[0, 8].tolist() == [2, 2, 8] and told[8, 0].tolist() == [-2, -2, 8]


@pytest.mark.parametrize(("heads", "k"), [(12, 3), (9, 3), (16, 4), (4, 2), (8, 2), (3, 1), (25, 5)])
def test_each_of_the_first_heads_looks_at_one_neighbour(heads: int, k: int) -> None:
    weights, side = nearby(heads), 9
    assert weights.shape == (k**2, 3)
    attn = GPSA(heads * 2, heads, side)
    before = attn.pos_proj.weight.detach().clone()
    attn.start_local()
    assert torch.equal(attn.v.weight, torch.eye(heads * 2))
    assert torch.equal(attn.pos_proj.weight[: k**2], weights)
    assert torch.equal(attn.pos_proj.weight[k**2 :], before[k**2 :]), "the others stay as they were"
    middle = (k - 1) / 2 if k % 2 == 0 else k // 2
    centre = side // 2
    for a in range(k):
        for b in range(k):
            scores = (neighbours(side) @ weights[a + k * b])[centre * side + centre].view(side, side)  # [y, x]
            best = (scores == scores.max()).nonzero().tolist()
            dy, dx = a - middle, b - middle
            if k % 2:
                assert best == [[centre + dy, centre + dx]]
            else:  # half a patch away: as near to two rows and two columns
                assert best == [[centre + y, centre + x] for y in (dy - 0.5, dy + 0.5) for x in (dx - 0.5, dx + 0.5)]
            # A paraboloid around the neighbour: -|place - (dx, dy)|^2 and a constant.
            far = [(x - centre - dx) ** 2 + (y - centre - dy) ** 2 for y in range(side) for x in range(side)]
            torch.testing.assert_close(scores.flatten() + torch.tensor(far), torch.full((81,), dx**2 + dy**2 + 0.0))


# --- class attention (I3) ---


def asked(attn: ClassAttention, token: Tensor, patches: Tensor) -> Tensor:
    """What one token `[D]` gathers from itself and the patches `[N, D]` of one image, by definition."""
    both = torch.cat([token[None], patches])
    d = len(token) // attn.heads
    q, k, v = attn.q(token), attn.k(both), attn.v(both)
    parts = []
    for h in range(attn.heads):
        own = slice(h * d, (h + 1) * d)
        weights = (k[:, own] @ q[own] / d**0.5).softmax(0)
        parts.append(weights @ v[:, own])
    return attn.proj(torch.cat(parts))


def test_class_attention_is_that_of_each_token_with_itself_and_the_patches() -> None:
    attn, tokens, patches = shaken(ClassAttention(12, 3)), off((4, 12)), off((5, 7, 12)).flip(0)
    with torch.no_grad():
        wanted = torch.stack([torch.stack([asked(attn, t, image) for t in tokens]) for image in patches])
        torch.testing.assert_close(attn(tokens, patches), wanted, atol=1e-5, rtol=1e-4)


def test_the_task_block_is_class_attention_and_an_mlp_with_residuals_of_the_token() -> None:
    block, tokens, patches = shaken(TaskBlock(12, 3, 2.0, 0.0)), off((4, 12)), off((5, 7, 12)).flip(0)
    with torch.no_grad():
        for s in range(5):
            for t in range(4):
                x = tokens[t] + asked(block.attn, block.norm1(tokens[t]), block.norm1(patches[s]))
                wide = F.gelu(block.norm2(x) @ block.mlp[0].weight.T + block.mlp[0].bias)
                wanted = x + wide @ block.mlp[2].weight.T + block.mlp[2].bias
                torch.testing.assert_close(block(tokens, patches)[s, t], wanted, atol=1e-5, rtol=1e-4)
    assert block.mlp[0].out_features == 24


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 3), st.integers(0, 10**6))
def test_i3_tokens_do_not_see_each_other(kept: int, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    block = shaken(TaskBlock(12, 3, 2.0, 0.0))
    tokens, patches = torch.randn(4, 12, generator=draws), torch.randn(2, 5, 12, generator=draws)
    with torch.no_grad():
        together = block(tokens, patches)
        others = torch.randn(4, 12, generator=draws)
        others[kept] = tokens[kept]
        torch.testing.assert_close(block(others, patches)[:, kept], together[:, kept])
        torch.testing.assert_close(block(tokens[kept : kept + 1], patches)[:, 0], together[:, kept])
        torch.testing.assert_close(block(tokens.flip(0), patches), together.flip(1))


# --- the halves ---


def test_halves_are_residual_and_normalised_before() -> None:
    x = off((2, 9, 12))
    attention, feed = shaken(AttentionHalf(12, 4, 3, 0.0)), shaken(MLPHalf(12, 3.0, 0.0))
    with torch.no_grad():
        normed = F.layer_norm(x, (12,), attention.norm.weight, attention.norm.bias)
        torch.testing.assert_close(attention(x), x + by_definition(attention.attn, normed)[1], atol=1e-5, rtol=1e-4)
        normed = F.layer_norm(x, (12,), feed.norm.weight, feed.norm.bias)
        wide = F.gelu(normed @ feed.mlp[0].weight.T + feed.mlp[0].bias)
        assert wide.shape[-1] == 36
        torch.testing.assert_close(feed(x), x + wide @ feed.mlp[2].weight.T + feed.mlp[2].bias)
        assert torch.equal(feed(x, noise=lambda *_: pytest.fail("no attention here")), feed(x))


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_in_training_samples_skip_a_branch_whole(kind: str) -> None:
    half: Any = AttentionHalf(12, 4, 3, 0.4) if kind == "attention" else MLPHalf(12, 2.0, 0.4)
    x = off((1, 9, 12)).expand(1000, -1, -1)
    with torch.no_grad():
        branch = shaken(half)(x) - x
        with seeded(0, "drop"):
            dropped = half.train()(x) - x
    skipped = (dropped == 0).flatten(1).all(1)
    torch.testing.assert_close(dropped[~skipped], branch[~skipped] / 0.6, atol=1e-4, rtol=1e-3)
    assert abs(float(skipped.float().mean()) - 0.4) < 5 * (0.24 / 1000) ** 0.5, "a binomial count, 5 sigma"


def test_in_training_tokens_skip_the_branches_of_the_task_block_each_for_itself() -> None:
    block, tokens, patches = TaskBlock(4, 2, 2.0, 0.5), torch.zeros(3, 4), off((400, 2, 4))
    with torch.no_grad():
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.ones_(block.attn.proj.bias)
        nn.init.zeros_(block.mlp[2].weight)
        nn.init.constant_(block.mlp[2].bias, 10)
        with seeded(0, "drop"):
            seen = block.train()(tokens, patches)
    assert seen.shape == (400, 3, 4) and (seen == seen[..., :1]).all(), "a token whole"
    # Each branch counts twice or not at all: 0, 2, 20 or 22, in equal shares whatever the other tokens do.
    for values in (*seen[..., 0].unbind(1), seen[:, 0, 0] + 100 * seen[:, 1, 0]):
        found, counts = values.unique(return_counts=True)
        assert len(found) == (4 if values.max() < 100 else 16)
        assert (abs(counts / 400 - 1 / len(found)) < 5 * (1 / len(found) / 400) ** 0.5).all(), "5 sigma"
    assert torch.equal(block.eval()(tokens, patches), torch.full((400, 3, 4), 11.0))


# --- the network and its cut (I1) ---


def unsplit(network: Split, x: Tensor) -> Tensor:
    """Logits of the network as if it had never been cut, layer after layer, task after task."""
    below, above = network.below, network.above
    patch, dim = below.patches.kernel_size[0], below.patches.out_channels
    places = F.unfold((x - below.mean) / below.std, patch, stride=patch).mT  # [B, N, C p p], rows first
    z = places @ below.patches.weight.reshape(dim, -1).T + below.patches.bias + below.pos
    halves = [*below.halves, *above.halves]
    for attention, feed in zip(halves[::2], halves[1::2], strict=True):
        z = z + by_definition(attention.attn, attention.norm(z))[1]
        z = z + feed.mlp(feed.norm(z))
    logits = []
    for token, head in zip(above.tokens, above.heads, strict=True):
        e = torch.stack([asked(above.block.attn, above.block.norm1(token), above.block.norm1(image)) for image in z])
        e = e + token
        e = e + above.block.mlp(above.block.norm2(e))
        logits.append(head[1](head[0](e)))
    return torch.cat(logits, 1)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_i1_two_parts_are_one_network_wherever_it_is_cut(cut: int) -> None:
    config = replace(SMALL, replay_from=cut, layers=4, dim=8, normalize="cifar")
    network, whole, x = shaken(built(config)), shaken(built(replace(config, replay_from=1))), images(2)
    with torch.no_grad():
        r = network.represent(x)
        assert r.shape == (2, 16, 8)
        logits = network.above(r)
        assert logits.shape == (2, 5) and torch.equal(network(x), logits)
        torch.testing.assert_close(logits, unsplit(network, x), atol=1e-4, rtol=1e-4)
    kinds = [AttentionHalf, MLPHalf] * 3
    assert [type(half) for half in network.below.halves] == kinds[: 2 * cut - 1]
    assert [type(half) for half in network.above.halves] == kinds[2 * cut - 1 :]
    assert isinstance(network.below.halves[-1], AttentionHalf), "g ends in the middle of a layer"
    assert count(network) == count(whole)


def test_i1_the_cut_changes_no_weight() -> None:
    networks = [built(replace(SMALL, replay_from=cut)).eval() for cut in (1, 2, 3)]
    with torch.no_grad():
        logits = [network(images()) for network in networks]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


@pytest.mark.parametrize(("cut", "layers"), [(1, 2), (2, 1), (3, 0)])
def test_i1_noise_reaches_every_attention_above_the_cut_and_none_below(cut: int, layers: int) -> None:
    network, heard = built(replace(SMALL, replay_from=cut)).eval(), []
    network.above(network.represent(images()), lambda *told: heard.append(told))
    assert heard == [(3, 4, 16)] * layers


def test_layers_are_skipped_more_often_the_later_they_come() -> None:
    network = built(ConViT(dim=12, heads=4, layers=6, drop_path=0.1))
    halves = [*network.below.halves, *network.above.halves]
    rates = [getattr(half.drop, "p", 0) for half in halves] + [network.above.block.drop.p]
    wanted = [rate for rate in (0, 0.02, 0.04, 0.06, 0.08) for _ in range(2)]
    assert rates == pytest.approx([*wanted, 0.1])
    assert all(half.drop.mode == "row" for half in halves[2:])


@pytest.mark.parametrize("normalize", ["cifar", "imagenet"])
def test_images_are_normalised_inside(normalize: str) -> None:
    one, other = (built(replace(SMALL, normalize=name)).eval() for name in (normalize, "none"))
    mean, std = torch.tensor(SCALES[normalize])[..., None, None].unbind(0)
    with torch.no_grad():
        torch.testing.assert_close(one(images()), other((images() - mean) / std))
    known = {"cifar": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))}
    assert SCALES[normalize] == known.get(normalize, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


# --- growing (I1) ---


def test_i1_growing_leaves_old_logits_as_they_are() -> None:
    network, x = shaken(built(tasks=(2,))), images()
    with torch.no_grad():
        r = network.represent(x)
        e = network.above.embed(network.above.body(r))
        before = network(x)
        for width, classes in ((5, 3), (6, 1)):
            network.above.grow(classes)
            after = network(x)
            assert after.shape == (3, width)
            torch.testing.assert_close(after[:, : before.shape[1]], before)
            before = after
        assert network.above.grown == 3 and network.above.grows
        z = network.above.body(r)
        torch.testing.assert_close(network.above.embed(z)[:, :1], e)
        assert network.above.embed(z).shape == (3, 3, 24)
        for first in (1, 2, 3):
            torch.testing.assert_close(network.above.embed(z, first), network.above.embed(z)[:, :first])
            logits = network.above(r, first=first)
            torch.testing.assert_close(logits, before[:, : (2, 5, 6)[first - 1]])


def test_heads_answer_to_their_own_tokens() -> None:
    network = shaken(built(tasks=(2, 3)))
    e = off((4, 2, 24))
    with torch.no_grad():
        logits = network.above.answer(e)
        torch.testing.assert_close(logits[:, :2], network.above.heads[0](e[:, 0]))
        torch.testing.assert_close(logits[:, 2:], network.above.heads[1](e[:, 1]))


def test_i22_the_divergence_head_is_of_the_last_token_and_new_with_every_task_but_the_first() -> None:
    network, e = built(tasks=(4,)), off((3, 3, 24))
    assert network.above.divergence is None and network.above.diverge(e[:, :1]) is None
    network.above.grow(2)
    first = network.above.divergence
    assert network.above.diverge(e[:, :2]).shape == (3, 3)
    network.above.grow(5)
    second = network.above.divergence
    assert second is not first and second[1].out_features == 6 and second[0].normalized_shape == (24,)
    with torch.no_grad():
        told = network.above.diverge(e)
        torch.testing.assert_close(told, second(e[:, -1]))
        e[:, :-1] += 1
        assert torch.equal(network.above.diverge(e), told), "old tokens say nothing"
        assert network.eval()(images()).shape == (3, 11), "it is no part of the answer"


def test_growth_depends_on_the_seed_around_it_and_heads_start_as_torch_has_it() -> None:
    config = ConViT(dim=240, heads=4, layers=2, std=0.05)
    grown = []
    for seed in (1, 1, 2):
        network = config.build((3, 32, 32), 20)
        with seeded(seed, "growth"):
            network.above.grow(10)
            network.above.grow(10)
        grown.append({name: p for name, p in network.above.named_parameters() if not name.startswith(("hal", "block"))})
    assert all(torch.equal(p, grown[1][name]) for name, p in grown[0].items())
    heads = [name for name in grown[0] if name.endswith((".1.weight", ".1.bias"))]
    assert len(heads) == 6, "two heads, the second task's divergence head"
    for name in ("tokens.0", "tokens.1", *heads):
        p = grown[0][name].detach()
        assert not torch.equal(p, grown[2][name]), name
        std = 0.05 if name.startswith("tokens") else (3 * 240) ** -0.5  # uniform within 1 / sqrt(D)
        if p.numel() > 100:
            assert abs(float(p.std()) - std) < 5 * std / (2 * p.numel()) ** 0.5, f"{name}: 5 sigma"
        assert name.startswith("tokens") or 0.8 * 240**-0.5 < float(p.abs().max()) <= 240**-0.5, name
    assert not torch.equal(grown[0]["tokens.0"], grown[0]["tokens.1"])


def test_new_parts_come_where_the_network_is() -> None:
    network = SMALL.build(SHAPE, 4).to("meta")
    network.above.grow(2)
    network.above.grow(2)
    assert {p.device.type for p in network.parameters()} == {"meta"}


def test_holding_freezes_what_belongs_to_old_tasks_alone() -> None:
    above: Any = built(tasks=(2, 2, 2)).above
    above.hold(True)
    held = {name for name, p in above.named_parameters() if not p.requires_grad}
    assert {name.rsplit(".", 2)[0] if name.startswith("heads") else name for name in held} == {
        "tokens.0",
        "tokens.1",
        "heads.0",
        "heads.1",
    }
    above.hold(False)
    assert all(p.requires_grad for p in above.parameters())


def test_what_is_tuned_is_the_task_block_tokens_and_heads() -> None:
    above: Any = built(tasks=(2, 2)).above
    tuned = {id(p) for part in above.tuned() for p in part.parameters()}
    names = {name.split(".")[0] for name, p in above.named_parameters() if id(p) in tuned}
    assert names == {"block", "tokens", "heads"}
    assert {name.split(".")[0] for name, p in above.named_parameters() if id(p) not in tuned} == {
        "halves",
        "divergence",
    }


# --- initial weights ---


def test_initial_weights() -> None:
    network = built(replace(SMALL, dim=96, heads=12, std=0.05), tasks=())
    assert abs(float(network.below.pos.detach().std()) - 0.05) < 5 * 0.05 / (2 * network.below.pos.numel()) ** 0.5
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            assert module.bias is None or not module.bias.any(), name
        if name.endswith(("attn.qk", "attn.proj", "mlp.0", "mlp.2", "attn.q", "attn.k")):
            weight = module.weight.detach()
            assert abs(float(weight.std()) - 0.05) < 5 * 0.05 / (2 * weight.numel()) ** 0.5, name
        if name.endswith("attn") and isinstance(module, GPSA):
            assert torch.equal(module.v.weight, torch.eye(96)) and torch.equal(module.pos_proj.weight[:9], nearby(12))
            assert module.pos_proj.weight[9:].abs().max() < 0.05 * 6, "the others as they were drawn"
            assert torch.equal(module.gating, torch.ones(12))
            assert module.qk.bias is None and module.v.bias is None and module.proj.bias is not None
    block: Any = network.above.block
    assert block.attn.q.bias is block.attn.k.bias is block.attn.v.bias is None and block.attn.proj.bias is not None


def test_initial_weights_are_cut_off_at_two() -> None:
    weight = built(replace(SMALL, std=1.0), tasks=()).above.halves[0].mlp[0].weight
    assert 1.5 < float(weight.detach().abs().max()) <= 2


# --- heads from the start ---


def test_with_tasks_any_learner_can_use_it() -> None:
    stream = tiny_stream()
    config = ConViT(patch=2, dim=8, heads=2, layers=2, tasks=3)
    with seeded(1, "init"):
        network = config.build(stream.shape, 6)
    assert [head[1].out_features for head in network.above.heads] == [2, 2, 2] and network.above.divergence is None
    assert network(images(2, stream.shape)).shape == (2, 6) and network.classes == 6
    recipe = Recipe("naive", network=config, optimizer="adamw", step_size=0.01, batch_size=5, epochs=2)
    outcome = train(recipe.build(stream, 1), stream, recipe.feed(stream, 1), progress=False)
    assert outcome.test.shape == (1, 3, 3) and not outcome.diverged.any()
    with pytest.raises(UserError, match="tasks = 4: must divide 6 classes"):
        replace(config, tasks=4).build(stream.shape, 6)


# --- to look at ---


def test_where_a_network_looks() -> None:
    network, x = shaken(built(replace(SMALL, replay_from=2))), images()
    wanted, z = [], x
    with torch.no_grad():
        z = network.below.patches(x).flatten(2).mT + network.below.pos
        for half in [*network.below.halves, *network.above.halves]:
            if isinstance(half, AttentionHalf):
                wanted.append(half.attn.maps(half.norm(z)))
            z = half(z)
    maps, gates = looks(network, x)
    assert maps.shape == (3, 3, 4, 16, 16) and gates.shape == (3, 4) and not maps.requires_grad
    torch.testing.assert_close(maps, torch.stack(wanted))
    halves = [*network.below.halves, *network.above.halves]
    torch.testing.assert_close(gates, torch.stack([half.attn.gating.sigmoid() for half in halves[::2]]))
    assert not any(m._forward_pre_hooks for m in network.modules()), "nothing is left behind"
    with pytest.raises(RuntimeError):
        looks(network, images(2, (3, 8, 7)))
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_a_copy_is_a_network_of_its_own() -> None:
    network = built()
    copy = deepcopy(network)
    shaken(copy)
    assert not any(torch.equal(p, q) for p, q in zip(network.parameters(), copy.parameters(), strict=True))
    assert "places" not in "".join(network.state_dict()), "what follows from the shape is not stored"


# --- refusals ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patch", 0),
        ("patch", 2.0),
        ("dim", 0),
        ("heads", 0),
        ("heads", 5),
        ("layers", 1),
        ("replay_from", 0),
        ("replay_from", 4),
        ("mlp_ratio", 0),
        ("mlp_ratio", float("nan")),
        ("drop_path", -0.1),
        ("drop_path", 1.0),
        ("std", 0),
        ("std", 2),
        ("normalize", "mnist"),
        ("tasks", 0),
        ("tasks", 1.5),
    ],
)
def test_impossible_settings_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        replace(SMALL, **{name: value})
    assert str(caught.value).startswith(f"{name} = {value!r}: ")


@pytest.mark.parametrize("shape", [(16,), (3, 8, 6), (3, 9, 9), (8, 8)])
def test_images_that_do_not_divide_into_patches_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"^patch = 2: takes square images .*not \["):
        SMALL.build(shape, prod(shape))


def test_f_without_the_split_has_no_heads_yet() -> None:
    above = Tasks(SMALL, [], 0.0)
    assert above.grown == 0 and above.grows and above.divergence is None
