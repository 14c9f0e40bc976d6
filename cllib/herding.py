"""Which samples stand for a class, and a memory with equally many of each (iCaRL, Rebuffi et al. 2017)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cllib.datasets.labelled import nth_of_class
from cllib.errors import UserError
from cllib.memory import decode, encode

LONGEST = 1000  # picks, repeated ones included


def herd(features: Tensor, count: int) -> Tensor:
    """Rows whose running mean keeps closest to the mean direction of `features: [n, F]`, best first, `[min(count, n)]`.

    With unit rows f and their mean m: w = m; again and again pick argmax f w, and w += m - f. A row that is picked
    again is not taken again. What is missing after `LONGEST` picks is filled with the rows that w then likes best.
    """
    unit = features.double().cpu()
    unit = unit / (unit.norm(dim=1, keepdim=True) + 1e-8)
    mean = unit.mean(0)
    w, picked = mean.clone(), dict[int, None]()
    for _ in range(LONGEST):
        if len(picked) >= min(count, len(unit)):
            break
        row = int((unit @ w).argmax())
        picked[row] = None
        w += mean - unit[row]
    rest = (unit @ w).argsort(descending=True).tolist()
    return torch.tensor([*dict.fromkeys([*picked, *rest])][:count], dtype=torch.long)


def quota(size: int, classes: int) -> int:
    """m = floor(M / C), items a class. Raises UserError where there would be none."""
    if size < classes:
        raise UserError(f"buffer_size = {size}: must hold one of each of {classes} classes")
    return size // classes


class Exemplars:
    """Items of all classes so far, equally many of each, each class in the order in which it was chosen.

    A class that comes in several experiences counts as several.

    Args:
        size: M, items at most; dtype: how they are stored (`memory.encode`), None: as they come.
    """

    def __init__(self, size: int, dtype: str | None = None) -> None:
        self.size, self.dtype = size, dtype
        self.items: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.items["y"]) if self.items else 0

    def add(self, x: Tensor, y: Tensor, each: int) -> None:
        """Cut every class to its first `each` items, then append `x: [n, ...]`, `y: [n]`, of new classes."""
        new = {**({"x": x.clone()} if self.dtype is None else encode(x, self.dtype)), "y": y.clone()}
        started = int(self.items["kind"].max()) + 1 if self.items else 0
        new["kind"] = started + y.unique(return_inverse=True)[1]
        if self.items:
            kept = nth_of_class(self.items["kind"], started) < each
            new = {name: torch.cat([values[kept], new[name]]) for name, values in self.items.items()}
        self.items = new

    def take(self, rows: Tensor, like: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Items `[k, ...]` and labels `[k]` of some rows."""
        own = {name: values[rows.to(values.device)] for name, values in self.items.items()}
        return own["x"] if self.dtype is None else decode(own, like), own["y"]

    def state_dict(self) -> dict[str, Any]:
        return {name: values.clone() for name, values in self.items.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.items = {name: values.clone() for name, values in state.items()}
