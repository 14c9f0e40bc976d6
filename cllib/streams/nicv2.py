"""NICv2: new instances and classes in small batches, one to five short films each (Lomonaco et al. 2020).

Batch 0 has one object of every category, seen in the first session; then come all other films, shuffled and dealt, so
that a batch brings new objects, known objects in new sessions, or both. CORe50 has official batches; those of
mini-CORe are dealt here.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cllib.datasets import core50, mini_core
from cllib.datasets.clips import EACH, TRAIN, Clip, Clips
from cllib.datasets.files import cache_folder
from cllib.errors import UserError, one_of, whole
from cllib.randomness import generator
from cllib.streams.base import Experience, Stream
from cllib.streams.scenarios import merged

PER_BATCH = {"nicv2_79": 5, "nicv2_196": 2, "nicv2_391": 1}  # films in each batch after the first
PREFIX = {"mini": "mini", "core50": "NICv2"}
EVERY = {"mini": 2, "core50": 20}  # of how many test frames one is tested
ENOUGH, FULL = 3000, 300  # about the images in the first batch, and in a film of CORe50


def deal(clips: Sequence[Clip], per_batch: int, first: Collection[int], run: int) -> list[list[Clip]]:
    """The films in batches, each film once.

    The first batch has the films of the labels `first` in the earliest session; all others are shuffled by `run` and
    dealt, `per_batch` to a batch, what is left to the last. The order depends neither on that of `clips` nor on
    `per_batch`. Raises UserError if the first batch would be empty.
    """
    whole("per_batch", per_batch, 1)
    whole("run", run, 0)
    start = min((clip.session for clip in clips), default=None)
    opening = [clip for clip in in_order(clips) if clip.session == start and clip.label in first]
    if not opening:
        raise UserError(f"first = {sorted(first)}: none of these labels has a clip in the first session, {start}")
    others = [clip for clip in in_order(clips) if clip not in opening]
    order = torch.randperm(len(others), generator=generator(run, "nicv2 order")).tolist()
    dealt = [order[k : k + per_batch] for k in range(0, len(order), per_batch)]
    return [opening, *([others[k] for k in own] for own in dealt)]


def in_order(clips: Sequence[Clip]) -> list[Clip]:
    """The films by session, then by object."""
    return sorted(clips, key=lambda clip: (clip.session, clip.label))


def stream(
    data: Clips, batches: Sequence[Sequence[Clip]], name: str, test_every: int = 1, shared: bool = False
) -> Stream:
    """One experience a batch, its films by session and object; one test, every `test_every`-th frame of the test films.

    shared: images that lie in a row are not copied but shared with `data`, for data that must not be held twice; such
    a stream grows as large as `data` in every experience when it is sent to another process. Raises UserError for a
    film of a test session in a batch.
    """
    whole("test_every", test_every, 1)
    leaked = sorted({clip.session for batch in batches for clip in batch} & set(data.test))
    if leaked:
        raise UserError(f"stream {name!r}: sessions {leaked} are for tests; they cannot be in a batch")
    trains = tuple(experience(data.images, batch, shared=shared) for batch in batches)
    test = experience(data.images, data.of(data.test), test_every, shared)
    return Stream(name, len(data.names), trains, (test,), ())


def experience(images: Tensor, clips: Sequence[Clip], every: int = 1, shared: bool = False) -> Experience:
    """Every so many-th frame of some films, by session, object and frame."""
    frames = [(row, clip.label) for clip in in_order(clips) for row in clip.frames][::every]
    rows, labels = zip(*frames, strict=True)
    y = torch.tensor(labels)
    return Experience(taken(images, rows, shared), y, tuple(sorted(set(labels))))


def taken(images: Tensor, rows: Sequence[int], shared: bool) -> Tensor:
    """These rows of the images; with `shared` no copy where they follow each other."""
    low, high = rows[0], rows[0] + len(rows)
    if shared and tuple(rows) == tuple(range(low, high)):
        return images[low:high]
    return images[torch.tensor(rows)]


def prep(buffer_size: int) -> int:
    """How many batches join the first one, so that it fills a replay buffer of this size (original: the same rule)."""
    whole("buffer_size", buffer_size, 0)
    return max(0, (buffer_size - ENOUGH) // FULL)


def merged_first(stream: Stream, buffer_size: int) -> Stream:
    """The stream with its first `prep(buffer_size) + 1` batches as one.

    Raises UserError if it has fewer. The rule is made for clips of 300 frames, those of CORe50.
    """
    count = prep(buffer_size) + 1
    if count > len(stream.experiences):
        raise UserError(
            f"buffer_size = {buffer_size}: {count} batches would make the first one; {stream.name} has "
            f"{len(stream.experiences)}"
        )
    if count == 1:
        return stream
    (joined,) = merged(replace(stream, experiences=stream.experiences[:count])).experiences
    note = ", ".join(filter(None, (stream.note, f"first {count} batches as one")))
    return replace(stream, experiences=(joined, *stream.experiences[count:]), note=note)


def seen(stream: Stream) -> list[int]:
    """Classes seen after each batch: of `stream.classes`, no more can be known."""
    known: set[int] = set()
    return [len(known := known | set(batch.classes)) for batch in stream.experiences]


@dataclass(frozen=True)
class NICv2:
    """A NICv2 stream by name. Raises UserError at construction for impossible values.

    data: "core50", or "mini" for mini-CORe, which needs no download. variant: one of `PER_BATCH`. run: which order of
    the clips, one of the ten official ones for core50. frames, first_frames: of a clip, and of a clip in batch 0, mini
    only. test_every: one of so many test frames is tested, None for 2 (mini) or 20 (core50, as in the original).
    data_dir: where CORe50 lies (`core50` in the cache folder where None). image_size: side of the images, None as they
    are: 32 or 128.
    """

    data: str = "mini"
    variant: str = "nicv2_79"
    run: int = 0
    frames: int = 12
    first_frames: int = 12
    test_every: int | None = None
    data_dir: str | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        one_of("data", self.data, tuple(PREFIX))
        one_of("variant", self.variant, tuple(PER_BATCH))
        whole("run", self.run, 0, core50.RUNS - 1 if self.data == "core50" else None)
        for name in ("frames", "first_frames"):
            whole(name, getattr(self, name), 1)
            if self.data == "core50" and getattr(self, name) != getattr(NICv2, name):
                raise UserError(
                    f"{name} = {getattr(self, name)}: only for data = 'mini'; clips of core50 are as filmed"
                )
        for name in ("test_every", "image_size"):
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), 1)

    @property
    def name(self) -> str:
        """E.g. "mini-79" or "NICv2-391"."""
        return f"{PREFIX[self.data]}-{self.variant.removeprefix('nicv2_')}"

    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of the objects, and of their categories."""
        source = mini_core if self.data == "mini" else core50
        return source.NAMES, source.CATEGORIES

    @property
    def note(self) -> str:
        """What the name does not say, as far as it is not the default."""
        values = {name: getattr(self, name) for name in ("run", "frames", "first_frames", "test_every", "image_size")}
        return ", ".join(f"{name} {value}" for name, value in values.items() if value != getattr(NICv2, name))

    @property
    def sizes(self) -> tuple[int, list[int]]:
        """Images in the first batch, and the fewest and most in a later one, before anything is loaded."""
        films = PER_BATCH[self.variant]
        if self.data == "core50":
            return core50.FIRST, [films * frames for frames in core50.FRAMES]
        return len(mini_core.CATEGORIES) * self.first_frames, [films * self.frames]

    @property
    def batches(self) -> int:
        """How many there are."""
        films = len(TRAIN) * EACH * len(mini_core.CATEGORIES)
        return 1 + (films - len(mini_core.CATEGORIES)) // PER_BATCH[self.variant]

    def build(self) -> Stream:
        """Load or draw the data, and make the stream. Raises UserError for data that cannot be had."""
        made = self._mini() if self.data == "mini" else self._core50()
        left = len(made.tests[0].classes)
        if self.data == "mini" and left < made.classes:
            raise UserError(f"test_every = {self._every}: only {left} of {made.classes} classes are in the tests")
        part = any(getattr(self, name) != getattr(NICv2, name) for name in ("frames", "first_frames", "test_every"))
        shrunk = self.image_size not in (None, mini_core.SIDE if self.data == "mini" else core50.SIDE)
        return replace(made, note=self.note, whole=not (part or shrunk))

    @property
    def _every(self) -> int:
        return self.test_every or EVERY[self.data]

    def _mini(self) -> Stream:
        data = mini_core.load(self.frames, self.first_frames)
        if self.image_size is not None:
            data = sized(data, self.image_size)
        first = range(0, len(data.names), data.each)
        batches = deal(data.of(data.train), PER_BATCH[self.variant], first, self.run)
        return stream(data, batches, self.name, self._every)

    def _core50(self) -> Stream:
        where = Path(self.data_dir) if self.data_dir else cache_folder() / "core50"
        data, batches = core50.load(where, self.variant, self.run, self._every, self.image_size)
        return stream(data, batches, self.name, shared=True)


def sized(data: Clips, side: int) -> Clips:
    """The films at `side` x `side` pixels (bilinear, antialiased)."""
    from torchvision.transforms.v2.functional import resize

    return replace(data, images=resize(data.images, [side, side], antialias=True))
