"""What a stream is: ordered experiences, and the test sets that are the columns of the accuracy matrix."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from cllib.errors import UserError


@dataclass(frozen=True)
class Experience:
    """One step of a stream.

    x: `[n, d]` or `[n, C, H, W]`, floats, or uint8 images (`inputs` makes floats of them); y: `[n]`; `classes` in it;
    `domain` number, None where several are mixed.
    """

    x: Tensor
    y: Tensor
    classes: tuple[int, ...]
    domain: int | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def name(self) -> str:
        """Short label for axes, e.g. "c2 d1"."""
        classes = f"c{self.classes[0]}" if len(self.classes) == 1 else f"{len(self.classes)} classes"
        return classes if self.domain is None else f"{classes} d{self.domain}"


@dataclass(frozen=True)
class Stream:
    """Experiences in order, with a test and a validation set of the same make; validation may cover the first ones
    only.

    scenario: "task" if the experience of a test sample is told, so that only its own classes compete; else "domain" or
    "class" (van de Ven & Tolias 2019). sortable: whether samples inside an experience may be reordered without changing
    what the stream is (CDID: no). whole: False if only a part of the training samples is shown. note: what the name
    does not say, e.g. the backbone. names: of the classes, in the order of their numbers; empty where they have none.
    Raises UserError at construction for labels outside 0 .. classes - 1.
    """

    name: str
    classes: int
    experiences: tuple[Experience, ...]
    tests: tuple[Experience, ...]
    validations: tuple[Experience, ...]
    sortable: bool = True
    whole: bool = True
    note: str = ""
    scenario: str = "class"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in (*self.experiences, *self.tests, *self.validations):
            self._check(part)

    def _check(self, part: Experience) -> None:
        """Raise UserError for labels that are no classes of the stream, as far as that waits for no other device."""
        near = isinstance(part.y, Tensor) and len(part.y) and part.y.device.type == "cpu"  # else packed for a process
        found = [*part.classes, *(part.y.aminmax() if near else ())]
        if found and not 0 <= min(found) <= max(found) < self.classes:
            low, high = int(min(found)), int(max(found))
            raise UserError(f"stream {self.name!r}: labels {low} to {high}, must lie within 0 to {self.classes - 1}")

    def ask_something(self) -> None:
        """Raise UserError where every answer would be right: told the experience, of which each has but one class."""
        if self.scenario == "task" and self.tests and all(len(set(part.classes)) == 1 for part in self.tests):
            told = "one class an experience leaves nothing to ask in scenario = 'task'; every answer would be right"
            raise UserError(f"stream {self.name!r}: {told}")

    @property
    def inputs(self) -> int:
        """Numbers in one sample."""
        return prod(self.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.experiences[0].x.shape[1:])

    def rivals(self) -> Tensor | None:
        """Which logits compete with a label, `[C, C]` bool: in the scenario "task" the classes of its experience.

        None where all do.
        """
        return self._same_experience() if self.scenario == "task" else None

    def masks(self, through: int = -1) -> Tensor | None:
        """The same mask in the scenario "class", for a test that tells more after all.

        Which experience a sample belongs to; or, where one test set serves all experiences, which classes came until
        experience `through`. None where that tells nothing, or everything: the experiences share their classes, or
        have but one.
        """
        if self.scenario == "class" and len(self.tests) == 1 and len(self.experiences) > 1:
            return self._came(through)
        groups = {experience.classes for experience in self.tests}
        counts = [len(group) for group in groups]
        apart = sum(counts) == len({c for group in groups for c in group})
        if self.scenario != "class" or len(groups) < 2 or max(counts) < 2 or not apart:
            return None
        return self._same_experience()

    def _came(self, through: int) -> Tensor | None:
        """The classes of the experiences so far, for every label alike; None where the first has them all."""
        came = [c for part in self.experiences[: through % len(self.experiences) + 1] for c in part.classes]
        if len(set(self.experiences[0].classes)) == self.classes:
            return None
        row = torch.zeros(self.classes, dtype=torch.bool)
        row[came] = True
        return row.expand(self.classes, -1).to(self.experiences[0].y.device)

    def _same_experience(self) -> Tensor:
        """Which classes come in one experience, `[C, C]` bool."""
        mask = torch.zeros(self.classes, self.classes, dtype=torch.bool)
        for experience in self.tests or self.experiences:  # tests stay apart where experiences are merged
            own = torch.tensor(experience.classes)
            mask[own[:, None], own] = True
        return mask.to(self.experiences[0].y.device)

    def __len__(self) -> int:
        """Training samples in all."""
        return sum(len(experience) for experience in self.experiences)

    def to(self, device: str | torch.device) -> "Stream":
        """The stream with its tensors on a device."""
        return self.map(lambda e: replace(e, x=e.x.to(device), y=e.y.to(device)))

    def map(self, change: Callable[[Experience], Experience]) -> "Stream":
        """The stream with every part changed: experiences, tests and validation sets."""
        trains, tests, validations = (
            tuple(change(e) for e in part) for part in (self.experiences, self.tests, self.validations)
        )
        return replace(self, experiences=trains, tests=tests, validations=validations)


def inputs(x: Tensor) -> Tensor:
    """What a network is shown: uint8 pixels as floats in [0, 1], anything else as it is."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def handed(x: Tensor) -> Tensor:
    """The same in a tensor of its own, for whoever may change it."""
    made = inputs(x)
    return made.clone() if made is x else made


def flattened(stream: Stream) -> Stream:
    """The stream with every sample as a row of floats, `[n, d]`, as the heads of chapter 1 take them."""
    return stream.map(lambda e: replace(e, x=inputs(e.x).flatten(1)))


def thinned(stream: Stream, every: int) -> Stream:
    """The stream with only every so many-th training sample; tests stay whole."""
    parts = tuple(replace(e, x=e.x[::every], y=e.y[::every]) for e in stream.experiences)
    return replace(stream, experiences=parts, whole=stream.whole and every == 1)


def orders(stream: Stream, generators: list[torch.Generator] | None) -> list[Tensor]:
    """Sample order inside each experience: a list of `[R, n]` index tensors.

    Without generators, or where the stream's order is its point (CDID), the published order, `[1, n]`: it serves all
    runs.
    """
    if generators is None or not stream.sortable:
        return [torch.arange(len(e)).unsqueeze(0) for e in stream.experiences]
    return [torch.stack([torch.randperm(len(e), generator=g) for g in generators]) for e in stream.experiences]
