"""The static site: executed chapters and the book's pages, built by Jupyter Book to be read without a network."""

import re
import shutil
import subprocess
import sysconfig
from contextlib import ExitStack
from copy import deepcopy
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import nbformat
import yaml
from bs4 import BeautifulSoup
from nbformat import NotebookNode
from sphinx_external_toc.parsing import parse_toc_yaml

from cllib import front
from cllib.access import FRONT, alternatives, mend, silent
from cllib.datasets.files import locked
from cllib.errors import UserError
from cllib.notebooks import ARTIFACTS, BOOK, ROOT, at_work, contents, source, stamped

BRANCH = re.compile(r"[\w./-]+")
BINDER = "https://mybinder.org"
FORGE = re.compile(r"(https://(?:github|gitlab)\.com/[\w.-]+/[\w.-]+?)(?:\.git)?/?")
MATHJAX = "mathjax/tex-svg-full.js"
# What would start a remote kernel: unused here, and declared twice by Jupyter Book, an error in every browser.
THEBE = re.compile(r"<script[^>]*>[^<]*THEBE_JS_URL[^<]*</script>|<script[^>]*sphinx-thebe\.js[^>]*></script>")
LOADED = "script[src], img[src], iframe[src], video[src], source[src], embed[src], object[data], link[href]"


class SiteFailed(RuntimeError):
    """Jupyter Book refused a page, or the site it built is not whole; the message says which."""


def build(
    profile: str,
    out: Path,
    book: Path = BOOK,
    artifacts: Path = ARTIFACTS,
    repository: str | None = None,
    branch: str = "main",
) -> Path:
    """Build the site of the chapters run in `profile` and return its front page, `out/html/index.html`.

    With the public address of a `repository`, pages lead to it and chapters to Binder. An older site in `out/html` is
    replaced only by a whole new one. Raises `UserError` where a chapter was not run, or was changed since, and
    `SiteFailed` where the site has a warning, a missing page, an outside asset or a picture without words.
    """
    out, html = out.resolve(), out.resolve() / "html"
    names = [name for name in pages(book) if (book / f"{name}.py").exists()]
    for name in names:  # before anything is written
        executed(name, profile, book, artifacts)
    settings = configuration(repository, branch)
    with ExitStack() as held:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(out / ".lock", f"{out}: another process builds a site there; waiting for it"))
            with ExitStack() as read:
                for name in names:
                    read.enter_context(at_work(name, artifacts.resolve() / profile))
                chapters = {name: executed(name, profile, book, artifacts) for name in names}
                prepare(chapters, book, out / "src", settings)
                front.write(chapters, out / "src", profile, artifacts)
            built = jupyter_book(out / "src", out / "build")
            finish(built, chapters, book)
            check(built, pages(book))
            shutil.rmtree(html, ignore_errors=True)
            built.rename(html)
        except OSError as error:
            for folder in ("src", "build"):
                shutil.rmtree(out / folder, ignore_errors=True)
            why = f"{error.filename or out}: {error.strerror or error}"
            raise UserError(f"cannot write {why}; choose another folder with --out") from error
    return html / "index.html"


def configuration(repository: str | None, branch: str) -> dict[str, Any]:
    """Return what `_config.yml` says, and buttons for Binder, the repository and its issues where it has an address."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    if repository is not None:
        if not BRANCH.fullmatch(branch):
            raise UserError(f"branch {branch!r}: must be letters, digits, and . _ / -")
        settings["repository"] = {"url": public(repository), "branch": branch, "path_to_book": BOOK.name}
        settings["launch_buttons"] = {"binderhub_url": BINDER, "notebook_interface": "jupyterlab"}
        settings["html"] |= {"use_repository_button": True, "use_issues_button": True}
    return settings


def public(address: str) -> str:
    """Return a repository's `address` without its ending; raises `UserError` where a reader could not open it."""
    found = FORGE.fullmatch(address)
    if found is None:
        raise UserError(
            f"repository {address!r}: must be https://github.com/OWNER/NAME or https://gitlab.com/OWNER/NAME"
        )
    return found[1]


def origin(folder: Path = ROOT) -> str | None:
    """Return the public address that the repository in `folder` was cloned from, or None where there is none."""
    try:
        command = ["git", "--git-dir", str(folder / ".git"), "remote", "get-url", "origin"]
        address = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # no git on this machine
        return None
    return public(address) if FORGE.fullmatch(address) else None


def pages(book: Path = BOOK) -> list[str]:
    """Return the names of the book's pages in the order of its table of contents."""
    return list(parse_toc_yaml(book / "_toc.yml"))


