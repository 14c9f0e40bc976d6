"""The embedded digits."""

import torch
from sklearn.datasets import load_digits

from cllib.datasets import digits


def test_digits_are_scaled_to_one_and_complete() -> None:
    x, y = digits.load()
    assert x.shape == (1797, 64) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert x.min() == 0 and x.max() == 1
    assert torch.equal((x * 16).long(), torch.tensor(load_digits().data).long())
    assert torch.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
