"""Pictures of where a network looks have a panel for everything, the right way up and on the right scale."""

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from cllib import figures
from cllib.attention import overlay, photo
from cllib.errors import UserError

IMAGES = torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))
MASKS = torch.tensor([[[0, 1.0], [0, 0]], [[0, 0], [0.5, 1]]])
TITLES = ["a right one", "a wrong one"]


def drawn(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(ax.images[0].get_array()) for ax in figure.axes]


def test_rollouts_have_a_photo_above_its_overlay() -> None:
    figure = figures.rollouts(IMAGES, MASKS, TITLES)
    wanted = [*map(photo, IMAGES), *map(overlay, IMAGES, MASKS)]
    for found, expected in zip(drawn(figure), wanted, strict=True):
        np.testing.assert_allclose(found, expected.numpy())
    assert [ax.get_title() for ax in figure.axes] == [*TITLES, "", ""]
    assert [ax.get_ylabel() for ax in figure.axes] == ["image", "", "rollout", ""]
    assert not plt.get_fignums()


def test_attributions_have_a_row_an_image_and_a_column_a_method() -> None:
    signed = torch.tensor([[[-1.0, 2.0], [0, 0]], [[0, 0], [0, 0.5]]])
    figure = figures.attributions(IMAGES, {"signed": signed, "patches": 3 * MASKS}, TITLES)
    found = drawn(figure)
    for k in range(2):
        for got, expected in zip(found[3 * k :], (photo(IMAGES[k]), signed[k], 3 * MASKS[k]), strict=False):
            np.testing.assert_allclose(got, expected.numpy())
    assert [ax.get_title() for ax in figure.axes] == ["", "signed", "patches", "", "", ""]
    assert [ax.get_ylabel() for ax in figure.axes] == [TITLES[0], "", "", TITLES[1], "", ""]
    assert [ax.images[0].get_clim() for ax in figure.axes[1:3]] == [(-2, 2), (0, 3)]
    assert figure.axes[4].images[0].get_clim() == (-0.5, 0.5)
    assert {ax.images[0].get_cmap().name for ax in figure.axes[1::3]} == {"RdBu_r"}
    assert len(found) == 6 and not plt.get_fignums()


def test_a_map_of_zeros_is_drawn_too() -> None:
    figure = figures.attributions(IMAGES[:1], {"nothing": torch.zeros(1, 2, 2)}, ["one"])
    assert figure.axes[1].images[0].get_clim() == (0, 1)


def test_everything_must_be_there_once_an_image() -> None:
    with pytest.raises(UserError, match="masks: 1 for 2 images"):
        figures.rollouts(IMAGES, MASKS[:1], TITLES)
    with pytest.raises(UserError, match="titles: 3 for 2 images"):
        figures.rollouts(IMAGES, MASKS, [*TITLES, "another"])
    with pytest.raises(UserError, match="patches: 1 for 2 images"):
        figures.attributions(IMAGES, {"patches": MASKS[:1]}, TITLES)
    with pytest.raises(UserError, match="no images"):
        figures.rollouts(IMAGES[:0], MASKS[:0], [])
