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


def test_labelled_digits_are_the_same_in_order_the_last_360_to_test() -> None:
    x, y = digits.load()
    data = digits.labelled()
    assert data.shape == (1, 8, 8) and data.names == tuple("0123456789") and data.name == "digits"
    assert len(data.train_y) == 1437 and len(data.test_y) == 360
    assert torch.equal(torch.cat([data.train_x, data.test_x]).view(1797, 64), x)
    assert torch.equal(torch.cat([data.train_y, data.test_y]), y)
    count = torch.bincount(data.test_y)
    assert count.min() == 33 and count.max() == 37


def test_labelled_digits_show_their_rows_as_rows() -> None:
    image = torch.tensor(load_digits().images[3] / 16).float()  # a three
    assert torch.equal(digits.labelled().train_x[3, 0], image)
