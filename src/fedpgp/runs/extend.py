"""More rounds for finished runs: their states are made again from what the runs left."""

import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fedpgp.aggregators import Server
from fedpgp.errors import OutputError
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.state import FILE, ClientState, State
from fedpgp.methods.base import Hooks
from fedpgp.results.provenance import begin, check_origin
from fedpgp.results.run import Run
from fedpgp.results.run_store import WRITTEN, load_run, run_directory
from fedpgp.runs.comparison_plan import Cell
from fedpgp.runs.setup import RunSetup


def extend(setup: RunSetup, directory: Path, paths: Mapping[Cell, Path]) -> None:
    """Turn finished runs into stopped ones, which `work` continues to the rounds of the setup's config.

    All of them are turned, or none: the directory is replaced as a whole. Files of other commands stay.

    Parameters
    ----------
    directory
        The directory of a comparison, or of the only run.
    paths
        The directories of its runs.

    Raises
    ------
    OutputError
        If a run cannot be continued to what it would be with more rounds from the beginning, or if its checkpoint or
        its images have changed.
    """
    rounds = setup.config.federation.rounds
    runs = {cell: load_run(path, [type(setup.config.methods[cell[0]])]) for cell, path in paths.items()}
    for cell, run in runs.items():
        if obstacle := _obstacle(setup.open(*cell).spec, run.config.federation.rounds):
            raise OutputError(
                f"{run.method} cannot have more rounds: {obstacle}",
                where=f"{directory}",
                remedy=f"Run it again with --set federation.rounds={rounds}",
            )
    with run_directory(directory, force=True) as scratch:
        shutil.copytree(directory, scratch, symlinks=True, dirs_exist_ok=True)
        for cell, run in runs.items():
            _stop(setup, cell, run, scratch / paths[cell].relative_to(directory))
        (scratch / "comparison.json").unlink(missing_ok=True)


def _stop(setup: RunSetup, cell: Cell, run: Run, place: Path) -> None:
    for name in WRITTEN:
        (place / name).unlink(missing_ok=True)
    opened = setup.open(*cell)
    here = opened.origin()
    step = {"from_round": len(run.rounds), **{key: here["provenance"][key] for key in ("command", "started")}}
    provenance = {**run.provenance, "extended": [*run.provenance.get("extended", []), step]}
    begin(place, {**here, "provenance": provenance})
    with State.open(place / FILE) as state, state.round():
        check_origin(place, state, here, setup.execution.listener.notice)
        if opened.spec.trains:  # else its only round is done again, which takes as long as reading it
            groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
            for name, tensor in run.prompts.items():
                group, _, key = name.rpartition("/")
                groups[group][key] = tensor
            clients = {
                client: ClientState(groups[f"private/{client}"], groups[f"kept/{client}"])
                for client in range(opened.spec.clients)
            }
            state.keep(Server(groups["shared"]), clients)
            for record in run.rounds:
                state.keep_record(record["round"], record)


def _obstacle(spec: RunSpec, rounds: int) -> str:
    """Return why a finished run with this number of rounds cannot be continued, or "" if it can."""
    method, training, aggregator = spec.method, spec.training(1), spec.aggregator
    if not spec.trains:
        return ""
    if spec.settings.engine == "deployment":
        return "the private parts stayed with its clients"
    if method.finetune_epochs:
        return "its clients have trained separately after the last round"
    if training.schedule_over == "rounds" and "cosine" in training.schedules.values():
        return 'its learning rate depends on the number of rounds (schedule = "cosine")'
    if training.optimizer_state == "keep":
        return 'a finished run has no state of its optimizers (federation.optimizer_state = "keep")'
    if method.own_aggregator(rounds) != method.own_aggregator(spec.settings.rounds):
        return "its aggregator depends on the number of rounds"
    if aggregator.controls or aggregator.personal or spec.begin().memory:
        return f"a finished run has no state of its aggregator, {aggregator.name}"
    if type(method).for_prediction is not Hooks.for_prediction:
        return "a finished run has only the shared part for prediction, and not the trained shared part"
    return ""
