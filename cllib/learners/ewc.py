"""Elastic weight consolidation (Kirkpatrick et al. 2017): parameters that mattered are held where they were.

EWC is not one method: its Fisher information is computed in ways that differ in result and cost (van de Ven 2025, "On
the computation of the Fisher information in continual learning"). All four are here, by name.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cllib.errors import flag, one_of, whole, within
from cllib.learners.naive import Naive
from cllib.models.binary import binary_weights, sign
from cllib.models.networks import trainable
from cllib.models.norms import fixed_statistics, norm_state
from cllib.randomness import generator
from cllib.streams.base import Experience, inputs

FISHERS = ("exact", "sampled", "empirical", "batched")
VALUES = ("parameters", "hidden", "signs")
BATCHED = 32  # samples looked at together


@dataclass(frozen=True)
class EWCSettings:
    """strength: lambda. fisher: one of `FISHERS`. fisher_samples: of an experience, the first so many in random order.

    decay: gamma of online EWC (Schwarz et al. 2018), which keeps one Fisher and one anchor; None keeps a pair for every
    experience, as first published. values: what p is: "parameters", all of them; or, for binarized networks (Laborieux
    et al. 2021), with norms left free, "hidden" weights or their "signs". shuffled: a control ("random consolidation"),
    the Fisher information in random order within each tensor.
    """

    strength: float = 1000.0
    fisher: str = "exact"
    fisher_samples: int = 500
    decay: float | None = None
    values: str = "parameters"
    shuffled: bool = False

    def __post_init__(self) -> None:
        within("strength", self.strength, 0)
        one_of("fisher", self.fisher, FISHERS)
        whole("fisher_samples", self.fisher_samples, 1)
        if self.decay is not None:
            within("decay", self.decay, 0, 1)
        one_of("values", self.values, VALUES)
        flag("shuffled", self.shuffled)


class EWC(Naive):
    """Adds the gradient of (lambda / 2) sum_t sum_i F_ti (p_i - p*_ti)^2 to that of the batch."""

    Settings = EWCSettings
    off: ClassVar[Mapping[str, Any] | None] = {"strength": 0.0}

    def __init__(self, settings: Any, *parts: Any, **named: Any) -> None:
        super().__init__(settings, *parts, **named)
        self.anchors: list[dict[str, list[Tensor]]] = []  # of every experience: "fisher" and "parameters"
        self.draws = generator(self.seed, "fisher")

    def correct(self) -> None:
        if self.settings.strength == 0:
            return
        values = consolidated(self.network, self.settings.values == "signs")
        for anchor in self.anchors:
            add_pull(self.parameters(), values, anchor["fisher"], anchor["parameters"], self.settings.strength)

    def finish(self, experience: Experience) -> None:
        chosen = torch.randperm(len(experience), generator=self.draws)[: self.settings.fisher_samples]
        chosen = chosen.to(experience.y.device)
        x, y = inputs(experience.x[chosen]), experience.y[chosen]
        information = fisher(self.network, x, y, self.rivals, self.settings.fisher, self.draws)
        if self.settings.values != "parameters":
            free_norms(self.network, information)
        if self.settings.shuffled:
            orders = [torch.randperm(f.numel(), generator=self.draws).to(f.device) for f in information]
            information = [f.flatten()[order].view_as(f) for f, order in zip(information, orders, strict=True)]
        if self.settings.decay is not None and self.anchors:
            old = self.anchors.pop()["fisher"]
            information = [self.settings.decay * f + g for f, g in zip(old, information, strict=True)]
        anchor = [p.clone() for p in consolidated(self.network, self.settings.values == "signs")]
        self.anchors.append({"fisher": information, "parameters": anchor})

    def parts(self) -> dict[str, list[Tensor]]:
        kept = [tensor for anchor in self.anchors for tensors in anchor.values() for tensor in tensors]
        return {**super().parts(), "anchors": kept}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "anchors": deepcopy(self.anchors), "draws": self.draws.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        device = self.parameters()[0].device
        self.anchors = [
            {name: [t.to(device, copy=True) for t in tensors] for name, tensors in anchor.items()}
            for anchor in state["anchors"]
        ]
        self.draws.set_state(state["draws"].clone())


def consolidated(network: nn.Module, signs: bool) -> list[Tensor]:
    """What is held of every learning parameter: itself, or of hidden weights the sign."""
    binary = binary_weights(network) if signs else {}
    return [sign(p.detach()) if name in binary else p.detach() for name, p in trainable(network).items()]


def free_norms(network: nn.Module, importance: list[Tensor]) -> None:
    """Set the importance of the norms' parameters to zero."""
    norms = norm_state(network)
    for name, value in zip(trainable(network), importance, strict=True):
        if name in norms:
            value.zero_()


def add_pull(
    parameters: list[nn.Parameter],
    values: list[Tensor],
    importance: list[Tensor],
    anchor: list[Tensor],
    strength: float,
) -> None:
    """Add `strength * importance * (value - anchor)` to every parameter's gradient, in place.

    values: of the parameters, themselves or their signs. A parameter without a gradient is not in use, has not moved,
    and is left alone.
    """
    for p, value, w, a in zip(parameters, values, importance, anchor, strict=True):
        if p.grad is not None:
            p.grad.addcmul_(w, value - a, value=strength)


