"""The feature cache: right values, computed once, never trusted when damaged."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cllib.datasets.backbones import Backbone, backbone
from cllib.datasets.features import cached, describe, extract
from cllib.datasets.files import hash_arrays
from cllib.datasets.images import to_float
from cllib.datasets.noise import noise_versions
from cllib.errors import UserError

LEVELS = (0.0, 0.025, 0.1)


class Counting(nn.Module):
    """A linear map of the pixels that counts the images it has seen, and can be told to break off."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3 * 4 * 4, 5, generator=torch.Generator().manual_seed(0)))
        self.seen, self.limit = 0, 10**9

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        if self.seen > self.limit:
            raise KeyboardInterrupt
        return x.flatten(1) @ self.weight


@pytest.fixture
def model() -> Counting:
    return Counting()


@pytest.fixture
def net(model: Counting) -> Backbone:
    return Backbone("linear", model, 4, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), hash_arrays(model.weight))


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (7, 6, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def run(images: Tensor, net: Backbone, folder: Path, **options: object) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return extract(images, net, folder=folder, progress=False, **options)  # type: ignore[arg-type]


def test_features_are_the_networks_on_each_noise_version(tmp_path: Path, images: Tensor, net: Backbone) -> None:
    features = run(images, net, tmp_path, noise=LEVELS, seed=3, batch_size=2)
    expected = torch.stack([net(x) for x in noise_versions(to_float(images), LEVELS, seed=3)])
    assert features.shape == (3, 7, 5) and features.dtype == torch.float32 and not features.requires_grad
    assert torch.allclose(features, expected, atol=1e-5)
    assert not torch.allclose(features[0], features[1], atol=1e-3)


def test_a_real_network_can_be_trained_upon(tmp_path: Path, images: Tensor) -> None:
    net = backbone("test_resnet", "random", image_size=32)
    features = run(images, net, tmp_path, noise=(0.0,))[0]
    assert torch.allclose(features, net(to_float(images)), atol=1e-5)
    nn.Linear(features.shape[1], 2)(features).sum().backward()  # an inference tensor would refuse


def test_a_second_call_computes_nothing_and_returns_the_same_bits(
    tmp_path: Path, images: Tensor, net: Backbone, model: Counting
) -> None:
    first = run(images, net, tmp_path, noise=LEVELS)
    assert model.seen == 3 * 7
    assert torch.equal(run(images, net, tmp_path, noise=LEVELS, batch_size=1), first)
    assert model.seen == 3 * 7 and len(os.listdir(tmp_path)) == 3


def test_one_level_more_computes_one_level(tmp_path: Path, images: Tensor, net: Backbone, model: Counting) -> None:
    run(images, net, tmp_path, noise=(0.1,))
    run(images, net, tmp_path, noise=(0.0, 0.1))
    assert model.seen == 2 * 7


def test_a_stopped_extraction_goes_on_at_the_version_it_was_in(
    tmp_path: Path, images: Tensor, net: Backbone, model: Counting
) -> None:
    whole = run(images, net, tmp_path / "whole", noise=LEVELS, batch_size=2)
    model.seen, model.limit = 0, 7 + 5  # in the middle of the second version
    with pytest.raises(KeyboardInterrupt):
        run(images, net, tmp_path / "stopped", noise=LEVELS, batch_size=2)
    assert len(os.listdir(tmp_path / "stopped")) == 1
    model.seen, model.limit = 0, 10**9
    assert torch.equal(run(images, net, tmp_path / "stopped", noise=LEVELS, batch_size=2), whole)
    assert model.seen == 2 * 7


def test_every_input_has_its_own_file(tmp_path: Path, images: Tensor, net: Backbone, model: Counting) -> None:
    changed = images.clone()
    changed[6, 5, 5, 2] ^= 1
    runs = [
        (images, net, 0.1, 0),
        (changed, net, 0.1, 0),
        (images, net, 0.2, 0),
        (images, net, 0.1, 1),
        (images, replace(net, name="other"), 0.1, 0),
        (images, replace(net, weights_hash="other"), 0.1, 0),
        (images, replace(net, mean=(0.5, 0.5, 0.4)), 0.1, 0),
        (images, replace(net, std=(0.2, 0.2, 0.1)), 0.1, 0),
    ]
    for count, (pixels, network, std, seed) in enumerate(runs, start=1):
        run(pixels, network, tmp_path, noise=(std,), seed=seed)
        assert model.seen == 7 * count and len(os.listdir(tmp_path)) == count
    assert describe("", replace(net, image_size=8), 0.1, 0) != describe("", net, 0.1, 0)
    assert describe("", net, 0.0, 0) == describe("", net, 0.0, 1)  # the original has no noise to draw


def damaged(content: bytes) -> list[bytes]:
    flips = [content[:k] + bytes([content[k] ^ 1]) + content[k + 1 :] for k in range(0, len(content), 5)]
    return [*flips, *(content[:k] for k in (0, 1, 8, 40, len(content) - 1)), content + b"\0"]


def test_a_flipped_byte_or_torn_end_anywhere_is_set_aside_and_computed_again(
    tmp_path: Path, images: Tensor, net: Backbone, model: Counting
) -> None:
    expected = run(images, net, tmp_path, noise=(0.1,))
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for version in damaged(content):
        path.write_bytes(version)
        model.seen = 0
        with pytest.warns(UserWarning, match=path.name + ": damaged"):
            features = extract(images, net, (0.1,), folder=tmp_path, progress=False)
        assert torch.equal(features, expected) and model.seen == 7
        assert path.with_name(path.name + ".damaged").read_bytes() == version
        assert path.read_bytes() == content


def test_impossible_values_are_refused_before_any_work(
    tmp_path: Path, images: Tensor, net: Backbone, model: Counting
) -> None:
    with pytest.raises(UserError, match="batch_size = 0"):
        run(images, net, tmp_path, batch_size=0)
    with pytest.raises(UserError, match=r"noise = -0\.1"):
        run(images, net, tmp_path, noise=(-0.1,))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file"):
        run(images, net, tmp_path / "file")
    assert model.seen == 0


def test_the_default_folder_is_the_cache_folder(
    tmp_path: Path, images: Tensor, net: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLLIB_CACHE", str(tmp_path / "chosen"))
    extract(images, net, (0.0,), progress=False)
    assert len(os.listdir(tmp_path / "chosen")) == 1


# --- anything that is computed once ---


class Once:
    """Something to compute, counted."""

    def __init__(self, value: Tensor) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return self.value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_what_is_cached_is_computed_once(tmp_path: Path, dtype: torch.dtype) -> None:
    compute = Once((torch.rand(4, 3, 2) * 9).to(dtype).transpose(0, 1))
    told = {"data": "a", "front": "b"}
    first = cached(told, compute, tmp_path / "new")
    again = cached({"front": "b", "data": "a"}, compute, tmp_path / "new", {"torch": "other"})
    assert (
        compute.calls == 1
        and torch.equal(first, again)
        and again.dtype == dtype
        and told == {"data": "a", "front": "b"}
    )
    for other in ({"data": "a"}, {"data": "a", "front": "c"}, {"data": "b", "front": "a"}):
        cached(other, compute, tmp_path / "new")
    assert compute.calls == 4 and len(os.listdir(tmp_path / "new")) == 4


def test_what_is_cached_and_damaged_is_set_aside_and_computed_again(tmp_path: Path) -> None:
    compute, told = Once(torch.arange(24.0).view(2, 3, 4)), {"data": "a"}
    cached(told, compute, tmp_path, {"by": "hand"})
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for count, version in enumerate((content[:-1], content[:-1] + b"x", b"", content[:50]), 2):
        path.write_bytes(version)
        with pytest.warns(UserWarning, match=f"{path.name}: damaged"):
            found = cached(told, compute, tmp_path, {"by": "hand"})
        assert torch.equal(found, compute.value) and compute.calls == count and path.read_bytes() == content
        assert path.with_name(path.name + ".damaged").read_bytes() == version
    assert torch.equal(cached(told, compute, tmp_path), compute.value) and compute.calls == 5


def test_a_folder_that_cannot_be_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    compute = Once(torch.zeros(2))
    with pytest.raises(UserError, match="file"):
        cached({"data": "a"}, compute, tmp_path / "file")
    assert compute.calls == 0
