"""Parameters: profiles, overrides, types, and one clear line for what cannot be."""

import re

import pytest

from cllib.chapters import PROFILES, convert, from_notebook, names, parse, settings
from cllib.errors import UserError
from cllib.learners import LEARNERS
from cllib.ledger import published
from cllib.models.convit import ConViT
from cllib.models.plain_vit import PlainViT
from cllib.notebooks import BOOK

CHAPTER = "01_memory_head"


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_possible(profile: str) -> None:
    assert settings(CHAPTER, profile).profile == profile


def test_profile_comes_from_the_environment_or_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings(CHAPTER).profile == "quick"
    monkeypatch.setenv("CLLIB_PROFILE", "smoke")
    assert settings(CHAPTER).profile == "smoke" and settings(CHAPTER, "paper").profile == "paper"


def test_given_values_win_over_the_profile_and_none_means_default() -> None:
    assert settings(CHAPTER, "smoke", seeds=7, units=None).seeds == 7
    assert settings(CHAPTER, "smoke").seeds != 7
    assert settings(CHAPTER, step_sizes=[1, 0.5]).step_sizes == (1.0, 0.5)


def test_parameters_cell_is_read_from_a_namespace() -> None:
    assert from_notebook(CHAPTER, {"profile": "smoke", "units": 3, "other": object()}).units == 3


def test_command_line_text_is_typed() -> None:
    typed = parse(
        CHAPTER,
        {"seeds": "5", "step_size": "1e-3", "bias": "False", "streams": "modes-ci, moons-ci", "key_size": "none"},
    )
    assert typed == {
        "seeds": 5,
        "step_size": 0.001,
        "bias": False,
        "streams": ("modes-ci", "moons-ci"),
        "key_size": None,
    }
    assert convert("key_size", "3", int | None) == 3


@pytest.mark.parametrize("label", list(published(CHAPTER)["examples"]))
def test_released_commands_have_their_equivalent(label: str) -> None:
    given = {"benchmark": "ns-imagenet", "data_dir": ".", **published(CHAPTER)["examples"][label]["settings"]}
    chosen = settings(CHAPTER, "quick", **given)
    assert all(getattr(chosen, name) == value for name, value in given.items())
    text = {name: str(value) for name, value in given.items()}
    assert settings(CHAPTER, "quick", **parse(CHAPTER, text)) == chosen


BENCHMARKS = {"bi-modals_CDI": "modes-cdi", "imagenet": None}  # imagenet: the chapter's stream of images
FLAGS = {"beta_k": "key_step", "beta_m": "step_size", "hidden": "hidden", "buffer_size": "buffer_size"}
FLAGS |= {"buffer_batch_size": "replay_size", "delta": "top", "key_mem_units": "units", "tau_alpha": "match_threshold"}


