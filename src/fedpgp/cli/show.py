"""`fedpgp show`: print the table of earlier runs."""

from pathlib import Path
from typing import Annotated, Literal

import click
import typer

import fedpgp
from fedpgp.cli.options import Json
from fedpgp.cli.printing import next_command, print_comparison, print_json, report_of, say


def show(
    directory: Annotated[Path, typer.Argument(help="Directory of a run or a comparison.")],
    alpha: Annotated[
        str | None,
        typer.Option(
            "--alpha",
            help="Interpolation between the shared model (0) and the personal model (1). The word validation means, for"
            " each run, the value with the best result on validation images of base classes.",
            show_default="1",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Method that all others are compared with.", show_default="the last"),
    ] = None,
    form: Annotated[
        Literal["table", "markdown", "latex", "csv"],
        typer.Option(
            "--format", help="Output format. markdown contains all tables; latex and csv contain only the first table."
        ),
    ] = "table",
    as_json: Json = False,
) -> None:
    """Print the table of an earlier run or comparison, and the progress of runs that are not finished.

    Examples:
        fedpgp show fedpgp-runs/compare-20261124-101500
        fedpgp show out --alpha 0.5
        fedpgp show out --format latex > table.tex
    """
    from fedpgp.report import tables
    from fedpgp.results import formats

    comparison = fedpgp.load_comparison(directory)
    if alpha is not None:
        comparison = comparison.at(_alpha(alpha))
    _say_unfinished(comparison, directory)
    if as_json:
        print_json(comparison.as_json())
    elif not comparison.methods:
        pass
    elif form == "table":
        print_comparison(comparison, reference)
    elif form == "markdown":
        from fedpgp.report import comparison as report

        print(report.markdown(comparison, reference), end="")
    elif form == "latex":
        print(formats.latex(tables.table(comparison)), end="")
    else:
        print(tables.comparison_csv(comparison), end="")
    if not comparison.unfinished:  # otherwise, the command that resumes them has been printed
        next_command(*report_of(directory))


def _alpha(text: str) -> float | Literal["validation"]:
    if text == "validation":
        return "validation"
    try:
        return float(text)
    except ValueError as error:
        raise click.UsageError(
            f"--alpha must be a number from 0 to 1, or validation, got {text!r}. Use for example --alpha 0.5."
        ) from error


def _say_unfinished(comparison: "fedpgp.Comparison", directory: Path) -> None:
    """Print the progress of each unfinished run, and the command that resumes it."""
    from fedpgp.results.run import headline
    from fedpgp.results.run_store import resume_remedy

    for stopped in comparison.unfinished:
        if stopped.running:
            state = f"with {stopped.rounds} rounds is running in another process"
        elif stopped.record is None:
            state = "was stopped before the end of its first round"
        else:
            state = f"was stopped after round {stopped.record['round']} of {stopped.rounds}: {headline(stopped.record)}"
        say(f"{stopped.method}, seed {stopped.seed} {state}")
    remedy = resume_remedy(directory)
    if remedy and not any(stopped.running for stopped in comparison.unfinished):
        say(f"{remedy}.")
