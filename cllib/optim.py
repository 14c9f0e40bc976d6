"""SGD and Adam for parameters with a leading run axis: every run has its own step size and weight decay.

A gradient is a tensor shaped like its parameter `[N, ...]`, or `Rows` where only a few rows of axis 1 are touched.
With N = R * q (q key sets a run), rates given per run `[R]` are repeated for the q sets.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """A gradient that is zero except in some rows: parameter `[N, m, ...]`, index `[N, k]`, values `[N, k, ...]`."""

    index: Tensor
    values: Tensor

    def add_to(self, parameter: Tensor) -> Tensor:
        """Add the rows in place (repeated rows accumulate) and return the parameter."""
        index = self.index.flatten(1)[..., None].expand(-1, -1, parameter[0, 0].numel())  # [N, k, u]
        parameter.flatten(2).scatter_add_(1, index, self.values.reshape(index.shape))
        return parameter

    def __mul__(self, scale: Tensor | float) -> "Rows":
        return Rows(self.index, self.values * scale)


Gradients = Mapping[str, Tensor | Rows]
FUSED_ON = ("cpu", "cuda")


def fusible(parameters: Iterable[Tensor]) -> bool:
    """Whether a step of torch's optimisers can be one pass over the memory, an eighth of the time on a CPU."""
    return all(p.device.type in FUSED_ON for p in parameters)


def dense(gradient: Tensor | Rows, like: Tensor) -> Tensor:
    """The gradient as a tensor shaped like its parameter."""
    return gradient.add_to(torch.zeros_like(like)) if isinstance(gradient, Rows) else gradient


def add(first: Gradients, second: Gradients, parameters: Mapping[str, Tensor]) -> dict[str, Tensor | Rows]:
    """Sum of two gradients of the same parameters; two row gradients stay rows."""

    def one(a: Tensor | Rows, b: Tensor | Rows, like: Tensor) -> Tensor | Rows:
        if isinstance(a, Rows) and isinstance(b, Rows):
            return Rows(torch.cat([a.index, b.index], 1), torch.cat([a.values, b.values], 1))
        return dense(a, like) + dense(b, like)

    return {name: one(first[name], second[name], parameters[name]) for name in first}


def _column(rate: Tensor, like: Tensor) -> Tensor:
    """Rates per run `[R]` as a column that multiplies `like: [N, ...]`, N a multiple of R."""
    rate = rate if len(rate) == len(like) else rate.repeat_interleave(len(like) // len(rate))
    return rate.view(-1, *[1] * (like.dim() - 1))


class SGD:
    """Plain gradient descent: p <- p - rho (g + lambda p).

    Args:
        step_size: rho per run, `[R]`.
        weight_decay: lambda per run, `[R]`.
    """

    def __init__(self, step_size: Tensor, weight_decay: Tensor) -> None:
        self.step_size, self.weight_decay = step_size, weight_decay
        self.decays = bool((weight_decay != 0).any())

    def step(self, parameters: Mapping[str, Tensor], gradients: Gradients) -> None:
        for name, parameter in parameters.items():
            gradient = gradients[name]
            if self.decays:
                parameter.mul_(_column(1 - self.step_size * self.weight_decay, parameter))
            if isinstance(gradient, Rows):
                (gradient * -_column(self.step_size, gradient.values)).add_to(parameter)
            else:
                parameter.sub_(_column(self.step_size, parameter) * gradient)

    def reset(self) -> None:
        """Forget all state (there is none)."""

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to restore."""


class Adam:
    """torch.optim.Adam's rule (betas .9, .999, eps 1e-8, coupled weight decay) with per-run rates.

    The moments of *all* rows move at every step, also of units that did not win: isolation is lost (rules, P4).
    """

    betas, eps = (0.9, 0.999), 1e-8

    def __init__(self, step_size: Tensor, weight_decay: Tensor) -> None:
        self.step_size, self.weight_decay = step_size, weight_decay
        self.decays = bool((weight_decay != 0).any())
        self.reset()

    def reset(self) -> None:
        """Forget the moments and the step count."""
        self.steps = 0
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}

    def step(self, parameters: Mapping[str, Tensor], gradients: Gradients) -> None:
        self.steps += 1
        for name, parameter in parameters.items():
            gradient = dense(gradients[name], parameter)
            if self.decays:
                gradient = gradient + _column(self.weight_decay, parameter) * parameter
            self._update(name, parameter, gradient)

    def _update(self, name: str, parameter: Tensor, gradient: Tensor) -> None:
        (b1, b2), t = self.betas, self.steps
        first, second = self.moments.setdefault(name, (torch.zeros_like(parameter), torch.zeros_like(parameter)))
        first.lerp_(gradient, 1 - b1)
        second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        scale = (second.sqrt() / (1 - b2**t) ** 0.5).add_(self.eps)
        parameter.sub_(_column(self.step_size / (1 - b1**t), parameter) * first / scale)

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"{name}/{i}": moment for name, pair in self.moments.items() for i, moment in enumerate(pair)}
        return {"steps": torch.tensor(self.steps), **state}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        names = {key.rpartition("/")[0] for key in state if "/" in key}
        self.moments = {name: (state[f"{name}/0"].clone(), state[f"{name}/1"].clone()) for name in names}


OPTIMIZERS: dict[str, type[SGD] | type[Adam]] = {"sgd": SGD, "adam": Adam}
