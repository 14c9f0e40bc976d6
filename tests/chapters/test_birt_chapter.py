"""Chapter 5's parameters, its tables, its streams, and what was published about it (BiRT spec, 1, 3, 4, 6)."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cllib.chapters import birt_counts, birt_settings, parse, settings
from cllib.chapters.birt import DIFFERENCES, METHODS, NAME, USUAL, BiRTChapter
from cllib.chapters.birt_settings import (
    CIFAR_10,
    CIFAR_ORDER,
    CLOTHES,
    IMAGENET,
    LARGE,
    SETTINGS,
    SMALL,
    TINY,
    imagenet_100,
    imagenet_order,
    setting_stream,
)
from cllib.datasets import digits
from cllib.datasets.labelled import Labelled
from cllib.errors import UserError
from cllib.learners import LEARNERS
from cllib.learners.birt import RECIPES, BiRTSettings
from cllib.learners.der import DERPlusSettings
from cllib.ledger import Claim, Fact, claims, judge, published
from cllib.metrics import METRICS
from cllib.models.convit import ConViT
from cllib.models.plain_vit import PlainViT
from cllib.recipes import Recipe
from cllib.results import Record
from samples import with_accuracy

pytestmark = pytest.mark.usefixtures("one_thread")

SMOKE, QUICK, PAPER = (settings(NAME, profile) for profile in ("smoke", "quick", "paper"))
NO_NOISE = {"mixup_p": 0.0, "label_p": 0.0, "attention_p": 0.0, "supervision_p": 0.0, "extrapolation": 0.0}


def differing(one: Any, other: Any) -> dict[str, Any]:
    """Fields of `one` that are not as in `other`."""
    return {f.name: getattr(one, f.name) for f in fields(one) if getattr(one, f.name) != getattr(other, f.name)}


def changed(recipe: Recipe, base: Recipe) -> dict[str, Any]:
    """What a method has of its own; all else, training and network, is that of the base."""
    assert differing(recipe, base).keys() <= {"settings"}
    return differing(recipe.settings, base.settings)


# --- the published settings (1.3, 1.7) ---

TABLE = """
CIFAR-100      5  200 5e-4 .001  .05 .01
CIFAR-100      5  500 5e-3 .003  .05 .01
CIFAR-100     10  200 1e-3 .003  .05 .001
CIFAR-100     10  500 1e-3 .003  .05 .001
CIFAR-100     10 1000 5e-4 .0008 .05 .01
CIFAR-100     10 2000 2e-4 .0015 .05 .01
CIFAR-100     20  200 5e-3 .001  .05 .08
CIFAR-100     20  500 5e-4 .003  .05 .1
Tiny-ImageNet 10  500 1e-3 .003  .05 .01
Tiny-ImageNet 10 1000 1e-2 .0008 .01 .001
Tiny-ImageNet 10 2000 1e-4 .008  .01 .0008
ImageNet-100  10  500 1e-4 .003  .05 .001
ImageNet-100  10 1000 1e-4 .003  .05 .001
ImageNet-100  10 2000 1e-2 .005  .01 .001
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]
OWN = ("digits-5-100", "clothes-5-200", "CIFAR-10-5-500")


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_1_3_a_row_of_the_published_table(row: list[str]) -> None:
    name, tasks, size, *numbers = row
    p = settings(NAME, "quick", setting=f"{name}-{tasks}-{size}")
    how = p.settings()
    found = (how.buffer_size, how.ema, how.ema_rate, how.beta_new, how.beta_replay)
    assert (p.how.tasks, *found) == (int(tasks), int(size), *map(float, numbers))
    assert p.images is {"CIFAR-100": LARGE, "Tiny-ImageNet": TINY, "ImageNet-100": IMAGENET}[name]


def test_1_3_the_table_has_no_other_rows() -> None:
    assert set(SETTINGS) == {f"{name}-{tasks}-{size}" for name, tasks, size, *_ in ROWS} | set(OWN)
    small, clothes, ten = (SETTINGS[name] for name in OWN)
    assert differing(ten, SETTINGS["CIFAR-100-5-500"]) == {"images": CIFAR_10}
    rest = (small.tasks, small.buffer, small.ema, small.ema_rate, small.beta_new, small.beta_replay)
    assert rest == (5, 100, 0.001, 0.01, 0.05, 0.01) and small.images is SMALL
    assert differing(clothes, small) == {"images": CLOTHES, "buffer": 200}


def test_1_2_networks_and_1_7_augmentations_of_the_data_sets() -> None:
    large = ConViT(patch=4, dim=384, heads=12, layers=6, mlp_ratio=4, drop_path=0.1, normalize="cifar", std=0.02)
    assert LARGE.network == CIFAR_10.network == large
    assert TINY.network == replace(large, patch=8, normalize="imagenet")
    assert IMAGENET.network == replace(large, patch=16, normalize="imagenet")
    assert [one.augment for one in (LARGE, CIFAR_10, TINY, IMAGENET)] == ["published"] * 2 + ["published large"] * 2
    for images in (LARGE, CIFAR_10, TINY, IMAGENET):
        told = (images.epochs, images.batch, images.lr, images.warmup, images.tune_lr, images.attention_std)
        assert told == (500, 128, 1.25e-4, 5, 1.25e-5, 1.0)
    assert LARGE.lr == 5e-4 * 128 / 512 and LARGE.tune_lr == 5e-5 * 128 / 512


