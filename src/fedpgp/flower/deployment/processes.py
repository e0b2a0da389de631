"""Starts of Flower's processes from a federation's directory, after checks for problems that would stop them later."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import tomli_w
from pydantic.dataclasses import dataclass

from fedpgp.errors import ConfigError, OutputError
from fedpgp.flower.deployment import guardian
from fedpgp.flower.deployment.app import RESIDENT, resident
from fedpgp.flower.deployment.app_policy import names
from fedpgp.flower.deployment.client import NodeSettings, answer_as, open_client
from fedpgp.flower.deployment.credentials import check_certificate
from fedpgp.flower.deployment.layout import cause, check_insecure, host_and_port
from fedpgp.flower.node import check_owner
from fedpgp.runtime.validation import STRICT

REACH = 5.0  # seconds that a server has to answer
ENDING = 6.0  # seconds that a process has to end by itself
FAST = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}  # Flower's own interval is a second
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
            remedy="End the process that uses it, which may be an earlier start of this one; or choose another port, in"
            " node.toml for a node, or with --port and --superlink-port of fedpgp federate init for a server",
        ) from error


# -------------------------------------------------------------------------------------------------------------- a node


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NodeDirectory(NodeSettings):
    """A node's directory as `fedpgp federate init` wrote it, with the settings of its node.toml.

    Attributes
    ----------
    directory
        The directory.
    superlink
        Address of the server.
    port
        Port on the loopback address, for the node's own processes.
    insecure
        Whether the node connects without TLS and without a key.
    apps
        Hashes of the apps that the owner of the node agreed to run, in addition to fedpgp's own app.
    """

    directory: Path
    superlink: str
    port: int
    insecure: bool
    apps: str = ""

    @classmethod
    def read(cls, directory: Path, insecure: bool = False, **given: str | None) -> "NodeDirectory":
        """Read node.toml.

        Parameters
        ----------
        directory
            The node's directory.
        insecure
            Whether the node connects without TLS and without a key.
        given
            Settings that replace the settings in node.toml.

        Raises
        ------
        OutputError
            If the directory does not have a node.toml.
        """
        file = directory / "node.toml"
        try:
            content = tomllib.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OutputError(
                f"this is not a node's directory: {file} cannot be read ({cause(error)})",
                where=str(directory),
                remedy="Use a directory in nodes/ of the federation that fedpgp federate init wrote",
            ) from error
        content |= {name: value for name, value in given.items() if value is not None}
        content |= {"state": content.get("state") or str(directory / "state")}
        content |= {"directory": directory, "experiment": str(directory / "experiment.toml"), "insecure": insecure}
        return cls.of(content)

    def check(self) -> None:
        """Open the client as its node will do, to report problems now and to fill the feature cache.

        Raises
        ------
        FedPGPError
            If a problem would stop the node.
        """
        authority, key = self.directory / "ca.crt", self.directory / "key"
        if self.insecure:
            check_insecure(self.superlink)
        elif not authority.exists() or not key.exists():
            raise OutputError(
                "ca.crt or key is missing",
                where=str(self.directory),
                remedy="Copy both from the machine where fedpgp federate init was called",
            )
        else:
            check_certificate(authority, authority)
        for private in (key, self.states):
            if private.exists():
                check_owner(private)
        check_port("127.0.0.1", self.port)
        open_client(self)

    def reach(self) -> str:
        """Return a sentence that tells whether the server answers. No answer is not an error: the node waits for it.

        Raises
        ------
        ConfigError
            If the server belongs to another federation.
        """
        host, port = host_and_port(self.superlink)
        try:
            with socket.create_connection((host, port), timeout=REACH) as connection:
                if not self.insecure:
                    secure = ssl.create_default_context(cafile=str(self.directory / "ca.crt"))
                    secure.wrap_socket(connection, server_hostname=host).close()
        except ssl.SSLCertVerificationError as error:
            raise ConfigError(
                f"the server's certificate is not from this federation: {error.verify_message}",
                where=self.superlink,
                remedy="Ask the server's operator for ca.crt, and for the --host of fedpgp federate init",
            ) from error
        except OSError as error:
            return f"the server at {self.superlink} does not answer yet ({error}); the node waits for it"
        return f"the server at {self.superlink} answers"

    @contextmanager
    def supernode(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run the SuperNode of a client until the block ends. The client stays loaded in this process."""
        with resident(answer_as) as address:
            config = Path(address).with_name("node.toml")
            settings = {name: getattr(self, name) for name in ("client", "data", "state", "cache", "device", "plugins")}
            config.write_text(tomli_w.dumps({**settings, RESIDENT: address}), encoding="utf-8")
            with started(self.command(config), environment(self.directory / "flwr", **FAST)) as process:
                yield process

    def command(self, config: Path) -> list[str]:
        """Return the command that starts the SuperNode.

        Parameters
        ----------
        config
            File with the settings that Flower passes on with every message.
        """
        module = "fedpgp.flower.deployment.supernode"
        command = [sys.executable, "-P", "-m", module]  # -P: import nothing from the working directory
        command += ["--experiment", self.experiment, *(f"--app={digest}" for digest in names(self.apps))]
        command += ["--superlink", self.superlink, "--node-config", str(config)]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        if self.insecure:
            return [*command, "--insecure"]
        command += ["--root-certificates", str(self.directory / "ca.crt")]
        return [*command, "--auth-supernode-private-key", str(self.directory / "key")]


# ---------------------------------------------------------------------------------------------------------------- both


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
    """End processes that `started` yielded at the same time, and kill those that do not end in time."""
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
