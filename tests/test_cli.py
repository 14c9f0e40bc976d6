"""The command line: bad input is one line and an exit code, a failed chapter leaves its executed copy."""

import dataclasses
import json
import subprocess
import threading
import time
from pathlib import Path

import click.testing
import nbformat
import pytest

from cllib import chapters, notebooks, site
from cllib.cli import main
from cllib.errors import UserError
from sweeping import COMMAND

NAME = chapters.names()[0]
HEAD = '# %% tags=["parameters"]\nprofile = None\n\n# %%\n'


def cllib(*arguments: object) -> click.testing.Result:
    """Run the command as a shell would."""
    return click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])


def one_line(result: click.testing.Result) -> str:
    """Return the single line that says why a command failed, without a traceback."""
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A book of one chapter that prints the profile it was given."""
    folder = tmp_path / "book"
    folder.mkdir()
    (folder / f"{NAME}.py").write_text(HEAD + "print(profile)\n")
    return folder


def test_chapters_lists_the_names() -> None:
    assert cllib("chapters").stdout.split() == list(chapters.names())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["99_nothing"], ["99_nothing", NAME]),
        ([NAME, "99_nothing"], ["99_nothing", NAME]),
        ([NAME, "--profile", "enormous"], ["enormous", "smoke, quick, paper"]),
        ([NAME, "-p", "no_such_knob=1"], ["no_such_knob", "seeds"]),
        ([NAME, "-p", "seeds=many"], ["seeds", "many"]),
        ([NAME, "-p", "seeds=-1"], ["seeds", "-1"]),
        ([NAME, "-p", "seeds"], ["seeds", "NAME=VALUE"]),
        ([NAME, "-p", "seeds=1", "-p", "seeds=2"], ["seeds", "twice"]),
        ([NAME, "-p", "profile=smoke"], ["profile"]),
        ([], [NAME, "--all"]),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    arguments: list[str], named: list[str], book: Path, tmp_path: Path
) -> None:
    result = cllib("run", *arguments, "--book", book, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert all(word in one_line(result) for word in named)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(book: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = cllib("run", NAME, "--book", book, "--out", tmp_path / "file" / "out")
    assert result.exit_code == 2
    assert "cannot write" in one_line(result)
    assert "--out" in one_line(result)


def test_a_missing_chapter_file_is_one_line(tmp_path: Path) -> None:
    result = cllib("run", NAME, "--book", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert f"{NAME}.py" in one_line(result)


def test_a_chapter_runs_in_the_profile_asked_for(book: Path, tmp_path: Path) -> None:
    result = cllib("run", NAME, "--profile", "smoke", "--book", book, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "cell 1 of 3" in result.stderr
    (path,) = (tmp_path / "out").rglob("*.ipynb")
    assert path == tmp_path / "out" / "smoke" / f"{NAME}.ipynb"
    assert nbformat.read(path, as_version=4).cells[-1].outputs[0].text == "smoke\n"


def test_a_failed_chapter_leaves_its_executed_copy_and_no_new_result(book: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "smoke"
    folder.mkdir(parents=True)
    (folder / f"{NAME}.ipynb").write_text("an older result")
    (book / f"{NAME}.py").write_text(HEAD + 'print("so far")\n\n# %%\nraise ValueError("no\\nluck")\n')
    result = cllib("run", NAME, "--profile", "smoke", "--book", book, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "ValueError: no luck" in one_line(result)
    assert str(folder / f"{NAME}.failed.ipynb") in one_line(result)
    assert {path.name for path in folder.iterdir()} == {f"{NAME}.failed.ipynb", f"{NAME}.previous.ipynb"}
    assert "so far" in (folder / f"{NAME}.failed.ipynb").read_text()
    assert (folder / f"{NAME}.previous.ipynb").read_text() == "an older result"


def test_a_chapter_that_succeeds_again_clears_the_failure(book: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "smoke"
    folder.mkdir(parents=True)
    for end in (".failed", ".previous", ""):
        (folder / f"{NAME}{end}.ipynb").write_text("old")
    assert cllib("run", NAME, "--profile", "smoke", "--book", book, "--out", tmp_path / "out").exit_code == 0
    assert [path.name for path in folder.iterdir()] == [f"{NAME}.ipynb"]


def test_the_site_of_an_unknown_profile_is_one_line(tmp_path: Path) -> None:
    result = cllib("site", "--profile", "enormous", "--out", tmp_path / "site")
    assert result.exit_code == 2
    assert "smoke, quick, paper" in one_line(result)


@pytest.mark.parametrize("state", ["not been run", "changed", "damaged", "another run's"])
def test_the_site_wants_the_executed_chapter_as_it_stands(state: str, book: Path, tmp_path: Path) -> None:
    (book / "_toc.yml").write_text(f"format: jb-book\nroot: {NAME}\n")
    if state == "changed":
        cllib("run", NAME, "--profile", "smoke", "--book", book, "--out", tmp_path)
        (book / f"{NAME}.py").write_text(HEAD + "print('another text')\n")
    if state == "another run's":
        cllib("run", NAME, "--profile", "smoke", "--book", book, "--out", tmp_path)
        (tmp_path / "smoke" / "records" / NAME).mkdir(parents=True)
        (tmp_path / "smoke" / "records" / NAME / "a.json").write_text("{}")
    if state == "damaged":
        (tmp_path / "smoke").mkdir()
        (tmp_path / "smoke" / f"{NAME}.ipynb").write_text('{"cells": [')
    result = cllib("site", "--profile", "smoke", "--book", book, "--artifacts", tmp_path, "--out", tmp_path / "site")
    assert result.exit_code == 2
    assert state in one_line(result)
    assert f"cllib run {NAME} --profile smoke" in one_line(result)
    assert not (tmp_path / "site").exists()


def test_pair_keeps_the_checked_text_only(book: Path) -> None:
    (book / f"{NAME}.py").write_text(
        HEAD + 'print("not kept")\n\n# %% tags=["nbval-check-output"]\n'
        'from IPython.display import display\ndisplay({"text/plain": "kept", "image/png": ""}, raw=True)\n'
    )
    assert cllib("pair", NAME, "--book", book).exit_code == 0
    first = (book / f"{NAME}.ipynb").read_text()
    *others, last = nbformat.reads(first, as_version=4).cells
    assert not any(cell.outputs for cell in others)
    assert [dict(output.data) for output in last.outputs] == [{"text/plain": "kept"}]
    assert cllib("pair", NAME, "--book", book).exit_code == 0
    assert json.loads((book / f"{NAME}.ipynb").read_text()) == json.loads(first)


def test_pair_knows_its_chapters(book: Path) -> None:
    result = cllib("pair", "99", "--book", book)
    assert result.exit_code == 2 and one_line(result).startswith("Error: chapter = '99': allowed are")


def test_an_unchanged_chapter_is_left_as_it_is(book: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    (book / f"{NAME}.py").write_text(HEAD + f"with open({str(log)!r}, 'a') as file:\n    file.write('run ')\n")
    asked = ("run", NAME, "--profile", "smoke", "--book", book, "--out", tmp_path / "out")
    first = cllib(*asked)
    assert first.exit_code == 0 and "done in" in first.stdout
    again = cllib(*asked)
    assert again.exit_code == 0 and "unchanged, left as it is" in again.stdout
    assert log.read_text() == "run "
    assert "done in" in cllib(*asked, "--fresh").stdout
    assert "done in" in cllib(*asked, "-p", "seeds=3").stdout  # another parameter
    (book / f"{NAME}.py").write_text((book / f"{NAME}.py").read_text() + "\n# %%\nprint('more')\n")
    assert "done in" in cllib(*asked, "-p", "seeds=3").stdout  # another chapter
    assert log.read_text() == "run " * 4


def test_a_copy_whose_records_are_gone_is_run_again(book: Path, tmp_path: Path) -> None:
    records = tmp_path / "out" / "smoke" / "records" / NAME
    (book / f"{NAME}.py").write_text(
        HEAD + f"from pathlib import Path\nwhere = Path({str(records)!r})\nwhere.mkdir(parents=True, exist_ok=True)\n"
        "(where / 'a.json').write_text('1')\n"
    )
    asked = ("run", NAME, "--profile", "smoke", "--book", book, "--out", tmp_path / "out")
    assert "done in" in cllib(*asked).stdout and "left as it is" in cllib(*asked).stdout
    (records / "a.json").unlink()
    assert "done in" in cllib(*asked).stdout and "left as it is" in cllib(*asked).stdout


def test_changed_images_of_ones_own_are_a_new_run(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_text("1")
    monkeypatch.chdir(tmp_path)
    asked = ("run", NAME, "--profile", "smoke", "-p", "data_dir=mine", "--book", book, "--out", tmp_path / "out")
    assert "done in" in cllib(*asked).stdout and "left as it is" in cllib(*asked).stdout
    (injected,) = [
        cell.source
        for cell in nbformat.read(tmp_path / "out" / "smoke" / f"{NAME}.ipynb", as_version=4).cells
        if "injected-parameters" in cell.metadata.get("tags", [])
    ]
    assert str(tmp_path / "mine") in injected  # where it is, whatever folder the kernel works in
    (tmp_path / "mine" / "b.png").write_text("2")
    assert "done in" in cllib(*asked).stdout
    nowhere = [f"{text.partition('=')[0]}=none" if text == "data_dir=mine" else text for text in map(str, asked)]
    assert "done in" in cllib(*nowhere).stdout


def test_a_damaged_copy_is_run_again(book: Path, tmp_path: Path) -> None:
    asked = ("run", NAME, "--profile", "smoke", "--book", book, "--out", tmp_path / "out")
    assert cllib(*asked).exit_code == 0
    copy = tmp_path / "out" / "smoke" / f"{NAME}.ipynb"
    copy.write_text(copy.read_text()[:100])
    assert "done in" in cllib(*asked).stdout
    assert nbformat.read(copy, as_version=4).cells[-1].outputs[0].text == "smoke\n"


def test_chapters_run_side_by_side_share_the_cores_and_one_that_fails_stops_no_other(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLLIB_CORES", "8")
    names = chapters.names()[:3]
    for name in names:
        (book / f"{name}.py").write_text(HEAD + "import os\nprint(os.environ['CLLIB_CORES'])\n")
    (book / f"{names[0]}.py").write_text(HEAD + "raise ValueError('no luck')\n")
    result = cllib("run", *names, "--profile", "smoke", "--jobs", 2, "--book", book, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "no luck" in one_line(result)
    for name in names[1:]:
        copy = nbformat.read(tmp_path / "out" / "smoke" / f"{name}.ipynb", as_version=4)
        assert copy.cells[-1].outputs[0].text == "4\n"


def test_any_change_of_code_or_data_is_a_new_stamp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook()
    (tmp_path / "cllib").mkdir()
    (tmp_path / "data" / "downloads").mkdir(parents=True)
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)

    def stamp() -> str:
        return notebooks.stamp(notebook, "smoke", {})

    seen = [stamp()]
    for path in ("cllib/a.py", "cllib/b.py", "data/published.json"):
        (tmp_path / path).write_text("x")
        seen.append(stamp())
    (tmp_path / "cllib" / "a.py").write_text("y")
    seen.append(stamp())
    assert len(set(seen)) == len(seen)
    (tmp_path / "data" / "downloads" / "large").write_text("x")
    assert stamp() == seen[-1] and notebooks.stamp(notebook, "quick", {}) != seen[-1]


# --- what is asked for is what runs ---

PARAMETERS = "# %%{}\nprofile = None\nseeds = {}\n{}\n"
SHOWN = """
# %%
from cllib import chapters, front, results
front.show_head("{name}")

