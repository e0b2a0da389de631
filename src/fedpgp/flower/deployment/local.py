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
from fedpgp.flower.deployment.processes import SCRIPTS, environment, started
from fedpgp.flower.deployment.superlink import PATIENCE, control, server
from fedpgp.results.run_store import RECORDS

POLL = 1.0
TRIES = 5  # of one run, whose server app may be killed


@dataclass
class LocalFederation:
    """Processes by their names, "server" and "node-0" and so on; those that end are started again by `tend`."""

    layout: FederationLayout
    stack: ExitStack
    cache: str | None = None
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
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
        """Starts again what has ended, as a service manager does; their names."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        for name in ended:
            self.start(name)
        return ended

    def submit(self, output: Path) -> int:
        """`flwr run` into a run directory; the run's id at the server."""
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
        """Of a run, as `flwr ls` has it: such as "finished" and "completed"."""
        with control(self.layout) as client:
            (listed,) = client.ListRuns(ListRunsRequest(run_id=run)).run_dict.values()
            return listed.status.status, listed.status.sub_status

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
                except Exception as error:  # the server is being started again
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
    layout.logs.mkdir(exist_ok=True)
    with ExitStack() as stack:
        federation = LocalFederation(layout, stack, cache)
        for name in ("server", *(layout.node(client).name for client in range(nodes))):
            federation.start(name)
        try:
            yield federation
        finally:
            for process in federation.processes.values():
                process.terminate()  # all at once: each is waited for as the block ends


def free_ports(count: int) -> list[int]:
    """So many ports of the loopback address that nobody listens on, one after the other where that is possible."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]