def test_6_1_the_small_setting_is_the_specified_one() -> None:
    told = (SMALL.batch, SMALL.lr, SMALL.warmup, SMALL.tune_lr, SMALL.attention_std)
    assert told == (32, 1e-3, 0, 1e-4, 0.1)
    assert differing(SMALL.network, ConViT(patch=2, dim=48, heads=4, layers=4)) == {"drop_path": 0.0, "std": 0.1}
    assert differing(CLOTHES.network, SMALL.network) == {"patch": 4}
    assert differing(QUICK.longer, QUICK) == {"epochs": 30, "augment": "shift"}
    how = QUICK.longer.birt()
    assert (how.settings.augment, how.settings.buffer_size, how.settings.ema_rate) == ("shift", 100, 0.01)
    assert (how.epochs, how.batch_size, how.step_size, how.optimizer) == (30, 32, 1e-3, "adamw")
    tuning = (how.settings.tune_epochs, how.settings.tune_step_size, how.settings.tune_weight)
    assert tuning == (20, 1e-4, 2.0) and how.settings.final_step_size == 1e-5
    noise = {"mixup_p": 0.5, "mixup_shape": 0.1, "label_p": 0.05, "label_range": "seen", "attention_p": 0.5}
    noise |= {"attention_std": 0.1, "supervision_p": 0.4, "supervision_std": 0.01, "extrapolation": 0.0}
    assert {name: getattr(how.settings, name) for name in noise} == noise
    assert (how.settings.divergence, how.settings.loss, how.settings.warmup_epochs) == (0.1, "bce", 0)


def test_1_7_the_paper_profile_is_the_published_experiment() -> None:
    assert PAPER.setting == "CIFAR-100-10-500" and PAPER.recipe == "paper" and PAPER.seeds == 5
    recipe = PAPER.birt()
    training = (recipe.learner, recipe.optimizer, recipe.step_size, recipe.weight_decay, recipe.batch_size)
    assert training == ("birt", "adamw", 1.25e-4, 1e-6, 128)
    assert (recipe.epochs, recipe.iterations, recipe.halved) == (500, None, False)
    assert recipe.network == LARGE.network == PAPER.network()
    how = recipe.settings
    assert (how.warmup_epochs, how.warmup_step_size, how.final_step_size, how.schedule) == (5, 1e-6, 1e-5, "cosine")
    assert (how.tune_epochs, how.tune_step_size, how.tune_weight) == (20, 1.25e-5, 2.0)
    assert (how.augment, how.buffer_size, how.dtype, how.replay) == ("published", 500, "float32", "representations")
    noise = (how.mixup_p, how.mixup_shape, how.attention_p, how.attention_std, how.supervision_p, how.supervision_std)
    assert noise == (0.5, 0.1, 0.5, 1.0, 0.4, 0.01)
    assert (how.consistency, how.replay_weight, how.divergence, how.distance) == (1.0, 1.0, 0.1, "l2")


# --- parameters ---


def test_knobs_given_beat_the_setting() -> None:
    given: dict[str, Any] = {
        "buffer_size": 44,
        "augment": "none",
        "ema": 0.0,
        "ema_rate": 0.0,
        "replay_weight": 0.4,
        "consistency": 0.7,
        "beta_new": 0.0,
        "beta_replay": 0.0,
        "divergence": 0.0,
        "loss": "ce",
        "mixup_p": 0.0,
        "label_p": 0.0,
        "label_range": "new",
        "attention_p": 0.1,
        "attention_std": 0.0,
        "supervision_p": 0.2,
        "supervision_std": 0.3,
        "extrapolation": 0.25,
        "gate": "batch",
        "tune_epochs": 3,
        "dtype": "int8",
        "recipe": "released",
        "supervise_mixed": True,
        "persistent": True,
        "by_width": False,
        "settled": True,
        "freeze_old": True,
        "merge": False,
        "distance": "squared",
        "supervise_new": False,
        "scaled": False,
        "alternating": False,
        "deterministic": True,
    }
    p = settings(NAME, "paper", tasks=4, epochs=7, batch_size=9, lr=0.5, replay_from=3, halved=True, **given)
    how = p.birt()
    assert {name: getattr(how.settings, name) for name in given} == given
    assert (how.epochs, how.batch_size, how.step_size, how.halved) == (7, 9, 0.5, True)
    assert how.network == replace(LARGE.network, replay_from=3)
    assert set(RECIPES["released"]) <= set(given)
    shared = {name for name in (f.name for f in fields(BiRTSettings)) if name in {f.name for f in fields(BiRTChapter)}}
    assert shared == set(given), "every knob of the method reaches it"


def test_what_is_not_given_is_as_the_setting_or_the_recipe_has_it() -> None:
    p = settings(NAME, "quick", setting="CIFAR-100-20-500")
    assert (p.settings().ema_rate, p.settings().beta_replay) == (0.003, 0.1)
    assert (p.birt().epochs, p.birt().batch_size) == (500, 128)
    for recipe, values in RECIPES.items():
        how = settings(NAME, "quick", recipe=recipe).settings()
        assert {name: getattr(how, name) for name in values} == values


def test_smaller_tables_have_fewer_epochs_and_seeds() -> None:
    assert QUICK.birt().epochs == SMALL.epochs and PAPER.light.birt().epochs == PAPER.light_epochs == 50
    p = settings(NAME, "quick", epochs=9, light_epochs=4)
    assert (p.birt().epochs, p.light.birt().epochs) == (9, 4) and differing(p.light, p) == {"epochs": 4}
    same = replace(p, light_epochs=None)
    assert same.light == same and same.light.birt().epochs == 9
    p = settings(NAME, "quick", seed=4, seeds=3, other_seeds=2)
    assert p.runs == [4, 5, 6] and p.few == [4, 5]


def test_processes_share_runs_on_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLLIB_CORES", "7")
    assert settings(NAME, "quick", device="cpu").crew == 7
    assert settings(NAME, "quick", device="cpu", workers=2).crew == 2
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert settings(NAME, "quick", workers=2).crew == 1


