"""What a step of brain-inspired replay costs, and the floor of its matrix products. `make bench` runs it.

The original's times (CPU milliseconds, one thread, beside a product of 1024 x 1024 matrices in 27 ms) are quoted as
ratios to that product, which is timed here too: machines differ, ratios less. The floor is the time of the step's
matrix products alone, in the shapes they have, nothing skipped.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import process_time

import torch

from cllib.learners.generative_replay import GenerativeReplay, GenerativeReplaySettings
from cllib.models.conv_front import FEATURES
from cllib.models.replay_vae import ReplayVAE
from cllib.recipes import Recipe
from cllib.streams.base import Experience, Stream
from cllib.streams.protocols import PROTOCOLS
from cllib.threads import one_thread

SIDE, REFERENCE = 1024, 27.0  # of the product, and its CPU milliseconds beside the original


@dataclass(frozen=True)
class Case:
    """An experiment by its protocol, and the original's CPU milliseconds a step with replay."""

    name: str
    shape: tuple[int, ...]
    classes: int
    si: float
    published: float


CASES = (Case("split MNIST", (1, 28, 28), 10, 0.0, 43.5), Case("CIFAR-100", (FEATURES,), 100, 1e8, 692.0))


def milliseconds(step: Callable[[], object], count: int) -> float:
    """Median CPU time of a step, the first three left out."""
    times = []
    for _ in range(count + 3):
        begun = process_time()
        step()
        times.append(1e3 * (process_time() - begun))
    return median(times[3:])


def stream_of(case: Case) -> Stream:
    """Noise in the shape of the experiment: what is learned does not matter here."""
    how = PROTOCOLS[case.name]
    each, draws = case.classes // how.tasks, torch.Generator().manual_seed(0)

    def task(k: int) -> Experience:
        y = torch.randint(each, (4 * how.batch,), generator=draws) + k * each
        x = torch.rand(len(y), *case.shape, generator=draws)
        return Experience(x, y, tuple(range(k * each, (k + 1) * each)), k)

    parts = tuple(task(k) for k in range(how.tasks))
    return Stream(case.name, case.classes, parts, parts, ())


def learner_of(case: Case, stream: Stream, halved: bool) -> tuple[GenerativeReplay, Iterator[tuple[torch.Tensor, ...]]]:
    """Half way through the stream, with what comes next."""
    how = PROTOCOLS[case.name]
    conv = {"stem": "conv", "reconstruction": "mse"} if how.conv else {}
    gates = how.gates["class"] if how.with_si is None or not case.si else how.with_si
    network = ReplayVAE(hidden=how.hidden, latent=how.latent, gates=gates, **conv)  # type: ignore[arg-type]
    settings = GenerativeReplaySettings(si=case.si)
    recipe = Recipe("generative", settings, network, "adam", how.lr, batch_size=how.batch, iterations=10_000)
    learner, feed = recipe.build(stream, 0), recipe.feed(stream, 0)
    learner.halved = halved
    for k in range(how.tasks // 2):
        learner.begin(stream.experiences[k])
        x, y = next(iter(feed.batches(k)))
        learner.observe(x, y)
        learner.finish(stream.experiences[k])
    learner.begin(stream.experiences[how.tasks // 2])
    return learner, feed.batches(how.tasks // 2)  # type: ignore[return-value]


def products(case: Case) -> list[tuple[int, int, int]]:
    """Every matrix product of a step with replay: rows, inner, columns."""
    how, d0 = PROTOCOLS[case.name], int(torch.Size(case.shape).numel())
    wide, z, b = how.hidden, how.latent, how.batch
    encoder = [(d0, wide), (wide, wide), (wide, case.classes)]
    code, decoder = [(wide, z), (wide, z)], [(z, wide), (wide, wide), (wide, d0)]
    learned = [*encoder, *code, *decoder]
    forward = [(2 * b, i, o) for i, o in learned]
    weights = [(i, 2 * b, o) for i, o in learned]
    inputs = [(2 * b, o, i) for i, o in learned[1:]]
    dreams = [(b, i, o) for i, o in (*decoder, *encoder)]
    return forward + weights + inputs + dreams


def floor(case: Case, dtype: torch.dtype, count: int) -> float:
    """CPU milliseconds of those alone."""
    pairs = [(torch.rand(m, k, dtype=dtype), torch.rand(k, n, dtype=dtype)) for m, k, n in products(case)]
    return milliseconds(lambda: [a @ b for a, b in pairs], count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    with one_thread():
        square = torch.rand(SIDE, SIDE)
        for case in CASES:
            count = steps if case.classes == 10 else max(3, steps // 5)
            for halved, dtype in ((False, torch.float32), (True, torch.bfloat16)):
                learner, batches = learner_of(case, stream_of(case), halved)
                product = milliseconds(lambda: square @ square, 10)
                spent = milliseconds(lambda: learner.observe(*next(batches)), count)  # noqa: B023
                ratio, published = spent / product, case.published / REFERENCE
                print(
                    f"{case.name:12s} {dtype!s:15s} {spent:6.1f} ms a step, floor {floor(case, dtype, count):6.1f} ms; "
                    f"product {product:5.1f} ms, ratio {ratio:5.2f}, original {published:5.2f}: "
                    f"{ratio / published:.2f} of it"
                )


if __name__ == "__main__":
    main()