# %%
p = chapters.from_notebook("{name}", globals())
front.this_copy("{name}", p)

# %%
print(p.profile, p.seeds)
"""


def write(book: Path, tag: str = ' tags=["parameters"]', seeds: str = "None", more: str = "", body: str = "") -> None:
    text = PARAMETERS.format(tag, seeds, more) + SHOWN.format(name=NAME) + body
    (book / f"{NAME}.py").write_text(text)


def outputs(tmp_path: Path) -> list[str]:
    """What the cells of the executed copy show, as text."""
    copy = nbformat.read(tmp_path / "out" / "smoke" / f"{NAME}.ipynb", as_version=4)
    found = [output for cell in copy.cells for output in cell.get("outputs", [])]
    return [output.get("text") or output["data"].get("text/markdown", "") for output in found]


def test_a_cell_of_parameters_that_lost_its_tag_is_refused(book: Path, tmp_path: Path) -> None:
    write(book, tag="")
    result = cllib("run", NAME, "--profile", "smoke", "-p", "seeds=3", "--book", book, "--out", tmp_path / "out")
    assert result.exit_code == 2 and 'tag "parameters"' in one_line(result)
    assert not (tmp_path / "out").exists()


def test_a_name_in_the_cell_that_there_is_not_is_refused(book: Path, tmp_path: Path) -> None:
    write(book, more="unit = 4\n")
    result = cllib("run", NAME, "--profile", "smoke", "--book", book, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "'unit'" in one_line(result) and "units" in one_line(result)


def told(values: str) -> list[str]:
    """A kernel's cells: the one of parameters, and what papermill added before or after it."""
    fields = [field.name for field in dataclasses.fields(chapters.settings(NAME))]
    own = "\n".join(f"{name} = None" for name in fields)
    return [own, f"# Parameters\n{values}\n"]


