"""A stream through a frozen network: computed once, kept, and the same for whatever learns on it."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cllib.experiments import Program, compare, restored
from cllib.learners.latent_replay import LatentReplaySettings
from cllib.models.latent_vit import LatentViT
from cllib.models.networks import MLP
from cllib.randomness import generator
from cllib.recipes import Recipe
from cllib.results import MEASURED_FIELDS, Record
from cllib.streams import latent
from cllib.streams.base import Experience, Stream, inputs
from cllib.streams.latent import Look, Seen, latents, one_at_a_time, rebuilt, seen_by


class Front(nn.Module):
    """Images to 3 tokens of 2 numbers, counting what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[int] = []
        self.weight = nn.Parameter(torch.rand(12, 6, generator=generator(0, "front")))

    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32 and float(x.min()) >= 0 and float(x.max()) <= 1
        self.shown.append(len(x))
        return (x.flatten(1) @ self.weight).view(-1, 3, 2)


def part(count: int, classes: tuple[int, ...], draws: torch.Generator, side: int = 2) -> Experience:
    x = torch.randint(0, 256, (count, 3, side, side), generator=draws, dtype=torch.uint8)
    return Experience(x, torch.tensor([classes[k % len(classes)] for k in range(count)]), classes)


def stream(side: int = 2) -> Stream:
    draws = generator(0, "images")
    trains = tuple(part(6, own, draws, side) for own in ((0, 1), (2, 3), (1, 4)))
    tests = (part(5, (0, 1, 2, 3, 4), draws, side),)
    validations = tuple(part(count, own, draws, side) for count, own in ((2, (0, 1)), (3, (2, 3))))
    return Stream("pictures", 5, trains, tests, validations, note="some")


TOLD = {"data": "these", "front": "that"}


def parts(made: Stream) -> list[Any]:
    return [*made.experiences, *made.tests, *made.validations]


def assert_latents(found: Stream, raw: Stream, front: Front) -> None:
    assert [len(found.experiences), len(found.tests), len(found.validations)] == [3, 1, 2]
    for own, image in zip(parts(found), parts(raw), strict=True):
        torch.testing.assert_close(own.x, front(inputs(image.x)).detach())
        assert torch.equal(own.y, image.y) and own.classes == image.classes and own.domain == image.domain
        assert len(own) == len(image) and own.name == image.name and not own.x.requires_grad
    assert found.shape == (3, 2) and found.classes == 5 and found.name == "pictures" and found.note == "some"
    assert raw.experiences[0].x.dtype == torch.uint8, "the stream itself stays as it was"


@pytest.mark.parametrize("largest", [0, 2**30])
def test_every_part_of_a_stream_is_seen_in_order(largest: int, tmp_path: Path) -> None:
    front, raw = Front(), stream()
    found = seen_by(front, raw, TOLD, tmp_path, largest)
    assert_latents(found, raw, front)
    assert isinstance(found.experiences[0], Seen) == (largest == 0) and isinstance(found.tests[0], Experience)
    assert len(list(tmp_path.iterdir())) == (largest > 0)


def test_small_latents_are_computed_once(tmp_path: Path) -> None:
    front, raw = Front(), stream()
    first = seen_by(front, raw, TOLD, tmp_path)
    assert sum(front.shown) == 1 + 18 + 5 + 5, "one for the shape, then each sample once"
    front.shown.clear()
    again = seen_by(front, raw, dict(reversed(TOLD.items())), tmp_path)
    assert front.shown == [1]
    for a, b in zip(parts(first), parts(again), strict=True):
        assert torch.equal(a.x, b.x)
    seen_by(front, raw, {**TOLD, "front": "another"}, tmp_path)
    assert sum(front.shown) == 1 + 29, "another front, other latents"


def test_the_border_between_small_and_large_is_in_bytes(tmp_path: Path) -> None:
    size = (18 + 5 + 5) * 6 * 4
    assert isinstance(seen_by(Front(), stream(), TOLD, tmp_path, size).experiences[0], Experience)
    assert isinstance(seen_by(Front(), stream(), TOLD, tmp_path, size - 1).experiences[0], Seen)


def test_large_latents_are_computed_when_they_are_met() -> None:
    front, raw = Front(), stream()
    found = one_at_a_time(front, raw)
    assert front.shown == [5, 2, 3], "tests and validation sets, nothing else"
    front.shown.clear()
    for e in (0, 0, 1, 1, 2, 0):
        assert torch.equal(found.experiences[e].x, found.experiences[e].x)
    assert front.shown == [6, 6, 6, 6], "each when its turn comes, and once as long as it lasts"


def test_only_the_last_experience_is_remembered() -> None:
    front, (one, two, _) = Front(), stream().experiences
    look = Look(front)
    a = look(one)
    assert look(one) is a and look.last is not None and look.last[0] is one
    look(two)
    assert look.last[0] is two and look(one) is not a


@pytest.mark.parametrize("chunk", [1, 4, 6, 100])
def test_latents_do_not_depend_on_how_many_are_computed_at_once(chunk: int) -> None:
    front, x = Front(), stream().experiences[0].x
    found = latents(front, x, chunk)
    torch.testing.assert_close(found, front(inputs(x)).detach())
    assert max(front.shown[:-1]) <= chunk and not found.requires_grad


def test_the_network_sees_pixels_as_every_network_does() -> None:
    floats = torch.rand(4, 3, 2, 2)
    assert torch.equal(latents(Front(), floats), Front()(floats).detach())


