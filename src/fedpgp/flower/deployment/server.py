"""The app that a SuperLink runs: the loop of a run whose clients are SuperNodes."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.utils import get_flwr_home

from fedpgp.backbone import configured_backbone
from fedpgp.data.client_task import OWN, task_elsewhere
from fedpgp.data.sources import Source
from fedpgp.errors import FedPGPError, OutputError
from fedpgp.federation.privacy import assumptions
from fedpgp.federation.protection import protection_notes
from fedpgp.federation.rounds import run_rounds
from fedpgp.federation.state import FILE, State
from fedpgp.flower.deployment.client import configured
from fedpgp.flower.deployment.layout import FederationLayout
from fedpgp.flower.deployment.metrics import exporter
from fedpgp.flower.deployment.superlink import client_numbers
from fedpgp.flower.messages import terms_of
from fedpgp.flower.nodes import Nodes
from fedpgp.results.provenance import begin, check_origin, origin
from fedpgp.results.run import Run, headline
from fedpgp.results.run_store import add_record, is_unfinished, run_directory, write_records, write_run, writing
from fedpgp.results.summary import figures, prompts_of
from fedpgp.runs.setup import checked, run_spec

log = logging.getLogger("fedpgp")


def make_server_app(experiment: Path) -> ServerApp:
    """Return the ServerApp of a federation.

    Parameters
    ----------
    experiment
        File of the experiment.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        log.handlers = logging.getLogger("flwr").handlers
        log.setLevel(logging.INFO)
        try:
            serve(grid, experiment, context.run_config)
        except FedPGPError as error:
            log.error("%s", error)
            # Flower reports an exception of an app, and streams the app's log, but it does not report an exit.
            raise RuntimeError(f"fedpgp: error: {error}") from None

    return app


def serve(grid: Grid, experiment: Path, run_config: Mapping[str, Any]) -> None:
    """Run the rounds of a run that are missing, and write its directory.

    Parameters
    ----------
    grid
        Flower's connection to the nodes.
    experiment
        File of the experiment.
    run_config
        The keys method, seed and output. `output` is the run directory. If it has an unfinished run of the same
        experiment, this run is continued.

    Raises
    ------
    FedPGPError
        If the config, the data or the run directory do not fit.
    """
    name, seed, directory = str(run_config["method"]), int(run_config["seed"]), Path(str(run_config["output"]))
    config = configured(experiment, name)
    method, settings = config.methods[name], config.federation
    source: Source | None = None
    if config.task.partition == OWN:  # the server needs none of the clients' images
        task = task_elsewhere(config.data, config.task, {})
        backbone = configured_backbone(config.backbone)
    else:
        source, tasks, backbone = checked(config, [name], [seed])
        task = tasks[seed]
    begun = origin(config, name, seed, backbone, source)
    if directory.exists() and not is_unfinished(directory):
        raise OutputError(
            "the directory exists, but has no unfinished run",
            where=str(directory),
            remedy=f"Choose another directory: --run-config 'output=\"{directory}-2\"'",
        )
    if not directory.exists():
        with run_directory(directory, force=False) as scratch:
            begin(scratch, begun)
    with State.open(directory / FILE) as state:
        check_origin(directory, state, begun, log.warning)
        spec = run_spec(config, name, seed, task, backbone)
        private = assumptions(config.privacy, settings, method, spec.clients, spec.most_rounds)
        for sentence in [*private, *protection_notes(settings, config.privacy, spec.aggregator, spec.clients)]:
            log.info("%s", sentence)
        terms, layout = terms_of(backbone, task), FederationLayout(get_flwr_home().parent)
        keys = None if layout.connection.insecure else partial(client_numbers, layout)
        nodes = Nodes(grid, spec, state, terms, config.privacy, forgiving=True, numbers=keys)
        done, total = state.rounds(), len(spec.rounds)
        log.info(
            "%s: %d of %d rounds are complete; waiting for %d clients, at most %g seconds (federation.deadline)",
            *(name, done, total, spec.clients, settings.deadline),
        )
        remedy = "Free disk space, then start the run again"
        with writing(directory, remedy):
            write_records(state.records(), directory)
        nodes.gather()
        with exporter(settings.metrics_port, nodes.run) as hear:
            for record in run_rounds(spec, nodes, state):
                with writing(directory, remedy):
                    add_record(record, directory)
                hear(record)
                log.info("round %d of %d: %s%s", record["round"], total, headline(record), _missing(record))
        records, last, server = state.records(), state.evaluation(), state.server()
        assert server is not None, "a finished round has a server"
        if config.task.partition == OWN:
            task = task_elsewhere(config.data, config.task, nodes.held)
        run = Run(
            config=config,
            results=figures(task, name, seed, records, last, spec.first(0).private),
            rounds=records,
            prompts=prompts_of(spec, server),
            outcomes=None,
            provenance=state.origin()["provenance"],
        )
        with writing(directory, remedy):
            write_run(run, directory)
        state.remove()
    log.info("%s is finished. To see the results: fedpgp show %s", name, directory.absolute())


def _missing(record: Mapping[str, Any]) -> str:
    """Return the clients that are missing from a round, with the reasons."""
    missing = [f"client {drop['client']}: {drop['reason']}" for drop in record.get("dropped", ())]
    missing += [f"node {node['node']} is refused: {node['reason']}" for node in record.get("refused", ())]
    return f" ({'; '.join(text.removesuffix('.') for text in missing)})" if missing else ""
