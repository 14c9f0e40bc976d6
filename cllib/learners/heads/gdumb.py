"""GDumb (Prabhu et al. 2020): keep a class-balanced store, learn from scratch on it at the end of each experience."""

import torch
from torch import Tensor

from cllib.errors import UserError, within
from cllib.learners.heads.vanilla import Vanilla
from cllib.memory import DROPPED, ClassBalance, Store
from cllib.models.classic import Head
from cllib.optim import SGD, Adam
from cllib.randomness import draw, generator
from cllib.streams import Experience


class GDumb(Vanilla):
    """No online step; cross-entropy for `epochs` over the store in shuffled batches, from the initial weights."""

    def __init__(
        self, head: Head, optimiser: SGD | Adam, steps: int, size: int, batch: int, classes: int, epochs: int = 10
    ) -> None:
        super().__init__(head, optimiser, "xent")
        within("gdumb_epochs", epochs, 1)
        self.batch, self.epochs = batch, epochs
        self.balance = ClassBalance(self.runs, size, classes, head.device)
        self.store = Store(self.runs, size, head.device)
        self.u = draw(head.seeds, "memory", lambda g: torch.rand(steps, generator=g)).to(head.device)
        self.shuffles = [generator(seed, "gdumb") for seed in head.seeds]

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        """Store or refuse the sample; the logits are those of the last head trained."""
        self.store.write(self.balance.slot(y[:, 0], self.u[:, self.t]), x=x[:, 0], y=y[:, 0])
        self.t += 1
        return self.head.logits(x)

    def finish(self, experience: Experience) -> None:
        self.head.reset()
        self.optimiser.reset()
        for _ in range(self.epochs):
            for index in self._epoch().split(self.batch, 1):
                items = self.store.read(index)
                gradients = self.head.learn(items["x"], self.on(items["y"]))[1]
                self.optimiser.step(self.head.parameters, gradients)

    def _epoch(self) -> Tensor:
        """Slots in use, in random order: `[R, k]`. UserError if the runs of one program store different numbers."""
        counts = (self.balance.held != DROPPED).sum(1)
        k = int(counts[0])  # slots fill from 0 on
        if (counts != k).any():
            raise UserError("method = 'gdumb': runs that store different numbers of samples must run one by one")
        return torch.stack([torch.randperm(k, generator=g) for g in self.shuffles]).to(self.head.device)

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "buffer": self.store.floats()}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        shuffles = torch.stack([g.get_state() for g in self.shuffles])
        kept = {
            "store": self.store.state_dict(),
            "balance": self.balance.state_dict(),
            "shuffles": {"states": shuffles},
        }
        return {**super().state_dict(), **kept}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        super().load_state_dict(state)
        self.store.load_state_dict(state["store"])
        self.balance.load_state_dict(state["balance"])
        for g, saved in zip(self.shuffles, state["shuffles"]["states"], strict=True):
            g.set_state(saved.clone())  # a view would crash: its offset is ignored
