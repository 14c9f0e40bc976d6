"""What is remembered: which item goes where, drawn per seed beforehand, and a store with a leading run axis.

Where an item goes never depends on what it is (reservoir, random overwrite), or on its label only (GDumb), so all
indices of a stream are drawn at once from the run's own generators: R runs in one program equal R programs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cllib.errors import UserError
from cllib.randomness import draw, generator

DROPPED = -1


def reservoir_slots(seeds: Sequence[int], steps: int, size: int, off_by_one: bool = False) -> Tensor:
    """Algorithm R (Vitter 1985): slot of each item, `[R, T]`, or DROPPED; every item is kept with probability size /
    seen.

    off_by_one: the released code draws from 0 .. n_seen - 1 *before* counting the item, so the first overflow item is
    always stored and early items survive less often (rules, P8).
    """
    t = torch.arange(steps)
    span = (t + (0 if off_by_one else 1)).clamp(min=1)
    u = draw(seeds, "memory", lambda g: torch.rand(steps, generator=g, dtype=torch.float64))
    slot = (u * span).long()
    slot = torch.where(slot < size, slot, DROPPED)
    return torch.where(t < size, t, slot)


def overwrite_slots(seeds: Sequence[int], steps: int, size: int) -> Tensor:
    """ER random: fill, then overwrite a uniform slot with probability 1/2, else DROPPED: `[R, T]`."""
    t = torch.arange(steps)
    u = draw(seeds, "memory", lambda g: torch.rand(2, steps, generator=g, dtype=torch.float64))
    slot = torch.where(u[:, 0] < 0.5, (u[:, 1] * size).long(), DROPPED)
    return torch.where(t < size, t, slot)


def replay_draws(seeds: Sequence[int], steps: int, size: int, batch: int, purpose: str = "replay") -> Tensor:
    """Items to replay at each step, uniform without replacement among those stored before it: `[R, T, batch]`.

    With fewer than `batch` items stored, they come first and the rest is DROPPED. Floyd's algorithm, all steps and
    runs at once.
    """
    stored = torch.arange(steps).clamp(max=size)
    wanted = stored.clamp(max=batch)
    u = draw(seeds, purpose, lambda g: torch.rand(batch, steps, generator=g, dtype=torch.float64))
    chosen = torch.full((len(seeds), steps, batch), DROPPED)
    for k in range(batch):
        last = stored - wanted + k
        pick = (u[:, k] * (last + 1)).long()  # [R, T]
        taken = (chosen[..., :k] == pick.unsqueeze(-1)).any(-1)
        pick = torch.where(taken, last, pick)
        chosen[..., k] = torch.where(k < wanted, pick, DROPPED)
    return chosen


class ClassBalance:
    """GDumb's greedy class-balanced choice for R runs (rules 3, P9).

    With C classes stored the quota is size // C. An item is taken if its class is unseen or below quota; when the
    store is full it replaces a random item of the largest class (on ties the class stored first).
    """

    def __init__(self, runs: int, size: int, classes: int, device: str | torch.device = "cpu") -> None:
        self.size = size
        self.held = torch.full((runs, size), DROPPED, device=device)
        self.counts = torch.zeros(runs, classes, dtype=torch.long, device=device)
        self.since = torch.full((runs, classes), 2**30, device=device)  # when a class was first stored
        self.seen = 0

    def slot(self, y: Tensor, u: Tensor) -> Tensor:
        """Where the next item of class `y: [R]` goes, `[R]`, or DROPPED; `u: [R]` in [0, 1) picks the victim."""
        row, stored = torch.arange(len(y), device=y.device), self.counts.sum(1)
        mine = self.counts[row, y]
        take = (mine == 0) | (mine < self.size // (self.counts > 0).sum(1).clamp(min=1))
        largest = (self.counts * 2**31 - self.since).argmax(1)
        slot = torch.where(stored >= self.size, self._victim(largest, u), stored.clamp(max=self.size - 1))
        evicts, into = take & (stored >= self.size), row[take]
        self.counts[row[evicts], largest[evicts]] -= 1
        self.counts[into, y[take]] += 1
        self.since[into, y[take]] = self.since[into, y[take]].clamp(max=self.seen)
        self.held[into, slot[take]] = y[take]
        self.seen += 1
        return torch.where(take, slot, DROPPED)

    def _victim(self, largest: Tensor, u: Tensor) -> Tensor:
        """A random slot among those holding class `largest: [R]`."""
        candidates = self.held == largest.unsqueeze(1)  # [R, size]
        nth = (u * candidates.sum(1)).long()
        return (candidates & (candidates.cumsum(1) == nth.unsqueeze(1) + 1)).int().argmax(1)

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "held": self.held.clone(),
            "counts": self.counts.clone(),
            "since": self.since.clone(),
            "seen": torch.tensor(self.seen),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.held, self.counts, self.since = (state[name].clone() for name in ("held", "counts", "since"))
        self.seen = int(state["seen"])


class Store:
    """R stores of `size` items each; an item is a set of named tensors, e.g. x `[n]`, y `[]`, logits `[c]`."""

    def __init__(self, runs: int, size: int, device: str | torch.device = "cpu") -> None:
        self.runs, self.size, self.device = runs, size, device
        self.items: dict[str, Tensor] = {}
        self._row = torch.arange(runs, device=device)

    def write(self, slot: Tensor, **item: Tensor) -> None:
        """Put `item[name]: [R, ...]` at `slot: [R]`; DROPPED slots go to a spare row, which no draw points to."""
        for name, value in item.items():
            if name not in self.items:
                self.items[name] = value.new_zeros(self.runs, self.size + 1, *value.shape[1:])
            self.items[name][self._row, slot] = value  # DROPPED = -1 is the spare row

    def read(self, index: Tensor) -> dict[str, Tensor]:
        """Items at `index: [R, k]`: `[R, k, ...]` each."""
        return {name: values[self._row.unsqueeze(1), index] for name, values in self.items.items()}

    def floats(self) -> int:
        """Numbers kept per run."""
        return sum(values[0, : self.size].numel() for values in self.items.values())

    def state_dict(self) -> dict[str, Tensor]:
        return {name: values.clone() for name, values in self.items.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.items = {name: values.clone() for name, values in state.items()}


# --- one run, batches of any size: the memories of learners of networks ---


def reservoir_batch(seen: int, count: int, size: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Algorithm R on `count` items after `seen` others: the rows of the batch that stay, and their slots, `[k]` each.

    Of two items for one slot the later one stays, as if they had come one by one.
    """
    t = seen + torch.arange(count)
    u = torch.rand(count, generator=draws, dtype=torch.float64)
    slot = torch.where(t < size, t, (u * (t + 1)).long())
    rows = torch.nonzero(slot < size).squeeze(1)
    last = dict(zip(slot[rows].tolist(), rows.tolist(), strict=True))
    return torch.tensor([*last.values()], dtype=torch.long), torch.tensor([*last], dtype=torch.long)


