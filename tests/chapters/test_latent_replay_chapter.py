"""Chapter 3's parameters, its tables, and the numbers that follow from its rules."""

from typing import Any

import pytest
import torch

from cllib.chapters import counts, parse, settings
from cllib.chapters.latent_replay import NAME
from cllib.errors import UserError
from cllib.ledger import Fact, claims, judge, ledger, published
from cllib.streams import Experience, Stream
from cllib.streams.nicv2 import PER_BATCH

SMOKE, QUICK, PAPER = (settings(NAME, profile) for profile in ("smoke", "quick", "paper"))


def test_the_paper_profile_is_the_released_configuration() -> None:
    recipe, rules = PAPER.recipe(), PAPER.settings()
    assert (recipe.step_size, rules.later_step_size, recipe.momentum, recipe.weight_decay) == (1e-3, 5e-5, 0.9, 5e-4)
    assert (recipe.batch_size, recipe.epochs, rules.later_epochs, rules.buffer_size) == (100, 4, 4, 1500)
    assert (PAPER.stream_config().data, PAPER.stream_config().variant) == ("core50", "nicv2_391")
    assert recipe.network.backbone == "b16" and recipe.network.side == 128 and recipe.network.dropout == 0.1


def test_the_quick_profile_is_the_preset_of_the_mini_stream() -> None:
    stream = QUICK.stream_config().build()
    feed = QUICK.recipe().feed(stream, 0)
    part = feed.portions[1]  # type: ignore[attr-defined]
    assert (part.new, part.steps, part.replayed) == (10, 6, 20)
    assert len(stream.experiences) == 79 and len(stream.tests[0]) == 900 and feed.steps(1) == 24


def test_naive_training_with_as_many_steps_takes_as_many() -> None:
    stream = QUICK.stream_config().build()
    compared = QUICK.compared(stream)
    steps = {label: compared[label].feed(stream, 0).steps(5) for label in compared}
    assert steps["latent replay"] == steps["naive, as many steps"] == 24 and steps["naive"] == steps["CWR* only"] == 8


def test_every_table_varies_the_base_in_what_its_name_says() -> None:
    base = QUICK.recipe()
    stream = QUICK.stream_config().build()
    compared, released, stores = QUICK.compared(stream), QUICK.released(), QUICK.stores()
    assert compared["latent replay"] == base and QUICK.light.recipe() == released["as it should be"]
    assert stores["float32"] == released["as it should be"]
    assert settings(NAME, "quick", replay_block=4).stores()["float32"] == QUICK.cuts()["D=6 F=4"]
    assert released["as it should be"].settings.later_epochs == 1 and base.settings.later_epochs == 4
    assert QUICK.named("map") == "map, 1 epoch a batch" and PAPER.named("map") == "map, 4 epochs a batch"
    assert not compared["latent replay, no CWR*"].settings.cwr and compared["CWR* only"].settings.buffer_size == 0
    images = settings(NAME, "quick", native=True).compared(stream)["images replayed"]
    assert images.network.replay_block is None and images.settings.dtype == "pixels"
    assert not released["duplicate ids (B1)"].settings.unique_classes
    assert released["unseen rows left (B2)"].settings.unseen == "left"
    assert released["zero class token (B3)"].network.class_token == "zero"
    assert released["one order for all epochs (B10)"].settings.schedule == "legacy"
    whole = released["all that is released"]
    assert (whole.settings.unseen, whole.settings.unique_classes, whole.network.normalize) == (
        "left",
        False,
        "imagenet",
    )
    assert stores["F = D, cls"].network.store == "cls" and stores["int8"].settings.dtype == "int8"
    assert QUICK.cumulative().learner == "naive" and QUICK.cumulative().epochs == QUICK.cumulative_epochs
    assert [cut for cut in QUICK.cells() if cut[1] > cut[0]] == [] and len(QUICK.cuts()) == len(QUICK.cells())


