"""Runs that were measured beforehand: every row that a chapter shows or speaks of is found again by today's code."""

import re
from itertools import accumulate

import pytest

from cllib import chapters, results
from cllib.notebooks import BOOK
from cllib.results import MEASURED, Record

# What prose and cells name: by chapter the experiment, the stream and the labels of committed records.
NAMED: dict[str, list[tuple[str, str, tuple[str, ...]]]] = {
    "01_memory_head": [("images", "ns-cifar100", ("MH", "CNU", "lp", "mlp", "er_reservoir"))],
    "02_metaplasticity": [
        ("controls", "pFMNIST x3", ("metaplastic", "m=0", "m=0, lr / 5", "wrong sign", "shuffled sizes")),
        ("controls", "pFMNIST x3", ("both directions", "decay 0", "shared norms", "running norms")),
        ("tiny transformers", "pFMNIST x3", ("vit, matrices, m=0", "bvit, binary, m=10", "hybrid, matrices, m=30")),
    ],
    "03_latent_replay": [
        ("main", "mini-79", ("images replayed",)),
        ("main, F = 4", "mini-79", ("latent replay", "latent replay, no CWR*", "CWR* only", "naive", "cumulative")),
        ("stores, 4 epochs a batch", "mini-79", ("float32", "int8")),
        ("released, 4 epochs a batch", "mini-79", ("all that is released", "as it should be", "duplicate ids (B1)")),
    ],
    "04_brain_inspired_replay": [
        ("main", "split MNIST, class", ("BI-R", "s-GR", "none", "joint", "SI")),
        ("bfloat16", "split MNIST, class", ("BI-R",)),
        ("reference", "digits, class", tuple(f"reconstructions, {w}" for w in ("1e-6", "1e-2", ".1", "1"))),
        ("reference", "digits, class", tuple(f"repulsion, JS, {w}" for w in ("1e-6", "1e-2", ".1", "1", "100"))),
    ],
    "05_birt": [
        ("main", "digits, 5 tasks", ("BiRT", "image replay", "representation replay", "DER++", "joint")),
        ("reference", "digits, 5 tasks", ("labels .5, shares", "all noises, A 1, shares", "no noise, shares")),
        ("reference", "digits, 5 tasks", ("A 1 alone, shares", "all noises, A .1, shares", "no noise, no teacher")),
    ],
}  # fmt: skip


@pytest.mark.parametrize("chapter", NAMED)
def test_every_row_that_a_chapter_names_is_there(chapter: str) -> None:
    made = {(r.experiment, r.stream, r.label) for r in results.load(MEASURED / chapter)}
    assert not {(e, s, label) for e, s, labels in NAMED[chapter] for label in labels} - made


def test_the_quick_chapter_3_finds_its_run_that_replays_images() -> None:
    """By the settings, data and seeds of today, as the cell does that concludes beside it."""
    p = chapters.settings("03_latent_replay", "quick")
    told = {"label": "images replayed", "learner": p.replaying_images().describe(), "seeds": p.runs}
    told["data"] = results.stream_hash(p.stream_config().build())
    (record,) = results.same(results.load(MEASURED / "03_latent_replay"), **told)
    assert record.masked and record.n == 3


def test_the_quick_chapter_4_finds_its_long_runs_beside_their_twin() -> None:
    p = chapters.settings("04_brain_inspired_replay", "quick")
    stream, feed = p.stream(), p.methods()["BI-R"].feed(p.stream(), 0)
    ends = list(accumulate(feed.steps(e) for e in range(len(stream.experiences))))
    told = {"experiment": "reference", "stream": stream.name, "seeds": p.runs, "ends": ends}
    found = results.same(results.load(MEASURED / "04_brain_inspired_replay"), **told)
    assert len(found) >= len(NAMED["04_brain_inspired_replay"][-1][-1])


@pytest.mark.parametrize("chapter", NAMED)
def test_nothing_measured_beforehand_is_looked_up_without_a_word(chapter: str) -> None:
    """A cell that picks committed records by their values says so where there are none (`results.same`)."""
    text = (BOOK / f"{chapter}.py").read_text()
    assert not re.findall(r"for r in measured\s+if", text)


def test_records_are_whole() -> None:
    every: list[Record] = [record for chapter in NAMED for record in results.load(MEASURED / chapter)]
    assert len(every) > 100 and all(len(record.test) == record.n for record in every)
