"""Health and metrics of a federation's server: the node list of its SuperLink, and the records of the last run."""

import datetime
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
from flwr.proto.control_pb2 import StreamLogsRequest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from fedpgp.errors import ConfigError, FedPGPError
from fedpgp.flower.deployment.layout import FederationLayout, host_and_port, is_loopback
from fedpgp.flower.deployment.logs import Log, Output
from fedpgp.flower.deployment.monitor import Report, gauge, monitored
from fedpgp.flower.deployment.status import FederationStatus, federation_status
from fedpgp.flower.deployment.superlink import control

STARTED = re.compile(r"Started task \d+ of run (?P<run>\d+)")  # as Flower reports the start of a run
AGE = 2.0  # seconds for which the server's answer is used again, so that a scrape asks the SuperLink only once


@contextmanager
def monitored_server(layout: FederationLayout) -> Iterator[None]:
    """Serve the health and the metrics of a federation's server until the block ends, at the address in gate.toml.

    Raises
    ------
    FedPGPError
        If this is not the directory of a federation, or the address cannot be used.
    """
    layout.connection  # noqa: B018 raises an error if this is not a federation's directory
    lock, last = threading.Lock(), (-AGE, Report(False, {}, ()))

    def report() -> Report:
        nonlocal last
        with lock:
            if time.monotonic() - last[0] >= AGE:
                last = time.monotonic(), of_server(layout)
            return last[1]

    where = f"monitor in {layout.server / 'gate.toml'}"
    host, port = _place(layout.gate.monitor, where)
    with monitored(host, port, where, report):
        yield


def _place(address: str, where: str) -> tuple[str, int]:
    if not address:
        return "", 0
    try:
        host, port = host_and_port(address)
    except ValueError:
        host, port = "", 0
    if not is_loopback(host) or not 0 < port < 1 << 16:
        raise ConfigError(
            where=where,
            allowed="a loopback address with a port, such as 127.0.0.1:9095",
            got=address,
            remedy="Correct the address; to reach the monitor from another machine, forward its port with ssh",
        )
    return host, port


def followed_runs(layout: FederationLayout, log: Log) -> Callable[[str], None]:
    """Return a function that copies the log of each run to the server's log, when it hears that the run has started.

    Flower's processes do not write what the app of a run reports; the SuperLink keeps it for `flwr log`.
    """

    def heard(message: str) -> None:
        if started := STARTED.fullmatch(message):
            threading.Thread(target=follow, args=(started["run"],), daemon=True).start()

    def follow(run: str) -> None:
        output = Output(log, "app", run=run)
        with suppress(httpx.HTTPError), control(layout) as client:  # the SuperLink ends before its run
            for part in client.StreamLogs(StreamLogsRequest(run_id=int(run))):
                output.feed(part.log_output)
        output.feed("", last=True)

    return heard


def of_server(layout: FederationLayout) -> Report:
    """Return the health of a server: all is well if nodes can be activated now."""
    try:
        status = federation_status(layout)
    except FedPGPError:  # the log of the command `status` has the reason
        return Report(False, {"status": "down"}, [gauge("fedpgp_up", "1 if nodes can be activated", 0)])
    now = datetime.datetime.now(datetime.UTC)
    expires = {name: datetime.datetime.fromisoformat(end) for name, end in status.certificates.items()}
    up = status.answers and _accepts(layout.gate.listen if expires else layout.connection.address)
    up = up and all(now < end for end in expires.values())
    run = status.run
    health = {
        "status": "up" if up else "down",
        "nodes_online": status.online,
        "clients": status.clients,
        "run": run and run.status,
        "round": run and run.round,
        "problems": len(status.problems),
        **status.versions,
    }
    return Report(up, health, [gauge("fedpgp_up", "1 if nodes can be activated", up), *_server_metrics(status)])


def _server_metrics(status: FederationStatus) -> Iterator[Metric]:
    yield gauge("fedpgp_problems", "Number of problems that fedpgp federate status lists", len(status.problems))
    yield gauge("fedpgp_clients", "Clients in the experiment", status.clients)
    yield gauge("fedpgp_nodes_online", "Connected nodes", status.online)
    yield gauge("fedpgp_disk_free_bytes", "Free bytes on the disk of the federation", status.free)
    online = GaugeMetricFamily("fedpgp_node_online", "1 if the node of a client is connected", labels=["client"])
    for node in status.nodes:
        if node.client is not None and node.state != "revoked":
            online.add_metric([str(node.client)], node.state == "online")
    yield online
    expires = GaugeMetricFamily("fedpgp_certificate_expires_seconds", "Unix time", labels=["certificate"])
    for name, end in status.certificates.items():
        expires.add_metric([name.removesuffix(".crt")], datetime.datetime.fromisoformat(end).timestamp())
    yield expires
    run = status.run
    if run is None:
        return
    state = GaugeMetricFamily(
        "fedpgp_run_status", "1 for the status of the current or last run", labels=["run", "status"]
    )
    state.add_metric([run.id, run.status], 1)
    yield state
    if run.rounds is not None:
        yield gauge("fedpgp_rounds", "Rounds of the run", run.rounds, run=run.id)
    if run.round is None:
        return
    yield gauge("fedpgp_round", "Last finished round", run.round, run=run.id)
    yield gauge("fedpgp_participants", "Clients in the last round", len(run.participants), run=run.id)
    dropped = CounterMetricFamily("fedpgp_dropped", "Dropped replies, by phase", labels=["run", "phase"])
    for phase, count in run.drops.items():
        dropped.add_metric([run.id, phase], count)
    yield dropped
    figures = GaugeMetricFamily("fedpgp_figure", "Number in the record of the last round", labels=["run", "name"])
    for name, figure in run.figures.items():
        figures.add_metric([run.id, name], figure)
    yield figures


def _accepts(address: str) -> bool:
    """Return whether a process of this machine accepts connections at an address."""
    host, port = host_and_port(address)
    try:
        socket.create_connection(("127.0.0.1" if host == "0.0.0.0" else host, port), timeout=1.0).close()
    except OSError:
        return False
    return True
