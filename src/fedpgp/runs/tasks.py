"""The data and the tasks of an experiment."""

from collections.abc import Sequence
from dataclasses import replace

from fedpgp.config import ExperimentConfig
from fedpgp.data.client_task import OWN, own_task
from fedpgp.data.protocols import task_of
from fedpgp.data.sources import SPLITS, ImageDataset, Source, check_used, load_source, load_target
from fedpgp.data.tasks import Task
from fedpgp.errors import ConfigError


def with_targets(config: ExperimentConfig, source: Source) -> Source:
    """The source with the test splits of what a task is tested on beside it, where its test split was read."""
    targets: dict[str, ImageDataset] = {}
    for name in config.task.targets if source.test is not None else ():
        target = load_target(replace(config.data, source=name, layout="auto", names=""))
        targets[target.name if target.name not in targets else f"{target.name} ({name})"] = target
    return replace(source, targets=targets)


def make_task(config: ExperimentConfig, source: Source, seed: int) -> Task:
    """The task that a config describes; raises ConfigError where it describes none."""
    task = config.task
    if task.partition == OWN:
        if config.federation.engine != "deployment":
            raise ConfigError(
                f"task.partition must be another than {OWN} where all images are in one place, got {OWN!r}: natural"
                " takes a column that says whose an image is"
            )
        return own_task(config.data, task, source, seed)
    return task_of(task, source, seed)


def load_tasks(config: ExperimentConfig, seeds: Sequence[int]) -> tuple[Source, dict[int, Task]]:
    """Return the data set of a config, and its task with each seed."""
    # Without the test split nothing can touch a test image while settings are chosen.
    splits = SPLITS if config.task.evaluate_on == "test" else ("train", "validation")
    if config.task.partition != OWN:  # of a node with images of its own, the settings are those of all nodes
        check_used(config.data)
    source = with_targets(config, load_source(config.data, splits))
    return source, {seed: make_task(config, source, seed) for seed in seeds}
