"""The front page: counts equal the ledgers', pictures are those of tagged cells, times those of the copies."""

import base64
import json
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cllib import chapters, front, ledger, notebooks
from cllib.errors import UserError

NAME = chapters.names()[0]
PNG = base64.b64encode(b"\x89PNG not really").decode()


def copy(tags: tuple[str, ...] = ("gallery",), duration: float = 75.4) -> NotebookNode:
    picture = new_output("display_data", {"image/png": PNG}, metadata={"image/png": {"alt": "a cloud"}})
    cells = [
        new_markdown_cell("# Memory: a head\n\ntext"),
        new_code_cell("x", outputs=[picture], metadata={"tags": list(tags)}),
        new_markdown_cell("(ledger)=\n## The claims ledger"),
    ]
    told = {"duration": duration, "start_time": "2026-11-28T01:02:03"}
    return new_notebook(cells=cells, metadata={"papermill": told})


def test_title_and_anchor_are_those_of_the_chapter() -> None:
    assert front.title(copy()) == "Memory: a head" and front.anchor(copy()) == "ledger"
    assert front.title(new_notebook()) == "" and front.anchor(new_notebook()) is None


@pytest.mark.parametrize("name", chapters.names())
def test_every_chapter_has_what_the_front_page_needs(name: str) -> None:
    notebook = notebooks.source(name)
    assert front.title(notebook) and front.anchor(notebook)
    assert sum(front.GALLERY in cell.metadata.get("tags", []) for cell in notebook.cells) == 1
    assert any(f'front.show_head("{name}")' in cell.source for cell in notebook.cells)


def test_anchors_are_unique() -> None:
    anchors = [front.anchor(notebooks.source(name)) for name in chapters.names()]
    assert len(set(anchors)) == len(anchors)


@pytest.mark.parametrize("published", [True, False])
def test_counts_are_the_ledgers(published: bool, tmp_path: Path) -> None:
    copies = {name: copy() for name in chapters.names()[:2]}
    table = front.ledgers(copies, tmp_path, published).splitlines()
    for line, name in zip(table[2:4], chapters.names()[:2], strict=True):
        judged = ledger.whole(name, tmp_path / name)
        judged = judged[judged["source"].str.contains("reference runs") != published]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == "[Memory](#ledger)"
        assert [int(cell) for cell in cells[1:-1]] == [int((judged["verdict"] == v).sum()) for v in ledger.MARKS]
        assert int(cells[-1]) == len(judged)
    numbers = [[int(c) for c in line.strip("|").split("|")[1:]] for line in table[2:]]
    assert [sum(column) for column in zip(*numbers[:-1], strict=True)] == numbers[-1]


def test_what_was_never_published_is_told_apart() -> None:
    told = {name: ledger.unpublished(name) for name in chapters.names()}
    assert told["05_birt"] == ["reference runs"] and told["06_side_by_side"] == []
    assert told["02_metaplasticity"] == ["reference runs", "reference runs, 3 seeds"]


def test_the_gallery_shows_the_first_picture_of_the_tagged_cell(tmp_path: Path) -> None:
    text = front.gallery({NAME: copy()}, tmp_path / "gallery")
    assert (tmp_path / "gallery" / f"{NAME}.png").read_bytes() == base64.b64decode(PNG)
    assert f"gallery/{NAME}.png" in text and ":alt: a cloud\n" in text
    assert ".png" not in front.gallery({NAME: copy(tags=())}, tmp_path / "none")


def test_times_are_told_in_minutes() -> None:
    assert [front.clock(s) for s in (0, 59.4, 59.6, 185)] == ["0:00", "0:59", "1:00", "3:05"]
    row = front.took({NAME: copy()}, "quick").splitlines()[-1]
    assert "| 1:15 |" in row and "2026-11-28" in row


def test_measured_times_are_of_chapters_and_profiles() -> None:
    measured = json.loads(front.TIMES.read_text())["seconds"]
    assert set(measured) == set(chapters.names())
    assert all({"smoke", "quick"} <= set(row) <= set(chapters.PROFILES) for row in measured.values())


def test_the_head_names_times_device_and_versions() -> None:
    text = front.head(NAME)
    assert all(word in text for word in ("measured time", "`quick`", "commit", "cpu", "torch"))


def test_a_page_without_its_marker_is_named(tmp_path: Path) -> None:
    page = tmp_path / "intro.md"
    page.write_text("before <!-- times --> after")
    front.fill(page, {"times": "1:00"})
    assert page.read_text() == "before 1:00 after"
    with pytest.raises(UserError, match=r"intro\.md: has no line <!-- times -->"):
        front.fill(page, {"times": "1:00"})


def test_the_book_has_all_markers(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "intro.md").write_text((notebooks.BOOK / "intro.md").read_text())
    front.write({NAME: copy()}, tmp_path / "src", "quick", tmp_path)
    assert "<!--" not in (tmp_path / "src" / "intro.md").read_text()


def test_a_notebook_is_not_changed_by_being_read(tmp_path: Path) -> None:
    notebook = copy()
    before = nbformat.writes(notebook)
    front.took({NAME: notebook}, "quick")
    front.gallery({NAME: notebook}, tmp_path)
    assert nbformat.writes(notebook) == before
