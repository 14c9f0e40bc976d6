"""Losses on logits and their gradients in closed form (chapter 1, rules 1.6 and 1.9).

Every function takes `logits: [..., c]` and `labels: [...]` (int64), and treats samples one by one.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Gradient = Callable[[Tensor, Tensor], Tensor]


def xent(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per sample, `[...]`."""
    return torch.logsumexp(logits, -1) - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def xent_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """g = softmax(o) - onehot(y), `[..., c]`."""
    minus_one = torch.full_like(labels, -1, dtype=logits.dtype).unsqueeze(-1)
    return torch.softmax(logits, -1).scatter_add_(-1, labels.unsqueeze(-1), minus_one)


def targets(logits: Tensor, labels: Tensor) -> Tensor:
    """t in {-1, +1}, `[..., c]`: +1 at the label."""
    return (2 * F.one_hot(labels, logits.shape[-1]) - 1).to(logits.dtype)


def hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """sum_j max(0, -t_j o_j) per sample: no margin, so a perceptron loss, as in the released code."""
    return torch.relu(-targets(logits, labels) * logits).sum(-1)


def hinge_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """-t_j where t_j o_j < 0, else 0, `[..., c]`."""
    signs = targets(logits, labels)
    return torch.where(signs * logits < 0, -signs, torch.zeros_like(signs))


# By name, of samples one by one. Over a batch the released programs average the cross-entropy and sum the hinge.
LOSSES = {"xent": xent, "hinge": hinge, "hinge_mean": hinge}
SUMMED = ("hinge",)
GRADIENTS: dict[str, Gradient] = {"xent": xent_gradient, "hinge": hinge_gradient, "hinge_mean": hinge_gradient}
