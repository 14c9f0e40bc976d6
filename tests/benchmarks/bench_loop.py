"""Prints what the loop, the default path and the checkpoints cost beside a bare PyTorch loop. Run by `make bench`.

The setting other libraries were measured in: images of MNIST's shape, 5 experiences of 2 classes, MLP 784-400-400-10,
batches of 128 new and 128 replayed samples from a buffer of 2000, SGD, one thread. CPU time of the process.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from cllib.checkpoints import Keeper
from cllib.datasets.labelled import Labelled
from cllib.experiments import compare
from cllib.learners.er import ReplaySettings
from cllib.models.networks import MLP
from cllib.recipes import Recipe
from cllib.streams import Stream, sequence, split
from cllib.training import train

BATCH, BUFFER, RATE = 128, 2000, 0.01
ER = Recipe("er", ReplaySettings(BUFFER, BATCH), MLP((400, 400)), step_size=RATE, batch_size=BATCH)
ROUNDS = 7


def fabricated(train_samples: int = 60_000, test_samples: int = 10_000) -> Stream:
    """Random images of MNIST's shape; only the time they take matters."""
    g = torch.Generator().manual_seed(0)

    def images(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randint(0, 256, (n, 1, 28, 28), generator=g, dtype=torch.uint8), torch.arange(n) % 10

    data = Labelled("fabricated", *images(train_samples), *images(test_samples), tuple("0123456789"))
    return sequence("bench", split(data, 5), "class")


def bare(stream: Stream) -> None:
    """What one would write by hand: float tensors, an index a batch, a reservoir, a test after each experience."""
    net = MLP((400, 400)).build(stream.shape, stream.classes)
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE)
    kept_x, kept_y, seen = torch.zeros(BUFFER, 1, 28, 28), torch.zeros(BUFFER, dtype=torch.long), 0
    for experience in stream.experiences:
        x, y = experience.x.float() / 255, experience.y
        for index in torch.randperm(len(y)).split(BATCH):
            new_x, new_y = x[index], y[index]
            shown_x, shown_y = new_x, new_y
            if seen:
                drawn = torch.randperm(min(seen, BUFFER))[:BATCH]
                shown_x, shown_y = torch.cat([new_x, kept_x[drawn]]), torch.cat([new_y, kept_y[drawn]])
            optimiser.zero_grad()
            F.cross_entropy(net(shown_x), shown_y).backward()
            optimiser.step()
            position = seen + torch.arange(len(new_y))
            slot = torch.where(position < BUFFER, position, (torch.rand(len(new_y)) * (position + 1)).long())
            stay = slot < BUFFER
            kept_x[slot[stay]], kept_y[slot[stay]] = new_x[stay], new_y[stay]
            seen += len(new_y)
        with torch.no_grad():
            for test in stream.tests:
                (net(test.x.float() / 255).argmax(1) == test.y).float().mean().item()


def loop(stream: Stream, keeper: Keeper | None = None) -> None:
    """The loop alone: no curve, nothing kept."""
    train(ER.build(stream, 0), stream, ER.feed(stream, 0), progress=False, track_every=10_000, keeper=keeper)


def default(stream: Stream) -> None:
    """What a user calls, nothing left out: hashes, checkpoints, the test curve, the record."""
    with tempfile.TemporaryDirectory() as store:
        compare("bench", stream, {"er": ER}, [0], store=Path(store))


def best_ms(work: dict[str, Callable[[], None]], steps: int) -> dict[str, float]:
    """CPU ms a step of each, the best of a few interleaved rounds: what else the machine does only adds."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, call in work.items():
            begin = time.process_time()
            call()
            times[name].append((time.process_time() - begin) / steps * 1e3)
    return {name: min(values) for name, values in times.items()}


def checkpoint_share(stream: Stream) -> tuple[float, int]:
    """The share of the wall clock that checkpoints took at the default frequency, and how many there were."""
    with tempfile.TemporaryDirectory() as folder:
        keeper = Keeper(Path(folder) / "checkpoint.pt", "bench", keep=False)
        count, save = [0], keeper.save

        def counted(state: dict) -> None:
            count[0] += 1
            save(state)

        keeper.save = counted  # type: ignore[method-assign]
        begin = time.perf_counter()
        loop(stream, keeper)
        return keeper.spent / (time.perf_counter() - begin), count[0]


def import_seconds(module: str) -> float:
    """CPU seconds of a new Python that imports a module, the median of a few."""
    code = f"import {module}, resource; u = resource.getrusage(resource.RUSAGE_SELF); print(u.ru_utime + u.ru_stime)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    return statistics.median(float(run.stdout) for run in runs)


def main() -> None:
    torch.set_num_threads(1)
    stream = fabricated()
    steps = sum(-(-len(e) // BATCH) for e in stream.experiences)
    bare(stream)  # warm up
    found = best_ms(
        {
            "bare loop": lambda: bare(stream),
            "training.train": lambda: loop(stream),
            "default path": lambda: default(stream),
        },
        steps,
    )
    print("\nMLP 784-400-400-10, 128 new + 128 replayed, one thread, tests after every experience included")
    print(f"{'':16} {'CPU ms a step':>14} {'times bare':>11}")
    for name, cost in found.items():
        print(f"{name:16} {cost:14.2f} {cost / found['bare loop']:11.3f}")
    share, count = checkpoint_share(stream)
    print(f"\ncheckpoints at the default frequency: {share:.2%} of the time ({count} written)")
    torch_seconds = import_seconds("torch")
    for module in ("cllib", "cllib.training", "cllib.experiments"):
        seconds = import_seconds(module)
        print(f"import {module:18} {seconds:5.2f} CPU s, {seconds / torch_seconds:4.2f} x import torch")


if __name__ == "__main__":
    main()
