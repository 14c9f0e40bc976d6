"""Sweeps by processes of this machine: what is asked for, what is missing, and that no kill changes a bit."""

import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import click.testing
import pandas as pd
import pytest

from cllib import chapters, local, sweeps
from cllib.cli import main
from cllib.experiments import Program, compare, described
from cllib.learners.heads import LearnerConfig
from cllib.results import kept, stream_hash
from sweeping import alive, begun, children, ended, results_of, same, sweep, swept, until

META = "02_metaplasticity"
HEADS = "01_memory_head"


def cllib(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, ["sweep", *(str(argument) for argument in arguments)])


# --- what is asked for ---


@pytest.mark.parametrize("name", chapters.names())
def test_every_chapter_has_a_single_run(name: str) -> None:
    settings = chapters.settings(name, "smoke")
    stream, config = settings.single(settings.seed)
    again, same = chapters.settings(name, "smoke").single(settings.seed)
    assert again is stream and described(same) == described(config)
    learner, feed = Program((config,), (3,)).start(sweeps.flattened(stream) if name == HEADS else stream, "cpu")
    assert learner.seed == 3 and feed.steps(0) > 0


def test_streams_with_classes_in_a_drawn_order_differ_by_seed() -> None:
    settings = chapters.settings("04_brain_inspired_replay", "smoke", order="drawn")
    streams = [settings.single(seed)[0] for seed in (0, 1, 0)]
    assert streams[0] is streams[2] and stream_hash(streams[0]) != stream_hash(streams[1])