def test_what_was_run_beforehand_is_no_usual_part() -> None:
    assert QUICK.parts == SMOKE.parts == PAPER.parts == USUAL and "reference" not in USUAL
    assert settings(NAME, "quick", parts=("reference",)).parts == ("reference",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"parts": ("all",)}, "parts"),
        ({"workers": 0}, "workers"),
        ({"other_seeds": 0}, "other_seeds"),
        ({"light_epochs": 0}, "light_epochs"),
        ({"compared": ()}, "compared"),
        ({"compared": ("iCaRL",)}, "compared"),
        ({"stds": ()}, "stds"),
        ({"stds": (0.1, -1.0)}, "stds"),
        ({"buffers": ()}, "buffers"),
        ({"buffers": (20, 0)}, "buffers"),
        ({"emas": ()}, "emas"),
        ({"emas": (0.9, 1.1)}, "emas"),
        ({"emas": (-0.1,)}, "emas"),
        ({"differences": ()}, "differences"),
        ({"differences": ("as written",)}, "differences"),
        ({"damaged": 0}, "damaged"),
        ({"live": 1}, "live"),
        ({"train_size": 0}, "train_size"),
        ({"setting": "CIFAR-100"}, "setting"),
        ({"recipe": "mine"}, "recipe"),
        ({"tasks": 0}, "tasks"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"lr": -1.0}, "lr"),
        ({"buffer_size": 0}, "buffer_size"),
        ({"replay_from": 0}, "replay_from"),
        ({"replay_from": 4}, "replay_from"),
        ({"augment": "flip"}, "augment"),
        ({"ema": 1.5}, "ema"),
        ({"ema_rate": -0.1}, "ema_rate"),
        ({"replay_weight": -1.0}, "replay_weight"),
        ({"consistency": -1.0}, "consistency"),
        ({"beta_new": -1.0}, "beta_new"),
        ({"beta_replay": -1.0}, "beta_replay"),
        ({"divergence": -1.0}, "divergence"),
        ({"loss": "mse"}, "loss"),
        ({"mixup_p": 1.5}, "mixup_p"),
        ({"label_p": -0.5}, "label_p"),
        ({"label_range": "old"}, "label_range"),
        ({"attention_p": 2.0}, "attention_p"),
        ({"attention_std": -1.0}, "attention_std"),
        ({"supervision_p": 2.0}, "supervision_p"),
        ({"supervision_std": -1.0}, "supervision_std"),
        ({"extrapolation": -1.0}, "extrapolation"),
        ({"gate": "class"}, "gate"),
        ({"supervise_mixed": 1}, "supervise_mixed"),
        ({"supervise_new": 1}, "supervise_new"),
        ({"persistent": 1}, "persistent"),
        ({"scaled": 1}, "scaled"),
        ({"by_width": 1}, "by_width"),
        ({"alternating": 1}, "alternating"),
        ({"deterministic": 1}, "deterministic"),
        ({"settled": 1}, "settled"),
        ({"freeze_old": 1}, "freeze_old"),
        ({"merge": 1}, "merge"),
        ({"distance": "l1"}, "distance"),
        ({"tune_epochs": -1}, "tune_epochs"),
        ({"dtype": "int4"}, "dtype"),
        ({"halved": 1}, "halved"),
        ({"seeds": 0}, "seeds"),
        ({"seed": -1}, "seed"),
        ({"device": "tpu"}, "device"),
    ],
)
def test_what_cannot_be_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}( =| is empty)") as caught:
        settings(NAME, "quick", **given)
    assert "\n" not in str(caught.value)


def test_what_is_given_without_a_profile_is_checked_too() -> None:
    for given in ({"live": 1}, {"compared": ()}, {"buffers": (0,)}, {"lr": 0.0}):
        with pytest.raises(UserError, match=f"^{next(iter(given))}( =| is empty)"):
            BiRTChapter(**given)  # type: ignore[arg-type]


def test_every_parameter_is_refused_somewhere() -> None:
    marks = test_what_cannot_be_is_refused_by_name.pytestmark  # type: ignore[attr-defined]
    (table,) = (mark.args[1] for mark in marks if mark.name == "parametrize")
    names = {f.name for f in fields(BiRTChapter)} - {"profile", "data_dir"}
    assert names == {said for _, said in table}


def test_values_come_from_a_command_line() -> None:
    text = {"compared": "joint,BiRT", "stds": "0, 5", "buffers": "20,40", "attention_std": "1", "halved": "true"}
    text |= {"ema": "none", "setting": "clothes-5-200", "tune_epochs": "0", "dtype": "float16", "lr": "1e-3"}
    given = parse(NAME, text)
    assert given == {
        "compared": ("joint", "BiRT"),
        "stds": (0.0, 5.0),
        "buffers": (20, 40),
        "attention_std": 1.0,
        "halved": True,
        "ema": None,
        "setting": "clothes-5-200",
        "tune_epochs": 0,
        "dtype": "float16",
        "lr": 0.001,
    }
    p = settings(NAME, "quick", **given)
    assert p.how is SETTINGS["clothes-5-200"] and list(p.methods()) == ["joint", "BiRT"]
    with pytest.raises(UserError, match="tune_epochs = 'many'"):
        parse(NAME, {"tune_epochs": "many"})
    with pytest.raises(UserError, match="no parameter 'gamma'"):
        parse(NAME, {"gamma": "0.1"})


# --- the tables ---


@pytest.mark.parametrize("p", [SMOKE, QUICK, PAPER], ids=lambda p: p.profile)
def test_every_method_is_what_it_is_called(p: BiRTChapter) -> None:
    methods = p.methods()
    assert list(methods) == list(METHODS) == list(p.compared)
    birt = methods["BiRT"]
    assert birt == p.birt() and birt.learner == "birt"
    plain = {**NO_NOISE, "consistency": 0.0, "tune_epochs": 0}
    plain = {name: value for name, value in plain.items() if getattr(birt.settings, name) != value}
    for name, replay in {"joint": "all", "fine-tuning only": "none", "image replay": "images"}.items():
        assert changed(methods[name], birt) == {**plain, "replay": replay, "freeze": False}
    untaught = changed(methods["representation replay"], birt)
    assert untaught == {name: value for name, value in plain.items() if name != "tune_epochs"}
    assert methods["representation replay"].settings.replay == "representations"
    assert not methods["representation replay"].settings.taught and birt.settings.taught
    dark = methods["DER++"]
    tasks = {"smoke": 2, "quick": 5, "paper": 10}[p.profile]
    assert differing(dark, birt).keys() == {"learner", "settings", "network"} and dark.learner == "der++"
    assert dark.settings == DERPlusSettings(birt.settings.buffer_size, birt.batch_size)
    assert dark.network == replace(birt.network, tasks=tasks)


