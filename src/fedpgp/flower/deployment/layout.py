"""The directory of a federation: what each machine is to have, and what starts it."""

import ipaddress
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError, OutputError
from fedpgp.flower.deployment.app_policy import EXPERIMENT, NAME, PYPROJECT, own_code
from fedpgp.flower.deployment.credentials import write_authority, write_node_key, write_server
from fedpgp.runtime.files import OWNER_ALONE, make_directory, new_directory, write

S = TypeVar("S")

NODE_PORT = 9094  # Flower's own
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[?[0-9A-Fa-f:.]+\]?")

# Template -> what is made of it in the directory of a federation.
TEMPLATES = {
    "README.md": "README.md",
    "Dockerfile": "Dockerfile",
    "compose.yaml": "compose.yaml",
    "app-pyproject.toml": f"app/{PYPROJECT}",
    "flwr-config.toml": "flwr/config.toml",
    "gate.toml": "server/gate.toml",
    "nginx.conf": "server/nginx.conf",
    "fedpgp-server.service": "systemd/fedpgp-server.service",
    "fedpgp-node.service": "systemd/fedpgp-node.service",
}


@dataclass(frozen=True)
class FederationPlan:
    """name: of the federation; host, port: where nodes reach the server; method, seed: what `flwr run` runs.

    superlink_port: of the server's loopback address, where the operator reaches the SuperLink. node_ports: of each node
    on its own loopback address, for its own processes; none takes NODE_PORT and those after it, so that several nodes
    can be on one machine. insecure: without TLS, keys and a gate, so that nodes and operator reach the SuperLink at
    host and port, on the loopback address alone. plugins: what all nodes enable, which otherwise their owners do.
    """

    name: str
    host: str
    port: int
    superlink_port: int
    nodes: int
    config: ExperimentConfig
    method: str
    seed: int
    node_ports: Sequence[int] = ()
    insecure: bool = False
    plugins: str = ""

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be written."""
        if not NAME.fullmatch(self.name):
            allowed = "a letter, then up to 39 letters, digits and hyphens, all in lower case"
            raise ConfigError(where="--name", allowed=allowed, got=self.name, remedy="Use a name such as --name ours")
        if not HOST.fullmatch(self.host):
            raise ConfigError(
                where="--host",
                allowed="a host name or an IP address without a port",
                got=self.host,
                remedy="Use a name such as --host server.example.org, and --port for the port",
            )
        if self.insecure:
            check_insecure(self.address)
        elif self.port == self.superlink_port:
            raise ConfigError(
                where="--superlink-port",
                allowed="different from --port",
                got=self.superlink_port,
                remedy="Choose two ports: nodes connect to --port, and the operator to --superlink-port",
            )

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def superlink(self) -> str:
        return self.address if self.insecure else f"127.0.0.1:{self.superlink_port}"


class Connection(NamedTuple):
    """How the operator reaches a SuperLink: its name and address; insecure: without TLS."""

    name: str
    address: str
    insecure: bool


class GateSettings(NamedTuple):
    """host: the name in the server's certificate; listen: address and port on which the gate listens."""

    host: str
    listen: str


