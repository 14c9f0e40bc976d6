"""The command `cllib`: run chapters, build the site. Thin: what a command does is in `notebooks` and `site`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import click

from cllib import chapters, notebooks, site
from cllib.errors import UserError

FOLDER = click.Path(path_type=Path)
Command = Callable[..., None]


class BadInput(click.ClickException):
    """What was typed cannot be used."""

    exit_code = 2


def option_book(command: Command) -> Command:
    """Add the option that says where the chapters are."""
    return click.option("--book", type=FOLDER, default=notebooks.BOOK, help="Folder of the chapters.")(command)


def option_profile(command: Command) -> Command:
    """Add the option that picks a profile; `cllib.chapters` knows which there are."""
    return click.option("--profile", default="quick", show_default=True, help="smoke, quick or paper.")(command)


@contextmanager
def one_line() -> Iterator[None]:
    """Turn what a reader can mend into one line on stderr: exit code 2 for a wrong input, 1 for a failed run."""
    try:
        yield
    except UserError as error:
        raise BadInput(str(error)) from error
    except (notebooks.ChapterFailed, site.SiteFailed) as error:
        raise click.ClickException(str(error)) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Continual learning, reproduced: run the book's chapters and build its site."""


@main.command("chapters")
def list_chapters() -> None:
    """List the names of the chapters."""
    for name in chapters.names():
        click.echo(name)


@main.command()
@click.argument("names", nargs=-1, metavar="CHAPTER...")
@click.option("--all", "every", is_flag=True, help="Run every chapter.")
@option_profile
@click.option("-p", "pairs", multiple=True, metavar="NAME=VALUE", help="Set a parameter over the profile's default.")
@click.option("--out", type=FOLDER, default=notebooks.ARTIFACTS, help="Executed copies go to OUT/PROFILE.")
@option_book
def run(names: tuple[str, ...], every: bool, profile: str, pairs: tuple[str, ...], out: Path, book: Path) -> None:
    """Run chapters headless, after checking every name and value."""
    with one_line():
        chosen = chapters.names() if every else names
        if not chosen:
            raise UserError(f"name a chapter, or give --all; there are: {', '.join(chapters.names())}")
        given = {name: checked(name, profile, split(pairs)) for name in chosen}
        for name, values in given.items():
            begin = perf_counter()
            path = notebooks.run(name, profile, values, book, out)
            click.echo(f"{name}: {profile} profile done in {perf_counter() - begin:.0f} s: {path}")


def split(pairs: tuple[str, ...]) -> dict[str, str]:
    """Return {name: value} of the 'name=value' texts; raises `UserError` for another form or a repeated name."""
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise UserError(f"-p {pair}: write -p NAME=VALUE")
        if name in values:
            raise UserError(f"-p {pair}: {name} is given twice")
        values[name] = value
    return values


def checked(name: str, profile: str, pairs: dict[str, str]) -> dict[str, object]:
    """Return the typed parameters of a chapter; raises `UserError` for what the chapter does not know or allow."""
    values = chapters.parse(name, pairs)
    chapters.settings(name, profile, **values)
    return values


@main.command("site")
@option_profile
@click.option(
    "--artifacts", type=FOLDER, default=notebooks.ARTIFACTS, help="Where `cllib run` put the executed copies."
)
@click.option("--out", type=FOLDER, default=notebooks.ROOT / "_build", help="The site goes to OUT/html.")
@option_book
def build_site(profile: str, artifacts: Path, out: Path, book: Path) -> None:
    """Build the static site from executed chapters and print the path of its front page."""
    with one_line():
        for name in chapters.names():
            chapters.settings(name, profile)
        click.echo(site.build(profile, out, book, artifacts))


@main.command()
@option_book
def pair(book: Path) -> None:
    """Write every chapter's .ipynb from its .py, with the small outputs that nbval compares."""
    with one_line():
        for name in chapters.names():
            click.echo(notebooks.pair(name, book))