def test_dark_replay_is_told_what_is_given() -> None:
    dark = settings(NAME, "quick", tasks=2, batch_size=8, buffer_size=30, replay_from=2).methods()["DER++"]
    assert (dark.settings.buffer_size, dark.settings.replay_size, dark.batch_size) == (30, 8, 8)
    assert dark.network == replace(SMALL.network, replay_from=2, tasks=2)


def test_only_the_methods_asked_for_are_compared() -> None:
    p = settings(NAME, "quick", compared=("BiRT", "joint"))
    assert list(p.methods()) == ["BiRT", "joint"]


def test_5_every_noise_alone_is_one_noise() -> None:
    table = QUICK.noises()
    none, base = table["none"], QUICK.birt()
    assert {name: getattr(none.settings, name) for name in NO_NOISE} == NO_NOISE
    assert changed(none, base).keys() == set(NO_NOISE) - {"extrapolation"}
    alone = {
        "M: representations": {"mixup_p": 0.5},
        "T: labels": {"label_p": 0.05},
        "A: attention, 0.1": {"attention_p": 0.5},
        "A: attention, 1": {"attention_p": 0.5, "attention_std": 1.0},
        "S: supervision": {"supervision_p": 0.4},
    }
    assert {label: changed(table[label], none) for label in alone} == alone
    assert table["all"] == base and base.settings.attention_std == 0.1
    assert len(table) == 1 + len(alone) + 1


def test_noises_have_the_size_that_is_given() -> None:
    p = settings(NAME, "quick", stds=(0.3,), mixup_p=0.7, label_p=0.2, attention_p=0.9, supervision_p=0.1)
    table = p.noises()
    none = table["none"]
    assert changed(table["M: representations"], none) == {"mixup_p": 0.7}
    assert changed(table["T: labels"], none) == {"label_p": 0.2}
    assert changed(table["A: attention, 0.3"], none) == {"attention_p": 0.9, "attention_std": 0.3}
    assert changed(table["S: supervision"], none) == {"supervision_p": 0.1}
    assert "A: attention, 1" not in table and table["all"] == p.birt()


RELEASED = {
    "all is mixed": {"mixup_p", "supervise_mixed"},
    "half the labels to new classes": {"label_p", "label_range"},
    "extrapolation": {"extrapolation"},
    "lost updates": {"persistent"},
    "shares": {"scaled"},
    "shares by width": {"scaled", "by_width"},
    "passes alternate": {"alternating"},
    "chosen and stored augmented": {"deterministic"},
    "attention noise of 1": {"attention_std"},
    "noise on new supervision": {"supervise_new"},
    "frozen layers in training mode": {"settled"},
}


@pytest.mark.parametrize("given", [{}, {"setting": "CIFAR-100-10-500"}, {"recipe": "released"}], ids=str)
def test_4_every_difference_of_the_released_program_alone(given: dict[str, Any]) -> None:
    p = settings(NAME, "quick", differences=tuple(DIFFERENCES), **given)
    table = p.released()
    assert list(table) == list(DIFFERENCES)
    base, whole = table["as the paper says"], table["as released"]
    theirs = {**RECIPES["released"], "attention_std": 1.0}
    theirs = {name: value for name, value in theirs.items() if getattr(base.settings, name) != value}
    assert ("attention_std" in theirs) == (p.images == SMALL), "published settings have it anyway"
    for label, names in RELEASED.items():
        assert changed(table[label], base) == {name: theirs[name] for name in names if name in theirs}, label
    assert changed(whole, base) == {**theirs, "recipe": "released"}
    together = {name for names in RELEASED.values() for name in names}
    assert together == {*RECIPES["released"], "attention_std"}
    alone = replace(base.settings, **theirs)
    assert differing(whole.settings, alone).keys() == {"recipe"}
    assert base.settings == p.settings(recipe="paper") and whole.settings == p.settings(recipe="released")
    assert (base == p.birt()) == (p.recipe == "paper") != (whole == p.birt())


def test_4_as_released_attention_has_noise_of_1_in_small_settings_too_unless_it_is_given() -> None:
    for setting in SETTINGS:
        p = settings(NAME, "quick", setting=setting, recipe="released")
        assert p.settings().attention_std == p.released()["as released"].settings.attention_std == 1.0
        assert p.settings(recipe="paper").attention_std == p.images.attention_std
        assert replace(p, attention_std=0.3).settings().attention_std == 0.3
    assert QUICK.settings().attention_std == 0.1


def test_4_only_the_differences_asked_for_are_run() -> None:
    assert list(QUICK.released()) == ["as the paper says", "as released"]
    assert list(PAPER.released()) == list(DIFFERENCES)
    p = settings(NAME, "quick", differences=("shares", "extrapolation"))
    assert p.released() == {label: QUICK.birt(**DIFFERENCES[label]) for label in ("shares", "extrapolation")}


def test_memories_change_one_thing() -> None:
    p = settings(NAME, "quick", emas=(0.9, 0.995), buffers=(33, 50))
    table, base = p.memories(), p.birt()
    assert table["BiRT"] == base == QUICK.birt()
    wanted: dict[str, dict[str, Any]] = {
        "no fine-tuning": {"tune_epochs": 0},
        "gamma 0.9": {"ema": 0.9},
        "gamma 0.995": {"ema": 0.995},
        "M 33": {"buffer_size": 33},
        "M 50": {"buffer_size": 50},
        "in int8": {"dtype": "int8"},
    }
    assert {label: changed(table[label], base) for label in wanted} == wanted
    images = p.methods()["image replay"]
    others = {label for label in table if label not in ("BiRT", *wanted)}
    assert others == {"image replay, M 33", "image replay, M 50", "image replay, M 100"}  # the last as BiRT has it
    for label in others:
        size = int(label.removeprefix("image replay, M "))
        assert table[label] == replace(images, settings=replace(images.settings, buffer_size=size))


