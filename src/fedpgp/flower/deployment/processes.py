"""Starts Flower's processes from a federation's directory, after looking for what would stop them later."""

import os
import signal
import socket
import ssl
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
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedpgp.errors import ConfigError, FedPGPError, OutputError
from fedpgp.flower.deployment.app import RESIDENT
from fedpgp.flower.deployment.client import NodeSettings, answer_as, open_client
from fedpgp.flower.deployment.credentials import check_certificate
from fedpgp.flower.deployment.layout import FederationLayout, check_insecure, is_loopback
from fedpgp.flower.deployment.resident import resident
from fedpgp.flower.node import check_owner

REACH = 5.0  # seconds for a server to answer a look
PATIENCE = 60.0  # seconds for a server to listen
POLL = 0.1
ENDING = 10.0  # seconds that a process has to end in order
FAST = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}  # Flower looks every second otherwise
SCRIPTS = Path(sys.executable).parent


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of Flower's processes, which find each other by their names. home: FLWR_HOME."""
    path = f"{SCRIPTS}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, "FLWR_HOME": str(home), **more}


def check_port(host: str, port: int) -> None:
    """Raises ConfigError where another process listens."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} of {host} cannot be taken: {error.strerror}; end the process that has it, which may be"
                " this one started before, or choose another: of a node in node.toml, of a server with init --port"
            ) from error


# ---------------------------------------------------------------------------------------------------------- the server


@contextmanager
def server(directory: Path, insecure: bool = False, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A SuperLink that knows the nodes of a federation, listening; it is ended with the block.

    log: a file for what it prints; None takes this process' own. Raises FedPGPError where it cannot be started.
    """
    layout = FederationLayout(directory.absolute())
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
    with started(command, environment(layout.flwr), log, layout.directory) as process:
        _wait_for(process, "127.0.0.1", int(port))
        if not insecure:
            _register(layout)
        yield process


@contextmanager
def control(layout: FederationLayout) -> Iterator[ControlHttpClient]:
    """What `flwr` asks a server with."""
    _, address = layout.connection
    authority = None if layout.insecure else (layout.server / "ca.crt").read_bytes()
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    client = ControlHttpClient.from_server_address(
        server_address=address, insecure=layout.insecure, root_certificates=authority, interceptors=[version]
    )
    try:
        yield client
    finally:
        client.close()


def _register(layout: FederationLayout) -> None:
    """Tells a running SuperLink the public keys of all nodes that it does not know yet."""
    with control(layout) as client:
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
    if (directory / "key").exists():
        check_owner(directory / "key")
    if settings.states.exists():
        check_owner(settings.states)
    check_port("127.0.0.1", about["port"])
    open_client(directory / "experiment.toml", about["method"], about["seed"], settings)


def reach(directory: Path, about: Mapping[str, Any], insecure: bool) -> str:
    """Whether the server answers a node now, in words; raises ConfigError where it is the server of another federation.

    It may not be there yet, and a node waits for it: that is no fault.
    """
    host, _, port = str(about["superlink"]).rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH) as connection:
            if not insecure:
                secure = ssl.create_default_context(cafile=str(directory / "ca.crt"))
                with secure.wrap_socket(connection, server_hostname=host.strip("[]")):
                    pass
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"the server at {about['superlink']} has no certificate of this federation ({error.verify_message}): ask"
            " its operator for ca.crt, and for the name that init was given as --host"
        ) from error
    except OSError as error:
        return f"the server at {about['superlink']} does not answer now ({error}): the node will wait for it"
    return f"the server at {about['superlink']} answers"


@contextmanager
def node(
    directory: Path, settings: NodeSettings, about: Mapping[str, Any], insecure: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """The SuperNode of a client, which stays loaded in this process; it is ended with the block."""
    with resident(answer_as) as address:
        command = _node_command(directory, settings, about, insecure, address)
        with started(command, environment(directory / "flwr", **FAST)) as process:
            yield process


def _node_command(
    directory: Path, settings: NodeSettings, about: Mapping[str, Any], insecure: bool, address: str
) -> list[str]:
    texts = {name: value for name, value in vars(settings).items() if isinstance(value, str) and value}
    texts[RESIDENT] = address
    config = " ".join([f"client={settings.client}", *(f'{name}="{value}"' for name, value in texts.items())])
    command = [
        sys.executable,
        "-P",
        "-m",
        "fedpgp.flower.deployment.supernode",
    ]  # nothing is imported from where we are
    command += ["--superlink", about["superlink"], "--node-config", config]
    command += ["--host", "127.0.0.1", "--port", str(about["port"])]
    if insecure:
        return [*command, "--insecure"]
    credentials = ["--root-certificates", str(directory / "ca.crt")]
    return [*command, *credentials, "--auth-supernode-private-key", str(directory / "key")]


# ---------------------------------------------------------------------------------------------------------------- both


@contextmanager
def started(
    command: list[str], env: Mapping[str, str], log: Path | None = None, directory: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, which is ended with the block.

    log: a file for what it prints, and the process and all that it starts are a group of their own, to be ended
    together; None leaves it in the group and with the streams of this one. directory: that it works in; None takes that
    of this process.
    """
    with open(os.devnull if log is None else log, "ab") as file:  # noqa: PTH123
        streams: dict[str, Any] = {} if log is None else {"stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(
            command,
            env=dict(env),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            start_new_session=log is not None,
            **streams,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENDING)
        if log is not None:
            kill_group(process)
        process.kill()
        process.wait()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that leads a group at once, and all that it started with it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def end_on_sigterm() -> None:
    """From now on SIGTERM, which service managers send, ends this process as Ctrl-C does: in order."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another would break off the orderly end
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
