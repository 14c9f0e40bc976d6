"""Sliders: made where somebody is there, from a function's own defaults, and not at all in a chapter run headless."""

from typing import Any

import ipywidgets
import pytest

from cllib import interactive


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ipywidgets was asked for."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(ipywidgets, "interact", lambda draw, **made: asked.append(made))
    return asked


def draw(units: int = 8, width: float = 1.5, kind: str = "a") -> None:
    """Something with defaults."""


def test_nothing_is_made_headless(monkeypatch: pytest.MonkeyPatch, shown: list[dict[str, Any]]) -> None:
    monkeypatch.setenv(interactive.HEADLESS, "1")
    interactive.explore(draw, units=(1, 32, 1))
    assert not interactive.watched() and not shown


def test_sliders_begin_at_the_defaults_and_count_when_let_go(
    monkeypatch: pytest.MonkeyPatch, shown: list[dict[str, Any]]
) -> None:
    monkeypatch.delenv(interactive.HEADLESS, raising=False)
    interactive.explore(draw, units=(1, 32, 1), width=(0.0, 3.0, 0.5), kind=["a", "b"])
    (made,) = shown
    units, width = made["units"], made["width"]
    assert isinstance(units, ipywidgets.IntSlider) and isinstance(width, ipywidgets.FloatSlider)
    assert (units.value, units.min, units.max) == (8, 1, 32)
    assert (width.value, width.step) == (1.5, 0.5)
    assert not units.continuous_update and not width.continuous_update
    assert made["kind"] == ["a", "b"]
