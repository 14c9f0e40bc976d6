"""The ns- data sets: layout [version, class, sample, feature] and who is trained, validated and tested on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cllib.datasets import digits, noisy_classes
from cllib.datasets.backbones import Backbone
from cllib.datasets.images import ImageClasses
from cllib.datasets.noisy_classes import NoisyClasses, ns_cifar100, ns_digits, ns_imagenet
from cllib.errors import UserError


class Code(nn.Module):
    """Reads back the code that `coded` painted on an image: class in red, position in green, part in blue."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean((2, 3)) * 255).round()  # [n, 3]


NET = Backbone("code", Code(), 4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "")


def coded(classes: int, count: int, part: int) -> ImageClasses:
    images = torch.zeros(classes, count, 4, 4, 3, dtype=torch.uint8)
    images[..., 0] = torch.arange(classes, dtype=torch.uint8).view(-1, 1, 1, 1)
    images[..., 1] = torch.arange(count).remainder(256).to(torch.uint8).view(-1, 1, 1)
    images[..., 2] = part
    return ImageClasses(images, tuple(f"c{k}" for k in range(classes)))


def shapes(data: NoisyClasses) -> list[tuple[int, ...]]:
    return [tuple(part.shape) for part in (data.train, data.val, data.test)]


def test_digits_have_the_specs_sizes() -> None:
    data = ns_digits()
    assert shapes(data) == [(3, 10, 120, 64), (3, 10, 0, 64), (3, 10, 50, 64)]
    assert data.noise == (0.0, 0.1, 0.3) and data.names == tuple("0123456789")
    assert data.train.min() >= 0 and data.train.max() <= 1


def test_digits_are_the_first_of_each_class_and_validation_the_end_of_train() -> None:
    whole, cut = ns_digits(), ns_digits(sizes=(100, 20, 50))
    assert torch.equal(torch.cat([cut.train, cut.val], 2), whole.train) and torch.equal(cut.test, whole.test)
    x, y = digits.load()
    sevens = x[y == 7]
    assert torch.equal(whole.train[0, 7], sevens[:120]) and torch.equal(whole.test[0, 7], sevens[120:170])


def test_digits_noise_has_its_level_and_seed() -> None:
    data, other = ns_digits(seed=0), ns_digits(seed=1)
    inside = (data.train[0] > 0.4) & (data.train[0] < 0.6)  # far from clipping at std .1
    assert (data.train[1] - data.train[0])[inside].std().item() == pytest.approx(0.1, rel=0.05)
    assert torch.equal(data.train[0], other.train[0]) and not torch.equal(data.train[1], other.train[1])


@pytest.mark.parametrize("sizes", [(120, 0, 55), (-1, 0, 50), (120, 10, -10)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(UserError):
        ns_digits(sizes=sizes)


@pytest.fixture
def imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noisy_classes.mini_imagenet, "load", lambda root: coded(100, 600, 0))


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = coded(100, 500, 1), coded(100, 100, 2)
    monkeypatch.setattr(noisy_classes.cifar, "by_classes", lambda name, root, download: parts)


def extraction(tmp_path: Path) -> dict[str, Any]:
    return {"folder": tmp_path, "progress": False, "batch_size": 5000}


def codes(classes: int, positions: range, part: int) -> Tensor:
    rows = [[(c, k % 256, part) for k in positions] for c in range(classes)]
    return torch.tensor(rows, dtype=torch.float32)  # [C, n, 3]


def test_imagenet_is_split_by_position(tmp_path: Path, imagenet: None) -> None:
    data = ns_imagenet("", NET, noise=(0.0,), **extraction(tmp_path))
    assert shapes(data) == [(1, 100, 420, 3), (1, 100, 60, 3), (1, 100, 120, 3)]
    assert torch.equal(data.train[0], codes(100, range(420), 0))
    assert torch.equal(data.val[0], codes(100, range(420, 480), 0))
    assert torch.equal(data.test[0], codes(100, range(480, 600), 0))
    assert data.names[99] == "c99" and data.noise == (0.0,)


def test_cifar_validates_on_the_end_of_train_and_tests_on_test(tmp_path: Path, cifar: None) -> None:
    data = ns_cifar100("", NET, noise=(0.0,), **extraction(tmp_path))
    assert shapes(data) == [(1, 100, 420, 3), (1, 100, 80, 3), (1, 100, 100, 3)]
    assert torch.equal(data.train[0], codes(100, range(420), 1))
    assert torch.equal(data.val[0], codes(100, range(420, 500), 1))
    assert torch.equal(data.test[0], codes(100, range(100), 2))


def test_a_trial_on_few_classes_and_samples_still_tests_on_test(tmp_path: Path, cifar: None) -> None:
    data = ns_cifar100("", NET, sizes=(5, 2, 4), classes=3, **extraction(tmp_path))
    assert shapes(data) == [(3, 3, 5, 3), (3, 3, 2, 3), (3, 3, 4, 3)]
    assert torch.equal(data.val[0], codes(3, range(5, 7), 1)) and torch.equal(data.test[0], codes(3, range(4), 2))
    assert data.noise == (0.0, 0.025, 0.1) and data.names == ("c0", "c1", "c2")


@pytest.mark.parametrize(
    ("options", "name"),
    [({"sizes": (450, 80, 100)}, "530"), ({"sizes": (400, 80, 101)}, "101"), ({"classes": 101}, "101")],
)
def test_more_than_there_is_is_refused(tmp_path: Path, cifar: None, options: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=name):
        ns_cifar100("", NET, **options, **extraction(tmp_path))
    assert not list(tmp_path.iterdir())
