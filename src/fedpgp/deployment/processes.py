"""Starts Flower's processes from a federation's directory, after looking for what would stop them later."""

import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.utils import init_http_client_from_connection
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedpgp.deployment.client import NodeSettings, open_client
from fedpgp.deployment.credentials import check_certificate
from fedpgp.deployment.layout import Layout
from fedpgp.errors import ConfigError, FedPGPError, OutputError

PATIENCE = 60.0  # seconds for a server to listen
POLL = 0.1
SCRIPTS = Path(sys.executable).parent


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of Flower's processes, which find each other by their names. home: FLWR_HOME."""
    path = f"{SCRIPTS}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "FLWR_HOME": str(home), **more}


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
            " change the prompts; leave it out, fedpgp federate init has written certificates"
        )


def check_port(host: str, port: int) -> None:
    """Raises ConfigError where another process listens."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} of {host} cannot be taken: {error.strerror}; end the process that has it, or choose"
                " another"
            ) from error


# ---------------------------------------------------------------------------------------------------------- the server


@contextmanager
def server(directory: Path, insecure: bool = False, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A SuperLink that knows the nodes of a federation, listening; it is ended with the block.

    log: a file for what it prints; None takes this process' own. Raises FedPGPError where it cannot be started.
    """
    layout = Layout(directory.absolute())
    _, address = layout.connection
    host, _, port = address.rpartition(":")
    bind = "127.0.0.1" if is_loopback(host) else "0.0.0.0"
    command = [
        *(str(SCRIPTS / "flower-superlink"), "--host", bind, "--port", port),
        *("--database", str(layout.flwr / "superlink.sqlite"), "--disable-runtime-dependency-installation"),
    ]
    if insecure:
        check_insecure(address)
        command.append("--insecure")
    else:
        certificate, authority = layout.server / "server.crt", layout.server / "ca.crt"
        check_certificate(certificate, authority)
        command += ["--ssl-ca-certfile", str(authority), "--ssl-certfile", str(certificate)]
        command += ["--ssl-keyfile", str(layout.server / "server.key"), "--enable-supernode-auth"]
    check_port(bind, int(port))
    with started(command, environment(layout.flwr), log) as process:
        _wait_for(process, "127.0.0.1", int(port))
        if not insecure:
            register(layout)
        yield process


def register(layout: Layout) -> None:
    """Tells a running SuperLink the public keys of all nodes that it does not know yet."""
    os.environ["FLWR_HOME"] = str(layout.flwr)
    client = init_http_client_from_connection(read_superlink_connection(layout.connection[0]))
    try:
        for file in sorted(layout.server.glob("*.pub")):
            key = serialization.load_ssh_public_key(file.read_bytes())
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise OutputError(f"{file} holds no elliptic-curve key: copy it again from where it was made")
            try:
                client.RegisterNode(request=RegisterNodeRequest(public_key=public_key_to_bytes(key), name=file.stem))
            except httpx.HTTPStatusError as error:
                found = FlowerError.from_json(error.response.text)
                if found is None or found.code != ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
                    raise OutputError(f"the server does not take {file}: {error.response.text[:200]}") from error
    finally:
        client.close()


def _wait_for(process: subprocess.Popen[bytes], host: str, port: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise FedPGPError(f"the SuperLink ended with code {process.returncode}: what it printed says why")
        with socket.socket() as probe:
            probe.settimeout(POLL)
            if probe.connect_ex((host, port)) == 0:
                return
        time.sleep(POLL)
    raise FedPGPError(f"the SuperLink does not listen on port {port} after {PATIENCE:g} seconds")


# -------------------------------------------------------------------------------------------------------------- a node


def node_settings(directory: Path, **given: Any) -> tuple[NodeSettings, Mapping[str, Any]]:
    """What a node's directory says, with what is given in its place; raises OutputError where it is none of ours."""
    file = directory / "node.toml"
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
        about = {name: found.pop(name) for name in ("superlink", "method", "seed", "port")}
    except (OSError, ValueError, KeyError) as error:
        raise OutputError(
            f"{directory} is no node's directory: {file} cannot be read ({error}); name one below nodes/ of what fedpgp"
            " federate init wrote"
        ) from error
    beside = {"state": str(directory / "state")} if not found.get("state") else {}
    settings = NodeSettings.of({**found, **beside, **{name: one for name, one in given.items() if one is not None}})
    return settings, about


def check_node(directory: Path, settings: NodeSettings, about: Mapping[str, Any], insecure: bool) -> None:
    """Opens the client as its node will, so that what is missing is said here, and its features are in the cache.

    Raises FedPGPError for what would stop it.
    """
    if insecure:
        check_insecure(about["superlink"])
    elif not (directory / "ca.crt").exists() or not (directory / "key").exists():
        raise OutputError(f"{directory} has no ca.crt or no key: copy both from where fedpgp federate init was called")
    else:
        check_certificate(directory / "ca.crt", directory / "ca.crt")
    check_port("127.0.0.1", about["port"])
    open_client(directory / "experiment.toml", about["method"], about["seed"], settings)


def node_command(directory: Path, settings: NodeSettings, about: Mapping[str, Any], insecure: bool) -> list[str]:
    """What starts the SuperNode of a client."""
    texts = {name: value for name, value in vars(settings).items() if isinstance(value, str) and value}
    config = " ".join([f"client={settings.client}", *(f'{name}="{value}"' for name, value in texts.items())])
    command = [str(SCRIPTS / "flower-supernode"), "--superlink", about["superlink"], "--node-config", config]
    command += ["--host", "127.0.0.1", "--port", str(about["port"])]
    if insecure:
        return [*command, "--insecure"]
    credentials = ["--root-certificates", str(directory / "ca.crt")]
    return [*command, *credentials, "--auth-supernode-private-key", str(directory / "key")]


# ---------------------------------------------------------------------------------------------------------------- both


@contextmanager
def started(command: list[str], env: Mapping[str, str], log: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, which is ended with the block, and whatever it has started with it."""
    with open(os.devnull if log is None else log, "ab") as file:  # noqa: PTH123
        process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=None if log is None else file,
            stderr=None if log is None else subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """Asks a process to end, and after a while ends its whole group."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
