"""`fedpgp doctor`: what works on this machine."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from fedpgp.cli.options import Cache, Checkpoint, Json
from fedpgp.cli.printing import print_json, print_listing, say


def doctor(
    network: Annotated[
        bool, typer.Option("--network", help="Ask the model hub, too, and wait three seconds for an answer.")
    ] = False,
    checkpoint: Checkpoint = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Look at what a run needs on this machine, and say what to do where something does not work.

    Versions, extras, devices, the embedded files, the feature cache, room on the disk, and an embedded image that
    zero-shot classifies. Exit code 1 if something that is needed does not work.

    With --checkpoint it looks at that dual encoder instead: what it is, its licence, the methods that fit, and what a
    training step of FedPGP takes.

    Examples:
        fedpgp doctor
        fedpgp doctor --checkpoint photoclip
        fedpgp doctor --network --json
    """
    from fedpgp.cli.checks import examine, examine_checkpoint

    findings = list(examine(cache, network) if checkpoint is None else examine_checkpoint(checkpoint))
    wrong = [finding for finding in findings if finding.state == "wrong"]
    if as_json:
        print_json({"ok": not wrong, "findings": [asdict(finding) for finding in findings]})
    else:
        rows: list[tuple[str | Text, ...]] = []
        group = ""
        for finding in findings:
            state = Text(finding.state, "bold red" if finding.state == "wrong" else "")
            value = finding.value + (f"\n→ {finding.advice}" if finding.advice else "")
            rows.append(("" if finding.group == group else finding.group, finding.name, state, value))
            group = finding.group
        print_listing(("", "what", "state", "found"), rows)
        works = "everything that a run needs works" if checkpoint is None else f"{checkpoint} can be used"
        say(f"{len(wrong)} do not work" if wrong else works)
    if wrong:
        raise typer.Exit(1)
