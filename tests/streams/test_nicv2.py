"""NICv2: how films are dealt into batches, and the streams they become."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cllib.datasets import core50, mini_core
from cllib.datasets.clips import Clip, Clips
from cllib.errors import UserError
from cllib.streams import merged, nicv2
from cllib.streams.nicv2 import PER_BATCH, NICv2, deal, merged_first, prep, seen

TRAIN = tuple(Clip(c, s, (50 * s + c,)) for s in mini_core.TRAIN for c in range(50))
FIRST = range(0, 50, 5)


def films(frames: int = 3, labels: int = 6) -> Clips:
    """Films of a few objects in sessions 1, 2 (training) and 3 (test); every pixel of an image is its row."""
    clips, row = [], 0
    for label in reversed(range(labels)):  # in no order that a stream may keep
        for session in (3, 2, 1):
            clips.append(Clip(label, session, tuple(range(row, row + frames))))
            row += frames
    images = torch.arange(row, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    return Clips("films", images, tuple(clips), tuple(map(str, range(labels))), ("a", "b"), (1, 2), (3,))


def rows(x: torch.Tensor) -> list[int]:
    """Which image of `films` each one is."""
    return x[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(("variant", "batches"), [("nicv2_79", 79), ("nicv2_196", 196), ("nicv2_391", 391)])
@pytest.mark.parametrize("run", [0, 7])
def test_all_films_are_dealt_once(variant: str, batches: int, run: int) -> None:
    first, *later = deal(TRAIN, PER_BATCH[variant], FIRST, run)
    assert [(clip.label, clip.session) for clip in first] == [(c, 1) for c in range(0, 50, 5)]
    assert 1 + len(later) == batches and {len(batch) for batch in later} == {PER_BATCH[variant]}
    assert Counter([*first, *(clip for batch in later for clip in batch)]) == Counter(TRAIN)
    assert sum(batch == sorted(batch, key=TRAIN.index) for batch in later) < batches  # shuffled
    assert set(PER_BATCH) == set(core50.VARIANTS)


@given(
    st.sets(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=30),
    st.integers(1, 7),
    st.integers(0, 99),
    st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_any_films_are_dealt(pairs: set[tuple[int, int]], per_batch: int, run: int, random: Any) -> None:
    clips = [Clip(label, session, (0,)) for label, session in pairs]
    start = min(session for _, session in pairs)
    labels = {label for label, session in pairs if session == start}
    first, *later = batches = deal(clips, per_batch, labels, run)
    assert {(clip.label, clip.session) for clip in first} == {(label, start) for label in labels}
    assert Counter(clip for batch in batches for clip in batch) == Counter(clips)
    assert all(len(batch) == per_batch for batch in later[:-1])
    assert all(1 <= len(batch) <= per_batch for batch in later)
    random.shuffle(clips)
    assert deal(clips, per_batch, labels, run) == batches  # whatever the order they come in
    one_by_one = deal(clips, 1, labels, run)[1:]
    assert [clip for batch in later for clip in batch] == [clip for (clip,) in one_by_one]


def test_runs_are_different_orders() -> None:
    orders = [deal(TRAIN, 1, FIRST, run) for run in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and orders[0][0] == orders[2][0]


@pytest.mark.parametrize("first", [(), (77,)])
def test_an_empty_first_batch_is_refused(first: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as caught:
        deal(TRAIN, 5, first, 0)
    assert str(caught.value).startswith(f"first = {list(first)}: none of these labels has a clip in the first session")


@pytest.mark.parametrize(("per_batch", "run", "said"), [(0, 0, "per_batch = 0"), (5, -1, "run = -1")])
def test_impossible_deals_are_refused(per_batch: int, run: int, said: str) -> None:
    with pytest.raises(UserError, match=f"^{said}: must be a whole number"):
        deal(TRAIN, per_batch, FIRST, run)


@pytest.mark.parametrize("shared", [False, True])
def test_a_batch_has_its_films_by_session_object_and_frame(shared: bool) -> None:
    data = films()
    of = {(clip.session, clip.label): clip for clip in data.clips}
    batches = [[of[2, 1], of[1, 4], of[1, 0]], [of[2, 3]]]
    made = nicv2.stream(data, batches, "some", shared=shared)
    expected = [[*of[1, 0].frames, *of[1, 4].frames, *of[2, 1].frames], [*of[2, 3].frames]]
    assert [rows(e.x) for e in made.experiences] == expected
    assert [e.y.tolist() for e in made.experiences] == [[0, 0, 0, 4, 4, 4, 1, 1, 1], [3, 3, 3]]
    assert [e.classes for e in made.experiences] == [(0, 1, 4), (3,)]
    assert all(e.domain is None and e.x.dtype == torch.uint8 and e.y.dtype == torch.int64 for e in made.experiences)
    assert (made.name, made.classes, made.scenario, made.validations) == ("some", 6, "class", ())
    start = data.images.untyped_storage().data_ptr()
    assert [e.x.untyped_storage().data_ptr() == start for e in made.experiences] == [False, shared]


@given(st.integers(1, 20), st.booleans())
@settings(max_examples=30, deadline=None)
def test_the_test_has_every_nth_frame_of_its_films_in_order(every: int, shared: bool) -> None:
    data = films()
    test = sorted(data.of((3,)), key=lambda clip: clip.label)
    (made,) = nicv2.stream(data, [data.of((1,))], "some", every, shared).tests
    frames = [(row, clip.label) for clip in test for row in clip.frames]
    assert list(zip(rows(made.x), made.y.tolist(), strict=True)) == frames[::every]
    assert made.classes == tuple(sorted({label for _, label in frames[::every]}))


def test_rows_that_only_begin_and_end_like_a_slice_are_not_shared() -> None:
    images = torch.arange(9, dtype=torch.uint8).view(-1, 1, 1, 1)
    assert rows(nicv2.taken(images, (3, 4, 5), True)) == [3, 4, 5]
    assert rows(nicv2.taken(images, (3, 3, 5), True)) == [3, 3, 5]
    assert rows(nicv2.taken(images, (5, 4, 3), True)) == [5, 4, 3]


def test_a_film_for_tests_is_refused_in_a_batch() -> None:
    data = films()
    with pytest.raises(UserError, match=r"^stream 'some': sessions \[3\] are for tests; they cannot be in a batch$"):
        nicv2.stream(data, [data.of((1,)), data.of((3,))], "some")


@pytest.mark.parametrize(
    ("buffer_size", "more"),
    [(0, 0), (1500, 0), (3000, 0), (3299, 0), (3300, 1), (3599, 1), (3600, 2), (4500, 5), (120_000, 390)],
)
def test_batches_that_join_the_first(buffer_size: int, more: int) -> None:
    assert prep(buffer_size) == more


@pytest.mark.parametrize("buffer_size", [-1, 1500.0])
def test_a_buffer_of_no_size_is_refused(buffer_size: int) -> None:
    with pytest.raises(UserError, match=r"^buffer_size = "):
        prep(buffer_size)


def mini(**options: Any) -> Any:
    told = {"test_every": 1} if options.get("frames") == 1 else {}  # every second would leave classes out
    return NICv2(**{**told, **options}).build()


def test_the_first_batches_are_merged_as_the_buffer_wants() -> None:
    stream = mini(frames=1, first_frames=1)
    assert merged_first(stream, 3000) is stream
    for size, more in ((3300, 1), (4500, 5)):
        joined = merged_first(replace(stream, note="odd"), size)
        assert len(joined.experiences) == 79 - more and joined.note == f"odd, first {more + 1} batches as one"
        parts = stream.experiences[: more + 1]
        assert torch.equal(joined.experiences[0].x, torch.cat([e.x for e in parts]))
        assert torch.equal(joined.experiences[0].y, torch.cat([e.y for e in parts]))
        assert joined.experiences[0].classes == tuple(sorted({c for e in parts for c in e.classes}))
        assert joined.experiences[1:] == stream.experiences[more + 1 :] and joined.tests == stream.tests
        assert joined.name == "mini-79" and seen(joined) == seen(stream)[more:]
    assert len(merged_first(stream, 3000 + 300 * 78).experiences) == 1
    with pytest.raises(UserError, match=r"^buffer_size = 26700: 80 batches would make the first one; mini-79 has 79$"):
        merged_first(stream, 3000 + 300 * 79)


@pytest.mark.parametrize(("variant", "later"), [("nicv2_79", 60), ("nicv2_196", 24), ("nicv2_391", 12)])
def test_mini_streams(variant: str, later: int) -> None:
    stream = mini(variant=variant)
    sizes = [len(e) for e in stream.experiences]
    assert stream.name == f"mini-{variant[6:]}" and stream.note == "" and stream.classes == 50 and stream.whole
    assert sizes == [120, *[later] * (int(variant[6:]) - 1)] and len(stream) == 4800
    assert stream.experiences[0].classes == tuple(range(0, 50, 5)) and stream.shape == (3, 32, 32)
    (test,) = stream.tests
    assert len(test) == 900 and test.classes == tuple(range(50)) and torch.bincount(test.y).tolist() == [18] * 50
    assert stream.rivals() is None  # the session of a test image is not told
    data = mini_core.load()
    trained = [row for clip in data.of(data.train) for row in clip.frames]
    shown = torch.cat([e.x for e in stream.experiences])
    assert torch.equal(sums(shown), sums(data.images[trained]))  # each image once


def sums(images: torch.Tensor) -> torch.Tensor:
    """Numbers that tell images apart, sorted."""
    weights = torch.randint(1, 1000, images.shape[1:], generator=torch.Generator().manual_seed(0))
    return (images.long() * weights).sum((1, 2, 3)).sort().values


def test_forty_classes_come_after_the_first_batch() -> None:
    for variant in PER_BATCH:
        known = seen(mini(variant=variant, frames=1, first_frames=1))
        assert known[0] == 10 and known[-1] == 50 and known == sorted(known)
    assert sum(b > a for a, b in pairwise(known)) == 40  # one at a time in nicv2_391


def test_seen_counts_a_class_once() -> None:
    data = films()
    of = {(clip.session, clip.label): clip for clip in data.clips}
    batches = [[of[1, 0], of[1, 3]], [of[2, 0]], [of[1, 1], of[2, 3]], [of[1, 2]]]
    assert seen(nicv2.stream(data, batches, "some")) == [2, 2, 3, 4]


def test_all_at_once_is_the_merged_stream() -> None:
    stream = mini(frames=1, first_frames=1)
    whole = merged(stream)
    assert len(whole.experiences) == 1 and len(whole) == 400 and whole.experiences[0].classes == tuple(range(50))


def test_options_of_mini_streams() -> None:
    chosen = NICv2(run=3, frames=2, first_frames=4, test_every=3, image_size=16)
    assert chosen.note == "run 3, frames 2, first_frames 4, test_every 3, image_size 16"
    stream = chosen.build()
    assert stream.note == chosen.note and stream.shape == (3, 16, 16) and stream.experiences[0].x.dtype == torch.uint8
    assert [len(e) for e in stream.experiences] == [40, *[10] * 78] and len(stream.tests[0]) == 100
    large = replace(chosen, image_size=None).build()
    near = large.experiences[0].x.float().unflatten(-1, (16, 2)).unflatten(-3, (16, 2)).mean((-1, -3))
    assert (stream.experiences[0].x.float() - near).abs().mean() < 5
    assert torch.equal(stream.experiences[5].y, large.experiences[5].y)
    assert not torch.equal(large.experiences[5].y, replace(chosen, run=4).build().experiences[5].y)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": "core"}, "data = 'core': allowed are mini, core50"),
        ({"variant": "nicv2_80"}, "variant = 'nicv2_80': allowed are nicv2_79, nicv2_196, nicv2_391"),
        ({"run": -1}, "run = -1: must be a whole number at least 0"),
        ({"run": 10, "data": "core50"}, "run = 10: must be a whole number between 0 and 9"),
        ({"frames": 0}, "frames = 0: must be a whole number at least 1"),
        ({"first_frames": 2.5}, "first_frames = 2.5: must be a whole number at least 1"),
        ({"frames": 13, "data": "core50"}, "frames = 13: only for data = 'mini'; clips of core50 are as filmed"),
        ({"first_frames": 40, "data": "core50"}, "first_frames = 40: only for data = 'mini'"),
        ({"test_every": 0}, "test_every = 0: must be a whole number at least 1"),
        ({"image_size": 0}, "image_size = 0: must be a whole number at least 1"),
    ],
)
def test_impossible_streams_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        NICv2(**options)
    assert str(caught.value).startswith(said)


def test_more_runs_of_mini_than_of_core50() -> None:
    assert NICv2(run=10).name == "mini-79" and NICv2("core50", "nicv2_391", run=9).name == "NICv2-391"
    assert NICv2("core50", run=9).note == "run 9"


def test_a_test_that_leaves_classes_out_is_refused() -> None:
    with pytest.raises(UserError, match="test_every = 24: only 25 of 50 classes are in the tests"):
        NICv2(test_every=24).build()