class FederationLayout:
    """Where the parts of a federation's directory are. flwr: FLWR_HOME of the server and of those who call `flwr`."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.app, self.server, self.flwr = directory / "app", directory / "server", directory / "flwr"
        self.nodes, self.runs, self.logs = directory / "nodes", directory / "runs", directory / "logs"

    def node(self, client: int) -> Path:
        return self.nodes / f"node-{client}"

    @property
    def connection(self) -> Connection:
        """How the SuperLink is reached; raises OutputError where the directory is none of ours."""

        def connection(content: dict[str, Any]) -> Connection:
            servers = content["superlink"]
            name = servers["default"]
            return Connection(name, servers[name]["address"], bool(servers[name].get("insecure")))

        return self._read(self.flwr / "config.toml", connection)

    @property
    def gate(self) -> GateSettings:
        """How nodes reach the server; raises OutputError where the directory is none of ours."""
        return self._read(self.server / "gate.toml", lambda content: GateSettings(content["host"], content["listen"]))

    def _read(self, file: Path, settings: Callable[[dict[str, Any]], S]) -> S:
        try:
            return settings(tomllib.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"this is not the directory of a federation: {file} cannot be read ({error})",
                where=str(self.directory),
                remedy="Use a directory that fedpgp federate init wrote",
            ) from error


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of an address; of IPv6 without the brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_insecure(address: str) -> None:
    """Raises ConfigError where what goes to an address without TLS could be read by others."""
    if not is_loopback(host_and_port(address)[0]):
        raise ConfigError(
            where="the address with --insecure",
            allowed="a loopback address, because others could read and change the prompts on the way to another one",
            got=address,
            remedy="Leave out --insecure; fedpgp federate init then writes certificates",
        )


def create(directory: Path, plan: FederationPlan, force: bool = False) -> FederationLayout:
    """Writes the directory of a federation, whole or not at all; keys are readable by their owner alone.

    Raises OutputError where something is there already, unless it is a federation's and `force` replaces it.
    """
    if directory.exists():
        if not force:
            raise OutputError(
                "the directory exists",
                where=str(directory),
                remedy="Choose another directory, or replace this one and its keys with --force",
            )
        FederationLayout(directory).connection  # noqa: B018 or it is not ours to replace
    directory.parent.mkdir(parents=True, exist_ok=True)
    layout = FederationLayout(directory.absolute())
    values = {
        **vars(plan),
        "address": plan.address,
        "superlink": plan.superlink,
        "listen": f"{'127.0.0.1' if is_loopback(plan.host) else '0.0.0.0'}:{plan.port}",
        "directory": layout.directory,
        "home": layout.flwr,
        "security": "insecure = true" if plan.insecure else f'root-certificates = "{layout.server / "ca.crt"}"',
        "output": f"{layout.runs.name}/{plan.name}",
        "executable": Path(sys.executable).with_name("fedpgp"),
        "services": "".join(_filled("compose-node.yaml", {"client": client}) for client in range(plan.nodes)),
    }
    experiment = plan.config.to_toml().encode()
    with new_directory(layout.directory) as scratch:
        made, authority = FederationLayout(scratch), scratch / "authority"
        files = {path: _filled(template, values).encode() for template, path in TEMPLATES.items()}
        files |= {f"app/{path}": content for path, content in {**own_code(), EXPERIMENT: experiment}.items()}
        inside = 'root-certificates = "/federation/server/ca.crt"'  # what compose.yaml mounts
        inside = _filled("flwr-config.toml", {**values, "home": "/federation/compose", "security": inside})
        files |= {"compose/config.toml": inside.encode()}
        for client in range(plan.nodes):
            port = plan.node_ports[client] if plan.node_ports else NODE_PORT + client
            settings = _filled("node.toml", {**values, "client": client, "port": port})
            files |= {f"nodes/node-{client}/node.toml": settings.encode()}
            files |= {f"nodes/node-{client}/experiment.toml": experiment}
        for path, content in files.items():
            make_directory((scratch / path).parent, OWNER_ALONE)
            write(scratch / path, content)
        for place in (authority, made.server, made.runs):
            make_directory(place, OWNER_ALONE)
        write_authority(authority)
        for place in (made.server, *map(made.node, range(plan.nodes))):
            shutil.copy(authority / "ca.crt", place)
        write_server(made.server, authority, plan.host.strip("[]"))
        for client in range(plan.nodes):
            write_node_key(made.node(client) / "key", made.server / f"node-{client}.pub")
    return layout


def renew(layout: FederationLayout, authority: Path) -> None:
    """A new certificate and key of the server, for the address that it had, signed by its own authority.

    Raises OutputError where the directory is no federation's, or holds another authority than its nodes trust.
    """
    write_server(layout.server, authority, layout.gate.host.strip("[]"))


def _filled(template: str, values: Mapping[str, Any]) -> str:
    text = (resources.files("fedpgp.flower.deployment") / "templates" / template).read_text(encoding="utf-8")
    return text.format(**values)
