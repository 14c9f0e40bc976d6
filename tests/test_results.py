"""Records on disk, tables, selection and verdicts."""

from dataclasses import replace
from pathlib import Path

import pytest

from cllib import results
from cllib.errors import UserError
from cllib.experiments import choose, compare, grid, shape, together, vary
from cllib.results import Record, best, load, save, wide
from cllib.streams import plane_stream
from samples import LP, MH, STREAM, with_accuracy


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
    where = results.view("01_memory_head", "smoke")
    (where / "old.json").write_text("{}")
    assert where.is_relative_to(tmp_path) and not list(results.view("01_memory_head", "smoke").iterdir())


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
