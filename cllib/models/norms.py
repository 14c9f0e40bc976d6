"""Normalisation layers as a group: their state, and whether they look at the batch when a network is tested."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cllib.models.networks import KINDS, evaluating, logits_of
from cllib.randomness import generator

CHUNK = 2048  # samples tested at once
BATCH = 1000  # samples, at most, that share their statistics in a test


def batch_norms(network: nn.Module) -> list[Any]:
    """The BatchNorms without running statistics: they use those of the batch, also in evaluation mode."""
    kind = nn.modules.batchnorm._BatchNorm  # of any number of dimensions, synchronised ones too
    return [m for m in network.modules() if isinstance(m, kind) and m.running_mean is None]


def transductive(network: nn.Module) -> bool:
    """Whether the answer for one test sample depends on the others of its batch."""
    return bool(batch_norms(network))


def norm_state(network: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors of the norms (scale, shift, running statistics), and of nothing else."""
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, KINDS)]
    return {f"{name}.{key}": t.detach().clone() for name, m in layers for key, t in m.state_dict().items()}


def set_norm_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state from `norm_state` into the network's norms."""
    own = network.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def batch_logits(network: nn.Module, x: Tensor) -> Tensor:
    """Logits `[T, C]` of `x: [T, ...]` where batches share their statistics.

    Batches of equal size, at most `BATCH`, in an order that depends on T alone: whatever else is tested, a test set has
    one result.
    """
    order = torch.randperm(len(x), generator=generator(len(x), "test batches")).to(x.device)
    pieces = order.tensor_split(max(1, -(-len(x) // BATCH)))
    logits = torch.cat([logits_of(network, x[piece]) for piece in pieces])
    return torch.empty_like(logits).index_copy_(0, order, logits)


def tested(network: nn.Module, x: Tensor) -> Tensor:
    """Logits `[T, C]` of test samples `x: [T, ...]` in evaluation mode, in pieces that memory can hold."""
    if transductive(network):
        return batch_logits(network, x)
    return torch.cat([logits_of(network, piece) for piece in x.split(CHUNK)])


@contextmanager
def fixed_statistics(network: nn.Module, x: Tensor) -> Iterator[None]:
    """Evaluation mode, with norms that keep to the statistics of the batch `x: [n, ...]`.

    Samples can then be shown one by one, as EWC does: a BatchNorm that looks at its batch cannot take one.
    """
    layers, taken = batch_norms(network), dict[nn.Module, tuple[Tensor, Tensor]]()

    def take(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        dims = [d for d in range(inputs[0].dim()) if d != 1]
        taken[module] = inputs[0].mean(dims), inputs[0].var(dims, unbiased=False)

    hooks = [layer.register_forward_pre_hook(take) for layer in layers]
    try:
        if layers:
            logits_of(network, x)
    finally:
        for hook in hooks:
            hook.remove()
    with evaluating(network):
        for layer, (mean, variance) in taken.items():
            layer.running_mean, layer.running_var = mean, variance
        try:
            yield
        finally:
            for layer in layers:
                layer.running_mean, layer.running_var = None, None
