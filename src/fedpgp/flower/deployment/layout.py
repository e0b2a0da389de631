"""The directory of a federation: the files that each machine needs, and the files that start it."""

import ipaddress
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError, OutputError
from fedpgp.flower.deployment.app_policy import EXPERIMENT, NAME, PYPROJECT, own_code
from fedpgp.flower.deployment.credentials import write_authority, write_node_key, write_server
from fedpgp.flower.deployment.wheel import write_wheel
from fedpgp.runtime.files import OWNER_ALONE, make_directory, new_directory, write

S = TypeVar("S")

HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[?[0-9A-Fa-f:.]+\]?")

# Template -> file in the directory of a federation.
TEMPLATES = {
    "README.md": "README.md",
    "compose.yaml": "compose.yaml",
    "app-pyproject.toml": f"app/{PYPROJECT}",
    "flwr-config.toml": "flwr/config.toml",
    "gate.toml": "server/gate.toml",
    "nginx.conf": "server/nginx.conf",
    "fedpgp-server.service": "systemd/fedpgp-server.service",
    "fedpgp-node.service": "systemd/fedpgp-node.service",
}
IMAGE = ("Dockerfile", "as-owner", "constraints.txt", "healthy", "keep")  # templates in its directory image/


@dataclass(frozen=True)
class FederationPlan:
    """Plan of a federation, from which `create` writes its directory.

    Attributes
    ----------
    name
        Name of the federation.
    host, port
        Address at which nodes reach the server.
    superlink_port
        Port on the server's loopback address at which the operator reaches the SuperLink.
    nodes
        Number of nodes.
    config
        The experiment.
    method, seed
        Method and seed that `flwr run` runs.
    insecure
        Whether to do without TLS, keys and a gate. Nodes and the operator then reach the SuperLink at host and port,
        which must be on the loopback address.
    plugins
        Installed methods that all nodes enable. Otherwise the owners of the nodes enable them.
    monitor_port
        Port on the server's loopback address for its health and metrics; 0 means none.
    """

    name: str
    host: str
    port: int
    superlink_port: int
    nodes: int
    config: ExperimentConfig
    method: str
    seed: int
    insecure: bool = False
    plugins: str = ""
    monitor_port: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError if the name, the host or a port is not allowed."""
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
        """Address at which nodes reach the server."""
        return f"{self.host}:{self.port}"

    @property
    def superlink(self) -> str:
        """Address at which the operator reaches the SuperLink."""
        return self.address if self.insecure else f"127.0.0.1:{self.superlink_port}"


class Connection(NamedTuple):
    """How the operator reaches a SuperLink: its name, its address, and whether it is without TLS."""

    name: str
    address: str
    insecure: bool


class GateSettings(NamedTuple):
    """Settings of the server.

    Attributes
    ----------
    host
        Name in the server's certificate.
    listen
        Address and port on which the gate listens.
    address
        Address and port at which nodes reach the gate, or a reverse proxy in front of it.
    monitor
        Loopback address and port for health and metrics; "" means none.
    """

    host: str
    listen: str
    address: str
    monitor: str


class AppSettings(NamedTuple):
    """Name of a federation's app, and what `flwr run` runs unless --run-config changes it."""

    name: str
    method: str
    seed: int
    output: str


class FederationLayout:
    """Paths in the directory of a federation. `flwr` is FLWR_HOME of the server and of calls of `flwr`."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.app, self.server, self.flwr = directory / "app", directory / "server", directory / "flwr"
        self.nodes, self.runs, self.logs = directory / "nodes", directory / "runs", directory / "logs"
        self.image = directory / "image"

    def node(self, client: int) -> Path:
        """Return the directory of a client's node."""
        return self.nodes / f"node-{client}"

    @property
    def connection(self) -> Connection:
        """How to reach the SuperLink; raises OutputError if this is not the directory of a federation."""

        def connection(content: dict[str, Any]) -> Connection:
            servers = content["superlink"]
            name = servers["default"]
            return Connection(name, servers[name]["address"], bool(servers[name].get("insecure")))

        return self._read(self.flwr / "config.toml", connection)

    @property
    def gate(self) -> GateSettings:
        """Settings of the gate; raises OutputError if this is not the directory of a federation."""

        def gate(content: dict[str, Any]) -> GateSettings:
            host, listen = content["host"], content["listen"]
            address = f"{host}:{content.get('port', host_and_port(listen)[1])}"
            return GateSettings(host, listen, address, content.get("monitor", ""))

        return self._read(self.server / "gate.toml", gate)

    @property
    def app_settings(self) -> AppSettings:
        """Settings of the app; raises OutputError if this is not the directory of a federation."""

        def app(content: dict[str, Any]) -> AppSettings:
            config = content["tool"]["flwr"]["app"]["config"]
            method, seed, output = str(config["method"]), int(config["seed"]), str(config["output"])
            return AppSettings(str(content["project"]["name"]), method, seed, output)

        return self._read(self.app / PYPROJECT, app)

    def _read(self, file: Path, settings: Callable[[dict[str, Any]], S]) -> S:
        try:
            return settings(tomllib.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"this is not the directory of a federation: {file} cannot be read ({cause(error)})",
                where=str(self.directory),
                remedy="Use a directory that fedpgp federate init wrote",
            ) from error


def cause(error: Exception) -> str:
    """Return the cause of an error without the file's name, which the message has already."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


@contextmanager
def accessible(directory: Path) -> Iterator[None]:
    """Raise OutputError if a file of a federation's directory cannot be read or written in the block."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"the file or directory cannot be used: {cause(error)}",
            where=str(error.filename or directory),
            remedy="Choose another directory, or change the owner or the permissions of this one",
        ) from error


