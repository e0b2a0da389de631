"""A new client of a finished federation: it fits its private part to a few images of its own, and nothing goes up."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedpgp.aggregators import Download, Server, Tensors
from fedpgp.config import ExperimentConfig, load_config, parse_change
from fedpgp.data.client_task import OWN
from fedpgp.data.sources import load_source
from fedpgp.errors import ConfigError
from fedpgp.evaluation.evaluator import path_alphas, without_standing_path
from fedpgp.evaluation.metrics import summary
from fedpgp.federation.client import train_clients
from fedpgp.federation.client_runner import ClientRunner
from fedpgp.federation.run_spec import RunSpec
from fedpgp.reporting import Reporter, Silent
from fedpgp.results.run import Run
from fedpgp.results.run_store import load_run, run_directory, write_run
from fedpgp.results.summary import figures, named
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import OpenRun, open_run
from fedpgp.runtime.files import write
from fedpgp.runtime.validation import whole_number


def join(
    run: Run | Path | str,
    data: str,
    *,
    changes: Sequence[str] | str = (),
    shots: int = 0,
    epochs: int | None = None,
    seed: int = 0,
    output: Path | str | None = None,
    force: bool = False,
    cache: Path | str | None = None,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> Run:
    """Fits the private part of a run's method to images that nobody else sees; the shared part stays as it is.

    Args:
        run: a finished run, or its directory.
        data: what data.source could be. Its classes may be others than those of the federation; where every client of
            it had images of its own, they go by the federation's names, and the softmax is over all of them.
        changes: how they are to be read, such as "data.image_column=file"; other sections are the run's.
        shots: training images of each class; 0: all. epochs: None takes federation.join_epochs of the run.
        output: a run directory to write, with one client; None writes nothing. force: replace it.

    Raises FedPGPError: before any work where run, data or output do not fit.
    """
    finished = run if isinstance(run, Run) else load_run(run)
    name, seed, shots = finished.method, whole_number(seed, "seed", 0), whole_number(shots, "shots", 0)
    epochs = finished.config.federation.join_epochs if epochs is None else whole_number(epochs, "epochs", 1)
    if name not in finished.config.methods:
        raise ConfigError(f"{name} is neither built in nor of an installed package: a run of it cannot be joined")
    config = _config(finished, data, [changes] if isinstance(changes, str) else changes, shots, device)
    reporter = reporter or Silent()
    with open_run(config, name, seed, Execution(cache=cache, reporter=reporter)) as opened:
        joined = _fitted(opened, finished, epochs)
    if output is not None:
        with run_directory(Path(output), force) as scratch:
            write(scratch / "config.toml", joined.config.to_toml().encode())
            write_run(joined, scratch)
        return load_run(output)
    return joined


def _config(run: Run, data: str, changes: Sequence[str], shots: int, device: str | None) -> ExperimentConfig:
    """The run's config with another data set, whose images are all one client's."""
    keys = []
    for section, key, _ in map(parse_change, changes):
        if section != "data" or key == "source":
            raise ConfigError(
                f"changes of a new client must be of its data, such as data.image_column=file, got {section}.{key}: the"
                " rest is the run's, and where the images are, --data says"
            )
        keys.append(key)
    given = load_config(changes=changes).data
    own = {"layout": "auto", "names": "", **{key: getattr(given, key) for key in keys}}
    config = replace(run.config, data=replace(run.config.data, source=data, **own))
    if device is not None:
        config = replace(config, backbone=replace(config.backbone, device=device))
    task = replace(config.task, partition=OWN, clients=1, new_clients=0, shots=shots, held_out=(), targets=())
    if config.task.partition != OWN:
        task = replace(task, protocol="personalization", class_names=load_source(config.data).class_names)
    return replace(config, task=task, federation=replace(config.federation, engine="deployment"))


def _fitted(opened: OpenRun, run: Run, epochs: int) -> Run:
    config, settings, began = opened.config, opened.config.federation, time.perf_counter()
    runner = ClientRunner(opened.spec.for_newcomers(opened.task, epochs), opened.data)
    spec, reporter = runner.spec, opened.setup.execution.listener
    if not spec.first(0).private:
        raise ConfigError(f"{opened.name} has no private part to fit: a new client takes the shared part as it is")
    server = Server(_shared(run, spec))
    number = int(run.results["rounds"]) + 1
    reporter.progress("fitting the private part", 0, epochs)
    sent = Download(server.shared)
    (update,) = train_clients(opened.workers.towers, [runner.job(number, 0, sent, spec.first(0))])
    reporter.progress("fitting the private part", epochs, epochs)
    own = replace(update.own, kept={})
    trained = time.perf_counter()
    alphas = path_alphas(settings.path_points)
    last = runner.evaluate(number, server.shared, lambda _: sent, lambda _: own, opened.workers, alphas)
    last = without_standing_path(last, spec.tests)
    record: dict[str, Any] = {
        "round": number,
        "participants": [0],
        **summary(last.clients),
        "shared": last.shared,
        **last.diagnostics,
        "bytes_down": sent.size,
        "bytes_up": 0,
        **{f"loss_{term}": value for term, value in update.losses.items()},
        "seconds_training": trained - began,
        "seconds_evaluation": time.perf_counter() - trained,
    }
    return Run(
        config=config,
        results=figures(opened.task, opened.name, opened.seed, [record], last, own.private),
        rounds=[record],
        prompts=named(server.shared, [own]),
        outcomes=None,
        provenance={**opened.origin()["provenance"], "joined": run.provenance},
    )


def _shared(run: Run, spec: RunSpec) -> Tensors:
    """The shared part of a run, as this checkpoint needs it; raises ConfigError where it is of another."""
    tensors = {name: run.prompts[f"shared/{name}"] for name in spec.shared if f"shared/{name}" in run.prompts}
    for name, like in spec.shared.items():
        if name not in tensors or tensors[name].shape != like.shape:
            raise ConfigError(
                f"the run's shared part {name} does not fit {spec.method.name} on this checkpoint: take that with"
                " which it was trained (backbone.checkpoint)"
            )
    return {name: value.to(spec.shared[name]) for name, value in tensors.items()}