def test_2_students_networks() -> None:
    table = QUICK.student()
    theirs = PlainViT(patch=2, dim=48, heads=12, layers=4, cut=2)
    networks = {"whole": replace(theirs, cut=0), "cut in two": theirs, "g detached": replace(theirs, detached=True)}
    assert {label: recipe.network for label, recipe in table.items()} == networks
    assert PAPER.student()["cut in two"].network.patch == 4
    (how,) = {recipe.settings for recipe in table.values()}
    assert (how.replay, how.loss, how.consistency, how.tune_epochs) == ("all", "ce", 0.0, 0)
    assert {name: getattr(how, name) for name in NO_NOISE} == NO_NOISE
    for recipe in table.values():
        assert differing(recipe, QUICK.birt()).keys() == {"settings", "network"}
        assert recipe.network.build((1, 8, 8), 10)(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_6_1_reference_runs_are_the_prototypes() -> None:
    table, base = QUICK.reference(), QUICK.birt()
    quiet = {name: value for name, value in NO_NOISE.items() if name != "extrapolation"}
    only_attention = {name: value for name, value in quiet.items() if name != "attention_p"}
    assert {label: changed(recipe, base) for label, recipe in table.items()} == {
        "all noises, A 1, shares": {"attention_std": 1.0, "scaled": True},
        "all noises, A 1": {"attention_std": 1.0},
        "all noises, A .1, shares": {"scaled": True},
        "A 1 alone, shares": {**only_attention, "attention_std": 1.0, "scaled": True},
        "no noise, shares": {**quiet, "scaled": True},
        "no noise, no teacher": {**quiet, "consistency": 0.0},
        "labels .5, shares": {"attention_std": 1.0, "label_p": 0.5, "scaled": True},
        "no fine-tuning, shares": {"attention_std": 1.0, "tune_epochs": 0, "scaled": True},
    }
    assert QUICK.longer.reference()["no noise, shares"] == QUICK.longer.birt(**quiet, scaled=True)


@pytest.mark.parametrize("p", [SMOKE, QUICK, PAPER], ids=lambda p: p.profile)
def test_all_tables_share_their_training(p: BiRTChapter) -> None:
    tables = [p.methods(), p.noises(), p.released(), p.memories(), p.student(), p.reference()]
    recipes = [recipe for table in tables for recipe in table.values()]
    assert len({(r.optimizer, r.step_size, r.weight_decay, r.batch_size, r.epochs, r.halved) for r in recipes}) == 1
    assert all(recipe.learner in LEARNERS for recipe in recipes)


@pytest.mark.parametrize("p", [SMOKE, QUICK], ids=lambda p: p.profile)
def test_every_memory_holds_one_of_each_class(p: BiRTChapter) -> None:
    assert all(recipe.settings.buffer_size >= p.stream().classes for recipe in p.memories().values())


def test_every_memory_of_the_paper_profile_holds_one_of_each_class() -> None:
    assert min(recipe.settings.buffer_size for recipe in PAPER.memories().values()) >= len(CIFAR_ORDER)


# --- streams ---


def test_1_7_the_published_order_of_cifar_100() -> None:
    assert sorted(CIFAR_ORDER) == list(range(100))
    assert CIFAR_ORDER[:3] == (87, 0, 52) and CIFAR_ORDER[-4:] == (54, 26, 35, 39)
    assert sum(place * label for place, label in enumerate(CIFAR_ORDER, 1)) == 240401  # of the published list


def test_1_7_the_published_order_of_imagenet_100_is_numpys() -> None:
    assert imagenet_order() == tuple(np.random.RandomState(1993).permutation(100))
    assert sorted(imagenet_order()) == list(range(100)) and type(imagenet_order()[0]) is int
    assert IMAGENET.order is imagenet_order and TINY.order is SMALL.order is CIFAR_10.order is None


def hundred(name: str, where: Path, download: bool = False) -> Labelled:
    """Two images of every class, of the colour of its number."""
    y = torch.arange(100).repeat(2)
    x = y.to(torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
    return Labelled(f"{name} in {where.name}, {download}", x, y, x, y, tuple(str(c) for c in range(100)))


def test_classes_of_cifar_100_come_in_the_published_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, Path, bool]] = []

    def load(name: str, where: Path, download: bool = False) -> Labelled:
        asked.append((name, where, download))
        return hundred(name, where)

    monkeypatch.setattr(birt_settings.cifar, "load", load)
    stream = setting_stream("CIFAR-100-20-200", data_dir=str(tmp_path))
    assert asked == [("cifar100", tmp_path, True)]
    assert stream.name == "CIFAR-100, 20 tasks" and len(stream.experiences) == 20
    colours = [e.x[:5, 0, 0, 0].tolist() for e in stream.experiences]
    for task, own in enumerate(colours):
        assert sorted(own) == sorted(CIFAR_ORDER[5 * task : 5 * task + 5])
    for task in (*stream.experiences, *stream.tests):
        assert [CIFAR_ORDER[c] for c in task.y.tolist()] == task.x[:, 0, 0, 0].tolist()
    ten = setting_stream("CIFAR-10-5-500", tasks=4, data_dir=str(tmp_path))
    assert asked[-1] == ("cifar10", tmp_path, True) and ten.experiences[0].x[:, 0, 0, 0].unique().tolist() == [
        *range(25)
    ]


def test_data_lie_in_the_cache_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(birt_settings, "cache_folder", lambda: tmp_path / "cache")
    asked: list[Path] = []
    monkeypatch.setattr(birt_settings.cifar, "load", lambda n, w, download: asked.append(w) or hundred(n, w))
    setting_stream("CIFAR-100-5-500")
    assert asked == [tmp_path / "cache"]


