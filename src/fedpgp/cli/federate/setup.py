"""`fedpgp federate init`, `renew`, `key`, `upgrade` and `app-hash`: write and change the files of a federation."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fedpgp.cli.federate.options import Directory, FederationOptions, Nodes
from fedpgp.cli.option_groups import with_options
from fedpgp.cli.options import Force
from fedpgp.cli.printing import next_command, out, say


@with_options(FederationOptions)
def init(
    directory: Annotated[Path, typer.Argument(help="Directory for the files of the federation.")],
    nodes: Nodes = 3,
    host: Annotated[
        str, typer.Option("--host", help="Host name or address at which nodes reach the server.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the server for its nodes.")] = 8000,
    superlink_port: Annotated[
        int,
        typer.Option(
            "--superlink-port",
            min=1,
            max=65535,
            help="Port at which the operator controls the server (Flower's SuperLink). The port is open only on the"
            " loopback address of the server.",
        ),
    ] = 9092,
    monitor_port: Annotated[
        int,
        typer.Option(
            "--monitor-port",
            min=0,
            max=65535,
            help="Port on the server's loopback address for its health and its metrics (Prometheus). 0: none.",
        ),
    ] = 9095,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the federation.", show_default="the name of the directory")
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            "--class-names",
            help="Text file with one class name per line. Each node then reads its own images, which may cover only"
            " some of these classes. Without this option, one dataset is divided between the nodes, for a trial.",
        ),
    ] = None,
    force: Force = False,
    *,
    options: FederationOptions,
) -> None:
    """Write the files that each machine of a federation needs.

    The files are a Flower app, certificates, keys, a compose file and systemd units.

    Examples:
        fedpgp federate init ours --nodes 3 --host server.example.org --class-names names.txt
        fedpgp federate init try --nodes 4
    """
    from fedpgp.federation.protection import check_protection, with_protection
    from fedpgp.flower.deployment.layout import FederationPlan, accessible, create

    experiment, method = options.deployment(nodes, class_names)
    if "federation.protection" not in experiment.origins:
        settings = with_protection(experiment.federation, experiment.privacy)
        origins = {**experiment.origins, "federation.protection": "fedpgp federate init"}
        experiment = replace(experiment, federation=settings, origins=origins)
    check_protection(experiment.federation, experiment.privacy, experiment.aggregator, nodes)
    name = name or directory.absolute().name
    insecure, seed = options.insecure, options.seed
    plan = FederationPlan(
        *(name, host, port, superlink_port, nodes, experiment, method, seed),
        insecure=insecure,
        monitor_port=monitor_port,
    )
    with accessible(directory):
        layout = create(directory, plan, force)
    out.print(
        f"The federation is in {layout.directory}. Its README.md says which machine needs which files.", markup=False
    )
    next_command("federate", "server", directory, *["--insecure"] * insecure)


def renew(
    directory: Directory,
    authority: Annotated[
        Path | None,
        typer.Option("--authority", help="Directory of the certificate authority.", show_default="DIRECTORY/authority"),
    ] = None,
) -> None:
    """Make a new certificate for the server before the old certificate expires. Nodes trust both certificates.

    Examples:
        fedpgp federate renew ours --authority /media/safe/authority
    """
    from fedpgp.flower.deployment import layout

    with layout.accessible(directory):
        layout.renew(layout.FederationLayout(directory), authority or directory / "authority")
    say("The server has a new certificate. Restart the server.")
    next_command("federate", "server", directory)


def key(
    directory: Directory,
    node: Annotated[
        str, typer.Argument(help="Node, such as node-1. The number after the last node's number adds a node.")
    ],
) -> None:
    """Make a new key for a node, or add a node. The node's old key is no longer admitted.

    A running server registers the new key within a few seconds.

    Examples:
        fedpgp federate key ours node-1
    """
    from fedpgp.flower.deployment.app_policy import EXPERIMENT
    from fedpgp.flower.deployment.layout import FederationLayout, accessible
    from fedpgp.flower.deployment.node_keys import replace_key, wait_for_registration

    layout = FederationLayout(directory.absolute())
    place, public = layout.nodes / node, layout.server / f"{node}.pub"
    with accessible(directory):
        added = replace_key(layout, node)
    if added:
        out.print(
            f"{node} is new. Copy {place} to its machine, and to no other machine. The experiment has one client more:"
            f" the owner of each other node replaces experiment.toml in the node's directory by"
            f" {layout.app / EXPERIMENT}, and starts the node again. A run that began before needs the old file. The"
            f" new node has its own compose.yaml; {layout.directory / 'compose.yaml'} does not start it.",
            markup=False,
        )
    else:
        out.print(
            f"{node} has a new key. Replace the file key in the node's directory by {place / 'key'}, and start the node"
            " again.",
            markup=False,
        )
    if wait_for_registration(layout, public):
        say("The server has registered the key.")
    else:
        say("The server does not run. It registers the key when it starts.")
    next_command("federate", "node", node, "--check")


def upgrade(directory: Directory) -> None:
    """Write the app of a federation again after an upgrade of fedpgp, because nodes run only their own version's app.

    It also writes the files in image/, from which containers are built. The experiment, the keys, the settings and the
    runs stay. An unfinished run continues with the next `flwr run`.

    Examples:
        fedpgp federate upgrade ours
    """
    import fedpgp
    from fedpgp.flower.deployment import upgrade
    from fedpgp.flower.deployment.layout import FederationLayout

    upgrade.upgrade(FederationLayout(directory))
    say(f"The app is now the app of fedpgp {fedpgp.__version__}. Its experiment and its configuration are unchanged.")
    next_command("federate", "server", directory)


def app_hash(
    directory: Annotated[
        Path, typer.Argument(help="Directory of a Flower app, for example app/ of the directory that `init` wrote.")
    ],
) -> None:
    """Print the hash of a Flower app. A node runs an app only if the list `apps` of node.toml contains the app's hash.

    Examples:
        fedpgp federate app-hash ours/app
    """
    from fedpgp.flower.deployment.app_policy import hash_of_directory

    out.print(hash_of_directory(directory), markup=False)
    next_command("federate", "node", "NODE", "--check")
