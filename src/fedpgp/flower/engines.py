"""Engines in addition to the local one, by the value of `federation.engine`."""

from collections.abc import Iterator, Mapping
from typing import Any

from fedpgp.runs.execution import Engine


def simulation(*arguments: Any, **named: Any) -> Iterator[dict[str, Any]]:
    """Run Flower's simulation, which is imported only when a run needs it. It has the arguments of an `Engine`."""
    from fedpgp.flower.simulation import simulate

    return simulate(*arguments, **named)


ENGINES: Mapping[str, Engine] = {"simulation": simulation}
