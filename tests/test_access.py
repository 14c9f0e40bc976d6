"""A built page gets what the theme leaves out, and nothing else of it changes."""

from base64 import b64encode
from hashlib import sha256

import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_notebook, new_output

from cllib.access import AUTO, alternatives, mend, silent

PNG = b"not really a picture"
FILE = f"{sha256(PNG).hexdigest()}.png"
DOWNLOAD = """<ul><li><a class="btn btn-download-source-button" href="_sources/01_a.ipynb" title="Download source file">
<i class="fas fa-file"></i><span class="btn__text-container">.ipynb</span></a></li></ul>"""


def mended(body: str, texts: dict[str, str] | None = None, source: str | None = None) -> BeautifulSoup:
    soup = BeautifulSoup(f"<html><head></head><body>{body}</body></html>", "html.parser")
    mend(soup, texts or {}, source)
    return soup


def figure(metadata: dict[str, object]) -> dict[str, str]:
    data = {"image/png": b64encode(PNG).decode(), "text/plain": "<Figure>"}
    cell = new_code_cell(outputs=[new_output("display_data", data, metadata=metadata), new_output("stream", text="a")])
    return alternatives(new_notebook(cells=[cell]))


def test_words_stored_with_a_figure_reach_its_picture() -> None:
    texts = figure({"image/png": {"alt": 'loss < 1 & "falling"'}})
    page = mended(f'<img alt="_images/{FILE}" src="_images/{FILE}"/><img alt="drawn" src="_static/other.png"/>', texts)
    again = BeautifulSoup(str(page), "html.parser")
    assert [image["alt"] for image in again("img")] == ['loss < 1 & "falling"', "drawn"]


@pytest.mark.parametrize("metadata", [{}, {"image/png": {}}, {"image/png": {"alt": ""}}])
def test_a_figure_without_words_has_none(metadata: dict[str, object]) -> None:
    assert figure(metadata) == {}


def test_silent_pictures_are_found() -> None:
    assert silent('<img src="a.png"><img src="b.png" alt=" "><img src="c.png" alt="c">') == ["a.png", "b.png"]


def test_headers_say_what_they_head() -> None:
    page = mended(
        """<div class="output text_html"><table><thead><tr><th></th><th>Acc</th></tr></thead>
        <tbody><tr><th>er</th><td>0.9</td></tr></tbody></table></div><table><tr><td>plain</td></tr></table>"""
    )
    assert [(cell.get_text(), cell["scope"]) for cell in page("th")] == [("Acc", "col"), ("er", "row")]
    assert [table.get("class") for table in page("table")] == ["dataframe", None]


def test_a_page_is_described_by_its_first_paragraph() -> None:
    page = mended(f"<p>menu</p><article><p>What it <em>is</em>. {'more ' * 99}</p><p>no</p></article>")
    content = page.find("meta", attrs={"name": "description"})["content"]
    assert content.startswith("What it is. more") and len(content) <= 200


def test_the_sidebar_is_named_and_references_lose_roles_they_may_not_have() -> None:
    page = mended(
        """<div class="sidebar-primary-item"><a class="navbar-brand">Book</a></div>
        <li class="has-children"><a>Memory Head</a><details><summary><i></i></summary></details></li>
        <div class="citation-list" role="list"><div role="doc-biblioentry">A</div></div><ul role="list"></ul>"""
    )
    assert page.select_one("[role=navigation][aria-label] > .navbar-brand")
    assert page.summary["aria-label"] == "Pages under Memory Head"
    assert [tag.name for tag in page.select("[role=list], [role=doc-biblioentry]")] == ["ul"]


def test_a_chapter_offers_its_notebook_and_its_source() -> None:
    links = mended(DOWNLOAD, source="01_a.py")("a")
    assert [(link["href"], link.get_text(strip=True)) for link in links] == [
        ("_sources/01_a.ipynb", ".ipynb"),
        ("_sources/01_a.py", ".py"),
    ]
    assert all(link["download"] == "" for link in links) and links[0]["title"] != links[1]["title"]


def test_another_page_offers_itself_only() -> None:
    assert [link["download"] for link in mended(DOWNLOAD)("a")] == [""]
    assert mended("<p>no button</p>", source="01_a.py")("a") == []


def test_a_page_begins_in_the_mode_of_the_system() -> None:
    page = mended(f"<script>theme = {AUTO};</script><script src='a.js'></script><script>1 < 2 && 3</script>")
    assert page.html["data-theme"] == "light"
    assert 'prefers-color-scheme: dark)").matches ? "dark" : "light");</script>' in str(page)
    assert "<script>1 < 2 && 3</script>" in str(page)
