"""fedpgp federate: a federation across machines, on Flower."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fedpgp.cli.options import (
    BackboneName,
    Changes,
    ConfigFile,
    DataSource,
    Force,
    OutputOptions,
    all_changes,
    command,
    with_options,
)
from fedpgp.cli.printing import Session, out, print_result, say
from fedpgp.errors import ConfigError

if TYPE_CHECKING:
    from fedpgp.config import ExperimentConfig

app = typer.Typer(help="Federations across machines, on Flower: docs/deploy.md.", no_args_is_help=True)

Directory = Annotated[Path, typer.Argument(help="What fedpgp federate init wrote.")]
Nodes = Annotated[
    int, typer.Option("--nodes", min=1, max=1000, help="How many clients take part, each on a node of its own.")
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Without TLS and keys; refused but for a loopback address.")]


@dataclass(frozen=True)
class FederationOptions:
    """What a federation runs: the options that `init` and `up` share."""

    method: Annotated[str, typer.Option("--method", "-m", help="The method that is run: see fedpgp methods.")] = (
        "fedpgp"
    )
    seed: Annotated[int, typer.Option("--seed", help="Random seed.")] = 0
    config: ConfigFile = None
    data: DataSource = None
    backbone: BackboneName = None
    change: Changes = None
    insecure: Insecure = False

    def experiment(self, nodes: int, class_names: Path | None = None) -> "tuple[ExperimentConfig, str]":
        """Return the config of a deployment, and the method's name; raises ConfigError for what cannot be run."""
        from fedpgp.config import load_config
        from fedpgp.data.client_task import OWN, classes_of
        from fedpgp.data.sources.names import read_lines
        from fedpgp.runs.choices import chosen_methods

        changes = [f"task.clients={nodes}", *all_changes(self.change, data=self.data, backbone=self.backbone)]
        if class_names is not None:
            changes += [f"task.partition={OWN}", f"task.class_names={json.dumps(read_lines(class_names))}"]
        (name,), _ = chosen_methods(self.method, self.config, changes)
        settings = load_config(self.config, [*changes, "federation.engine=deployment"], foreign=True)
        if settings.task.clients != nodes:
            raise ConfigError(
                f"task.clients must be {nodes}, that of --nodes, got {settings.task.clients}: leave out the setting, or"
                f" give --nodes {settings.task.clients}"
            )
        if class_names is not None:
            classes_of(settings.task)
        return settings, name


@dataclass(frozen=True)
class LocalOptions(OutputOptions, FederationOptions):
    """The options of `up`."""


@command(app)
@with_options(FederationOptions)
def init(
    directory: Annotated[Path, typer.Argument(help="Directory to write.")],
    nodes: Nodes = 3,
    host: Annotated[str, typer.Option("--host", help="Name or address by which nodes reach the server.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the server, for nodes.")] = 8000,
    superlink_port: Annotated[
        int,
        typer.Option(
            "--superlink-port", min=1, max=65535, help="Port of the server's loopback address, for its operator."
        ),
    ] = 9092,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the federation.", show_default="the directory's")
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            "--class-names",
            help="A file with a class name in each line: every node has images of its own, of some of these classes."
            " Without it all nodes share out one data set, to try.",
        ),
    ] = None,
    force: Force = False,
    *,
    options: FederationOptions,
) -> None:
    """Write what each machine is to have: a Flower app, certificates, keys, a compose file, units for systemd.

    Examples:
        fedpgp federate init ours --nodes 3 --host server.example.org --class-names names.txt
        fedpgp federate init try --nodes 4
    """
    from fedpgp.flower.deployment.layout import FederationPlan, create

    experiment, method = options.experiment(nodes, class_names)
    name = name or directory.absolute().name
    insecure, seed = options.insecure, options.seed
    plan = FederationPlan(name, host, port, superlink_port, nodes, experiment, method, seed, insecure=insecure)
    layout = create(directory, plan, force)
    out.print(f"{layout.directory} is written; README.md in it says what goes where", markup=False)
    say(f"next: fedpgp federate server {directory}")


@command(app)
def renew(
    directory: Directory,
    authority: Annotated[
        Path | None, typer.Option("--authority", help="Where authority/ is now.", show_default="DIRECTORY/authority")
    ] = None,
) -> None:
    """Make a new certificate of the server, before the old one is over; nodes trust it as they did the old one.

    Examples:
        fedpgp federate renew ours --authority /media/safe/authority
    """
    from fedpgp.flower.deployment import layout

    layout.renew(layout.FederationLayout(directory), authority or directory / "authority")
    say("the server has a new certificate: restart it with fedpgp federate server")


@command(app)
def server(directory: Directory, insecure: Insecure = False) -> None:
    """Start the server of a federation: a SuperLink on the loopback address, and a gate that admits nodes' keys only.

    Ctrl-C ends both.

    Examples:
        fedpgp federate server ours
    """
    from fedpgp.flower.deployment import processes
    from fedpgp.flower.deployment.superlink import run_server

    processes.end_on_sigterm()
    raise typer.Exit(run_server(directory, insecure, lambda: say("the server listens; nodes may come")))


