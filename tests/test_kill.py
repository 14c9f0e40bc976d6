"""Real processes, killed with SIGKILL at random moments: the same command ends with the same bits."""

import multiprocessing
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cllib.checkpoints import digest, read
from cllib.contract import candidates, tiny_stream
from cllib.experiments import Config, compare
from cllib.learners import LEARNERS
from cllib.learners.er import ER
from cllib.results import MEASURED_FIELDS, Record, all_kept

KILLS = 8  # of each learner below, 80 in all
SEED = 3
# Replay, teachers, anchors, frozen parts, many runs at once, borders of tasks, latents that wait for their place,
# dreams, a network that grows.
KILLED = (
    "er",
    "der++",
    "ewc",
    "lwf",
    "cwr*",
    "mh der++",
    "metaplastic",
    "latent",
    "brain-inspired",
    "birt transformer",
)
processes = multiprocessing.get_context("forkserver")  # forked from a process that has imported, and done nothing else
processes.set_forkserver_preload(["cllib.contract", "torch._dynamo"])  # the latter: optimisers import it at first use


class Forgetful(ER):
    """ER that does not save its memory's generators: the negative control."""

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        del state["memory"]["draws"], state["memory"]["picks"]
        return state

    def load_state_dict(self, state: Any) -> None:
        fresh = {"draws": self.memory.draws.get_state(), "picks": self.memory.picks.get_state()}
        super().load_state_dict({**state, "memory": {**state["memory"], **fresh}})


def config_of(name: str) -> Config:
    LEARNERS["forgetful"] = Forgetful
    if name == "forgetful":
        return replace(candidates()["er"], learner=name, epochs=20)
    config = candidates()[name]
    return replace(config, epochs=20) if hasattr(config, "epochs") else config


def work(name: str, store: Path, begun: Any = None) -> None:
    """The command that is killed and given again: some hundred steps, each of them saved."""

    def watch(step: int, learner: Any) -> None:
        if begun is not None:
            begun.set()

    options: dict[str, Any] = {"store": store, "checkpoint_every": 1, "progress": False, "watch": watch}
    compare("kill", tiny_stream(), {name: config_of(name)}, [SEED], **options)


def start(name: str, store: Path, begun: Any = None) -> multiprocessing.process.BaseProcess:
    process = processes.Process(target=work, args=(name, store, begun))
    process.start()
    return process


def kill(name: str, store: Path, after: float) -> bool:
    """Start the work, kill it so many seconds after its first step; False if it was done before."""
    begun = processes.Event()
    process = start(name, store, begun)
    while not begun.is_set() and process.is_alive():
        time.sleep(0.001)
    time.sleep(after)
    process.kill()
    process.join()
    return not finished(store)


def kill_often(name: str, store: Path, kills: int, seed: int) -> None:
    """Kill the work at random moments until it was hit so often, each time further on; then let it end."""
    chance, hits, longest = random.Random(seed), 0, 0.2
    while hits < kills:
        if kill(name, store, chance.uniform(0, longest)):
            hits += 1
        else:  # it was done: start over, and be quicker
            longest /= 2
            for path in [*store.rglob("records.json"), *store.rglob("checkpoint.pt")]:
                path.unlink()
    process = start(name, store)
    process.join()
    assert process.exitcode == 0


def finished(store: Path) -> bool:
    return bool(list(store.rglob("records.json")))


def outcome(store: Path) -> tuple[Record, dict[str, str]]:
    """The record without what was measured by a clock, and digests of the parts of the final state."""
    (record,) = all_kept(store)
    states = {}
    for path in store.rglob("checkpoint.pt"):
        state = read(path, path.parent.name)
        for name in ("elapsed", "memory"):
            del state["history"][name]
        states = {name: digest(part) for name, part in state.items()}
    same = replace(record, seconds=0.0, cpu_seconds=0.0, peak_memory=0, energy={}, date="", commit="")
    assert set(MEASURED_FIELDS) == {"seconds", "cpu_seconds", "peak_memory", "energy", "date", "commit", "processor"}
    return same, states


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """name -> outcome of a run that nobody disturbed."""

    @cache
    def run(name: str) -> tuple[Record, dict[str, str]]:
        store = tmp_path_factory.mktemp("straight")
        process = start(name, store)
        process.join()
        assert process.exitcode == 0
        return outcome(store)

    yield run


@pytest.mark.parametrize("name", KILLED)
def test_killed_runs_end_with_the_same_bits(name: str, straight: Any, tmp_path: Path) -> None:
    kill_often(name, tmp_path, KILLS, seed=len(name))
    assert outcome(tmp_path) == straight(name)
    assert not list(tmp_path.rglob(".*.tmp")), "temporaries of killed processes were not removed"


def test_negative_control_a_learner_that_forgets_its_generators_ends_elsewhere(straight: Any, tmp_path: Path) -> None:
    assert kill("forgetful", tmp_path, 0.1)
    process = start("forgetful", tmp_path)
    process.join()
    (record, states), (wanted, states_wanted) = outcome(tmp_path), straight("forgetful")
    assert states["learner"] != states_wanted["learner"] and record != wanted


def test_two_processes_share_one_run(straight: Any, tmp_path: Path) -> None:
    pair = [start("der++", tmp_path) for _ in range(2)]
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1 and outcome(tmp_path) == straight("der++")


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    work("naive", tmp_path)
    (path,) = tmp_path.rglob("records.json")
    written, steps = path.stat().st_mtime_ns, list[int]()

    def watch(step: int, learner: Any) -> None:
        steps.append(step)

    options: dict[str, Any] = {"store": tmp_path, "checkpoint_every": 1, "watch": watch}
    (record,) = compare("again", tiny_stream(), {"n": config_of("naive")}, [SEED], **options)
    assert not steps and path.stat().st_mtime_ns == written and (record.experiment, record.label) == ("again", "n")
