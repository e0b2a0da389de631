"""The command line: parses, prints, and turns errors into one line."""

import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import click
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

import fedpgp

app = typer.Typer(
    name="fedpgp",
    help="Federated prompt learning on CLIP: FedPGP and the methods it is compared with.",
    epilog="Start with: fedpgp compare",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="TOML file instead of the embedded recipe; what it leaves out has the paper's value."
    ),
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value; may be repeated.")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Directory to write; without it, a new one in fedpgp-runs/.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output directory if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, and no table.")]
Workers = Annotated[
    int, typer.Option("--workers", help="Processes; any number gives the same result.", show_default="cores")
]
Cache = Annotated[
    Path | None,
    typer.Option("--cache-dir", help="Where image features are kept; by default the user's cache directory."),
]
Device = Annotated[str | None, typer.Option("--device", help="Short for --set backbone.device=…: cpu, cuda, cuda:1.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


@app.command(
    epilog="Examples: [bold]fedpgp compare --seeds 3[/]   "
    "[bold]fedpgp compare --methods promptfl,fedpgp --set fedpgp.mu=1 -o out[/]"
)
def compare(
    methods: Annotated[
        str | None, typer.Option("--methods", help="Names with commas between.", show_default="all")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="How many: 3 means seeds 0, 1 and 2.")] = 1,
    config: ConfigFile = None,
    change: Changes = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
    workers: Workers = 0,
    cache: Cache = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Run several methods on the same task and print the table.

    Writes one run directory per method and seed, comparison.md, comparison.json and the picture comparison.svg/.png.
    """
    directory = output or _new_name("compare")
    with _Progress(quiet) as progress:
        try:
            comparison = fedpgp.compare(
                [name.strip() for name in methods.split(",")] if methods is not None else None,
                seeds,
                config=config,
                changes=_changes(change, device),
                output=directory,
                force=force,
                workers=_workers(workers),
                cache=cache,
                reporter=progress,
            )
        except KeyboardInterrupt as interruption:
            _interrupted(interruption)
    if as_json:
        _print_json(comparison.as_json())
    else:
        _print_comparison(comparison)
        err.print(f"written to {directory}", markup=False)


@app.command(
    epilog="Examples: [bold]fedpgp run --method fedpgp[/]   "
    "[bold]fedpgp run --method fedpgp --seed 1 --set fedpgp.bottleneck=4 -o out[/]"
)
def run(
    method: Annotated[str, typer.Option("--method", "-m", help="A name that fedpgp methods lists.")],
    seed: Annotated[int, typer.Option("--seed", help="Of every random draw.")] = 0,
    config: ConfigFile = None,
    change: Changes = None,
    output: Output = None,
    force: Force = False,
    as_json: Json = False,
    workers: Workers = 0,
    cache: Cache = None,
    device: Device = None,
    quiet: Quiet = False,
) -> None:
    """Run one method with one seed and write its run directory.

    The directory holds config.toml, results.json, rounds.jsonl, prompts.safetensors, outcomes.safetensors and
    provenance.json.
    """
    directory = output or _new_name(f"{method}-seed-{seed}")
    with _Progress(quiet) as progress:
        try:
            result = fedpgp.run(
                method,
                seed,
                config=config,
                changes=_changes(change, device),
                output=directory,
                force=force,
                workers=_workers(workers),
                cache=cache,
                reporter=progress,
            )
        except KeyboardInterrupt as interruption:
            _interrupted(interruption)
    comparison = fedpgp.Comparison([result])
    if as_json:
        _print_json(comparison.as_json())
    else:
        _print_comparison(comparison)
        err.print(f"written to {directory}", markup=False)


@app.command(epilog="Example: [bold]fedpgp show fedpgp-runs/compare-20261124-101500[/]")
def show(
    directory: Annotated[Path, typer.Argument(help="What fedpgp run or fedpgp compare wrote.")], as_json: Json = False
) -> None:
    """Print the table of an earlier run or comparison."""
    comparison = fedpgp.load_comparison(directory)
    for result in comparison.runs:
        if not result.finished:
            shown = ", ".join(f"{key.capitalize()} {result.row[key]:.1f}" for key in ("local", "base", "novel"))
            after = f"was interrupted after round {result.results['rounds']}: {shown}"
            err.print(f"{result.method}, seed {result.seed} {after}", markup=False)
    if as_json:
        _print_json(comparison.as_json())
    elif comparison.methods:
        _print_comparison(comparison)


@app.command()
def methods() -> None:
    """List the methods."""
    from fedpgp.methods import METHODS

    listing = Table("name", "what it is", "source", box=None, header_style="bold")
    for name, method in METHODS.items():
        listing.add_row(name, escape((method.__doc__ or "").splitlines()[0]), escape(method.source))
    out.print(listing)


@app.command(epilog="Example: [bold]fedpgp config --set fedpgp.mu=1 > my.toml[/]")
def config(file: ConfigFile = None, change: Changes = None) -> None:
    """Print the effective configuration as TOML, with what each value is and where it was set."""
    print(fedpgp.load_config(file, change or ()).to_toml(), end="")


def main() -> None:
    """The console script. Exit codes: 0 done, 2 bad input, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")  # what a TOML file must be, also where the system has another default
    try:
        code = app(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError:
        sys.exit(2)  # the help has been printed
    except click.ClickException as error:
        _fail(f"{error.format_message()} (see fedpgp --help)")
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


def _new_name(kind: str) -> Path:
    # The process id tells apart what was started in one second.
    return Path("fedpgp-runs") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def _changes(change: list[str] | None, device: str | None) -> list[str]:
    return [*(change or []), *([f"backbone.device={device}"] if device else [])]


def _workers(count: int) -> int:
    if count or not hasattr(os, "sched_getaffinity"):
        return count or os.cpu_count() or 1
    return len(os.sched_getaffinity(0))


def _interrupted(interruption: KeyboardInterrupt) -> NoReturn:
    saved = getattr(interruption, "saved", None)
    if saved is not None:
        err.print(f"interrupted; what was finished is in {saved}: fedpgp show {saved}", markup=False)
    else:
        err.print("interrupted before anything was finished")
    sys.exit(130)


def _print_json(content: object) -> None:
    print(json.dumps(content))


def _print_comparison(comparison: "fedpgp.Comparison") -> None:
    from fedpgp.report.comparison import caption, difference_table, table

    out.print(_rich(*table(comparison), title=caption(comparison)))
    if len(comparison.methods) > 1:
        title = "Paired bootstrap over test images, 95 % interval"
        out.print(_rich(*difference_table(comparison), title=title))


def _rich(header: list[str], rows: list[list[str]], title: str) -> Table:
    listing = Table(title=escape(title), title_justify="left", header_style="bold", box=None, padding=(0, 1, 0, 0))
    for i, name in enumerate(header):
        listing.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        # In a narrow terminal a deviation goes below its mean.
        listing.add_row(*(escape(cell if out.width >= 110 else cell.replace(" ± ", "\n± ")) for cell in row))
    return listing


class _Progress:
    """Progress on standard error: bars in a terminal, plain lines elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool):
        self._quiet = quiet
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=err,
            disable=quiet or not err.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> "_Progress":
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def progress(self, what: str, done: int, total: int, detail: str = "") -> None:
        if self._quiet:
            return
        if err.is_terminal:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total, detail=detail)
            self._bars.update(self._tasks[what], completed=done, total=total, detail=detail)
            return
        now = time.monotonic()
        if done == 0 or (done < total and now - self._said.get(what, 0.0) < 2):
            return
        self._said[what] = now
        err.print(f"{what}: {done}/{total}" + (f"  {detail}" if detail else ""), markup=False)

    def notice(self, text: str) -> None:
        err.print(f"fedpgp: {text}", markup=False)