@command(app)
def node(
    directory: Annotated[Path, typer.Argument(help="A node's directory, below nodes/ of what init wrote.")],
    data: Annotated[str | None, typer.Option("--data", help="Where the client's images are, as data.source.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="Directory of the private part.")] = None,
    cache: Annotated[str | None, typer.Option("--cache-dir", help="Directory of image features.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="As backbone.device.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Look whether all fits, encode the images, and end.")] = False,
    insecure: Insecure = False,
) -> None:
    """Start a client's node, a SuperNode, after a look at its data, names, checkpoint, certificate and ports.

    Examples:
        fedpgp federate node node-0 --data /srv/photos
    """
    from fedpgp.flower.deployment import processes

    processes.end_on_sigterm()
    given = {"data": data, "state": state, "cache": cache, "device": device}
    node = processes.NodeDirectory.read(directory.absolute(), insecure, **given)
    node.check()
    say(f"client {node.client}: data, checkpoint and keys fit")
    say(node.reach())
    if check:
        return
    with node.supernode() as process:
        code = process.wait()
    if code == 0:  # Flower ends a SuperNode so, without a word, when the server answers 401
        raise ConfigError(
            f"the server at {node.superlink} refuses this node's key: it is unknown there or was revoked, or the clocks"
            " of the two machines differ; ask the server's operator, whose log says which"
        )
    raise typer.Exit(code)


@command(app)
def app_hash(
    directory: Annotated[Path, typer.Argument(help="A Flower app, such as app/ of what init wrote.")],
) -> None:
    """Print the hash of an app; a node whose node.toml has it in apps runs the app, whatever its code is.

    Examples:
        fedpgp federate app-hash ours/app
    """
    from fedpgp.flower.deployment.app_policy import hash_of_directory

    out.print(hash_of_directory(directory), markup=False)


@command(app)
@with_options(LocalOptions)
def up(
    nodes: Nodes = 4,
    local: Annotated[bool, typer.Option("--local", help="On this machine; for several see init.")] = False,
    *,
    options: LocalOptions,
) -> None:
    """Start a server, nodes and a run on this machine, to try: TLS, keys and processes are those of real machines.

    All nodes share out one data set. What ends by itself is started again, and the run goes on. The directory holds the
    whole federation: the run is in runs/, what the processes say in logs/. Tells of every round when it is over.

    Examples:
        fedpgp federate up --nodes 4 --local -o out
    """
    import fedpgp
    from fedpgp.federation.run_spec import rounds_of
    from fedpgp.flower.deployment.layout import FederationPlan, create
    from fedpgp.flower.deployment.local import free_ports, local_federation
    from fedpgp.flower.deployment.processes import NodeDirectory
    from fedpgp.methods import METHODS
    from fedpgp.methods.plugins import find_method

    if not local:
        raise click.UsageError("--local must be typed: all processes are on this machine; for several see init")
    directory = options.directory("federation")
    experiment, method = options.experiment(nodes)
    port, superlink_port, *ports = free_ports(nodes + 2)
    seed, insecure = options.seed, options.insecure
    plugins = "" if method in METHODS else method
    plan = FederationPlan(
        "local", "127.0.0.1", port, superlink_port, nodes, experiment, method, seed, ports, insecure, plugins
    )
    layout = create(directory, plan, options.force)
    features = None if options.cache is None else str(options.cache.absolute())
    total = rounds_of(experiment.methods.get(method) or find_method(method)(), experiment.federation)
    with Session(directory, options.quiet) as progress:
        progress.progress("reading the data set", 0, 1)  # once, for all nodes
        NodeDirectory.read(layout.node(0), insecure, cache=features).check()
        progress.progress("reading the data set", 1, 1)
        with local_federation(layout, nodes, features) as federation:
            progress.notice(
                f"a server and {nodes} nodes are started, what they say is in {layout.logs}; Flower starts a process"
                " for each message: on two cores round 1 begins in about 40 s, and a node adds 2 to 3 s to each"
            )
            run = layout.runs / "local"

            def rounds(records: "Sequence[Mapping[str, Any]]") -> None:
                number, label = records[-1]["round"], f"{method}, seed {seed}"
                progress.progress(label, number or 1, total if number else 1, _so_far(records, total))

            def there(count: int) -> None:
                progress.progress("nodes that are there", count, nodes)

            federation.complete(run, progress.notice, there, rounds)
    print_result(fedpgp.Comparison([fedpgp.load_run(run)]), run, options.as_json)


def _so_far(records: "Sequence[Mapping[str, Any]]", total: int) -> str:
    """How the last round did, and about how long the others take."""
    from fedpgp.results.run import headline
    from fedpgp.runs.comparison_plan import duration

    left = total - records[-1]["round"] if records[-1]["round"] else 0
    mean = fmean(record["seconds_training"] + record["seconds_evaluation"] for record in records)
    return ", ".join([headline(records[-1])] + [f"about {duration(left * mean)} left"] * bool(left))
