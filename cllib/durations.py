"""How long runs should take: from kept runs of the same kind, else from a few steps."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cllib import results
from cllib.errors import UserError
from cllib.experiments import Program, parameters_of
from cllib.streams.base import Stream, flattened
from cllib.sweeps import Job, current
from cllib.threads import one_thread

LENGTHS = ("epochs", "iterations")  # how many steps there are, not what one costs
ENOUGH = 5  # kept runs of a kind that are looked at
STEPS, SECONDS = 50, 1.0  # a measurement ends after so many, or so long


def kind(told: Mapping[str, Any]) -> str:
    """What programs whose steps cost the same share: network, stream, sizes, device, runs at once, but no fractions.

    told: of `experiments.key_of` the parameters and the device, and the stream's name.
    """
    configs, seeds = told["parameters"]["configs"], told["parameters"]["seeds"]
    return json.dumps([sized(configs[0]), told["stream"], len(configs) * len(seeds), told["device"]], sort_keys=True)


def sized(value: Any) -> Any:
    """A description without fractional numbers, which are rates and strengths, and without `LENGTHS`."""
    if isinstance(value, Mapping):
        parts = {name: sized(part) for name, part in value.items() if name not in LENGTHS}
        return {name: part for name, part in parts.items() if not isinstance(part, float)}
    if isinstance(value, list | tuple):
        return [sized(part) for part in value if not isinstance(part, float)]
    return value


def steps(program: Program, stream: Stream) -> int:
    """Steps of a program over a stream."""
    if program.recipe is None:
        return len(stream)
    feed = program.recipe.feed(stream, program.seeds[0])
    return sum(feed.steps(e) for e in range(len(stream.experiences)))


def kept(store: Path, wanted: set[str]) -> dict[str, float]:
    """Seconds a step, tests included, of the kinds that are wanted and were run before: the mean of a few runs."""
    found: dict[str, list[float]] = {}
    for folder, told in current(store):
        name = kind(told)
        if name in wanted and len(found.setdefault(name, [])) < ENOUGH:
            with suppress(UserError):  # a damaged result tells nothing here
                made = results.kept(folder) or []
                found[name].append(sum(record.seconds for record in made) / max(made[0].ends))
    return {name: sum(rates) / len(rates) for name, rates in found.items() if rates}


def measured(job: Job, store: Path) -> float:
    """Seconds a step, of the first few steps of a job on one thread; latents that it needs are kept in the store."""
    stream = flattened(job.stream) if job.program.recipe is None else job.stream
    with one_thread():
        shown = job.program.shown(stream.to(job.device), job.data, store)
        learner, feed = job.program.start(shown, job.device)
        learner.begin(shown.experiences[0])
        begin, times = time.perf_counter(), list[float]()
        for x, y in feed.batches(0):
            learner.observe(x, y)
            times.append(time.perf_counter() - begin)
            if len(times) > STEPS or times[-1] > SECONDS:
                break
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else times[0]  # the first one also sets up


def estimate(jobs: Sequence[Job], store: Path, workers: int, measure: bool = True) -> str:
    """One line on how long the jobs should take so many workers, and how that is known.

    measure: whether a kind that was never run may be tried here.
    """
    kinds = [
        kind({"parameters": parameters_of(job.program), "stream": job.stream.name, "device": job.device})
        for job in jobs
    ]
    rates = kept(store, set(kinds))
    known = set(rates)
    for name, job in zip(kinds, jobs, strict=True):
        if measure and name not in rates:
            rates[name] = measured(job, store)
    if set(kinds) - set(rates):
        return "how long: not known, for no run of the kind is kept"
    each = [rates[name] * steps(job.program, job.stream) for name, job in zip(kinds, jobs, strict=True)]
    how = {True: "from kept runs of the kind", False: "from a few steps of each kind; tests and replay come on top"}
    told = " and ".join(text for value, text in how.items() if value in {name in known for name in kinds})
    spent = max(sum(each) / workers, max(each))
    about = readable(spent) if spent >= 10 else "ten seconds or less"
    return f"about {about} with {workers} workers, {told}, and some seconds to start"


def readable(seconds: float) -> str:
    """Seconds as people say them."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
