"""Starts and ends of the processes of a federation."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from fedpgp.errors import ConfigError

ENDING = 10.0  # seconds that a process has to end by itself
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
    return {**os.environ, "PATH": path, "FLWR_HOME": str(home), **more}


def check_port(host: str, port: int) -> None:
    """Raise ConfigError if another process listens on a port."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ConfigError(
            f"the port is not free: {error.strerror}",
            where=f"port {port} of {host}",
            remedy="End the process that uses it, which may be an earlier start of this one; or choose another port, in"
            " node.toml for a node, or with --port and --superlink-port of fedpgp federate init for a server",
        ) from error


@contextmanager
def started(
    command: list[str], env: Mapping[str, str], log: Path | None = None, directory: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the block ends.

    Parameters
    ----------
    command
        The command.
    env
        Environment of the process.
    log
        File for the output of the process. The process and its children are then a group, which ends together. None
        means the group and the output streams of this process.
    directory
        Working directory of the process; None means this process's directory.
    """
    with nullcontext() if log is None else log.open("ab") as file:
        process = subprocess.Popen(
            command,
            env=dict(env),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=None if file is None else subprocess.STDOUT,
            start_new_session=file is not None,
        )
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDING)
        if log is not None:
            kill_group(process)
        process.kill()
        process.wait()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a group, and all processes of the group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def end_on_sigterm() -> None:
    """Let SIGTERM, which service managers send, end this process in order, as Ctrl-C does."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second signal would interrupt the orderly end
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
