"""The app that a SuperLink runs: the loop of a run whose clients are SuperNodes."""

import logging
from collections.abc import Iterator, Mapping
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
from fedpgp.flower.client_app import EVALUATE, TRAIN
from fedpgp.flower.deployment.client import configured
from fedpgp.flower.deployment.layout import FederationLayout
from fedpgp.flower.deployment.superlink import client_numbers
from fedpgp.flower.messages import terms_of
from fedpgp.flower.nodes import Nodes
from fedpgp.results.provenance import begin, check_origin, origin
from fedpgp.results.read import open_state
from fedpgp.results.run import Run, headline
from fedpgp.results.run_store import add_record, is_unfinished, run_directory, write_records, write_run, writing
from fedpgp.results.summary import figures, prompts_of
from fedpgp.runs.setup import checked, run_spec

PHASES = {TRAIN: "training", EVALUATE: "evaluation"}

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
        flower = logging.getLogger("flwr")
        flower.addFilter(OneLine())
        log.handlers = flower.handlers
        log.setLevel(logging.INFO)
        serve(grid, experiment, context.run_config)

    return app


class OneLine(logging.Filter):
    """Report a run that ends with a FedPGPError in one line.

    Flower reports an app as failed only if the app raises an exception. It then logs the traceback and, in six lines,
    what its exit code means.
    """

    ended = False

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, FedPGPError):
            self.ended = True
            record.msg, record.args, record.exc_info = f"fedpgp: error: {' '.join(str(error).split())}", (), None
            return True
        return not (self.ended and record.getMessage().startswith("Exit Code: "))


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
    with open_state(directory) as state:
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
        absences = Absences()
        for record in run_rounds(spec, nodes, state):
            with writing(directory, remedy):
                add_record(record, directory)
            for sentence in absences.of(record):
                log.warning("%s", sentence)
            log.info("round %d of %d: %s", record["round"], total, headline(record))
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


class Absences:
    """The clients that are left out of a run, each of which is reported once, and again when it is back."""

    def __init__(self) -> None:
        self._absent: set[int] = set()

    def of(self, record: Mapping[str, Any]) -> Iterator[str]:
        """Yield a sentence for each client that is left out since this round, or is back in this round."""
        number, absent = record["round"], set[int]()
        for drop in record.get("dropped", ()):
            client, reason = drop["client"], drop["reason"].removesuffix(".")
            if client not in absent | self._absent:
                yield f"client {client} is left out from round {number} ({PHASES[drop['in']]}) on: {reason}"
            absent.add(client)
        for client in sorted(self._absent - absent):
            if client in record["participants"] or "local" in record:  # otherwise the server did not ask it
                yield f"client {client} is back in round {number}"
                self._absent.remove(client)
        self._absent |= absent
