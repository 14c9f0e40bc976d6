"""Frozen networks: what they compute, where their weights come from, and what is said when they do not come."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18

from cllib.datasets.backbones import DEFAULT, TORCHVISION, Backbone, backbone
from cllib.errors import UserError


def test_input_is_resized_and_normalised_per_channel() -> None:
    net = Backbone("flat", nn.Flatten(), 4, (0.1, 0.2, 0.3), (1.0, 2.0, 4.0), "")
    x = torch.tensor([0.6, 0.6, 0.6]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    y = net(x).view(2, 3, 16)
    assert torch.allclose(y, torch.tensor([0.5, 0.2, 0.075]).view(1, 3, 1).expand(2, 3, 16))


def test_shrinking_is_antialiased() -> None:
    """Every second column white: averaged it is grey, sampled it is all black or all white."""
    x = torch.zeros(1, 3, 9, 9)
    x[..., ::2] = 1
    y = Backbone("flat", nn.Flatten(), 3, (0, 0, 0), (1, 1, 1), "")(x)
    assert (y - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", TORCHVISION])
def test_a_random_network_is_frozen_seeded_and_leaves_the_callers_draws_alone(name: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    net, again, other = (backbone(name, "random", image_size=32, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert net.weights_hash == again.weights_hash != other.weights_hash
    assert not net.model.training and not any(p.requires_grad for p in net.model.parameters())
    x = torch.rand(2, 3, 20, 20)
    y = net(x)
    assert y.ndim == 2 and len(y) == 2 and torch.equal(y, again(x)) and not torch.equal(y, other(x))
    assert y.shape[1] == (512 if name == TORCHVISION else net.model.num_features)  # no classifier


def test_input_size_and_normalisation_are_the_weights_own() -> None:
    assert backbone("test_vit", "random").image_size == timm.get_pretrained_cfg("test_vit").input_size[-1] == 160
    ours, theirs = backbone(DEFAULT, "random"), backbone(TORCHVISION, "random")
    assert ours.image_size == theirs.image_size == 224
    assert ours.mean == theirs.mean == (0.485, 0.456, 0.406) and ours.std == theirs.std == (0.229, 0.224, 0.225)


def test_torchvisions_checkpoint_gives_torchvisions_features_through_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = resnet18().eval()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    net = backbone(DEFAULT, tmp_path / "resnet18.pth", image_size=64)
    model.fc = nn.Identity()
    x = torch.rand(2, 3, 64, 64)
    normal = (x - torch.tensor(net.mean).view(3, 1, 1)) / torch.tensor(net.std).view(3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(net(x), model(normal), atol=1e-5)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return timm.create_model("test_resnet").state_dict()


def one_line(caught: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    assert [part for part in parts if part not in message] == []


def test_a_checkpoint_must_hold_every_weight(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    """A missing key would leave random numbers in a network that is called pre-trained."""
    path = tmp_path / "w.safetensors"
    save_file(weights, path)
    backbone("test_resnet", path)
    weights.pop("layer1.0.conv1.weight")
    save_file(weights, path)
    with pytest.raises(UserError) as caught:
        backbone("test_resnet", path)
    one_line(caught, "test_resnet", str(path), "layer1.0.conv1.weight")


def test_a_damaged_foreign_or_missing_checkpoint_is_named(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError) as caught:
        backbone("test_resnet", path)
    one_line(caught, str(path), "no such file")
    save_file(weights, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError) as caught:
        backbone("test_resnet", path)
    one_line(caught, str(path), "cannot be loaded")
    save_file(weights, path)
    with pytest.raises(UserError) as caught:
        backbone("test_vit", path)
    one_line(caught, "test_vit", str(path))
    with pytest.raises(UserError, match=DEFAULT):
        backbone(TORCHVISION, path)


@pytest.mark.parametrize("name", ["nosuch", "test_resnet.nosuch", "gcvit_base"])
def test_an_unknown_network_or_one_without_weights_is_named(name: str) -> None:
    with pytest.raises(UserError) as caught:
        backbone(name)
    one_line(caught, name)


def test_an_impossible_image_size_is_refused() -> None:
    with pytest.raises(UserError, match="image_size = 0"):
        backbone("test_resnet", "random", image_size=0)


def no_network(*_: Any, **__: Any) -> Any:
    raise OSError("no network")


def test_cached_weights_need_no_network(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(weights, folder / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.utils, "get_session", no_network)
    net = backbone("test_resnet")
    assert torch.equal(net.model.conv1[0].weight, weights["conv1.0.weight"])


@pytest.mark.parametrize("name", ["test_resnet", TORCHVISION])
def test_offline_says_so_in_one_line_without_retrying(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.utils, "get_session", no_network)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: pytest.fail("would retry for half a minute"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(UserError) as caught:
        backbone(name)
    one_line(caught, name, "no network")
