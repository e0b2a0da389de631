"""`fedpgp federate status`: the nodes, the last run, and what is wrong."""

from typing import TYPE_CHECKING

import typer

from fedpgp.cli.federate.options import Directory
from fedpgp.cli.options import Json
from fedpgp.cli.printing import out, print_json, print_listing, say

if TYPE_CHECKING:
    from fedpgp.flower.deployment.diagnosis import LastRun
    from fedpgp.flower.deployment.status import FederationStatus


def status(directory: Directory, as_json: Json = False) -> None:
    """Print which nodes are connected, the state of the last run, and what is wrong. Call it on the server's machine.

    The exit code is 0 if all is well, 1 if something is wrong, and 2 if the server cannot be asked.

    Examples:
        fedpgp federate status ours
        fedpgp federate status ours --json
    """
    from fedpgp.flower.deployment.layout import FederationLayout
    from fedpgp.flower.deployment.status import federation_status

    found = federation_status(FederationLayout(directory))
    if as_json:
        print_json(found.as_json())
    else:
        _print(found)
    raise typer.Exit(found.exit_code)


def _print(found: "FederationStatus") -> None:
    versions = f"fedpgp {found.versions['fedpgp']}, Flower {found.versions['flwr']}"
    if found.answers:
        connected = f"{found.online} of {found.clients} nodes are connected"
        out.print(f"{found.federation}: {connected}. Server: {versions}.", markup=False)
        rows = []
        for node in found.nodes:
            client = "" if node.client is None else str(node.client)
            rows.append((client, node.name or node.node, node.state, _time(node.since), node.fedpgp or ""))
        print_listing(("client", "node", "state", "since (UTC)", "fedpgp"), rows, ("client",))
        _print_run(found.run)
    if found.problems:
        print_listing(("what is wrong",), [(f"{one.problem}\n→ {one.remedy}",) for one in found.problems])
    say(f"Problems: {len(found.problems)}." if found.problems else "All is well.")


def _print_run(run: "LastRun | None") -> None:
    from fedpgp.results.run import headline

    if run is None:
        out.print("No run has been started.", markup=False)
        return
    out.print(f"run {run.id}: {run.status} since {_time(run.since)}", markup=False)
    out.print(f"  {run.method}, seed {run.seed}, in {run.output}", markup=False)
    if run.round is not None:
        clients = ", ".join(map(str, run.participants)) or "none"
        out.print(f"  round {run.round} of {run.rounds}: {headline(run.figures)}; clients: {clients}", markup=False)
    for drop in run.dropped:
        out.print(f"  left out: client {drop['client']} ({drop['in']}): {drop['reason']}", markup=False)
    for refusal in run.refused:
        out.print(f"  refused: node {refusal['node']}: {refusal['reason']}", markup=False)


def _time(moment: str | None) -> str:
    """Return a time in ISO format, in UTC, without its offset."""
    return "" if moment is None else moment[:19].replace("T", " ")