def host_and_port(address: str) -> tuple[str, int]:
    """Return the host and the port of an address; an IPv6 address without brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Return whether a host is localhost or a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_address(host: str) -> bool:
    """Return whether a host is an IP address, not a name."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def check_insecure(address: str) -> None:
    """Raise ConfigError if others could read what is sent to an address without TLS."""
    if not is_loopback(host_and_port(address)[0]):
        raise ConfigError(
            where="the address with --insecure",
            allowed="a loopback address, because others could read and change the prompts on the way to another one",
            got=address,
            remedy="Leave out --insecure; fedpgp federate init then writes certificates",
        )


def create(directory: Path, plan: FederationPlan, force: bool = False) -> FederationLayout:
    """Write the directory of a federation, completely or not at all. Only the owner can read the keys.

    Parameters
    ----------
    directory
        Directory to write.
    plan
        Plan of the federation.
    force
        Whether to replace an existing directory of a federation.

    Raises
    ------
    OutputError
        If the directory exists and may not be replaced.
    """
    if directory.exists():
        if not force:
            raise OutputError(
                "the directory exists",
                where=str(directory),
                remedy="Choose another directory, or replace this one and its keys with --force",
            )
        FederationLayout(directory).connection  # noqa: B018 raises an error if this is not a federation's directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    layout = FederationLayout(directory.absolute())
    loopback, port = is_loopback(plan.host), plan.port
    insecurely = {"insecurely": ", --insecure" if plan.insecure else ""}
    values = {
        **vars(plan),
        "address": plan.address,
        "superlink": plan.superlink,
        "listen": f"{'127.0.0.1' if loopback else '0.0.0.0'}:{port}",
        "health": f"http://127.0.0.1:{plan.monitor_port}/health" if plan.monitor_port else port,
        "publish": f"127.0.0.1:{port}" if loopback else port,
        "directory": layout.directory,
        "home": layout.flwr,
        "security": "insecure = true" if plan.insecure else f'root-certificates = "{layout.server / "ca.crt"}"',
        "output": f"{layout.runs.name}/{plan.name}",
        "monitor": f"127.0.0.1:{plan.monitor_port}" if plan.monitor_port else "",
        "executable": Path(sys.executable).with_name("fedpgp"),
        "alias": "localhost" if is_address(plan.host) else plan.host,
        **insecurely,
        "services": "".join(
            filled("compose-node.yaml", {**insecurely, "client": client}) for client in range(plan.nodes)
        ),
    }
    experiment = plan.config.to_toml().encode()
    with new_directory(layout.directory) as scratch:
        made, authority = FederationLayout(scratch), scratch / "authority"
        files = {path: filled(template, values).encode() for template, path in TEMPLATES.items()}
        files |= {f"app/{path}": content for path, content in {**own_code(), EXPERIMENT: experiment}.items()}
        inside = {**values, "home": "/federation/flwr", "listen": f"0.0.0.0:{port}"}  # as compose.yaml mounts the files
        if not plan.insecure:
            inside |= {"security": 'root-certificates = "/federation/server/ca.crt"'}
        files |= {"compose/config.toml": filled("flwr-config.toml", inside).encode()}
        files |= {"compose/gate.toml": filled("gate.toml", inside).encode()}
        for client in range(plan.nodes):
            for name, content in node_files({**values, "client": client}, experiment).items():
                files[f"nodes/node-{client}/{name}"] = content
        for path, content in files.items():
            make_directory((scratch / path).parent, OWNER_ALONE)
            write(scratch / path, content)
        make_directory(made.image, OWNER_ALONE)
        write_image(made.image)
        for place in (authority, made.server, made.runs):
            make_directory(place, OWNER_ALONE)
        write_authority(authority)
        for place in (made.server, *map(made.node, range(plan.nodes))):
            shutil.copy(authority / "ca.crt", place)
        write_server(made.server, authority, plan.host.strip("[]"))
        for client in range(plan.nodes):
            write_node_key(made.node(client) / "key", made.server / f"node-{client}.pub")
    return layout


def node_files(values: Mapping[str, Any], experiment: bytes) -> dict[str, bytes]:
    """Return the files of a node, without its key and the authority's certificate.

    Parameters
    ----------
    values
        Values of the templates.
    experiment
        File with the experiment.
    """
    return {
        "node.toml": filled("node.toml", values).encode(),
        "compose.yaml": filled("node-compose.yaml", values).encode(),
        "experiment.toml": experiment,
    }


def write_image(directory: Path) -> None:
    """Write the files from which containers install this fedpgp, and remove the wheel of another version."""
    for wheel in directory.glob("fedpgp-*.whl"):
        wheel.unlink()
    digest = write_wheel(directory)
    for name in IMAGE:
        write(directory / name, filled(name, {"wheel": digest}).encode())


def renew(layout: FederationLayout, authority: Path) -> None:
    """Write a new certificate and key of the server, for the same address, signed by the federation's authority.

    Parameters
    ----------
    layout
        The federation.
    authority
        Directory of the authority.

    Raises
    ------
    OutputError
        If this is not the directory of a federation, or the nodes trust another authority.
    """
    write_server(layout.server, authority, layout.gate.host.strip("[]"))


def filled(template: str, values: Mapping[str, Any]) -> str:
    """Return the text of a file that is made from a template."""
    text = (resources.files("fedpgp.flower.deployment") / "templates" / template).read_text(encoding="utf-8")
    return text.format(**values)
