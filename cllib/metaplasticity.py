"""Metaplasticity: the larger a hidden weight, the less it follows updates that would shrink it.

Laborieux et al. 2021. With W a gated weight, u the first moment of Adam and a the step size with bias corrections:

    W <- W - a * (f_meta(m, W) * u  where W * u > 0,  else u) / (sqrt(v) + eps),     f_meta = 1 - tanh(m |W|)^2
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cllib.errors import UserError, one_of, within
from cllib.fingerprint import Registry
from cllib.models.binary import binary_weights, gated
from cllib.randomness import generator

# Which updates are weakened: the rule, and controls.
GATES = ("shrinking", "growing", "both", "shuffled")
PUBLISHED_STEPS = 24_000  # a task in the paper's permuted MNIST: 40 epochs of 600 batches
EPS = 1e-8
BLOCK = 2**19


def f_meta(m: float, w: Tensor) -> Tensor:
    """1 - tanh(m |w|)^2: 1 for a free weight, 0 for a consolidated one (in float32 exactly 0 from m |w| = 9.1 on)."""
    return 1 - (m * w).tanh().square()


SPARE: dict[str, Tensor] = Registry()  # memory to work in; no result depends on it


def workspace(name: str, like: Tensor, size: int) -> Tensor:
    """Memory for `size` values like those of a tensor, the same at every call: new large tensors cost page faults."""
    key = f"{threading.get_ident()} {name} {like.dtype} {like.device}"
    if key not in SPARE or len(SPARE[key]) < size:
        SPARE[key] = torch.empty(size, dtype=like.dtype, device=like.device)
    return SPARE[key][:size]


def weaken(new: Tensor, old: Tensor, u: Tensor, m: float, gate: str = "shrinking", lent: Tensor | None = None) -> None:
    """new <- old + f * (new - old) in place, f = f_meta(m, size) where the gate holds, else 1; all `[n]`.

    old: W before the step; u: the first moment, which is descended. gate: one of `GATES`: held are steps towards zero
    (the rule), those away from it, all, or those towards zero with the sizes `lent: [n]` of other weights. f_meta as
    4 s (1 - s), s = 1 / (1 + exp(-2 m size)): the same function, and torch's sigmoid is six times as fast as its tanh.
    Where f is 1 `new` stays, bit for bit; where it is 0 it becomes `old`.
    """
    size = workspace("size", new, len(new))
    if gate == "both":
        torch.abs(old, out=size)
    else:
        torch.sign(u, out=size).mul_(old)  # |W| where the step leads towards zero, -|W| where it leads away
        if lent is not None:
            size.sign_().mul_(lent)
        if gate == "growing":
            size.neg_()
        size.clamp_(min=0)
    s = size.mul_(2 * m).sigmoid_()
    f = torch.addcmul(s, s, s, value=-1, out=s).mul_(4)
    torch.lerp(old, new, f, out=new)


class MetaplasticAdam(torch.optim.Adam):
    """Adam whose updates of some tensors are weakened; parameter groups carry their coefficient `meta`, m.

    The epsilon stands outside the bias correction, as in the paper's program (and torch 1.1). The moments themselves
    are those of plain Adam; with m = 0 it is plain Adam. Raises UserError for impossible values.

    Args:
        params: parameters, or groups of them with their own `meta`, `lr` ... (`groups` makes some).
        lr, betas, weight_decay: Adam's; the decay is added to the gradient.
        meta: m of groups that do not say.
        gate: one of `GATES`; seed: of the shuffle that "shuffled" fixes once for every tensor.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.005,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        meta: float = 0.0,
        gate: str = "shrinking",
        seed: int = 0,
    ) -> None:
        one_of("gate", gate, GATES)
        within("meta", meta, 0)
        super().__init__(params, lr, betas, EPS, weight_decay)
        self.gate, self.seed = gate, seed
        self.shuffles: dict[nn.Parameter, Tensor] = {}
        everything = [p for group in self.param_groups for p in group["params"]]
        for group in self.param_groups:
            group["meta"], group["steps"] = group.get("meta", meta), 0
            within("meta", group["meta"], 0)
            group["fused"] = all(p.device.type in ("cpu", "cuda") for p in everything)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; `closure` computes the loss anew first, where given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        chosen = [(p, group["meta"]) for group in self.param_groups if group["meta"] for p in group["params"]]
        chosen = [(p, m) for p, m in chosen if p.grad is not None]
        before = self._before([p for p, _ in chosen])
        for group in self.param_groups:
            group["steps"] += 1
            # torch divides by sqrt(v) / sqrt(1 - b2^t) + eps: this eps makes it (sqrt(v) + EPS) / sqrt(1 - b2^t).
            group["eps"] = EPS / (1 - group["betas"][1] ** group["steps"]) ** 0.5
        super().step()
        for (p, m), old in zip(chosen, before, strict=True):
            lent = [self._lent(p, old)] if self.gate == "shuffled" else []
            for new, *parts in blocks(p, old, self.state[p]["exp_avg"], *lent):
                weaken(new, parts[0], parts[1], m, self.gate, *parts[2:])
        return loss

    def _before(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        """Copies, `[n]` each, that last until the next step of any optimiser."""
        if not parameters:
            return []
        sizes = [p.numel() for p in parameters]
        copies = workspace("before", parameters[0], sum(sizes)).split(sizes)
        for p, copy in zip(parameters, copies, strict=True):
            copy.copy_(p.view(-1))
        return list(copies)

    def _lent(self, p: nn.Parameter, old: Tensor) -> Tensor:
        """For the control "shuffled": for each weight the size of another of its tensor, the same one for the run."""
        if p not in self.shuffles:
            draws = generator(self.seed, f"shuffled sizes {len(self.shuffles)}")
            self.shuffles[p] = torch.randperm(p.numel(), generator=draws).to(p.device)
        return old[self.shuffles[p]].abs_()


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Contiguous tensors of one size as `[n]`; on a CPU in pieces that the cache can hold, which is faster."""
    rows = [t.view(-1).split(BLOCK if t.device.type == "cpu" else t.numel()) for t in tensors]
    yield from zip(*rows, strict=True)


def groups(network: nn.Module, meta: Sequence[float], scope: str = "binary") -> list[dict[str, Any]]:
    """Parameter groups for `MetaplasticAdam`: those of each coefficient, then all that are not gated.

    meta: one coefficient for all gated tensors (`models.binary.gated`), or one for each. Raises UserError for another
    number of them.
    """
    tensors = gated(network, scope)
    if len(meta) not in (1, len(tensors)):
        names = ", ".join(name.removesuffix(".weight") for name in tensors) or "none"
        raise UserError(
            f"meta = {tuple(meta)}: give one coefficient, or one for each of the {len(tensors)} layers of "
            f"meta_scope = {scope!r}: {names}"
        )
    each = list(meta) * len(tensors) if len(meta) == 1 else list(meta)
    by_m: dict[float, list[nn.Parameter]] = {}
    for p, m in zip(tensors.values(), each, strict=True):
        by_m.setdefault(m, []).append(p)
    mine = {id(p) for p in tensors.values()}
    rest = [p for p in network.parameters() if p.requires_grad and id(p) not in mine]
    return [{"params": ps, "meta": m} for m, ps in by_m.items()] + ([{"params": rest, "meta": 0.0}] if rest else [])


# --- scale, and what has become of the weights ---


def rescaled(m: float, steps: int, published: int = PUBLISHED_STEPS) -> float:
    """The coefficient that stands for the published `m` where a task has fewer steps: m * sqrt(published / steps).

    Exact is this: (W0, lr of W, m) -> (c W0, c lr, m / c) leaves every sign as it was (`decay` 0). So a larger m is the
    same as larger steps from a larger start. By how much to enlarge is a choice: by the square root, as far as weights
    wander at random.
    """
    return m * (published / steps) ** 0.5


@torch.no_grad()
def frozen(network: nn.Module, m: float, below: float = 1e-3) -> dict[str, float]:
    """Share of each layer's hidden weights with f_meta below a bound: those that practically no update can shrink."""
    return {name: float((f_meta(m, w) < below).float().mean()) for name, w in binary_weights(network).items()}
