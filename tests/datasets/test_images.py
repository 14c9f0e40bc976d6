"""Grouping by class and conversion to floating point."""

import pytest
import torch

from cllib.datasets.images import by_class, to_float
from cllib.errors import UserError


def test_by_class_takes_the_first_of_each_class_in_order() -> None:
    y = torch.tensor([1, 0, 1, 0, 1, 0])
    x = torch.arange(6) * 10
    assert by_class(x, y, 2).tolist() == [[10, 30], [0, 20]]
    assert by_class(x[:, None, None], y, 3).shape == (2, 3, 1, 1)


def test_by_class_refuses_more_than_the_smallest_class_has() -> None:
    with pytest.raises(UserError, match="3 samples per class asked for: the smallest class has 2"):
        by_class(torch.arange(5), torch.tensor([0, 0, 0, 1, 1]), 3)


def test_to_float_moves_channels_first_and_scales() -> None:
    images = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    images[1, 2, 3, 0], images[1, 2, 3, 2] = 255, 51
    x = to_float(images)
    assert x.shape == (2, 3, 4, 5) and x.dtype == torch.float32
    assert x[1, :, 2, 3].tolist() == [1.0, 0.0, pytest.approx(0.2)] and x.sum() == pytest.approx(1.2)
