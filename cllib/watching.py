"""Looking on while a learner learns: what is called after every step (`watch`) or at every point of a curve (`log`)."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

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


class Copies:
    """A `watch` that keeps the network as it was after given steps.

    Args:
        at: steps since the start.

    Attributes:
        networks: in evaluation mode, by step.
    """

    def __init__(self, at: Sequence[int]) -> None:
        self.wanted = set(at)
        self.networks: dict[int, Any] = {}

    def __call__(self, step: int, learner: Any) -> None:
        if step in self.wanted:
            self.networks[step] = deepcopy(learner.network).eval()


class Lag:
    """A `watch` of `learners.birt`: how far the semantic memory is from the working model.

    Attributes:
        rows: steps so far, |theta_s - theta_w| over what both have, and updates so far; none in the first experience.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, int]] = []

    def __call__(self, step: int, learner: Any) -> None:
        if learner.semantic is not None:
            now = dict(learner.split.above.named_parameters())
            pairs = [(p, now[name]) for name, p in learner.semantic.named_parameters() if "divergence" not in name]
            squares = sum(float((slow - fast).detach().square().sum()) for slow, fast in pairs)
            self.rows.append((step, squares**0.5, learner.updates))


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


class ReleasedScalars:
    """What the released ViT-LR program writes to TensorBoard, under its names: a `watch` and a `log` of one run.

    After every step `train_loss` and `train_accuracy` (replayed samples included); after experience i `test_loss`,
    `test_accuracy`, `C/class accuracy` and `C/rm count` (needs `track_classes`), and for every tensor that learns but
    biases `NAME/avg_grad` and `NAME/max_grad`: over the steps of the experience, mean and largest size of its gradient
    (the original adds up all tensors before it in the list).

    Args:
        write: takes name, value and step, such as `SummaryWriter.add_scalar`.
    """

    def __init__(self, write: Callable[[str, float, int], Any]) -> None:
        self.written: set[str] = set()
        self.experience = 0

        def noted(name: str, value: float, step: int) -> None:
            self.written.add(name)
            write(name, value, step)

        self.write = noted
        self.sizes: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def watch(self, step: int, learner: Any) -> None:
        if not learner.losses:
            return  # before the first step
        self.write("train_loss", float(sum(learner.losses.values())), step)
        self.write("train_accuracy", float(learner.right.double().mean()), step)
        for name, p in learning(learner.network):
            if p.grad is not None:
                self.sizes.setdefault(name, []).append((p.grad.abs().mean(), p.grad.abs().max()))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        if "test loss" not in scalars:
            return  # a point of the curve
        names = {"accuracy": "test_accuracy", "test loss": "test_loss"}
        names |= {n: f"{n.split('/')[1]}/class accuracy" for n in scalars if n.startswith("by_class/")}
        names |= {n: f"{n.split('/')[1]}/rm count" for n in scalars if n.startswith("held/")}
        for name, shown in names.items():
            if name in scalars:
                self.write(shown, scalars[name], self.experience)
        for name, sizes in self.sizes.items():
            means, largest = zip(*sizes, strict=True)
            self.write(f"{name}/avg_grad", float(sum(means)) / len(means), self.experience)
            self.write(f"{name}/max_grad", float(max(largest)), self.experience)
        self.experience, self.sizes = self.experience + 1, {}


def learning(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Tensors that learn, by name, but biases."""
    return [(n, p) for n, p in network.named_parameters() if p.requires_grad and not n.endswith("bias")]
