"""How a stream is shown to a learner: sample after sample, in batches, or as the new part of a mini-batch."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from cllib.errors import UserError, whole
from cllib.randomness import generator
from cllib.streams.base import Experience, Stream, inputs


class Batches:
    """Batches of an experience, shuffled anew in every epoch.

    The order of an epoch depends on the seed, the experience and the epoch alone, so any step can be gone back to.

    Args:
        seed: of the run.
        batch_size: samples a batch; the last of an epoch may be smaller, or larger by one.
        epochs: times an experience is seen; or iterations: its number of batches.
        joint: draw from all experiences so far, with as many steps as the present one alone would take.
    """

    online = False

    def __init__(
        self,
        stream: Stream,
        seed: int,
        batch_size: int = 32,
        epochs: int = 1,
        iterations: int | None = None,
        joint: bool = False,
    ) -> None:
        whole("batch_size", batch_size, 1)
        whole("epochs", epochs, 1)
        if iterations is not None:
            whole("iterations", iterations, 1)
        self.stream, self.seed, self.batch_size = stream, seed, batch_size
        self.epochs, self.iterations, self.joint = epochs, iterations, joint

    def steps(self, e: int) -> int:
        """Batches in experience e."""
        return self.iterations or self.epochs * per_epoch(len(self.stream.experiences[e]), self.batch_size)

    def batches(self, e: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """x `[B, ...]`, y `[B]` of every step of experience e from `start` on."""
        pool = self.stream.experiences[: e + 1] if self.joint else self.stream.experiences[e : e + 1]
        samples = sum(len(part) for part in pool)
        long = per_epoch(samples, self.batch_size)
        epoch, order = -1, torch.empty(0)
        for step in range(start, self.steps(e)):
            if step // long != epoch:
                epoch = step // long
                order = torch.randperm(samples, generator=generator(self.seed, f"order {e} {epoch}"))
                order = order.to(pool[0].y.device)
            first = step % long * self.batch_size
            last = samples if step % long == long - 1 else first + self.batch_size
            yield taken(pool, order[first:last])


def per_epoch(samples: int, batch_size: int) -> int:
    """Batches in an epoch; a single sample that is left over joins the last one, for BatchNorm cannot take one."""
    left_over = samples > batch_size > 1 and samples % batch_size == 1
    return -(-samples // batch_size) - left_over


@dataclass(frozen=True)
class Portion:
    """What a mini-batch is made of. new, replayed: samples; steps: mini-batches an epoch."""

    new: int
    replayed: int
    steps: int


def portion(samples: int, held: int, batch_size: int) -> Portion:
    """The split of AR1* with latent replay: N new samples and R stored ones share mini-batches of mb.

    With k = (N + R) div mb: N div k new samples in each, the rest of mb replayed, N div (N div k) steps; what is left
    of N is not used. With nothing stored, mb is no larger than N. Raises UserError where no mini-batch can be filled,
    or a new sample would have to be split.
    """
    batch_size = batch_size if held else min(batch_size, samples)
    k = (samples + held) // batch_size
    if not 1 <= k <= samples:
        raise UserError(
            f"batch_size = {batch_size}: {samples} new and {held} stored samples make {k} mini-batches; there must be "
            f"between 1 and {samples}, so choose batch_size between {-(-(samples + held + 1) // (samples + 1))} and "
            f"{samples + held}"
        )
    new = samples // k
    return Portion(new, max(0, batch_size - new), samples // new)


class Portions(Batches):
    """The new samples of each mini-batch, where a learner fills the rest from what it stored (`portion`).

    The first experience is padded with its own first samples to whole mini-batches, nothing is replayed.

    Args:
        later_epochs: of all experiences but the first.
        held: samples stored after the first experience, at most.
        legacy: one order for all epochs, and the split for a buffer that is full, whether it is or not, as released.
    """

    def __init__(
        self,
        stream: Stream,
        seed: int,
        batch_size: int,
        epochs: int,
        iterations: int | None,
        later_epochs: int,
        held: int,
        legacy: bool,
    ) -> None:
        super().__init__(stream, seed, batch_size, epochs, iterations)
        self.later_epochs, self.legacy = later_epochs, legacy
        first = padded(len(stream.experiences[0]), batch_size)
        self.held = held if legacy else min(held, first)
        self.portions = [self.portion(e) for e in range(len(stream.experiences))]
        longest = max(part.steps for part in self.portions)
        if held and iterations is not None:
            whole("iterations", iterations, longest)  # a whole epoch, or the buffer would not get what is meant for it
        self._warn(held, first)

    def portion(self, e: int) -> Portion:
        """The split of experience e."""
        samples = len(self.stream.experiences[e])
        if e:
            return portion(samples, self.held, self.batch_size)
        return Portion(self.batch_size, 0, padded(samples, self.batch_size) // self.batch_size)

    def _warn(self, wanted: int, first: int) -> None:
        """Say so where a buffer of this size will not do what it is for."""
        count = len(self.stream.experiences)
        if 0 < wanted < count:
            warnings.warn(
                f"buffer_size = {wanted}: nothing of the last {count - wanted} experiences is stored", stacklevel=4
            )
        if first < wanted and count > 1:
            warnings.warn(f"buffer_size = {wanted}: the first experience gives {first}, and so it stays", stacklevel=4)

    def steps(self, e: int) -> int:
        return self.iterations or (self.later_epochs if e else self.epochs) * self.portions[e].steps

    def batches(self, e: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        pool, part = self.stream.experiences[e : e + 1], self.portions[e]
        epoch, order = -1, torch.empty(0)
        for step in range(start, self.steps(e)):
            if step // part.steps != epoch:
                epoch = step // part.steps
                order = self.order(e, 0 if self.legacy else epoch).to(pool[0].y.device)
            first = step % part.steps * part.new
            yield taken(pool, order[first : first + part.new])

    def order(self, e: int, epoch: int) -> Tensor:
        """Rows of experience e in the order of an epoch; padding counts as samples."""
        samples = len(self.stream.experiences[e])
        rows = torch.arange(samples)
        if e == 0:
            rows = torch.cat([torch.arange(padded(samples, self.batch_size) - samples) % samples, rows])
        return rows[torch.randperm(len(rows), generator=generator(self.seed, f"order {e} {epoch}"))]


def padded(samples: int, batch_size: int) -> int:
    """The next multiple of the batch size."""
    return samples + -samples % batch_size


def taken(pool: Sequence[Experience], index: Tensor) -> tuple[Tensor, Tensor]:
    """Samples of several experiences, counted through: x `[B, ...]` as a network is shown it, y `[B]`."""
    if len(pool) == 1:
        return inputs(pool[0].x[index]), pool[0].y[index]
    starts = np.cumsum([0, *(len(part) for part in pool)])
    own = [index[(index >= a) & (index < b)] - a for a, b in pairwise(starts)]
    pairs = [(part.x[i], part.y[i]) for part, i in zip(pool, own, strict=True)]
    return inputs(torch.cat([x for x, _ in pairs])), torch.cat([y for _, y in pairs])


class Online:
    """Sample after sample for R runs, each in its own order (`streams.orders`): x `[R, 1, d]`, y `[R, 1]`."""

    online = True

    def __init__(self, stream: Stream, order: Sequence[Tensor], runs: int) -> None:
        self.stream, self.order, self.runs = stream, order, runs

    def steps(self, e: int) -> int:
        """Samples in experience e."""
        return len(self.stream.experiences[e])

    def batches(self, e: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Every sample of experience e from `start` on."""
        x, y = ordered(self.stream.experiences[e], self.order[e], self.runs)
        return zip(x[start:], y[start:], strict=True)


def ordered(experience: Experience, order: Tensor, runs: int) -> tuple[Tensor, Tensor]:
    """An experience in each run's order, samples first: x `[n, R, 1, d]`, y `[n, R, 1]`."""
    order = order.to(experience.y.device).expand(runs, -1).T.unsqueeze(-1)  # [n, R, 1]
    return experience.x[order].contiguous(), experience.y[order].contiguous()


Feed = Batches | Online
