"""Sliders: made where somebody is there, from a function's own defaults, and not at all in a chapter run headless."""

from pathlib import Path
from typing import Any

import ipywidgets
import nbformat
import papermill
import pytest
from jupyter_client.manager import start_new_kernel

from cllib import interactive


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What ipywidgets was asked for."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(ipywidgets, "interact", lambda draw, **made: asked.append(made))
    return asked


def draw(units: int = 8, width: float = 1.5, kind: str = "a") -> None:
    """Something with defaults."""


class Shell:
    """A kernel whose present cell was asked for with this metadata."""

    def __init__(self, **metadata: Any) -> None:
        self.kernel = self
        self.metadata = metadata

    def get_parent(self, channel: str) -> dict[str, Any]:
        return {"metadata": self.metadata}


def test_nothing_is_made_where_no_front_end_asked(monkeypatch: pytest.MonkeyPatch, shown: list[dict[str, Any]]) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "inherited.ipynb")
    for shell in (None, Shell()):
        monkeypatch.setattr(interactive, "get_ipython", lambda shell=shell: shell)
        interactive.explore(draw, units=(1, 32, 1))
        assert not interactive.watched() and not shown


CELL = "from cllib import interactive\ninteractive.explore(lambda k=1: None, k=(0, 3, 1))\nprint(interactive.watched())"


def test_a_cell_of_papermills_is_watched_by_nobody(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    papermill.execute_notebook(tmp_path / "a.ipynb", tmp_path / "b.ipynb", kernel_name="python3", progress_bar=False)
    (cell,) = nbformat.read(tmp_path / "b.ipynb", as_version=4).cells
    assert [output.get("text") for output in cell.outputs] == ["False\n"]


def test_a_cell_of_a_front_ends_is_watched() -> None:
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        content = {"code": CELL, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": True}
        content |= {"user_expressions": {}}
        client.shell_channel.send(client.session.msg("execute_request", content, metadata={"cellId": "1-2"}))
        messages = []
        while not messages or messages[-1]["content"].get("execution_state") != "idle":
            messages.append(client.get_iopub_msg(timeout=60))
        assert "True" in "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")
        assert any(m["msg_type"] == "comm_open" for m in messages)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_sliders_begin_at_the_defaults_and_count_when_let_go(
    monkeypatch: pytest.MonkeyPatch, shown: list[dict[str, Any]]
) -> None:
    monkeypatch.setattr(interactive, "get_ipython", lambda: Shell(cellId="1-2"))
    interactive.explore(draw, units=(1, 32, 1), width=(0.0, 3.0, 0.5), kind=["a", "b"])
    (made,) = shown
    units, width = made["units"], made["width"]
    assert isinstance(units, ipywidgets.IntSlider) and isinstance(width, ipywidgets.FloatSlider)
    assert (units.value, units.min, units.max) == (8, 1, 32)
    assert (width.value, width.step) == (1.5, 0.5)
    assert not units.continuous_update and not width.continuous_update
    assert made["kind"] == ["a", "b"]
