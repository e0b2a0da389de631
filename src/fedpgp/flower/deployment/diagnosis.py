"""What is wrong with a federation, with a remedy for each problem."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedpgp.flower.deployment.layout import FederationLayout

SOON = datetime.timedelta(days=30)  # before a certificate expires
LEAST_FREE = 1 << 30  # bytes: the database, the state of a run and the logs grow

State = Literal["online", "offline", "never connected", "not registered", "revoked"]


@dataclass(frozen=True)
class Node:
    """A node of a federation.

    Attributes
    ----------
    client
        Number of the client, from the name of the key; None if the name has no number.
    name
        Name of the key, such as node-0; "" without keys.
    node
        The SuperLink's id of the node; "" if the node is not registered.
    state
        Whether the node is connected.
    since
        Time of the last change of this state, UTC in ISO format; None if there was none.
    fedpgp
        Version of fedpgp; None if it is unknown. It is known if a run has not ended, and the node has been connected
        since before the run's last round and took part in it: the server refuses nodes with another version.
    """

    client: int | None
    name: str
    node: str
    state: State
    since: str | None
    fedpgp: str | None = None


@dataclass(frozen=True)
class LastRun:
    """The current run, or the last one.

    Attributes
    ----------
    id
        The SuperLink's id of the run.
    status
        pending, starting, running, completed, failed or stopped.
    since
        Time at which this status began, UTC in ISO format.
    reason
        Reason of a failure; "" otherwise.
    method, seed, output
        Method, seed and run directory.
    round, rounds
        Last finished round, None before the first one; number of rounds, None before the run has begun.
    figures
        Numbers in the record of the last finished round.
    participants
        Clients whose updates were used in the last finished round.
    dropped
        Clients that were left out of the last finished round: client, in (the phase) and reason.
    refused
        Nodes that were refused in the last finished round: node and reason.
    drops
        Number of answers that were left out of all rounds, by phase.
    """

    id: str
    status: str
    since: str
    reason: str
    method: str
    seed: int
    output: str
    round: int | None = None
    rounds: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    participants: Sequence[int] = ()
    dropped: Sequence[Mapping[str, Any]] = ()
    refused: Sequence[Mapping[str, Any]] = ()
    drops: Mapping[str, int] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether the run has ended in any way."""
        return self.status not in ("pending", "starting", "running")


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, and what to do."""

    problem: str
    remedy: str


def of_nodes(layout: FederationLayout, nodes: Sequence[Node], clients: int, insecure: bool) -> Iterator[Problem]:
    start = "Start it on the client's machine with `fedpgp federate node {}`; if it runs, read its log"
    new_key = f"`fedpgp federate key {layout.directory} {{}}`"
    online = sum(node.state == "online" for node in nodes)
    if insecure and online < clients:
        yield Problem(f"{online} of {clients} nodes are connected", start.format("NODE --insecure"))
    for node in nodes:
        if node.state == "never connected":
            yield Problem(f"{node.name} has never connected", start.format(node.name))
        elif node.state == "offline":
            yield Problem(f"{node.name} has been offline since {node.since}", start.format(node.name))
        elif node.state == "not registered":
            yield Problem(
                f"the key {node.name}.pub is not registered at the SuperLink, so {node.name} cannot connect",
                f"Restart the server, which registers keys; if it reports the key, make a new one with"
                f" {new_key.format(node.name)}",
            )
    with_key = {node.client for node in nodes if node.state != "revoked"}
    for client in () if insecure else range(clients):
        if client not in with_key:
            name = layout.node(client).name
            yield Problem(
                f"the key of {name} is revoked: there is no file {name}.pub in {layout.server}",
                f"Move the file back, or make a new key with {new_key.format(name)}",
            )


def of_run(layout: FederationLayout, run: LastRun) -> Iterator[Problem]:
    if run.status == "failed":
        reason = run.reason.removeprefix("ServerApp failed with exception: ").removeprefix("fedpgp: error: ")
        yield Problem(
            f"the run {run.id} has failed: {reason or 'its process was killed'}",
            "Correct the cause, and call the same `flwr run` again: it continues after the last finished round",
        )
    if run.ended:
        return
    for drop in run.dropped:
        yield Problem(
            f"client {drop['client']} was left out of round {run.round} ({drop['in']}): {drop['reason']}",
            f"Read the log of {layout.node(drop['client']).name}",
        )
    for refusal in run.refused:
        yield Problem(f"node {refusal['node']} is refused: {refusal['reason']}", "Correct the node, and start it again")


def of_certificates(
    layout: FederationLayout, certificates: Mapping[str, datetime.datetime], now: datetime.datetime
) -> Iterator[Problem]:
    remedies = {
        "server.crt": f"Bring back the authority, call `fedpgp federate renew {layout.directory} --authority DIR`, and"
        " restart the server",
        "ca.crt": "Make a new federation with `fedpgp federate init`: all nodes trust this authority",
    }
    for name, end in certificates.items():
        if end - now < SOON:
            verb = "expired" if end < now else "expires"
            yield Problem(f"the certificate {name} {verb} on {end:%Y-%m-%d}", remedies[name])
