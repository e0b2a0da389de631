"""A whole federation on this machine, to try: a server, its nodes and a run, all of which end with the block."""

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
from fedpgp.flower.deployment.processes import SCRIPTS, control, environment, server, started
from fedpgp.results.run_store import RECORDS

POLL = 1.0
TRIES = 5  # of one run, whose server app may be killed


@dataclass
class LocalFederation:
    """Processes by their names, "server" and "node-0" and so on; those that end are started again by `tend`."""

    layout: FederationLayout
    stack: ExitStack
    logs: Path
    cache: str | None = None
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_server(self) -> None:
        found = self.stack.enter_context(server(self.layout.directory, self.layout.insecure, self.logs / "server.log"))
        self.processes["server"] = found

    def start_node(self, client: int) -> None:
        name, command = f"node-{client}", [str(SCRIPTS / "fedpgp"), "federate", "node", str(self.layout.node(client))]
        command += ["--insecure"] if self.layout.insecure else []
        command += [] if self.cache is None else ["--cache-dir", self.cache]
        env = environment(self.layout.flwr)
        self.processes[name] = self.stack.enter_context(started(command, env, self.logs / f"{name}.log"))

    def tend(self) -> list[str]:
        """Starts again what has ended, as a service manager does; their names."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        for name in ended:
            if name == "server":
                self.start_server()
            else:
                self.start_node(int(name.removeprefix("node-")))
        return ended

    def submit(self, **run_config: str | int) -> int:
        """`flwr run`; the run's id at the server."""
        changes = " ".join(f"{name}={json.dumps(value)}" for name, value in run_config.items())
        options = ["--run-config", changes] if changes else []
        name, _ = self.layout.connection
        command = [str(SCRIPTS / "flwr"), "run", str(self.layout.app), name, "--format", "json", *options]
        done = subprocess.run(
            command, env=environment(self.layout.flwr), capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        try:
            return int(json.loads(done.stdout)["run-id"])
        except (ValueError, KeyError, TypeError) as error:
            raise FedPGPError(f"flwr run failed: {(done.stdout + done.stderr).strip()[-500:]}") from error

    def status(self, run: int) -> tuple[str, str]:
        """Of a run, as `flwr ls` has it: such as "finished" and "completed"."""
        with control(self.layout) as client:
            (found,) = client.ListRuns(ListRunsRequest(run_id=run)).run_dict.values()
            return found.status.status, found.status.sub_status

    def online(self) -> int:
        """How many nodes the server knows to be there."""
        with control(self.layout) as client:
            return sum(node.status == "online" for node in client.ListNodes(ListNodesRequest()).nodes_info)

    def complete(
        self,
        output: Path,
        hear: Callable[[str], None],
        there: Callable[[int], None] = lambda nodes: None,
        rounds: Callable[[Sequence[dict[str, Any]]], None] = lambda records: None,
    ) -> None:
        """Runs what the app runs until its directory is finished: what ends is started again, and the run gone on with.

        hear: is told what went wrong; there: how many nodes the server knows, whenever that changes before the first
        round is over; rounds: the records of all rounds that are over, whenever there are more of them.
        Raises TrainingError where it ends again and again.
        """
        told: Sequence[dict[str, Any]] = ()
        nodes = 0
        for _ in range(TRIES):
            run, answered = self.submit(output=str(output)), time.monotonic()
            while True:
                for name in self.tend():
                    hear(f"{name} had ended and was started again: {self.logs / f'{name}.log'} says why")
                try:
                    status, ended = self.status(run)
                    if not told and (count := self.online()) != nodes:
                        there(nodes := count)
                    answered = time.monotonic()
                except Exception as error:  # the server is being started again
                    if time.monotonic() - answered > 60:
                        raise FedPGPError(f"the server does not answer: {error}") from error
                    status = ""
                found = finished_rounds(output)
                if len(found) > len(told):
                    rounds(found)
                    told = found
                if status == "finished":
                    break
                time.sleep(POLL)
            if (output / "results.json").exists():
                return
            hear(f"the run ended ({ended}) before it was finished: it is gone on with")
        raise TrainingError(f"the run ended {TRIES} times before it was finished: {self.logs / 'server.log'} says why")


def finished_rounds(output: Path) -> list[dict[str, Any]]:
    """The records of the rounds that a run has finished so far; of a line that is being written, nothing."""
    try:
        content = (output / RECORDS).read_bytes()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in content.splitlines(keepends=True) if line.endswith(b"\n")]


@contextmanager
def local_federation(layout: FederationLayout, nodes: int, cache: str | None = None) -> Iterator[LocalFederation]:
    """The server and the nodes of a federation, started; what they print is in logs/ of its directory.

    cache: directory of image features; None takes the user's.
    """
    logs = layout.directory / "logs"
    logs.mkdir(exist_ok=True)
    with ExitStack() as stack:
        local = LocalFederation(layout, stack, logs, cache)
        local.start_server()
        for client in range(nodes):
            local.start_node(client)
        try:
            yield local
        finally:
            for process in local.processes.values():
                process.terminate()  # all at once: each is waited for as the block ends


def free_ports(count: int) -> list[int]:
    """So many ports of the loopback address that nobody listens on, one after the other where that is possible."""
    with ExitStack() as stack:
        ports = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
        return ports
