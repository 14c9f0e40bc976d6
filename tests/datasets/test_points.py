"""MODES and MOONS against the published sizes and fingerprints (chapter 1, rules 2.1, 2.2 and 5.10)."""

import numpy as np
import pytest
import torch

from cllib.datasets import points

COUNTS = {"modes": [400, 800, 200, 600], "moons": [800, 200, 600, 400]}
SETS = {"modes": points.modes, "moons": points.moons}


@pytest.mark.parametrize("name", SETS)
def test_10_class_counts_and_range(name: str) -> None:
    data = SETS[name]()
    assert len(data) == 2000 and data.x.dtype == torch.float32
    assert torch.bincount(data.y).tolist() == COUNTS[name]
    for domain in (0, 1):
        assert torch.bincount(data.y[data.domain == domain]).tolist() == [n // 2 for n in COUNTS[name]]
    assert data.x.min(0).values.tolist() == [-1, -1] and data.x.max(0).values.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("modes", (0.0883, 0.0388), (1.2726, 0.9026)), ("moons", (-4.1114, -1.5918), (5.0872, 2.1095))],
)
def test_10_raw_ranges(name: str, low, high, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "scaled", lambda x: x)
    raw = SETS[name]().x
    np.testing.assert_allclose(raw.min(0).values, low, atol=6e-5)
    np.testing.assert_allclose(raw.max(0).values, high, atol=6e-5)


@pytest.mark.parametrize("name", SETS)
def test_10_train_validation_and_test_are_disjoint_and_complete(name: str) -> None:
    data = SETS[name]()
    parts = points.split(data)
    assert {part: len(p) for part, p in parts.items()} == {"train": 1000, "validation": 500, "test": 500}
    rows = torch.cat([p.x for p in parts.values()])
    assert torch.equal(rows.unique(dim=0), data.x.unique(dim=0))
    assert len(rows.unique(dim=0)) == 2000
