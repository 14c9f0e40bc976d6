"""What the front page tells of all chapters: their ledgers, pictures and times; and the head of each chapter."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from IPython.display import Markdown, display, update_display
from nbformat import NotebookNode

from cllib import ledger, results, runs
from cllib.chapters import changed, usual_device
from cllib.errors import UserError

TIMES = runs.ROOT / "data" / "times.json"
GALLERY = "gallery"  # tag of a cell whose first picture stands on the front page
MARKER = "<!-- {} -->"


# --- a chapter's head ---


def times(chapter: str) -> dict[str, float]:
    """Measured seconds of a chapter by profile, from `data/times.json`."""
    measured: dict[str, dict[str, float]] = json.loads(TIMES.read_text())["seconds"]
    return measured.get(chapter, {})


def clock(seconds: float) -> str:
    """3:05 for 185 s."""
    return f"{int(seconds + 0.5) // 60}:{int(seconds + 0.5) % 60:02d}"


def show_head(chapter: str) -> None:
    """Show a chapter's head; `this_copy` completes it once the parameters are known."""
    display(Markdown(head(chapter)), display_id="head")


def this_copy(chapter: str, settings: Any) -> Markdown:
    """A line that says what this copy is made with; the head above says it too, from now on."""
    update_display(Markdown(head(chapter, settings)), display_id="head")
    return Markdown(f"**This copy:** {results.this_run(settings)}. **Parameters:** {parameters(settings)}.")


def parameters(settings: Any) -> str:
    """Every parameter that is not as its profile has it."""
    said = [f"`{name} = {own}` (not {default})" for name, (own, default) in changed(settings).items()]
    return ", ".join(said) or f"as the {settings.profile} profile has them"


def head(chapter: str, settings: Any = None) -> str:
    """A chapter's head block, in Markdown: measured times, where; this copy's date, commit, device and versions.

    settings: also the profile, and every parameter that is not as it has it.
    """
    where = json.loads(TIMES.read_text())["where"]
    took = ", ".join(f"`{profile}` {clock(seconds)}" for profile, seconds in times(chapter).items())
    versions = ", ".join(f"{name} {number}" for name, number in runs.versions().items())
    rows = {
        "measured time": f"{took} (minutes; {where}); `paper`: a GPU" if took else "not measured yet",
        "this copy": f"{date.today().isoformat()}, commit {results.commit()}, {results.device_name(usual_device())}",
        "versions": versions,
    }
    rows |= {} if settings is None else {"profile": settings.profile, "parameters": parameters(settings)}
    return "\n".join(f"- **{name}:** {text}" for name, text in rows.items())  # MyST-NB shows no tables in outputs


# --- the front page ---


def title(notebook: NotebookNode) -> str:
    """The first heading."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found.group(1) if found else ""


def short(notebook: NotebookNode) -> str:
    """The heading up to its colon or comma."""
    return re.split("[:,]", title(notebook))[0]


def anchor(notebook: NotebookNode) -> str | None:
    """The label before the heading of the ledger, such as "ledger5"; None where there is none."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    found = [re.search(r"^\((ledger\d*)\)=$", text, re.MULTILINE) for text in sources]
    return next((match.group(1) for match in found if match), None)


def ledgers(chapters: Mapping[str, NotebookNode], records: Path, published: bool = True) -> str:
    """A table of all chapters: how many claims got which verdict. records: the folder with a folder a chapter.

    published: claims of papers and released programs; False: the numbers of reference runs made for this book.
    """
    verdicts = list(ledger.MARKS)
    lines = ["| chapter | " + " | ".join([*verdicts, "in all"]) + " |", "| --- |" + " ---: |" * (len(verdicts) + 1)]
    total = dict.fromkeys(verdicts, 0)
    for name, notebook in chapters.items():
        judged = ledger.whole(name, records / name)
        counts = ledger.counts(judged[judged["source"].isin(ledger.unpublished(name)) != published])
        total = {verdict: total[verdict] + counts[verdict] for verdict in verdicts}
        lines.append(_row(f"[{short(notebook)}](#{anchor(notebook)})", counts))
    return "\n".join([*lines, _row("**all**", total)])


def _row(first: str, counts: Mapping[str, int]) -> str:
    cells = [first, *map(str, counts.values()), str(sum(counts.values()))]
    return "| " + " | ".join(cells) + " |"


def gallery(chapters: Mapping[str, NotebookNode], folder: Path) -> str:
    """The first picture of every chapter's tagged cell, written to the folder, each a link to its chapter."""
    cards = []
    for name, notebook in chapters.items():
        picture, words = next(pictures(notebook), (None, ""))
        if picture is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.png").write_bytes(picture)
            caption = short(notebook)
            told = f":alt: {words}\n:target: {name}.html"
            cards.append(f":::{{figure}} {folder.name}/{name}.png\n{told}\n\n{{doc}}`{caption} <{name}>`\n:::")
    return "::::{div} gallery\n" + "\n".join(cards) + "\n::::"


def pictures(notebook: NotebookNode) -> Iterator[tuple[bytes, str]]:
    """The PNGs of cells tagged `GALLERY`, in order, each with what it shows in words."""
    for cell in notebook.cells:
        if GALLERY in cell.metadata.get("tags", []):
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    words = output.metadata.get("image/png", {}).get("alt", title(notebook))
                    yield base64.b64decode(output.data["image/png"]), words


def took(chapters: Mapping[str, NotebookNode], profile: str) -> str:
    """A table of what every chapter's copy took, from its own clock, beside what was measured with nothing kept."""
    lines = [
        f"| chapter | this copy, `{profile}` | made on | measured with nothing kept: `smoke` | `quick` |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for name, notebook in chapters.items():
        told = notebook.metadata.get("papermill", {})
        own = clock(told["duration"]) if told.get("duration") else ""
        measured = [clock(times(name)[kind]) if kind in times(name) else "" for kind in ("smoke", "quick")]
        lines.append("| " + " | ".join([short(notebook), own, str(told.get("start_time", ""))[:10], *measured]) + " |")
    return "\n".join(lines)


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Put every part in the place of its marker, `<!-- NAME -->`. Raises UserError for a page without one of them."""
    text = page.read_text("utf-8")
    for name, part in parts.items():
        marker = MARKER.format(name)
        if marker not in text:
            raise UserError(f"{page.name}: has no line {marker}")
        text = text.replace(marker, part)
    page.write_text(text, "utf-8")


def write(chapters: Mapping[str, NotebookNode], src: Path, profile: str, artifacts: Path) -> None:
    """Complete the front page in the folder that the site is built from."""
    parts = {
        "ledgers": ledgers(chapters, artifacts / profile / "records"),
        "reference runs": ledgers(chapters, artifacts / profile / "records", published=False),
        "gallery": gallery(chapters, src / "gallery"),
        "times": took(chapters, profile),
    }
    fill(src / "intro.md", parts)
