"""Attention is collected from every block without a trace, and rolled out as its definition says."""

from collections import Counter
from functools import partial
from math import floor

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cllib.attention import (
    HEADS,
    Grid,
    attentions,
    cut_square,
    discard,
    fuse,
    grid_of,
    mask,
    overlay,
    photo,
    placed,
    residual_normalised,
    rollout,
    switched,
)
from cllib.errors import UserError
from cllib.models.convit import ConViT
from cllib.models.latent_vit import LatentViT
from cllib.models.networks import logits_of
from cllib.models.plain_vit import PlainViT

DEPTH, T = 3, 65
EIGHT = Grid(8, 8)


def vit(**changes) -> VisionTransformer:
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depth": DEPTH, "num_heads": 4, "num_classes": 5}
    net = VisionTransformer(**{**size, **changes})
    with torch.no_grad():  # at their start, probabilities are all but equal
        for block in net.blocks:
            block.attn.qkv.weight.mul_(12)
    return net


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def random_attention(*shape: int) -> Tensor:
    """Probabilities `[*shape, T, T]`."""
    return torch.randn(*shape, T, T, generator=torch.Generator().manual_seed(2)).mul(2).softmax(-1)


def state(net: nn.Module) -> list:
    """All that collecting might leave changed."""
    return [
        (m.training, getattr(m, "fused_attn", None), getattr(m, "whole", None), dict(m._forward_pre_hooks))
        for m in net.modules()
    ]


# --- probabilities ---


def test_every_block_is_collected_in_order() -> None:
    net, x = vit(), images()
    found = attentions(net, x)
    assert found.shape == (DEPTH, 2, 4, T, T) and not found.requires_grad
    torch.testing.assert_close(found.sum(-1), torch.ones(DEPTH, 2, 4, T))
    tokens = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(x))))
    for block, a in zip(net.blocks, found, strict=True):
        q, k, _ = block.attn.qkv(block.norm1(tokens)).view(2, T, 3, 4, 4).permute(2, 0, 3, 1, 4)  # [B, h, T, D / h]
        torch.testing.assert_close(a, (q @ k.transpose(-2, -1) / 2).softmax(-1))
        tokens = block(tokens)
    assert found.std() > 0.01


def test_collecting_is_done_without_dropout_and_runs_the_model_once() -> None:
    net, calls = vit(attn_drop_rate=0.5, proj_drop_rate=0.5), Counter()
    net.register_forward_hook(lambda *_: calls.update({"run": 1, "with gradients": torch.is_grad_enabled()}))
    assert torch.equal(attentions(net.train(), images()), attentions(net.eval(), images()))
    assert calls == {"run": 2, "with gradients": 0}


def test_fused_and_unfused_attention_agree() -> None:
    net, x = vit(), images()
    assert all(block.attn.fused_attn for block in net.blocks)
    fused = logits_of(net, x)
    with switched(net, fused_attn=False):
        assert not any(block.attn.fused_attn for block in net.blocks)
        torch.testing.assert_close(logits_of(net, x), fused, atol=1e-5, rtol=0)


class Breaks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("broken")


@pytest.mark.parametrize("broken", [False, True])
def test_hooks_flags_and_modes_are_as_before(broken: bool) -> None:
    net = vit().train()
    net.blocks[0].eval()
    net.blocks[1].attn.fused_attn = False
    net.blocks[2].attn.attn_drop.register_forward_pre_hook(lambda *_: None)  # somebody else's
    if broken:
        net.head = Breaks()
    before = state(net)
    if broken:
        with pytest.raises(RuntimeError, match="broken"):
            attentions(net, images())
    else:
        attentions(net, images())
    assert state(net) == before


def test_a_model_without_visible_attention_is_refused() -> None:
    with pytest.raises(UserError, match="model = Linear: 0 of 0 attentions seen"):
        attentions(nn.Linear(3, 2), torch.zeros(1, 3))
    net = vit()
    net.blocks[1].attn.forward = lambda x, **_: x  # its probabilities are never made
    with pytest.raises(UserError, match="2 of 3 attentions seen"):
        attentions(net, images())


