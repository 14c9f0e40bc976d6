"""Metaplasticity: the larger a hidden weight, the less it follows updates that would shrink it.

Laborieux et al. 2021. With W a gated weight, u the first moment of Adam and a the step size with bias corrections:

    W <- W - a * (f_meta(m, W) * u  where W * u > 0,  else u) / (sqrt(v) + eps),     f_meta = 1 - tanh(m |W|)^2
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from math import nextafter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from cllib.errors import UserError, one_of, whole, within
from cllib.fingerprint import Registry
from cllib.models.binary import binary_weights, gated
from cllib.optim import fusible
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


class MetaplasticAdam(torch.optim.Optimizer):
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
        lr: float | Tensor = 0.005,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        meta: float = 0.0,
        gate: str = "shrinking",
        seed: int = 0,
    ) -> None:
        told = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "meta": meta, "gate": gate, "seed": seed}
        check_options(told)
        self.shuffles: dict[tuple[int, int, int], Tensor] = {}  # by seed, place of the parameter, and size
        super().__init__(params, told)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A group more; what it does not say is as for the others. Raises UserError for impossible values."""
        super().add_param_group(param_group)
        group = self.param_groups.pop()
        check_options(group)
        if any(p.is_complex() for p in group["params"]):
            raise UserError("parameters are complex: only real ones grow and shrink")
        group["fused"] = fusible(group["params"])
        self.param_groups.append(group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After a copy, a file or `load_state_dict`; raises UserError for what is another optimiser's."""
        for group in state["param_groups"]:
            if lacking := {"meta", "gate", "seed"} - {*group}:
                raise UserError(f"this is the state of another optimiser: its groups have no {min(lacking)}")
            group["fused"] = fusible(group["params"])
        super().__setstate__(state)
        self.shuffles = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a copy of a state, with the rule that it was made under."""
        super().load_state_dict(deepcopy(state_dict))
        for group in self.param_groups[:1]:  # what a group that is added later does not say
            self.defaults |= {name: group[name] for name in ("gate", "seed")}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; `closure` computes the loss anew first, where given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        chosen = [(p, group) for group in self.param_groups if group["meta"] for p in group["params"]]
        chosen = [(p, group) for p, group in chosen if p.grad is not None]
        before = copies([p for p, _ in chosen])
        for group in self.param_groups:
            self._descend(group)
        for p, group in chosen:
            lent = [self._lent(p, group["seed"], before[p])] if group["gate"] == "shuffled" else []
            flat = p.detach().reshape(-1)  # a view of what is contiguous, else a copy
            for new, *parts in blocks(flat, before[p], self.state[p]["exp_avg"].reshape(-1), *lent):
                weaken(new, parts[0], parts[1], group["meta"], group["gate"], *parts[2:])
            if not p.is_contiguous():
                p.copy_(flat.view_as(p))
        return loss

    def _descend(self, group: dict[str, Any]) -> None:
        """Adam's step on the parameters of a group that have a gradient, those that were moved as often together."""
        alike: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for p in group["params"]:
            if p.grad is not None:
                if p.grad.is_sparse:
                    raise UserError("a gradient is sparse: moments are kept of every weight, so give dense ones")
                state = self.state[p] = self.state[p] or fresh(p, group["fused"])
                state["steps"] += 1
                straight = p.is_contiguous() and p.grad.is_contiguous() and state["exp_avg"].is_contiguous()
                alike.setdefault((state["steps"], straight), []).append(p)
        (beta1, beta2), rest = group["betas"], {name: group[name] for name in ("lr", "weight_decay")}
        for (steps, straight), ps in alike.items():
            names = ("exp_avg", "exp_avg_sq", "step")
            first, second, counts = ([self.state[p][name] for p in ps] for name in names)
            # torch divides by sqrt(v) / sqrt(1 - b2^t) + eps: this eps makes it (sqrt(v) + EPS) / sqrt(1 - b2^t).
            told = {**rest, "beta1": beta1, "beta2": beta2, "eps": EPS / (1 - beta2**steps) ** 0.5}
            told |= {"amsgrad": False, "maximize": False, "foreach": False}
            told["fused"] = group["fused"] and straight  # torch's takes all tensors to lie in memory alike
            adam([*ps], [p.grad for p in ps if p.grad is not None], first, second, [], counts, **told)

    def _lent(self, p: nn.Parameter, seed: int, old: Tensor) -> Tensor:
        """For the control "shuffled": for each weight the size of another of its tensor, the same one for the run."""
        place = next(k for k, q in enumerate(q for group in self.param_groups for q in group["params"]) if q is p)
        key = seed, place, p.numel()
        if key not in self.shuffles:
            draws = generator(seed, f"shuffled sizes {place}")
            self.shuffles[key] = torch.randperm(p.numel(), generator=draws).to(p.device)
        return old[self.shuffles[key]].abs_()


def check_options(told: Mapping[str, Any]) -> None:
    """Raise UserError for impossible options of a parameter group, and for those that only torch's Adam has."""
    within("lr", float(told["lr"]) if isinstance(told["lr"], Tensor) else told["lr"], 0)
    for beta in told["betas"]:
        within("betas", beta, 0, nextafter(1, 0))
    for name in ("weight_decay", "meta"):
        within(name, told[name], 0)
    one_of("gate", told["gate"], GATES)
    whole("seed", told["seed"], 0)
    for name in ("amsgrad", "maximize", "eps"):
        if told.get(name):
            raise UserError(f"{name} = {told[name]!r}: only torch's Adam has it")


def fresh(p: nn.Parameter, fused: bool) -> dict[str, Any]:
    """A parameter's state before its first step. steps: the same number as `step`, which a GPU would be waited for."""
    count = torch.zeros((), device=p.device if fused else "cpu")
    return {"steps": 0, "step": count, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


def copies(parameters: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
    """Copies, `[n]` each, that last until the next step of any optimiser."""
    made: dict[nn.Parameter, Tensor] = {}
    for kind in dict.fromkeys((p.dtype, p.device) for p in parameters):
        alike = [p for p in dict.fromkeys(parameters) if (p.dtype, p.device) == kind]
        sizes = [p.numel() for p in alike]
        made |= zip(alike, workspace("before", alike[0], sum(sizes)).split(sizes), strict=True)
    for p, copy in made.items():
        copy.copy_(p.detach().reshape(-1))
    return made


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
