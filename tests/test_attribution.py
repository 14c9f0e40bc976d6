"""Attributions add up, have the image's shape, and leave the model as it was."""

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from cllib.attribution import CHUNK, grad_cam, incompleteness, integrated_gradients
from cllib.errors import UserError
from cllib.models.networks import logits_of

TARGETS = torch.tensor([3, 0])


def vit(dropout: float = 0.0) -> VisionTransformer:
    torch.manual_seed(0)
    net = VisionTransformer(32, 4, embed_dim=16, depth=3, num_heads=4, num_classes=5, proj_drop_rate=dropout)
    with torch.no_grad():  # at their start, weights are too small for a path that bends
        for block in net.blocks:
            block.attn.qkv.weight.mul_(12)
        net.head.weight.mul_(10)
    return net


def images(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def by_gradients(net: nn.Module, x: Tensor, target: int | Tensor) -> Tensor:
    return integrated_gradients(net, x, target, 4)


def by_patches(net: nn.Module, x: Tensor, target: int | Tensor) -> Tensor:
    return grad_cam(net, net.get_submodule("blocks.2.norm1"), x, target)


BOTH = pytest.mark.parametrize("method", [by_gradients, by_patches])
Method = Callable[[nn.Module, Tensor, int | Tensor], Tensor]


@BOTH
@pytest.mark.parametrize("frozen", ["nothing", "below", "everything"])
def test_nothing_is_left_behind(method: Method, frozen: str) -> None:
    net, x = vit(dropout=0.5).train(), images()
    net.blocks[0].eval()
    for name, p in net.named_parameters():
        p.requires_grad_(frozen == "nothing" or (frozen == "below" and ("blocks.2" in name or "head" in name)))
    net.head.bias.grad = torch.ones(5)
    before = [(m.training, len(m._forward_hooks)) for m in net.modules()]
    flags = [p.requires_grad for p in net.parameters()]
    found = method(net, x, TARGETS)
    torch.testing.assert_close(found, method(vit(dropout=0.5), x, TARGETS))  # also without dropout
    assert not found.requires_grad and not x.requires_grad and found.abs().max() > 0
    assert not method(net, x.clone().requires_grad_(), TARGETS).requires_grad
    assert [(m.training, len(m._forward_hooks)) for m in net.modules()] == before
    assert [p.requires_grad for p in net.parameters()] == flags
    assert [n for n, p in net.named_parameters() if p.grad is not None] == ["head.bias"]
    assert torch.equal(net.head.bias.grad, torch.ones(5))


@BOTH
def test_each_image_has_its_own_target(method: Method) -> None:
    net, x = vit(), images()
    together = method(net, x, TARGETS)
    for k, target in enumerate((3, 0)):
        torch.testing.assert_close(together[k : k + 1], method(net, x[k : k + 1], target), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(together[1:], method(net, x[1:], 3))


class Detached(nn.Module):
    """Its lower part keeps no gradient while the switch says so."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.detached = vit(), True

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detached):
            z = self.net.blocks(self.net._pos_embed(self.net.patch_embed(x)))
        return self.net.forward_head(self.net.norm(z))


def test_a_cut_of_the_gradient_is_lifted_for_the_moment() -> None:
    cut, net, x = Detached(), vit(), images()
    torch.testing.assert_close(by_gradients(cut, x, TARGETS), by_gradients(net, x, TARGETS))
    torch.testing.assert_close(grad_cam(cut, cut.net.blocks[2].norm1, x, TARGETS), by_patches(net, x, TARGETS))
    assert cut.detached is True


# --- integrated gradients ---


def test_integrated_gradients_of_a_line_are_weight_times_pixel() -> None:
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), images()
    weight = net[1].weight[TARGETS].view(2, 3, 32, 32)
    torch.testing.assert_close(integrated_gradients(net, x, TARGETS, 3), (weight * x).sum(1).detach())


def test_integrated_gradients_add_up_to_the_rise_of_the_logit() -> None:
    net, x = vit(), images()
    maps = integrated_gradients(net, x, TARGETS)
    assert maps.shape == (2, 32, 32)
    rise = logits_of(net, x) - logits_of(net, 0 * x)
    rise = torch.stack([rise[0, 3], rise[1, 0]])
    assert rise.abs().min() > 0.05
    torch.testing.assert_close(maps.sum((1, 2)), rise, atol=1e-5, rtol=0)
    torch.testing.assert_close(incompleteness(net, x, TARGETS, maps), maps.sum((1, 2)) - rise)
    torch.testing.assert_close(incompleteness(net, x, TARGETS, maps + 1), maps.sum((1, 2)) - rise + 32 * 32)
    torch.testing.assert_close(incompleteness(net, x, 3, maps)[:1], (maps.sum((1, 2)) - rise)[:1])
    assert incompleteness(net, x, TARGETS, integrated_gradients(net, x, TARGETS, 1)).abs().max() > 0.02


def test_the_path_is_walked_in_chunks() -> None:
    sizes: list[int] = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    net.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    integrated_gradients(net, images(10), 0, 32)
    assert sum(sizes) >= 320 and max(sizes) <= CHUNK


# --- gradient times activation on tokens ---


@pytest.mark.parametrize("frozen", [False, True])
def test_grad_cam_is_what_autograd_finds(frozen: bool) -> None:
    net, x = vit().eval().requires_grad_(not frozen), images()
    last = net.blocks[2]
    z = net.blocks[:2](net._pos_embed(net.patch_embed(x))).detach()
    tokens = last.norm1(z).detach().requires_grad_()  # [2, T, C]
    u = z + last.attn(tokens)
    logits = net.forward_head(net.norm(u + last.mlp(last.norm2(u))))
    (slope,) = torch.autograd.grad(logits[0, 3] + logits[1, 0], tokens)
    expected = torch.zeros(2, 8, 8)
    for b in range(2):
        for patch in range(64):
            expected[b, patch // 8, patch % 8] = max(0, float(slope[b, 1 + patch] @ tokens[b, 1 + patch].detach()))
    found = grad_cam(net, last.norm1, x, TARGETS)
    torch.testing.assert_close(found, expected)
    assert found.shape == (2, 8, 8) and (found == 0).any() and (found > 0).any()


def test_behind_the_last_attention_patches_do_not_matter() -> None:
    net = vit()
    assert (grad_cam(net, net.blocks[2].norm2, images(), 1) == 0).all()


def test_layers_images_and_targets_that_do_not_fit_are_refused() -> None:
    net, x = vit(), images()
    with pytest.raises(UserError, match="layer = LayerNorm: is not part of the model"):
        grad_cam(net, vit().blocks[2].norm1, x, 0)
    with pytest.raises(UserError, match="layer = Conv2d: must give tokens"):
        grad_cam(net, net.patch_embed.proj, x, 0)
    with pytest.raises(UserError, match="64 tokens"):
        grad_cam(net, net.patch_embed, x, 0)


@BOTH
def test_images_and_targets_are_checked(method: Method) -> None:
    net, x = vit(), images()
    for wrong in (x[0], (x * 255).byte()):
        with pytest.raises(UserError, match="must be images"):
            method(net, wrong, 0)
    for target in (torch.tensor([1, 2, 3]), torch.tensor(1), TARGETS.float()):
        with pytest.raises(UserError, match="must be int64, one for each of 2 images"):
            method(net, x, target)
    with pytest.raises(UserError, match="target = -1"):
        method(net, x, -1)


def test_steps_are_at_least_one() -> None:
    with pytest.raises(UserError, match="steps = 0"):
        integrated_gradients(vit(), images(), 0, 0)


# --- images that are not square, tokens that are no patches ---


@pytest.mark.parametrize("registers", [0, 4])
def test_maps_of_oblong_images_have_their_grid(registers: int) -> None:
    torch.manual_seed(0)
    net = VisionTransformer((16, 36), 4, embed_dim=16, depth=3, num_heads=4, num_classes=5, reg_tokens=registers)
    x = torch.rand(2, 3, 16, 36)
    assert by_patches(net, x, TARGETS).shape == (2, 4, 9)
    assert by_gradients(net, x, TARGETS).shape == (2, 16, 36)


def test_without_a_class_token_all_tokens_are_patches() -> None:
    torch.manual_seed(0)
    net = VisionTransformer(
        32, 4, embed_dim=16, depth=3, num_heads=4, num_classes=5, class_token=False, global_pool="avg"
    )
    found = by_patches(net, images(), TARGETS)
    assert found.shape == (2, 8, 8) and found.max() > 0


# --- norms that look at the batch ---


def across(track: bool = False) -> nn.Sequential:
    """A network whose answer to an image depends on the others of its batch, unless norms keep statistics."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(6, track_running_stats=track), nn.BatchNorm2d(8, track_running_stats=track)]
    layers = [nn.Conv2d(3, 6, 3), norms[0], nn.ReLU(), nn.Conv2d(6, 8, 3, 2), norms[1], nn.Tanh()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))


def test_a_map_does_not_depend_on_its_neighbours_and_is_complete() -> None:
    net, x = across().train(), images(4)
    targets = torch.tensor([3, 0, 1, 4])
    together = integrated_gradients(net, x, targets, 256)
    for k in range(4):
        alone = integrated_gradients(net, x[k : k + 1], targets[k : k + 1], 256)
        torch.testing.assert_close(together[k : k + 1], alone, atol=1e-6, rtol=0)
        torch.testing.assert_close(together[k : k + 1], integrated_gradients(net, x[k : k + 1], int(targets[k]), 256))
    assert incompleteness(net, x, targets, together).abs().max() < 2e-3
    assert together.abs().max() > 1e-3
    assert net.training and net[1].running_mean is None and not net[1]._forward_pre_hooks


def test_a_map_can_be_asked_for_among_given_images() -> None:
    net, x, others = across(), images(2), torch.rand(6, 3, 32, 32)
    maps = integrated_gradients(net, x, TARGETS, 256, others)
    alone = integrated_gradients(net, x[:1], 3, 256, others)
    torch.testing.assert_close(maps[:1], alone, atol=1e-6, rtol=0)
    assert incompleteness(net, x, TARGETS, maps, others).abs().max() < 2e-3
    assert not torch.allclose(maps, integrated_gradients(net, x, TARGETS, 256), atol=1e-3)
    kept = across(True)
    torch.testing.assert_close(integrated_gradients(kept, x, 0, 4, others), integrated_gradients(kept, x, 0, 4))


def test_patches_are_seen_apart_too() -> None:
    net = vit()
    with_norm = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), net)
    x, layer = images(3), net.blocks[2].norm1
    together = grad_cam(with_norm, layer, x, 1)
    torch.testing.assert_close(together[:1], grad_cam(with_norm, layer, x[:1], 1), atol=1e-6, rtol=0)


def test_a_norm_with_one_number_a_channel_needs_others() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 6), norm, nn.Linear(6, 5)), images()
    with pytest.raises(UserError, match="model = Sequential: its norms need a batch; say which images, as among"):
        integrated_gradients(net, x, TARGETS, 4)
    others = torch.rand(9, 3, 32, 32)
    maps = integrated_gradients(net, x, TARGETS, 4, others)
    torch.testing.assert_close(maps[:1], integrated_gradients(net, x[:1], 3, 4, others), atol=1e-6, rtol=0)
    assert net[2].running_mean is None
