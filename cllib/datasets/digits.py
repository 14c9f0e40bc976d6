"""Real 8x8 digits that ship inside scikit-learn: the book's smallest images, no download."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor


def load() -> tuple[Tensor, Tensor]:
    """x: [1797, 64] float32 in [0, 1], 8x8 pixels row by row; y: [1797] int64, the digit (174 to 183 of each)."""
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target, dtype=torch.int64)
