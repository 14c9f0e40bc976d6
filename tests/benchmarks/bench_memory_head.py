"""Prints what the Memory Head costs, beside the released program. Run by `make bench`; asserts nothing.

CPU time of the process, one thread, evaluation after every experience included.
"""

import time

import torch

from cllib.experiments import grid, run, vary
from cllib.learners.heads import METHODS, LearnerConfig
from cllib.models.classic import ClassicConfig
from cllib.models.memory_head import MemoryHeadConfig, MemoryHeadLayer
from cllib.streams import Stream, plane_stream

# Measured for the released layers, one thread: 2.6-4.6 ms per online sample; the middle of its usual range 3-4 ms.
RELEASED_MS = 3.5
MH = LearnerConfig(MemoryHeadConfig(units=16))
AXES = {
    "step_size": (0.001, 0.01, 0.1, 1.0),
    "key_step": (0.0001, 0.001, 0.01, 0.1),
    "use_threshold": (50, 200),
    "age_threshold": (50, 200),
    "match_threshold": (0.85, 0.95),
    "sharpness": (1, 5, 25),
    "weight_decay": (0.0, 1e-4, 1e-3),
}


def per_sample(stream: Stream, config: LearnerConfig, runs: int, repeat: int = 3) -> float:
    """CPU milliseconds per sample and run, the best of a few."""
    times = [run(stream, [config] * runs, range(runs)).cpu_seconds for _ in range(repeat)]
    return min(times) / len(stream) / runs * 1e3


def autograd_per_sample(stream: Stream) -> float:
    """The same for the layer under autograd and torch's SGD, one run."""
    layer = MemoryHeadLayer(2, 4, MH.head)  # type: ignore[arg-type]
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    start = time.process_time()
    for experience in stream.experiences:
        for x, y in zip(experience.x, experience.y, strict=True):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(layer(x[None]), y[None]).backward()
            optimiser.step()
    return (time.process_time() - start) / len(stream) * 1e3


def main() -> None:
    torch.set_num_threads(1)
    stream = plane_stream("modes-cdi")
    run(stream, [MH], [0])  # warm up
    print(f"Memory Head, m = 16, MODES-CDI; the released program: {RELEASED_MS} ms per sample\n")
    print(f"{'runs':>6} {'us per run-sample':>18} {'times less CPU':>15}")
    for runs in (1, 16, 64, 256, 1024):
        cost = per_sample(stream, MH, runs)
        print(f"{runs:6d} {cost * 1e3:18.2f} {RELEASED_MS / cost:15.0f}")
    cost = autograd_per_sample(stream)
    print(f"{'layer':>6} {cost * 1e3:18.2f} {RELEASED_MS / cost:15.1f}   (autograd, one run)\n")

    torch.set_num_threads(2)
    points = list(grid("MH", vary(MH, units=8), **AXES).values())
    start = time.perf_counter()
    run(stream, points, [0] * len(points))
    print(f"the printed grid, {len(points)} settings, one stream, 2 threads: {time.perf_counter() - start:.1f} s\n")

    torch.set_num_threads(1)
    mlp = LearnerConfig(ClassicConfig("mlp", 25))
    print(f"{'competitor':>14} {'ms, 1 run':>10} {'us per run-sample, 64 runs':>28}")
    for method in METHODS:
        one, many = (per_sample(stream, vary(mlp, method=method), runs, repeat=1) for runs in (1, 64))
        print(f"{method:>14} {one:10.2f} {many * 1e3:28.2f}")


if __name__ == "__main__":
    main()
