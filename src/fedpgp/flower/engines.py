"""The engines beside the local one, by the value of federation.engine."""

from collections.abc import Iterator, Mapping
from typing import Any

from fedpgp.runs.execution import Engine


def simulation(*arguments: Any, **named: Any) -> Iterator[dict[str, Any]]:
    """Flower's simulation, which is imported when a run needs it; the arguments are those of every `Engine`."""
    from fedpgp.flower.simulation import simulate

    return simulate(*arguments, **named)


ENGINES: Mapping[str, Engine] = {"simulation": simulation}