class Reservoir:
    """At most `size` items, uniform over all that were added (Vitter 1985); an item is a set of named tensors.

    dtype: how x is stored, "float32", or "pixels", a byte a number: exact for what once was an image; what lies outside
    [0, 1] is cut off, for to look would keep a GPU waiting.
    """

    def __init__(self, size: int, seed: int, dtype: str = "float32") -> None:
        self.size, self.seen, self.dtype = size, 0, dtype
        self.items: dict[str, Tensor] = {}
        self.draws, self.picks = generator(seed, "memory"), generator(seed, "replay")

    def __len__(self) -> int:
        return min(self.seen, self.size)

    def add(self, **batch: Tensor) -> None:
        """Offer items, `batch[name]: [B, ...]`."""
        count = len(next(iter(batch.values())))
        rows, slots = reservoir_batch(self.seen, count, self.size, self.draws)
        self._write(rows, slots, batch)
        self.seen += count

    def _write(self, rows: Tensor, slots: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Put rows of the batch into their slots, each slot named once."""
        if self.dtype == "pixels":
            batch = {**batch, "x": (batch["x"] * 255).round().clamp(0, 255).to(torch.uint8)}
        for name, values in batch.items():
            if name not in self.items:
                self.items[name] = values.new_zeros(self.size, *values.shape[1:])
            self.items[name][slots.to(values.device)] = values[rows.to(values.device)]

    def draw(self, count: int) -> dict[str, Tensor] | None:
        """`count` stored items without repetition, all if there are fewer, None if there are none: `[k, ...]` each."""
        if count == 0 or len(self) == 0:
            return None
        index = torch.randperm(len(self), generator=self.picks)[:count]
        return shown({name: values[index.to(values.device)] for name, values in self.items.items()})

    def all(self) -> dict[str, Tensor]:
        """All stored items."""
        return shown({name: values[: len(self)] for name, values in self.items.items()})

    def state_dict(self) -> dict[str, Any]:
        generators = {"draws": self.draws.get_state(), "picks": self.picks.get_state()}
        return {"items": {name: values.clone() for name, values in self.items.items()}, "seen": self.seen, **generators}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.items = {name: values.clone() for name, values in state["items"].items()}
        self.seen = state["seen"]
        self.draws.set_state(state["draws"].clone())
        self.picks.set_state(state["picks"].clone())


def balanced_slot(label: int, held: Sequence[int], counts: Mapping[int, int], size: int, u: float) -> int:
    """GDumb's greedy choice for one run, by the rule of `ClassBalance`: where an item of this class goes, or DROPPED.

    held: classes of the stored items by slot; counts: of the classes ever stored, in the order they came; `u` in [0, 1)
    picks the victim.
    """
    mine = counts.get(label, 0)
    if mine and mine >= size // sum(count > 0 for count in counts.values()):
        return DROPPED
    if len(held) < size:
        return len(held)
    largest = max(counts, key=lambda c: counts[c])
    candidates = [slot for slot, c in enumerate(held) if c == largest]
    return candidates[int(u * len(candidates))]


class Balanced(Reservoir):
    """At most `size` items, greedily balanced over the classes (Prabhu et al. 2020); `y` is the item's class."""

    def __init__(self, size: int, seed: int, dtype: str = "float32") -> None:
        super().__init__(size, seed, dtype)
        self.held: list[int] = []
        self.counts: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.held)

    def add(self, **batch: Tensor) -> None:
        labels = batch["y"].tolist()
        chance = torch.rand(len(labels), generator=self.draws, dtype=torch.float64).tolist()
        rows: dict[int, int] = {}
        for row, (label, u) in enumerate(zip(labels, chance, strict=True)):
            slot = balanced_slot(label, self.held, self.counts, self.size, u)
            if slot != DROPPED:
                self._replace(slot, label)
                rows[slot] = row
        self._write(torch.tensor([*rows.values()], dtype=torch.long), torch.tensor([*rows], dtype=torch.long), batch)
        self.seen += len(labels)

    def _replace(self, slot: int, label: int) -> None:
        for old in self.held[slot : slot + 1]:
            self.counts[old] -= 1
        self.held[slot : slot + 1] = [label]
        self.counts[label] = self.counts.get(label, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "held": [*self.held], "counts": {**self.counts}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.held, self.counts = [*state["held"]], {**state["counts"]}


# --- latents: AR1's replacement ---

DTYPES = ("float32", "float16", "int8", "pixels")


def quota(size: int, experience: int, available: int, held: int) -> int:
    """How many items experience i, from 0, puts into a buffer: h = size div (i + 1), as far as there are so many.

    available: samples it has to give; held: items in the buffer, of which no more can be replaced once it was filled.
    """
    return min(size // (experience + 1), available, held if experience else size)


def encode(x: Tensor, dtype: str) -> dict[str, Tensor]:
    """Items `[n, ...]` as they are stored: as they are, in half the bytes, or a quarter.

    "int8": each vector (last axis) in whole numbers of a 127th of its largest; "pixels": numbers in [0, 1] as
    0 ... 255, exact for what once was an image.
    """
    if dtype == "int8":
        scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-12)
        return {"x": (x / scale).round().to(torch.int8), "scale": scale}
    if dtype == "pixels":
        low, high = float(x.min()), float(x.max())
        if not 0 <= low <= high <= 1:
            raise UserError(f"dtype = 'pixels': only for numbers in [0, 1], not from {low:g} to {high:g}")
        return {"x": (x * 255).round().to(torch.uint8)}
    return {"x": x.to(getattr(torch, dtype), copy=True)}


def decode(items: Mapping[str, Tensor], like: torch.dtype = torch.float32) -> Tensor:
    """What `encode` was given, as nearly as its type allows."""
    x = items["x"]
    if x.dtype == torch.uint8:
        return x.to(like) / 255
    return x.to(like) * items["scale"] if "scale" in items else x.to(like)


def shown(items: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored items as a network takes them: pixels as numbers in [0, 1], the rest as it is."""
    return {**items, "x": decode(items)} if "x" in items and items["x"].dtype == torch.uint8 else dict(items)


class LatentBuffer:
    """Items and labels, filled once; later items replace random ones (AR1 with latent replay, Pellegrini et al. 2020).

    The labels `y: [n]` are stored as they are; `dtype` says how items are (`encode`).
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.items: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.items["y"]) if self.items else 0

    def put(self, x: Tensor, y: Tensor, slots: Tensor | None = None) -> None:
        """Fill the buffer with `x: [n, ...]`, `y: [n]`, or replace what lies in `slots: [n]`, each named once."""
        new = {**encode(x, self.dtype), "y": y.clone()}
        if slots is None:
            self.items = new
            return
        for name, values in new.items():
            self.items[name][slots.to(values.device)] = values

    def take(self, rows: Tensor, like: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Items and labels of some slots."""
        own = {name: values[rows.to(values.device)] for name, values in self.items.items()}
        return decode(own, like), own["y"]

    def state_dict(self) -> dict[str, Tensor]:
        return {name: values.clone() for name, values in self.items.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.items = {name: values.clone() for name, values in state.items()}
