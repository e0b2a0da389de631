"""Runs on Flower's simulation: the clients are Ray actors that read the cached features; the loop of rounds is here."""

import logging
import os
import pickle
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from typing import Any

import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedpgp.errors import TrainingError
from fedpgp.federation.rounds import joining, run_rounds
from fedpgp.federation.state import State
from fedpgp.flower.client_app import client_app
from fedpgp.flower.messages import terms_of
from fedpgp.flower.node import Node, answer, own_states
from fedpgp.flower.nodes import Nodes
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import OpenRun, RunSetup, open_run
from fedpgp.runtime.code_files import load_file, loaded_files

OPEN = 64  # clients that an actor keeps in memory
DIRECTORY = "clients"  # in a run directory: the private parts of the clients until the run is finished


def simulate(opened: OpenRun, directory: Path | None, state: State) -> Iterator[dict[str, Any]]:
    """Run the rounds that are missing in a state, and yield the record of each, as `federate` does.

    After the last round, the state includes the private parts of the clients.

    Parameters
    ----------
    opened
        The run.
    directory
        Directory of the run, on a disk that all actors can reach; None uses a temporary directory.
    state
        State of the run.

    Raises
    ------
    TrainingError
        If the simulation does not start, or a client fails.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; without it Ray warns
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # otherwise Ray sends usage statistics to its makers
    logging.getLogger("flwr").setLevel(logging.ERROR)
    setup, spec, run = opened.setup, opened.spec, state.origin()["run"]
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory())) if directory is None else directory / DIRECTORY
        cached = (setup.execution.cache, setup.execution.skip_bad_images)
        packed = pickle.dumps((setup.config, opened.name, opened.seed, *cached))
        opener = _Opener(run, place.absolute(), tuple(loaded_files()), packed)
        grid = stack.enter_context(_grid(opener, spec.clients, setup))
        nodes = Nodes(grid, spec, state, terms_of(setup.backbone, opened.task), setup.config.privacy, forgiving=False)
        nodes.gather()
        yield from run_rounds(spec, nodes, state, joining(opened.runner, opened.workers))
        kept = {client: own_states(place, run, client).after(number)[1] for client, number in nodes.counted.items()}
        server = state.server()
        if server is not None:
            with state.round():
                state.keep(server, {client: own for client, own in kept.items() if own is not None})
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _grid(opener: "_Opener", clients: int, setup: RunSetup) -> Iterator[Grid]:
    """Run Flower's part of a simulation in a thread until the block ends."""
    server, opened, over = ServerApp(), Queue[Grid | None](), threading.Event()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        opened.put(grid)
        over.wait()

    ray: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if "RAY_ADDRESS" not in os.environ:  # this process starts Ray
        ray |= {"num_cpus": setup.workers.count, "include_dashboard": False}
    cuda = setup.config.backbone.device.startswith("cuda")
    resources: dict[str, Any] = {"num_cpus": 1, "num_gpus": float(cuda)}
    client = client_app(opener, vars(setup.config.privacy))
    backend = {"client_resources": resources, "init_args": ray}
    with ThreadPoolExecutor(1, "simulation") as pool:
        running = pool.submit(run_simulation, server, client, clients, backend_config=backend)
        running.add_done_callback(lambda _: opened.put(None))
        try:
            grid = opened.get()
            if grid is None:
                error = running.exception()
                raise TrainingError(
                    f"Flower's simulation did not start: {error}",
                    where="federation.engine",
                    remedy="Fix the cause, or train without Flower: --set federation.engine=local",
                ) from error
            yield grid
        finally:
            over.set()


@dataclass(frozen=True)
class _Opener:
    """Opens a client in an actor.

    Attributes
    ----------
    packed
        Config, method, seed and settings of the feature cache, pickled by this process.
    """

    run: str
    directory: Path
    method_files: tuple[Path, ...]
    packed: bytes

    def __call__(self, kind: str, content: RecordDict, context: Context) -> RecordDict:
        client = int(context.node_config["partition-id"])
        return answer(kind, content, lambda: _node(self, client), trusted=True)


@lru_cache(maxsize=1)
def _opened(opener: _Opener) -> OpenRun:
    """Open the run once in this process."""
    torch.set_num_threads(1)
    for path in opener.method_files:
        load_file(path)
    config, method, seed, cache, skip_bad_images = pickle.loads(opener.packed)
    with open_run(config, method, seed, Execution(cache=cache, skip_bad_images=skip_bad_images)) as opened:
        return opened  # only its workers end here


@lru_cache(maxsize=OPEN)
def _node(opener: _Opener, client: int) -> Node:
    opened = _opened(opener)
    return Node(opened.runner_of(opened.task.clients[client]), opener.directory)
