"""`fedpgp data`: check datasets, download them, and show how a task distributes them."""

from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpgp.cli import completion
from fedpgp.cli.option_groups import ExperimentOptions, with_options
from fedpgp.cli.options import Json, SkipBadImages, Workers, command, worker_count
from fedpgp.cli.printing import err, next_command, out, print_json, print_listing, print_table, say, typed
from fedpgp.reporting import ProgressBars

if TYPE_CHECKING:
    from fedpgp.data.check import Report

OF_EXPERIMENT = {field.name for field in fields(ExperimentOptions)}  # parameters that a run has, too

app = typer.Typer(
    help="Check datasets, download them, and show how a task distributes them to clients.",
    no_args_is_help=True,
    suggest_commands=False,
)


@command(app)
@with_options(ExperimentOptions, "data")
def check(
    path: Annotated[
        str,
        typer.Argument(
            help="Dataset: a directory, a CSV file, hf:ORG/NAME, or the name of a known dataset.",
            autocompletion=completion.of_names("datasets"),
        ),
    ],
    no_decode: Annotated[bool, typer.Option("--no-decode", help="Do not open the images.")] = False,
    write_names: Annotated[
        Path | None,
        typer.Option(
            "--write-names",
            metavar="FILE",
            help="Write a file with one line for each class. Edit the class names in this file, and set"
            " data.names to it.",
        ),
    ] = None,
    skip_bad_images: SkipBadImages = False,
    workers: Workers = None,
    as_json: Json = False,
    *,
    options: ExperimentOptions,
) -> None:
    """Read a dataset in the same way as a run with these settings, decode every image, and print the result.

    The result ends with the classes and images that a run would train on. The exit code is 1 if an error would stop a
    run.

    Examples:
        fedpgp data check photos
        fedpgp data check list.csv --no-decode
    """
    import fedpgp
    from fedpgp.backbone import PHOTOCLIP
    from fedpgp.data.check import DataFinding, Usage, names_file, usage
    from fedpgp.data.check import check as look
    from fedpgp.data.sources import pictograms
    from fedpgp.results.run_store import writing
    from fedpgp.runs.tasks import make_task, with_targets

    settings = fedpgp.load_config(options.config, replace(options, data=path).changes)
    used: list[Usage] = []
    with ProgressBars(err) as bars:
        report = look(
            settings.data,
            0 if settings.task.fewer_shots else settings.task.shots,
            use=lambda source: used.append(usage(make_task(settings, with_targets(settings, source), 0))),
            decoded=not no_decode,
            skip_bad_images=skip_bad_images,
            workers=worker_count(workers),
            progress=partial(bars.progress, "decoding images"),
        )
    if report.counts.get("clients") and settings.task.partition != "natural":
        hint = "The column of clients is not used. Use --set task.partition=natural to give each client its own images"
        report = replace(report, findings=(*report.findings, DataFinding(False, hint)))
    if write_names is not None and report.images:
        with writing(write_names, "Use the name of a new file"), write_names.open("x", encoding="utf-8") as file:
            file.write(names_file(report))
    if as_json:
        findings = [finding._asdict() for finding in report.findings]
        uses = asdict(used[0]) if used else None
        print_json({**asdict(report), "findings": findings, "usable": report.usable, "usage": uses})
    else:
        _print(report)
        for text in used[0].describe() if used else ():
            out.print(text, markup=False, soft_wrap=True)
    if not report.usable:
        raise typer.Exit(1)
    given = typed("path", only=OF_EXPERIMENT)
    chosen = {"--backbone", "--config", "-c"} & {*given} or any("backbone.checkpoint" in word for word in given)
    photographs = [] if chosen or path == pictograms.NAME else ["--backbone", PHOTOCLIP]
    next_command("compare", "--data", path, *photographs, *given)


def _print(report: "Report") -> None:
    if report.layout:  # if there is none, an error among the findings says why
        out.print(f"layout: {report.layout}; {report.images:,} images", markup=False)
    for kind, counts in report.counts.items():
        if counts:
            print_listing((kind, "images"), [(name, f"{count:,}") for name, count in counts.items()])
    for kind, count in report.ignored.items():
        out.print(f"ignored: {count:,} × {kind}", markup=False)
    for finding in report.findings:
        out.print(f"{'error' if finding.stops else 'warning'}: {finding.text}", markup=False, soft_wrap=True)
    out.print("a run can use it" if report.usable else "a run would stop")


@command(app)
@with_options(ExperimentOptions)
def show(
    seed: Annotated[int, typer.Option("--seed", help="Random seed of the task.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Image file (.png or .svg) for the matrix of classes and clients."),
    ] = None,
    as_json: Json = False,
    *,
    options: ExperimentOptions,
) -> None:
    """Print the training images and the test sets of each client of a task, without a run.

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
        raise OutputError(
            "the file name must end in .png or .svg", where=f"{output}", remedy=f"Use -o {output.with_suffix('.png')}"
        )
    settings = fedpgp.load_config(options.config, options.changes)
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
        say(f"The results are in {output}.")
    next_command("compare", *typed(only=OF_EXPERIMENT))


@command(app)
def get(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of a known dataset; docs/data-sets.md lists them.",
            autocompletion=completion.of_names("datasets"),
        ),
    ],
    to: Annotated[
        Path,
        typer.Option(
            "--to", metavar="DIR", help="Directory for datasets. In a run, data.root must be the same directory."
        ),
    ] = Path("data"),
) -> None:
    """Download a known dataset from a mirror on the Hugging Face hub, or print where to find it.

    The dataset is saved in the format of Hugging Face. Use the dataset in a run with --data NAME. The environment
    variables HF_ENDPOINT and HF_HUB_OFFLINE have their usual effect. You must download caltech101 by hand. The command
    then checks that all images of CoOp's split are present.

    Examples:
        fedpgp data get cifar10
        fedpgp data get caltech101
        fedpgp data get pacs --to /disk/data
    """
    from fedpgp.data.mirrors import fetch

    place = fetch(name, to)
    root = "" if to == Path("data") else f" --set data.root={to}"
    out.print(f"{name} is in {place}. A run reads it with --data {name}{root}", markup=False, soft_wrap=True)
    next_command("data", "check", place)


@command(app)
def layouts(as_json: Json = False) -> None:
    """List the values of data.layout: the directory layouts that fedpgp can read.

    Examples:
        fedpgp data layouts
    """
    from fedpgp.data.sources import LAYOUTS

    about = {name: layout.about for name, layout in LAYOUTS.items()}
    if as_json:
        print_json(about)
    else:
        print_listing(("layout", "description"), about.items())
    next_command("data", "check", "DIRECTORY")
