"""What a build does: buttons for Binder and the repository where it has a public address, and a look at the result."""

import re
import subprocess
from pathlib import Path

import jupytext
import nbformat
import pytest
from click.testing import CliRunner

from cllib import notebooks, site
from cllib.cli import main
from cllib.errors import UserError

HUB = "https://github.com/someone/cllib"
PAGES = {
    "_toc.yml": "format: jb-book\nroot: intro\nchapters:\n  - file: 01_small\n",
    "intro.md": "# Small\n\nA book.\n",
    "01_small.py": "# %% [markdown]\n# # Chapter\n#\n# Its claim.\n\n# %%\n1 + 1\n",
    "references.bib": "",
}


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A book of one chapter, as if it had been run."""
    folder, artifacts = tmp_path / "book", tmp_path / "smoke"
    folder.mkdir(), artifacts.mkdir()
    for name, text in PAGES.items():
        (folder / name).write_text(text)
    (folder / "_static").mkdir()
    (folder / "_static" / "favicon.svg").write_text("<svg/>")
    notebook = jupytext.read(folder / "01_small.py")
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(notebook, artifacts / "01_small.ipynb")
    notebooks.mark(artifacts / "01_small.ipynb", "0" * 16, artifacts / "records" / "01_small")
    return folder


@pytest.mark.site
@pytest.mark.parametrize("repository", [None, f"{HUB}.git"])
def test_buttons_lead_to_the_repository_or_are_not_there(
    repository: str | None, book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cllib.front.write", lambda *_: None)  # this chapter has no ledger to count
    front = site.build("smoke", tmp_path, book, tmp_path, repository, "dev")
    chapter = (front.parent / "01_small.html").read_text()
    links = re.findall(r'href="(https://[^"]+)"', chapter)
    binder = "https://mybinder.org/v2/gh/someone/cllib/dev?urlpath=lab/tree/book/01_small.ipynb"
    assert [link.partition("?title")[0] for link in links if "sphinx" not in link and "jupyter" not in link] == (
        [binder, HUB, f"{HUB}/issues/new"] if repository else []
    )
    assert "mybinder" not in (front.parent / "intro.html").read_text()  # nothing to run there
    assert "thebelab" not in chapter.lower() and "THEBE" not in chapter and site.outside_assets(front.parent) == []
    assert (front.parent / "_sources" / "01_small.py").read_text() == PAGES["01_small.py"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (HUB, HUB),
        (f"{HUB}.git", HUB),
        (f"{HUB}/", HUB),
        ("https://gitlab.com/a/b.c.git", "https://gitlab.com/a/b.c"),
    ],
)
def test_an_address_loses_its_ending(address: str, expected: str) -> None:
    assert site.public(address) == expected


@pytest.mark.parametrize(
    "address", ["", "/somewhere/main", "git@github.com:a/b.git", "https://x:y@github.com/a/b", "https://github.com/a"]
)
def test_an_address_that_no_reader_can_open_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="OWNER/NAME"):
        site.configuration(address, "main")
    assert site.origin(clone(tmp_path, address)) is None


@pytest.mark.parametrize("branch", ["", "a b", "x?y"])
def test_a_branch_that_no_address_can_hold_is_refused(branch: str) -> None:
    with pytest.raises(UserError, match="branch"):
        site.configuration(HUB, branch)


def clone(folder: Path, address: str) -> Path:
    """A repository that says it was cloned from `address`."""
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    if address:
        subprocess.run(["git", "-C", folder, "remote", "add", "origin", address], check=True)
    return folder


def test_a_clone_knows_where_it_is_from(tmp_path: Path) -> None:
    assert site.origin(clone(tmp_path, f"{HUB}.git")) == HUB
    (tmp_path / "inside").mkdir()
    assert site.origin(tmp_path / "inside") is None  # another repository around it is not ours


def test_without_git_there_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = clone(tmp_path, HUB)
    monkeypatch.setenv("PATH", "")
    assert site.origin(folder) is None


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ('<img src="_images/a.png" alt="">', "without an alternative text.*a.html: _images/a.png"),
        ('<script src="https://cdn.example/a.js"></script>', "other hosts: a.html: https://cdn.example/a.js"),
    ],
)
def test_a_site_that_is_not_whole_is_refused(body: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(f'<a href="https://mybinder.org">Binder</a>{body}')
    with pytest.raises(site.SiteFailed, match=complaint):
        site.check(tmp_path, ["a"])
    (tmp_path / "a.html").write_text('<a href="https://mybinder.org">Binder</a><img src="a.png" alt="a figure">')
    site.check(tmp_path, ["a"])  # a link is no load


def test_an_address_that_cannot_be_used_is_one_line_of_the_command(book: Path, tmp_path: Path) -> None:
    where = ["--profile", "smoke", "--book", str(book), "--artifacts", str(tmp_path), "--out", str(tmp_path / "site")]
    result = CliRunner().invoke(main, ["site", *where, "--repository", "ftp://somewhere"])
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1
    assert "ftp://somewhere" in result.output and not (tmp_path / "site").exists()
