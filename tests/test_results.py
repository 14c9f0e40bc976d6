"""Records on disk, tables, selection and verdicts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cllib import results
from cllib.errors import UserError
from cllib.experiments import choose, compare, grid, shape, together, vary
from cllib.learners.heads import LearnerConfig
from cllib.models.classic import ClassicConfig
from cllib.models.memory_head import MemoryHeadConfig
from cllib.results import Claim, Record, allowed, best, claims, judge, ledger, load, readable, save, wide
from cllib.streams import plane_stream, thinned

STREAM = thinned(plane_stream("modes-cdi"), 25)
LP, MH = LearnerConfig(ClassicConfig("lp")), LearnerConfig(MemoryHeadConfig())


WHOLE = replace(STREAM, whole=True)  # as if it were all of it


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    where = tmp_path_factory.mktemp("runs")
    return compare("table", WHOLE, {"lp": LP, "MH m=16": MH}, [1, 2, 3], "quick", where)


def with_accuracy(record: Record, values: list[float], **changes) -> Record:
    """The record with the last row of every seed's matrix set to one accuracy."""
    test = np.zeros((len(values), 2, 2))
    test[:, -1] = np.array(values)[:, None]
    return replace(record, test=test.tolist(), seeds=list(range(len(values))), **changes)


def test_records_survive_the_disk(made: list[Record], tmp_path: Path) -> None:
    save(made, tmp_path)
    assert sorted(load(tmp_path), key=lambda r: r.label) == sorted(made, key=lambda r: r.label)
    record = made[1]
    assert record.learner["head"]["model"] == "MemoryHeadConfig" and record.n == 3
    assert record.metric("Acc").shape == (3,) and record.validation_accuracy().shape == (3,)
    assert set(record.versions) >= {"python", "torch"} and len(record.data) == 16


def test_data_hash_tells_streams_apart(made: list[Record]) -> None:
    other = replace(
        STREAM, experiences=(replace(STREAM.experiences[0], x=STREAM.experiences[0].x + 1e-6), *STREAM.experiences[1:])
    )
    assert results.stream_hash(STREAM) == made[0].data != results.stream_hash(other)


def test_damaged_record_is_named(made: list[Record], tmp_path: Path) -> None:
    save(made[:1], tmp_path)
    path = next(tmp_path.rglob("*.json"))
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"lp\.json: not a whole run record"):
        load(tmp_path)


def test_unwritable_folder_is_named(made: list[Record], tmp_path: Path) -> None:
    (tmp_path / "table").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="table"):
        save(made, tmp_path)


def test_a_chapter_starts_with_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLLIB_ARTIFACTS", str(tmp_path))
    where = results.fresh_folder("01_memory_head", "smoke")
    (where / "old.json").write_text("{}")
    assert where.is_relative_to(tmp_path) and not list(results.fresh_folder("01_memory_head", "smoke").iterdir())


def test_numbers_share_a_program_and_structure_does_not() -> None:
    groups = together({"a": MH, "b": vary(MH, step_size=0.3, key_step=0.2), "c": vary(MH, units=8), "d": LP})
    assert [list(group) for group in groups] == [["a", "b"], ["c"], ["d"]]
    assert shape(MH) == shape(vary(MH, sharpness=1, weight_decay=0.1)) != shape(vary(MH, top=1))


def test_programs_do_not_change_a_run(made: list[Record]) -> None:
    (alone,) = compare("table", STREAM, {"MH m=16": MH}, [2], "quick", None)
    assert alone.test[0] == made[1].test[1]


def test_grid_labels_every_point() -> None:
    points = grid("MH", MH, step_size=(0.1, 1), top=(1, 2))
    assert list(points)[1] == "MH @ step_size=0.1 top=2"
    assert points["MH @ step_size=1 top=1"].head.top == 1 and len(points) == 4


def test_best_by_test_and_by_validation_with_its_tie_rule(made: list[Record]) -> None:
    def point(rho: float, test: float, validation: float) -> Record:
        matrix = [[[validation]] * 2] * 2
        return with_accuracy(
            replace(made[0], learner={**made[0].learner, "step_size": rho}, validation=matrix),
            [test] * 2, label=f"lp @ rho={rho}",
        )  # fmt: skip

    points = [point(1.0, 0.2, 0.9), point(0.1, 0.5, 0.9), point(0.01, 0.8, 0.3)]
    assert best(points, "test")[0].learner["step_size"] == 0.01
    assert best(points, "validation")[0].learner["step_size"] == 0.1  # of the tied, the smaller step
    assert best(points, "test")[0].label == "lp"


def test_choose_returns_the_configuration_that_validates_best() -> None:
    points = grid("lp", LP, step_size=(1e-9, 0.3))  # a head that hardly learns, and one that does
    stream = replace(plane_stream("modes-iid"), validations=plane_stream("modes-iid").tests)
    assert choose("settings", stream, points, [1], profile="quick", where=None).step_size == 0.3


