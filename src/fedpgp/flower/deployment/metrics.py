"""What a monitoring system reads of a run while it lasts: Prometheus' text format, on the loopback address."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from fedpgp.errors import ConfigError

Hear = Callable[[Mapping[str, Any]], None]


@contextmanager
def exporter(port: int | None, run: str) -> Iterator[Hear]:
    """Serves the last round's record until the block ends. port: None serves nothing.

    Gives what is to hear each record. Raises ConfigError where the port is taken.
    """
    if port is None:
        yield lambda record: None
        return
    registry = CollectorRegistry()
    figures = Gauge("fedpgp_figure", "Of the last round's record", ["run", "name"], registry=registry)
    rounds = Gauge("fedpgp_round", "The last round that is finished", ["run"], registry=registry)
    taking_part = Gauge("fedpgp_participants", "Clients whose updates count in it", ["run"], registry=registry)
    dropped = Counter("fedpgp_dropped", "Clients left out, by phase", ["run", "phase"], registry=registry)
    try:
        server, thread = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise ConfigError(
            where="federation.metrics_port",
            allowed=f"a free port ({error.strerror})",
            got=port,
            remedy="Choose another port, or leave the setting out",
        ) from error

    def hear(record: Mapping[str, Any]) -> None:
        rounds.labels(run).set(record["round"])
        taking_part.labels(run).set(len(record["participants"]))
        for drop in record.get("dropped", ()):
            dropped.labels(run, drop["in"]).inc()
        for name, figure in record.items():
            if isinstance(figure, int | float) and name != "round":
                figures.labels(run, name).set(figure)

    try:
        yield hear
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
