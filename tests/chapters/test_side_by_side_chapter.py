"""Chapter 6: all methods on the same streams, with the same bytes; settings from other data; own images."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cllib import chapters
from cllib.chapters.side_by_side import METHODS, SETTINGS_OF, TRIED, SideBySideChapter
from cllib.errors import UserError
from cllib.experiments import compare_orders
from cllib.learners import LEARNERS
from cllib.learners.heads import LearnerConfig
from cllib.recipes import Recipe
from cllib.results import Record
from cllib.streams import SCENARIOS
from cllib.threads import one_thread

BASELINES = ("naive", "joint", "er", "der++", "agem", "mir", "gdumb", "ewc", "si", "lwf")


def small(**changes: object) -> SideBySideChapter:
    settings: SideBySideChapter = chapters.settings("06_side_by_side", "smoke", **{"seeds": 1, **changes})
    return settings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Record]]]:
    """Every method in every scenario, tiny."""
    store = tmp_path_factory.mktemp("store")
    p, found = small(scenarios=SCENARIOS, memory=100), dict[str, list[Record]]()
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setenv("CLLIB_ARTIFACTS", str(store))
        for scenario in p.scenarios:
            for sees in ("pixels", "features"):
                streams = p.streams(scenario, sees)
                configs = p.configs(streams[p.seed], sees)
                found.setdefault(scenario, []).extend(compare_orders("t", streams, configs, store=store, probe_every=5))
        yield found


def test_every_paper_and_every_baseline_takes_part() -> None:
    p = small()
    stream = p.stream(p.labelled(), "class", 0)
    features = p.streams("class", "features")[0]
    configs = {name: m.make(p, stream if m.sees == "pixels" else features) for name, m in METHODS.items()}
    learners = {c.learner for c in configs.values() if isinstance(c, Recipe)}
    assert set(BASELINES) | {"birt", "generative", "latent"} <= learners <= set(LEARNERS)
    assert isinstance(configs["Memory Head"], LearnerConfig)
    assert configs["metaplasticity"].optimizer == "metaplastic"  # type: ignore[union-attr]
    assert {method.chapter for method in METHODS.values()} == {0, 1, 2, 3, 4, 5}


def test_all_run_in_every_scenario(made: dict[str, list[Record]]) -> None:
    for scenario, records in made.items():
        assert [r.label for r in records] == list(METHODS), scenario
        for record in records:
            assert np.isfinite(record.test).all() and not any(record.diverged), record.label


def test_a_buffer_is_as_large_as_allowed_and_no_larger(made: dict[str, list[Record]]) -> None:
    """Equal memory in bytes. Buffers that the few samples here do not fill are left out by looking at one that is."""
    p = small(memory=40, train_size=30)
    stream = p.stream(p.labelled(), "class", 0)
    with one_thread():
        names = ("ER", "A-GEM", "MIR", "DER++", "GDumb", "BiRT")
        configs = {name: METHODS[name].make(p, stream) for name in names}
        records = compare_orders("bytes", {0: stream}, configs)
    for record in records:
        held = record.bytes["buffer"]
        assert held <= 40 * 1024, record.label
        least = 0.5 if record.label in ("BiRT", "GDumb") else 0.95  # equal shares of classes leave some empty
        assert held > least * 40 * 1024, record.label
    for records in made.values():
        assert all(r.bytes.get("buffer", 0) <= 100 * 1024 for r in records)
        head = next(r for r in records if r.label == "Memory Head")
        assert 0.5 * 100 * 1024 < sum(head.bytes.values()) <= 100 * 1024


def test_all_that_learn_by_batches_take_as_many_steps(made: dict[str, list[Record]]) -> None:
    for records in made.values():
        others = [r for r in records if r.label not in ("latent replay", "Memory Head")]
        assert len({tuple(r.ends) for r in others}) == 1


def test_every_seed_has_a_class_order_of_its_own_and_all_methods_the_same() -> None:
    p = small(seeds=3)
    pixels, features = p.streams("class"), p.streams("class", "features")
    firsts = []
    for seed, stream in pixels.items():
        assert [len(task) for task in stream.experiences] == [len(task) for task in features[seed].experiences]
        assert all((a.y == b.y).all() for a, b in zip(stream.experiences, features[seed].experiences, strict=True))
        firsts.append(stream.experiences[0].x.float().mean().item())
    assert len(set(firsts)) == 3


def test_a_sample_that_does_not_fit_is_refused() -> None:
    p = small(memory=1)
    with pytest.raises(UserError, match="memory = 1: a stored sample takes 2056 bytes, and there must be 10 of them"):
        METHODS["BiRT"].make(p, p.stream(p.labelled(), "class", 0))
    features = p.streams("class", "features")[0]
    with pytest.raises(
        UserError, match="memory = 1: a stored sample takes 4104 bytes, and there must be 1 of them: give 5 KiB"
    ):
        p.held(features)


# --- settings from other data ---


def test_settings_are_chosen_on_other_data() -> None:
    assert small().elsewhere.data == "clothes" and replace(small(), data="clothes").elsewhere.data == "digits"
    assert not small().elsewhere.train_size


def test_what_was_given_is_not_tried() -> None:
    assert set(small().tried()) == set(SETTINGS_OF)
    p = small(ewc=5.0, head_lr=0.01)
    assert "EWC" not in p.tried()
    assert len(p.tried()["Memory Head"]) == len(TRIED["head_match"])
    assert p.value("ewc") == 5.0


def test_the_best_mean_over_scenarios_is_taken() -> None:
    p = small(methods=("SI", "Memory Head"), reference="SI")
    points = {method: list(labels) for method, labels in p.tried().items()}
    rows = [
        (method, label, scenario, k == 1 + (scenario == "task") * (method == "SI"))
        for method, labels in points.items()
        for k, label in enumerate(labels)
        for scenario in ("class", "task", "domain")
    ]
    best = p.with_best(pd.DataFrame(rows, columns=["method", "point", "scenario", "accuracy"]))
    assert best.si == TRIED["si"][1]
    assert (best.head_lr, best.head_match) == (TRIED["head_lr"][0], TRIED["head_match"][1])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"methods": ("ER", "magic")}, "magic"),
        ({"scenarios": ()}, "scenarios"),
        ({"scenarios": ("online",)}, "online"),
        ({"reference": "BiRT", "methods": ("ER",)}, "reference = 'BiRT': allowed are ER"),
        ({"data": "folder"}, "data_dir"),
        ({"data": "folder", "data_dir": "no such place"}, "no such place"),
        ({"scenarios": ("class", "class")}, "each may be named once"),
        ({"memory": 0}, "memory = 0"),
        ({"ewc": -1.0}, "ewc = -1"),
        ({"head_lr": 0.0}, "head_lr = 0"),
        ({"tasks": 0}, "tasks = 0"),
    ],
)
def test_impossible_values_are_answered_in_one_line(given: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        small(**given)
    assert "\n" not in str(caught.value)


def test_classes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="experiences = 3: 10 classes divide into 1, 2, 5, 10"):
        small(tasks=3).streams("class")


# --- the reader's own images ---


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four classes of tiny pictures, each a colour."""
    draws = np.random.default_rng(0)
    for k, name in enumerate(("ash", "beech", "cedar", "elm")):
        (tmp_path / "my_images" / name).mkdir(parents=True)
        for i in range(6 + 3 * k):  # classes of different sizes, as people have them
            picture = draws.integers(0, 60, (20, 24, 3)) + np.array([60 * k, 180 - 60 * k, 90])
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(tmp_path / "my_images" / name / f"{i}.png")
    return tmp_path / "my_images"