def test_values_are_axes_and_a_list_is_written_with_colons() -> None:
    found = sweeps.axes(META, {"meta": "0,0.5:1, 1.35", "reset": "true", "lr": "none"})
    assert found == {
        "meta": {"0": (0.0,), "0.5:1": (0.5, 1.0), "1.35": (1.35,)},
        "reset": {"true": True},
        "lr": {"none": None},
    }
    points = sweeps.grid(META, "smoke", {"meta": "0,1", "lr": "0.1,0.2,0.3", "decay": "0"})
    assert [point.name for point in points] == [f"meta={m} lr={lr}" for m in "01" for lr in ("0.1", "0.2", "0.3")]
    assert [(p.settings.meta, p.settings.lr, p.settings.decay) for p in points][4] == ((1.0,), 0.2, 0.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["99"], "chapter = '99': allowed are 01_memory_head"),
        ([META, "--profile", "huge"], "profile = 'huge': allowed are smoke, quick, paper"),
        ([META, "-p", "nope=1"], "has no parameter 'nope'"),
        ([META, "-p", "meta=0,x"], "meta = 'x': must be a number"),
        ([META, "-p", "meta=0,-1"], "meta = -1.0: must be a number at least 0"),
        ([META, "-p", "meta=1:2:3:4:5:6,0"], "one for each of the"),
        ([META, "-p", "meta=0,,1"], "a value is missing between the commas"),
        ([META, "-p", "meta=0,0"], "each value may be given once"),
        ([META, "-p", "meta=0.5,.5"], "each value may be given once"),
        ([META, "-p", "seeds=3"], "for a sweep, give --seeds"),
        ([META, "-p", "lr=0.1", "-p", "lr=0.2"], "lr is given twice"),
        (
            [META, "-p", "metas=0:1,0:2"],
            "metas=0:2 and metas=0:1 are one and the same run: between them metas changes nothing",
        ),
        ([META, "--gpus", "0.5"], "--gpus 0.5: only with --on"),
        ([META, "--gpus", "0.5", "--on", "local", "--device", "cpu"], "--gpus 0.5: not with --device cpu"),
        ([META, "--on", "ray://somewhere:1"], "it must be one of the cluster's"),
        ([META, "--on", "127.0.0.1:1234", "--workers", "2"], "--workers 2: at an address the cluster's nodes say"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = cllib("--profile", "smoke", *arguments, "--store", tmp_path / "store")
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert said in line and not (tmp_path / "store").exists()


def test_only_listing_runs_nothing(tmp_path: Path) -> None:
    result = cllib(META, "--profile", "smoke", "-p", "meta=0,1.35", "--seeds", 3, "--store", tmp_path, "--dry-run")
    assert result.exit_code == 0, result.output
    head, *points, how = result.stdout.splitlines()
    assert head == f"{META}, smoke profile, cpu: 2 points x 3 seeds = 6 runs: 0 kept, 6 missing"
    assert points == ["  meta=0: 3 missing", "  meta=1.35: 3 missing"]
    assert how.startswith("6 programs, about") and "from a few steps of each kind" in how
    assert not list(tmp_path.iterdir())


def test_many_points_are_not_listed_one_by_one() -> None:
    points = sweeps.grid(META, "smoke", {"lr": ",".join(f"0.{k:02d}" for k in range(1, 31))})
    pairs = sweeps.paired(points, [0, 1], "cpu")
    lines = sweeps.listing(pairs, {pairs[0].key: ()}).splitlines()
    assert lines[0] == "30 points x 2 seeds = 60 runs: 1 kept, 59 missing"
    assert lines[1] == "  lr=0.01: 1 kept, 1 missing" and lines[-1] == "  ... and 10 more points" and len(lines) == 22


# --- what is missing ---


def test_what_a_chapter_has_run_is_not_run_again(tmp_path: Path) -> None:
    settings = chapters.settings(META, "smoke")
    stream, recipe = settings.single(1)
    compare("own", stream, {"own": recipe}, [1], store=tmp_path, workers=1, **Program((recipe,), (1,)).defaults())
    (pair,) = sweeps.paired(sweeps.grid(META, "smoke", {}), [1], "cpu")
    assert pair.key in sweeps.finished(tmp_path)
    (other,) = sweeps.paired(sweeps.grid(META, "smoke", {"lr": "0.006"}), [1], "cpu")
    assert other.key not in sweeps.finished(tmp_path)


def test_runs_of_other_libraries_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cllib(META, "--profile", "smoke", "--seeds", 1, "--store", tmp_path, "--workers", 1).exit_code == 0
    assert len(sweeps.finished(tmp_path)) == 1
    monkeypatch.setattr("cllib.runs.versions", lambda: {"python": "4", "torch": "9", "numpy": "9"})
    assert sweeps.finished(tmp_path) == {}


def grown(store: Path, *steps: tuple[str, int]) -> None:
    for values, seeds in steps:
        told = (
            "-p",
            f"step_size={values}",
            "--seeds",
            seeds,
            "--store",
            store,
            "--workers",
            1,
            "--csv",
            f"{store}.csv",
        )
        assert cllib(HEADS, "--profile", "smoke", *told).exit_code == 0


def test_a_batched_sweep_grows_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    at_once, bit_by_bit = tmp_path / "once", tmp_path / "grown"
    grown(at_once, ("0.1,0.05,0.01", 3))
    grown(bit_by_bit, ("0.1,0.05", 2), ("0.1", 2), ("0.1,0.05,0.01", 3))
    (one,) = at_once.glob("*/records.json")
    assert len(kept(one.parent) or []) == 3, "nine runs in one program"
    sizes = sorted((len(made), made[0].n) for path in bit_by_bit.glob("*/records.json") if (made := kept(path.parent)))
    assert sizes == [(1, 3), (2, 1), (2, 2)], "the missing ones alone"
    found = results_of(bit_by_bit)
    assert len(found) == 9 and found == results_of(at_once)
    tables = [pd.read_csv(f"{store}.csv") for store in (at_once, bit_by_bit)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert len(tables[0]) == 3 and set(tables[0]["n"]) == {3} and tables[0]["Acc"].nunique() == 3


def test_large_batches_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "TOGETHER", 4)
    pairs = sweeps.paired(sweeps.grid(HEADS, "smoke", {"step_size": "1,2,3", "units": "4,5"}), [1, 2], "cpu")
    made = sweeps.jobs(pairs, "cpu")
    assert sorted(job.runs for job in made) == [2, 2, 4, 4] and len({job.address for job in made}) == 4
    for job in made:
        units = {config.head.units for config in job.program.configs if isinstance(config, LearnerConfig)}  # type: ignore[union-attr]
        assert len(units) == 1 and job.program.seeds == (1, 2)
    first = next(sweeps.batched(pairs))
    left = sweeps.jobs([pair for pair in pairs if pair not in first], "cpu")  # as if the first program were done
    assert {job.address for job in left} == {job.address for job in made[1:]}


# --- what happens to runs ---


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    told = (META, "--profile", "smoke", "-p", "meta=0,1.35", "--seeds", 2, "--store", tmp_path, "--workers", 1)
    pairs = sweeps.paired(sweeps.grid(META, "smoke", {"meta": "0,1.35"}), [0, 1], "cpu")
    bad = sweeps.jobs(pairs, "cpu")[2]
    (tmp_path / bad.address).mkdir()
    (tmp_path / bad.address / "checkpoint.pt").write_bytes(b"half a checkp")
    result = cllib(*told)
    assert result.exit_code == 1 and "1 failed" in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("meta=1.35, seed 0: ")]
    assert "checkpoint.pt: torn" in line and re.search(r"^\s*1\.35\s+1\s", result.stdout, re.M)
    assert len(sweeps.finished(tmp_path)) == 3
    (tmp_path / bad.address / "checkpoint.pt").unlink()
    again = cllib(*told)
    assert again.exit_code == 0 and "4 runs: 3 kept, 1 missing" in again.stdout


