"""`fedpgp doctor`: check this machine or a checkpoint."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from fedpgp.cli.options import Cache, Checkpoint, Json
from fedpgp.cli.printing import next_command, print_json, print_listing, say


def doctor(
    network: Annotated[
        bool, typer.Option("--network", help="Also check whether the model hub answers within three seconds.")
    ] = False,
    checkpoint: Checkpoint = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """Check what a run needs on this machine, and suggest a fix for each problem.

    The command checks versions, extras, devices, the embedded files, the feature cache and the free disk space, and
    classifies an embedded image. The exit code is 1 if something that a run needs does not work.

    With --backbone, the command checks this dual encoder instead. It prints the properties of both towers, the
    licence, the methods that can use the checkpoint, and the cost of a training step of
    FedPGP.

    Examples:
        fedpgp doctor
        fedpgp doctor --backbone photoclip
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
        print_listing(("", "check", "state", "found"), rows)
        works = "Everything that a run needs works." if checkpoint is None else f"{checkpoint} can be used."
        say(f"Checks that failed: {len(wrong)}." if wrong else works)
    if wrong:
        raise typer.Exit(1)
    next_command("compare", *([] if checkpoint is None else ["--backbone", checkpoint]))
