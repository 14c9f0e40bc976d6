"""Records on disk, tables, selection and verdicts."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllib import results
from cllib.contract import tiny_stream
from cllib.errors import UserError
from cllib.experiments import choose, compare, grid, shape, together, vary
from cllib.learners import LEARNERS
from cllib.metrics import interval
from cllib.models.convit import ConViT
from cllib.recipes import Recipe
from cllib.results import Record, all_kept, best, load, save, wide
from cllib.streams import plane_stream
from cllib.training import train
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
    with pytest.raises(UserError, match=r"lp~\w{8}\.json: not a whole run record"):
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


# --- moments ---

ONE = {"before": [[[0.5, 0.1], [0.4, 0.8]]], "f_s": [[[0.6, 0.0], [0.2, 0.9]]]}
TWO = {"before": [[[0.7, 0.1], [0.6, 1.0]]], "f_s": [[[0.8, 0.0], [0.0, 0.3]]]}


def test_metrics_of_moments_have_names(made: list[Record]) -> None:
    record = replace(made[0], seeds=[1, 2], moments={name: [*ONE[name], *TWO[name]] for name in ONE})
    assert record.metric("before: Acc").tolist() == pytest.approx([0.6, 0.8])
    assert record.metric("f_s: Acc").tolist() == pytest.approx([0.55, 0.15])
    assert record.metric("before: t1").tolist() == pytest.approx([0.4, 0.6])
    assert record.metric("f_s: s2").tolist() == pytest.approx([0.55, 0.15])
    assert record.metric("f_s: Stab").tolist() == pytest.approx([0.2, 0.0])
    assert record.metric("Acc").shape == (3,), "of the tests, as ever"
    for wrong in ("after: Acc", "before: nothing", "before: t3", "Acc: before"):
        with pytest.raises(KeyError):
            record.metric(wrong)


def single(record: Record, seed: int, moments: dict) -> Record:
    first = next(results.one_by_one(record))
    return replace(first, seeds=[seed], moments=moments, runs=[f"run {seed}"], seconds=1.0)


def test_moments_are_pooled_and_taken_apart_by_seed(made: list[Record]) -> None:
    one, two = single(made[0], 7, ONE), single(made[0], 8, TWO)
    (both,) = results.pooled([one, two])
    assert both.seeds == [7, 8] and both.moments == {name: [*ONE[name], *TWO[name]] for name in ONE}
    apart = list(results.one_by_one(both))
    assert [part.moments for part in apart] == [ONE, TWO] and [part.seeds for part in apart] == [[7], [8]]
    (again,) = results.pooled([both, two])
    assert again.seeds == [7, 8] and again.moments == both.moments, "a seed that was run twice counts once"
    (turned,) = results.pooled([replace(two, moments=dict(reversed(TWO.items()))), one])
    assert turned.moments == {name: [*TWO[name], *ONE[name]] for name in ONE}


def test_records_with_other_moments_are_not_pooled(made: list[Record]) -> None:
    one, two = single(made[0], 7, ONE), single(made[0], 8, {"before": TWO["before"]})
    assert [record.seeds for record in results.pooled([one, two])] == [[7], [8]]


def test_moments_reach_the_record_and_the_disk(tmp_path: Path) -> None:
    network = ConViT(patch=2, dim=8, heads=2, layers=2)
    settings = LEARNERS["birt"].Settings(buffer_size=6, tune_epochs=1, ema_rate=0.5)
    recipe = Recipe("birt", settings, network, optimizer="adamw", step_size=0.01, batch_size=8)
    stream = tiny_stream()
    (record,) = compare("moments", stream, {"birt": recipe}, [1, 2], "quick", store=tmp_path / "store")
    assert record.moments.keys() == {"before fine-tuning", "semantic memory"}
    for k, seed in enumerate(record.seeds):
        outcome = train(recipe.build(stream, seed), stream, recipe.feed(stream, seed), progress=False)
        for name, rows in record.moments.items():
            assert np.allclose(rows[k], outcome.moments[name][0], atol=1e-4)
    assert record.metric("semantic memory: Acc incremental").shape == (2,)
    save([record], tmp_path / "saved")
    assert load(tmp_path / "saved") == [record]


# --- paired differences ---


def of_paired(record: Record, label: str, values: list[float], **changes) -> Record:
    return with_accuracy(record, values, experiment=changes.pop("experiment", "main"), label=label, **changes)


def test_differences_are_paired_by_seed(made: list[Record]) -> None:
    base = of_paired(made[0], "base", [0.1, 0.5, 0.9])
    runs = [
        base,
        of_paired(made[0], "up", [0.2, 0.61, 1.0]),
        of_paired(made[0], "down", [0.0, 0.39, 0.8]),
        of_paired(made[0], "noisy", [0.9, 0.1, 0.8]),
        of_paired(made[0], "same", [0.1, 0.5, 0.9]),
    ]
    pairs = [("main", label, "base") for label in ("up", "down", "noisy", "same")]
    table = results.paired(runs, pairs, "here")
    assert list(table.columns) == ["runs", "difference", "mean", "half-width", "n", "verdict"]
    assert table["difference"].tolist() == ["up - base", "down - base", "noisy - base", "same - base"]
    assert table["verdict"].tolist() == ["better", "worse", "cannot be told", "cannot be told"]
    assert set(table["runs"]) == {"here"} and set(table["n"]) == {3}
    for row, values in zip(table.itertuples(), ([0.1, 0.11, 0.1], [-0.1, -0.11, -0.1]), strict=False):
        mean, half = interval(values)
        assert row[3:5] == pytest.approx((mean, half)) and half < abs(mean)
    # differences of .1 among values .4 apart: unpaired, nothing could be told
    assert interval([0.2, 0.61, 1.0])[1] > 0.9


def test_what_cannot_be_paired_is_left_out(made: list[Record]) -> None:
    base = of_paired(made[0], "base", [0.1, 0.2])
    one = [of_paired(made[0], label, [0.1], experiment="single") for label in ("a", "base")]
    runs = [
        base,
        of_paired(made[0], "better", [0.3, 0.41]),
        replace(of_paired(made[0], "other seeds", [0.3, 0.4]), seeds=[5, 6]),
        of_paired(made[0], "elsewhere", [0.3, 0.4], experiment="noise"),
        *one,
    ]
    pairs = [("main", label, "base") for label in ("other seeds", "elsewhere", "never run", "better")]
    pairs += [("main", "base", "never run"), ("single", "a", "base"), ("noise", "elsewhere", "base")]
    assert results.paired(runs, pairs, "x")["difference"].tolist() == ["better - base"]
    empty = results.paired(runs, pairs[:3], "x")
    assert not len(empty) and "verdict" in empty.columns


def test_any_metric_can_be_paired(made: list[Record]) -> None:
    one, two = (of_paired(made[0], label, [0.5, 0.5]) for label in ("one", "two"))
    moments = {"before": [[[0.0, 0.0], [0.2, 0.4]], [[0.0, 0.0], [0.4, 0.4]]]}
    one = replace(one, moments={"before": (np.array(moments["before"]) + 0.25).tolist()})
    two = replace(two, moments=moments)
    table = results.paired([one, two], [("main", "one", "two")], "x", "before: Acc")
    assert table["mean"].tolist() == pytest.approx([0.25]) and table["verdict"].tolist() == ["better"]
    assert results.paired([one, two], [("main", "one", "two")], "x")["mean"].tolist() == [0]


def test_against_pairs_by_seed_and_corrects_for_the_number_of_rows(made: list[Record]) -> None:
    base = replace(made[0], label="base", seeds=[1, 2, 3, 4])

    def shifted(label: str, *by: float) -> Record:
        tests = [[[0.5, 0.0], [0.5 + d, 0.5 + d]] for d in by]
        return replace(base, label=label, test=tests)

    base = shifted("base", 0, 0, 0, 0)
    other = replace(shifted("other seeds", 0, 0, 0, 0), seeds=[1, 2, 3, 5])
    rows = [
        shifted("up", 0.2, 0.21, 0.2, 0.19),
        shifted("noisy", 0.2, -0.2, 0.1, 0.0),
        shifted("down", -0.1, -0.11, -0.1, -0.1),
        base,
        other,
    ]
    table = results.against(rows, "base")
    assert list(table.index) == ["up", "noisy", "down"]
    assert list(table["verdict"]) == ["better", "cannot be told", "worse"]
    assert table.loc["up", "difference"] == pytest.approx(0.2)
    alone = results.against([base, rows[0]], "base").loc["up", "p, corrected"]
    assert alone < 0.001 and table.loc["up", "p, corrected"] > alone  # three were compared


def test_what_equals_the_reference_cannot_be_told_from_it(made: list[Record]) -> None:
    twin = replace(made[0], label="twin")
    table = results.against([made[0], twin], made[0].label)
    assert list(table["verdict"]) == ["cannot be told"] and table["p, corrected"].item() == 1


def test_lowest_accuracies_are_metrics_of_a_record(made: list[Record]) -> None:
    curve = [[[1.0, 0.0], [0.2, 1.0], [0.6, 1.0]]]
    one = replace(made[0], seeds=[1], test=[[[1.0, 0.0], [0.6, 1.0]]], curve=curve, steps=[2, 3, 4], ends=[2, 4])
    assert one.metric("min-ACC") == pytest.approx([0.2])
    assert one.metric("WC-ACC") == pytest.approx([0.5 * 1.0 + 0.5 * 0.2])
    fell = replace(one, test=[[[1.0, 0.0], [0.1, 1.0]]])
    assert fell.metric("min-ACC") == pytest.approx([0.1]) and fell.metric("WC-ACC") == fell.metric("Acc")
    seldom = replace(one, test=[[[0.1, 1.0]]], measuring={"exam_every": 2})
    assert seldom.metric("min-ACC") == pytest.approx([0.1])
    for none in (replace(one, curve=[]), replace(one, curve=[[]]), replace(one, test=[[[0.6], [0.6]]])):
        assert np.isnan(none.metric("min-ACC")).all() and np.isnan(none.metric("WC-ACC")).all()


def test_what_cannot_be_told_apart_is_no_worse(made: list[Record]) -> None:
    """Of one experience forgetting is not defined, nor is a difference of it."""
    one = replace(made[0], test=[[[0.5]]] * made[0].n)
    pair = results.paired(
        [one, replace(one, label="twin")], [(one.experiment, one.label, "twin")], "one experience", "Forg"
    )
    assert pair["verdict"].tolist() == ["cannot be told"] and results.short(pair["mean"].item()) == "n/a"


def test_runs_over_tasks_of_other_sizes_are_one_record(made: list[Record]) -> None:
    """Class orders differ, so tasks do, and steps with them: still one record a learner, its curve on one grid."""
    short = replace(
        made[0], seeds=[1], data="a", steps=[2, 4, 7, 10], ends=[4, 10], curve=[[[0.1], [0.2], [0.3], [0.4]]]
    )
    long = replace(
        short, seeds=[2], data="b", steps=[1, 2, 6, 9, 12], ends=[6, 12], curve=[[[k / 10] for k in range(5)]]
    )
    both = [
        replace(r, **{n: getattr(r, n)[:1] for n in results.PER_SEED if n not in ("seeds", "curve")})
        for r in (short, long)
    ]
    (record,) = results.across(both)
    assert record.seeds == [1, 2] and (record.steps, record.ends) == ([2, 4, 7, 10], [4, 10])
    assert record.curve == [[[0.1], [0.2], [0.3], [0.4]], [[0.1], [0.2], [0.3], [0.4]]]
    assert results.progress(long).tolist() == pytest.approx([1 / 6, 2 / 6, 1, 1.5, 2])


def test_what_is_tried_live_does_not_touch_the_records_of_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(results.RECORDS, str(results.artifacts() / "quick" / "records" / "01_memory_head"))
    copy = results.view("01_memory_head", "quick")
    (copy / "a.json").touch()
    monkeypatch.setattr(results, "watched", lambda: True)  # a notebook that `cllib run` has opened, say
    live = results.view("01_memory_head", "quick")
    monkeypatch.setattr(results, "watched", lambda: False)
    monkeypatch.delenv(results.RECORDS)
    plain = results.view("01_memory_head", "quick")  # papermill by itself
    assert len({live, copy, plain}) == 3 and (copy / "a.json").exists()


def test_two_processes_never_show_records_from_one_folder(tmp_path: Path) -> None:
    here = results.view("01_memory_head", "quick")
    (here / "a.json").touch()
    command = "from cllib import results; print(results.view('01_memory_head', 'quick'))"
    other = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout.strip()
    assert other == f"{here}-2" and (here / "a.json").exists()
    assert results.view("01_memory_head", "quick") == here  # again its own, emptied


def test_one_sentence_names_the_best_and_who_differs(made: list[Record]) -> None:
    base = replace(made[0], label="base", seeds=[1, 2, 3], test=[[[0.5, 0.0], [0.5, 0.5]]] * 3)
    better = replace(base, label="better", test=[[[0.5, 0.0], [0.7 + d, 0.7]] for d in (0, 0.01, 0.02)])
    told = results.told_apart([base, better], "base")
    assert (
        told
        == "highest mean: better, .705 ± .012; better than base: better; worse: none; not to be told from it: none."
    )
    assert results.told_apart([base], "nobody") == "highest mean: base, .500 ± .000."