def test_digits_are_split_into_tasks_of_two() -> None:
    stream = setting_stream("digits-5-100")
    assert (stream.name, stream.classes, stream.whole, stream.note) == ("digits, 5 tasks", 10, True, "")
    assert [e.classes for e in stream.experiences] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert stream.shape == (1, 8, 8) and stream.scenario == "class" and not stream.validations
    x, y = digits.load()
    assert len(stream) == 1437 and sum(len(e) for e in stream.tests) == len(y[::5]) == 360
    for task in stream.tests:  # every fifth of 1797
        own = (y[::5] // 2) == task.classes[0] // 2
        assert torch.equal(task.y, y[::5][own]) and torch.equal(task.x.flatten(1), x[::5][own])
    part = setting_stream("digits-5-100", tasks=2, train_size=7)
    assert (part.name, part.whole, part.note) == ("digits, 2 tasks", False, "7 of each class")
    assert [len(e) for e in part.experiences] == [35, 35] and sum(len(e) for e in part.tests) == 360
    assert QUICK.stream().name == "digits, 5 tasks" and len(SMOKE.stream()) == 200
    assert SMOKE.stream().name == "digits, 2 tasks" and not SMOKE.stream().whole


def test_clothes_are_split_into_tasks_of_two() -> None:
    stream = settings(NAME, "quick", setting="clothes-5-200", train_size=30).stream()
    assert (stream.name, stream.classes, stream.whole, stream.note) == (
        "clothes, 5 tasks",
        10,
        False,
        "30 of each class",
    )
    assert [len(e) for e in stream.experiences] == [60] * 5 and [len(e) for e in stream.tests] == [400] * 5
    assert stream.shape == (1, 28, 28) and stream.experiences[3].classes == (6, 7)


def test_classes_must_divide_into_tasks() -> None:
    with pytest.raises(UserError, match="= 3: 10 classes divide into 1, 2, 5, 10"):
        settings(NAME, "quick", tasks=3).stream()


def test_data_that_are_not_at_hand_are_named(tmp_path: Path) -> None:
    for name in ("Tiny-ImageNet-10-500", "ImageNet-100-10-500"):
        with pytest.raises(UserError, match=str(tmp_path / "nowhere")):
            settings(NAME, "quick", setting=name, data_dir=str(tmp_path / "nowhere")).stream()


def folders(root: Path, classes: int, held: str = "val") -> Path:
    """An image folder as ImageNet-100 has it, a flat colour a class: its number, and 100 more in the test part."""
    for part, shift in (("train", 0), (held, 100)):
        for c in range(classes):
            own = root / part / f"n{c:03}"
            own.mkdir(parents=True)
            Image.new("RGB", (2, 2), (c + shift, c + shift, 7)).save(own / "one.png")
    return root


def test_imagenet_100_is_the_middle_of_256_pixels_in_the_published_order(tmp_path: Path) -> None:
    root = folders(tmp_path, 100)
    place = np.arange(256, dtype=np.uint8)
    pixels = np.stack([*np.meshgrid(place, place), np.zeros((256, 256), np.uint8)], -1)
    Image.fromarray(pixels).save(root / "train" / "n000" / "a.png")  # red: column, green: row
    stream = setting_stream("ImageNet-100-10-500", data_dir=str(root))
    assert (stream.name, stream.classes, stream.shape) == ("ImageNet-100, 10 tasks", 100, (3, 224, 224))
    order = np.random.RandomState(1993).permutation(100)
    known = 0
    for task, (train, test) in enumerate(zip(stream.experiences, stream.tests, strict=True)):
        own = order[10 * task : 10 * task + 10].tolist()
        flat = train.x[:, 2, 0, 0] == 7
        assert [own[c % 10] for c in train.y[flat].tolist()] == train.x[flat, 0, 5, 5].tolist()
        assert [own[c % 10] + 100 for c in test.y.tolist()] == test.x[:, 0, 5, 5].tolist()
        assert len(test) == 10 and train.classes == tuple(range(10 * task, 10 * task + 10))
        for x, y in zip(train.x[~flat], train.y[~flat], strict=True):
            assert own[int(y) % 10] == 0
            assert x[:2, 0, 0].tolist() == [16, 16] and x[:2, -1, -1].tolist() == [239, 239]
            known += 1
    assert known == 1


@pytest.mark.parametrize("classes", [3, 101])
def test_imagenet_100_has_100_classes(classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(birt_settings, "LARGER", 4)  # the refusal does not depend on the size
    monkeypatch.setattr(birt_settings, "SIDE", 2)
    with pytest.raises(UserError, match=f"{classes} class folders; ImageNet-100 has 100"):
        imagenet_100(folders(tmp_path, classes))


# --- counts ---

COUNTS = {
    "architecture": 9,
    "memory": 20 + 9,
    "training": 6,
    "chances": 6,
}


def counted() -> list[Claim]:
    return [claim for claim in claims(NAME) if claim.source == "released program, counted"]


def test_12_counts_are_the_published_ones() -> None:
    found = birt_counts.counted()
    facts = [
        Fact(group, name, "quick", (float(value),), exact=True)
        for group, values in found.items()
        for name, value in values.items()
    ]
    verdicts = {(claim.experiment, claim.label): judge(claim, facts)["verdict"] for claim in counted()}
    assert {group: sum(key[0] == group for key in verdicts) for group in COUNTS} == COUNTS
    assert set(verdicts.values()) == {"reproduced"}, verdicts
    unclaimed = {(group, name) for group, values in found.items() for name in values} - set(verdicts)
    assert unclaimed == {("architecture", "numbers of a Tiny-ImageNet representation")}
    assert found["architecture"]["numbers of a Tiny-ImageNet representation"] == 64 * 384


def test_i4_and_1_4_counts_by_hand() -> None:
    found = birt_counts.counted()
    wanted = {"g": 634_428, "f, one task of ten classes": 10_054_138, "the small network, 5 tasks": 115_033}
    wanted |= {"one task more": 384 + 2 * 384 + 384 * 10 + 10, "bytes of its representation": 64 * 384 * 4}
    wanted |= {"bytes of a CIFAR image": 3072, "... times more": 32, "numbers of an ImageNet image": 150_528}
    wanted |= {"numbers of its representation": 75_264}
    assert {name: found["architecture"][name] for name in wanted} == wanted
    quotas = {"CIFAR-100-10-500": [50, 25, 16, 12, 10, 8, 7, 6, 5, 5], "CIFAR-100-5-500": [25, 12, 8, 6, 5]}
    quotas["digits-5-100"] = [50, 25, 16, 12, 10]
    for name, each in quotas.items():
        assert [found["memory"][f"{name}: a class, after task {k}"] for k in range(1, len(each) + 1)] == each
    shares = [found["memory"][f"share of old classes, task {k} of 10"] for k in range(2, 11)]
    assert shares == [0.5, 0.667, 0.75, 0.8, 0.833, 0.857, 0.875, 0.889, 0.9]
    assert found["training"] == {
        "images: whole batches an epoch": 39,
        "replay: batches": 4,
        "step size, in 1e-6": 125,
        "step size of fine-tuning, in 1e-6": 12.5,
        "step size in epoch 0, in 1e-6": 1,
        "step size in epoch 1, in 1e-6": 1,
    }
    chances = found["chances"]
    draws = np.random.default_rng(0).beta(0.1, 0.1, 200_000)
    for name, share in {
        "mixtures with .05 < lambda < .95": ((draws > 0.05) & (draws < 0.95)).mean(),
        "mixtures with .2 < lambda < .8": ((draws > 0.2) & (draws < 0.8)).mean(),
        "mixtures with lambda = 1 in double precision": (draws == 1).mean(),
    }.items():
        assert chances[name] == pytest.approx(float(share), abs=0.004)
    assert chances["epochs with an update of f_s"] == pytest.approx(1 - 0.997**43)
    before = [1 - 0.997**k for k in range(43)]  # a step sees the updates of steps before it
    assert chances["steps that see it, before it is lost"] == pytest.approx(sum(before) / 43)
    assert chances["students: attention noise for good after an epoch"] == pytest.approx(1 - 0.995**312)


# --- what was published ---

NEVER_RUN = {"DyTox", "students' BiRT"}  # methods that are not ours


def labels_of() -> dict[str, set[str]]:
    """Labels that the chapter gives, by experiment."""
    everything = {"main": set(METHODS), "noise": set(PAPER.noises()), "student": set(PAPER.student())}
    everything |= {"reference": set(PAPER.reference()), "bytes stored": {"BiRT", "image replay"}}
    everything |= {f"robustness, {kind}": set(METHODS) for kind in ("noise", "contrast", "blur", "PGD")}
    return everything | {group: set(values) for group, values in birt_counts.counted().items()}


def test_every_claim_has_a_source_that_is_told() -> None:
    content = published(NAME)
    asked = {claim.source for claim in claims(NAME)}
    assert asked == set(content["sources"])
    assert all(len(text) > 20 for text in content["sources"].values())


def test_every_claim_is_answered_by_a_table_that_exists() -> None:
    known = labels_of()
    axes = {"forward transfer", "trade-off of stability and plasticity", "natural robustness", "robustness to PGD"}
    asked = set()
    for claim in claims(NAME):
        labels = {claim.label, claim.worse} - {None}
        asked.add(claim.experiment)
        if claim.experiment.startswith("students, "):
            assert labels <= {"students' BiRT", "whole"}, claim
        elif claim.experiment in axes:
            assert labels == {"BiRT", "DyTox"}, claim
        else:
            assert labels <= known[claim.experiment] | NEVER_RUN, claim
    assert set(known) <= asked


def test_every_claim_is_about_a_stream_of_the_chapter() -> None:
    streams = {f"{name.rsplit('-', 2)[0]}, {how.tasks} tasks" for name, how in SETTINGS.items()}
    assert {"CIFAR-100, 10 tasks", "digits, 5 tasks"} <= streams
    for claim in claims(NAME):
        assert claim.stream in {*streams, "CIFAR-100, tasks and memory not told", ""}, claim
        assert (claim.stream == "") == (claim.source == "released program, counted")
        assert set(claim.stand_ins) <= {"digits, 5 tasks"} <= streams
        if claim.experiment in ("main", "noise", "student") and claim.value is None and claim.worse != "DyTox":
            assert claim.stand_ins, "a small stream can show it"


def test_every_number_asked_of_a_run_can_be_had(made: list[Record]) -> None:
    record = with_accuracy(made[0], [0.5, 0.6])
    record = replace(record, test=np.ones((2, 5, 5)).tolist())
    own = ("main", "noise", "student", "reference")
    asked = {claim.metric for claim in claims(NAME) if claim.experiment in own}
    assert asked == {"Acc", "s1", "s2", "s3", "s4", "s5"} and "Acc" in METRICS
    for metric in asked:
        assert record.metric(metric).tolist() == [1, 1]


def numbers(experiment: str, label: str | None = None, stream: str | None = None) -> dict[str, float | None]:
    """Published values by metric."""
    found = [c for c in claims(NAME) if c.experiment == experiment and c.value is not None]
    found = [c for c in found if label in (None, c.label) and stream in (None, c.stream)]
    assert len({c.metric for c in found}) == len(found)
    return {c.metric: c.value for c in found}


def test_3_numbers_quoted_from_the_paper() -> None:
    assert numbers("main") == {"Acc": 0.5415}
    (claim,) = (c for c in claims(NAME) if c.value == 0.5415)
    assert (claim.label, claim.stream) == ("BiRT", "CIFAR-100, 5 tasks")
    ablation = {"none": 45.89, "M: representations": 46.89, "S: supervision": 49.19, "A: attention, 1": 49.30}
    found = {c.label: c.value for c in claims(NAME) if c.experiment == "noise" and c.value is not None}
    assert found == {label: pytest.approx(value / 100) for label, value in ablation.items()}


STUDENTS = {
    "CIFAR-10, 5 tasks": [19, 36, 10, 36.8, 13, 36.3, 19, 38.4, 15, 42.8],
    "CIFAR-100, 5 tasks": [11, 11, 2.2, 5.9, 1.8, 7.3, 2.8, 9.3, 3.8, 10.2],
}
LOSSES = {"CIFAR-10, 5 tasks": [0.5, 20, 3.7, 3.7, 3.7, 0.2], "CIFAR-100, 5 tasks": [1, 37, 30, 48, 44, 1]}


@pytest.mark.parametrize("stream", list(STUDENTS))
def test_3_numbers_of_the_students_plots(stream: str) -> None:
    found = numbers("students, 200 epochs", "students' BiRT", stream)
    names = [f"after task {k}{tuned}" for k in range(1, 6) for tuned in ("", ", fine-tuned")]
    wanted = {name: value / 100 for name, value in zip(names, STUDENTS[stream], strict=True)}
    losses = [*(f"loss at the start of task {k}" for k in range(1, 6)), "loss at the end of a task"]
    wanted |= dict(zip(losses, LOSSES[stream], strict=True))
    assert found == {name: pytest.approx(value) for name, value in wanted.items()}


@pytest.mark.parametrize(
    ("epochs", "stream", "before", "tuned"),
    [
        ("38 epochs", "CIFAR-10, 5 tasks", 0.1392, 0.2496),
        ("30 epochs", "CIFAR-100, 5 tasks", 0.01002, 0.04698),
        ("42 epochs more", "CIFAR-100, 5 tasks", 0.03305, 0.06801),
    ],
)
def test_3_numbers_of_the_students_text(epochs: str, stream: str, before: float, tuned: float) -> None:
    assert numbers(f"students, {epochs}", stream=stream) == {"before fine-tuning": before, "fine-tuned": tuned}
    assert len(numbers(f"students, {epochs}")) == 2


def test_3_upper_bounds_of_the_students() -> None:
    ten, hundred = "CIFAR-10, 5 tasks", "CIFAR-100, 5 tasks"
    bounds = {("whole", ten): 0.65, ("whole", hundred): 0.35, ("g detached", ten): 0.425, ("g detached", hundred): 0.14}
    found = {(c.label, c.stream): c.value for c in claims(NAME) if c.experiment == "student" and c.value is not None}
    assert found == bounds
    assert numbers("students, log of the notebook", "whole", hundred) == {"epoch 30": 0.337, "best": 0.341}
    assert numbers("students, 5 epochs of a part", stream=ten) == {"Acc": 0.1094}


REFERENCE = {
    "all noises, A 1, shares": (100, 73.0, 53.7, 52.9, 45.3),
    "all noises, A 1": (100, 72.4, 50.3, 57.7, 52.3),
    "all noises, A .1, shares": (100, 81.1, 73.0, 66.5, 64.8),
    "A 1 alone, shares": (100, 72.4, 43.6, 40.8, 28.6),
    "no noise, shares": (100, 83.8, 74.7, 76.1, 69.4),
    "no noise, no teacher": (100, 89.7, 86.1, 84.9, 75.1),
    "labels .5, shares": (100, 69.2, 52.0, 47.6, 40.8),
    "no fine-tuning, shares": (100, 69.7, 44.6, 45.3, 40.2),
}


@pytest.mark.parametrize("label", list(REFERENCE))
def test_6_1_numbers_of_the_prototype(label: str) -> None:
    wanted = {f"s{k}": pytest.approx(value / 100) for k, value in enumerate(REFERENCE[label], 1)}
    assert numbers("reference", label, "digits, 5 tasks") == wanted
    assert set(REFERENCE) == set(QUICK.reference())


def test_numbers_that_were_not_at_hand_are_left_out() -> None:
    counts = {source: 0 for source in published(NAME)["sources"]}
    for claim in claims(NAME):
        counts[claim.source] += claim.value is not None
    assert counts == {
        "BiRT, abstract": 0,
        "BiRT, Figure 1": 0,
        "BiRT, quoted": 5,
        "students": 20 + 12 + 6 + 1 + 4 + 2,
        "reference runs": 40,
        "released program, counted": 50,
    }


def test_orders_say_what_the_paper_says() -> None:
    orders = {(c.source, c.experiment, c.stream, c.label, c.worse) for c in claims(NAME) if c.value is None}
    large = "CIFAR-100, 10 tasks"
    wanted = {("BiRT, abstract", "main", large, "BiRT", other) for other in ("image replay", "representation replay")}
    places = [f"robustness, {kind}" for kind in ("noise", "contrast", "blur", "PGD")]
    wanted |= {("BiRT, abstract", place, large, "BiRT", "image replay") for place in (*places, "bytes stored")}
    wanted |= {("BiRT, Figure 1", "main", f"CIFAR-100, {tasks} tasks", "BiRT", "DyTox") for tasks in (5, 10, 20)}
    axes = ("forward transfer", "trade-off of stability and plasticity", "natural robustness", "robustness to PGD")
    wanted |= {("BiRT, Figure 1", axis, large, "BiRT", "DyTox") for axis in axes}
    untold, m = "CIFAR-100, tasks and memory not told", "M: representations"
    better = [(m, "none"), ("S: supervision", "none"), ("A: attention, 1", "none")]
    better += [("A: attention, 1", m), ("S: supervision", m), ("A: attention, 1", "S: supervision")]
    wanted |= {("BiRT, quoted", "noise", untold, one, other) for one, other in better}
    ten = "CIFAR-10, 5 tasks"
    wanted |= {("students", "student", ten, "whole", other) for other in ("cut in two", "g detached")}
    assert orders == wanted
