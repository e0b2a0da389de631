"""Metrics of a current run for a monitoring system, in Prometheus' text format, on the loopback address."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

from fedpgp.errors import ConfigError

Hear = Callable[[Mapping[str, Any]], None]


@contextmanager
def exporter(port: int | None, run: str) -> Iterator[Hear]:
    """Serve the metrics of the last round until the block ends.

    Parameters
    ----------
    port
        Port on the loopback address; None serves nothing.
    run
        Id of the run.

    Yields
    ------
    Hear
        Function that must be called with the record of each round.

    Raises
    ------
    ConfigError
        If the port is not free.
    """
    if port is None:
        yield lambda record: None
        return
    registry = CollectorRegistry()
    figures = Gauge("fedpgp_figure", "Number in the record of the last round", ["run", "name"], registry=registry)
    rounds = Gauge("fedpgp_round", "Last finished round", ["run"], registry=registry)
    taking_part = Gauge("fedpgp_participants", "Clients in the last round", ["run"], registry=registry)
    dropped = Counter("fedpgp_dropped", "Dropped replies, by phase", ["run", "phase"], registry=registry)
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
