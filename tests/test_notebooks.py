"""Both halves of every chapter say the same, and the committed half stays small."""

import dataclasses
from pathlib import Path

import nbformat
import papermill
import pytest

from cllib import chapters, notebooks

each_chapter = pytest.mark.parametrize("name", chapters.names())


def committed(name: str) -> Path:
    return notebooks.BOOK / f"{name}.ipynb"


def test_every_text_half_is_a_chapter() -> None:
    assert sorted(path.stem for path in notebooks.BOOK.glob("*.py")) == sorted(chapters.names())
    assert sorted(path.stem for path in notebooks.BOOK.glob("*.ipynb")) == sorted(chapters.names())


@each_chapter
def test_both_halves_of_a_pair_are_the_same(name: str) -> None:
    stored = nbformat.read(committed(name), as_version=4)
    assert notebooks.contents(stored) == notebooks.contents(notebooks.source(name)), "run `make pair`"


@each_chapter
def test_the_committed_notebook_is_small_and_holds_text_only(name: str) -> None:
    assert committed(name).stat().st_size < 1_000_000
    outputs = [out for cell in nbformat.read(committed(name), as_version=4).cells for out in cell.get("outputs", [])]
    assert all(mime.startswith("text/") for out in outputs for mime in out.get("data", {}))


@each_chapter
def test_what_nbval_shall_compare_is_stored(name: str) -> None:
    cells = nbformat.read(committed(name), as_version=4).cells
    checked = [cell for cell in cells if "nbval-check-output" in cell.metadata.get("tags", [])]
    assert checked
    assert all(cell.outputs for cell in checked)


@each_chapter
def test_every_setting_is_a_parameter_of_the_notebook(name: str) -> None:
    parameters = papermill.inspect_notebook(str(committed(name)))
    settings = {field.name for field in dataclasses.fields(chapters.settings(name))}
    assert set(parameters) | {"profile"} == settings | {"profile"}
    assert {parameter["default"] for parameter in parameters.values()} == {"None"}