def test_wide_table_keeps_order_and_shows_intervals(made: list[Record]) -> None:
    shown = wide([with_accuracy(made[0], [0.5, 0.6, 0.7]), with_accuracy(made[1], [1.0])])
    assert list(shown.index) == ["lp", "MH m=16"]
    assert shown.loc["lp", "modes-cdi"] == ".600\u00a0±\u00a0.248"
    assert shown.loc["MH m=16", "modes-cdi"] == "1.000\u00a0±\u00a0n/a"


VALUE = Claim("source", "text", "table", "modes-cdi", "Acc", "lp", value=0.6, std=0.01, n=3)
ORDER = Claim("source", "text", "table", "modes-cdi", "Acc", "MH m=16", worse="lp")


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [([0.6, 0.61, 0.59], "reproduced"), ([0.8, 0.81, 0.79], "not reproduced"), ([0.4, 0.41, 0.39], "not reproduced")],
)
def test_values_are_judged_on_both_sides(made: list[Record], accuracies: list[float], verdict: str) -> None:
    assert judge(VALUE, [with_accuracy(made[0], accuracies)])["verdict"] == verdict


def test_orders_are_judged_by_pairs(made: list[Record]) -> None:
    worse = with_accuracy(made[0], [0.1, 0.5, 0.9])
    close = with_accuracy(made[1], [0.15, 0.56, 0.94])  # overlapping spreads, but better for every seed
    assert judge(ORDER, [worse, close])["verdict"] == "reproduced"
    assert judge(ORDER, [worse, with_accuracy(made[1], [0.9, 0.5, 0.1])])["verdict"] == "not reproduced"
    assert judge(ORDER, [close])["verdict"] == "not run"


def test_small_runs_and_stand_ins_show_a_mechanism_only(made: list[Record]) -> None:
    good = with_accuracy(made[0], [0.6, 0.6])
    assert judge(VALUE, [replace(good, profile="smoke")])["verdict"] == "mechanism only"
    assert judge(VALUE, [replace(good, whole=False)])["verdict"] == "mechanism only"
    assert judge(VALUE, [with_accuracy(made[0], [0.6])])["verdict"] == "mechanism only"
    elsewhere = replace(VALUE, stream="ns-imagenet", stand_ins=("modes-cdi",))
    row = judge(elsewhere, [good])
    assert row["verdict"] == "mechanism only" and row["stream"] == "modes-cdi"
    assert judge(elsewhere, [replace(good, stream="ns-imagenet")])["verdict"] == "reproduced"
    assert judge(VALUE, [])["verdict"] == "not run"


def test_tolerance_has_a_floor_and_a_ceiling() -> None:
    assert allowed(np.array([0.5, 0.5, 0.5]), replace(VALUE, std=None)) == results.TOLERANCE[0]
    assert allowed(np.array([0.1, 0.5, 0.9]), VALUE) == results.TOLERANCE[1]


def test_tolerance_is_the_half_width_of_the_difference() -> None:
    ours, t = np.array([0.58, 0.60, 0.62]), 4.302653
    known = np.hypot(t * 0.02 / 3**0.5, t * 0.01 / 3**0.5)
    assert allowed(ours, VALUE) == pytest.approx(known, abs=1e-6)
    assert allowed(ours, replace(VALUE, std=None)) == pytest.approx(t * 0.02 * (2 / 3) ** 0.5, abs=1e-6)
    single = allowed(ours / 2, replace(VALUE, std=None, n=1))  # one published run may lie anywhere among ours
    assert single == pytest.approx(t * 0.01 * (1 + 1 / 3) ** 0.5, abs=1e-6)


def test_ledger_of_the_chapter_is_whole(made: list[Record]) -> None:
    told = claims("01_memory_head")
    assert len(told) == len(set((c.source, c.text, c.metric) for c in told)) > 100
    judged = ledger("01_memory_head", made)
    assert len(judged) == len(told) and set(judged["verdict"]) <= set(results.MARKS)
    shown = readable(judged)
    assert len(shown) == len(told) and not shown.astype(str).apply(lambda column: column.str.contains("n/a|nan")).any(
        axis=None
    )
    sources = results.published("01_memory_head")["sources"]
    assert {claim.source for claim in told} <= set(sources)


def test_published_figure_is_copied_right() -> None:
    """Spot checks of the published table (chapter 1, rules 5 a)."""
    values = {c.text: (c.value, c.std) for c in claims("01_memory_head")}
    assert values["CNU, modes-ci: Acc .965"] == (0.965, 0.008)
    assert values["moe, moons-cdid: Acc .445"] == (0.445, 0.065)
    assert json.loads((results.PUBLISHED / "01_memory_head.json").read_text())["tables"][0]["n"] == 3
