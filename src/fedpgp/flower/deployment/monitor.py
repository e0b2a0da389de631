"""Health and metrics of a server and of a node, over HTTP on the loopback address.

`/health` returns a small JSON object, with status 200 if all is well and 503 otherwise. `/metrics` returns Prometheus'
text format. Neither has the name of a key, a class or a file.
"""

import datetime
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedpgp.errors import ConfigError, FedPGPError
from fedpgp.flower.deployment.layout import FederationLayout, host_and_port, is_loopback
from fedpgp.flower.deployment.status import FederationStatus, federation_status

AGE = 2.0  # seconds for which the server's answer is used again, so that a scrape asks the SuperLink only once
PATIENCE = 10.0  # seconds for a request
SILENCE = 60.0  # seconds without contact after which a node is not connected; Flower's server waits as long


class Report(NamedTuple):
    """What a monitor reports: whether all is well, the body of /health, and the metrics."""

    well: bool
    health: Mapping[str, Any]
    metrics: Iterable[Metric]


@contextmanager
def monitored(address: str, where: str, report: Callable[[], Report]) -> Iterator[None]:
    """Serve /health and /metrics until the block ends.

    Parameters
    ----------
    address
        Loopback address and port; "" serves nothing.
    where
        The setting with the address, for errors.
    report
        Function that is called for every request.

    Raises
    ------
    ConfigError
        If the address is not a loopback address, or the port is not free.
    """
    if not address:
        yield
        return
    host, port = _place(address, where)

    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE
        server_version = "fedpgp"

        def do_GET(self) -> None:  # the name that http.server calls
            if self.path == "/health":
                found = report()
                self._send(200 if found.well else 503, "application/json", json.dumps(found.health).encode())
            elif self.path == "/metrics":
                registry = CollectorRegistry()
                registry.register(_Collected(report().metrics))
                self._send(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            else:
                self.send_error(404)

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Log no requests: a monitoring system makes several a minute."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(
            where=where,
            allowed=f"an address with a free port ({error.strerror})",
            got=address,
            remedy="Choose another port, or leave the monitor out with an empty address",
        ) from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _place(address: str, where: str) -> tuple[str, int]:
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


class _Collected(Collector):
    """Metrics that are known already."""

    def __init__(self, metrics: Iterable[Metric]):
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


# -------------------------------------------------------------------------------------------------------------- server


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

    with monitored(layout.gate.monitor, f"monitor in {layout.server / 'gate.toml'}", report):
        yield


def of_server(layout: FederationLayout) -> Report:
    """Return the health of a server: all is well if nodes can be activated now."""
    try:
        status = federation_status(layout)
    except FedPGPError:  # the log of the command `status` has the reason
        return Report(False, {"status": "down"}, [_gauge("fedpgp_up", "1 if nodes can be activated", 0)])
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
    return Report(up, health, [_gauge("fedpgp_up", "1 if nodes can be activated", up), *_server_metrics(status)])


def _server_metrics(status: FederationStatus) -> Iterator[Metric]:
    yield _gauge("fedpgp_problems", "Number of problems that fedpgp federate status lists", len(status.problems))
    yield _gauge("fedpgp_clients", "Clients in the experiment", status.clients)
    yield _gauge("fedpgp_nodes_online", "Connected nodes", status.online)
    yield _gauge("fedpgp_disk_free_bytes", "Free bytes on the disk of the federation", status.free)
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
        yield _gauge("fedpgp_rounds", "Rounds of the run", run.rounds, run=run.id)
    if run.round is None:
        return
    yield _gauge("fedpgp_round", "Last finished round", run.round, run=run.id)
    yield _gauge("fedpgp_participants", "Clients in the last round", len(run.participants), run=run.id)
    dropped = CounterMetricFamily("fedpgp_dropped", "Dropped replies, by phase", labels=["run", "phase"])
    for phase, count in run.drops.items():
        dropped.add_metric([run.id, phase], count)
    yield dropped
    figures = GaugeMetricFamily("fedpgp_figure", "Number in the record of the last round", labels=["run", "name"])
    for name, figure in run.figures.items():
        figures.add_metric([run.id, name], figure)
    yield figures


def _gauge(name: str, about: str, value: float, **labels: str) -> Metric:
    family = GaugeMetricFamily(name, about, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _accepts(address: str) -> bool:
    """Return whether a process of this machine accepts connections at an address."""
    host, port = host_and_port(address)
    try:
        socket.create_connection(("127.0.0.1" if host == "0.0.0.0" else host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------- node


class NodeActivity:
    """What a node does: its last contact with the server, the message that it answers, and what it answered."""

    def __init__(self) -> None:
        self._contact: float | None = None
        self._phase, self._answered = "connecting", 0.0
        self._answers: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    def contact(self) -> None:
        """Note that the server answered."""
        self._contact = time.monotonic()
        if self._phase == "connecting":
            self._phase = "idle"

    def begin(self, kind: str) -> None:
        """Note that a message of a kind has arrived."""
        self._phase = kind

    def end(self, kind: str, failed: bool) -> None:
        """Note that a message of a kind was answered, and whether with an error."""
        self._phase, self._answered = "idle", time.time()
        (self._failures if failed else self._answers)[kind] += 1

    def report(self) -> Report:
        """Return the health of the node: all is well if the server has answered within a minute."""
        connected = self._contact is not None and time.monotonic() - self._contact < SILENCE
        answered = datetime.datetime.fromtimestamp(self._answered, datetime.UTC).isoformat(timespec="seconds")
        health = {
            "status": "up" if connected else "down",
            "phase": self._phase,
            "answered": answered if self._answered else None,
            "answers": self._answers.total(),
            "failures": self._failures.total(),
        }
        counters = []
        for name, about, counts in (
            ("fedpgp_node_answers", "Answered messages, by kind", self._answers),
            ("fedpgp_node_failures", "Messages that could not be answered, by kind", self._failures),
        ):
            counter = CounterMetricFamily(name, about, labels=["kind"])
            for kind, count in sorted(counts.items()):
                counter.add_metric([kind], count)
            counters.append(counter)
        return Report(
            connected,
            health,
            [
                _gauge("fedpgp_node_up", "1 if the server has answered within a minute", connected),
                _gauge("fedpgp_node_answered_seconds", "Unix time of the last answer; 0: none", self._answered),
                *counters,
            ],
        )
