"""Runs shared by several processes, and learners brought back from where runs are kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cllib import experiments, results
from cllib.checkpoints import digest
from cllib.contract import Noisy, tiny_stream
from cllib.datasets import digits
from cllib.errors import UserError
from cllib.experiments import compare, compare_orders, restored, untold
from cllib.learners.heads import LearnerConfig
from cllib.models.binary import BinaryMLP
from cllib.models.memory_head import MemoryHeadConfig
from cllib.models.networks import MLP
from cllib.recipes import Recipe
from cllib.results import MEASURED_FIELDS, Record
from cllib.streams import sequence, split
from cllib.threads import one_thread
from cllib.training import best, train

STREAM = tiny_stream()
BINARY = Recipe(
    network=BinaryMLP(hidden=(9,)), optimizer="metaplastic", meta=(2.0,), step_size=0.02, batch_size=6, epochs=2
)
TOLD = {"reset": True, "gamma": 1.1, "own_norms": True}


def untimed(record: Record) -> Record:
    """The record without what was measured by a clock."""
    return replace(record, seconds=0.0, cpu_seconds=0.0, peak_memory=0, energy={}, date="", commit="")


# --- processes ---


def test_records_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    learners: dict[str, Any] = {
        "binary": replace(BINARY, **TOLD),
        "noisy": Recipe("er", network=Noisy(), batch_size=6),
        "MH": LearnerConfig(MemoryHeadConfig(units=6, use_threshold=5, age_threshold=5)),
    }
    made = {}
    for workers in (1, 2):
        store = tmp_path / str(workers)
        made[workers] = compare("w", STREAM, learners, [1, 2], store=store, workers=workers, probe_every=3)
    assert [record.label for record in made[2]] == list(learners) and [record.n for record in made[2]] == [2, 2, 2]
    assert set(MEASURED_FIELDS) == {"seconds", "cpu_seconds", "peak_memory", "energy", "date", "commit", "processor"}
    assert [untimed(record) for record in made[1]] == [untimed(record) for record in made[2]]
    assert made[2][0].test != made[2][1].test and made[2][0].masked
    states = [
        {path.parent.name: digest(torch.load(path, weights_only=True)["state"]["learner"])
         for path in (tmp_path / str(workers)).rglob("checkpoint.pt")} for workers in (1, 2)
    ]  # fmt: skip
    assert states[0] == states[1] and len(states[0]) == 4, "the weights too"
    assert compare("w", STREAM, learners, [1, 2], store=tmp_path / "2", workers=1, probe_every=3) == made[2], "found"


def test_one_worker_is_one_thread() -> None:
    seen: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        compare("w", STREAM, {"a": BINARY}, [1], workers=1, watch=lambda *_: seen.append(torch.get_num_threads()))
        assert set(seen) == {1} and torch.get_num_threads() == 2
        seen.clear()
        compare("w", STREAM, {"a": BINARY}, [2], watch=lambda *_: seen.append(torch.get_num_threads()))
        assert set(seen) == {2}
    finally:
        torch.set_num_threads(before)


def test_a_failure_in_another_process_is_one_line(tmp_path: Path) -> None:
    learners = {"wrong": replace(BINARY, meta=(1.0, 2.0, 3.0)), "right": BINARY}
    with pytest.raises(UserError, match="give one coefficient, or one for each of the 2 layers"):
        compare("w", STREAM, learners, [1], store=tmp_path, workers=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers = 0: must be a whole number at least 1"),
        ({"workers": -1}, "workers = -1: must be a whole number at least 1"),
        ({"workers": 1.5}, "workers = 1.5: must be a whole number"),
        ({"workers": True}, "workers = True: must be a whole number"),
        ({"workers": "2"}, "workers = '2': must be a whole number"),
        ({"workers": 2, "watch": print}, "watch: not with workers = 2; leave one of them out"),
        ({"workers": 3, "log": print}, "log: not with workers = 3"),
    ],
)
def test_impossible_numbers_of_processes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare("w", STREAM, {"a": BINARY}, [1], **options)


def test_what_is_watched_may_be_shared_where_it_is_not() -> None:
    seen: list[int] = []
    compare("w", STREAM, {"a": BINARY}, [1], workers=1, watch=lambda step, _: seen.append(step))
    assert seen == list(range(25))


# --- learners brought back ---


@pytest.mark.parametrize(
    "recipe",
    [BINARY, replace(BINARY, **TOLD), Recipe("ewc", network=Noisy(), batch_size=6), Recipe("er", network=MLP((7,)))],
    ids=["naive", "taskwise", "ewc", "er"],
)
def test_a_learner_comes_back_as_it_was_at_the_end(recipe: Recipe, tmp_path: Path) -> None:
    with one_thread():
        (record,) = compare("r", STREAM, {"a": recipe}, [3, 4], store=tmp_path)
        for seed in (3, 4):
            learner = recipe.build(STREAM, seed)
            train(learner, STREAM, recipe.feed(STREAM, seed), progress=False)
            found = restored(recipe, STREAM, record, seed, tmp_path)
            assert digest(found.state_dict()) == digest(learner.state_dict())
            x = STREAM.tests[0].x
            assert torch.equal(found.predict(x), learner.predict(x)) and found.seed == seed


def test_a_learner_comes_back_from_the_usual_store() -> None:
    (record,) = compare("r", STREAM, {"a": BINARY}, [3])
    learner = restored(BINARY, STREAM, record, 3)
    wanted = [float(row) for row in record.test[0][-1]]
    x = [learner.predict(test.x).argmax(1) == test.y for test in STREAM.tests]
    assert [float(right.double().mean()) for right in x] == wanted


def test_learners_that_cannot_come_back_are_named(tmp_path: Path) -> None:
    (record,) = compare("r", STREAM, {"a": BINARY}, [3, 4], store=tmp_path)
    with pytest.raises(UserError, match=r"seed = 5: 'a' was run with \[3, 4\]"):
        restored(BINARY, STREAM, record, 5, tmp_path)
    with pytest.raises(UserError, match=r"checkpoint.pt: no such file; run 'a' again on this machine"):
        restored(BINARY, STREAM, record, 3, tmp_path / "elsewhere")
    path = tmp_path / record.runs[0] / "checkpoint.pt"
    other = tmp_path / record.runs[1] / "checkpoint.pt"
    other.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="checkpoint of another run"):
        restored(BINARY, STREAM, record, 4, tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="torn"):
        restored(BINARY, STREAM, record, 3, tmp_path)


def test_untold_learners_answer_with_the_last_norms(tmp_path: Path) -> None:
    recipe = replace(BINARY, **TOLD)
    (record,) = compare("untold", STREAM, {"own": recipe}, [1, 2], store=tmp_path, workers=1)
    found = untold(recipe, STREAM, record, tmp_path)
    for k, seed in enumerate(record.seeds):
        learner = restored(recipe, STREAM, record, seed, tmp_path).learner
        right = [
            [float((best(learner.predict(t.x), t.y, mask) == t.y).double().mean()) for t in STREAM.tests]
            for mask in (None, STREAM.masks())
        ]
        assert [found["given"][k], found["masked"][k]] == pytest.approx([sum(r) / len(r) for r in right])
    assert found["masked"].min() > found["given"].max()


def test_seeds_with_streams_of_their_own_make_one_record(tmp_path: Path) -> None:
    data = split(digits.labelled(), 5), split(digits.labelled(), 5, tuple(reversed(range(10))))
    streams = [replace(sequence("one", parts, "class"), note=f"class order {k}") for k, parts in enumerate(data)]
    recipe = Recipe(network=MLP((8,)), iterations=21)  # classes are not equally large: nor are the last batches
    of_seed = {0: streams[0], 1: streams[1], 2: streams[0]}
    told: dict[str, Any] = {"progress": False, "track_every": 100}
    (record,) = compare_orders("x", of_seed, {"naive": recipe}, tmp_path / "records", store=tmp_path, **told)
    assert sorted(record.seeds) == [0, 1, 2] and record.note == "class order drawn from each seed"
    for seed, stream in of_seed.items():
        (alone,) = compare("x", stream, {"naive": recipe}, [seed], store=tmp_path, **told)
        assert record.test[record.seeds.index(seed)] == alone.test[0]
        assert alone.online[0][: len(record.samples)] == record.online[record.seeds.index(seed)]
    assert len(results.load(tmp_path / "records")) == 1


def test_one_stream_for_all_seeds_is_plain_comparison(tmp_path: Path) -> None:
    stream, recipe = tiny_stream(), Recipe(network=MLP((8,)), iterations=2)
    told: dict[str, Any] = {"store": tmp_path, "progress": False}
    (joined,) = compare_orders("x", {1: stream, 2: stream}, {"naive": recipe}, **told)
    (plain,) = compare("x", stream, {"naive": recipe}, [1, 2], **told)
    assert joined == plain


def test_matrices_multiplied_in_half_the_bits_learn_about_the_same(tmp_path: Path) -> None:
    stream, told = tiny_stream(), {"store": tmp_path, "progress": False}
    whole = Recipe(network=MLP((16,)), batch_size=8, epochs=4, optimizer="adam", step_size=0.01)
    full, half = compare("x", stream, {"f": whole, "h": replace(whole, halved=True)}, [1], track_norms=True, **told)
    assert full.runs != half.runs and full.norms != half.norms
    for name, norms in full.norms.items():  # bfloat16 has 8 bits: single products are off by 2 ** -8 or so
        np.testing.assert_allclose(half.norms[name], norms, rtol=0.05)


def test_processes_are_sent_what_is_missing_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learners = {"naive": Recipe("naive", batch_size=5), "er": Recipe("er", batch_size=5)}
    first = compare("t", tiny_stream(), learners, [1, 2], store=tmp_path, workers=2)
    sent: list[object] = []
    monkeypatch.setattr(experiments, "apart", lambda program, *rest, **options: sent.append(program) or [])
    assert [r.test for r in compare("t", tiny_stream(), learners, [1, 2], store=tmp_path, workers=2)] == [
        r.test for r in first
    ]
    assert not sent


def test_a_stream_goes_to_other_processes_and_back() -> None:
    stream = tiny_stream()
    sent = experiments.packed(stream)
    assert all(isinstance(part.x, np.ndarray) for part in (*sent.experiences, *sent.tests))
    assert results.stream_hash(sent.map(lambda e: replace(e, x=torch.from_numpy(e.x), y=torch.from_numpy(e.y)))) == (
        results.stream_hash(stream)
    )
