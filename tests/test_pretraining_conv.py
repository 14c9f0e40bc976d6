"""The convolutions that ship: how they are made, and that those which lie there were made so."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from cllib import pretraining_conv
from cllib.datasets.labelled import Labelled
from cllib.errors import UserError
from cllib.models.conv_front import FILE, ConvFront, conv_front
from cllib.pretraining_conv import PAD, PUBLISHED, ConvPretraining, make, pretrain, shifted
from cllib.randomness import generator, seeded
from cllib.threads import one_thread

pytestmark = pytest.mark.usefixtures("one_thread")

FEW = ConvPretraining(epochs=2, batch_size=4, hidden=6)


def pictures() -> Labelled:
    """Random images, 10 to train and 7 to test."""
    x = torch.randint(256, (17, 3, 32, 32), dtype=torch.uint8, generator=generator(0, "pictures"))
    y = torch.arange(17) % 5
    return Labelled("noise", x[:10], y[:10], x[10:], y[10:], names=tuple("abcde"))


@pytest.fixture(scope="module")
def made() -> ConvFront:
    with one_thread():
        return pretrain(pictures(), FEW, progress=False)[0]


def weights(front: ConvFront) -> dict[str, Tensor]:
    return dict(front.state_dict())


# --- crops and mirror images ---


@pytest.mark.parametrize("size", [(32, 32), (9, 6)])
def test_1_3_every_image_is_cropped_and_mirrored_by_itself(size: tuple[int, int]) -> None:
    x, (h, w) = torch.rand(40, 3, *size, generator=generator(0, "x")), size
    found = shifted(x, generator(1, "draws"))
    draws = generator(1, "draws")
    top, left = torch.randint(2 * PAD + 1, (2, 40, 1), generator=draws)[..., 0].tolist()
    mirrored = (torch.rand(40, 1, generator=draws) < 0.5)[:, 0].tolist()
    for i in range(40):
        wide = np.pad(x[i].numpy(), ((0, 0), (PAD, PAD), (PAD, PAD)), mode="reflect")
        cut = wide[:, top[i] : top[i] + h, left[i] : left[i] + w]
        assert np.array_equal(found[i].numpy(), cut[:, :, ::-1] if mirrored[i] else cut)
    assert 0 < sum(mirrored) < 40 and set(top) == set(left) == set(range(9)) and PAD == 4


def test_1_3_half_of_the_images_are_mirrored_and_all_corners_are_as_likely() -> None:
    """Images whose pixels say where they are: 2,000 of them, bounds of 4 standard deviations."""
    x = torch.arange(400).float().view(1, 1, 20, 20).expand(2000, -1, -1, -1)
    middle = shifted(x, generator(0, "draws"))[:, 0, 8:12, 8:12]
    mirrored = middle[:, 0, 0] > middle[:, 0, 1]
    assert abs(float(mirrored.float().mean()) - 0.5) < 4 * 0.5 / 2000**0.5
    rows = torch.bincount((middle[:, 0, 0] // 20).long() - 4, minlength=9)
    assert len(rows) == 9 and (rows - 2000 / 9).abs().max() < 4 * (2000 * 8 / 81) ** 0.5


def test_crops_draw_from_their_own_generator_and_leave_the_images_alone() -> None:
    x, state = torch.rand(5, 3, 8, 8), torch.get_rng_state()
    kept, draws = x.clone(), generator(0, "draws")
    first, second = shifted(x, draws), shifted(x, draws)
    assert torch.equal(x, kept) and torch.equal(torch.get_rng_state(), state) and not torch.equal(first, second)
    assert first.is_contiguous() and torch.equal(first, shifted(x, generator(0, "draws")))


# --- learning ---


def test_pretraining_is_deterministic_and_leaves_the_generators_alone(made: ConvFront) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again, accuracy = pretrain(pictures(), FEW, progress=False)
    assert torch.equal(torch.get_rng_state(), before) and 0 <= accuracy <= 1
    assert accuracy * 7 == pytest.approx(round(accuracy * 7))
    one, two = weights(made), weights(again)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    other, _ = pretrain(pictures(), replace(FEW, seed=1), progress=False)
    assert not torch.equal(one["convolutions.0.weight"], weights(other)["convolutions.0.weight"])


def test_every_weight_learns_in_whole_batches_alone(made: ConvFront) -> None:
    with seeded(FEW.seed, "pretraining"):
        start = weights(ConvFront("cifar10"))
    found = weights(made)
    assert found.keys() == start.keys() and not any(torch.equal(found[name], start[name]) for name in found)
    assert {int(v) for n, v in found.items() if "tracked" in n} == {FEW.epochs * 2}, "2 images of 10 are left over"
    assert made.statistics == "cifar10" and not made.training


@pytest.mark.parametrize("cosine", [True, False])
def test_the_schedule_ends_with_the_steps(cosine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = torch.optim.Adam.step

    def step(self: Any, *args: Any, **named: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return real(self, *args, **named)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    pretrain(pictures(), replace(FEW, epochs=3, cosine=cosine), progress=False)
    assert len(rates) == 6 and rates[0] == FEW.step_size
    wanted = [FEW.step_size * (1 + np.cos(np.pi * k / 6)) / 2 if cosine else FEW.step_size for k in range(6)]
    assert rates == pytest.approx(wanted)


def test_images_are_cropped_anew_in_every_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    real = pretraining_conv.shifted

    def watched(x: Tensor, draws: torch.Generator) -> Tensor:
        seen.append(real(x, draws))
        assert x.dtype == torch.float32 and float(x.max()) <= 1
        return seen[-1]

    monkeypatch.setattr(pretraining_conv, "shifted", watched)
    pretrain(pictures(), replace(FEW, batch_size=10), progress=False)
    assert len(seen) == 2 and not torch.equal(*(part.sum((1, 2, 3)).sort().values for part in seen))


# --- files ---


def test_1_3_a_miniature_run_makes_a_file_that_loads_and_says_how_it_was_made(made: ConvFront, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    accuracy = {make(pictures(), FEW, path) for path in paths}
    assert len(accuracy) == 1 and paths[0].read_bytes() == paths[1].read_bytes(), "the same bytes each time"
    found = weights(conv_front(str(paths[0])))
    for name, value in weights(made).items():
        assert torch.equal(found[name], value.half().to(value.dtype) if value.is_floating_point() else value)
    with safe_open(paths[0], "pt") as file:
        told = json.loads(file.metadata()["record"])
    assert ConvPretraining(**json.loads(told["recipe"])) == FEW and told["torch"] == torch.__version__
    assert told["data"] == "noise" and told["images"] == "10"
    assert float(told["accuracy on the test images"]) == pytest.approx(accuracy.pop(), abs=5e-4)
    with pytest.raises(UserError):
        make(pictures(), FEW, paths[0] / "in a file")


def test_the_shipped_weights_say_how_they_were_made() -> None:
    with safe_open(FILE, "pt") as file:
        told = json.loads(file.metadata()["record"])
        steps = {int(file.get_tensor(name)) for name in file.keys() if "tracked" in name}  # noqa: SIM118
    how = ConvPretraining(**json.loads(told["recipe"]))
    assert asdict(how) == asdict(ConvPretraining()), "`python -m cllib.pretraining_conv` makes it again"
    assert (
        told["data"] == "CIFAR-10" and told["images"] == "50000" and steps == {how.epochs * (50_000 // how.batch_size)}
    )
    assert float(told["accuracy on the test images"]) > 0.75, "a tenth is a guess"


def test_1_3_the_original_s_recipe() -> None:
    assert asdict(PUBLISHED) == {
        "epochs": 100,
        "batch_size": 256,
        "step_size": 1e-4,
        "cosine": False,
        "hidden": 2000,
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [("epochs", 0), ("batch_size", 0), ("hidden", -1), ("hidden", 2.5), ("step_size", -1.0), ("seed", -1)],
)
def test_impossible_recipes_are_refused(option: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{option} = {value}"):
        ConvPretraining(**{option: value})