def fisher(
    network: nn.Module, x: Tensor, y: Tensor, rivals: Tensor | None, variant: str, draws: torch.Generator
) -> list[Tensor]:
    """Diagonal of the Fisher information over `x: [n, ...]`, a tensor a trainable parameter; evaluation mode.

    With g(x, c) = d log p(c | x) / d parameters, p over the logits that compete with the label:

    - "exact": mean over x of E_{c ~ p(.|x)} g(x, c)^2;
    - "sampled": the same with one c ~ p(.|x) for every x;
    - "empirical": c is the true label `y: [n]`;
    - "batched": the *square of the mean* of g(x, y) over batches of `BATCHED` samples. Common in released code, and not
      the Fisher information.
    """
    total = {p: torch.zeros_like(p) for p in trainable(network).values()}
    with fixed_statistics(network, x):
        for xs, ys in zip(x.split(BATCHED), y.split(BATCHED), strict=True):
            allowed = None if rivals is None else rivals[ys]
            with linear_layers(network) as heard:
                logits = competing(network(xs), allowed)
            labels, weights = expectation(variant, ys, logits.detach().softmax(-1), draws)
            losses = surprise(logits, labels, weights)  # [n, k]
            if variant == "batched":
                add_squares(total, losses.mean(), [*total], len(ys))
                continue
            rest = {*total} - add_layers(total, losses, heard)
            for row in range(len(xs)) if rest else ():
                logits = competing(network(xs[row : row + 1]), None if allowed is None else allowed[row : row + 1])
                for loss in surprise(logits, labels[row : row + 1], weights[row : row + 1])[0]:
                    add_squares(total, loss, [*rest])
    return [value / len(y) for value in total.values()]


def competing(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """Logits `[n, C]` with those at -inf that are not allowed, `[n, C]` bool."""
    return logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)


def surprise(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """-sqrt(weight) log p(label), whose gradients' squares have the weights: logits `[n, C]`, the rest `[n, k]`."""
    return -weights.sqrt() * logits.log_softmax(-1).gather(1, labels)


def expectation(variant: str, y: Tensor, probabilities: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """The labels to differentiate at, and their weights, `[n, k]`, for a batch with `probabilities: [n, C]`."""
    if variant == "exact":
        return torch.arange(probabilities.shape[1], device=y.device).expand_as(probabilities), probabilities
    if variant == "sampled":
        u = torch.rand(len(y), generator=draws).to(y.device)
        y = (probabilities.cumsum(1) < u[:, None]).sum(1).clamp(max=probabilities.shape[1] - 1)
    return y[:, None], torch.ones_like(probabilities[:, :1])


def add_squares(total: dict[nn.Parameter, Tensor], loss: Tensor, parameters: list[nn.Parameter], by: int = 1) -> None:
    """Add the squares of a loss's gradient, so many times; what it does not depend on has none."""
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    for p, g in zip(parameters, gradients, strict=True):
        if g is not None:
            total[p].addcmul_(g, g, value=by)


# --- linear layers, whose squared gradients need not be made sample by sample ---


@contextmanager
def linear_layers(network: nn.Module) -> Iterator[list[tuple[nn.Linear, Tensor, Tensor]]]:
    """Every linear layer that is called meanwhile, with what it is given and what it answers."""
    heard: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def listen(layer: Any, given: tuple[Tensor, ...], answer: Tensor) -> Tensor:
        heard.append((layer, given[0].detach(), answer))
        return answer.clone()  # what follows may change it in place

    hooks = [m.register_forward_hook(listen) for m in network.modules() if type(m) is nn.Linear]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def add_layers(
    total: dict[nn.Parameter, Tensor], losses: Tensor, heard: list[tuple[nn.Linear, Tensor, Tensor]]
) -> set[nn.Parameter]:
    """Add the squared gradients of `losses: [n, k]` in the layers heard, and say which parameters that were.

    The gradient of sample i in W is d_i a_i', a_i what the layer is given and d_i the gradient of what it answers: the
    sum of squares is (d^2)' a^2. So it is where a row is a sample, and W, the layer's own, is used once.
    """
    uses = times_used(losses)
    once = [part for part in heard if is_plain(*part, len(losses))]
    once = [part for part in once if max(uses[p] for p in part[0].parameters()) == 1]
    done: set[nn.Parameter] = set()
    for loss in losses.sum(0) if once else ():
        answers = [answer for *_, answer in once]
        slopes = torch.autograd.grad(loss, answers, retain_graph=True, allow_unused=True)
        for (layer, given, _), slope in zip(once, slopes, strict=True):
            if slope is None:  # an answer that nothing was made of
                continue
            squares = slope.square()
            for p in {*layer.parameters()} & {*total}:
                total[p].add_(squares.T @ given.square() if p is layer.weight else squares.sum(0))
                done.add(p)
    return done


def is_plain(layer: nn.Linear, given: Tensor, answer: Tensor, samples: int) -> bool:
    """Whether a layer with weights of its own was given a row a sample, in their type, and learns from its answer."""
    own = layer._parameters.get("weight")
    if own is None or any(name.startswith("weight_") for name in layer._parameters) or not answer.requires_grad:
        return False
    return given.dim() == 2 and len(given) == samples and given.dtype == answer.dtype == own.dtype


def times_used(result: Tensor) -> Counter[Tensor | None]:
    """How often each parameter enters a result."""
    uses: Counter[Tensor | None] = Counter()
    nodes: list[Any] = [result.grad_fn]
    seen = set()
    for node in nodes:
        for parent, _ in node.next_functions if node else ():
            if hasattr(parent, "variable"):
                uses[parent.variable] += 1
            elif parent not in seen:
                seen.add(parent)
                nodes.append(parent)
    return uses
