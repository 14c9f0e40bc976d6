"""A real Ray cluster of two nodes on this machine: workers and a node are killed, and no bit changes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import click.testing
import nbformat
import pytest

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # a variable of Ray's: 127.0.0.1 stays what it is, on Linux too
os.environ["RAY_AUTH_MODE"] = "disabled"  # nobody else can reach it, and no token is left in a home folder
from ray.cluster_utils import Cluster

from cllib import chapters, cluster, sweeps
from cllib.cli import main
from cllib.errors import UserError
from sweeping import begun, children, same, swept, until

NAME = chapters.names()[0]
GRID = ("-p", "meta=0,0.5,1,1.35", "-p", "epochs_per_task=2", "--seeds", "10", "--checkpoint-every", "58")
NODE: dict[str, Any] = {"num_cpus": 1, "node_ip_address": "127.0.0.1"}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Two nodes of one core each; the first one is where the command runs."""
    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    made.add_node(**NODE)
    yield made
    made.shutdown()


def raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def training(node: Any) -> list[int]:
    """The workers of a node that have a run in hand."""
    return [pid for pid, command in children(raylet(node)) if command.startswith("ray::run")]


def disturb(nodes: Cluster, store: Path) -> None:
    """Kill a worker of each node in the middle of a run, then the second node."""
    (second,) = nodes.worker_nodes
    for node in (nodes.head_node, second):
        done = len(sweeps.finished(store))
        until(lambda: len(sweeps.finished(store)) > done + 1 and begun(store) and training(node))  # noqa: B023
        os.kill(training(node)[0], signal.SIGKILL)
    done = len(sweeps.finished(store))
    until(lambda: len(sweeps.finished(store)) > done + 1 and begun(store) and training(second))
    nodes.remove_node(second, allow_graceful=False)


def test_a_sweep_survives_the_loss_of_workers_and_of_a_node(nodes: Cluster, tmp_path: Path) -> None:
    store, straight = tmp_path / "store", tmp_path / "straight"
    killer = Thread(target=disturb, args=(nodes, store), daemon=True)
    killer.start()
    result = swept(store, *GRID, "--on", nodes.address)
    assert result.exit_code == 0, result.output
    killer.join()
    assert "4 points x 10 seeds = 40 runs: 0 kept, 40 missing" in result.stdout and not nodes.worker_nodes
    places = [line.partition(" goes on ")[2] for line in result.stderr.splitlines() if " goes on " in line]
    assert places and all(place.startswith("from experience ") for place in places)
    assert set(places) != {"from experience 0, step 0"}
    assert swept(straight, *GRID).exit_code == 0
    same(store, straight)
    assert all((folder / "checkpoint.pt").exists() for folder, _ in sweeps.current(store)), "final weights come too"
    again = swept(store, *GRID, "--dry-run")
    assert "40 kept, 0 missing" in again.stdout


HEAD = '# %% tags=["parameters"]\nprofile = None\n\n# %%\n'
CHAPTER = """
import os, signal, time
from cllib import runs
from cllib.contract import tiny_stream
from cllib.experiments import compare
from cllib.recipes import Recipe
before = [path.parent.name for path in runs.store().glob("*/records.json")]
(record,) = compare("x", tiny_stream(), {"naive": Recipe()}, [1], workers=1)
if not before:
    time.sleep(5)
    os.kill(os.getppid(), signal.SIGKILL)  # the worker that executes this
print(before == record.runs)
"""


def cllib(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])


def chapter(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / f"{NAME}.py").write_text(HEAD + text)
    return folder


def test_a_chapter_whose_worker_dies_goes_on_from_its_runs(
    nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "EVERY", 0.5)
    book, out = chapter(tmp_path / "book", CHAPTER), tmp_path / "out"
    result = cllib("run", NAME, "--profile", "smoke", "--book", book, "--out", out, "--on", nodes.address)
    assert result.exit_code == 0, result.output
    assert [path.name for path in (out / "smoke").glob("*.ipynb")] == [f"{NAME}.ipynb"]
    assert nbformat.read(out / "smoke" / f"{NAME}.ipynb", as_version=4).cells[-1].outputs[-1].text == "True\n"
    assert len(list(out.glob("runs/*/records.json"))) == 1
    again = cllib("run", NAME, "--profile", "smoke", "--book", book, "--out", out, "--on", nodes.address)
    assert again.exit_code == 0 and "unchanged, left as it is" in again.stdout


def test_a_failed_chapter_comes_back_too(nodes: Cluster, tmp_path: Path) -> None:
    book, out = chapter(tmp_path / "book", 'print("so far")\nraise ValueError("no luck")\n'), tmp_path / "out"
    result = cllib("run", NAME, "--profile", "smoke", "--book", book, "--out", out, "--on", nodes.address)
    assert result.exit_code == 1 and "ValueError: no luck" in result.stderr
    (path,) = (out / "smoke").glob("*.ipynb")
    assert path.name == f"{NAME}.failed.ipynb" and "so far" in path.read_text() and str(path) in result.stderr


def test_where_there_is_no_cluster_is_one_line(tmp_path: Path) -> None:
    result = swept(tmp_path / "store", "--on", "127.0.0.1:1")
    assert result.exit_code == 2 and "--on 127.0.0.1:1: no cluster there" in result.stderr
    assert not (tmp_path / "store").exists()


def test_a_finished_run_takes_no_checkpoint_of_a_straggler(tmp_path: Path) -> None:
    shelf = cluster.Shelf(str(tmp_path))
    for name, content in (("checkpoint.pt", b"last"), ("records.json", b"result"), ("checkpoint.pt", b"straggler's")):
        shelf.put(f"run/{name}", content)
    assert shelf.fetch("run/checkpoint.pt") == b"last"


def test_what_fits_on_a_cluster() -> None:
    assert cluster.fitting([{"CPU": 8.0}], 0) == 8
    assert cluster.fitting([{"CPU": 8.0}, {"CPU": 3.0}], 0, 4) == 2  # no chapter on two machines
    assert cluster.fitting([{"CPU": 64.0, "GPU": 2.0}], 0.25) == 8
    assert cluster.fitting([{"CPU": 3.0, "GPU": 2.0}], 0.25) == 3
    assert cluster.fitting([{"CPU": 9.0, "GPU": 3.0}], 0.7) == 3  # no run on two cards
    with pytest.raises(UserError, match="no machine of the cluster has them"):
        cluster.fitting([{"CPU": 8.0}, {"GPU": 1.0}], 0.5)
    with pytest.raises(UserError, match="8 CPUs and 0 of a GPU for each run"):
        cluster.fitting([{"CPU": 2.0}], 0, 8)
    with pytest.raises(UserError, match=r"1 CPUs and 0.5 of a GPU for each run: .* \(8 CPUs, 0 GPUs\)"):
        cluster.fitting([{"CPU": 8.0}], 0.5)
