"""What the metaplasticity programs do at the borders of tasks, around any learner of a network."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from cllib.learners.naive import Losses, Naive
from cllib.models.norms import norm_state, set_norm_state
from cllib.streams.base import Experience


class Taskwise:
    """A learner whose optimiser starts afresh in every task, and whose norms are stored at the end of each.

    Test set j is answered with the norms as they were at the end of task j, once that is over; so whoever asks tells
    which task it is. Weights are never stored.

    Args:
        learner: the learner it wraps; reset: forget the optimiser's moments when a task begins; gamma: task i, from 0,
            has the step size lr / gamma^i; own_norms: store the norms, as above.
    """

    def __init__(self, learner: Naive, reset: bool, gamma: float, own_norms: bool) -> None:
        self.learner, self.reset, self.gamma, self.own_norms = learner, reset, gamma, own_norms
        self.told = own_norms or learner.told
        self.norms: list[dict[str, Tensor]] = []  # at the end of every task
        self.tasks = 0

    @property
    def seed(self) -> int:
        return self.learner.seed

    @property
    def network(self) -> nn.Module:
        return self.learner.network

    @property
    def losses(self) -> Losses:
        return self.learner.losses

    def begin(self, experience: Experience) -> None:
        optimiser = self.learner.optimiser
        if self.tasks and self.reset:
            optimiser.state.clear()
        for group in optimiser.param_groups if self.tasks else ():
            group["lr"] /= self.gamma
        self.learner.begin(experience)

    def observe(self, x: Tensor, y: Tensor) -> Tensor:
        return self.learner.observe(x, y)

    def finish(self, experience: Experience) -> None:
        self.learner.finish(experience)
        self.tasks += 1
        if self.own_norms:
            self.norms.append(norm_state(self.network))

    @torch.no_grad()
    def predict(self, x: Tensor, experience: int | None = None) -> Tensor:
        """Logits `[T, C]`, with the norms of the task, where it is told and over; changes nothing."""
        if experience is None or experience >= len(self.norms):
            return self.learner.predict(x)
        present = norm_state(self.network)
        set_norm_state(self.network, self.norms[experience])
        try:
            return self.learner.predict(x)
        finally:
            set_norm_state(self.network, present)

    def parts(self) -> dict[str, list[Tensor]]:
        return {**self.learner.parts(), "norms": [t for state in self.norms for t in state.values()]}

    def sizes(self) -> dict[str, int]:
        return {**self.learner.sizes(), "norms": sum(t.numel() for t in self.parts()["norms"])}

    def bytes(self) -> dict[str, int]:
        return {**self.learner.bytes(), "norms": sum(t.nbytes for t in self.parts()["norms"])}

    def state_dict(self) -> dict[str, Any]:
        return {"learner": self.learner.state_dict(), "norms": deepcopy(self.norms), "tasks": self.tasks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self.norms, self.tasks = deepcopy(state["norms"]), state["tasks"]
