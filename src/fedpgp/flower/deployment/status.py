"""The state of a federation, as its server knows it: nodes, last run, certificates, disk, and what is wrong."""

import datetime
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from flwr.common.serde import user_config_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run
from flwr.supercore.constant import NodeStatus

from fedpgp.config import load_config
from fedpgp.errors import OutputError
from fedpgp.federation.run_spec import rounds_of
from fedpgp.flower.deployment.app_policy import EXPERIMENT
from fedpgp.flower.deployment.credentials import public_key_pem, read_public_key
from fedpgp.flower.deployment.diagnosis import (
    LEAST_FREE,
    LastRun,
    Node,
    Problem,
    State,
    of_certificates,
    of_nodes,
    of_run,
)
from fedpgp.flower.deployment.layout import FederationLayout, cause
from fedpgp.flower.deployment.local import finished_rounds
from fedpgp.flower.deployment.superlink import NODE_KEY, control
from fedpgp.results.read import RECORDS
from fedpgp.runtime.version import __version__

UNUSED = ("round", "seconds_training", "seconds_evaluation")  # numbers in a round's record that are not figures


@dataclass(frozen=True)
class FederationStatus:
    """The state of a federation at one moment; `as_json` and docs/deploy.md have the same keys.

    Attributes
    ----------
    federation
        Name of the federation.
    answers
        Whether the SuperLink answers. Otherwise there are no nodes and no run.
    checked
        Time of the check, UTC in ISO format.
    versions
        Versions of fedpgp and flwr that are installed on the server.
    clients
        Number of clients in the experiment.
    nodes
        The nodes.
    run
        The current or last run; None if there was none.
    certificates
        Time at which each certificate expires, UTC in ISO format, by file name.
    free
        Free bytes on the disk of the federation's directory.
    problems
        What is wrong.
    """

    federation: str
    answers: bool
    checked: str
    versions: Mapping[str, str]
    clients: int
    nodes: Sequence[Node]
    run: LastRun | None
    certificates: Mapping[str, str]
    free: int
    problems: Sequence[Problem]

    def as_json(self) -> dict[str, Any]:
        """Return the state as one JSON object."""
        return asdict(self)

    @property
    def online(self) -> int:
        """Number of connected nodes."""
        return sum(node.state == "online" for node in self.nodes)

    @property
    def exit_code(self) -> int:
        """0 if all is well, 1 if something is wrong, 2 if the server does not answer."""
        return 2 if not self.answers else int(bool(self.problems))


def federation_status(layout: FederationLayout) -> FederationStatus:
    """Ask a running SuperLink for the state of its federation.

    Parameters
    ----------
    layout
        The federation.

    Raises
    ------
    FedPGPError
        If this is not the directory of a federation, or a file of it cannot be read.
    """
    name, address, insecure = layout.connection
    clients = load_config(layout.app / EXPERIMENT, foreign=True).task.clients
    now = datetime.datetime.now(datetime.UTC)
    nodes: Sequence[Node] = ()
    run, answers = None, True
    problems: list[Problem] = []
    try:
        with control(layout) as client:
            infos = client.ListNodes(ListNodesRequest()).nodes_info
            runs = [*client.ListRuns(ListRunsRequest(limit=1)).run_dict.values()]
    except (httpx.HTTPError, ValueError) as error:
        answers = False
        problems.append(
            Problem(
                f"the server does not answer at {address}: {error}",
                f"Start it with `fedpgp federate server {layout.directory}`, on this machine",
            )
        )
    except OSError as error:
        raise OutputError(
            f"the file cannot be read: {cause(error)}",
            where=str(layout.server / "ca.crt"),
            remedy="Call the command as the user who runs the server",
        ) from error
    else:
        run = _last_run(layout, runs[0]) if runs else None
        nodes = [*(_without_keys(infos) if insecure else _with_keys(layout, infos, run))]
        problems += of_nodes(layout, nodes, clients, insecure)
        problems += of_run(layout, run) if run else ()
    certificates = {} if insecure else {name: _expiry(layout.server / name) for name in ("server.crt", "ca.crt")}
    problems += of_certificates(layout, certificates, now)
    free = shutil.disk_usage(layout.directory).free
    if free < LEAST_FREE:
        problems.append(
            Problem(f"the disk of {layout.directory} has only {free >> 20} MiB of free space", "Free disk space")
        )
    return FederationStatus(
        federation=name,
        answers=answers,
        checked=_iso(now),
        versions={"fedpgp": __version__, "flwr": version("flwr")},
        clients=clients,
        nodes=nodes,
        run=run,
        certificates={name: _iso(end) for name, end in certificates.items()},
        free=free,
        problems=problems,
    )


