"""Elastic weight consolidation (Kirkpatrick et al. 2017): parameters that mattered are held where they were.

EWC is not one method: its Fisher information is computed in ways that differ in result and cost (van de Ven 2025, "On
the computation of the Fisher information in continual learning"). All four are here, by name.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from cllib.errors import flag, one_of, whole, within
from cllib.learners.naive import Naive
from cllib.models.binary import binary_weights, sign
from cllib.models.networks import logits_of, trainable
from cllib.models.norms import fixed_statistics, norm_state
from cllib.randomness import generator
from cllib.streams.base import Experience, inputs

FISHERS = ("exact", "sampled", "empirical", "batched")
VALUES = ("parameters", "hidden", "signs")
CHUNK_FLOATS = 2**24  # numbers of per-sample gradients that are held at once
BATCHED = 32


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
    parameters = {name: p.detach() for name, p in trainable(network).items()}

    def surprise(p: dict[str, Tensor], sample: Tensor, label: Tensor, allowed: Tensor) -> Tensor:
        logits = functional_call(network, p, (sample[None],))[0]
        return -torch.log_softmax(logits.masked_fill(~allowed, -torch.inf), -1).gather(0, label[None])[0]

    gradients = vmap(grad(surprise), in_dims=(None, 0, 0, 0))
    chunk = BATCHED if variant == "batched" else max(1, CHUNK_FLOATS // sum(p.numel() for p in parameters.values()))
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    with fixed_statistics(network, x):
        for xs, ys in zip(x.split(chunk), y.split(chunk), strict=True):
            logits = logits_of(network, xs)
            allowed = torch.ones_like(logits, dtype=torch.bool) if rivals is None else rivals[ys]
            probabilities = torch.softmax(logits.masked_fill(~allowed, -torch.inf), -1)
            for labels, weights in expectation(variant, ys, probabilities, draws):
                for name, g in gradients(parameters, xs, labels, allowed).items():
                    square = g.mean(0).square() * len(ys) if variant == "batched" else weighted(weights, g.square())
                    total[name] += square
    return [value / len(y) for value in total.values()]


def expectation(
    variant: str, y: Tensor, probabilities: Tensor, draws: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """The labels `[n]` to differentiate at, and their weights `[n]`, for a batch with these `probabilities: [n, C]`."""
    one = torch.ones_like(probabilities[:, 0])
    if variant == "exact":
        for label in range(probabilities.shape[1]):
            yield torch.full_like(y, label), probabilities[:, label]
    elif variant == "sampled":
        u = torch.rand(len(y), generator=draws).to(y.device)
        yield (probabilities.cumsum(1) < u[:, None]).sum(1).clamp(max=probabilities.shape[1] - 1), one
    else:
        yield y, one


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """sum_i weights_i values_i over `[n, ...]`; what has no weight does not count, be it infinite."""
    column = weights.view(-1, *[1] * (values.dim() - 1))
    return torch.where(column > 0, column * values, 0).sum(0)
