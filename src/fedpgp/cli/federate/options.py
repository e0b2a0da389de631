"""Options that several commands of `fedpgp federate` share."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpgp.cli import completion
from fedpgp.cli.option_groups import ExperimentOptions
from fedpgp.errors import ConfigError

if TYPE_CHECKING:
    from fedpgp.config import ExperimentConfig

Directory = Annotated[Path, typer.Argument(help="Directory that `fedpgp federate init` wrote.")]
Nodes = Annotated[
    int, typer.Option("--nodes", min=1, max=1000, help="Number of clients. Each client has its own node.")
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Use neither TLS nor keys. Only a loopback address is accepted.")
]


@dataclass(frozen=True)
class FederationOptions(ExperimentOptions):
    """Options that `init` and `up` share: the experiment of a federation."""

    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            help="Method that is run. `fedpgp methods` lists all methods.",
            autocompletion=completion.of_names("methods"),
        ),
    ] = "fedpgp"
    seed: Annotated[int, typer.Option("--seed", help="Random seed.")] = 0
    insecure: Insecure = False

    def deployment(self, nodes: int, class_names: Path | None = None) -> "tuple[ExperimentConfig, str]":
        """Return the config of a deployment and the name of the method.

        Raises
        ------
        ConfigError
            The experiment cannot be run.
        """
        from fedpgp.config import load_config
        from fedpgp.data.client_task import OWN, classes_of
        from fedpgp.data.sources.names import read_lines
        from fedpgp.runs.choices import one_method

        changes = [f"task.clients={nodes}", *self.changes]
        if class_names is not None:
            changes += [f"task.partition={OWN}", f"task.class_names={json.dumps(read_lines(class_names))}"]
        name, _ = one_method(self.method, self.config, changes)
        settings = load_config(self.config, [*changes, "federation.engine=deployment"], foreign=True)
        if settings.task.clients != nodes:
            raise ConfigError(
                where="task.clients",
                allowed=f"{nodes}, the number of --nodes",
                got=settings.task.clients,
                remedy=f"Leave out the setting, or use --nodes {settings.task.clients}",
            )
        if class_names is not None:
            classes_of(settings.task)
        return settings, name
