"""Attack the server of a federation without a key, from the address of another machine, and measure the gate's cost.

    python tools/attack_gate.py measure -o gate.json     # as root, ten nodes: about 15 minutes on two cores

`measure` builds a federation with the documented commands in its own network namespaces: a server, ten nodes and an
attacker. It reports the answer to each attack, the memory of the server while it received bodies without a key, the
rounds that lost a client during half requests and bare connections, and the time of rounds with and without the gate.
`actions`, `bodies` and `connections` are single attacks on an address of these namespaces or on the loopback address.
"""

import argparse
import contextlib
import hashlib
import ipaddress
import json
import os
import random
import re
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fedpgp.flower.deployment.credentials import write_node_key
from fedpgp.flower.deployment.layout import FederationLayout, host_and_port
from fedpgp.flower.deployment.local import finished_rounds
from fedpgp.flower.deployment.processes import SCRIPTS, environment, started
from fedpgp.runtime.files import write_json
from flwr.cli.build import build_fab_from_disk
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

NETWORK = "10.77.0.0/24"  # addresses of the namespaces; no other address is attacked
PORT, SUPERLINK_PORT = 8000, 9092
ROUTE = "/v1/fleet/push-object"
HEARTBEAT = 24.0  # seconds between two heartbeats
MIB = 1 << 20
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1"}

Keys = tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]

# ------------------------------------------------------------------------------------------------------------- attacks


def actions(address: str, authority: Path | None) -> dict[str, int | str]:
    """Return the answer to each request without a key of the federation: a status, or the error of the connection.

    `authority` is the certificate authority of the server; None for a server without TLS.
    """
    certificate = None if authority is None else authority.read_bytes()
    own = generate_key_pairs()
    key = public_key_to_bytes(own[1])
    control = ControlHttpClient.from_server_address(address, authority is None, certificate, ())
    fleet = fleet_client(address, certificate, own)
    url = f"{'http' if authority is None else 'https'}://{address}"
    with control, fleet, httpx.Client(base_url=url, verify=context(authority), timeout=10) as plain:
        calls: dict[str, Callable[[], object]] = {
            "list-runs": lambda: control.ListRuns(ListRunsRequest()),
            "list-nodes": lambda: control.ListNodes(ListNodesRequest()),
            "start-run": lambda: control.StartRun(StartRunRequest(fab=foreign_app())),
            "register-node": lambda: control.RegisterNode(RegisterNodeRequest(public_key=key, name="attacker")),
            "register-node of the fleet": lambda: fleet.RegisterNode(RegisterNodeFleetRequest(public_key=key)),
            "activate-node": lambda: fleet.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=30)),
            "stop-run": lambda: control.StopRun(StopRunRequest(run_id=1)),
            "unregister-node": lambda: control.UnregisterNode(UnregisterNodeRequest(node_id=1)),
        }
        found = {name: outcome(call) for name, call in calls.items()}
        task = AcquireTaskRequest(supported_task_types=["serverapp", "clientapp"]).SerializeToString()
        kind = {"content-type": "application/protobuf", "accept": "application/protobuf"}
        acquired = Counter(
            plain.post("/v1/runtime/acquire-task", content=task, headers=kind).status_code for _ in range(50)
        )
        found["acquire-task, 50 times"] = " ".join(f"{count} × {status}" for status, count in acquired.items())
        for path in ("/docs", "/openapi.json"):
            found[path] = plain.get(path).status_code
        return found


def foreign_app() -> Fab:
    """Build a Flower app that does nothing and is not part of fedpgp."""
    module = "from flwr.{0} import {1}\n\napp = {1}()\n"
    files = {
        "pyproject.toml": FOREIGN_PROJECT,
        "foreign/__init__.py": "",
        "foreign/server_app.py": module.format("serverapp", "ServerApp") + "app.main()(lambda grid, context: None)\n",
        "foreign/client_app.py": module.format("clientapp", "ClientApp"),
    }
    with tempfile.TemporaryDirectory() as place:
        for name, text in files.items():
            file = Path(place) / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        content = build_fab_from_disk(Path(place))
    return Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)


FOREIGN_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "foreign"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "attacker"

