"""What `cllib train` and `cllib report` print, and what they refuse."""

import json
from dataclasses import replace
from pathlib import Path

import click.testing
import numpy as np
import pandas as pd
import pytest

from cllib import metrics, report, results
from cllib.cli import main
from cllib.contract import tiny_stream
from cllib.experiments import compare
from cllib.learners import LEARNERS
from cllib.models.networks import MLP
from cllib.recipes import Recipe, parse
from cllib.results import Record, all_kept, pooled
from cllib.streams import merged
from cllib.training import excerpt

SMALL = ["-p", "train_size=8", "-p", "test_size=4", "-p", "hidden=8"]


def cllib(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, arguments)


@pytest.fixture
def networks(tmp_path: Path) -> list[Record]:
    learners = {name: Recipe(name, network=MLP((8,)), batch_size=8) for name in ("naive", "er")}
    return compare("table", tiny_stream(), learners, [1, 2, 3], "quick", store=tmp_path, probe_every=2)


def test_the_same_command_finds_its_runs_again(tmp_path: Path) -> None:
    command = ["train", "naive", "er", *SMALL, "--seeds", "2", "--store", str(tmp_path)]
    first, records = cllib(*command), sorted(tmp_path.rglob("records.json"))
    assert first.exit_code == 0 and len(records) == 4, first.output
    times = [path.stat().st_mtime_ns for path in records]
    again = cllib(*command)
    assert again.stdout == first.stdout and [path.stat().st_mtime_ns for path in records] == times
    cllib("train", "naive", *SMALL, "--seeds", "3", "--store", str(tmp_path))
    assert len(list(tmp_path.rglob("records.json"))) == 5, "only the missing seed was run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a learner; there are: naive"),
        (["icarl"], "learner = 'icarl': allowed are naive"),
        (["er", "-p", "bufer_size=3"], "bufer_size: no such setting here; allowed are kind"),
        (["naive", "-p", "buffer_size=3"], "buffer_size: no such setting here"),
        (["er", "-p", "buffer_size=0"], "buffer_size = 0: must be a whole number at least 1"),
        (["er", "-p", "buffer_size=few"], "buffer_size = 'few': must be a whole number"),
        (["er", "-p", "epochs=0"], "epochs = 0"),
        (["er", "-p", "scenario=open"], "scenario = 'open': allowed are class, task, domain"),
        (["er", "-p", "datasets=svhn"], "datasets = 'svhn': allowed are digits"),
        (["er", "-p", "network=resnet"], "network = 'resnet': allowed are mlp, cnn"),
        (["er", "-p", "dropout=2"], "dropout = 2.0"),
        (["er", "-p", "experiences=3"], "experiences = 3: 10 classes divide into 1, 2, 5, 10"),
        (["er", "-p", "kind=split", "-p", "datasets=mnist", "-p", "data_dir=/nonexistent"], "/nonexistent"),
        (["er", "-p", "batch_size"], "write -p NAME=VALUE"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], message: str) -> None:
    result = cllib("train", *arguments)
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_settings_reach_their_place() -> None:
    pairs = {"buffer_size": "7", "hidden": "5,6", "step_size": "0.3", "kind": "permuted", "scenario": "domain"}
    stream, recipes = parse(("er", "naive"), pairs)
    assert stream.kind == "permuted" and recipes["er"].settings.buffer_size == 7
    assert all(r.network == MLP((5, 6)) and r.step_size == 0.3 for r in recipes.values())


def test_report_has_every_run_definition_and_ledger(
    networks: list[Record], made: list[Record], tmp_path: Path, own_artifacts: Path
) -> None:
    results.save(made, own_artifacts / "quick" / "records" / "01_memory_head")
    said = cllib("report", "--store", str(tmp_path), "--csv", str(tmp_path / "all.csv")).stdout
    assert "naive" in said and "er" in said and " ± " in said
    for name in metrics.METRICS:
        assert f"  {name} " in said
    assert "01_memory_head: 0 reproduced" in said and "mechanism only" in said
    table = pd.read_csv(tmp_path / "all.csv")
    assert len(table) == 2 and table["n"].tolist() == [3, 3]
    assert {"Acc", "Acc ±", "min-ACC", "WC-ACC", "seconds", "joules", "kept", "commit", "runs"} <= set(table)


def test_the_worst_case_is_at_most_the_average_and_its_images_are_counted(networks: list[Record]) -> None:
    for record in networks:
        assert (record.metric("WC-ACC") <= record.metric("Acc") + 1e-9).all()
        assert (record.metric("min-ACC") <= record.metric("Stab") + 1e-9).all()
        sizes = [len(part) for part in excerpt(tiny_stream().tests, 400)]
        assert record.excerpts == [sizes] * 3 and record.excerpt == sum(sizes)
    assert report.runs_table(networks)["curve on"].tolist() == [sum(sizes)] * 2
    assert f"({sum(sizes)} in all)" in report.whole(networks, Path("nowhere"))


