"""`fedpgp data`: what a data set holds, and what is wrong with it."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpgp.cli import options
from fedpgp.cli.printing import err, out, print_json, print_listing, print_table, say
from fedpgp.reporting import ProgressBars

if TYPE_CHECKING:
    from fedpgp.data.check import Report

app = typer.Typer(help="Look at data sets before a run.", no_args_is_help=True, suggest_commands=False)


@options.command(app)
def check(
    path: Annotated[str, typer.Argument(help="What data.source could be: a directory, a file, hf:ORG/NAME.")],
    config: options.ConfigFile = None,
    change: options.Changes = None,
    no_decode: Annotated[bool, typer.Option("--no-decode", help="Open no image.")] = False,
    write_names: Annotated[
        Path | None,
        typer.Option("--write-names", metavar="FILE", help="Write a file of names to fill in, for data.names."),
    ] = None,
    skip_bad_images: options.SkipBadImages = False,
    workers: options.Workers = None,
    as_json: options.Json = False,
) -> None:
    """Read a data set as a run with these settings would, decode every image, and say what is there and what is wrong.

    Ends with exit code 1 if something found would stop a run.

    Examples:
        fedpgp data check photos
        fedpgp data check list.csv --no-decode
    """
    import fedpgp
    from fedpgp.data.check import DataFinding, names_file
    from fedpgp.data.check import check as look
    from fedpgp.results.run_store import writing
    from fedpgp.runs.tasks import make_task, with_targets

    settings = fedpgp.load_config(config, options.all_changes(change, data=path))
    with ProgressBars(err) as bars:
        report = look(
            settings.data,
            0 if settings.task.fewer_shots else settings.task.shots,
            use=lambda source: make_task(settings, with_targets(settings, source), 0),
            decoded=not no_decode,
            skip_bad_images=skip_bad_images,
            workers=options.worker_count(workers),
            progress=partial(bars.progress, "decoding images"),
        )
    if report.counts.get("clients") and settings.task.partition != "natural":
        hint = "the column of clients has no use: --set task.partition=natural gives everybody their own images"
        report = replace(report, findings=(*report.findings, DataFinding(False, hint)))
    if write_names is not None and report.images:
        with writing(write_names, "name a new file"), write_names.open("x", encoding="utf-8") as file:
            file.write(names_file(report))
    if as_json:
        findings = [finding._asdict() for finding in report.findings]
        print_json({**asdict(report), "findings": findings, "usable": report.usable})
    else:
        _print(report)
    if not report.usable:
        raise typer.Exit(1)


def _print(report: "Report") -> None:
    if report.layout:  # else what was found says why there is none
        out.print(f"layout: {report.layout}; {report.images:,} images", markup=False)
    for kind, counts in report.counts.items():
        if counts:
            print_listing((kind, "images"), [(name, f"{count:,}") for name, count in counts.items()])
    for kind, count in report.ignored.items():
        out.print(f"ignored: {count:,} × {kind}", markup=False)
    for finding in report.findings:
        out.print(f"{'error' if finding.stops else 'warning'}: {finding.text}", markup=False, soft_wrap=True)
    out.print("a run can use it" if report.usable else "a run would stop")


@options.command(app)
def show(
    data: options.DataSource = None,
    config: options.ConfigFile = None,
    change: options.Changes = None,
    seed: Annotated[int, typer.Option("--seed", help="Random seed of the task.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Draw the class × client matrix into this file, .png or .svg."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Print what each client of a task holds, and what it is tested on, without a run.

    Examples:
        fedpgp data show
        fedpgp data show --set task.partition=dirichlet --set task.protocol=personalization -o clients.png
    """
    import fedpgp
    from fedpgp.data.sources import load_source
    from fedpgp.errors import OutputError
    from fedpgp.report import holdings
    from fedpgp.runs.tasks import make_task, with_targets
    from fedpgp.runtime.files import write

    suffix = "" if output is None else output.suffix.removeprefix(".").lower()
    if output is not None and suffix not in ("png", "svg"):
        raise OutputError(f"{output} must end in .png or .svg: name another with -o")
    settings = fedpgp.load_config(config, options.all_changes(change, data=data))
    task = make_task(settings, with_targets(settings, load_source(settings.data)), seed)
    if output is not None:
        write(output, holdings.picture(task, suffix))
    if as_json:
        matrix = holdings.matrix(task).tolist()
        names = [task.train.class_names[label] for label in task.base]
        print_json({"clients": holdings.rows(task), "classes": names, "training_images": matrix})
        return
    for table in holdings.tables(task):
        print_table(table)
    if output is not None:
        say(f"written to {output}")


@options.command(app)
def get(
    name: Annotated[str, typer.Argument(help="A known data set, see docs/data-sets.md.")],
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR", help="The directory of data sets: what data.root is in a run.")
    ] = Path("data"),
) -> None:
    """Download a known data set from a mirror on the Hugging Face hub, or say where it is to be had.

    It is saved as a Hugging Face dataset, and --data NAME reads it. HF_ENDPOINT and HF_HUB_OFFLINE are heeded. Of
    caltech101 the command checks that all images of CoOp's split are there once they were downloaded by hand.

    Examples:
        fedpgp data get cifar10
        fedpgp data get caltech101
        fedpgp data get pacs --to /disk/data
    """
    from fedpgp.data.mirrors import fetch

    place = fetch(name, to)
    root = "" if to == Path("data") else f" --set data.root={to}"
    out.print(f"{name} is at {place}; fedpgp data check {place}, then fedpgp run --data {name}{root}", markup=False)


@options.command(app)
def layouts(as_json: options.Json = False) -> None:
    """List the ways in which files may lie on a disk: the values of data.layout.

    Examples:
        fedpgp data layouts
    """
    from fedpgp.data.sources import LAYOUTS

    about = {name: layout.about for name, layout in LAYOUTS.items()}
    if as_json:
        print_json(about)
    else:
        print_listing(("layout", "what it looks like"), about.items())
