"""Chapters as notebooks: `book/NAME.py` is the source, `OUT/PROFILE/NAME.ipynb` the executed copy."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import joblib
import jupytext
import nbformat
import papermill
import torch
from jupytext.cli import jupytext as jupytext_command
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from cllib import chapters, runs
from cllib.datasets import folder
from cllib.datasets.files import checksum, locked
from cllib.errors import UserError
from cllib.results import RECORDS
from cllib.threads import cores

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
ARTIFACTS = ROOT / "artifacts"


class ChapterFailed(RuntimeError):
    """A chapter did not run to its end; the message is one line that names the executed copy."""


def run(
    name: str,
    profile: str,
    given: Mapping[str, object],
    book: Path = BOOK,
    out: Path = ARTIFACTS,
    fresh: bool = True,
) -> Path:
    """Execute the chapter `book/name.py` and return the path of its executed copy, `out/profile/name.ipynb`.

    fresh: False leaves a copy as it is that was made by the same chapter, parameters, code and data (`stamp`).

    `given` holds the parameters to set over the profile's defaults, already checked (`cllib.chapters`).
    While the chapter runs there is no `name.ipynb`: an older one waits as `name.previous.ipynb`, so that it is
    never taken for the new one.

    Raises `UserError` where the chapter is missing or `out` cannot be written, before a kernel starts, and
    `ChapterFailed` where the run stops; what was executed is then kept as `name.failed.ipynb`.
    """
    part, done, failed, previous = copies(name, profile, out)
    notebook = source(name, book)
    settings = asked(name, profile, given, notebook)
    with at_work(name, done.parent):
        made_of = stamp(notebook, profile, given, contained(settings))
        records = done.parent / "records" / name
        if not fresh and stamped(done, records) == made_of:
            return done
        start(notebook, part, done, previous)
        # The kernel inherits where runs are kept, and where its records go: beside the copy.
        os.environ |= {"CLLIB_ARTIFACTS": str(out.resolve()), RECORDS: str(records)}
        try:
            papermill.execute_notebook(
                part,
                part,
                {"profile": profile, **{key: plain(value) for key, value in given.items()}},
                kernel_name="python3",
                language="python",
                cwd=ROOT,
                progress_bar=bar(name),
                # It listens on this machine only, and is interrupted when it is done: its words on that help no reader.
                extra_arguments=["--log-level=CRITICAL"],
            )
            mark(part, made_of, records)
            os.replace(part, done)
        except Exception as error:
            part.replace(failed)
            raise ChapterFailed(f"{name} failed: {reason(error)}; the executed copy is {failed}") from error
        finally:
            del os.environ[RECORDS]
        failed.unlink(missing_ok=True)
        previous.unlink(missing_ok=True)
    return done


def asked(name: str, profile: str, given: Mapping[str, object], notebook: NotebookNode) -> Any:
    """Return the parameters that a run will have: the profile's, those in the notebook's cell of them, `given`.

    Raises `UserError` where there is no such cell, or it names or holds what the chapter does not know or allow.
    """
    cells = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise UserError(
            f'{name}: {len(cells)} cells with the tag "parameters"; there must be one, for values to come after'
        )
    space: dict[str, Any] = {}
    try:
        exec(chapters.without_commands(cells[0]), space)
    except (Exception, SystemExit) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{name}: its cell of parameters stops ({why})") from error
    own = {key: value for key, value in space.items() if key in chapters.assigned(cells[0]) and key != "profile"}
    return chapters.settings(name, profile, **{key: chapters.located(key, v) for key, v in {**own, **given}.items()})


@contextmanager
def at_work(name: str, folder: Path) -> Iterator[None]:
    """Hold a chapter's copy and records in a profile's folder, which one process at a time may make or read."""
    lock = folder.parent / ".locks" / f"{folder.name}-{name}"
    try:
        for needed in (folder, lock.parent):
            needed.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder with --out") from error
    with locked(lock, f"{name}: another process is at work on it in {folder}; waiting for it"):
        yield


def run_all(
    given: Mapping[str, Mapping[str, object]], profile: str, jobs: int = 1, fresh: bool = False, **where: Path
) -> Iterator[str]:
    """Run chapters with their parameters, so many side by side that share the cores, and say of each how it went.

    where: `book` and `out` of `run`. All are run, whatever becomes of one; raises `ChapterFailed` that names those
    that stopped, and what `run` raises before a kernel starts.
    """
    share = max(1, cores() // min(jobs, len(given)))
    tasks = (joblib.delayed(_timed)(name, profile, values, share, fresh, where) for name, values in given.items())
    failed = []
    for line, error in joblib.Parallel(n_jobs=min(jobs, len(given)), return_as="generator")(tasks):
        if error:
            failed.append(error)
        else:
            yield line
    if failed:
        raise ChapterFailed("\n".join(failed))


def _timed(
    name: str, profile: str, values: Mapping[str, object], share: int, fresh: bool, where: Mapping[str, Path]
) -> tuple[str, str]:
    """Run a chapter on so many cores; a line that says what was done, and, if it stopped, why."""
    os.environ["CLLIB_CORES"] = str(share)
    begin = perf_counter()
    try:
        _, done, _, _ = copies(name, profile, where.get("out", ARTIFACTS))
        before = done.stat().st_mtime_ns if done.exists() else None
        path = run(name, profile, values, fresh=fresh, **where)
    except ChapterFailed as error:
        return "", str(error)
    kept = path.stat().st_mtime_ns == before
    how = "unchanged, left as it is" if kept else f"done in {perf_counter() - begin:.0f} s"
    return f"{name}: {profile} profile {how}: {path}", ""


def unchanged(
    name: str, profile: str, given: Mapping[str, object], book: Path, out: Path, threads: int | None = None
) -> bool:
    """Return whether the executed copy is what another run would make; raises `UserError` as `run` does.

    threads: of the machine that would run it, those of this process where None.
    """
    _, done, _, _ = copies(name, profile, out)
    notebook = source(name, book)
    made_of = stamp(notebook, profile, given, contained(asked(name, profile, given, notebook)), threads)
    return stamped(done, done.parent / "records" / name) == made_of


def stamp(
    notebook: NotebookNode,
    profile: str,
    given: Mapping[str, object],
    places: Iterable[tuple[str, str]] = (),
    threads: int | None = None,
) -> str:
    """Return 16 hex digits of all that an executed copy depends on: the chapter, its parameters, code, data, versions.

    Any change in any file of `cllib` or `data` counts, and in `places`, what parameters name that lies on this machine
    (`contained`). Data that was downloaded does not: it is known by its checksums.
    """
    told = [contents(notebook), profile, sorted(given.items()), runs.versions(), torch.cuda.is_available()]
    told += [threads or torch.get_num_threads(), sorted(places)]
    beside = {path.name: checksum(path, "sha256") for path in sorted(ROOT.glob("*.py"))}  # which kernels can import
    files = digest(ROOT / "cllib", "*.py"), digest(ROOT / "data"), beside
    return hashlib.sha256(repr([*told, *files]).encode()).hexdigest()[:16]


def contained(settings: Any) -> Iterator[tuple[str, str]]:
    """Yield (path, what is in it) of the files that the parameters name.

    Of a file and of the reader's own images, just those that are read, it is the hash of their bytes. Of other folders,
    which hold data sets of a known content, it is size, times and number on the disk of every file, linked or not.
    """
    if settings.own_folder is not None:
        for files in folder.halves(settings.own_folder):
            yield from ((str(path), checksum(path, "sha256")) for paths in files.values() for path in paths)
    for name in chapters.PLACES:
        path = Path(getattr(settings, name, None) or "")
        if name == "data_dir" and getattr(settings, name, None) and settings.own_folder is None:
            yield from ((str(file), touched(file)) for file in every_file(path))
        elif path.is_file():
            yield str(path), checksum(path, "sha256")


def touched(file: Path) -> str:
    """Return what is another after a file was written or exchanged."""
    told = file.stat()
    return f"{told.st_size} {told.st_mtime_ns} {told.st_ctime_ns} {told.st_ino} {told.st_dev}"


def every_file(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder; links are followed, in a circle once."""
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (path for file in files if (path := Path(where, file)).is_file())


