"""`fedpgp federate`: set up and run a federation across machines, on Flower."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from fedpgp.cli import completion
from fedpgp.cli.option_groups import ExperimentOptions, OutputOptions, with_options
from fedpgp.cli.options import Force, command
from fedpgp.cli.printing import Session, next_command, out, print_result, say, typed
from fedpgp.errors import ConfigError

if TYPE_CHECKING:
    from fedpgp.config import ExperimentConfig

app = typer.Typer(
    help="Set up and run a federation across machines, on Flower. docs/deploy.md is the guide.", no_args_is_help=True
)

Directory = Annotated[Path, typer.Argument(help="Directory that `fedpgp federate init` wrote.")]
Nodes = Annotated[
    int, typer.Option("--nodes", min=1, max=1000, help="Number of clients. Each client has its own node.")
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Use neither TLS nor keys. Only a loopback address is accepted.")
]


@dataclass(frozen=True)
class FederationOptions(ExperimentOptions):
    """Options that `init` and `up` share: the experiment of a federation."""

    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            help="Method that is run. `fedpgp methods` lists all methods.",
            autocompletion=completion.of_names("methods"),
        ),
    ] = "fedpgp"
    seed: Annotated[int, typer.Option("--seed", help="Random seed.")] = 0
    insecure: Insecure = False

    def deployment(self, nodes: int, class_names: Path | None = None) -> "tuple[ExperimentConfig, str]":
        """Return the config of a deployment and the name of the method.

        Raises
        ------
        ConfigError
            The experiment cannot be run.
        """
        from fedpgp.config import load_config
        from fedpgp.data.client_task import OWN, classes_of
        from fedpgp.data.sources.names import read_lines
        from fedpgp.runs.choices import one_method

        changes = [f"task.clients={nodes}", *self.changes]
        if class_names is not None:
            changes += [f"task.partition={OWN}", f"task.class_names={json.dumps(read_lines(class_names))}"]
        name, _ = one_method(self.method, self.config, changes)
        settings = load_config(self.config, [*changes, "federation.engine=deployment"], foreign=True)
        if settings.task.clients != nodes:
            raise ConfigError(
                where="task.clients",
                allowed=f"{nodes}, the number of --nodes",
                got=settings.task.clients,
                remedy=f"Leave out the setting, or use --nodes {settings.task.clients}",
            )
        if class_names is not None:
            classes_of(settings.task)
        return settings, name


@dataclass(frozen=True)
class LocalOptions(OutputOptions, FederationOptions):
    """Options of `up`."""


@command(app)
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
    from fedpgp.flower.deployment.layout import FederationPlan, create

    experiment, method = options.deployment(nodes, class_names)
    if "federation.protection" not in experiment.origins:
        settings = with_protection(experiment.federation, experiment.privacy)
        origins = {**experiment.origins, "federation.protection": "fedpgp federate init"}
        experiment = replace(experiment, federation=settings, origins=origins)
    check_protection(experiment.federation, experiment.privacy, experiment.aggregator, nodes)
    name = name or directory.absolute().name
    insecure, seed = options.insecure, options.seed
    plan = FederationPlan(name, host, port, superlink_port, nodes, experiment, method, seed, insecure=insecure)
    layout = create(directory, plan, force)
    out.print(
        f"The federation is in {layout.directory}. Its README.md says which machine needs which files.", markup=False
    )
    next_command("federate", "server", directory, *["--insecure"] * insecure)


@command(app)
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

    layout.renew(layout.FederationLayout(directory), authority or directory / "authority")
    say("The server has a new certificate. Restart the server.")
    next_command("federate", "server", directory)


@command(app)
def server(directory: Directory, insecure: Insecure = False) -> None:
    """Start the server of a federation.

    The server consists of a SuperLink (Flower's server process) on the loopback address, and a gate, which refuses
    connections of unknown nodes. Ctrl-C stops the SuperLink and the gate.

    Examples:
        fedpgp federate server ours
    """
    from fedpgp.flower.deployment import processes
    from fedpgp.flower.deployment.superlink import run_server

    processes.end_on_sigterm()
    raise typer.Exit(run_server(directory, insecure, lambda: say("the server listens; nodes can connect")))


@command(app)
def node(
    directory: Annotated[
        Path, typer.Argument(help="Directory of a node, such as nodes/node-0 of the directory that `init` wrote.")
    ],
    data: Annotated[
        str | None, typer.Option("--data", help="Dataset of the client: a directory or a CSV file (data.source).")
    ] = None,
    state: Annotated[str | None, typer.Option("--state", help="Directory of the client's private part.")] = None,
    cache: Annotated[str | None, typer.Option("--cache-dir", help="Directory of the cache of image features.")] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Device for all computations: cpu, cuda or cuda:1 (backbone.device).")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the node, encode its images, and exit.")] = False,
    insecure: Insecure = False,
) -> None:
    """Check the data, class names, checkpoint, certificate and ports of a client's node, and start the node.

    Examples:
        fedpgp federate node node-0 --data /srv/photos
    """
    from fedpgp.flower.deployment import processes

    processes.end_on_sigterm()
    given = {"data": data, "state": state, "cache": cache, "device": device}
    node = processes.NodeDirectory.read(directory.absolute(), insecure, **given)
    node.check()
    say(f"client {node.client}: the data, the checkpoint and the keys are valid")
    say(node.reach())
    if check:
        next_command("federate", "node", *typed("check"))
        return
    with node.supernode() as process:
        code = process.wait()
    if code == 0:  # a SuperNode exits with 0 and prints nothing when the server answers 401
        raise ConfigError(
            "the server refuses this node's key, because the key is unknown or revoked, or because the clocks of the"
            " two machines differ",
            where=node.superlink,
            remedy="Ask the operator of the server; the server's log has the reason",
        )
    raise typer.Exit(code)


@command(app)
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


@command(app)
@with_options(LocalOptions)
def up(
    nodes: Nodes = 4,
    local: Annotated[
        bool,
        typer.Option("--local", help="Run all processes on this machine (required). See `init` for several machines."),
    ] = False,
    *,
    options: LocalOptions,
) -> None:
    """Try a federation on this machine: start a server, nodes and a run, with the TLS and keys of a real federation.

    One dataset is divided between the nodes. A process that stops is started again, and the run continues. The
    output directory contains the whole federation. In this directory, the run is in runs/, and the output of the
    processes is in logs/. The command reports every finished round.

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
        raise click.UsageError(
            "--local is missing: `fedpgp federate up` starts all processes on this machine. Add --local, or use"
            " `fedpgp federate init` for several machines."
        )
    directory = options.directory("federation")
    experiment, method = options.deployment(nodes)
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
        progress.progress("reading the dataset", 0, 1)  # once, for all nodes
        NodeDirectory.read(layout.node(0), insecure, cache=features).check()
        progress.progress("reading the dataset", 1, 1)
        with local_federation(layout, nodes, features) as federation:
            progress.notice(
                f"A server and {nodes} nodes are started; their logs are in {layout.logs}. Flower starts a process for"
                " each message: on two cores, round 1 begins after about 40 s, and each node adds 2 to 3 s to a round."
            )
            run = layout.runs / "local"

            def rounds(records: "Sequence[Mapping[str, Any]]") -> None:
                number, label = records[-1]["round"], f"{method}, seed {seed}"
                progress.progress(label, number or 1, total if number else 1, _round_summary(records, total))

            def connected(count: int) -> None:
                progress.progress("connected nodes", count, nodes)

            federation.complete(run, progress.notice, connected, rounds)
    print_result(fedpgp.Comparison([fedpgp.load_run(run)]), run, options.as_json)


def _round_summary(records: "Sequence[Mapping[str, Any]]", total: int) -> str:
    """Describe the last round, and estimate the time of the rounds that are left."""
    from fedpgp.results.run import headline
    from fedpgp.runs.comparison_plan import duration

    left = total - records[-1]["round"] if records[-1]["round"] else 0
    mean = fmean(record["seconds_training"] + record["seconds_evaluation"] for record in records)
    return ", ".join([headline(records[-1])] + [f"about {duration(left * mean)} left"] * bool(left))