@pytest.mark.parametrize("every", [1, 2, 3])
def test_what_happens_at_a_border_counts(tmp_path: Path, every: int) -> None:
    """GDumb learns nothing but at borders, where its network is trained anew."""
    settings = LEARNERS["gdumb"].Settings(buffer_size=12, memory_epochs=30)
    made = {"gdumb": Recipe("gdumb", settings, MLP((8,)), batch_size=8, step_size=0.3)}
    (record,) = compare("t", tiny_stream(), made, [1, 2, 3], store=tmp_path, probe_every=1, exam_every=every)
    assert record.measuring["exam_every"] == every
    low, final = record.metric("min-ACC"), np.asarray(record.test)[:, -1, :-1].mean(-1)
    assert (low <= final + 1e-9).all() and (record.metric("WC-ACC") <= record.metric("Acc") + 1e-9).all()


def test_one_experience_forgets_nothing_that_could_be_said(tmp_path: Path) -> None:
    learners = {"naive": Recipe("naive", network=MLP((8,)), batch_size=8)}
    first = replace(tiny_stream(), experiences=tiny_stream().experiences[:1], tests=tiny_stream().tests[:1])
    one = compare("one", first, learners, [1, 2], store=tmp_path, probe_every=2)
    table = report.runs_table(one)
    assert table[["Forg", "Stab", "Bwd", "Fwd", "Trade-off", "WC-ACC", "min-ACC"]].isna().all().all()
    line = report.readable(table).splitlines()[-1]
    assert line.count("n/a") == 2, line  # Forg (Chaudhry) and WC-ACC
    assert results.metrics_table(one, ["Acc", "Forg"])["Forg"].item().startswith("n/a")


def test_report_without_runs_says_so(tmp_path: Path) -> None:
    assert "No run is kept yet" in cllib("report", "--store", str(tmp_path)).stdout


def test_numbers_of_the_table_are_those_of_the_records(networks: list[Record]) -> None:
    row = report.runs_table(networks).iloc[1]
    mean, half = metrics.interval(networks[1].metric("Acc"))
    assert (row["Acc"], row["Acc ±"]) == (round(mean, 4), round(half, 4))
    assert row["kept"] == sum(networks[1].bytes.values()) > row["network"]
    assert row["seconds"] == pytest.approx(networks[1].seconds / 3, abs=0.01)


def test_seeds_are_pooled_and_settings_are_not(networks: list[Record], tmp_path: Path) -> None:
    kept = all_kept(tmp_path)
    assert sorted((r.label, r.n) for r in kept) == [("er", 3), ("naive", 3)]
    assert sorted(kept[0].seeds) == [1, 2, 3]
    other = compare("table", tiny_stream(), {"er": Recipe("er", network=MLP((9,)), batch_size=8)}, [1], store=tmp_path)
    assert len(pooled([*networks, *other])) == 3
    assert networks[0].seconds == pytest.approx(sum(r.seconds for r in compare_single(tmp_path)), abs=0.01)


def compare_single(store: Path) -> list[Record]:
    """The naive runs of the fixture one by one."""
    learner = {"naive": Recipe("naive", network=MLP((8,)), batch_size=8)}
    return [compare("table", tiny_stream(), learner, [s], store=store, probe_every=2)[0] for s in (1, 2, 3)]


def test_a_damaged_record_in_the_store_is_named(networks: list[Record], tmp_path: Path) -> None:
    path = next(tmp_path.rglob("records.json"))
    path.write_text(json.dumps([{"label": "half"}]))
    result = cllib("report", "--store", str(tmp_path))
    assert result.exit_code == 2 and f"{path}: not a whole result" in result.stderr


def test_rows_that_share_a_name_say_in_what_they_differ(tmp_path: Path) -> None:
    for size in (5, 6):
        learner = {"er": Recipe("er", LEARNERS["er"].Settings(buffer_size=size), MLP((8,)), batch_size=8)}
        compare("x", tiny_stream(), learner, [1], store=tmp_path)
    said = cllib("report", "--store", str(tmp_path)).stdout
    assert "buffer_size 5" in said and "buffer_size 6" in said and "step_size" not in said


def test_curves_on_other_excerpts_are_not_pooled(tmp_path: Path) -> None:
    learner = {"naive": Recipe(network=MLP((8,)), batch_size=8)}
    compare("x", tiny_stream(), learner, [1, 2], store=tmp_path)
    compare("x", tiny_stream(), learner, [3], store=tmp_path, probe_size=6)
    assert sorted(r.n for r in all_kept(tmp_path)) == [1, 2]
    assert "probe_size 6" in cllib("report", "--store", str(tmp_path)).stdout


@pytest.mark.parametrize("option", ["batch_size=99999999999999999999999", "hidden=99999999999"])
def test_numbers_too_large_end_in_one_line(option: str, tmp_path: Path) -> None:
    result = cllib("train", "er", "-p", option, "--store", str(tmp_path))
    assert result.exit_code == 2 and "too large for this machine" in result.stderr, result.output


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = cllib("report", "--store", str(tmp_path / "nowhere"))
    assert result.exit_code == 2 and "no such folder" in result.stderr


def test_odd_runs_do_not_stop_the_report(tmp_path: Path) -> None:
    stream, learner = tiny_stream(), {"naive": Recipe(network=MLP((8,)), batch_size=8)}
    compare("x", merged(stream), learner, [1], store=tmp_path)
    compare("x", stream, learner, [1], store=tmp_path, track_norms=True)
    compare("x", stream, learner, [2], store=tmp_path, probe_every=0)
    compare("x", replace(stream, tests=()), learner, [2], store=tmp_path)
    result = cllib("report", "--store", str(tmp_path))
    assert result.exit_code == 0 and "tiny, merged" in result.stdout, result.output
