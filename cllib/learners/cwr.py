"""CWR* (Lomonaco et al. 2020): a frozen body, and a classifier whose rows are averaged over the experiences."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cllib.errors import flag
from cllib.learners.naive import Losses, Naive
from cllib.models.networks import classifier
from cllib.streams.base import Experience


@dataclass(frozen=True)
class CWRSettings:
    """freeze: train the body in the first experience only (off: AR1's variant, the body goes on learning)."""

    freeze: bool = True

    def __post_init__(self) -> None:
        flag("freeze", self.freeze)


def consolidate(kept: Tensor, trained: Tensor, past: Tensor, now: Tensor) -> Tensor:
    """New consolidated rows cw `[C, d]` for the classes seen in this experience; other rows stay.

    kept: cw; trained: W; past, now: samples of each class before and in this experience, `[C]`. With mu the mean over
    all numbers of the rows seen now, and a = sqrt(past / now): cw <- (a cw + W - mu) / (a + 1).
    """
    seen = (now > 0)[:, None]  # [C, 1]
    mean = torch.where(seen, trained, 0).sum() / (seen.sum() * trained.shape[1]).clamp(min=1)
    weight = (past / now.clamp(min=1)).sqrt()[:, None]
    return torch.where(seen, (weight * kept + trained - mean) / (weight + 1), kept)


class CWR(Naive):
    """The network's last linear layer starts every experience from the kept rows of its classes, all else 0.

    A bias is part of its row. Between experiences the layer holds all rows kept so far.
    """

    Settings = CWRSettings

    def __init__(self, settings: Any, *parts: Any, **named: Any) -> None:
        super().__init__(settings, *parts, **named)
        self.layer = classifier(self.network)
        self.kept = torch.zeros_like(self._rows())  # cw
        self.past = torch.zeros_like(self.kept[:, 0])
        self.now = self.past.clone()
        self.learned = 0  # experiences

    def begin(self, experience: Experience) -> None:
        own = torch.zeros_like(self.past, dtype=torch.bool)
        own[list(experience.classes)] = True
        self._write(torch.where(own[:, None], self.kept, 0))
        self._freeze()

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Losses]:
        if self.learned and self.settings.freeze:
            self.network.eval()  # a frozen body also keeps its statistics
        return super().objective(x, y)

    def remember(self, x: Tensor, y: Tensor, logits: Tensor) -> None:
        self.now += torch.zeros_like(self.now).scatter_add_(0, y, torch.ones_like(y, dtype=self.now.dtype))

    def predict(self, x: Tensor, experience: int | None = None) -> Tensor:
        """Logits with the rows as they would be if the experience ended now: old classes are not out of play."""
        rows = self._rows()
        self._write(consolidate(self.kept, rows, self.past, self.now))
        logits = super().predict(x)
        self._write(rows)
        return logits

    def finish(self, experience: Experience) -> None:
        self.kept = consolidate(self.kept, self._rows(), self.past, self.now)
        self._write(self.kept)
        self.past += self.now
        self.now.zero_()
        self.learned += 1

    def _rows(self) -> Tensor:
        """The layer's weights and bias, `[C, d (+ 1)]`."""
        bias = [] if self.layer.bias is None else [self.layer.bias.detach()[:, None]]
        return torch.cat([self.layer.weight.detach(), *bias], 1)

    @torch.no_grad()
    def _write(self, rows: Tensor) -> None:
        self.layer.weight.copy_(rows[:, : self.layer.in_features])
        if self.layer.bias is not None:
            self.layer.bias.copy_(rows[:, -1])

    def _freeze(self) -> None:
        """After the first experience the body's parameters want no gradient."""
        if self.learned and self.settings.freeze:
            own = {id(p) for p in self.layer.parameters()}
            for p in self.network.parameters():
                if id(p) not in own:
                    p.requires_grad_(False)

    def parts(self) -> dict[str, list[Tensor]]:
        return {**super().parts(), "kept rows": [self.kept, self.past, self.now]}

    def state_dict(self) -> dict[str, Any]:
        kept = {"kept": self.kept, "past": self.past, "now": self.now, "learned": self.learned}
        return {**super().state_dict(), **deepcopy(kept)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.kept, self.past, self.now = (state[name].clone() for name in ("kept", "past", "now"))
        self.learned = state["learned"]
        self._freeze()