[tool.flwr.app.components]
serverapp = "foreign.server_app:app"
clientapp = "foreign.client_app:app"
"""


def outcome(call: Callable[[], object]) -> int | str:
    try:
        call()
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    except httpx.HTTPError as error:
        return type(error).__name__
    return 200


def bodies(address: str, authority: Path, count: int, size: int) -> list[dict[str, int]]:
    """Send bodies without a key at the same time; return the answers and the numbers of sent bytes."""
    found: list[dict[str, int]] = []

    def send() -> None:
        sent = 0
        with connection(address, authority) as opened:
            head = f"POST {ROUTE} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {size}\r\n\r\n"
            with contextlib.suppress(OSError):
                opened.sendall(head.encode())
                while sent < size:
                    opened.sendall(bytes(min(1 << 16, size - sent)))
                    sent += 1 << 16
            text = b""
            with contextlib.suppress(OSError):
                text = opened.recv(64)
        found.append({"status": int(text.split()[1]) if text else 0, "sent": sent})

    threads = [threading.Thread(target=send) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def connections(address: str, authority: Path, half: int, bare: int, seconds: float) -> dict[str, int]:
    """Keep half requests and bare connections open for some seconds; reopen connections that the server closes."""
    opened: list[socket.socket | None] = [None] * (half + bare)
    end, count, failed = time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        for place, one in enumerate(opened):
            if one is not None and not ended(one):
                continue
            if one is not None:
                one.close()
            try:
                if place < half:
                    opened[place] = connection(address, authority)
                    opened[place].sendall(f"POST {ROUTE} HTTP/1.1\r\nhost: {address}\r\n".encode())  # type: ignore[union-attr]
                else:
                    opened[place] = socket.create_connection(host_and_port(address), timeout=5)
                count += 1
            except OSError:
                opened[place], failed = None, failed + 1
        time.sleep(0.2)
    held = sum(one is not None and not ended(one) for one in opened)
    for one in opened:
        if one is not None:
            one.close()
    return {"opened": count, "failed": failed, "open at the end": held}


def ended(one: socket.socket) -> bool:
    """Return whether the other side has closed a connection."""
    one.setblocking(False)
    try:
        return one.recv(1) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True


def context(authority: Path | None) -> ssl.SSLContext | bool:
    return False if authority is None else ssl.create_default_context(cafile=str(authority))


def connection(address: str, authority: Path) -> ssl.SSLSocket:
    host, port = host_and_port(address)
    plain = socket.create_connection((host, port), timeout=20)
    try:
        secure = ssl.create_default_context(cafile=str(authority))
        return secure.wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise


def fleet_client(address: str, certificate: bytes | None, keys: Keys) -> FleetHttpClient:
    return FleetHttpClient.from_server_address(
        address, certificate is None, certificate, [NodeAuthHttpInterceptor(*keys)]
    )


def keys_of(file: Path) -> Keys:
    secret = serialization.load_ssh_private_key(file.read_bytes(), None)
    assert isinstance(secret, ec.EllipticCurvePrivateKey)
    return secret, secret.public_key()


def of_another(address: str, authority: Path, key: Path, node_id: int) -> int | str:
    """Return the answers to a valid key of a node that asks for messages of another node."""
    with fleet_client(address, authority.read_bytes(), keys_of(key)) as client:
        return outcome(lambda: client.PullMessages(PullMessagesRequest(node=Node(node_id=node_id))))


def heartbeats(address: str, authority: Path, directory: Path) -> dict[int | str, int]:
    """Send a signed heartbeat for each key of a directory every 24 s, like a SuperNode, until standard input ends.

    Returns the number of answers by status.
    """
    statuses: Counter[int | str] = Counter()
    over = threading.Event()

    def beat(key: Path, delay: float) -> None:
        request = SendNodeHeartbeatRequest(node=Node(node_id=1), heartbeat_interval=30)
        with fleet_client(address, authority.read_bytes(), keys_of(key)) as client:
            while not over.wait(delay):
                statuses[outcome(lambda: client.SendNodeHeartbeat(request))] += 1
                delay = HEARTBEAT

    rng = random.Random(0)
    threads = [
        threading.Thread(target=beat, args=(key, HEARTBEAT * rng.random())) for key in sorted(directory.glob("*.key"))
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    return dict(statuses)


# ---------------------------------------------------------------------------------------------------------- namespaces


class Machines:
    """Network namespaces on one bridge: the server is 10.77.0.1, and the others have the following addresses."""

    def __init__(self, names: Sequence[str]):
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
        self._prefix = f"gate{os.getpid()}"

    def __enter__(self) -> "Machines":
        server = next(iter(self.addresses))
        for number, (name, address) in enumerate(self.addresses.items(), 1):
            space = self.space(name)
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
            if name == server:
                _ip("-n", space, "link", "add", "bridge", "type", "bridge")
                _ip("-n", space, "addr", "add", f"{address}/24", "dev", "bridge")
                _ip("-n", space, "link", "set", "bridge", "up")
                continue
            peer = f"to{number}"
            _ip("-n", space, "link", "add", "net", "type", "veth", "peer", "name", peer, "netns", self.space(server))
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "net")
            _ip("-n", space, "link", "set", "net", "up")
            _ip("-n", self.space(server), "link", "set", peer, "master", "bridge", "up")
        return self

    def __exit__(self, *exception: object) -> None:
        for name in self.addresses:
            subprocess.run(["ip", "netns", "del", self.space(name)], capture_output=True, check=False)

    def space(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def on(self, name: str, *command: str) -> list[str]:
        """Return a command that runs on a machine."""
        return ["ip", "netns", "exec", self.space(name), *command]

    def attack(self, name: str, layout: FederationLayout, *arguments: str) -> Any:
        """Run an attack of this tool on a machine, without a key, against the public address; return its findings."""
        target = [f"{self.addresses['server']}:{PORT}", "--authority", str(layout.server / "ca.crt")]
        command = self.on(name, sys.executable, __file__, arguments[0], *target, *arguments[1:])
        done = subprocess.run(command, env={**os.environ, **QUIET}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Federation:
    """Federation with the documented commands, with each process on its machine."""

    def __init__(self, directory: Path, machines: Machines, nodes: int, cache: Path | None, settings: Sequence[str]):
        self.machines, self.nodes = machines, nodes
        self._cache = [] if cache is None else ["--cache-dir", str(cache)]
        host = machines.addresses["server"]
        command = [str(SCRIPTS / "fedpgp"), "federate", "init", str(directory), "--nodes", str(nodes), "--host", host]
        command += ["--name", "ours", *(word for setting in settings for word in ("--set", setting))]
        subprocess.run(command, check=True, capture_output=True)
        self.layout = FederationLayout(directory)
        self.layout.logs.mkdir()
        self.server: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Federation":
        self.server = self._start("server", "fedpgp", "federate", "server", str(self.layout.directory))
        until(lambda: "the server listens" in self.log("server"), 90, "the server listens")
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def log(self, name: str) -> str:
        return (self.layout.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def start_nodes(self, seconds: float = 180) -> None:
        for client in range(self.nodes):
            name = f"node-{client}"
            self._start(name, "fedpgp", "federate", "node", str(self.layout.nodes / name), *self._cache)
        until(lambda: all("SuperNode ID" in self.log(f"node-{c}") for c in range(self.nodes)), seconds, "nodes connect")

    def flwr(self, *arguments: str) -> str:
        command = self.machines.on("server", str(SCRIPTS / "flwr"), *arguments)
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def run(self) -> Path:
        return self.layout.runs / "ours"

    def rounds(self) -> list[dict[str, Any]]:
        return finished_rounds(self.run)

    def finish(self, seconds: float) -> None:
        until((self.run / "results.json").exists, seconds, "the run is finished")

    def memory(self) -> int:
        """Return the memory of the gate and the SuperLink in bytes, without the processes of a run."""
        assert self.server is not None
        children = Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children").read_text().split()
        return sum(_resident(process) for process in (self.server.pid, *map(int, children)))

    def tool(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start this tool as a process on a machine; it ends with its standard input or with the federation."""
        command, pipe = self.machines.on(name, sys.executable, __file__, *arguments), subprocess.PIPE
        process = subprocess.Popen(command, env=self._environment(), stdin=pipe, stdout=pipe)
        self._stack.callback(process.kill)
        return process

    def _environment(self) -> dict[str, str]:
        return environment(self.layout.flwr, **QUIET)

    def _start(self, name: str, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = self.machines.on(name, str(SCRIPTS / program), *arguments)
        log = self.layout.logs / f"{name}.log"
        return self._stack.enter_context(started(command, self._environment(), log))


def _resident(process: int) -> int:
    text = Path(f"/proc/{process}/status").read_text()
    (kib,) = re.findall(r"VmRSS:\s+(\d+) kB", text)
    return int(kib) * 1024


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: this did not happen within {seconds:g} s")
        time.sleep(0.1)


@contextlib.contextmanager
def highest(measure: Callable[[], int]) -> Iterator[list[int]]:
    """Yield the first and the highest value of a measure in the block."""
    values = [measure()] * 2
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            values[1] = max(values[1], measure())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield values
    finally:
        over.set()
        thread.join()


# ------------------------------------------------------------------------------------------------------------- figures


def relay(host: str, port: int) -> None:
    """Forward connections to the port of the loopback address that standard input named last, until it ends.

    A new port closes all connections. The gate and the SuperLink have the same certificate, so a node that connects to
    the relay does not notice which of them answers.
    """
    target, pairs = PORT, set[socket.socket]()
    listener = socket.create_server((host, port), backlog=512)

    def switch() -> None:
        nonlocal target
        for line in sys.stdin:
            target = int(line)
            for one in list(pairs):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        os._exit(0)

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        source.close()
        pairs.discard(source)

    threading.Thread(target=switch, daemon=True).start()
    while True:
        near, _ = listener.accept()
        far = socket.create_connection(("127.0.0.1", target))
        pairs.update((near, far))
        for pair in ((near, far), (far, near)):
            threading.Thread(target=copy, args=pair, daemon=True).start()


def settings_of(rounds: int) -> list[str]:
    """Return settings of a run whose rounds are timed: little training, and evaluation only after the last round."""
    settings = [f"federation.rounds={rounds}", f"federation.eval_every={rounds}", "task.shots=4"]
    return [*settings, "federation.path_points=1", "federation.deadline=120"]


def measure_attacks(place: Path, nodes: int, cache: Path | None, rounds: int) -> dict[str, Any]:
    """Measure the answers to the attacks, and their cost, while nodes train."""
    names = ["server", *(f"node-{client}" for client in range(nodes)), "attacker"]
    with (
        Machines(names) as machines,
        Federation(place / "federation", machines, nodes, cache, settings_of(rounds)) as federation,
    ):
        federation.start_nodes()
        federation.flwr("run", str(federation.layout.app), "ours")
        until(lambda: len(federation.rounds()) >= 1, 300, "the first round")

        def attack(*arguments: str) -> dict[str, Any]:
            before = len(federation.rounds())
            with highest(federation.memory) as memory:
                got = machines.attack("attacker", federation.layout, *arguments)
            until(lambda: len(federation.rounds()) > before, 300, "another round")
            mib = [round(value / MIB, 1) for value in memory]
            return {"got": got, "memory before": mib[0], "highest": mib[1], "rounds before": before}

        found = {"without a key": attack("actions")}
        found["20 bodies of 100 MB"] = attack("bodies", "--count", "20", "--size", str(100_000_000))
        flood = ("--half", "600", "--bare", "1100", "--seconds", "40")
        found["600 half requests, 1,100 bare connections"] = attack("connections", *flood)
        federation.finish(60.0 * rounds)
        records = federation.rounds()
        dropped = [one for record in records for one in record.get("dropped", ())]
        seconds = [round(record["seconds_training"], 1) for record in records]
        return found | {"rounds": len(records), "dropped": dropped, "seconds of rounds": seconds}


def measure_cost(place: Path, nodes: int, cache: Path | None, rounds: int, beats: int) -> dict[str, Any]:
    """Measure the time of rounds with and without the gate, alternating in one run.

    Ninety additional keys send heartbeats in both cases. The SuperLink does not know these keys, so it looks up and
    refuses each of them, and the run does not wait for them.
    """
    names = ["server", *(f"node-{client}" for client in range(nodes)), "beats"]
    with (
        Machines(names) as machines,
        Federation(place / "federation", machines, nodes, cache, settings_of(rounds)) as federation,
    ):
        keys = place / "keys"
        keys.mkdir()
        for number in range(beats):
            write_node_key(keys / f"{number}.key", federation.layout.server / f"beat-{number}.pub")
        for client in range(nodes):
            file = federation.layout.node(client) / "node.toml"
            file.write_text(file.read_text().replace(f":{PORT}", f":{PORT + 1}"))
        relaying = federation.tool("server", "relay")
        address = f"{machines.addresses['server']}:{PORT + 1}"
        authority = str(federation.layout.server / "ca.crt")
        federation.start_nodes(60.0 * nodes)
        beating = federation.tool("beats", "heartbeats", address, "--authority", authority, "--keys", str(keys))
        federation.flwr("run", str(federation.layout.app), "ours")
        done, through = 0, {1: "gate"}
        while not (federation.run / "results.json").exists():
            if len(federation.rounds()) > done:
                done = len(federation.rounds())
                through[done + 1], port = ("gate", PORT) if done % 2 == 0 else ("no gate", SUPERLINK_PORT)
                assert relaying.stdin is not None
                relaying.stdin.write(f"{port}\n".encode())
                relaying.stdin.flush()
            time.sleep(0.02)
        said, _ = beating.communicate(timeout=90)
        seconds: dict[str, list[float]] = {"gate": [], "no gate": []}
        for record in federation.rounds()[2:]:  # the first two rounds are a warm-up
            seconds[through[record["round"]]].append(record["seconds_training"])
        means = {name: statistics.fmean(values) for name, values in seconds.items()}
        return {
            "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
            "mean": {name: round(value, 2) for name, value in means.items()},
            "median": {name: round(statistics.median(values), 2) for name, values in seconds.items()},
            "more with the gate, %": round(100 * (means["gate"] / means["no gate"] - 1), 1),
            "heartbeats by status": json.loads(said),
            "dropped": [one for record in federation.rounds() for one in record.get("dropped", ())],
        }


# -------------------------------------------------------------------------------------------------------- command line


def allowed(address: str) -> str:
    """Return an address that this tool may attack: the loopback address, or an address of its namespaces."""
    host = ipaddress.ip_address(host_and_port(address)[0])
    if not host.is_loopback and host not in ipaddress.ip_network(NETWORK):
        raise argparse.ArgumentTypeError(f"{address} is neither a loopback address nor an address of {NETWORK}")
    return address


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("actions", "bodies", "connections", "heartbeats", "of-another"):
        command = commands.add_parser(name)
        command.add_argument("address", type=allowed)
        command.add_argument("--authority", type=Path, help="ca.crt of the server (default: no TLS)")
        for option, kind in OPTIONS.get(name, {}).items():
            command.add_argument(f"--{option}", type=kind, required=True)
    commands.add_parser("relay")
    measure = commands.add_parser("measure")
    measure.add_argument("--nodes", type=int, default=10)
    measure.add_argument("--heartbeats", type=int, default=90)
    measure.add_argument("--rounds", type=int, default=16)
    measure.add_argument("--only", choices=["attacks", "cost"])
    measure.add_argument("--cache-dir", type=Path)
    measure.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


OPTIONS: Mapping[str, Mapping[str, type]] = {
    "bodies": {"count": int, "size": int},
    "connections": {"half": int, "bare": int, "seconds": float},
    "heartbeats": {"keys": Path},
    "of-another": {"key": Path, "node": int},
}


def main() -> None:
    options = parsed()
    match options.command:
        case "actions":
            found: Any = actions(options.address, options.authority)
        case "bodies":
            found = bodies(options.address, options.authority, options.count, options.size)
        case "connections":
            found = connections(options.address, options.authority, options.half, options.bare, options.seconds)
        case "heartbeats":
            found = heartbeats(options.address, options.authority, options.keys)
        case "of-another":
            found = of_another(options.address, options.authority, options.key, options.node)
        case "relay":
            relay(next(iter(Machines(["server"]).addresses.values())), PORT + 1)
        case "measure":
            found = {}
            parts = {"attacks": measure_attacks, "cost": measure_cost}
            for part, measure in parts.items():
                if options.only in (None, part):
                    more = (options.heartbeats,) if part == "cost" else ()
                    with tempfile.TemporaryDirectory() as place:
                        arguments = (Path(place), options.nodes, options.cache_dir, options.rounds, *more)
                        found[part] = measure(*arguments)  # type: ignore[operator]
                    write_json(options.output, found)
    print(json.dumps(found, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
