"""Joint training: every batch is drawn from all experiences so far. An upper bound, no continual learner."""

from collections.abc import Mapping
from typing import Any, ClassVar

from cllib.learners.naive import Naive
from cllib.streams.base import Experience


class Joint(Naive):
    """Plain training on all data so far, with as many steps as the others take.

    The loop draws its batches (`joint`); what is carried along, and counted in `sizes`, is the data itself.
    """

    joint: ClassVar[bool] = True

    def __init__(self, settings: Any, *parts: Any, **named: Any) -> None:
        super().__init__(settings, *parts, **named)
        self.data = {"numbers": 0, "bytes": 0}

    def begin(self, experience: Experience) -> None:
        self.data["numbers"] += experience.x.numel() + experience.y.numel()
        self.data["bytes"] += experience.x.nbytes + experience.y.nbytes

    def sizes(self) -> dict[str, int]:
        return {**super().sizes(), "data": self.data["numbers"]}

    def bytes(self) -> dict[str, int]:
        return {**super().bytes(), "data": self.data["bytes"]}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "data": {**self.data}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.data = {**state["data"]}