def test_own_images_go_through_all_methods(images: Path, one_thread: None) -> None:
    p = small(data="folder", data_dir=str(images), tasks=2, train_size=None, seeds=2)
    for sees in ("pixels", "features"):
        streams = p.streams("class", sees)
        assert len({len(stream.experiences[0]) for stream in streams.values()}) == 2
        configs = p.configs(streams[0], sees)
        records = compare_orders("mine", streams, configs, probe_every=2)
        assert [r.label for r in records] == list(configs)
        assert all(r.n == 2 and np.isfinite(r.test).all() for r in records)


def test_one_class_a_task_leaves_nothing_to_ask() -> None:
    with pytest.raises(UserError, match="tasks = 10: one class a task leaves nothing to ask in scenario = 'domain'"):
        small(tasks=10).streams("domain")
    assert len(small(tasks=10).streams("class")[0].experiences) == 10


def test_nobody_stores_more_than_there_is() -> None:
    p = small(memory=10**7)
    stream = p.stream(p.labelled(), "class", 0)
    assert p.held(stream) == len(stream)


def test_images_take_a_byte_a_pixel_where_they_came_so() -> None:
    p = small(data="clothes", train_size=40)
    stream, features = p.stream(p.labelled(), "class", 0), p.streams("class", "features")[0]
    assert p.held(stream) == min(600 * 1024 // (784 + 8), len(stream))
    assert p.held(features) == 600 * 1024 // (4 * 1024 + 8)
    assert METHODS["ER"].make(p, stream).settings.dtype == "pixels"  # type: ignore[union-attr]
    assert METHODS["ER on features"].make(p, features).settings.dtype == "float32"  # type: ignore[union-attr]


def test_a_budget_below_one_memory_unit_is_refused() -> None:
    p = small(memory=10)
    with pytest.raises(UserError, match="memory = 10: a memory unit takes"):
        METHODS["Memory Head"].make(p, p.streams("class", "features")[0])
