"""The command `fedpgp doctor`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fedpgp.cli.printing import err, out, print_json

Directory = Annotated[
    Path | None, typer.Option("--cache-dir", help="Where image features are kept; by default the user's cache.")
]


def doctor(
    network: Annotated[
        bool, typer.Option("--network", help="Ask the model hub, too, and wait three seconds for an answer.")
    ] = False,
    cache: Directory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Look at what a run needs on this machine, and say what to do where something does not work.

    Versions, extras, devices, the embedded files, the feature cache, room on the disk, and an embedded image that
    zero-shot classifies. Exit code 1 if something that is needed does not work.
    """
    from fedpgp.cli.checks import examine

    findings = list(examine(cache, network))
    wrong = [finding for finding in findings if finding.state == "wrong"]
    if as_json:
        print_json({"ok": not wrong, "findings": [asdict(finding) for finding in findings]})
    else:
        listing = Table(header_style="bold", box=None, padding=(0, 1, 0, 0))
        for name in ("", "what", "state", "found"):
            listing.add_column(name, overflow="fold")
        group = ""
        for finding in findings:
            found = finding.value + (f"\n→ {finding.advice}" if finding.advice else "")
            state = f"[bold red]{finding.state}[/]" if finding.state == "wrong" else finding.state
            listing.add_row("" if finding.group == group else finding.group, finding.name, state, escape(found))
            group = finding.group
        out.print(listing)
        err.print("everything that a run needs works" if not wrong else f"{len(wrong)} do not work", markup=False)
    if wrong:
        raise typer.Exit(1)