def _iso(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).isoformat(timespec="seconds")


_moment = datetime.datetime.fromisoformat


# --------------------------------------------------------------------------------------------------------------- nodes


def _with_keys(layout: FederationLayout, infos: Sequence[NodeInfo], run: LastRun | None) -> Iterator[Node]:
    """Yield a node for each key file, then the registered nodes whose key file was removed and not replaced."""
    last = _last_round(run)
    registered = {info.public_key: info for info in infos if info.status != NodeStatus.UNREGISTERED}
    files = {file.stem: file for file in layout.server.glob("*.pub")}
    for name in sorted(files, key=lambda name: (_client(name) is None, _client(name), name)):
        info = registered.pop(public_key_pem(read_public_key(files[name])), None)
        client = _client(name)
        if info is None:
            yield Node(client, name, "", "not registered", None)
            continue
        node = _node(info, client, name)
        took_part = last is not None and node.state == "online" and _moment(info.last_activated_at) < last
        yield replace(node, fedpgp=__version__) if took_part and run and client in run.participants else node
    for info in registered.values():
        if info.name not in files:
            yield Node(_client(info.name), info.name, str(info.node_id), "revoked", info.last_deactivated_at or None)


def _without_keys(infos: Sequence[NodeInfo]) -> Iterator[Node]:
    """Yield the connected nodes; each start of a node without a key is a new node for the SuperLink."""
    for info in infos:
        if info.status == NodeStatus.ONLINE:
            yield _node(info, None, "")


def _node(info: NodeInfo, client: int | None, name: str) -> Node:
    state: State
    if info.status == NodeStatus.ONLINE:
        state, since = "online", info.last_activated_at
    elif info.last_activated_at:
        state, since = "offline", info.last_deactivated_at
    else:
        state, since = "never connected", ""
    return Node(client, name, str(info.node_id), state, _iso(_moment(since)) if since else None)


def _client(name: str) -> int | None:
    """Return the number of the client whose key has a name."""
    match = NODE_KEY.fullmatch(f"{name}.pub")
    return int(match[1]) if match else None


# ----------------------------------------------------------------------------------------------------------------- run


def _last_run(layout: FederationLayout, run: Run) -> LastRun:
    chosen = {**layout.app_settings._asdict(), **user_config_from_proto(run.override_config)}
    output = layout.directory / str(chosen["output"])
    status = run.status.sub_status or run.status.status
    since = run.finished_at or run.running_at or run.starting_at or run.pending_at
    found = LastRun(
        id=str(run.run_id),
        status=status,
        since=_iso(_moment(since)),
        reason=run.status.details if status == "failed" else "",
        method=str(chosen["method"]),
        seed=int(chosen["seed"]),
        output=str(output),
    )
    if (output / "config.toml").exists():
        found = replace(found, rounds=_rounds(output, found.method))
    records = finished_rounds(output)
    if not records:
        return found
    last = records[-1]
    drops = [drop["in"] for record in records for drop in record.get("dropped", ())]
    return replace(
        found,
        round=last["round"],
        figures={name: value for name, value in last.items() if type(value) in (int, float) and name not in UNUSED},
        participants=last["participants"],
        dropped=last.get("dropped", ()),
        refused=last.get("refused", ()),
        drops={phase: drops.count(phase) for phase in sorted({*drops})},
    )


def _last_round(run: LastRun | None) -> datetime.datetime | None:
    """Return the end of the last round, None if this run has not finished one since it was started or continued.

    A run ends with its server. Thus, the server had the same version during the last round of a run that has not ended.
    """
    if run is None or run.ended or run.round is None:
        return None
    end = datetime.datetime.fromtimestamp((Path(run.output) / RECORDS).stat().st_mtime, datetime.UTC)
    return end if _moment(run.since) < end else None


def _rounds(output: Path, method: str) -> int:
    """Return the number of rounds of a run. Its plug-in is not executed, so a plug-in's fine-tuning is not counted."""
    config = load_config(output / "config.toml", foreign=True)
    built_in = config.methods.get(method)
    return rounds_of(built_in, config.federation) if built_in else config.federation.rounds


# -------------------------------------------------------------------------------------------------------- certificates


def _expiry(path: Path) -> datetime.datetime:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise OutputError(
            f"the certificate cannot be read: {cause(error)}",
            where=str(path),
            remedy="Call the command as the user who runs the server",
        ) from error
