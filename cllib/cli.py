"""The command `cllib`: thin; what a command does is in `notebooks`, `experiments`, `report` and `site`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from tqdm import tqdm

from cllib import chapters, notebooks, results, runs, site
from cllib.datasets.files import writable_folder, write_atomic
from cllib.errors import UserError, one_of
from cllib.options import split

if TYPE_CHECKING:
    from cllib.sweeps import Ends

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


def option_on(command: Command) -> Command:
    """Add the option that says where the work is done."""
    told = "On a Ray cluster: local, auto, or the HOST:PORT of one."
    return click.option("--on", metavar="ADDRESS", help=told)(command)


def option_gpus(command: Command) -> Command:
    """Add the option that says how much of a GPU is taken there."""
    told = "With --on: the share of a card that each run takes, such as 0.25."
    return click.option("--gpus", default=0.0, type=click.FloatRange(0, 1), help=told)(command)


@contextmanager
def one_line() -> Iterator[None]:
    """Turn what a reader can mend into one line on stderr: exit code 2 for a wrong input, 1 for a failed run."""
    try:
        yield
    except UserError as error:
        raise BadInput(" ".join(str(error).split("\n"))) from error
    except (notebooks.ChapterFailed, site.SiteFailed) as error:
        raise click.ClickException(str(error)) from error
    except (MemoryError, OverflowError) as error:
        raise BadInput(f"a number is too large for this machine ({error})") from error
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise BadInput(f"a number is too large for this machine ({str(error).splitlines()[0]})") from error


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
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(1), help="Chapters that run side by side.")
@click.option("--fresh", is_flag=True, help="Run also what has not changed since it was run.")
@option_book
@option_on
@option_gpus
def run(
    names: tuple[str, ...], every: bool, profile: str, pairs: tuple[str, ...], on: str | None, gpus: float, **how: Any
) -> None:
    """Run chapters headless, after checking every name and value.

    A copy that was made by the same chapter, parameters, code and data is left as it is.
    """
    with one_line():
        chosen = chapters.names() if every else names
        if not chosen:
            raise UserError(f"name a chapter, or give --all; there are: {', '.join(chapters.names())}")
        given = {name: checked(name, profile, split(pairs)) for name in chosen}
        if on is not None:
            return away(given, profile, how["book"], how["out"], on, gpus, how["fresh"])
        for line in notebooks.run_all(given, profile, **how):
            click.echo(line)


def away(
    given: dict[str, dict[str, object]], profile: str, book: Path, out: Path, on: str, gpus: float, fresh: bool
) -> None:
    """Run chapters on a Ray cluster; those that fail do not stop the others."""
    from cllib import cluster

    for name in list(given):
        threads = cluster.cores_of(given[name])
        if not fresh and notebooks.unchanged(name, profile, given[name], book, out, threads):
            click.echo(f"{name}: {profile} profile unchanged, left as it is: {out / profile}")
            del given[name]
    if not given:
        return
    cluster.join(on, None, gpus, max(map(cluster.cores_of, given.values())))
    click.echo(f"sent to {on}: {', '.join(given)}")
    failed = []
    with ExitStack() as held:
        for name in given:
            held.enter_context(notebooks.at_work(name, out.resolve() / profile))
        for name, why in cluster.execute(given, profile, gpus, book, out):
            failed += [] if why is None else [why]
            click.echo(f"{name}: {profile} profile {'done' if why is None else 'failed'}: {out / profile}")
    if failed:
        raise click.ClickException("\n".join(failed))


def checked(name: str, profile: str, pairs: dict[str, str]) -> dict[str, object]:
    """Return the typed parameters of a chapter; raises `UserError` for what the chapter does not know or allow."""
    values = chapters.parse(name, pairs)
    for place in chapters.PLACES:
        # A kernel works in another folder than the one in which the name was typed.
        if values.get(place) is not None and Path(values[place]).exists():
            values[place] = str(Path(values[place]).resolve())
    chapters.settings(name, profile, **values)
    return values


@main.command()
@click.argument("learners", nargs=-1, metavar="LEARNER...")
@click.option(
    "-p", "pairs", multiple=True, metavar="NAME=VALUE", help="A setting of stream, network, training, learner."
)
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--seed", default=1, show_default=True, type=click.IntRange(0), help="The first one.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--checkpoint-every", type=click.IntRange(1), help="Steps; else as often as costs 1 % of the time.")
@click.option("--tensorboard", type=FOLDER, help="Folder for TensorBoard event files.")
@click.option("--store", type=FOLDER, help="Where runs are kept; else artifacts/runs.")
def train(
    learners: tuple[str, ...], pairs: tuple[str, ...], seeds: int, seed: int, store: Path | None, **options: Any
) -> None:
    """Train learners on a stream and print how they did.

    A run that was stopped, however, goes on where it was; one that is finished is not run again.
    """
    from cllib import experiments, recipes, report
    from cllib.learners import LEARNERS

    with one_line():
        if options["tensorboard"] is not None:
            writable_folder(options["tensorboard"])
        if not learners:
            raise UserError(f"name a learner; there are: {', '.join(LEARNERS)}")
        config, made = recipes.parse(learners, split(pairs))
        if options["device"] == "cuda" and not torch.cuda.is_available():
            raise UserError("device = 'cuda': this machine has no GPU that torch can use")
        stream = config.build()
        found = experiments.compare("train", stream, made, range(seed, seed + seeds), store=store, **options)
        click.echo(report.readable(report.runs_table(found)))


@main.command()
@click.argument("chapter")
@option_profile
@click.option(
    "-p", "pairs", multiple=True, metavar="NAME=A,B,...", help="Values of a parameter; a list is written A:B."
)
@click.option("--seeds", type=click.IntRange(1), help="How many; else as the profile has.")
@click.option("--seed", type=click.IntRange(0), help="The first one; else as the chapter has.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(chapters.DEVICES))
@click.option("--workers", type=click.IntRange(1), help="Processes, each on one thread; else one a core.")
@option_on
@option_gpus
@click.option("--checkpoint-every", type=click.IntRange(1), help="Steps; else as often as costs 1 % of the time.")
@click.option("--store", type=FOLDER, help="Where runs are kept; else artifacts/runs.")
@click.option("--csv", type=FOLDER, help="Also write the table, every digit, to this file.")
@click.option("--dry-run", is_flag=True, help="Only list what there is to do.")
def sweep(chapter: str, profile: str, pairs: tuple[str, ...], store: Path | None, **asked: Any) -> None:
    """Run a chapter's own experiment for every combination of values and every seed, as far as that is missing.

    Stopped in any way, the same command goes on. A run that fails is named at the end; the others are not disturbed.
    """
    from cllib import durations, sweeps

    store = store or runs.store()
    with one_line():
        device, gpus = device_of(asked["device"], asked["on"], asked["gpus"])
        if asked["csv"] is not None:  # before the work, not after it
            one_file(asked["csv"])
        here = device == "cpu" or torch.cuda.is_available()
        points = sweeps.grid(chapter, profile, split(pairs), device if here else "cpu")
        first = points[0].settings
        start = first.seed if asked["seed"] is None else asked["seed"]
        wanted = sweeps.paired(points, range(start, start + (asked["seeds"] or first.seeds)), device)
        there = sweeps.finished(store)
        todo = sweeps.jobs([pair for pair in wanted if pair.key not in there], device)
        workers, perform = hands(asked["on"], asked["workers"], device, gpus)
        click.echo(f"{chapter}, {profile} profile, {device}: {sweeps.listing(wanted, there)}")
        if todo:
            click.echo(f"{len(todo)} programs, {durations.estimate(todo, store, workers, here)}")
        if not asked["dry_run"]:
            ends = perform(todo, store, checkpoint_every=asked["checkpoint_every"])
            failed = watched(ends, sum(job.runs for job in todo))
            found, damaged = sweeps.gathered(wanted, store)
            failed, made = [*failed, *damaged], sweeps.table(found)
            click.echo(sweeps.readable(made) if len(made) else "no run is finished")
            if asked["csv"] is not None:
                write_atomic(asked["csv"], made.to_csv(index=False).encode())
            if failed:
                raise click.ClickException("\n".join([f"{len(failed)} failed", *failed]))


def one_file(path: Path) -> None:
    """Raise UserError unless a file can be written there."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    writable_folder(path.resolve().parent)


