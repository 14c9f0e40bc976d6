"""What a built page lacks for those who read it by ear, by keyboard or on a small screen, added to its HTML."""

from binascii import a2b_base64
from hashlib import sha256

from bs4 import BeautifulSoup
from nbformat import NotebookNode


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
    """Mend one page: `texts` are the alternatives of figures by file name, `source` the chapter's text half."""
    for image in soup("img", src=True):
        name = str(image["src"]).rpartition("/")[2]
        image["alt"] = texts.get(name) or image.get("alt") or ""
