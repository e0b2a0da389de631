"""A whole federation on this machine, for trying: a server, its nodes and a run, which all end with a block."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest

from fedpgp.errors import FedPGPError, TrainingError
from fedpgp.flower.deployment.layout import FederationLayout
from fedpgp.flower.deployment.processes import SCRIPTS, end_together, environment, started
from fedpgp.flower.deployment.superlink import PATIENCE, control, server
from fedpgp.results.run_store import RECORDS

POLL = 1.0
TRIES = 5  # starts of one run, whose ServerApp may be killed


@dataclass
class LocalFederation:
    """The processes of a federation by name: "server", "node-0" and so on. `tend` restarts processes that ended."""

    layout: FederationLayout
    stack: ExitStack
    cache: str | None = None
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """Start the process of this name."""
        log = self.layout.logs / f"{name}.log"
        if name == "server":
            process = server(self.layout, log)
        else:
            command = [str(SCRIPTS / "fedpgp"), "federate", "node", str(self.layout.nodes / name)]
            command += ["--insecure"] if self.layout.connection.insecure else []
            command += [] if self.cache is None else ["--cache-dir", self.cache]
            process = started(command, environment(self.layout.flwr), log)
        self.processes[name] = self.stack.enter_context(process)

    def tend(self) -> list[str]:
        """Restart the processes that ended, as a service manager does, and return their names."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        for name in ended:
            self.start(name)
        return ended

    def submit(self, output: Path) -> int:
        """Call `flwr run` with a run directory, and return the run's id at the server."""
        command = [str(SCRIPTS / "flwr"), "run", str(self.layout.app), self.layout.connection.name]
        command += ["--format", "json", "--run-config", f"output={json.dumps(str(output))}"]
        done = subprocess.run(
            command, env=environment(self.layout.flwr), capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        try:
            return int(json.loads(done.stdout)["run-id"])
        except (ValueError, KeyError, TypeError) as error:
            raise FedPGPError(
                f"flwr run failed: {(done.stdout + done.stderr).strip()[-500:]}",
                remedy=f"Read {self.layout.logs / 'server.log'}",
            ) from error

    def status(self, run: int) -> tuple[str, str]:
        """Return the status of a run as in `flwr ls`, for example "finished" and "completed"."""
        with control(self.layout) as client:
            (listed,) = client.ListRuns(ListRunsRequest(run_id=run)).run_dict.values()
            return listed.status.status, listed.status.sub_status

    def online(self) -> int:
        """Return the number of nodes that are connected to the server."""
        with control(self.layout) as client:
            return sum(node.status == "online" for node in client.ListNodes(ListNodesRequest()).nodes_info)

    def complete(
        self,
        output: Path,
        hear: Callable[[str], None],
        there: Callable[[int], None] = lambda nodes: None,
        rounds: Callable[[Sequence[dict[str, Any]]], None] = lambda records: None,
    ) -> None:
        """Run the federation's app until its run directory is finished; restart processes and the run if they end.

        Parameters
        ----------
        output
            Run directory.
        hear
            Function that is called with a sentence about each problem.
        there
            Function that is called with the number of connected nodes, whenever it changes before the end of the first
            round.
        rounds
            Function that is called with the records of all finished rounds, whenever there are more of them.

        Raises
        ------
        TrainingError
            If the run ends too often.
        """
        records: Sequence[dict[str, Any]] = ()
        nodes = 0
        for _ in range(TRIES):
            run, answered, status = self.submit(output), time.monotonic(), ""
            while status != "finished":
                time.sleep(POLL)
                for name in self.tend():
                    hear(f"{name} ended and was started again; its log is {self.layout.logs / name}.log")
                try:
                    status, ended = self.status(run)
                    if not records and (count := self.online()) != nodes:
                        there(nodes := count)
                    answered = time.monotonic()
                except Exception as error:  # the server may be starting again
                    if time.monotonic() - answered > PATIENCE:
                        raise FedPGPError(
                            f"the server does not answer: {error}", remedy=f"Read {self.layout.logs / 'server.log'}"
                        ) from error
                finished = finished_rounds(output)
                if len(finished) > len(records):
                    rounds(records := finished)
            if (output / "results.json").exists():
                return
            hear(f"the run ended ({ended}) before it was finished; it is started again")
        raise TrainingError(
            f"the run ended {TRIES} times before it was finished", remedy=f"Read {self.layout.logs / 'server.log'}"
        )


def finished_rounds(output: Path) -> list[dict[str, Any]]:
    """Return the records of the rounds that a run has finished; ignore a line that is not complete yet."""
    try:
        content = (output / RECORDS).read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


@contextmanager
def local_federation(layout: FederationLayout, nodes: int, cache: str | None = None) -> Iterator[LocalFederation]:
    """Run the server and the nodes of a federation until the block ends. Their output is in logs/ of its directory.

    Parameters
    ----------
    layout
        The federation.
    nodes
        Number of nodes.
    cache
        Directory of the image features; None means the user's cache directory.
    """
    layout.logs.mkdir(exist_ok=True)
    with ExitStack() as stack:
        federation = LocalFederation(layout, stack, cache)
        for name in ("server", *(layout.node(client).name for client in range(nodes))):
            federation.start(name)
        try:
            yield federation
        finally:
            end_together(list(federation.processes.values()))


def free_ports(count: int) -> list[int]:
    """Return `count` free ports of the loopback address."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]
