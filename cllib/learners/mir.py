"""MIR (Aljundi et al. 2019): replay the stored samples that the coming step would hurt most."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from cllib.errors import whole
from cllib.learners.er import ER, ReplaySettings
from cllib.learners.naive import Losses, Naive
from cllib.models.networks import evaluating, trainable


@dataclass(frozen=True)
class MIRSettings(ReplaySettings):
    """pool: how many times `replay_size` candidates are looked at (1 is ER)."""

    pool: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("pool", self.pool, 1)


class MIR(ER):
    """Draws pool * replay_size candidates; replays those whose loss a virtual SGD step on the batch raises most."""

    Settings = MIRSettings

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        size = self.settings.replay_size
        candidates = self.memory.draw(self.settings.pool * size)
        if candidates is None:
            return Naive.objective(self, x, y)
        rise = self.rise(x, y, candidates["x"], candidates["y"])
        worst = rise.topk(min(size, len(rise))).indices
        x2, y2 = candidates["x"][worst], candidates["y"][worst]
        logits = self.network(torch.cat([x, x2]))
        return logits[: len(y)], {"loss": self.cross_entropy(logits, torch.cat([y, y2]))}

    def rise(self, x: Tensor, y: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
        """How much the loss of each candidate `x2: [k, ...]` grows by p <- p - rho g(x, y): `[k]`.

        Both passes are in evaluation mode, so that looking changes no statistics.
        """
        parameters = trainable(self.network)
        rate = self.optimiser.param_groups[0]["lr"]
        with evaluating(self.network):
            loss = self.cross_entropy(self.network(x), y)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            pairs = zip(parameters.items(), gradients, strict=True)
            after = {name: p.detach() if g is None else p.detach() - rate * g for (name, p), g in pairs}
            with torch.no_grad():
                old = self.cross_entropy(self.network(x2), y2, "none")
                new = self.cross_entropy(functional_call(self.network, after, (x2,)), y2, "none")
        return new - old
