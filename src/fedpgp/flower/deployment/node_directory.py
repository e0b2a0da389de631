"""A node's directory, with the checks for problems that would stop the node later, and the start of its SuperNode."""

import socket
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import tomli_w
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedpgp.data.sources import is_name
from fedpgp.errors import ConfigError, OutputError
from fedpgp.flower.deployment.app import RESIDENT, resident
from fedpgp.flower.deployment.app_policy import names
from fedpgp.flower.deployment.client import NodeSettings, answer_as, open_client
from fedpgp.flower.deployment.credentials import check_certificate
from fedpgp.flower.deployment.layout import cause, check_insecure, host_and_port
from fedpgp.flower.deployment.processes import STILL_CONNECTED, check_port, environment, started
from fedpgp.flower.node import check_owner
from fedpgp.runtime.validation import STRICT

REACH = 5.0  # seconds that a server has to answer
PATIENCE = 120.0  # seconds; Flower needs about half of it to notice that a node is gone
PAUSE = 5.0  # seconds between two starts


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
        Not used: the nodes of earlier versions of fedpgp needed a port on the loopback address for their own processes.
    insecure
        Whether the node connects without TLS and without a key.
    apps
        Hashes of the apps that the owner of the node agreed to run, in addition to fedpgp's own app.
    monitor
        Port on the loopback address for the health and the metrics of the node; 0 means none.
    """

    directory: Path
    superlink: str
    insecure: bool
    port: int = 0
    apps: str = ""
    monitor: Annotated[int, Field(ge=0, le=65535)] = 0

    @classmethod
    def read(cls, directory: Path, insecure: bool = False, **given: str | None) -> "NodeDirectory":
        """Read node.toml. Its relative paths are relative to the directory.

        Parameters
        ----------
        directory
            The node's directory.
        insecure
            Whether the node connects without TLS and without a key.
        given
            Settings that replace the settings in node.toml. Their relative paths are relative to the working directory.

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
        content["state"] = content.get("state") or "state"
        for name in ("data", "state", "cache"):
            value = content.get(name)
            if isinstance(value, str) and value and not (name == "data" and is_name(value)):
                content[name] = str(directory / value)
        content |= {name: value for name, value in given.items() if value is not None}
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
        if self.monitor:
            check_port("127.0.0.1", self.monitor)
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
            with started(self.command(config), environment(self.directory / "flwr")) as process:
                yield process

    def run(self, tell: Callable[[str], None]) -> int:
        """Run the SuperNode until it ends, and return its exit code.

        Until Flower has missed the heartbeats of an earlier process of this node, which was killed or cut off, the
        server does not admit another one. So the SuperNode is started again, for at most `PATIENCE` seconds.

        Parameters
        ----------
        tell
            Function that is called with a sentence before each further start.
        """
        end = time.monotonic() + PATIENCE
        while True:
            with self.supernode() as process:
                code = process.wait()
            if code != STILL_CONNECTED or time.monotonic() > end:
                return code
            tell("the server still counts an earlier process of this node as connected; the node tries again")
            time.sleep(PAUSE)

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
        command += ["--monitor", str(self.monitor)]
        if self.insecure:
            return command
        return [*command, "--root-certificates", str(self.directory / "ca.crt"), "--key", str(self.directory / "key")]