def executed(name: str, profile: str, book: Path, artifacts: Path) -> NotebookNode:
    """Return the executed copy of a chapter; raises `UserError` unless it is that of the chapter as it stands."""
    path = artifacts / profile / f"{name}.ipynb"
    again = f"run `cllib run {name} --profile {profile}` first"
    if not path.is_file():
        raise UserError(f"{path}: {name} has not been run in the {profile} profile; {again}")
    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        raise UserError(f"{path} is damaged: {error}; {again}") from error
    if contents(notebook) != contents(source(name, book)):
        raise UserError(f"{path}: {name} was changed since it was run; {again}")
    if stamped(path, path.parent / "records" / name) is None:
        raise UserError(f"{path}: its records are gone or another run's; {again}")
    return notebook


def prepare(chapters: dict[str, NotebookNode], book: Path, src: Path, settings: dict[str, Any]) -> None:
    """Fill the folder `src` with what Jupyter Book reads: `settings`, the pages, the static files and `chapters`."""
    shutil.rmtree(src, ignore_errors=True)
    shutil.copytree(book, src, ignore=shutil.ignore_patterns("*.py", "*.ipynb", "*.toml", ".*", "__pycache__"))
    (src / "_config.yml").write_text(yaml.safe_dump(settings), "utf-8")
    for name, notebook in chapters.items():
        nbformat.write(for_reading(notebook), src / f"{name}.ipynb")


def for_reading(notebook: NotebookNode) -> NotebookNode:
    """Return `notebook` without clock times and widget state, and with the injected parameters out of view."""
    notebook = deepcopy(notebook)
    notebook.metadata = NotebookNode(kernelspec=notebook.metadata.get("kernelspec", {}))
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = NotebookNode(tags=[*tags, "remove-cell"] if "injected-parameters" in tags else tags)
    return notebook


def jupyter_book(src: Path, out: Path) -> Path:
    """Build `src` in the fresh folder `out` with every warning an error, and return the folder of the pages."""
    shutil.rmtree(out, ignore_errors=True)
    program = Path(sysconfig.get_path("scripts")) / "jupyter-book"
    strict = ["-W", "-n", "-q", "--keep-going"]
    command: list[str | Path] = [program, "build", src, "--path-output", out, *strict]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SiteFailed(f"Jupyter Book stopped:\n{done.stdout.strip()}")
    return out / "_build" / "html"


def finish(html: Path, chapters: dict[str, NotebookNode], book: Path) -> None:
    """Give the built pages what Jupyter Book does not: formulas offline, each chapter's source, and `mend`."""
    # Only now: a script that lies in _static while the book is built is loaded on every page.
    (html / "_static" / MATHJAX).parent.mkdir()
    shutil.copy(mathjax(), html / "_static" / MATHJAX)
    for name in chapters:
        shutil.copy(book / f"{name}.py", html / "_sources")
    title = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["title"]
    texts = {name: text for notebook in chapters.values() for name, text in alternatives(notebook).items()}
    for page in html.rglob("*.html"):
        soup = BeautifulSoup(THEBE.sub("", page.read_text("utf-8")), "html.parser")
        mend(soup, texts, source=f"{page.stem}.py" if page.stem in chapters else None)
        page.write_text(str(soup), "utf-8")
    (html / "index.html").write_text(FRONT.format(title=title, page=pages(book)[0]), "utf-8")


def mathjax() -> Path:
    """Return where MathJax in one file is installed."""
    return Path(str(distribution("sphinx-mathjax-offline").locate_file(f"sphinx-mathjax-offline/static/{MATHJAX}")))


def check(html: Path, names: list[str]) -> None:
    """Raise `SiteFailed` unless every page is in `html` and none loads anything from another host."""
    missing = [name for name in names if not (html / f"{name}.html").is_file()]
    if missing:
        raise SiteFailed(f"the site lacks the pages {', '.join(missing)}")
    if outside := outside_assets(html):
        raise SiteFailed(f"the site would load from other hosts: {', '.join(outside)}")
    if mute := [
        f"{page.name}: {image}" for page in sorted(html.glob("*.html")) for image in silent(page.read_text("utf-8"))
    ]:
        raise SiteFailed(f"pictures without an alternative text (`cllib run` adds those of figures): {', '.join(mute)}")


def outside_assets(html: Path) -> list[str]:
    """Return 'page: address' of all that the pages and style sheets in `html` load from another host."""
    found = [f"{page.name}: {url}" for page in sorted(html.rglob("*.html")) for url in loaded(page.read_text("utf-8"))]
    styles = [(sheet.name, sheet.read_text("utf-8")) for sheet in sorted(html.rglob("*.css"))]
    found += [f"{name}: {url}" for name, text in styles for url in re.findall(r"url\([\"']?([^\"')]+)", text)]
    return [entry for entry in found if re.search(r": (https?:)?//", entry)]


def loaded(page: str) -> list[str]:
    """Return the addresses that a browser fetches by itself when it opens `page`, not the links to click."""
    tags = BeautifulSoup(page, "html.parser").select(LOADED)
    return [str(tag.get("src") or tag.get("data") or tag.get("href")) for tag in tags]