def test_rebuilding_keeps_the_order() -> None:
    raw = stream()
    assert rebuilt(raw, parts(raw)) == raw
    turned = rebuilt(raw, parts(raw)[::-1])
    assert turned.tests[0] is raw.experiences[2] and turned.validations[1] is raw.experiences[0]


# --- in a run ---


pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(replay_block: int | None = 4, **changes: Any) -> Recipe:
    network = LatentViT(replay_block=replay_block)
    settings = LatentReplaySettings(buffer_size=4)
    told = {"batch_size": 3, "step_size": 0.01, "momentum": 0.9, **changes}
    return Recipe("latent", settings, network, **told)


OPTIONS: dict[str, Any] = {"progress": False, "track_classes": True, "probe_every": 2}


def differing(one: Record, other: Record) -> set[str]:
    return {f.name for f in fields(one) if getattr(one, f.name) != getattr(other, f.name)} - set(MEASURED_FIELDS)


@pytest.mark.parametrize("learner", ["latent", "naive", "joint", "ewc", "er"])
def test_a_stream_computed_on_the_way_gives_the_same_record(
    learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe() if learner == "latent" else replace(recipe(), learner=learner, settings=None)
    raw = stream(32)
    (kept,) = compare("x", raw, {"a": made}, [1], store=tmp_path / "kept", **OPTIONS)
    asked: list[Stream] = []

    def lazily(front: nn.Module, raw: Stream, told: dict[str, str], folder: Path) -> Stream:
        asked.append(seen_by(front, raw, told, folder, 0))
        return asked[-1]

    monkeypatch.setattr("cllib.experiments.seen_by", lazily)
    (lazy,) = compare("x", raw, {"a": made}, [1], store=tmp_path / "lazy", **OPTIONS)
    assert isinstance(asked[0].experiences[0], Seen)
    assert differing(kept, lazy) <= {"code", "runs"}
    assert (tmp_path / "kept" / "latents").exists() and not (tmp_path / "lazy" / "latents").exists()


def test_caching_learners_see_latents_and_others_images(tmp_path: Path) -> None:
    raw = stream(32)
    for made, shape in ((recipe(), (17, 64)), (recipe(None), (3, 32, 32)), (Recipe(network=MLP((3,))), (3, 32, 32))):
        program = Program((made,), (1,))
        shown = program.shown(raw, "data", tmp_path)
        assert shown.shape == shape and (shown is raw) == (shape == (3, 32, 32))
        learner, feed = program.start(shown, "cpu")
        assert learner.predict(inputs(shown.tests[0].x)).shape == (5, 5) and feed.stream is shown


def test_latents_are_shared_by_all_runs_with_one_front(tmp_path: Path) -> None:
    raw = stream(32)
    deeper = replace(recipe(), network=LatentViT(replay_block=4, depth=5))
    compare("x", raw, {"a": recipe()}, [1], store=tmp_path, progress=False)
    (path,) = (tmp_path / "latents").iterdir()
    written = path.stat().st_mtime_ns
    compare("x", raw, {"a": recipe(), "b": deeper}, [1, 2], store=tmp_path, progress=False)
    assert list((tmp_path / "latents").iterdir()) == [path] and path.stat().st_mtime_ns == written
    other = replace(recipe(), network=LatentViT(replay_block=3))
    compare("x", raw, {"c": other}, [1], store=tmp_path, progress=False)
    assert len(list((tmp_path / "latents").iterdir())) == 2
    compare("x", replace(raw, tests=raw.tests * 2), {"a": recipe()}, [1], store=tmp_path, progress=False)
    assert len(list((tmp_path / "latents").iterdir())) == 3, "another stream, other latents"


def test_a_run_on_latents_is_one_on_images_with_the_frozen_part_at_every_step(tmp_path: Path) -> None:
    """`compare` caches; here the whole network is trained on the images by hand."""
    from cllib.training import train

    raw, made = stream(32), recipe(weight_decay=5e-4)
    (record,) = compare("x", raw, {"a": made}, [1], store=tmp_path, **OPTIONS)
    learner, feed = made.build(raw, 1), made.feed(raw, 1)
    outcome = train(learner, raw, feed, **{**OPTIONS, "track_every": 150})
    assert outcome.test[0].round(4).tolist() == record.test[0] and outcome.held[0].tolist() == record.held[0]
    kept = restored(made, raw, record, 1, tmp_path)
    for name, value in learner.network.upper.state_dict().items():
        torch.testing.assert_close(kept.network.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_a_kept_run_answers_about_latents(tmp_path: Path) -> None:
    raw, made = stream(32), recipe()
    (record,) = compare("x", raw, {"a": made}, [1], store=tmp_path, **OPTIONS)
    learner = restored(made, raw, record, 1, tmp_path)
    shown = Program((made,), (1,)).shown(raw, record.data, tmp_path)
    said = learner.predict(shown.tests[0].x).argmax(-1)
    confusion = torch.zeros(5, 5, dtype=torch.long)
    for y, answer in zip(raw.tests[0].y, said, strict=True):
        confusion[y, answer] += 1
    assert confusion.tolist() == record.confusion[0]


def test_the_code_that_makes_latents_belongs_to_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record, or kept latents, of other code must not be taken for this one's."""
    program = Program((recipe(),), (1,))
    before = program.code()

    def other(front: nn.Module, x: Tensor, chunk: int = 250) -> Tensor:
        return torch.cat([2 * front(inputs(piece)) for piece in x.split(chunk)])

    other.__module__ = "cllib.streams.latent"
    monkeypatch.setattr(latent, "latents", other)
    assert program.code() != before