class Shortcut(nn.Module):
    """Its last block is computed by module only on request."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.whole = vit(), False

    def forward(self, x: Tensor) -> Tensor:
        blocks = self.net.blocks if self.whole else self.net.blocks[:-1]
        return blocks(self.net._pos_embed(self.net.patch_embed(x)))[:, 0]


def test_a_shortcut_for_the_class_token_is_switched_off_for_the_moment() -> None:
    net = Shortcut()
    torch.testing.assert_close(attentions(net, images()), attentions(vit(), images()))
    assert net.whole is False


@pytest.mark.parametrize("replay_block", [None, 1, 3])
def test_blocks_on_both_sides_of_a_cut_are_collected(replay_block: int | None) -> None:
    net = LatentViT(depth=3, replay_block=replay_block, weights="random").build((3, 32, 32), 5)
    before = state(net.train())
    found = attentions(net, images())
    assert found.shape == (3, 2, 4, 17, 17) and state(net) == before
    assert torch.equal(attentions(net.eval(), images()), found)


# --- rollout ---


def test_heads_are_fused_by_mean_maximum_or_minimum() -> None:
    a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[3.0, 0.0], [1.0, 8.0]]])
    assert fuse(a, "mean").tolist() == [[2, 1], [2, 6]]
    assert fuse(a, "max").tolist() == [[3, 2], [3, 8]]
    assert fuse(a, "min").tolist() == [[1, 0], [1, 4]]
    assert fuse(a.expand(5, 6, 2, 2, 2), "max").shape == (5, 6, 2, 2)
    with pytest.raises(UserError, match="heads = 'sum': allowed are mean, max, min"):
        fuse(a, "sum")


@pytest.mark.parametrize("ratio", [0, 0.1, 0.7, 0.9, 1])
def test_discard_keeps_the_largest_and_the_very_first(ratio: float) -> None:
    values = torch.randperm(3 * T * T, generator=torch.Generator().manual_seed(3)).float().add(1).view(3, T, T)
    values[0, 0, 0], values[1, 0, 0] = 0.5, 1e9  # among the smallest; among the largest
    kept, k = discard(values, ratio), floor(ratio * T * T)
    for before, after in zip(values, kept, strict=True):
        first_is_small = int(before.flatten().argsort().argsort()[0]) < k
        assert int((after > 0).sum()) == T * T - k + first_is_small
        assert after[0, 0] == before[0, 0] and torch.equal(after[after > 0], before[after > 0])
        others = after.flatten()[1:]
        if k and (others > 0).any():
            assert before.flatten()[1:][others == 0].max() < others[others > 0].min()


def test_discard_refuses_a_share_that_is_none_and_keeps_its_argument() -> None:
    a = random_attention(1)
    before = a.clone()
    discard(a, 0.9)
    assert torch.equal(a, before)
    for ratio in (-0.1, 1.1):
        with pytest.raises(UserError, match="ratio"):
            discard(a, ratio)


def test_equal_entries_go_first_come_first() -> None:
    assert discard(torch.ones(3, 3), 0.5).tolist() == [[1, 0, 0], [0, 1, 1], [1, 1, 1]]


def test_two_tokens_by_hand() -> None:
    a = discard(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), 0.25)
    assert a.tolist() == [[0.5, 0.5], [0, 0.75]]
    torch.testing.assert_close(residual_normalised(a), torch.tensor([[0.75, 0.25], [0, 1]]))
    torch.testing.assert_close(residual_normalised(a, "legacy"), torch.tensor([[0.75, 0.25 / 0.875], [0, 1]]))
    with pytest.raises(UserError, match="normalize = 'column': allowed are row, legacy"):
        residual_normalised(a, "column")


def in_numpy(attn: np.ndarray, heads: str, ratio: float, normalize: str) -> np.ndarray:
    """One image's rollout, element by element: attn `[D, h, T, T]`."""
    t = attn.shape[-1]
    rolled = np.eye(t)
    for block in attn:
        a = getattr(np, heads)(block, axis=0)
        for place in sorted(np.ndindex(t, t), key=lambda p: a[p])[: int(ratio * t * t)]:
            if place != (0, 0):
                a[place] = 0
        mixed, result = (a + np.eye(t)) / 2, np.zeros((t, t))
        for i, j in np.ndindex(t, t):
            result[i, j] = mixed[i, j] / mixed[i if normalize == "row" else j].sum()
        rolled = result @ rolled
    return rolled


@pytest.mark.parametrize("normalize", ["row", "legacy"])
@pytest.mark.parametrize("heads", HEADS)
def test_rollout_is_what_numpy_finds(heads: str, normalize: str) -> None:
    attn = torch.randn(3, 2, 4, 5, 5, generator=torch.Generator().manual_seed(4)).softmax(-1).double()
    found = rollout(attn, heads, 0.5, normalize)
    assert found.shape == (2, 5, 5)
    for b in range(2):
        expected = in_numpy(attn[:, b].numpy(), heads, 0.5, normalize)
        np.testing.assert_allclose(found[b].numpy(), expected, rtol=1e-6, atol=1e-12)
        square = expected[0, 1:].reshape(2, 2)
        np.testing.assert_allclose(mask(found, Grid(2, 2))[b].numpy(), square / square.max(), rtol=1e-6)


