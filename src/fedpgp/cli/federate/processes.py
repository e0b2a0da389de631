"""`fedpgp federate server`, `node` and `up`: run the processes of a federation."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import click
import typer

from fedpgp.cli.federate.options import Directory, FederationOptions, Insecure, Nodes
from fedpgp.cli.option_groups import OutputOptions, with_options
from fedpgp.cli.printing import Session, next_command, print_result, say, typed
from fedpgp.errors import ConfigError

LogFormat = Annotated[
    Literal["text", "json"],
    typer.Option("--log-format", help="Format of the log on standard error: text, or a JSON object in each line."),
]
logged = logging.getLogger("fedpgp.federate")


@dataclass(frozen=True)
class LocalOptions(OutputOptions, FederationOptions):
    """Options of `up`."""


def server(directory: Directory, insecure: Insecure = False, log_format: LogFormat = "text") -> None:
    """Start the server of a federation.

    The server consists of a SuperLink (Flower's server process) on the loopback address, and a gate, which refuses
    connections of unknown nodes. Ctrl-C stops the SuperLink and the gate.

    Examples:
        fedpgp federate server ours
    """
    from fedpgp.flower.deployment import processes
    from fedpgp.flower.deployment.layout import FederationLayout
    from fedpgp.flower.deployment.logs import one_format
    from fedpgp.flower.deployment.serve import run_server
    from fedpgp.flower.deployment.server_monitor import followed_runs, monitored_server

    processes.end_on_sigterm()
    layout = FederationLayout(directory)
    with one_format(log_format == "json") as log, monitored_server(layout):
        log.heard = followed_runs(layout, log)
        code = run_server(directory, insecure, lambda: logged.info("the server listens; nodes can connect"))
    raise typer.Exit(code)


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
    log_format: LogFormat = "text",
) -> None:
    """Check the data, class names, checkpoint and certificate of a client's node, and start the node.

    Examples:
        fedpgp federate node node-0 --data /srv/photos
    """
    from fedpgp.flower.deployment.logs import one_format
    from fedpgp.flower.deployment.node_directory import NodeDirectory
    from fedpgp.flower.deployment.processes import end_on_sigterm

    end_on_sigterm()
    given = {"data": data, "state": state, "cache": cache, "device": device}
    node = NodeDirectory.read(directory.absolute(), insecure, **given)

    def examine(tell: Callable[[str], None]) -> None:
        node.check()
        tell(f"client {node.client}: the data, the checkpoint and the keys are valid")
        tell(node.reach())

    if check:
        examine(say)
        next_command("federate", "node", *typed("check"))
        return
    with one_format(log_format == "json", client=node.client):
        examine(logged.info)
        code = node.run(logged.warning)
        if code == 0:  # a SuperNode exits with 0 and prints nothing when the server answers 401
            raise ConfigError(
                "the server refuses this node's key, because the key is unknown or revoked, or because the clocks of"
                " the two machines differ",
                where=node.superlink,
                remedy="Ask the operator of the server; the server's log has the reason",
            )
    raise typer.Exit(code)


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
    from fedpgp.flower.deployment.node_directory import NodeDirectory
    from fedpgp.flower.deployment.processes import end_on_sigterm
    from fedpgp.methods import METHODS
    from fedpgp.methods.plugins import find_method

    if not local:
        raise click.UsageError(
            "--local is missing: `fedpgp federate up` starts all processes on this machine. Add --local, or use"
            " `fedpgp federate init` for several machines."
        )
    end_on_sigterm()
    directory = options.directory("federation")
    experiment, method = options.deployment(nodes)
    port, superlink_port = free_ports(2)
    seed, insecure = options.seed, options.insecure
    plugins = "" if method in METHODS else method
    plan = FederationPlan(
        "local", "127.0.0.1", port, superlink_port, nodes, experiment, method, seed, insecure, plugins
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
                f"A server and {nodes} nodes are started; their logs are in {layout.logs}. The many processes"
                " take time: on two cores, round 1 begins after about 40 s, and each node adds up to 3 s to a round."
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
