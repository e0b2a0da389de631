"""Flower's SuperLink, the server's process on the loopback address, and requests to it."""

import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedpgp.errors import ConfigError, FedPGPError, OutputError
from fedpgp.flower.deployment.credentials import public_key_pem, read_public_key
from fedpgp.flower.deployment.gate import key_files
from fedpgp.flower.deployment.layout import FederationLayout, host_and_port, is_loopback
from fedpgp.flower.deployment.processes import SCRIPTS, check_port, environment, started, without_proxy

PATIENCE = 60.0  # seconds until a server must listen
POLL = 0.1
NODE_KEY = re.compile(r"node-(\d+)\.pub")  # file of a client's public key, with the client's number


@contextmanager
def superlink(layout: FederationLayout) -> Iterator[subprocess.Popen[bytes]]:
    """Run a SuperLink on the loopback address until the block ends."""
    _, address, insecure = layout.connection
    host, port = host_and_port(address)
    if not is_loopback(host):
        raise ConfigError(
            where=f"the address in {layout.flwr / 'config.toml'}",
            allowed="a loopback address such as 127.0.0.1:9092, because everyone who reaches it can submit runs",
            got=address,
            remedy="Correct the address in this file",
        )
    command = [str(SCRIPTS / "flower-superlink"), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--database", str(layout.flwr / "superlink.sqlite"), "--disable-runtime-dependency-installation"]
    if insecure:
        command.append("--insecure")
    else:
        command += ["--ssl-ca-certfile", str(layout.server / "ca.crt"), "--enable-supernode-auth"]
        command += ["--ssl-certfile", str(layout.server / "server.crt")]
        command += ["--ssl-keyfile", str(layout.server / "server.key")]
    check_port("127.0.0.1", port)
    with started(command, environment(layout.flwr), None, layout.directory) as process:
        _wait_for(process, port)
        yield process


@contextmanager
def server(layout: FederationLayout, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `fedpgp federate server` as a process until the block ends; nodes can connect when the block begins.

    Parameters
    ----------
    layout
        The federation.
    log
        File for the output of the server.

    Raises
    ------
    FedPGPError
        If the server ends before nodes can connect.
    """
    _, address, insecure = layout.connection
    command = [str(SCRIPTS / "fedpgp"), "federate", "server", str(layout.directory)]
    command += ["--insecure"] if insecure else []
    with started(command, environment(layout.flwr), log) as process:
        _wait_for(process, host_and_port(address if insecure else layout.gate.listen)[1])
        yield process


def control(layout: FederationLayout) -> ControlHttpClient:
    """Return the client with which `flwr` calls a server, as a context manager."""
    os.environ.update(without_proxy())  # Flower's HTTP client reads them
    _, address, insecure = layout.connection
    authority = None if insecure else (layout.server / "ca.crt").read_bytes()
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    return ControlHttpClient.from_server_address(
        server_address=address, insecure=insecure, root_certificates=authority, interceptors=[version]
    )


def register(layout: FederationLayout) -> list[str]:
    """Register the nodes' public keys `server/*.pub` at a running SuperLink, and unregister the keys that they replace.

    Parameters
    ----------
    layout
        The federation.

    Returns
    -------
    list[str]
        Sentences about the keys with which no node can connect, each with the remedy.

    Raises
    ------
    FedPGPError
        If the SuperLink does not answer.
    """
    keys, problems = {}, []
    for file in key_files(layout.server):
        try:
            keys[file] = public_key_pem(read_public_key(file))
        except OutputError as error:
            problems.append(str(error))
    with _answered(), control(layout) as client:
        known = {node.public_key: node for node in client.ListNodes(ListNodesRequest()).nodes_info}
        for file, key in keys.items():
            if key not in known:
                try:
                    client.RegisterNode(request=RegisterNodeRequest(public_key=key, name=file.stem))
                except httpx.HTTPStatusError as error:
                    problems.append(f"{file}: the SuperLink does not accept this key: {error.response.text[:200]}")
            elif known[key].status == NodeStatus.UNREGISTERED:  # Flower never registers such a key again
                problems.append(
                    f"{file}: this key was unregistered at the SuperLink, so no node can connect with it."
                    f" Make a new key with fedpgp federate key {layout.directory} {file.stem}"
                )
        names = {file.stem for file in keys}
        for key, node in known.items():
            if node.name in names and key not in keys.values() and node.status != NodeStatus.UNREGISTERED:
                client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
    for file in sorted(layout.server.glob("*.revoked")):
        if not file.with_suffix(".pub").exists():
            problems.append(
                f"{file}: this key is revoked, so the gate refuses it. To admit it again, rename the file to"
                f" {file.stem}.pub; for a new key, call fedpgp federate key {layout.directory} {file.stem}"
            )
    return problems


def is_registered(layout: FederationLayout, file: Path) -> bool:
    """Return whether a SuperLink has registered the key of a file; raise FedPGPError if the SuperLink does not answer.

    Parameters
    ----------
    layout
        The federation.
    file
        Public key of a node.
    """
    key = public_key_pem(read_public_key(file))
    with _answered(), control(layout) as client:
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
    return any(node.public_key == key and node.status != NodeStatus.UNREGISTERED for node in nodes)


@contextmanager
def _answered() -> Iterator[None]:
    """Raise FedPGPError if the SuperLink does not answer a request of the block."""
    try:
        yield
    except httpx.HTTPError as error:
        raise FedPGPError(
            f"the SuperLink does not answer: {error or type(error).__name__}",
            remedy="Start the server with fedpgp federate server, or read its log",
        ) from error


def client_numbers(layout: FederationLayout) -> dict[int, int]:
    """Return the client number by node id at a running SuperLink, from the nodes' public keys server/node-N.pub."""
    with control(layout) as client:
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
    files = {file: NODE_KEY.fullmatch(file.name) for file in layout.server.glob("*.pub")}
    numbers = {public_key_pem(read_public_key(file)): int(match[1]) for file, match in files.items() if match}
    return {node.node_id: numbers[node.public_key] for node in nodes if node.public_key in numbers}


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise FedPGPError(
                f"the server ended with code {process.returncode}", remedy="Read what the server printed before"
            )
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=POLL):
            return
        time.sleep(POLL)
    raise FedPGPError(
        f"the server does not listen after {PATIENCE:g} seconds",
        where=f"port {port}",
        remedy="Read what the server printed, and start it again",
    )
