"""Linear and one-hidden-layer heads with a leading run axis, and ensembles of any head: what the Memory Head is
compared with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cllib.errors import one_of, within
from cllib.models.memory_head import with_one
from cllib.optim import Gradients
from cllib.randomness import draw

KINDS = ("lp", "mlp")


class Head(Protocol):
    """R heads that learn in one program; `MemoryHead`, `ClassicHead` and `Ensemble` are heads."""

    seeds: tuple[int, ...]
    device: torch.device

    @property
    def parameters(self) -> dict[str, Tensor]: ...
    def reset(self) -> None: ...
    def learn(self, x: Tensor, loss_gradient: Callable[[Tensor], Tensor]) -> tuple[Tensor, Gradients]: ...
    def logits(self, x: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor: ...
    def work(self) -> int: ...
    def sizes(self) -> dict[str, int]: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class ClassicConfig:
    """lp = Linear(n, c); mlp = Linear(n, hidden) - Tanh - Linear(hidden, c) (chapter 1, rules 3)."""

    kind: str = "mlp"
    hidden: int = 25
    bias: bool = True

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        within("hidden", self.hidden, 1)


def initial_weights(generator: torch.Generator, out: int, inputs: int, bias: bool) -> Tensor:
    """torch.nn.Linear's distribution, weights and bias ~ U(-1/sqrt inputs, 1/sqrt inputs): `[out, inputs (+ 1)]`."""
    return (torch.rand(out, inputs + bias, generator=generator) * 2 - 1) * inputs**-0.5


class ClassicHead:
    """R linear (lp) or tanh (mlp) heads with gradients in closed form.

    Args:
        inputs, outputs: n and c.
        config: the same for all runs.
        seeds: one per run; the initial weights depend on nothing else.
    """

    def __init__(
        self, inputs: int, outputs: int, config: ClassicConfig, seeds: Sequence[int], device: str | torch.device = "cpu"
    ) -> None:
        self.config, self.seeds, self.device = config, tuple(seeds), torch.device(device)
        layers = [(outputs, inputs)] if config.kind == "lp" else [(config.hidden, inputs), (outputs, config.hidden)]
        self.shapes = dict(zip(("output",) if config.kind == "lp" else ("hidden", "output"), layers, strict=True))
        self.reset()

    def reset(self) -> None:
        """Draw the weights from the seeds again."""

        def weights(name: str) -> Tensor:
            return draw(self.seeds, f"init/{name}", lambda g: initial_weights(g, *self.shapes[name], self.config.bias))

        self._parameters = {name: weights(name).to(self.device) for name in self.shapes}

    @property
    def parameters(self) -> dict[str, Tensor]:
        """`output: [R, c, h + 1]` and, for mlp, `hidden: [R, h, n + 1]`; the last column is the bias."""
        return self._parameters

    def _forward(self, x: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits `[R, B, c]` and what the output layer saw `[R, B, h + 1]`."""
        seen = with_one(x, self.config.bias)
        if "hidden" in weights:
            seen = with_one(torch.tanh(seen @ weights["hidden"].transpose(1, 2)), self.config.bias)
        return seen @ weights["output"].transpose(1, 2), seen

    def learn(self, x: Tensor, loss_gradient: Callable[[Tensor], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """x: `[R, B, n]`. Returns logits `[R, B, c]` and the gradients of the loss summed over B."""
        weights = self._parameters
        logits, seen = self._forward(x, weights)
        g = loss_gradient(logits)
        gradients = {"output": g.transpose(1, 2) @ seen}
        if "hidden" in weights:
            h = seen[..., : self.config.hidden]
            back = (g @ weights["output"][..., : self.config.hidden]) * (1 - h * h)  # [R, B, h]
            gradients["hidden"] = back.transpose(1, 2) @ with_one(x, self.config.bias)
        return logits, gradients

    def logits(self, x: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
        """Logits `[R, B, c]` of `x: [R, B, n]`, with other `parameters` if given."""
        return self._forward(x, parameters or self._parameters)[0]

    def work(self) -> int:
        """Floats that evaluating one sample in all runs touches at once."""
        return len(self.seeds) * sum(out + inputs for out, inputs in self.shapes.values())

    def sizes(self) -> dict[str, int]:
        """Floats of one run by part."""
        return {name: weights[0].numel() for name, weights in self._parameters.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: weights.clone() for name, weights in self._parameters.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, weights in self._parameters.items():
            weights.copy_(state[name])


class Ensemble:
    """`size` independently drawn copies of a head per run, logits averaged, trained together (chapter 1, rules
    section 3).

    Args:
        build: seeds -> head; called once with the seeds of all copies.
        seeds: one per run; copy k of run s gets a seed of its own, the first copy the run's.
    """

    def __init__(self, build: Callable[[Sequence[int]], Head], seeds: Sequence[int], size: int) -> None:
        within("ensemble_size", size, 1)
        self.seeds, self.size = tuple(seeds), size
        self.copies = build([seed + 1_000_003 * k for seed in seeds for k in range(size)])
        self.device = self.copies.device
        self.reset, self.state_dict = self.copies.reset, self.copies.state_dict
        self.load_state_dict = self.copies.load_state_dict

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self.copies.parameters

    def _spread(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.size, 0)

    def _mean(self, logits: Tensor) -> Tensor:
        return logits.unflatten(0, (-1, self.size)).mean(1)

    def learn(self, x: Tensor, loss_gradient: Callable[[Tensor], Tensor]) -> tuple[Tensor, Gradients]:
        """The loss is that of the averaged logits, so each copy gets 1/size of its gradient."""
        logits, gradients = self.copies.learn(
            self._spread(x), lambda each: self._spread(loss_gradient(self._mean(each))) / self.size
        )
        return self._mean(logits), gradients

    def logits(self, x: Tensor, parameters: dict[str, Tensor] | None = None) -> Tensor:
        return self._mean(self.copies.logits(self._spread(x), parameters))

    def work(self) -> int:
        return self.copies.work()

    def sizes(self) -> dict[str, int]:
        return {name: size * self.size for name, size in self.copies.sizes().items()}