def device_of(asked: str, on: str | None, gpus: float) -> tuple[str, float]:
    """The device of a sweep, and the share of a card that a run takes on a cluster; UserError for what cannot be."""
    if gpus and on is None:
        raise UserError(f"--gpus {gpus:g}: only with --on; processes of this machine share its card as it is")
    device = asked if asked != "auto" else "cuda" if gpus else chapters.usual_device()
    if gpus and device == "cpu":
        raise UserError(f"--gpus {gpus:g}: not with --device cpu")
    if device == "cuda" and on is None and not torch.cuda.is_available():
        raise UserError("device = 'cuda': this machine has no GPU that torch can use")
    return device, gpus or float(device == "cuda")


def hands(on: str | None, workers: int | None, device: str, gpus: float) -> tuple[int, Callable[..., "Ends"]]:
    """How many runs go on at once, and who does them."""
    from cllib import local

    if on is None:
        count = workers or local.usual(device)
        return count, partial(local.perform, workers=count)
    from cllib import cluster

    return cluster.join(on, workers, gpus), partial(cluster.perform, gpus=gpus)


def watched(ends: "Ends", total: int) -> list[str]:
    """Show how many runs are done as they end: a moving line on a terminal, one every half minute in a log.

    Returns a line for each that failed.
    """
    terminal = sys.stderr.isatty()
    form = None if terminal else "{desc}: {n_fmt} of {total_fmt} [{elapsed}, {remaining} left]{postfix}\n"
    failed = []
    with closing(ends), tqdm(total=total, desc="runs", bar_format=form, mininterval=0.1 if terminal else 30) as bar:
        for job, why in ends:
            failed += [] if why is None else [f"{job.name}: {why}"]
            bar.set_postfix({"failed": len(failed)} if failed else {}, refresh=False)
            bar.update(job.runs)
    return failed


