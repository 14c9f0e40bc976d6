"""DER and DER++ (Buzzega et al. 2020): replay with the logits a sample had when it was stored. Ours: the papers
released neither here.
"""

from typing import Any

from torch import Tensor

from cllib.errors import within
from cllib.learners.heads.replay import Replay
from cllib.memory import replay_draws
from cllib.models.classic import Head
from cllib.optim import Gradients, add


class DER(Replay):
    """loss + alpha MSE(o, z) on one draw; with beta > 0 (DER++) also beta times the loss on a second draw."""

    def __init__(
        self,
        head: Head,
        optimiser: Any,
        loss: str,
        steps: int,
        size: int,
        batch: int,
        alpha: float = 0.5,
        beta: float = 0.0,
        **kept: Any,
    ) -> None:
        within("alpha", alpha, 0)
        within("beta", beta, 0)
        super().__init__(head, optimiser, loss, steps, size, batch, **kept)
        self.alpha, self.beta = alpha, beta
        self.second = replay_draws(head.seeds, steps, size, batch, "second replay").to(head.device)

    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        self.store.write(self.slots[:, self.t], x=x[:, 0], y=y[:, 0], logits=logits[:, 0])

    def combine(self, x: Tensor, y: Tensor, gradients: Gradients) -> Gradients:
        parameters = self.head.parameters
        items = self.store.read(self.now(self.draws))
        stored = items["logits"]  # [R, k, c]
        scale = self.alpha * 2 / stored[0].numel()  # d MSE / d o, mean over items and classes
        gradients = add(gradients, self.head.learn(items["x"], lambda o: (o - stored) * scale)[1], parameters)
        if self.beta == 0:
            return gradients
        items = self.store.read(self.now(self.second))
        again = self.head.learn(items["x"], self.on(items["y"], self.beta))[1]
        return add(gradients, again, parameters)
