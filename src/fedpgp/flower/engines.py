"""The engines beside the local one, by the value of federation.engine."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedpgp.federation.state import State
from fedpgp.runs.execution import Engine
from fedpgp.runs.setup import OpenRun


def simulation(opened: OpenRun, directory: Path | None, state: State) -> Iterator[dict[str, Any]]:
    """Flower's simulation, which is imported when a run needs it."""
    from fedpgp.flower.simulation import simulate

    return simulate(opened, directory, state)


ENGINES: Mapping[str, Engine] = {"simulation": simulation}
