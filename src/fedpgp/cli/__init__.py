"""The command line, with one file per command.

A command parses its arguments, calls one function of the library and prints the result. `main` turns errors into one
line. This package may import every other package, and no package imports it. Start with `compare`.
"""

import errno
import io
import sys
from typing import Annotated, NoReturn

import click
import typer

import fedpgp
from fedpgp.cli.ablate import ablate
from fedpgp.cli.bench import bench
from fedpgp.cli.cache import app as cache_app
from fedpgp.cli.compare import compare
from fedpgp.cli.completion import in_bash, join_words
from fedpgp.cli.config import config
from fedpgp.cli.data import app as data_app
from fedpgp.cli.demo import demo
from fedpgp.cli.doctor import doctor
from fedpgp.cli.export import export
from fedpgp.cli.federate import app as federate_app
from fedpgp.cli.hints import explained
from fedpgp.cli.join import join
from fedpgp.cli.methods import methods
from fedpgp.cli.options import Command, command
from fedpgp.cli.predict import predict
from fedpgp.cli.printing import err, out, say
from fedpgp.cli.report import report
from fedpgp.cli.reproduce import reproduce
from fedpgp.cli.run import run
from fedpgp.cli.score import score
from fedpgp.cli.show import show
from fedpgp.cli.sweep import sweep
from fedpgp.cli.tune import tune

SHOWN = 60  # characters shown of a file name that is too long
__all__ = ["app", "err", "main", "out"]

app = typer.Typer(
    name="fedpgp",
    help="Federated prompt learning on CLIP: FedPGP and the methods that it is compared with.",
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
COMMANDS: list[Command] = [compare, run, join, predict, score, export, report, show, methods]  # the order of the help
COMMANDS += [config, bench, tune, ablate, sweep, reproduce, doctor, demo]
for function in COMMANDS:
    command(app)(function)


def main() -> None:
    """Run the console script.

    Exit codes: 0 for success, 1 if a check found something that does not work, 2 for bad input, and 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # TOML must be UTF-8, whatever the system's default is. File names may not be valid UTF-8.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if in_bash():
        join_words()
    try:
        code = app(prog_name="fedpgp", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError:
        sys.exit(2)  # the help has been printed
    except click.ClickException as error:
        _fail(explained(error))
    except fedpgp.FedPGPError as error:
        _fail(str(error))
    except PermissionError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}. Change its owner or its access rights, or use another user.")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        _fail(f"{str(error.filename)[:SHOWN]}… is too long for a file name. Use a shorter name.")
    except (KeyboardInterrupt, click.Abort):
        err.print("Interrupted.")
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    for line in message.splitlines():
        say(f"fedpgp: error: {line}")
    sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"fedpgp {fedpgp.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass
