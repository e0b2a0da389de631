"""A run on Flower's simulation: clients are Ray's actors, which read the cached features, and the loop is here."""

import logging
import os
import pickle
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from typing import Any

import torch
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedpgp.config import ExperimentConfig
from fedpgp.errors import TrainingError
from fedpgp.federation.rounds import joining, run_rounds
from fedpgp.federation.state import State
from fedpgp.flower.client_app import client_app
from fedpgp.flower.mods import mods
from fedpgp.flower.node import own_states
from fedpgp.flower.nodes import NodeClient, Nodes, answer, node_client, terms_of
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import OpenRun, RunSetup, open_run
from fedpgp.runtime.code_files import load_file, loaded_files

OPEN = 64  # clients that an actor holds ready
DIRECTORY = "clients"  # in a run directory: what each client keeps, until the run is finished


def simulate(opened: OpenRun, directory: Path | None, state: State) -> Iterator[dict[str, Any]]:
    """Runs the rounds that a state has not finished yet and yields the record of each, as `federate` does.

    When the last is over, what clients keep is in the state. directory: of the run, on a disk that all actors reach;
    None takes a temporary one. Raises TrainingError where the simulation cannot be started, or a client fails.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its next default, of which it warns
    logging.getLogger("flwr").setLevel(logging.ERROR)
    setup, spec, run = opened.setup, opened.spec, state.origin()["run"]
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory())) if directory is None else directory / DIRECTORY
        cached = (setup.execution.cache, setup.execution.skip_bad_images)
        packed = pickle.dumps((setup.config, opened.name, opened.seed, *cached))
        opener = _Opener(run, place.absolute(), tuple(loaded_files()), packed)
        nodes = Nodes(
            grid=stack.enter_context(_grid(opener, spec.clients, setup)),
            spec=spec,
            run=run,
            terms=terms_of(setup.backbone, opened.task),
            counted={client: record["round"] for record in state.records() for client in record["participants"]},
            deadline=setup.config.federation.deadline,
            forgiving=False,
            privacy=setup.config.privacy,
        )
        nodes.gather(spec.clients)
        yield from run_rounds(spec, nodes, state, joining(opened.runner, opened.workers))
        kept = {client: own_states(place, run, client).after(number)[1] for client, number in nodes.counted.items()}
        server = state.server()
        if server is not None:
            with state.round():
                state.keep(server, {client: own for client, own in kept.items() if own is not None})
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _grid(opener: "_Opener", clients: int, setup: RunSetup) -> Iterator[Grid]:
    """Flower's side of a simulation, in a thread: its loop ends when the block does."""
    server, opened, over = ServerApp(), Queue[Grid | BaseException](), threading.Event()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        opened.put(grid)
        over.wait()

    cuda = setup.config.backbone.device.startswith("cuda")
    own = {"num_cpus": setup.workers.count, "include_dashboard": False}  # of a Ray that this process starts

    def simulate() -> None:
        try:
            run_simulation(
                server,
                client_app(opener, mods(asdict(setup.config.privacy))),
                clients,
                backend_config={
                    "client_resources": {"num_cpus": 1, "num_gpus": 1.0 if cuda else 0.0},
                    "init_args": {
                        **({} if "RAY_ADDRESS" in os.environ else own),
                        "log_to_driver": False,
                        "logging_level": logging.ERROR,
                    },
                },
            )
        except BaseException as error:
            opened.put(error)

    thread = threading.Thread(target=simulate, name="simulation")
    thread.start()
    try:
        found = opened.get()
        if isinstance(found, BaseException):
            raise TrainingError(f"Flower's simulation cannot be started: {found}") from found
        yield found
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True)
class _Opener:
    """Opens a client in an actor. packed: config, method, seed and how features are cached, pickled by this process."""

    run: str
    directory: Path = field(compare=False)
    method_files: Sequence[Path] = field(compare=False)
    packed: bytes = field(compare=False)

    def __call__(self, kind: str, content: RecordDict, context: Context) -> RecordDict:
        client = int(context.node_config["partition-id"])
        return answer(kind, content, lambda: _guest(self, client), trusted=True)

    def unpack(self) -> tuple[ExperimentConfig, str, int, Path | None, bool]:
        for path in self.method_files:
            load_file(path)
        return pickle.loads(self.packed)


@lru_cache(maxsize=1)
def _opened(opener: _Opener) -> tuple[OpenRun, ExitStack]:
    """Of this process, for as long as it lives."""
    torch.set_num_threads(1)
    config, method, seed, cache, skip_bad_images = opener.unpack()
    stack = ExitStack()
    execution = Execution(cache=cache, skip_bad_images=skip_bad_images)
    return stack.enter_context(open_run(config, method, seed, execution)), stack


@lru_cache(maxsize=OPEN)
def _guest(opener: _Opener, client: int) -> NodeClient:
    opened, _ = _opened(opener)
    return node_client(opened, opened.task.clients[client], opener.directory)
