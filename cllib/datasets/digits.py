"""Real 8x8 digits that ship inside scikit-learn: the book's smallest images, no download."""

import torch
from torch import Tensor

from cllib.datasets.labelled import Labelled

TEST = 360  # of the 1797, the last: 33 to 37 of each digit


def load() -> tuple[Tensor, Tensor]:
    """x: [1797, 64] float32 in [0, 1], 8x8 pixels row by row; y: [1797] int64, the digit (174 to 183 of each)."""
    from sklearn.datasets import load_digits  # takes half a second, and most runs do without

    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target, dtype=torch.int64)


def labelled() -> Labelled:
    """The same as images [N, 1, 8, 8]: the first 1437 to train, the last 360 to test."""
    x, y = load()
    x = x.view(-1, 1, 8, 8)
    return Labelled("digits", x[:-TEST], y[:-TEST], x[-TEST:], y[-TEST:], tuple("0123456789"))