def digest(folder: Path, pattern: str = "*") -> str:
    """Return a hash of all files in a folder, names and bytes, downloads left out."""
    sha = hashlib.sha256()
    inside = [(path.relative_to(folder), path) for path in sorted(folder.rglob(pattern))]
    for path in [path for place, path in inside if path.is_file() and "downloads" not in place.parts]:
        sha.update(str(path.relative_to(folder)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return sha.hexdigest()


def stamped(done: Path, records: Path) -> str | None:
    """Return the stamp of an executed copy; None where there is no whole one, or its records are not those it left."""
    try:
        told = nbformat.read(done, as_version=4).metadata.get("cllib", {})
    except (OSError, ValueError, nbformat.ValidationError):
        return None
    return told.get("stamp") if told.get("records") == digest(records) else None


def mark(path: Path, stamp: str, records: Path) -> None:
    """Write into an executed copy its stamp, and what records it left."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["cllib"] = {"stamp": stamp, "records": digest(records)}
    nbformat.write(notebook, path)


def copies(name: str, profile: str, out: Path) -> tuple[Path, Path, Path, Path]:
    """Where the executed copy is: while it runs, done, failed, and the one before it."""
    part, done, failed, previous = (f"{name}{end}.ipynb" for end in (".part", "", ".failed", ".previous"))
    folder = out.resolve() / profile
    return folder / part, folder / done, folder / failed, folder / previous


def source(name: str, book: Path = BOOK) -> NotebookNode:
    """Return the notebook that the text half `book/name.py` describes; raises `UserError` where there is none."""
    path = book / f"{name}.py"
    if not path.is_file():
        raise UserError(f"{path}: no such chapter file")
    return jupytext.read(path)


def start(notebook: NotebookNode, part: Path, done: Path, previous: Path) -> None:
    """Write `notebook` to `part` and move an older result out of the way; raises `UserError` where that fails."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, part)
        if done.exists():
            done.replace(previous)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise UserError(f"cannot write {part.parent}: {error.strerror}; choose another folder with --out") from error


def plain(value: object) -> object:
    """Return `value` as papermill can write it: it knows lists but turns a tuple into a string."""
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def bar(name: str) -> dict[str, object]:
    """Return the settings of papermill's progress bar: one moving line on a terminal, one line a cell in a log."""
    if sys.stderr.isatty():
        return {"desc": name}
    return {"desc": name, "mininterval": 0, "bar_format": "{desc}: cell {n_fmt} of {total_fmt} [{elapsed}]\n"}


def reason(error: Exception) -> str:
    """Return in one line why a chapter stopped."""
    if isinstance(error, PapermillExecutionError):
        return f"cell [{error.exec_count}], {error.ename}: {' '.join(str(error.evalue).split())}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def written(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the cells that the chapter's author wrote: all but the parameters that papermill injected."""
    return [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]


def contents(notebook: NotebookNode) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (type, source, tags) of every cell the author wrote: what both halves of a pair must share."""
    return [(cell.cell_type, cell.source, tuple(cell.metadata.get("tags", []))) for cell in written(notebook)]


def pair(name: str, book: Path = BOOK) -> Path:
    """Write `book/name.ipynb` from `book/name.py` and return its path.

    The chapter is run in the smoke profile; only the text outputs of the cells tagged `nbval-check-output` are
    stored, which are what nbval compares. Raises as `run` does; the notebook is then as it was.
    """
    with tempfile.TemporaryDirectory() as folder:
        executed = nbformat.read(run(name, "smoke", {}, book, Path(folder)), as_version=4)
    path = book / f"{name}.ipynb"
    # --update keeps the ids of unchanged cells, so that a diff shows what changed.
    jupytext_command(["--quiet", "--to", "ipynb", "--update", str(book / f"{name}.py")])
    notebook = nbformat.read(path, as_version=4)
    for cell, ran in zip(notebook.cells, written(executed), strict=True):
        if cell.cell_type == "code":
            checked = "nbval-check-output" in cell.metadata.get("tags", [])
            # nbval takes outputs without a count for an error in the stored notebook.
            cell.execution_count, cell.outputs = (ran.execution_count, text_outputs(ran)) if checked else (None, [])
    nbformat.write(notebook, path)
    return path


def text_outputs(cell: NotebookNode) -> list[NotebookNode]:
    """Return the outputs of a code cell with all but the text left out."""
    outputs = [NotebookNode(output) for output in cell.outputs]
    for output in outputs:
        if "data" in output:
            output.data = {mime: data for mime, data in output.data.items() if mime.startswith("text/")}
            output.metadata = {}
    return outputs