GRID = ("-p", "meta=0,1.35", "-p", "epochs_per_task=40", "--seeds", "2", "--checkpoint-every", "87")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that nobody disturbed."""
    store = tmp_path_factory.mktemp("straight") / "store"
    assert swept(store, *GRID).exit_code == 0
    return store


def workers(pid: int) -> list[int]:
    """The processes that train: forked from one that the command has started."""
    return [worker for child, _ in children(pid) for worker, _ in children(child) if alive(worker)]


def kill_one(store: Path) -> None:
    """Kill a process in the middle of a run."""
    until(lambda: begun(store))
    (worker,) = workers(os.getpid())
    os.kill(worker, signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_its_run_goes_on(straight: Path, tmp_path: Path) -> None:
    killer = Thread(target=kill_one, args=(tmp_path / "store",), daemon=True)
    killer.start()
    result = swept(tmp_path / "store", *GRID, "--workers", "1")
    killer.join()
    assert result.exit_code == 0, result.stderr
    (place,) = re.findall(r"its process died, SIGKILL; it goes on from experience (\d+), step (\d+)", result.stderr)
    assert place != ("0", "0")
    same(tmp_path / "store", straight)


class Deadly(str):
    """A device that no process survives being told of."""

    def __reduce__(self) -> Any:
        return os.abort, ()


def test_a_run_that_kills_every_worker_is_given_up_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "RETRIES", 1)
    pairs = sweeps.paired(sweeps.grid(META, "smoke", {"meta": "0,1.35"}), [0], "cpu")
    bad, good = sweeps.jobs(pairs, "cpu")
    bad = replace(bad, device=Deadly("cpu"))
    assert dict(local.perform([bad, good], tmp_path, 1)) == {bad: "its process died 2 times, SIGABRT", good: None}


def test_a_killed_command_leaves_no_process_and_goes_on(straight: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for how in (signal.SIGKILL, signal.SIGINT):  # Ctrl-C goes to the whole group
        start = time.time_ns()
        command = sweep(store, *GRID, "--workers", "2")
        until(lambda: begun(store, start) and len(workers(command.pid)) == 2)  # noqa: B023
        trainers = workers(command.pid)
        os.killpg(command.pid, how) if how == signal.SIGINT else command.kill()
        assert ended(command)[0] != 0
        until(lambda: not any(alive(child) for child in trainers))  # noqa: B023
        assert len(sweeps.finished(store)) < 4
    assert swept(store, *GRID).exit_code == 0
    same(store, straight)


def test_other_code_is_refused_before_a_step_is_done(tmp_path: Path) -> None:
    (pair,) = sweeps.paired(sweeps.grid(META, "smoke", {"meta": "0"}), [0], "cpu")
    (job,) = sweeps.jobs([pair], "cpu")
    why = sweeps.attempt(replace(job, address="0" * 16), tmp_path)
    assert why is not None and why.startswith(f"run as {job.address}, not as 0000") and not list(tmp_path.iterdir())


def test_a_damaged_result_is_named_and_the_others_are_shown(straight: Path, tmp_path: Path) -> None:
    shutil.copytree(straight, tmp_path / "store")
    path = next((tmp_path / "store").glob("*/records.json"))
    path.write_text(path.read_text()[:-50])
    result = swept(tmp_path / "store", *GRID)
    assert result.exit_code == 1 and "not a whole result" in result.stderr and "Acc" in result.stdout
    for text in ("[]", "null", '"x"', ""):
        (path.parent / "parameters.json").write_text(text)
        assert "3 kept, 1 missing" in swept(tmp_path / "store", *GRID, "--dry-run").stdout


def test_runs_that_diverged_are_marked(straight: Path) -> None:
    pairs = sweeps.paired(sweeps.grid(META, "smoke", {"meta": "0", "epochs_per_task": "40"}), [0], "cpu")
    (found, *_), _ = sweeps.gathered(pairs, straight)
    lost = found[0], replace(found[1], diverged=[True])
    assert "diverged" not in sweeps.table([found]) and sweeps.table([lost])["diverged"].tolist() == [1]
    assert "diverged" in sweeps.readable(sweeps.table([lost]))


def test_a_folder_is_no_place_for_a_table(tmp_path: Path) -> None:
    told = ["sweep", META, "--profile", "smoke", "--store", str(tmp_path / "store"), "--csv", str(tmp_path)]
    result = click.testing.CliRunner().invoke(main, told)
    assert result.exit_code == 2 and "is a folder; name a file" in result.stderr
