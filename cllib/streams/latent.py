"""A stream as a frozen network sees it: what is frozen is computed once a sample, not once a step.

Learners, feeds and exams are shown latents as if those were the data, so whatever learns on a stream learns on it.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from cllib.datasets.features import cached
from cllib.streams.base import Experience, Stream, handed
from cllib.threads import one_thread

CHUNK = 250  # samples at once
LARGEST = 2**30  # bytes of latents that are kept on disk; of more, one experience at a time is computed, and forgotten


class Seen:
    """An experience whose samples are latents, computed when they are first asked for.

    Args:
        raw: the samples; look: the whole experience to its latents.
    """

    def __init__(self, raw: Experience, look: "Look") -> None:
        self.raw, self.look = raw, look
        self.y, self.classes, self.domain, self.name = raw.y, raw.classes, raw.domain, raw.name

    def __len__(self) -> int:
        return len(self.y)

    @property
    def x(self) -> Tensor:
        """Latents, `[n, T, D]`."""
        return self.look(self.raw)


class Look:
    """A frozen network that remembers the last experience it saw."""

    def __init__(self, front: nn.Module) -> None:
        self.front = front
        self.last: tuple[Experience, Tensor] | None = None

    def __call__(self, raw: Experience) -> Tensor:
        if self.last is None or self.last[0] is not raw:
            self.last = raw, latents(self.front, raw.x)
        return self.last[1]


@torch.no_grad()
def latents(front: nn.Module, x: Tensor, chunk: int = CHUNK) -> Tensor:
    """What a frozen network makes of samples `x: [n, ...]`, as a network is shown them: `[n, T, D]`."""
    made: list[Tensor] = [front(handed(part)) for part in x.split(chunk)]
    return torch.cat(made)


def seen_by(front: nn.Module, stream: Stream, told: dict[str, str], folder: Path, largest: int = LARGEST) -> Stream:
    """The stream with latents for samples.

    front: frozen, in eval mode, on the stream's device; told: what the latents depend on, in words and hashes. Small
    ones are computed once for all runs and kept in the folder; of large ones those of the tests are kept in memory, and
    those of one experience at a time.
    """
    parts = [*stream.experiences, *stream.tests, *stream.validations]
    shape = latents(front, parts[0].x[:1]).shape[1:]
    if prod(shape) * 4 * sum(len(part) for part in parts) > largest:
        return one_at_a_time(front, stream)
    with one_thread():
        made = cached(told, lambda: torch.cat([latents(front, part.x).cpu() for part in parts]), folder)
    pieces = made.to(parts[0].y.device).split([len(part) for part in parts])
    return rebuilt(stream, [replace(part, x=piece) for part, piece in zip(parts, pieces, strict=True)])


def one_at_a_time(front: nn.Module, stream: Stream) -> Stream:
    """The stream with latents for samples: those of the tests computed now, those of experiences when they are met."""
    look = Look(front)
    near = [replace(part, x=latents(front, part.x)) for part in (*stream.tests, *stream.validations)]
    return rebuilt(stream, [*(Seen(part, look) for part in stream.experiences), *near])  # type: ignore[list-item]


def rebuilt(stream: Stream, parts: Sequence[Experience]) -> Stream:
    """The stream with other experiences, tests and validation sets, one after the other."""
    trains, tests = len(stream.experiences), len(stream.tests)
    return replace(
        stream,
        experiences=tuple(parts[:trains]),
        tests=tuple(parts[trains : trains + tests]),
        validations=tuple(parts[trains + tests :]),
    )
