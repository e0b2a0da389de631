"""The server of a federation: Flower's SuperLink on the loopback address, and the gate on the public port."""

import asyncio
import re
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedpgp.errors import ConfigError, FedPGPError, OutputError
from fedpgp.flower.deployment.credentials import check_certificate, public_key_pem, read_public_key
from fedpgp.flower.deployment.gate import Gate, Keys, raise_file_limit, server_context
from fedpgp.flower.deployment.layout import FederationLayout, check_insecure, host_and_port, is_loopback
from fedpgp.flower.deployment.processes import SCRIPTS, check_port, environment, started

PATIENCE = 60.0  # seconds until a server must listen
POLL = 0.1
NODE_KEY = re.compile(r"node-(\d+)\.pub")  # file of a client's public key, with the client's number
BACKLOG = 1024  # connections that the system keeps until the gate accepts them


def run_server(directory: Path, insecure: bool, ready: Callable[[], None]) -> int:
    """Run the server of a federation until its SuperLink ends.

    Parameters
    ----------
    directory
        Directory of the federation.
    insecure
        Whether the federation was written without TLS and keys. Its server then has no gate.
    ready
        Function that is called when nodes can connect.

    Returns
    -------
    int
        Exit code of the SuperLink.

    Raises
    ------
    FedPGPError
        If the server cannot start.
    """
    layout = FederationLayout(directory.absolute())
    _, address, written_insecure = layout.connection
    if insecure != written_insecure:
        option = "with --insecure" if written_insecure else "without --insecure"
        raise ConfigError(
            f"the federation was written {option}",
            where=str(directory),
            remedy=f"Start its server {option}, or write the federation again with fedpgp federate init",
        )
    if insecure:
        check_insecure(address)
        with superlink(layout) as process:
            ready()
            return process.wait()
    keys = Keys(layout.server)
    gate = Gate(address, layout.server / "ca.crt", keys)
    raise_file_limit(gate.limits.files(len(keys)))
    check_certificate(layout.server / "server.crt", layout.server / "ca.crt")
    secure = server_context(layout.server / "server.crt", layout.server / "server.key")
    check_port(*host_and_port(layout.gate.listen))
    with superlink(layout) as process:
        _register(layout)
        with socket.create_server(host_and_port(layout.gate.listen), backlog=BACKLOG) as listener:
            ready()
            return asyncio.run(_serve_while(process, gate.serve(listener, secure)))


async def _serve_while(process: subprocess.Popen[bytes], service: Coroutine[Any, Any, None]) -> int:
    """Run a service until a process ends; return the exit code of the process."""
    task = asyncio.create_task(service)
    while (code := process.poll()) is None:
        done, _ = await asyncio.wait([task], timeout=POLL)
        for one in done:
            one.result()  # raises the exception that ended the service
    return code


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
    _, address, insecure = layout.connection
    authority = None if insecure else (layout.server / "ca.crt").read_bytes()
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    return ControlHttpClient.from_server_address(
        server_address=address, insecure=insecure, root_certificates=authority, interceptors=[version]
    )


def _register(layout: FederationLayout) -> None:
    """Register the public keys of all nodes at a running SuperLink, if they are not registered yet."""
    with control(layout) as client:
        for file in sorted(layout.server.glob("*.pub")):
            key = public_key_pem(read_public_key(file))
            try:
                client.RegisterNode(request=RegisterNodeRequest(public_key=key, name=file.stem))
            except httpx.HTTPStatusError as error:
                reason = FlowerError.from_json(error.response.text)
                if reason is None or reason.code != ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
                    raise OutputError(
                        f"the SuperLink does not accept this key: {error.response.text[:200]}",
                        where=str(file),
                        remedy="Copy the key again from the machine that made it, or remove the file",
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
