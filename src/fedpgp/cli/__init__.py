"""The command line, one file per command: parses, calls one function, prints the result, and turns errors into one
line.

It may import every package, and no package imports it. Start with `compare` below.
"""

import io
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import click
import typer
from rich.markup import escape
from rich.table import Table

import fedpgp
from fedpgp.cli.ablate import ablate
from fedpgp.cli.bench import bench
from fedpgp.cli.cache import app as cache_app
from fedpgp.cli.data import app as data_app
from fedpgp.cli.demo import demo
from fedpgp.cli.doctor import doctor
from fedpgp.cli.export import export
from fedpgp.cli.federate import app as federate_app
from fedpgp.cli.hints import explained
from fedpgp.cli.options import (
    Cache,
    Changes,
    ConfigFile,
    DataSource,
    Device,
    DryRun,
    Force,
    Json,
    Output,
    Precision,
    Quiet,
    Resume,
    Settings,
    SkipBadImages,
    Track,
    Workers,
    data_change,
    method_names,
    new_name,
    worker_count,
)
from fedpgp.cli.predict import predict
from fedpgp.cli.printing import (
    Session,
    err,
    out,
    print_comparison,
    print_formatted,
    print_json,
    print_plan,
    print_result,
    tracked,
)
from fedpgp.cli.report import report
from fedpgp.cli.reproduce import reproduce
from fedpgp.cli.sweep import sweep
from fedpgp.cli.tune import tune

app = typer.Typer(
    name="fedpgp",
    help="Federated prompt learning on CLIP: FedPGP and the methods it is compared with.",
    epilog="Start with: fedpgp compare",
    no_args_is_help=True,
    suggest_commands=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cache_app, name="cache")
app.add_typer(data_app, name="data")
app.add_typer(federate_app, name="federate")


