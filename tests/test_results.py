"""Records on disk, tables, selection and verdicts."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllib import results
from cllib.errors import UserError
from cllib.experiments import choose, compare, grid, shape, together, vary
from cllib.results import Record, all_kept, best, load, save, wide
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


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 12},
        {"scenario": "task"},
        {"sortable": False},
        {"tests": STREAM.validations, "validations": STREAM.tests},
        {"tests": ()},
        {"experiences": STREAM.experiences[:-1]},
    ],
)
def test_data_hash_knows_what_is_which(change: dict) -> None:
    assert results.stream_hash(replace(STREAM, **change)) != results.stream_hash(STREAM)


def test_names_are_not_data() -> None:
    other = replace(STREAM, name="other", note="noted", whole=not STREAM.whole)
    assert results.stream_hash(other) == results.stream_hash(STREAM)
    first, second = (compare("x", stream, {"lp": LP}, [1])[0] for stream in (STREAM, other))
    assert first.runs == second.runs and (second.stream, second.note, second.whole) == ("other", "noted", other.whole)


def test_options_that_change_a_record_change_its_address() -> None:
    def run(**options: int) -> list[str]:
        return compare("x", STREAM, {"lp": LP}, [1], **options)[0].runs

    assert run() == run(eval_chunk=10_000, track_every=50) != run(eval_chunk=7)
    assert len({*run(), *run(track_every=10), *run(probe_every=5), *run(track_norms=True)}) == 4


def test_a_seed_that_was_run_twice_counts_once(tmp_path: Path) -> None:
    for seeds in ([1, 2, 3], [1, 2], [3]):
        compare("x", STREAM, {"lp": LP, "MH": MH}, seeds, store=tmp_path)
    pooled = all_kept(tmp_path)
    assert sorted((r.label, sorted(r.seeds)) for r in pooled) == [
        ("ClassicConfig vanilla", [1, 2, 3]),
        ("MemoryHeadConfig vanilla", [1, 2, 3]),
    ]
    assert all(len(r.test) == len(r.online) == len(r.confusion) == 3 for r in pooled)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([], "nothing to run"),
        ([1, 1], "each may be given once"),
        (["a"], "seeds = 'a'"),
        ([-1], "seeds = -1"),
        ([1.5], "1.5"),
    ],
)
def test_impossible_seeds_are_refused(seeds: list, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare("x", STREAM, {"lp": LP}, seeds)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"track_evry": 3}, "option = 'track_evry': allowed are track_every"),
        ({"order": "random"}, "order = 'random': allowed are published, own"),
        ({"device": "gpu"}, "device = 'gpu'"),
    ],
)
def test_misspelt_options_are_refused_even_where_the_run_is_kept(option: dict, message: str) -> None:
    compare("x", STREAM, {"lp": LP}, [1])
    with pytest.raises(UserError, match=message):
        compare("x", STREAM, {"lp": LP}, [1], **option)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a whole result"),
        ("[]", "not a whole result"),
        ('{"digest": "0", "records": "[]"}', "does not match its digest"),
    ],
)
def test_damaged_results_are_named(content: str, message: str, tmp_path: Path) -> None:
    compare("x", STREAM, {"lp": LP}, [1], store=tmp_path)
    path = next(tmp_path.rglob("records.json"))
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        compare("x", STREAM, {"lp": LP}, [1], store=tmp_path)


def test_the_result_of_another_run_is_refused(tmp_path: Path) -> None:
    for seed in (1, 2):
        compare("x", STREAM, {"lp": LP}, [seed], store=tmp_path)
    first, second = sorted(tmp_path.rglob("records.json"))
    second.write_text(first.read_text())
    with pytest.raises(UserError, match="result of another run"):
        all_kept(tmp_path)


@given(st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=12))
def test_other_labels_get_other_files_inside_the_folder(one: str, other: str) -> None:
    names = [results.file_name(text) for text in (one, other)]
    assert (names[0] == names[1]) == (one == other)
    for name in names:
        assert Path(name).name == name and name.strip(".") and "\0" not in name


def test_metrics_and_curves_as_tables(made: list[Record]) -> None:
    record = with_accuracy(made[0], [0.25, 0.75])
    record = replace(record, curve=[[[0.1, 0.2]], [[0.3, 0.4]]], steps=[7.0], masked=record.test)
    table = results.metrics_table([record], ("Acc", "t1", "masked Acc"))
    assert list(table.columns) == ["Acc", "t1", "masked Acc", "n"] and table.loc[record.label, "t1"].startswith(".500")
    curves = results.curves_table([record])
    assert curves[["seed", "step", "task", "accuracy"]].values.tolist() == [
        [0, 7, 1, 0.1],
        [0, 7, 2, 0.2],
        [1, 7, 1, 0.3],
        [1, 7, 2, 0.4],
    ]


def test_metrics_of_norms_and_of_tasks_have_names(made: list[Record]) -> None:
    record = replace(made[0], norms={"mean |w|": [[1.0, 2.0], [3.0, 4.0]]})
    assert record.metric("mean |w|").tolist() == [2.0, 4.0]
    with pytest.raises(KeyError):
        record.metric("nothing")