def test_papermill_alone_is_held_to_what_it_was_asked_for() -> None:
    own, added = told('profile = "smoke"\nseeds = 3')
    asked = {"profile": "smoke", "seeds": 3}
    assert chapters.from_notebook(NAME, {**asked, "In": ["", own, added]}).seeds == 3
    with pytest.raises(UserError, match="profile = 'smoke' was asked for, and the notebook has None"):
        chapters.from_notebook(NAME, {"profile": None, "seeds": None, "In": ["", added, own]})
    for cells in ([own + "\nunit = 4", added], [own, added + "unit = 4"]):
        with pytest.raises(UserError, match="no parameter 'unit'"):
            chapters.from_notebook(NAME, {**asked, "In": ["", *cells]})


def test_a_reader_may_run_the_cell_of_parameters_again(monkeypatch: pytest.MonkeyPatch) -> None:
    own, added = told('profile = "smoke"\nseeds = 3')
    monkeypatch.setattr(chapters, "watched", lambda: True)
    again = own.replace("seeds = None", "seeds = 7")
    space = {"profile": "smoke", "seeds": 7, "In": ["", own, added, own + "\nunit = 4", again]}
    assert chapters.from_notebook(NAME, space).seeds == 7


def test_the_head_of_a_copy_lists_what_is_not_the_profiles(book: Path, tmp_path: Path) -> None:
    asked = ("run", NAME, "--profile", "smoke", "--book", book, "--out", tmp_path / "out")
    usual = chapters.settings(NAME, "smoke").seeds
    write(book)
    assert cllib(*asked).exit_code == 0
    head, line, printed = outputs(tmp_path)
    assert "as the smoke profile has them" in head and "as the smoke profile has them" in line
    for seeds, more in ((usual + 4, ()), ("None", ("-p", f"seeds={usual + 5}"))):  # in the cell, or on the command line
        write(book, seeds=str(seeds))
        assert cllib(*asked, *more).exit_code == 0
        head, line, printed = outputs(tmp_path)
        number = printed.split()[1]
        assert number != str(usual)
        assert f"`seeds = {number}` (not {usual})" in head and f"`seeds = {number}` (not {usual})" in line


