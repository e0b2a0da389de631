"""Datasets and tasks of an experiment."""

from collections.abc import Sequence
from dataclasses import replace

from fedpgp.config import ExperimentConfig, load_config, parse_change
from fedpgp.data.client_task import OWN, own_task
from fedpgp.data.protocols import task_of
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import SPLITS, ImageDataset, Source, check_used, load_source, load_target
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError


def with_targets(config: ExperimentConfig, source: Source) -> Source:
    """Return the dataset with the test splits of task.targets, if its own test split was read."""
    targets: dict[str, ImageDataset] = {}
    for name in config.task.targets if source.test is not None else ():
        target = load_target(replace(config.data, source=name, layout="auto", names=""))
        targets[target.name if target.name not in targets else f"{target.name} ({name})"] = target
    return replace(source, targets=targets)


def make_task(config: ExperimentConfig, source: Source, seed: int) -> Task:
    """Return the task of a config.

    Parameters
    ----------
    config
        Configuration of the experiment.
    source
        The dataset.
    seed
        Random seed of the task.

    Raises
    ------
    ConfigError
        The task is not possible with the dataset.
    """
    task = config.task
    if task.partition == OWN:
        if config.federation.engine != "deployment":
            raise ConfigError(
                where="task.partition",
                allowed="another value in a run on one machine",
                got=OWN,
                remedy="Use --set task.partition=natural for a dataset with a column of clients",
            )
        return own_task(config.data, task, source, seed)
    return task_of(task, source, seed)


def load_tasks(config: ExperimentConfig, seeds: Sequence[int]) -> tuple[Source, dict[int, Task]]:
    """Return the dataset of a config, and its task for each seed."""
    # While hyperparameters are chosen, the test split is not loaded, so that no test image can be used.
    splits = SPLITS if config.task.evaluate_on == "test" else ("train", "validation")
    if config.task.partition != OWN:  # a node with its own images has the settings of all nodes
        check_used(config.data)
    source = with_targets(config, load_source(config.data, splits))
    return source, {seed: make_task(config, source, seed) for seed in seeds}


def data_elsewhere(data: DataConfig, source: str, changes: Sequence[str]) -> DataConfig:
    """Return the settings of a run's images with another source, whose layout and names are its own.

    Parameters
    ----------
    data
        The section [data] of the run.
    source
        The other data.source.
    changes
        How its images are read, such as "data.image_column=file".

    Raises
    ------
    ConfigError
        If a change is not a setting of [data], or is data.source.
    """
    keys = []
    for section, key, _ in map(parse_change, changes):
        if section != "data" or key == "source":
            raise ConfigError(
                where="--set",
                allowed="a setting of [data] other than data.source",
                got=f"{section}.{key}",
                remedy="Leave it out: --data or FOLDER names the images, and all other settings come from the run",
            )
        keys.append(key)
    given = load_config(changes=changes).data
    own = {"layout": "auto", "names": "", **{key: getattr(given, key) for key in keys}}
    return replace(data, source=source, **own)
