"""Health and metrics of a server and of a node, over HTTP on the loopback address.

`/health` returns a small JSON object, with status 200 if all is well and 503 otherwise. `/metrics` returns Prometheus'
text format. Neither has the name of a key, a class or a file. A SuperNode imports this module, so it imports nothing
that takes long.
"""

import datetime
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedpgp.errors import ConfigError

PATIENCE = 10.0  # seconds for a request
SILENCE = 60.0  # seconds without contact after which a node is not connected; Flower's server waits as long

Connect = Callable[..., AbstractContextManager[tuple[Any, ...]]]


class Report(NamedTuple):
    """What a monitor reports: whether all is well, the body of /health, and the metrics."""

    well: bool
    health: Mapping[str, Any]
    metrics: Iterable[Metric]


@contextmanager
def monitored(host: str, port: int, where: str, report: Callable[[], Report]) -> Iterator[None]:
    """Serve /health and /metrics until the block ends.

    Parameters
    ----------
    host, port
        Loopback address and port; port 0 serves nothing.
    where
        The setting with the address, for errors.
    report
        Function that is called for every request.

    Raises
    ------
    ConfigError
        If the port is not free.
    """
    if not port:
        yield
        return

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
            allowed=f"an address whose port is free ({error.strerror})",
            got=f"{host}:{port}",
            remedy="Choose another port",
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


class _Collected(Collector):
    """Metrics that are known already."""

    def __init__(self, metrics: Iterable[Metric]):
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def gauge(name: str, about: str, value: float, **labels: str) -> Metric:
    """Return a metric with one value."""
    family = GaugeMetricFamily(name, about, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


class NodeActivity:
    """What a node does: its last contact with the server, the message that it answers, and what it answered."""

    def __init__(self) -> None:
        self._contact: float | None = None
        self._phase, self._answered = "connecting", 0.0
        self._answers: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    def noting(self, connect: Connect) -> Connect:
        """Return Flower's connection of a node, which tells this object about the server's answers and the messages."""

        @contextmanager
        def noted(*arguments: Any, **named: Any) -> Iterator[tuple[Any, ...]]:
            with connect(*arguments, **named) as (node, receive, send, *others):
                self._contact, self._phase = time.monotonic(), "idle"

                def noted_receive() -> Any:
                    received = receive()
                    self._contact = time.monotonic()
                    if received is not None:
                        self._phase = received[0].metadata.message_type
                    return received

                def noted_send(message: Any, *others: Any) -> Any:
                    sent = send(message, *others)
                    self._phase, self._contact, self._answered = "idle", time.monotonic(), time.time()
                    kind = message.metadata.message_type
                    (self._failures if message.has_error() else self._answers)[kind] += 1
                    return sent

                yield node, noted_receive, noted_send, *others

        return noted

    def report(self) -> Report:
        """Return the health of the node: all is well if the server has answered within a minute.

        A node that answers a message does not ask the server for another one, and remains as it was.
        """
        answering = self._phase not in ("connecting", "idle")
        connected = self._contact is not None and (answering or time.monotonic() - self._contact < SILENCE)
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
                gauge("fedpgp_node_up", "1 if the server has answered within a minute", connected),
                gauge("fedpgp_node_answered_seconds", "Unix time of the last answer; 0: none", self._answered),
                *counters,
            ],
        )
