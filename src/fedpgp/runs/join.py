"""Join a finished federation: a new client fits its private part to its own images, and sends nothing."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedpgp.aggregators import Download, Server, Tensors
from fedpgp.config import ExperimentConfig, with_device
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
from fedpgp.runs.tasks import data_elsewhere
from fedpgp.runtime.files import write
from fedpgp.runtime.tensor_files import check_tensors
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
    skip_bad_images: bool = False,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> Run:
    """Fit the private part of a run's method to the images of a new client. The shared part does not change.

    Parameters
    ----------
    run
        A finished run, or its directory.
    data
        A value for data.source. Its classes may differ from the classes of the federation. But if every client of the
        federation had images of its own, the class names must be class names of the federation, and the softmax is over
        all of them.
    changes
        How the images are read, such as "data.image_column=file". All other sections come from the run.
    shots
        Number of training images per class; 0 uses all.
    epochs
        Epochs used to fit the private part; None takes federation.join_epochs of the run.
    seed
        Random seed.
    output
        A run directory to write, with one client; None writes nothing.
    force
        Replace the output directory if it exists.
    cache
        Directory of the cache of image features; None takes the user's cache directory.
    skip_bad_images
        Leave out images that cannot be decoded, and report them.
    device
        Replaces backbone.device of the run.
    reporter
        Receives the progress.

    Returns
    -------
    The run of the new client.

    Raises
    ------
    FedPGPError
        Before any work, if run, data or output do not fit.
    """
    finished = run if isinstance(run, Run) else load_run(run)
    name, seed, shots = finished.method, whole_number(seed, "seed", 0), whole_number(shots, "shots", 0)
    epochs = finished.config.federation.join_epochs if epochs is None else whole_number(epochs, "epochs", 1)
    if name not in finished.config.methods:
        raise ConfigError(
            "a run can be joined only if its method is built in or from an installed package",
            where=f"method {name}",
            remedy="Install the package of the method, or join another run",
        )
    config = _config(finished, data, [changes] if isinstance(changes, str) else changes, shots, device)
    reporter = reporter or Silent()
    execution = Execution(cache=cache, skip_bad_images=skip_bad_images, reporter=reporter)
    with open_run(config, name, seed, execution) as opened:
        joined = _fitted(opened, finished, epochs)
    if output is not None:
        with run_directory(Path(output), force) as scratch:
            write(scratch / "config.toml", joined.config.to_toml().encode())
            write_run(joined, scratch)
        return load_run(output)
    return joined


def _config(run: Run, data: str, changes: Sequence[str], shots: int, device: str | None) -> ExperimentConfig:
    """Return the run's config with another dataset, whose images all belong to one client."""
    config = replace(run.config, data=data_elsewhere(run.config.data, data, changes))
    config = with_device(config, device)
    task = replace(config.task, partition=OWN, clients=1, new_clients=0, shots=shots, held_out=(), targets=())
    if config.task.partition != OWN:
        task = replace(task, protocol="personalization", class_names=load_source(config.data).class_names)
    return replace(config, task=task, federation=replace(config.federation, engine="deployment"))


def _fitted(opened: OpenRun, run: Run, epochs: int) -> Run:
    config, settings, began = opened.config, opened.config.federation, time.perf_counter()
    runner = ClientRunner(opened.spec.for_newcomers(opened.task, epochs), opened.data)
    spec, reporter = runner.spec, opened.setup.execution.listener
    if not spec.first(0).private:
        raise ConfigError(
            "the method has no private part to fit",
            where=f"method {opened.name}",
            remedy="Use the shared model of the run, for example with `fedpgp predict`",
        )
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
    """Return the shared part of a run; raise OutputError if it does not fit this checkpoint."""
    tensors = {name: run.prompts[f"shared/{name}"] for name in spec.shared if f"shared/{name}" in run.prompts}
    remedy = "Restore the file, and the checkpoint with which the run was trained"
    check_tensors(tensors, spec.shared, "prompts.safetensors of the run: shared", remedy)
    return {name: value.to(spec.shared[name]) for name, value in tensors.items()}
