"""Whether a network is as often right as it is sure."""

import pandas as pd
import torch
from torch import Tensor

from cllib.errors import whole


def reliability(probabilities: Tensor, y: Tensor, bins: int = 15) -> pd.DataFrame:
    """A row a bin of equal width of the largest probability: confidence, accuracy, samples; empty bins are left out.

    probabilities: `[n, C]`; y: `[n]`.
    """
    whole("bins", bins, 1)
    sure, answer = probabilities.double().max(-1)
    at = (sure * bins).ceil().long().clamp(1, bins) - 1  # (0, 1 / bins], ...
    table = pd.DataFrame({"bin": at.tolist(), "confidence": sure.tolist(), "accuracy": (answer == y).double().tolist()})
    groups = table.groupby("bin")
    return groups.mean().assign(samples=groups.size())


def calibration_error(table: pd.DataFrame) -> float:
    """ECE: mean of |accuracy - confidence| over the bins of `reliability`, by samples (Naeini et al. 2015)."""
    gap = (table["accuracy"] - table["confidence"]).abs()
    return float((gap * table["samples"]).sum() / table["samples"].sum())


def recency(confusion: Tensor, widths: list[int]) -> Tensor:
    """Share of all answers that fall into each task, `[T]`; 1 / T each where nothing is preferred.

    confusion: counts `[C, C]`, rows true, test sets of equal size; widths: classes of each task.
    """
    answers = confusion.double().sum(0)
    return torch.stack([part.sum() for part in answers.split(widths)]) / answers.sum()
