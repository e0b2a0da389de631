"""A client on a SuperNode, with the data that its node says."""

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from flwr.app import RecordDict
from platformdirs import user_state_path
from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from fedpgp.config import ExperimentConfig, load_config, reason
from fedpgp.data.client_task import OWN
from fedpgp.errors import ConfigError, nearest
from fedpgp.flower.deployment.app_policy import names
from fedpgp.flower.node import Node, answer
from fedpgp.methods import METHODS
from fedpgp.methods.plugins import find_method, installed
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import open_run
from fedpgp.runtime.validation import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NodeSettings:
    """What a client is asked to run, and what its node says of itself: --node-config, or fedpgp federate node.

    experiment: the file of the config; method, seed: of the run. client: its number; data: where its images lie, as
    data.source; state: the directory of its private parts; cache: of image features; device: as backbone.device. ""
    takes the experiment's, or the user's directories. plugins: names of the installed methods that its owner enabled.
    """

    experiment: str
    method: str
    seed: int
    client: int
    data: str = ""
    state: str = ""
    cache: str = ""
    device: str = ""
    plugins: str = ""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Raises ConfigError for an unknown key, a value of another type, and where something is missing."""
        try:
            return cls(**given)
        except ValidationError as error:
            detail = error.errors()[0]
            key, known = str(detail["loc"][0]), [field.name for field in fields(cls)]
            where = f"{key} in the node's settings (node.toml or --node-config)"
            if detail["type"] == "missing":
                remedy = "Add a line such as client = 0, as in the node.toml that fedpgp federate init writes"
                raise ConfigError("this setting is missing", where=where, remedy=remedy) from error
            if key not in known:
                raise ConfigError("there is no such setting", where=where, remedy=nearest(key, known)) from error
            allowed = reason(detail).removeprefix("must be ").rpartition(", got ")[0]
            remedy = f"Correct {key} in node.toml"
            raise ConfigError(where=where, allowed=allowed, got=detail["input"], remedy=remedy) from error

    @property
    def states(self) -> Path:
        return Path(self.state) if self.state else user_state_path("fedpgp") / "clients"


def configured(experiment: Path, method: str) -> ExperimentConfig:
    """The experiment of a run; raises ConfigError where it cannot be read, or the method is unknown."""
    config = load_config(experiment, foreign=True)
    if method not in config.methods:
        config = replace(config, methods={**config.methods, method: find_method(method)()})
    return replace(config, federation=replace(config.federation, engine="deployment"))


def check_method(name: str, plugins: str) -> None:
    """Raise ConfigError for a method that a run may not use on a node: its name comes from the server.

    plugins: the installed methods that the node's owner enabled. A file is refused, whoever names it.
    """
    if name in METHODS:
        return
    if name not in installed():
        raise ConfigError(
            where="the method of a run",
            allowed="a built-in method or an installed plug-in",
            got=name,
            remedy="Ask the server's operator for another method; or install this one here, and add its name to"
            " plugins in node.toml",
        )
    if name not in names(plugins):
        raise ConfigError(
            "this installed plug-in is not enabled by the owner of the node",
            where=f"method {name!r}",
            remedy="Add its name to plugins in node.toml if it may run here",
        )


@lru_cache(maxsize=1)
def open_client(settings: NodeSettings) -> Node:
    """A client with its data, read from the feature cache or encoded, for as long as the process lives.

    Raises FedPGPError where the node's settings or its data do not fit the experiment, or the method may not run here.
    """
    name = settings.method
    check_method(name, settings.plugins)
    config = configured(Path(settings.experiment), name)
    if not 0 <= settings.client < config.task.clients:
        raise ConfigError(
            where="client in the node's settings",
            allowed=f"0 to {config.task.clients - 1}",
            got=settings.client,
            remedy="Correct client in node.toml",
        )
    if config.task.partition == OWN and not settings.data:
        raise ConfigError(
            "the place of the client's images is missing",
            where="data in the node's settings",
            remedy="Use --data DIRECTORY, or set data in node.toml",
        )
    if settings.data:
        config = replace(config, data=replace(config.data, source=settings.data))
    if settings.device:
        config = replace(config, backbone=replace(config.backbone, device=settings.device))
    with open_run(config, name, settings.seed, Execution(cache=settings.cache or None)) as opened:
        client = opened.task.clients[0 if config.task.partition == OWN else settings.client]
        return Node(opened.runner_of(replace(client, id=settings.client)), settings.states)


def answer_as(kind: str, content: RecordDict, about: Mapping[str, Any]) -> RecordDict:
    """What a client answers. about: its `NodeSettings`, from Flower."""
    torch.set_num_threads(1)  # of this thread: as `Workers` has it, so that figures have the same bits
    return answer(kind, content, lambda: open_client(NodeSettings.of(about)), trusted=False)