SAVING = """
# %%
import time
where = results.view("{name}", p.profile)
for k in range(p.seeds):
    time.sleep(0.3)
    (where / f"{{p.seeds}}-{{k}}.json").write_text("1")
"""


def test_two_commands_at_once_make_one_copy_after_the_other(book: Path, tmp_path: Path) -> None:
    write(book, body=SAVING.format(name=NAME))
    asked = [COMMAND, "run", NAME, "--profile", "smoke", "--book", str(book), "--out", str(tmp_path / "out")]
    both = [subprocess.Popen([*asked, "-p", f"seeds={n}"], stderr=subprocess.PIPE, text=True) for n in (3, 5)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0] and "waiting for it" in "".join(said)
    records = tmp_path / "out" / "smoke" / "records" / NAME
    last = outputs(tmp_path)[-1].split()[1]
    assert sorted(path.name for path in records.iterdir()) == [f"{last}-{k}.json" for k in range(int(last))]
    unchanged = subprocess.run([*asked, "-p", f"seeds={last}"], capture_output=True, text=True).stdout
    changed = subprocess.run([*asked, "-p", f"seeds={8 - int(last)}"], capture_output=True, text=True).stdout
    assert "unchanged" in unchanged and "done in" in changed


def test_two_sites_into_one_folder_are_built_one_after_the_other(
    book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (book / "_toc.yml").write_text(f"format: jb-book\nroot: {NAME}\n")
    write(book)
    assert cllib("run", NAME, "--profile", "smoke", "--book", book, "--out", tmp_path / "out").exit_code == 0
    at_once: list[int] = []

    def built(src: Path, out: Path) -> Path:
        at_once.append(1)
        time.sleep(1)
        assert len(at_once) == 1 and src.is_dir()
        at_once.pop()
        out.mkdir(parents=True, exist_ok=True)
        return out

    monkeypatch.setattr(site, "jupyter_book", built)
    for name in ("finish", "check"):
        monkeypatch.setattr(site, name, lambda *_: None)
    monkeypatch.setattr(site.front, "write", lambda *_: None)
    failed: list[BaseException] = []

    def build() -> None:
        try:
            site.build("smoke", tmp_path / "site", book, tmp_path / "out")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and "another process builds a site there" in capfd.readouterr().err
