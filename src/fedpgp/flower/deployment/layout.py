"""The directory of a federation: what each machine is to have, and what starts it."""

import ipaddress
import re
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fedpgp.config import ExperimentConfig
from fedpgp.errors import ConfigError, OutputError
from fedpgp.flower.deployment.credentials import write_authority, write_node_key, write_server
from fedpgp.runtime.files import OWNER_ALONE, make_directory, new_directory, write

MOST_NODES = 1000
NODE_PORT = 9094  # Flower's own
NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?|\[?[0-9A-Fa-f:.]+\]?")


@dataclass(frozen=True)
class FederationPlan:
    """name: of the federation; host, port: where nodes reach the server; method, seed: what `flwr run` runs.

    node_ports: of each node on its own loopback address, for its own processes; none takes NODE_PORT and those after
    it, so that several nodes can be on one machine; insecure: without TLS, on the loopback address alone.
    """

    name: str
    host: str
    port: int
    nodes: int
    config: ExperimentConfig
    method: str
    seed: int
    node_ports: Sequence[int] = ()
    insecure: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be written."""
        if not NAME.fullmatch(self.name):
            raise ConfigError(f"--name must be lower-case letters, digits and hyphens, such as ours, got {self.name!r}")
        if not HOST.fullmatch(self.host):
            raise ConfigError(f"--host must be a host name or an IP address without a port, got {self.host!r}")
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"--port must be 1 to 65535, got {self.port}")
        if not 1 <= self.nodes <= MOST_NODES:
            raise ConfigError(f"--nodes must be 1 to {MOST_NODES}, got {self.nodes}")
        if self.insecure:
            check_insecure(self.address)

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class FederationLayout:
    """Where the parts of a federation's directory are."""

    directory: Path

    @property
    def app(self) -> Path:
        return self.directory / "app"

    @property
    def server(self) -> Path:
        return self.directory / "server"

    @property
    def flwr(self) -> Path:
        """FLWR_HOME of whoever calls `flwr` here, and of the server."""
        return self.directory / "flwr"

    @property
    def runs(self) -> Path:
        return self.directory / "runs"

    def node(self, client: int) -> Path:
        return self.directory / "nodes" / f"node-{client}"

    @property
    def connection(self) -> tuple[str, str]:
        """Name and address of the server; raises OutputError where the directory is none of ours."""
        name, about = self._superlink
        return name, str(about["address"])

    @property
    def insecure(self) -> bool:
        """Whether it was written for connections without TLS."""
        return bool(self._superlink[1].get("insecure"))

    @property
    def _superlink(self) -> tuple[str, dict[str, Any]]:
        file = self.flwr / "config.toml"
        try:
            found = tomllib.loads(file.read_text(encoding="utf-8"))["superlink"]
            found[found["default"]]["address"]
            return found["default"], found[found["default"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(
                f"{self.directory} is no directory of fedpgp federate init: {file} cannot be read ({error})"
            ) from error


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_insecure(address: str) -> None:
    """Raises ConfigError where what goes to an address without TLS could be read by others."""
    if not is_loopback(address.rpartition(":")[0]):
        raise ConfigError(
            f"--insecure is refused for {address}, which is no loopback address: everybody on the way could read and"
            " change the prompts; leave it out, fedpgp federate init writes certificates"
        )


def create(directory: Path, plan: FederationPlan, force: bool = False) -> FederationLayout:
    """Writes the directory of a federation, whole or not at all; keys are readable by their owner alone.

    Raises OutputError where something is there already, unless it is a federation's and `force` replaces it.
    """
    if directory.exists():
        if not force:
            raise OutputError(f"{directory} exists: name another directory, or replace it and its keys with --force")
        FederationLayout(directory).connection  # noqa: B018 or it is not ours to replace
    directory.parent.mkdir(parents=True, exist_ok=True)
    at = directory.absolute()
    with new_directory(at) as scratch:
        made, final = FederationLayout(scratch), FederationLayout(at)
        values = {
            **{name: getattr(plan, name) for name in ("name", "address", "nodes", "port", "method", "seed")},
            "directory": at,
            "home": final.flwr,
            "security": "insecure = true" if plan.insecure else f'root-certificates = "{final.server / "ca.crt"}"',
            "output": f"{final.runs.name}/{plan.name}",
            "executable": Path(sys.executable).with_name("fedpgp"),
        }
        federation = made.app / "federation"
        for place in (federation, made.server, made.flwr, scratch / "authority", scratch / "systemd", made.runs):
            make_directory(place, OWNER_ALONE)
        _fill(made.app / "pyproject.toml", "app-pyproject.toml", values)
        write(federation / "__init__.py", b"")
        for module in ("server_app.py", "client_app.py"):
            _fill(federation / module, module, {})
        write(federation / "experiment.toml", plan.config.to_toml().encode())
        write_authority(scratch / "authority" / "ca.crt", scratch / "authority" / "ca.key")
        shutil.copy(scratch / "authority" / "ca.crt", made.server)
        write_server(
            made.server / "server.crt",
            made.server / "server.key",
            scratch / "authority" / "ca.crt",
            scratch / "authority" / "ca.key",
            [plan.host.strip("[]")],
        )
        for client in range(plan.nodes):
            node = made.node(client)
            make_directory(node, OWNER_ALONE)
            write_node_key(node / "key", made.server / f"node-{client}.pub")
            shutil.copy(made.server / "ca.crt", node)
            shutil.copy(federation / "experiment.toml", node)
            port = plan.node_ports[client] if plan.node_ports else NODE_PORT + client
            _fill(node / "node.toml", "node.toml", {**values, "client": client, "port": port, "data": ""})
        _fill(made.flwr / "config.toml", "flwr-config.toml", values)
        services = "".join(_template("compose-node.yaml", {"client": i, "data_option": ""}) for i in range(plan.nodes))
        _fill(scratch / "compose.yaml", "compose.yaml", {**values, "services": services})
        _fill(scratch / "Dockerfile", "Dockerfile", None)
        for unit in ("fedpgp-server.service", "fedpgp-node.service"):
            _fill(scratch / "systemd" / unit, unit, values)
        _fill(scratch / "README.md", "README.md", values)
    return FederationLayout(at)


def renew(layout: FederationLayout, authority: Path) -> None:
    """A new certificate and key of the server, for the address that it had, signed by its own authority.

    Raises OutputError where the directory is no federation's, or holds another authority than its nodes trust.
    """
    host = layout.connection[1].rpartition(":")[0].strip("[]")
    certificate, key, trusted = authority / "ca.crt", authority / "ca.key", layout.server / "ca.crt"
    try:
        same = certificate.read_bytes() == trusted.read_bytes()
        key.read_bytes()
    except OSError as error:
        raise OutputError(
            f"{error.filename} cannot be read ({error.strerror}): --authority is the directory authority/ that"
            " fedpgp federate init wrote"
        ) from error
    if not same:
        raise OutputError(
            f"{certificate} is another authority than {trusted}, which the nodes of {layout.directory} trust"
        )
    write_server(layout.server / "server.crt", layout.server / "server.key", certificate, key, [host])


def _fill(path: Path, template: str, values: Mapping[str, Any] | None) -> None:
    write(path, _template(template, values).encode())


def _template(name: str, values: Mapping[str, Any] | None) -> str:
    """values: None takes a template as it is, with its braces."""
    text = (resources.files("fedpgp.flower.deployment") / "templates" / name).read_text(encoding="utf-8")
    return text if values is None else text.format(**values)