def test_defaults_are_those_of_the_released_pictures_but_for_the_normalisation() -> None:
    attn = random_attention(3, 1, 4)
    assert torch.equal(rollout(attn), rollout(attn, "max", 0.9, "row"))
    assert torch.equal(residual_normalised(attn), residual_normalised(attn, "row"))


@pytest.mark.parametrize("ratio", [0, 0.9])
@pytest.mark.parametrize("heads", HEADS)
def test_rows_are_means(heads: str, ratio: float) -> None:
    attn = random_attention(12, 2, 4)  # as deep as a ViT-B
    for found in (residual_normalised(discard(fuse(attn, heads), ratio)), rollout(attn, heads, ratio)):
        assert (found >= 0).all()
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), atol=1e-6, rtol=0)


def test_the_released_normalisation_is_harmless_only_for_means_that_were_not_thinned() -> None:
    attn = random_attention(3, 2, 12)
    torch.testing.assert_close(rollout(attn, "mean", 0, "legacy"), rollout(attn, "mean", 0, "row"), atol=1e-6, rtol=0)
    sums = residual_normalised(discard(fuse(attn, "max"), 0.9), "legacy").sum(-1)
    assert sums.min() < 0.75 and sums.max() > 1.6
    assert not torch.allclose(mask(rollout(attn, normalize="legacy"), EIGHT), mask(rollout(attn), EIGHT), atol=0.2)


def test_a_batch_is_its_images_one_by_one() -> None:
    net, x = vit(), images(3)
    together = rollout(attentions(net, x))
    alone = torch.cat([rollout(attentions(net, one[None])) for one in x])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    found = mask(together, grid_of(net, x))
    assert (found.amax((1, 2)) == 1).all() and found.shape == (3, 8, 8)


@pytest.mark.parametrize("ratio", [0, 0.9])
def test_tokens_that_see_only_themselves_give_an_empty_mask(ratio: float) -> None:
    found = rollout(torch.eye(T).expand(DEPTH, 2, 4, T, T), "mean", ratio)
    torch.testing.assert_close(found, torch.eye(T).expand(2, T, T))
    assert torch.equal(mask(found, EIGHT), torch.zeros(2, 8, 8))


def test_uniform_attention_gives_a_uniform_mask() -> None:
    found = rollout(torch.full((DEPTH, 2, 4, T, T), 1 / T), "mean", 0)
    torch.testing.assert_close(mask(found, EIGHT), torch.ones(2, 8, 8))


def test_later_blocks_multiply_from_the_left() -> None:
    first, second = torch.eye(5), torch.eye(5)
    first[1], second[0] = torch.eye(5)[2], torch.eye(5)[1]  # token 1 takes from 2, then the class token from 1
    found = rollout(torch.stack([first, second])[:, None, None], "mean", 0)
    assert found[0, 0].tolist() == [0.5, 0.25, 0.25, 0, 0]
    assert mask(found, Grid(2, 2))[0].tolist() == [[1, 1], [0, 0]]


def test_what_is_no_attention_is_refused() -> None:
    with pytest.raises(UserError, match=r"\[3, 4, 65, 65\]"):
        rollout(random_attention(3, 4))
    for tokens in (0, 1, 3, 6, 64):
        with pytest.raises(UserError, match=f"{tokens} tokens: must be at most a class token, then 2 x 2 patches"):
            placed(torch.zeros(1, tokens), Grid(2, 2))
    assert placed(torch.arange(5.0)[None], Grid(2, 2)).tolist() == [[[1, 2], [3, 4]]]
    assert placed(torch.arange(7.0)[None], Grid(1, 4, 3)).tolist() == [[[3, 4, 5, 6]]]


# --- images that are not square, tokens that are no patches ---