@main.command("report")
@option_profile
@click.option("--store", type=FOLDER, help="Where runs are kept; else artifacts/runs.")
@click.option("--csv", type=FOLDER, help="Also write the table of all runs, every column, to this file.")
def print_report(profile: str, store: Path | None, csv: Path | None) -> None:
    """Print all runs in one table, what each metric means, and the ledgers."""
    from cllib import report

    with one_line():
        one_of("profile", profile, chapters.PROFILES)
        if store is not None and not store.is_dir():
            raise UserError(f"--store {store}: no such folder")
        made = results.all_kept(store or runs.store())
        click.echo(report.whole(made, runs.artifacts() / profile / "records"))
        if csv is not None:
            write_atomic(csv, report.runs_table(made).to_csv(index=False).encode())


@main.command("cost")
@click.option("--measure", is_flag=True, help="Take the figures anew: some minutes on a CPU.")
def write_cost(measure: bool) -> None:
    """Write the page that says what the whole book takes in the paper profile, and print its path."""
    from cllib import cost

    with one_line():
        click.echo(cost.write(measure))


@main.command("site")
@option_profile
@click.option(
    "--artifacts", type=FOLDER, default=notebooks.ARTIFACTS, help="Where `cllib run` put the executed copies."
)
@click.option("--out", type=FOLDER, default=notebooks.ROOT / "_build", help="The site goes to OUT/html.")
@click.option(
    "--repository",
    default=site.origin,
    metavar="URL",
    help="Link to it, and to Binder.  [default: a public git origin]",
)
@click.option("--branch", default="main", show_default=True, help="Branch of the repository that Binder opens.")
@option_book
def build_site(profile: str, artifacts: Path, out: Path, repository: str | None, branch: str, book: Path) -> None:
    """Build the static site from executed chapters and print the path of its front page."""
    with one_line():
        for name in chapters.names():
            chapters.settings(name, profile)
        click.echo(site.build(profile, out, book, artifacts, repository, branch))


@main.command()
@click.argument("names", nargs=-1, metavar="[CHAPTER...]")
@option_book
def pair(names: tuple[str, ...], book: Path) -> None:
    """Write the .ipynb of all or some chapters from their .py, with the small outputs that nbval compares."""
    with one_line():
        for name in names:
            one_of("chapter", name, chapters.names())
        for name in names or chapters.names():
            click.echo(notebooks.pair(name, book))
