"""How long a sweep should take, and how that is known."""

from dataclasses import replace
from pathlib import Path

import pytest

from cllib import durations, results, sweeps
from cllib.experiments import Program, key_of
from cllib.learners.heads import LearnerConfig
from cllib.models.memory_head import MemoryHeadConfig
from cllib.models.networks import MLP
from cllib.recipes import Recipe
from samples import STREAM

META = "02_metaplasticity"
PLAIN = Recipe(network=MLP((8,)))


def kind(*configs, seeds=(1,), device="cpu", stream="digits") -> str:
    return durations.kind({**key_of(Program(configs, seeds), "data", device), "stream": stream})


def test_a_kind_is_what_costs_the_same() -> None:
    assert kind(PLAIN) == kind(replace(PLAIN, step_size=0.7)) == kind(replace(PLAIN, epochs=9), seeds=(5,))
    others = [
        replace(PLAIN, network=MLP((9,))),
        replace(PLAIN, learner="er", settings=None),
        replace(PLAIN, batch_size=5),
    ]
    assert len({kind(config) for config in (PLAIN, *others)}) == 4
    assert kind(PLAIN) != kind(PLAIN, device="cuda")
    assert kind(PLAIN) != kind(PLAIN, stream="clothes")
    head = LearnerConfig(MemoryHeadConfig())
    assert kind(head, seeds=(1, 2)) == kind(head, replace(head, step_size=0.3)) != kind(head)


def test_steps_are_batches_or_samples() -> None:
    assert durations.steps(Program((LearnerConfig(MemoryHeadConfig()),), (1,)), STREAM) == len(STREAM)
    recipe = replace(PLAIN, iterations=7)
    assert durations.steps(Program((recipe,), (1,)), STREAM) == 7 * len(STREAM.experiences)


def test_kept_runs_say_how_long_others_take(tmp_path: Path) -> None:
    told = {"epochs_per_task": "2"}
    first = sweeps.jobs(sweeps.paired(sweeps.grid(META, "smoke", {"meta": "0"}), [0], "cpu"), "cpu")
    assert "from a few steps of each kind" in durations.estimate(first, tmp_path, 2)
    assert (
        durations.estimate(first, tmp_path, 2, measure=False) == "how long: not known, for no run of the kind is kept"
    )
    assert sweeps.attempt(first[0], tmp_path) is None
    folder = tmp_path / first[0].address
    (record,) = results.kept(folder) or []
    results.keep([replace(record, seconds=10.0 * record.ends[-1])], folder)  # ten seconds a step
    more = sweeps.jobs(sweeps.paired(sweeps.grid(META, "smoke", {"meta": "1,2", **told}), [0, 1], "cpu"), "cpu")
    steps = sum(durations.steps(job.program, job.stream) for job in more)
    said = durations.estimate(more, tmp_path, 2, measure=False)
    told = f"about {durations.readable(10 * steps / 2)} with 2 workers, from kept runs of the kind"
    assert said == f"{told}, and some seconds to start"
    alone = durations.estimate(more[:1], tmp_path, 2, measure=False)
    assert alone.startswith(f"about {durations.readable(10 * steps / 4)} with"), "one run cannot be shared"


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0 s"), (100, "100 s"), (150, "2.5 min"), (9000, "2.5 h"), (200_000, "2.3 days")]
)
def test_seconds_as_people_say_them(seconds: float, said: str) -> None:
    assert durations.readable(seconds) == said
