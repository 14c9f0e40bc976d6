"""MIR (Aljundi et al. 2019): replay the stored items that the coming step would hurt most."""

from typing import Any

from torch import Tensor

from cllib.errors import within
from cllib.learners.heads.replay import Replay
from cllib.losses import LOSSES
from cllib.memory import replay_draws
from cllib.models.classic import Head
from cllib.optim import Gradients, add, dense


class MIR(Replay):
    """Draws `pool * batch` candidates and replays the `batch` whose loss a virtual SGD step raises most.

    pool = 1 is what the released code does: it ranks r candidates and keeps r, which is ER (rules, P7).
    """

    def __init__(
        self, head: Head, optimiser: Any, loss: str, steps: int, size: int, batch: int, pool: int = 5, **kept: Any
    ) -> None:
        within("pool", pool, 1)
        super().__init__(head, optimiser, loss, steps, size, batch, **kept)
        self.batch, self.loss = batch, LOSSES[loss]
        self.candidates = replay_draws(head.seeds, steps, size, pool * batch).to(head.device)  # [R, T, pool r]

    def combine(self, x: Tensor, y: Tensor, gradients: Gradients) -> Gradients:
        index = self.now(self.candidates)
        worst = self._rise(index, gradients).topk(min(self.batch, index.shape[1]), 1).indices
        return add(gradients, self.replayed(index.gather(1, worst)), self.head.parameters)

    def _rise(self, index: Tensor, gradients: Gradients) -> Tensor:
        """How much the loss of each candidate grows by p <- p - rho g: `[R, k]`."""
        items, parameters = self.store.read(index), self.head.parameters
        after = {name: self._stepped(p, dense(gradients[name], p)) for name, p in parameters.items()}
        old, new = (self.loss(self.head.logits(items["x"], p), items["y"]) for p in (parameters, after))
        return new - old

    def _stepped(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        rho = self.optimiser.step_size.repeat_interleave(len(parameter) // self.runs)
        return parameter - rho.view(-1, *[1] * (parameter.dim() - 1)) * gradient
