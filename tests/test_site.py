"""The built site, opened as a reader opens it: every figure visible, every link inside alive, no other host asked.

`CLLIB_SITE=_build/html pytest tests/test_site.py` looks at a site that was built before; otherwise every chapter is
run in the smoke profile and the site built from it. Without a Chromium the HTML is read instead.
"""

import os
import shutil
import warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import Page, sync_playwright

from cllib import chapters, notebooks, site

pytestmark = pytest.mark.site

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FIGURES = "() => [...document.images].map(i => [i.src.slice(0, 80), i.naturalWidth > 0 && i.isConnected])"


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if built := os.environ.get("CLLIB_SITE"):
        return Path(built)
    folder = tmp_path_factory.mktemp("site")
    for name in chapters.names():
        notebooks.run(name, "smoke", {}, out=folder)
    return site.build("smoke", folder, artifacts=folder).parent


def test_every_page_of_the_contents_is_there(html: Path) -> None:
    site.check(html, site.pages())
    assert (html / "index.html").is_file()


def test_the_search_index_knows_every_page(html: Path) -> None:
    index = (html / "searchindex.js").read_text()
    assert all(f'"{name}"' in index for name in site.pages())


def test_links_inside_the_site_resolve(html: Path) -> None:
    soups = {page: BeautifulSoup(page.read_text(), "html.parser") for page in sorted(html.glob("*.html"))}
    dead = [
        f"{page.name}: {tag['href']}"
        for page, soup in soups.items()
        for tag in soup("a", href=True)
        if not lives(tag["href"], page)
    ]
    assert not dead


def lives(href: str, page: Path) -> bool:
    """Whether a link leads to another host, or to a file, and a place in it, that is there."""
    link = urlsplit(href)
    if link.scheme or link.netloc:
        return True
    target = page.parent / unquote(link.path) if link.path else page
    if not target.is_file():
        return False
    anchor = unquote(link.fragment)
    return not anchor or BeautifulSoup(target.read_text(), "html.parser").find(id=anchor) is not None


def test_every_picture_in_the_html_is_there(html: Path) -> None:
    for page in html.glob("*.html"):
        for image in BeautifulSoup(page.read_text(), "html.parser")("img", src=True):
            assert image["src"].startswith("data:image/") or (html / unquote(image["src"])).stat().st_size > 0


def test_the_pages_open_whole_in_a_browser(html: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        warnings.warn("no Chromium on this machine: the site's HTML was read instead of opened", stacklevel=1)
        return
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=FLAGS)
        for name in site.pages():
            assert_whole(chromium.new_page(), (html / f"{name}.html").resolve().as_uri())


def assert_whole(page: Page, address: str) -> None:
    """Open `address` from the disk, as a reader does, and assert that nothing goes wrong and nothing is missing."""
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address, wait_until="networkidle")
    assert not wrong
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert [source for source, visible in page.evaluate(FIGURES) if not visible] == []
    assert page.locator(".math").count() == page.locator(".math mjx-container").count()
