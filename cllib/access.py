"""What built pages lack for those who read by ear, by keyboard or without a network, added to their HTML."""

from binascii import a2b_base64
from copy import copy
from hashlib import sha256
from textwrap import shorten

from bs4 import BeautifulSoup, Tag
from nbformat import NotebookNode

AUTO = 'localStorage.getItem("theme") || "auto"'
SYSTEM = 'localStorage.getItem("theme") || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")'
FRONT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="refresh" content="0; url={page}.html"></head>
<body><main><h1>{title}</h1><p><a href="{page}.html">To the first page</a></p></main></body></html>
"""


def alternatives(notebook: NotebookNode) -> dict[str, str]:
    """Return the alternative text of every figure in an executed chapter by the file that MyST-NB makes of it.

    MyST-NB names a picture by the hash of its bytes, and knows one alternative text a cell, not one a picture.
    """
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return {
        f"{sha256(a2b_base64(output.data['image/png'])).hexdigest()}.png": output.metadata["image/png"]["alt"]
        for output in outputs
        if output.get("metadata", {}).get("image/png", {}).get("alt")
    }


def silent(page: str) -> list[str]:
    """Return the pictures of a page that have no alternative text."""
    images = BeautifulSoup(page, "html.parser")("img")
    return [str(image.get("src"))[:80] for image in images if not str(image.get("alt", "")).strip()]


def mend(soup: BeautifulSoup, texts: dict[str, str], source: str | None) -> None:
    """Mend one page: `texts` are the alternatives of figures by file name, `source` the file a chapter is made from."""
    for image in soup("img", src=True):
        image["alt"] = texts.get(str(image["src"]).rpartition("/")[2]) or image.get("alt") or ""
    for table in soup("table"):
        head(table)
    describe(soup)
    navigate(soup)
    download(soup, source)
    begin(soup)


def head(table: Tag) -> None:
    """Say of each header cell what it heads; an empty one is none. Tables by pandas' Styler look like the others."""
    for cell in table("th"):
        if not cell.get_text(strip=True):
            cell.name = "td"
        elif "scope" not in cell.attrs:
            cell["scope"] = "col" if cell.find_parent("thead") else "row"
    if table.find_parent(class_="text_html"):
        table["class"] = "dataframe"


def describe(soup: BeautifulSoup) -> None:
    """Give a page its first paragraph as the description that search engines and previews show."""
    if soup.head and (first := soup.select_one("article p")):
        text = shorten(first.get_text(), 200, placeholder=" …")
        soup.head.append(soup.new_tag("meta", attrs={"name": "description", "content": text}))


def navigate(soup: BeautifulSoup) -> None:
    """Name what the theme leaves nameless in the sidebar, and drop roles that a list of references may not have."""
    for brand in soup.select(".sidebar-primary-item:has(> .navbar-brand)"):
        brand.attrs |= {"role": "navigation", "aria-label": "Front page"}
    for summary in soup.select("li.has-children > details > summary"):
        title = summary.find_previous("a")
        summary["aria-label"] = f"Pages under {title.get_text(strip=True)}" if title else "Further pages"
    for entry in soup.select("[role=doc-biblioentry], .citation-list[role=list]"):
        del entry["role"]


def download(soup: BeautifulSoup, source: str | None) -> None:
    """Let links for download save a file, not show it, and offer a chapter's `source` beside its notebook."""
    link = soup.select_one("a.btn-download-source-button")
    if link is None:
        return
    link["download"] = ""
    if source is not None and link.parent is not None:
        item = copy(link.parent)
        link["title"] = "The chapter as it was run, with its pictures"
        for other in item("a"):
            other.attrs |= {"href": f"_sources/{source}", "title": "The chapter's source"}
        for words in item.select(".btn__text-container"):
            words.string = ".py"
        link.parent.insert_after(item)


def begin(soup: BeautifulSoup) -> None:
    """Let a page begin in the mode of the reader's system, not change to it later; without scripts it is light."""
    if soup.html:
        soup.html["data-theme"] = "light"
    for script in soup("script", src=False):
        if AUTO in (text := script.get_text()):
            script.string = text.replace(AUTO, SYSTEM)
