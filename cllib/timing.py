"""What learning one more experience costs, stage by stage, tests left out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import pandas as pd
import torch

from cllib.errors import UserError
from cllib.feeds import Batches
from cllib.randomness import seeded
from cllib.recipes import Recipe
from cllib.streams.base import Stream
from cllib.streams.latent import one_at_a_time
from cllib.threads import one_thread

FROZEN, ASSEMBLY, LEARNING, ROWS, BUFFER = STAGES = (
    *("frozen forward", "mini-batch assembly", "forward, backward, step"),
    *("head rows, in and out", "buffer update"),
)
Clock = Callable[[], float]


class Stopwatch:
    """Seconds by stage; while an inner stage runs, the outer one stands still.

    Args:
        clock: seconds since some moment; device: waited for at every border between stages where it works on its own.
    """

    def __init__(self, clock: Clock, device: str) -> None:
        self.clock, self.device = clock, torch.device(device)
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.inner = 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.clock()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        outer, self.inner = self.inner, 0.0
        begin = self.now()
        yield
        whole = self.now() - begin
        self.seconds[name] += whole - self.inner
        self.inner = outer + whole

    def timed(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, its time counted for a stage."""

        def run(*args: Any, **named: Any) -> Any:
            with self.stage(name):
                return call(*args, **named)

        return run


def time_batches(
    recipe: Recipe,
    stream: Stream,
    count: int = 5,
    warm_up: int = 1,
    device: str = "cpu",
    clock: Clock = perf_counter,
) -> list[dict[str, float]]:
    """Seconds that each of `count` experiences takes to learn, by stage (`STAGES`), and its "steps" and "new" samples.

    recipe: of `LatentReplay`; stream: images. On a CPU, one thread works. The first experience, which fills the buffer,
    and `warm_up` more come before them, untimed. As many as there are of a shorter stream; UserError if there are none.
    """
    raw = stream.to(device)
    front = recipe.network.front(raw.shape) if hasattr(recipe.network, "front") else None
    shown = raw if front is None else one_at_a_time(front.to(device), raw)
    learner, feed = recipe.build(shown, 0, device), recipe.feed(shown, 0)
    last = min(1 + warm_up + count, len(raw.experiences))
    if last <= 1 + warm_up:
        raise UserError(f"warm_up = {warm_up}: nothing is left to be timed of {last} experiences")
    made = []
    with one_thread(), seeded(0, "noise"):
        for e in range(last):
            watch = Stopwatch(clock, device)
            with watch.stage(FROZEN):
                shown.experiences[e].x  # noqa: B018  (computed here, and remembered)
            learn(learner, feed, e, watch)
            made.append({**watch.seconds, "steps": feed.steps(e), "new": len(raw.experiences[e])})
    return made[1 + warm_up :]


def learn(learner: Any, feed: Batches, e: int, watch: Stopwatch) -> None:
    """Experience e, with a stopwatch at hand."""
    parts = (learner.buffer, "take", ASSEMBLY), (learner.rows, "finish", ROWS), (learner, "_replace", BUFFER)
    for owner, name, stage in parts:
        setattr(owner, name, watch.timed(getattr(type(owner), name).__get__(owner), stage))
    batches = watch.timed(feed.batches(e).__next__, ASSEMBLY)
    with watch.stage(ROWS):
        learner.begin(feed.stream.experiences[e])
    for _ in range(feed.steps(e)):
        x, y = batches()
        with watch.stage(LEARNING):
            learner.observe(x, y)
    learner.finish(feed.stream.experiences[e])


def summary(made: Sequence[dict[str, float]]) -> pd.DataFrame:
    """Milliseconds an experience by stage, median and quartiles; last, the sum, and that by step and new sample."""
    table = pd.DataFrame(made)
    table["all"] = table[list(STAGES)].sum(axis=1)
    table["a step"], table["a new image"] = table["all"] / table["steps"], table["all"] / table["new"]
    rows = table[[*STAGES, "all", "a step", "a new image"]] * 1000
    quartiles = rows.quantile([0.5, 0.25, 0.75]).T
    return quartiles.set_axis(["median, ms", "25 %", "75 %"], axis=1)