def oblong(n: int = 2) -> Tensor:
    """Images of 4 x 9 patches of 4 pixels: as many as of a square."""
    return torch.rand(n, 3, 16, 36, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("registers", [0, 4, 5])
@pytest.mark.parametrize("dynamic", [False, True])
def test_the_grid_is_the_networks_own(registers: int, dynamic: bool) -> None:
    size = (32, 32) if dynamic else (16, 36)
    net, x = vit(img_size=size, reg_tokens=registers, dynamic_img_size=dynamic), oblong()
    grid = grid_of(net, x)
    assert grid == (4, 9, 1 + registers, True)
    rolled = rollout(attentions(net, x))
    found = mask(rolled, grid)
    assert found.shape == (2, 4, 9)
    patches = rolled[:, 0, 1 + registers :]
    torch.testing.assert_close(found, (patches / patches.amax(-1, keepdim=True)).view(2, 4, 9))
    hot = torch.zeros(36).scatter(0, torch.tensor([9]), 1)  # the first patch of the second row
    one = torch.cat([torch.zeros(1 + registers), hot])[None]
    assert placed(one, grid)[0].nonzero().tolist() == [[1, 0]]


def test_few_patches_beside_many_registers_are_no_larger_square() -> None:
    net, x = vit(img_size=8, reg_tokens=5), images()[..., :8, :8]
    grid = grid_of(net, x)
    assert mask(rollout(attentions(net, x)), grid).shape == (2, 2, 2)


@pytest.mark.parametrize("changes", [{}, {"reg_tokens": 4}])
def test_without_a_class_token_nothing_gathers(changes: dict[str, int]) -> None:
    net, x = vit(class_token=False, global_pool="avg", **changes), images()
    with pytest.raises(UserError, match="no class token"):
        mask(rollout(attentions(net, x)), grid_of(net, x))


@pytest.mark.parametrize("replay_block", [None, 2])
def test_networks_of_the_package_tell_their_grid(replay_block: int | None) -> None:
    cut = LatentViT(depth=3, replay_block=replay_block, weights="random").whole(5)
    assert grid_of(cut, images()) == (4, 4, None, True)
    plain = PlainViT(dim=8, heads=2).build((3, 32, 32), 5)
    convit = ConViT(dim=8, heads=2, layers=2, tasks=1).build((3, 32, 32), 5)
    assert grid_of(plain, images())[:2] == grid_of(convit, images())[:2] == (8, 8)


def test_what_does_not_tell_its_patches_is_refused() -> None:
    upper = LatentViT(depth=3, replay_block=2, weights="random").upper(5)
    with pytest.raises(UserError, match=r"model = Upper: no convolution and no patch_embed.grid_size"):
        grid_of(upper, torch.zeros(1, 17, 64))


def test_images_are_cut_into_squares_or_not_at_all() -> None:
    assert cut_square(torch.zeros(1, 3, 64, 144), 36)[:2] == (4, 9)
    assert cut_square(torch.zeros(1, 3, 32, 32), 16)[:2] == (4, 4)
    for size, patches in (((64, 144), 35), ((64, 144), 0), ((30, 30), 16), ((64, 64), 17), ((1, 1), 4)):
        with pytest.raises(UserError, match=f"{patches} patches"):
            cut_square(torch.zeros(1, 3, *size), patches)


def test_attention_of_an_image_does_not_depend_on_its_neighbours() -> None:
    net, x = vit(norm_layer=partial(Across, track_running_stats=False)), images(3)
    together = attentions(net, x)
    torch.testing.assert_close(together[:, :1], attentions(net, x[:1]), atol=1e-6, rtol=0)


class Across(nn.BatchNorm1d):
    """BatchNorm over channels that stand last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, -1)).transpose(1, -1) if x.ndim == 3 else super().forward(x)


# --- to look at ---


def test_overlay_adds_a_heat_map_in_the_photos_own_colours() -> None:
    red = torch.zeros(3, 8, 6)
    red[0] = 1
    cold, hot = overlay(red, torch.zeros(2, 2)), overlay(red, torch.ones(2, 2))
    assert cold.shape == (8, 6, 3) and cold.min() >= 0 and cold.max() == 1
    torch.testing.assert_close(cold[0, 0], torch.tensor([1, 0, 0.5]))  # a red photo under jet's lowest, dark blue
    torch.testing.assert_close(hot[0, 0], torch.tensor([1, 0, 0.0]), atol=1e-6, rtol=0)  # jet's highest is dark red
    white = overlay(torch.ones(3, 8, 6), torch.zeros(2, 2))
    torch.testing.assert_close(white[0, 0], torch.tensor([1, 1, 1.5]) / 1.5)


def test_the_mask_lies_as_the_photo_does_and_is_enlarged_smoothly() -> None:
    heat = overlay(torch.zeros(3, 8, 8), torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    redness = heat[..., 0] - heat[..., 2]
    assert redness[0, 7] > 0.4 and redness[0, 0] < -0.4 and redness[7, 7] < -0.4
    assert len(redness[0].unique()) > 4


def test_photos_must_lie_between_0_and_1() -> None:
    image = images(1)[0]
    assert torch.equal(photo(image)[3, 5], image[:, 3, 5])
    for wrong in (image * 255, image - 1, image * torch.nan):
        with pytest.raises(UserError, match="must lie between 0 and 1"):
            photo(wrong)
    for wrong in (image[:1], image[0], images(1)):
        with pytest.raises(UserError, match=r"must be \[3, H, W\]"):
            photo(wrong)