@pytest.mark.parametrize("label", list(published(CHAPTER)["examples"]))
def test_released_commands_are_the_settings_beside_them(label: str) -> None:
    """All three of the README are of the benchmarks in the plane's MODES, or images."""
    example = published(CHAPTER)["examples"][label]
    told = dict(part.removeprefix("--").split("=") for part in example["command"].split())
    assert example["settings"].get("benchmark") == BENCHMARKS[told["benchmark"]]
    same = {name: example["settings"][mine] for name, mine in FLAGS.items() if name in told}
    assert same == {name: float(told[name]) for name in same} and len(same) > 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sedes": 5}, "no parameter 'sedes': allowed are device, seeds"),
        ({"seeds": 0}, "seeds = 0: must be a whole number at least 1"),
        ({"seeds": 2.5}, "seeds = 2.5: must be a whole number"),
        ({"seeds": True}, "seeds = True: must be a whole number"),
        ({"units": 0}, "units = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"device": "tpu"}, "device = 'tpu': allowed are auto, cpu, cuda"),
        ({"model": "cnn"}, "model = 'cnn': allowed are mh, lp, mlp"),
        ({"streams": ["modes"]}, "streams = 'modes': allowed are modes-iid"),
        ({"streams": []}, "streams = \\(\\): at least one must be continual"),
        ({"streams": ["modes-iid"]}, "at least one must be continual"),
        ({"step_sizes": [0.0]}, "step_sizes = 0.0"),
        ({"step_sizes": []}, "step_sizes is empty"),
        ({"bias": "yes"}, "bias = 'yes': must be true or false"),
        ({"method": "icarl"}, "method = 'icarl'"),
        ({"key_update": "grad_WTA"}, "scramble = True with key_update = 'grad_WTA'"),
        ({"surface_step": 0.0}, "surface_step = 0.0"),
        ({"track_every": 0}, "track_every = 0"),
        ({"benchmark": "cifar"}, "benchmark = 'cifar'"),
        ({"thin": 0}, "thin = 0"),
        ({"step_size": float("inf")}, "step_size = inf"),
        ({"sharpness": float("nan")}, "sharpness = nan"),
        ({"match_threshold": float("inf")}, "match_threshold = inf"),
        ({"streams": ["modes-ci", "modes-ci"]}, "each may be named once"),
        ({"query": "resize2d", "key_size": 4}, "inputs = 2: resize2d needs a square number"),
        ({"query": "resize2d", "key_size": 3, "benchmark": "ns-digits"}, "key_size = 3: resize2d needs a square"),
        ({"image_stream": "ns-imagenet"}, "data_dir = None: ns-imagenet needs the folder"),
        ({"benchmark": "ns-imagenet", "data_dir": "/no/such"}, "data_dir = '/no/such'"),
        ({"buffer_size": -1}, "buffer_size = -1"),
        ({"hidden": 0, "model": "mlp"}, "hidden = 0"),
    ],
)
def test_impossible_values_are_named_with_what_is_allowed(wrong: dict, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        settings(CHAPTER, "smoke", **wrong)
    assert "\n" not in str(caught.value)


def test_unknown_chapter_and_profile_are_named() -> None:
    with pytest.raises(UserError, match="chapter = '99': allowed are 01_memory_head"):
        settings("99")
    with pytest.raises(UserError, match="profile = 'huge': allowed are smoke, quick, paper"):
        settings(CHAPTER, "huge")


@pytest.mark.parametrize(("name", "text"), [("seeds", "five"), ("step_size", ""), ("bias", "maybe"), ("nope", "1")])
def test_wrong_text_is_named(name: str, text: str) -> None:
    with pytest.raises(UserError, match=name):
        parse(CHAPTER, {name: text})


def test_device_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert settings(CHAPTER).on == "cpu"
    with pytest.raises(UserError, match="device = 'cuda': this machine has no GPU"):
        settings(CHAPTER, device="cuda")
    assert names()[0] == CHAPTER


# --- tables of what differs: as published, as released, ours, and the switch ---

LEARNER = {"path": "si", "fisher": "ewc", "tune_weight": "birt", "replay_size": "birt"}
ELSEWHERE = {  # switches that are no parameters of a chapter
    **{name: LEARNERS[learner].Settings for name, learner in LEARNER.items()},
    "std": ConViT,
    "detached": PlainViT,
}
MODULE = "models.plain_vit"
DIFFERING = {"03_latent_replay": 13, "04_brain_inspired_replay": 14, "05_birt": 25}  # at least so many switches


@pytest.mark.parametrize("chapter", DIFFERING)
def test_every_switch_in_the_table_of_what_differs_can_be_set(chapter: str) -> None:
    rows = [line for line in (BOOK / f"{chapter}.py").read_text().splitlines() if line.startswith("# |")]
    last = [row.rstrip(" |").rsplit(" | ", 1)[1] for row in rows if not row.startswith("# |---")]
    told = [switch for cell in last for switch in re.findall(r"`([^`]+)`", cell) if switch not in (*LEARNERS, MODULE)]
    assert len(told) >= DIFFERING[chapter] and all(cell for cell in last)
    for switch in told:
        name, _, value = switch.partition(" = ")
        if name in ELSEWHERE and not hasattr(settings(chapter, "quick"), name):
            assert hasattr(ELSEWHERE[name](), name), switch
            continue
        assert hasattr(settings(chapter, "quick"), name), switch
        if value:
            given = parse(chapter, {name: value.strip('"')})
            assert getattr(settings(chapter, "quick", **given), name) == given[name], switch
