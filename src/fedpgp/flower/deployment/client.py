"""A client on a SuperNode, with the data that its node has."""

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

from fedpgp.config import ExperimentConfig, load_config, with_device
from fedpgp.data.client_task import OWN
from fedpgp.errors import ConfigError, nearest
from fedpgp.flower.deployment.app_policy import names
from fedpgp.flower.node import Node, answer
from fedpgp.methods import METHODS
from fedpgp.methods.plugins import find_method, installed
from fedpgp.runs.execution import Execution
from fedpgp.runs.setup import open_run
from fedpgp.runtime.validation import STRICT, value_error


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NodeSettings:
    """Settings of a client's node, from --node-config or `fedpgp federate node`, and of the run that it is part of.

    An empty text means the experiment's value, or a directory of the user.

    Attributes
    ----------
    experiment
        File of the config.
    method, seed
        Method and seed of the run.
    client
        Number of the client.
    data
        Place of the client's images, as in data.source.
    state
        Directory of the private parts.
    cache
        Directory of the image features.
    device
        Device, as in backbone.device.
    plugins
        Names of the installed methods that the owner of the node enabled.
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
        """Read settings; raise ConfigError for an unknown key, a missing key or a value of another type."""
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
            raise value_error(detail, where, f"Correct {key} in node.toml") from error

    @property
    def states(self) -> Path:
        """Directory of the private parts."""
        return Path(self.state) if self.state else user_state_path("fedpgp") / "clients"


def configured(experiment: Path, method: str) -> ExperimentConfig:
    """Return the experiment of a run; raise ConfigError if it cannot be read or the method is unknown."""
    config = load_config(experiment, foreign=True)
    if method not in config.methods:
        config = replace(config, methods={**config.methods, method: find_method(method)()})
    return replace(config, federation=replace(config.federation, engine="deployment"))


def check_method(name: str, plugins: str) -> None:
    """Check that a run may use a method on this node. A method from a file is always refused.

    Parameters
    ----------
    name
        Name of the method, which the server chose.
    plugins
        Names of the installed methods that the owner of the node enabled.

    Raises
    ------
    ConfigError
        If the method is not a built-in one and not enabled.
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
    """Open a client once in this process: read its image features from the cache, or encode its images.

    Raises
    ------
    FedPGPError
        If the node's settings or data do not fit the experiment, or the method may not run here.
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
    config = with_device(config, settings.device or None)
    with open_run(config, name, settings.seed, Execution(cache=settings.cache or None)) as opened:
        client = opened.task.clients[0 if config.task.partition == OWN else settings.client]
        return Node(opened.runner_of(replace(client, id=settings.client)), settings.states)


def answer_as(kind: str, content: RecordDict, about: Mapping[str, Any]) -> RecordDict:
    """Return a client's answer to a message.

    Parameters
    ----------
    kind
        Kind of the message.
    content
        The message.
    about
        The client's `NodeSettings`, from Flower.
    """
    torch.set_num_threads(1)  # as in `Workers`, so that the figures have the same bits
    return answer(kind, content, lambda: open_client(NodeSettings.of(about)), trusted=False)
