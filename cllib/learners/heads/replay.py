"""Experience replay, and what the learners with a buffer share.

A step (rules 3): gradient on the current sample; gradient of the loss on r stored items, drawn before
the current one is stored; both add; the sample is stored; one optimiser step.
"""

from torch import Tensor

from cllib.learners.heads.vanilla import Vanilla
from cllib.memory import Store, overwrite_slots, replay_draws, reservoir_slots
from cllib.models.classic import Head
from cllib.optim import SGD, Adam, Gradients, add

SLOTS = {"reservoir": reservoir_slots, "random": overwrite_slots}


class Replay(Vanilla):
    """ER with a reservoir or a randomly overwritten buffer.

    Args:
        steps: length of the stream, for which all indices are drawn beforehand.
        size, batch: items stored and items replayed a step, r.
        keep: "reservoir" or "random".
        off_by_one: the released reservoir (rules, P8).
    """

    def __init__(
        self,
        head: Head,
        optimiser: SGD | Adam,
        loss: str,
        steps: int,
        size: int,
        batch: int,
        keep: str = "reservoir",
        off_by_one: bool = False,
    ) -> None:
        super().__init__(head, optimiser, loss)
        extra = {"off_by_one": off_by_one} if keep == "reservoir" else {}
        self.slots = SLOTS[keep](head.seeds, steps, size, **extra).to(head.device)  # [R, T]
        self.draws = replay_draws(head.seeds, steps, size, batch).to(head.device)  # [R, T, r]
        self.store = Store(self.runs, size, head.device)

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        logits, gradients = self.head.learn(x, self.on(y))
        if self.t > 0:
            gradients = self.combine(x, y, gradients)
        self.remember(x, y, logits)
        self.optimiser.step(self.head.parameters, gradients)
        self.t += 1
        return logits

    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        """Store the current sample where the drawn slots say."""
        self.store.write(self.slots[:, self.t], x=x[:, 0], y=y[:, 0])

    def combine(self, x: Tensor, y: Tensor, gradients: Gradients) -> Gradients:
        """The gradient to step with, from that of the current sample and the store."""
        return add(gradients, self.replayed(self.now(self.draws)), self.head.parameters)

    def now(self, draws: Tensor) -> Tensor:
        """Draws of the current step, `[R, k]` out of `[R, T, r]`: k = r, or what is stored if that is less."""
        return draws[:, self.t, : min(self.t, self.store.size)]

    def replayed(self, index: Tensor) -> Gradients:
        """Gradient of the loss over stored items at `index: [R, k]`."""
        items = self.store.read(index)
        return self.head.learn(items["x"], self.on(items["y"]))[1]

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "buffer": self.store.floats()}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {**super().state_dict(), "store": self.store.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        super().load_state_dict(state)
        self.store.load_state_dict(state["store"])
