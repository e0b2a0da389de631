"""The server of a federation: Flower's SuperLink on the loopback address, and the gate on the public port."""

import asyncio
import logging
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from fedpgp.errors import ConfigError, FedPGPError
from fedpgp.flower.deployment.credentials import check_certificate
from fedpgp.flower.deployment.gate import Gate, Keys, key_files, raise_file_limit, server_context
from fedpgp.flower.deployment.layout import FederationLayout, check_insecure, host_and_port
from fedpgp.flower.deployment.probe import Probe
from fedpgp.flower.deployment.processes import check_port
from fedpgp.flower.deployment.superlink import PATIENCE, POLL, register, superlink

BACKLOG = 1024  # connections that the system keeps until the gate accepts them

log = logging.getLogger("fedpgp")


def run_server(directory: Path, insecure: bool, ready: Callable[[], None]) -> int:
    """Run the server of a federation until its SuperLink ends.

    Parameters
    ----------
    directory
        Directory of the federation.
    insecure
        Whether the federation was written without TLS and keys. Its server then has no gate.
    ready
        Function that is called when the server has answered a request as a node sends it.

    Returns
    -------
    int
        Exit code of the SuperLink.

    Raises
    ------
    FedPGPError
        If the server cannot start, or does not answer a node's request.
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
            return asyncio.run(_serve_while(process, _announce(Probe(address, None), ready)))
    authority, listen = layout.server / "ca.crt", layout.gate.listen
    probe = Probe(listen, authority)
    keys = Keys(layout.server, probe.public_key)
    gate = Gate(address, authority, keys)
    raise_file_limit(gate.limits.files(len(keys)))
    check_certificate(layout.server / "server.crt", authority)
    secure = server_context(layout.server / "server.crt", layout.server / "server.key")
    check_port(*host_and_port(listen))
    with superlink(layout) as process:
        known = key_files(layout.server)
        _warn(register(layout))
        with socket.create_server(host_and_port(listen), backlog=BACKLOG) as listener:
            services = gate.serve(listener, secure), _announce(probe, ready), _register_new(layout, known)
            return asyncio.run(_serve_while(process, *services))


async def _serve_while(process: subprocess.Popen[bytes], *services: Coroutine[Any, Any, None]) -> int:
    """Run services until a process ends; return the exit code of the process."""
    tasks = [asyncio.create_task(service) for service in services]
    while (code := process.poll()) is None:
        await asyncio.sleep(POLL)
        for task in tasks:
            if task.done():
                task.result()  # raises the exception that ended the service
    return code


async def _announce(probe: Probe, ready: Callable[[], None]) -> None:
    """Call a function once, when a node could connect."""
    end = time.monotonic() + PATIENCE
    while problem := await asyncio.to_thread(probe.problem):
        if time.monotonic() > end:
            raise FedPGPError(
                f"no node can connect after {PATIENCE:g} seconds: {problem}",
                remedy="Read what the server printed, and start it again",
            )
        await asyncio.sleep(1.0)
    ready()


async def _register_new(layout: FederationLayout, known: object) -> None:
    """Register the keys again whenever a file of a key has changed."""
    while True:
        await asyncio.sleep(Keys.LOOK)
        if (files := key_files(layout.server)) == known:
            continue
        try:
            _warn(await asyncio.to_thread(register, layout))
        except FedPGPError as error:
            log.warning("%s", error)  # and try again
        else:
            known = files


def _warn(problems: list[str]) -> None:
    for problem in problems:
        log.warning("%s", problem)
