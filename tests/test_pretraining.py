"""The small backbones that ship: how they are made, and that those which lie there were made so."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from cllib import pretraining
from cllib.datasets import mini_core
from cllib.datasets.files import hash_arrays
from cllib.errors import UserError
from cllib.models.latent_vit import RANDOM, LatentViT, own_weights
from cllib.models.networks import logits_of
from cllib.models.weights import DATA
from cllib.pretraining import CLASSES, OWN, Pretraining, make, named, pictures, pretrain
from cllib.randomness import seeded

FEW = Pretraining(epochs=2, plain=1, pictures=12, batch_size=5)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made() -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    return pretrain(FEW, progress=False)[0]


def test_pretraining_is_deterministic_and_leaves_the_generators_alone(made: dict[str, torch.Tensor]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again, accuracy = pretrain(FEW, progress=False)
    assert torch.equal(torch.get_rng_state(), before) and 0 <= accuracy <= 1 and (accuracy * 12) % 1 < 1e-9
    assert made.keys() == again.keys() and all(torch.equal(made[name], again[name]) for name in made)
    other, _ = pretrain(replace(FEW, seed=1), progress=False)
    assert not torch.equal(made["pos_embed"], other["pos_embed"])


def test_every_weight_learns(made: dict[str, torch.Tensor]) -> None:
    with seeded(FEW.seed, "pretraining"):
        config = LatentViT("tiny", replay_block=None, weights=RANDOM, dropout=0.0, attention_dropout=0.0)
        start = named(config.whole(CLASSES))
    assert start.keys() == made.keys() and not any(torch.equal(start[name], made[name]) for name in start)
    assert len(made) == 6 * 12 + 6 and all(not value.requires_grad for value in made.values())


def test_the_network_that_was_pretrained_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    """Written, read, and cut in two: the same logits but for the classifier."""
    config = LatentViT("tiny", replay_block=None, weights=RANDOM, dropout=0.0, attention_dropout=0.0)
    with seeded(3, "x"):
        network = config.whole(7)
    torch.nn.init.normal_(network.lower.pos)
    torch.nn.init.normal_(network.lower.cls)
    path, x = tmp_path / "w.safetensors", torch.rand(3, 3, 32, 32)
    from safetensors.torch import save_file

    save_file(named(network), path)
    for frozen in (None, 0, 3, 6):
        other = replace(config, weights=str(path), replay_block=frozen).whole(7)
        other.upper.head.load_state_dict(network.upper.head.state_dict())
        torch.testing.assert_close(logits_of(other, x), logits_of(network, x))


def test_surroundings_come_in_after_the_plain_epochs() -> None:
    colours = []
    for epoch in (0, 1):
        x, y = pictures(FEW, epoch)
        assert x.shape == (12, 3, 32, 32) and x.dtype == torch.float32 and float(x.max()) <= 1
        assert y.shape == (12,) and int(y.max()) < CLASSES
        colours.append(float((x[:, 0] - x[:, 1]).abs().max()))
    assert colours[0] == 0 < colours[1]
    assert not torch.equal(pictures(FEW, 0)[1], pictures(FEW, 1)[1]), "new ones in every epoch"


def test_the_accuracy_is_on_pictures_that_were_not_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = pretraining.pictures
    monkeypatch.setattr(pretraining, "pictures", lambda how, epoch: asked.append(epoch) or real(how, epoch))
    pretrain(FEW, progress=False)
    assert asked == [0, 1, 2]


def test_no_object_of_the_films_is_pretrained_on() -> None:
    objects, others = mini_core.samples()
    assert len(objects) == 50 and len(others) == CLASSES
    distance = torch.cdist(objects.flatten(1), others.flatten(1))
    assert float(distance.min()) > 0.1, "neither the same sample nor a copy"


@pytest.mark.parametrize("steps", [1, 7])
def test_the_schedule_ends_with_the_steps(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    real = torch.optim.AdamW.step

    def step(self: Any, *args: Any, **named: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return real(self, *args, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    how = Pretraining(epochs=1, plain=0, pictures=3 * steps - 1, batch_size=3)
    pretrain(how, progress=False)
    assert len(rates) == how.steps == steps and rates[0] == how.step_size and rates == sorted(rates, reverse=True)
    assert len(set(rates)) == steps and (steps == 1 or rates[-1] < 0.1 * rates[0])


def test_a_file_says_how_it_was_made(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    accuracy = {make(FEW, path) for path in paths}
    assert len(accuracy) == 1 and paths[0].read_bytes() == paths[1].read_bytes(), "the same bytes each time"
    with safe_open(paths[0], "pt") as file:
        told = json.loads(file.metadata()["record"])
    assert Pretraining(**json.loads(told["recipe"])) == FEW and told["torch"] == torch.__version__
    assert float(told["accuracy on new pictures"]) == pytest.approx(accuracy.pop(), abs=5e-4)
    with pytest.raises(UserError):
        make(FEW, paths[0] / "in a file")


@pytest.mark.parametrize("name", OWN)
def test_the_shipped_weights_are_whole_and_say_how_they_were_made(name: str) -> None:
    path = DATA / f"vit_{name}.safetensors"
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["record"])
        keys = set(file.keys())
    how = Pretraining(**json.loads(told["recipe"]))
    assert asdict(how) == asdict(Pretraining(name)), "`python -m cllib.pretraining` makes it again"
    assert float(told["accuracy on new pictures"]) > 0.6
    assert path.stat().st_size < 2_000_000
    state = own_weights(name)
    assert keys == set(state) and all(bool(v.isfinite().all()) and v.dtype == torch.float32 for v in state.values())
    assert LatentViT(name).fingerprint() == hash_arrays(*(state[k] for k in sorted(state)))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("backbone", "b16"),
        ("epochs", 0),
        ("pictures", 0),
        ("batch_size", 0),
        ("plain", -1),
        ("seed", -1),
        ("step_size", -1.0),
        ("weight_decay", -1.0),
    ],
)
def test_impossible_recipes_are_refused(option: str, value: Any) -> None:
    with pytest.raises(UserError, match=option):
        Pretraining(**{option: value})