def test_only_the_class_token_may_be_the_readers_own_choice() -> None:
    p = settings(NAME, "quick", replay_block=6, store="cls")
    stream = p.stream_config().build()
    for recipe in (*p.compared(stream).values(), *p.cuts().values(), *p.stores().values(), *p.speeds().values()):
        recipe.network.front((3, 32, 32))
    assert p.looking().network.store == "tokens"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"replay_block": 7}, "replay_block = 7"),
        ({"depth": 13}, "depth = 13"),
        ({"store": "cls"}, "store = 'cls'"),
        ({"variant": "nicv2_80"}, "variant = 'nicv2_80'"),
        ({"backbone": "b8"}, "backbone = 'b8'"),
        ({"data": "cifar"}, "data = 'cifar'"),
        ({"heads": "sum"}, "heads = 'sum'"),
        ({"discard": 1.5}, "discard = 1.5"),
        ({"image_size": 30}, "image_size = 30"),
        ({"buffer_dtype": "int4"}, "buffer_dtype = 'int4'"),
        ({"depths": (2, 2)}, "depths = (2, 2)"),
        ({"blocks": (8,)}, "blocks"),
        ({"depths": (2,), "blocks": (4,)}, "blocks = (4,)"),
        ({"parts": ("all",)}, "parts = 'all'"),
        ({"weights": "pretrained"}, "weights = 'pretrained'"),
        ({"timed": 0}, "timed = 0"),
        ({"batch_size": 500}, "batch_size = 500"),
        ({"batch_size": 1}, "batch_size = 1"),
        ({"buffer_size": 30000}, "buffer_size = 30000"),
        ({"buffer_dtype": "pixels"}, "buffer_dtype = 'pixels'"),
        ({"weights": "nofile"}, "weights = 'nofile'"),
        ({"lr": -1.0}, "step_size = -1"),
        ({"momentum": 2.0}, "momentum = 2"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refusal:
        settings(NAME, "quick", **wrong)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_values_from_a_command_line_are_typed() -> None:
    typed = parse(NAME, {"depths": "2,4", "store": "cls", "lr": "1e-3", "image_size": "none", "cwr": "false"})
    assert typed == {"depths": (2, 4), "store": "cls", "lr": 1e-3, "image_size": None, "cwr": False}


def test_images_are_as_large_as_the_network_wants_them() -> None:
    assert QUICK.stream_config().image_size is None and PAPER.stream_config().image_size is None
    large = settings(NAME, "quick", backbone="b16", weights="random", image_size=64, depths=(12,), blocks=(12,))
    assert large.stream_config().image_size == 64
    assert settings(NAME, "quick", data="core50", buffer_size=1500, batch_size=100).stream_config().image_size == 32


def test_a_smaller_part_of_the_films_is_not_the_whole_stream() -> None:
    assert QUICK.stream_config().build().whole
    for given in ({"frames": 5}, {"first_frames": 5}, {"test_every": 3}):
        assert not settings(NAME, "quick", **given).stream_config().build().whole


def test_large_streams_stay_in_one_process() -> None:
    assert settings(NAME, "paper", workers=4).crew == 1 and settings(NAME, "quick", workers=4, device="cpu").crew == 4


# --- numbers that follow from the rules ---


def test_every_number_counted_agrees_with_its_published_value() -> None:
    facts = [
        Fact(group, label, "quick", (float(value),), exact=True)
        for group, values in counts.counted().items()
        for label, value in values.items()
    ]
    judged = ledger(NAME, facts)
    assert (judged["verdict"] == "reproduced").sum() == 116
    assert set(judged["verdict"]) == {"reproduced", "not run"}


def test_a_number_counted_wrongly_would_be_found() -> None:
    (claim,) = [c for c in claims(NAME) if c.label == "replaced in all after batch 0"]
    off = Fact(claim.experiment, claim.label, "quick", (7413.0,), exact=True)
    assert judge(claim, [off])["verdict"] == "not reproduced"


def test_what_only_the_official_lists_tell_is_counted_from_them() -> None:
    """A stream with the sizes of the official one, as far as the chapter knows them."""

    def part(size: int, classes: tuple[int, ...]) -> Experience:
        return Experience(torch.zeros(size, 1), torch.zeros(size, dtype=torch.long), classes)

    first = part(2999, tuple(range(0, 50, 5)))
    later = [part(300 if k < 334 else 298, (k % 50,)) for k in range(390)]
    stream = Stream("NICv2-391", 50, (first, *later), (part(2249, tuple(range(50))),), ())
    found = counts.official(stream, "nicv2_391", 0)
    assert found["images in the first batch"] == 2999 and found["every 20th test image"] == 2249
    assert found["nicv2_391: batches of exactly 300"] == 334
    assert found["nicv2_391: new images never used"] == 334 * 12 + 56 * 9
    assert found["nicv2_391: steps in all, mb = 100"] == 4 * (30 + 334 * 18 + 56 * 17) == 27976
    assert found["nicv2_391, run 0: all classes after batch"] == 50


def test_every_row_of_the_ledger_has_a_source_that_is_told() -> None:
    content = published(NAME)
    used = {row["source"] for row in (*content["orders"], *content["tables"])}
    assert used == set(content["sources"])
    assert len(claims(NAME)) > 150


def test_streams_have_the_published_number_of_batches() -> None:
    assert {f"{name}: batches": n for name, n in zip(PER_BATCH, (79, 196, 391), strict=True)}.items() <= (
        counts.streams().items()
    )
