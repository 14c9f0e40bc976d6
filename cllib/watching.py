"""Looking on while a learner learns: what is called after every step (`watch`) or at every point of a curve (`log`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cllib.training import Array, Log


class Snapshots:
    """A `watch` that keeps what run 0 says on a grid of points, and its keys, after given numbers of samples.

    Args:
        grid: points `[G, n]`.
        at: numbers of samples seen.
    """

    def __init__(self, grid: Tensor, at: Sequence[int]) -> None:
        self.grid, self.wanted = grid, set(at)
        self.classes: dict[int, Array] = {}
        self.keys: dict[int, Array] = {}

    def __call__(self, t: int, learner: Any) -> None:
        if t in self.wanted:
            self.classes[t] = learner.predict(self.grid)[0].argmax(-1).cpu().numpy()
            bank = getattr(learner.head, "bank", None)
            if bank is None or learner.head.config.query != "identity":
                self.keys[t] = np.zeros((0, 2))  # no keys, or none that are points of the plane
            else:
                own = learner.head.banks
                self.keys[t] = bank.keys[:own].flatten(0, 1).cpu().numpy().copy()


def each(logs: Sequence[Log]) -> Log:
    """One log that tells several."""

    def tell(step: int, scalars: Mapping[str, float]) -> None:
        for log in logs:
            log(step, scalars)

    return tell


class TensorBoard:
    """A `log` that writes TensorBoard event files; look with `tensorboard --logdir FOLDER`.

    Args:
        folder: of this run. A run that goes on after a stop writes another file there, and what the first one holds
            from that step on is not shown.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def __call__(self, step: int, scalars: Mapping[str, float]) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and seldom wanted

            self.writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()
