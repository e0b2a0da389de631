"""New keys of nodes, and further nodes of a federation."""

import re
import shutil
import time
import tomllib
from pathlib import Path

from fedpgp.errors import ConfigError, FedPGPError
from fedpgp.flower.deployment.app_policy import EXPERIMENT
from fedpgp.flower.deployment.credentials import write_node_key
from fedpgp.flower.deployment.layout import FederationLayout, node_files
from fedpgp.flower.deployment.superlink import POLL, is_registered
from fedpgp.runtime.files import OWNER_ALONE, make_directory, write

NODE = re.compile(r"node-(0|[1-9]\d*)")
CLIENTS = re.compile(r"^clients = \d+", re.MULTILINE)  # in the experiment's section [task]
PATIENCE = 10.0  # seconds in which a running server registers a new key


def replace_key(layout: FederationLayout, name: str) -> bool:
    """Make a new key pair for a node. The name after the last node's name adds a node.

    A new node gets its own directory, and the experiment gets one client more.

    Parameters
    ----------
    layout
        The federation.
    name
        Name of the node, such as node-1.

    Returns
    -------
    bool
        Whether the node is new.

    Raises
    ------
    FedPGPError
        If this is not the directory of a federation with keys, or there is no such node.
    """
    if layout.connection.insecure:
        raise ConfigError(
            "the federation was written with --insecure, so its nodes have no keys",
            where=str(layout.directory),
            remedy="Write a federation without --insecure, with fedpgp federate init",
        )
    experiment = layout.app / EXPERIMENT
    text = experiment.read_text(encoding="utf-8")
    clients = tomllib.loads(text)["task"]["clients"]
    match = NODE.fullmatch(name)
    if match is None or int(match[1]) > clients:
        raise ConfigError(
            where="the node",
            allowed=f"node-0 to node-{clients - 1} for a new key, or node-{clients} for a new node",
            got=name,
            remedy=f"Use a name such as node-{clients - 1}",
        )
    client = int(match[1])
    directory = layout.node(client)
    make_directory(directory, OWNER_ALONE)
    if client == clients:
        text = CLIENTS.sub(f"clients = {clients + 1}", text, count=1)
        _write_node(layout, client, text)
        for number in range(clients):
            if layout.node(number).exists():  # otherwise it is only on its own machine
                write(layout.node(number) / "experiment.toml", text.encode())
        write(experiment, text.encode())
    write_node_key(directory / "key", layout.server / f"{name}.pub")
    return client == clients


def _write_node(layout: FederationLayout, client: int, experiment: str) -> None:
    """Write the directory of a new node without its key."""
    app, address = layout.app_settings, layout.gate.address
    values = {"name": layout.connection.name, "method": app.method, "seed": app.seed, "address": address}
    values |= {"client": client, "plugins": "", "insecurely": ""}
    directory = layout.node(client)
    for name, content in node_files(values, experiment.encode()).items():
        write(directory / name, content)
    shutil.copy(layout.server / "ca.crt", directory)


def wait_for_registration(layout: FederationLayout, public: Path) -> bool:
    """Return whether a running server has registered a key. A server that does not run will register it at its start.

    Parameters
    ----------
    layout
        The federation.
    public
        Public key of a node.

    Raises
    ------
    FedPGPError
        If a server runs, but does not register the key.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if is_registered(layout, public):
                return True
        except FedPGPError:
            return False
        time.sleep(POLL)
    raise FedPGPError(
        f"the running server has not registered the key after {PATIENCE:g} seconds",
        where=str(public),
        remedy="Read the server's log, and restart the server",
    )
