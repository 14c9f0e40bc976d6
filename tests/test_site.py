"""The built site, opened as a reader opens it: whole, without another host, by eye, ear, keyboard, phone and night.

`CLLIB_SITE=_build/html pytest tests/test_site.py` looks at a site that was built before; otherwise every chapter is
run in the smoke profile and the site built from it. Without a Chromium only the HTML is read.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Page, sync_playwright

from cllib import chapters, notebooks, site
from cllib.datasets.files import writable_folder

pytestmark = pytest.mark.site

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# axe would fetch the style sheets again, which a page on the disk may not.
AXE = {"resultTypes": ["violations"], "preload": False}
FIGURES = "() => [...document.images].map(i => [i.src.slice(0, 80), i.naturalWidth > 0 && i.isConnected])"
TWICE = """() => [...document.querySelectorAll('[id]')].map(e => e.id).filter((id, i, all) => all.indexOf(id) != i)"""
HEADS = "() => [...document.querySelectorAll('h1')].filter(h => h.offsetParent).length"
WIDTHS = "() => [document.documentElement.scrollWidth, innerWidth]"
# How the focused element, and what is in it, is drawn: what must change when the focus goes.
LOOK = """e => [e, ...e.querySelectorAll('*')].map(e => getComputedStyle(e)).map(s => s.outline + s.boxShadow).join()"""


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if built := os.environ.get("CLLIB_SITE"):
        return Path(built).resolve()
    folder = tmp_path_factory.mktemp("site")
    runs = writable_folder(notebooks.ARTIFACTS / "runs")  # what the notebooks' own tests run, or ran, is not run again
    (folder / "runs").symlink_to(runs)
    for name in chapters.names():
        notebooks.run(name, "smoke", {}, out=folder)
    return site.build("smoke", folder, artifacts=folder).parent.resolve()


@pytest.fixture(scope="module")
def soups(html: Path) -> dict[str, BeautifulSoup]:
    return {page.stem: BeautifulSoup(page.read_text(), "html.parser") for page in sorted(html.glob("*.html"))}


# --- what the HTML says ---


def test_every_page_of_the_contents_is_there(html: Path) -> None:
    site.check(html, site.pages())
    assert (html / "index.html").is_file()


def test_the_search_index_knows_every_page(html: Path) -> None:
    index = (html / "searchindex.js").read_text()
    assert all(f'"{name}"' in index for name in site.pages())


def test_links_inside_the_site_resolve(html: Path, soups: dict[str, BeautifulSoup]) -> None:
    dead = [
        f"{name}: {tag['href']}"
        for name, soup in soups.items()
        for tag in soup("a", href=True)
        if not lives(tag["href"], html / f"{name}.html", soups)
    ]
    assert not dead


def lives(href: str, page: Path, soups: dict[str, BeautifulSoup]) -> bool:
    """Whether a link leads to another host, or to a file, and a place in it, that is there."""
    link = urlsplit(href)
    if link.scheme or link.netloc:
        return True
    target = page.parent / unquote(link.path) if link.path else page
    if not target.is_file():
        return False
    anchor = unquote(link.fragment)
    return not anchor or soups[target.stem].find(id=anchor) is not None


def test_every_picture_is_there_and_has_words(html: Path, soups: dict[str, BeautifulSoup]) -> None:
    for image in (image for soup in soups.values() for image in soup("img", src=True)):
        assert image["src"].startswith("data:image/") or (html / unquote(image["src"])).stat().st_size > 0
        assert len(image["alt"]) > 10


@pytest.mark.parametrize("name", chapters.names())
def test_every_figure_has_the_words_that_were_stored_with_it(
    name: str, html: Path, soups: dict[str, BeautifulSoup]
) -> None:
    cells = nbformat.read(html / "_sources" / f"{name}.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    stored = [output.metadata["image/png"]["alt"] for output in outputs]
    assert stored
    assert [image["alt"] for image in soups[name].select(".cell_output img[src^=_images]")] == stored


def test_every_page_says_what_it_is(soups: dict[str, BeautifulSoup]) -> None:
    assert soups["index"].title.string == "Continual learning, reproduced"
    for name in site.pages():
        soup = soups[name]
        assert soup.html["lang"] == "en" and soup.title.string.endswith("Continual learning, reproduced")
        assert len(soup.find("meta", attrs={"name": "description"})["content"]) > 40
    assert len({soups[name].title.string for name in site.pages()}) == len(site.pages())


def test_a_page_begins_in_the_mode_of_the_system(soups: dict[str, BeautifulSoup]) -> None:
    for name in site.pages():
        assert soups[name].html["data-theme"] == "light"  # without scripts
        assert 'getItem("theme") || (matchMedia' in str(soups[name].head)


# --- what a browser makes of it ---


@dataclass
class Visit:
    """An open page, what it asked for and what went wrong."""

    page: Page
    asked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfailed", lambda request: self.wrong.append(request.url))
        self.page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))

    def open(self, address: str) -> Page:
        self.page.goto(address, wait_until="networkidle")
        return self.page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: the site's HTML is read, not opened")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=FLAGS)


@pytest.fixture(scope="module", params=[*site.pages(), "search"])
def visit(request: pytest.FixtureRequest, browser: Browser, html: Path) -> Iterator[Visit]:
    """Every page of the site, opened once from the disk."""
    visited = Visit(browser.new_page(viewport=DESKTOP, reduced_motion="reduce", color_scheme="light"))
    visited.open((html / f"{request.param}.html").as_uri())
    yield visited
    visited.page.close()


@pytest.fixture
def visitor(browser: Browser) -> Iterator[Visit]:
    """A reader who has not been here before."""
    context = browser.new_context(viewport=DESKTOP)
    yield Visit(context.new_page())
    context.close()


@pytest.fixture(scope="module")
def served(html: Path) -> Iterator[str]:
    """The address of the site on a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_page_opens_whole_and_asks_no_other_host(visit: Visit) -> None:
    assert not visit.wrong
    assert [url for url in visit.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert [source for source, visible in visit.page.evaluate(FIGURES) if not visible] == []
    assert visit.page.locator(".math").count() == visit.page.locator(".math mjx-container").count()


def test_a_page_has_one_title_and_no_name_twice(visit: Visit) -> None:
    assert visit.page.evaluate(HEADS) == 1
    assert visit.page.evaluate(TWICE) == []


def test_a_page_is_fit_for_screen_readers_and_legible(visit: Visit) -> None:
    assert broken(visit.page) == []


@pytest.mark.parametrize("name", ["01_memory_head", "05_birt", "learners"])  # all that pages are made of
def test_a_page_is_legible_in_the_dark(name: str, visitor: Visit, html: Path) -> None:
    visitor.page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    page = visitor.open((html / f"{name}.html").as_uri())
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert broken(page, "color-contrast") == []


def broken(page: Page, *rules: str) -> list[str]:
    """Return what axe finds wrong by `rules`, or all: names, roles, headings, contrast, what no keyboard reaches."""
    found = Axe().run(page, options=AXE | ({"runOnly": rules} if rules else {})).response
    looked = {rule["id"] for rule in found["passes"] + found["violations"]}
    assert "color-contrast" in looked or rules == ("scrollable-region-focusable",)
    return [f"{rule['id']}: {node['html'][:200]}" for rule in found["violations"] for node in rule["nodes"]]


def test_a_page_fits_a_phone(visit: Visit) -> None:
    visit.page.set_viewport_size(PHONE)
    wide, screen = visit.page.evaluate(WIDTHS)
    assert wide <= screen + 1
    visit.page.wait_for_timeout(400)  # the theme then makes boxes that scroll reachable by keyboard
    assert broken(visit.page, "scrollable-region-focusable") == []
    visit.page.set_viewport_size(DESKTOP)


def test_the_skip_link_leads_past_the_sidebar(visitor: Visit, html: Path) -> None:
    page = visitor.open((html / "01_memory_head.html").as_uri())
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to main content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator("main :focus").count() == 1


def test_the_focus_is_seen_wherever_a_keyboard_takes_it(visitor: Visit, html: Path) -> None:
    page = visitor.open((html / "01_memory_head.html").as_uri())
    page.add_style_tag(content="* { transition: none !important }")
    for _ in range(25):
        page.keyboard.press("Tab")
        focused = page.evaluate_handle("document.activeElement")
        look = focused.evaluate(LOOK)
        # Blurred and focused again by a script, the keyboard's next step starts from here.
        assert focused.evaluate(f"e => {{ e.blur(); const look = ({LOOK})(e); e.focus(); return look; }}") != look


def test_hidden_code_and_answers_open_by_keyboard(visitor: Visit, html: Path) -> None:
    page = visitor.open((html / "03_latent_replay.html").as_uri())
    code, answers = page.locator("details.hide").first, page.locator(".admonition.dropdown").first
    assert not code.evaluate("e => e.open") and not answers.locator("> :not(.admonition-title)").first.is_visible()
    for button in (code.locator("summary"), answers.locator("button")):
        button.focus()
        page.keyboard.press("Enter")
    assert code.evaluate("e => e.open") and answers.locator("> :not(.admonition-title)").first.is_visible()


def test_the_sidebar_of_a_phone_opens_and_closes(visitor: Visit, html: Path) -> None:
    visitor.page.set_viewport_size(PHONE)
    page = visitor.open((html / "intro.html").as_uri())
    link = page.locator("dialog[open] a", has_text="BiRT")
    assert link.count() == 0
    page.locator("button.primary-toggle").click()
    assert link.is_visible() and broken(page) == []
    page.keyboard.press("Escape")
    assert link.count() == 0
    page.locator("button.primary-toggle").click()
    link.click()
    page.wait_for_url("**/05_birt.html")


def test_the_mode_can_be_chosen_and_is_remembered(visitor: Visit, html: Path) -> None:
    page = visitor.open((html / "intro.html").as_uri())
    assert page.locator("html").get_attribute("data-mode") == "auto"
    for _ in range(3):  # light, dark and as the system has it, in the theme's order
        page.locator("button.theme-switch-button").first.click()
        if page.locator("html").get_attribute("data-mode") == "dark":
            break
    assert (
        visitor.open((html / "02_metaplasticity.html").as_uri()).locator("html").get_attribute("data-theme") == "dark"
    )


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_figures_stand_on_white_in_both_modes(mode: str, visitor: Visit, html: Path) -> None:
    visitor.page.emulate_media(color_scheme=mode)
    page = visitor.open((html / "05_birt.html").as_uri())
    image = page.locator(".cell_output img").first
    background, effect = image.evaluate("e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).filter]")
    if mode == "dark":
        assert (background, effect) == ("rgb(255, 255, 255)", "brightness(0.9)")
    else:
        assert background == "rgba(0, 0, 0, 0)" and effect == "none"


def test_the_search_finds_a_word_on_the_disk(visitor: Visit, html: Path) -> None:
    page = visitor.open((html / "intro.html").as_uri())
    page.keyboard.press("Control+k")
    page.keyboard.type("metaplasticity")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=metaplasticity")
    page.locator("ul.search a", has_text="Metaplasticity").first.click()
    page.wait_for_url("**/02_metaplasticity.html*")
    assert not visitor.wrong


def test_the_search_on_a_server_shows_where(visitor: Visit, served: str) -> None:
    page = visitor.open(f"{served}/search.html?q=metaplasticity")
    assert page.locator("ul.search p.context").first.inner_text()
    assert not visitor.wrong


@pytest.mark.parametrize("ending", [".ipynb", ".py"])
def test_a_chapter_can_be_downloaded(ending: str, visitor: Visit, html: Path, served: str, tmp_path: Path) -> None:
    page = visitor.open(f"{served}/05_birt.html")
    page.locator(".dropdown-download-buttons > button").click()
    with page.expect_download() as download:
        page.locator("a.btn-download-source-button", has_text=ending).click()
    assert download.value.suggested_filename == f"05_birt{ending}"
    download.value.save_as(tmp_path / "got")
    if ending == ".py":
        assert (tmp_path / "got").read_text() == (notebooks.BOOK / "05_birt.py").read_text()
    else:
        got = nbformat.read(tmp_path / "got", as_version=4)
        assert notebooks.contents(got) != [] and any(cell.get("outputs") for cell in got.cells)
    assert (tmp_path / "got").stat().st_size < 5e6


def test_the_film_moves_only_when_asked(visitor: Visit, html: Path) -> None:
    page = visitor.open((html / "01_memory_head.html").as_uri())
    film = page.locator("figure.film")
    label, slider, button = film.locator("output"), film.get_by_label("Frame"), film.get_by_label("Play")
    first = label.inner_text()
    page.wait_for_timeout(600)
    assert label.inner_text() == first == slider.get_attribute("aria-valuetext")
    slider.focus()
    page.keyboard.press("ArrowRight")
    second = label.inner_text()
    assert second != first and slider.get_attribute("aria-valuetext") == second
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    page.wait_for_function("([e, old]) => e.textContent != old", arg=[label.element_handle(), second])
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    stopped = label.inner_text()
    page.wait_for_timeout(600)
    assert label.inner_text() == stopped