@app.command(
    epilog="Examples: [bold]fedpgp compare --seeds 3[/]   "
    "[bold]fedpgp compare --methods promptfl,fedpgp --set fedpgp.mu=1 -o out[/]   [bold]fedpgp compare --resume out[/]"
)
def compare(
    methods: Annotated[
        str | None,
        typer.Option(
            "--methods",
            help="Names with commas between, or all: see fedpgp methods.",
            show_default="zero-shot,local,promptfl,fedpgp",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", help="How many: 3 means seeds 0, 1 and 2.", show_default="1")
    ] = None,
    costly_seeds: Annotated[
        int | None,
        typer.Option(
            "--costly-seeds",
            help="How many for the methods that go through the image tower or read class names for every image.",
            show_default="as --seeds",
        ),
    ] = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    data: DataSource = None,
    change: Changes = None,
    settings: Settings = None,
    output: Output = None,
    force: Force = False,
    resume: Resume = None,
    as_json: Json = False,
    workers: Workers = None,
    cache: Cache = None,
    skip_bad_images: SkipBadImages = False,
    device: Device = None,
    precision: Precision = None,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Run several methods on the same task and print the table.

    Tells first what it is going to do, and about how long that takes; --dry-run ends there, and keeps nothing but
    features of images. Writes one run directory per method and seed, the tables as comparison.md, .tex and .csv,
    runs.csv, path.csv, differences.csv, comparison.json, and the trade-off curves as comparison.svg and .png.

    After Ctrl-C, a crash or a full disk, --resume goes on after the last finished round.
    """
    from fedpgp.runs.run import planned_comparison

    directory = resume or output or new_name("compare")
    with Session(directory, quiet) as session, tracked(session, None if dry_run else track) as progress:
        if resume is not None:
            given = (seeds, costly_seeds, config, data, change, settings, output, force or None, device, precision)
            _only_with(resume, *given, dry_run or None)
            comparison = fedpgp.resume(
                resume,
                methods=method_names(methods or ""),
                workers=worker_count(workers),
                cache=cache,
                skip_bad_images=skip_bad_images,
                reporter=progress,
            )
        elif dry_run:
            plan = planned_comparison(
                method_names(methods) if methods is not None else None,
                1 if seeds is None else seeds,
                costly_seeds=costly_seeds,
                config=config,
                changes=_changes(change, data, device, precision),
                settings=settings,
                workers=worker_count(workers),
                cache=cache,
                skip_bad_images=skip_bad_images,
                reporter=progress,
            )
            print_plan(plan, as_json=as_json)
            return
        else:
            comparison = fedpgp.compare(
                method_names(methods) if methods is not None else None,
                1 if seeds is None else seeds,
                costly_seeds=costly_seeds,
                config=config,
                changes=_changes(change, data, device, precision),
                settings=settings,
                output=directory,
                force=force,
                workers=worker_count(workers),
                cache=cache,
                skip_bad_images=skip_bad_images,
                reporter=progress,
            )
    print_result(comparison, directory, as_json)


@app.command(
    epilog="Examples: [bold]fedpgp run --method fedpgp[/]   "
    "[bold]fedpgp run --method fedpgp --seed 1 --set fedpgp.bottleneck=4 -o out[/]   [bold]fedpgp run --resume out[/]"
)
def run(
    method: Annotated[
        str | None,
        typer.Option(
            "--method", "-m", help="A name that fedpgp methods lists, or one of your own as path/to/file.py:Name."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of every random draw.", show_default="0")] = None,
    config: ConfigFile = None,
    data: DataSource = None,
    change: Changes = None,
    settings: Settings = None,
    output: Output = None,
    force: Force = False,
    resume: Resume = None,
    as_json: Json = False,
    workers: Workers = None,
    cache: Cache = None,
    skip_bad_images: SkipBadImages = False,
    device: Device = None,
    precision: Precision = None,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Run one method with one seed and write its run directory.

    After Ctrl-C, a crash or a full disk, --resume goes on after the last finished round.
    """
    directory = resume or output or new_name(f"{Path(method or '').name.replace(':', '-')}-seed-{seed or 0}")
    with Session(directory, quiet) as session, tracked(session, track) as progress:
        if resume is not None:
            _only_with(resume, seed, config, data, change, settings, output, force or None, device, precision)
            comparison = fedpgp.resume(
                resume,
                methods=[method] if method is not None else [],
                workers=worker_count(workers),
                cache=cache,
                skip_bad_images=skip_bad_images,
                reporter=progress,
            )
        elif method is None:
            raise click.UsageError("Missing option '--method', or '--resume' with the directory of a stopped run")
        else:
            result = fedpgp.run(
                method,
                seed or 0,
                config=config,
                changes=_changes(change, data, device, precision),
                settings=settings,
                output=directory,
                force=force,
                workers=worker_count(workers),
                cache=cache,
                skip_bad_images=skip_bad_images,
                reporter=progress,
            )
            comparison = fedpgp.Comparison([result])
    print_result(comparison, directory, as_json)


@app.command(
    epilog="Example: [bold]fedpgp join --from fedpgp-runs/fedpgp-seed-0 --data /srv/photos --shots 8 -o mine[/]"
)
def join(
    run: Annotated[Path, typer.Option("--from", help="A finished run's directory.")],
    data: DataSource = None,
    shots: Annotated[int, typer.Option("--shots", min=0, help="Training images of each class; 0: all.")] = 0,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="In which it is fitted.", show_default="as the run says")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of every random draw.")] = 0,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
    cache: Cache = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Join a finished federation: fit the private part to some images of your own, on this machine alone.

    The shared part stays as it is, and nothing is sent anywhere. Writes a run directory with one client.
    """
    if data is None:
        raise click.UsageError("Missing option '--data', where the images are")
    directory = output or new_name(f"join-{run.name}")
    with Session(directory, quiet) as progress:
        joined = fedpgp.join(
            run,
            data,
            shots=shots,
            epochs=epochs,
            seed=seed,
            output=directory,
            force=force,
            cache=cache,
            device=device,
            reporter=progress,
        )
    print_result(fedpgp.Comparison([joined]), directory, as_json)


app.command(
    epilog="Examples: [bold]fedpgp predict out/fedpgp/seed-0 photos --client 3[/]   "
    "[bold]fedpgp predict out/fedpgp/seed-0 'photos/*.png' --classes 'zebra,red panda' --top 2[/]   "
    "[bold]find . -name '*.jpg' | fedpgp predict out/fedpgp/seed-0 - --format csv[/]"
)(predict)


app.command(
    epilog="Examples: [bold]fedpgp export out/fedpgp/seed-0 --client 3 -o prompt[/]   "
    "[bold]fedpgp export out/fedpgp/seed-0 --format onnx --classes 'zebra,red panda' -o served[/]"
)(export)


app.command(
    epilog="Examples: [bold]fedpgp report out -o report.html[/]   "
    "[bold]fedpgp report out --focus fedpgp --figures figures[/]   [bold]fedpgp report out --live[/]"
)(report)


class Format(StrEnum):
    table = "table"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"


@app.command(
    epilog="Examples: [bold]fedpgp show fedpgp-runs/compare-20261124-101500[/]   "
    "[bold]fedpgp show out --alpha 0.5[/]   [bold]fedpgp show out --format latex > table.tex[/]"
)
def show(
    directory: Annotated[Path, typer.Argument(help="What fedpgp run or fedpgp compare wrote.")],
    alpha: Annotated[
        str | None,
        typer.Option(
            "--alpha",
            help="Of the way from the shared part alone, 0, to the clients' own models, 1: where to predict; or"
            " validation, for what each run's validation images of base classes choose.",
            show_default="1",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="The method that all others are compared with.", show_default="the last"),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="markdown has all tables, latex and csv have the first.")
    ] = Format.table,
    as_json: Json = False,
) -> None:
    """Print the table of an earlier run or comparison, and how far what was stopped has come."""
    from fedpgp.results.run import headline
    from fedpgp.results.run_store import resume_command

    comparison = fedpgp.load_comparison(directory)
    if alpha is not None:
        comparison = comparison.at(_alpha(alpha))
    for stopped in comparison.unfinished:
        if stopped.running:
            where = f"of {stopped.rounds} rounds is in the hands of another process"
        elif stopped.record is None:
            where = "was stopped before its first round was finished"
        else:
            where = f"was stopped after round {stopped.record['round']} of {stopped.rounds}: {headline(stopped.record)}"
        err.print(f"{stopped.method}, seed {stopped.seed} {where}", markup=False)
    command = resume_command(directory)
    if command and not any(stopped.running for stopped in comparison.unfinished):
        err.print(f"go on with: {command}", markup=False)
    if as_json:
        print_json(comparison.as_json())
    elif comparison.methods and form is Format.table:
        print_comparison(comparison, reference)
    elif comparison.methods:
        print_formatted(comparison, form, reference)


@app.command(epilog="Examples: [bold]fedpgp methods[/]   [bold]fedpgp methods fedpgp[/]")
def methods(
    name: Annotated[
        str | None, typer.Argument(help="Tell all about one, also of your own as path/to/file.py:Name.")
    ] = None,
    config: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """List the methods, with what they share and keep private in numbers of parameters on the embedded checkpoint.

    With --config, or for another checkpoint in it, on that one.
    """
    from fedpgp.runs.catalogue import about, catalogue

    if name is not None:
        out.print(escape(about(name)))
        return
    entries = catalogue(config)
    if as_json:
        print_json([asdict(entry) for entry in entries])
        return
    listing = Table("name", "year", "venue", "shared", "private", "reads", "what it is", box=None, header_style="bold")
    for column in (1, 3, 4):
        listing.columns[column].justify = "right"
    for entry in entries:
        listing.add_row(
            entry.name,
            str(entry.year or ""),
            entry.venue,
            "" if entry.shared is None else f"{entry.shared:,}",
            "" if entry.private is None else f"{entry.private:,}",
            ", ".join(entry.reads),
            escape(entry.summary),
        )
    out.print(listing)


@app.command(epilog="Example: [bold]fedpgp config --set fedpgp.mu=1 > my.toml[/]")
def config(file: ConfigFile = None, change: Changes = None) -> None:
    """Print the effective configuration as TOML, with what each value is and where it was set."""
    print(fedpgp.load_config(file, change or ()).to_toml(), end="")


app.command(
    epilog="Examples: [bold]fedpgp bench --shape pictoclip[/]   "
    "[bold]fedpgp bench --shape vit-b-16 --parts step,profile --json[/]"
)(bench)


app.command(
    epilog="Examples: [bold]fedpgp tune --methods promptfl,fedpgp --trials 8[/]   "
    "[bold]fedpgp tune --methods fedpgp --search fedpgp.mu=0.1..5:log -o tuned[/]   [bold]fedpgp tune --resume tuned[/]"
)(tune)


app.command(
    epilog="Examples: [bold]fedpgp ablate --studies mu,bottleneck[/]   "
    "[bold]fedpgp ablate --file my-studies.toml --method promptfl[/]   [bold]fedpgp ablate --resume out[/]"
)(ablate)


app.command(
    epilog="Examples: [bold]fedpgp sweep --grid fedpgp.mu=0.1,1 --grid task.shots=2,8 --seeds 3[/]   "
    "[bold]fedpgp sweep my-grid.toml -o out[/]   [bold]fedpgp sweep --resume out[/]"
)(sweep)


app.command(
    epilog="Examples: [bold]fedpgp reproduce --list[/]   [bold]fedpgp reproduce base-to-novel --embedded[/]   "
    "[bold]fedpgp reproduce base-to-novel --data DIR --backbone openai/clip-vit-base-patch16 --seeds 3 -o out[/]"
)(reproduce)


app.command(epilog="Examples: [bold]fedpgp doctor[/]   [bold]fedpgp doctor --network --json[/]")(doctor)


app.command(epilog="Examples: [bold]fedpgp demo[/]   [bold]fedpgp demo --port 0 --open[/]")(demo)


def main() -> None:
    """The console script. Exit codes: 0 done, 1 what was examined does not work, 2 bad input, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")  # what a TOML file must be, also where the system has another default
    try:
        code = app(prog_name="fedpgp", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError:
        sys.exit(2)  # the help has been printed
    except click.ClickException as error:
        _fail(explained(error))
    except fedpgp.FedPGPError as error:
        _fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        err.print("interrupted")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    for line in message.splitlines():
        err.print(f"fedpgp: error: {line}", markup=False)
    sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fedpgp {fedpgp.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _changes(change: list[str] | None, data: str | None, device: str | None, precision: str | None) -> list[str]:
    short = {"device": device, "precision": precision}
    source = [] if data is None else [data_change(data)]
    return [*(change or []), *source, *(f"backbone.{key}={value}" for key, value in short.items() if value is not None)]


def _alpha(text: str) -> "float | Literal['validation']":
    if text == "validation":
        return "validation"
    try:
        return float(text)
    except ValueError as error:
        raise click.UsageError(f"--alpha must be a number from 0 to 1, or validation, got {text!r}") from error


def _only_with(resume: Path, *settings: object) -> None:
    if any(setting is not None and setting != [] for setting in settings):
        raise click.UsageError(
            f"--resume {resume} goes on with the settings of that run: of the options only --workers, --cache-dir,"
            " --skip-bad-images, --track, --json and --quiet go with it, and the method where it is one of your own"
        )
