"""Starts and ends of the processes of a federation."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from fedpgp.errors import ConfigError
from fedpgp.flower.deployment import guardian

STILL_CONNECTED = 75  # exit code of a SuperNode whose earlier process the server still counts as connected
ENDING = 6.0  # seconds that a process has to end by itself
LOOPBACK = ("127.0.0.1", "::1", "localhost")
SCRIPTS = Path(sys.executable).parent


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of Flower's processes, which find each other's programs in PATH.

    Parameters
    ----------
    home
        Value of FLWR_HOME.
    more
        Further variables.
    """
    path = f"{SCRIPTS}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, **without_proxy(), "PATH": path, "FLWR_HOME": str(home), **more}


def without_proxy() -> dict[str, str]:
    """Return the environment variables with which HTTP clients use no proxy for addresses of this machine."""
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = ",".join(dict.fromkeys([*filter(None, hosts.split(",")), *LOOPBACK]))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


def check_port(host: str, port: int) -> None:
    """Raise ConfigError if another process listens on a port."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ConfigError(
            f"the port is not free: {error.strerror}",
            where=f"port {port} of {host}",
            remedy="End the process that uses it, which may be an earlier start of this one; or choose another port"
            " with --port and --superlink-port of fedpgp federate init",
        ) from error


@contextmanager
def started(
    command: list[str], env: Mapping[str, str], log: Path | None = None, directory: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the block ends. All of its descendants end with it, also if this process is killed.

    Parameters
    ----------
    command
        The command.
    env
        Environment of the process.
    log
        File for the output of the process, which then has a session of its own. None means the process group and the
        output streams of this process.
    directory
        Working directory of the process; None means this process's directory.

    Yields
    ------
    subprocess.Popen
        The process's guardian, which passes on SIGTERM and has the exit code of the process.
    """
    inner, outer = os.pipe()
    with nullcontext() if log is None else log.open("ab") as file:
        group = os.getpgrp() if file is None else 0
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guardian.__file__, str(inner), str(group), *command],
            env=dict(env),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=None if file is None else subprocess.STDOUT,
            pass_fds=[inner],
            process_group=0 if file is None else None,
            start_new_session=file is not None,
        )
    os.close(inner)
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING)
        os.close(outer)  # kills what is left
        process.wait()


def end_together(guardians: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes of `started` at the same time, and kill the processes that do not end in time."""
    for process in guardians:
        process.terminate()
    end = time.monotonic() + ENDING
    for process in guardians:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()  # its command is killed with it, and ends the guardians that it has started


def end_on_sigterm() -> None:
    """Let SIGTERM, which service managers send, end this process in order, as Ctrl-C does."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal would interrupt the orderly end
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
