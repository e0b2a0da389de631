"""The content of the files of a run directory, as models that check it and do not change it.

Values that are not in these models, of later versions of fedpgp, are kept and not used.
"""

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, JsonValue, model_validator

from fedpgp.methods.plugins import NAME
from fedpgp.runtime import limits

Name = Annotated[str, Field(max_length=limits.NAME)]
Text = Annotated[str, Field(max_length=limits.JSON)]  # unlike texts without a limit, it must be valid UTF-8
MethodName = Annotated[str, Field(max_length=limits.NAME, pattern=rf"^{NAME.pattern}$")]
Names = Annotated[list[Name], Field(max_length=limits.CLASSES)]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
Client = Annotated[int, Field(ge=0, lt=limits.CLIENTS)]
Round = Annotated[int, Field(ge=0, le=limits.ROUNDS + 1)]
Seed = Annotated[int, Field(ge=0, lt=1 << 64)]
Percent = Annotated[float, Field(ge=0, le=limits.PERCENT)]
Number = Annotated[float, Field(ge=-limits.NUMBER, le=limits.NUMBER)]
Seconds = Annotated[float, Field(ge=0, le=limits.NUMBER)]
Alpha = Annotated[float, Field(ge=0, le=1)]
Object = dict[str, JsonValue]


class Content(BaseModel):
    """An object in a file."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, defer_build=True)


class Figures(Content):
    """Accuracies in percent: the mean of some models, or one point of a path."""

    __pydantic_extra__: dict[Name, Percent] = Field(init=False)
    local: Percent
    base: Percent
    hm: Percent
    cm: Percent


class Final(Figures):
    """Accuracies of the clients' models after the last round."""

    area: Percent


class BestRound(Figures):
    """Accuracies of the round that is best on validation."""

    round: Round


class PathPoint(Figures):
    """Accuracies of the models between the shared model and the clients' own models."""

    alpha: Alpha
    others: Percent


class ClientContent(Content):
    """A client, and the accuracies of its model."""

    __pydantic_extra__: dict[Name, Percent] = Field(init=False)
    client: Client
    name: Name | None = None
    classes: Names
    domains: Names | None
    examples: Count
    local: Percent
    base: Percent


class NewClientContent(ClientContent):
    """A client that joined after the last round."""


class TaskContent(Content):
    """The description of the task."""

    protocol: Name
    partition: Name
    data: Text
    clients: Annotated[int, Field(ge=1, le=limits.CLIENTS)]
    new_clients: Annotated[int, Field(ge=0, le=limits.CLIENTS)]
    base_classes: Annotated[int, Field(ge=0, le=limits.CLASSES)]
    novel: Name
    novel_data: Text | None
    novel_classes: Annotated[int, Field(ge=0, le=limits.CLASSES)]
    base_names: Names
    novel_names: Names
    templates: Annotated[list[Name], Field(min_length=1, max_length=limits.TEMPLATES)]
    novel_domains: Names
    evaluated_on: Literal["test", "validation"]
    images: dict[Name, Annotated[int, Field(ge=0, le=limits.IMAGES)]]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for names, count in ((self.base_names, self.base_classes), (self.novel_names, self.novel_classes)):
            if len(names) != count:
                raise ValueError(f"it has {len(names)} names of {count} classes")
        for template in self.templates:
            if template.count("{}") != 1 or {"{", "}"} & {*template.replace("{}", "")}:
                raise ValueError(f"the template {template!r} must contain {{}} once for the class name")
        if "base" not in self.images:
            raise ValueError("images.base is missing")
        return self


class Results(Content):
    """results.json."""

    method: MethodName
    seed: Seed
    task: TaskContent
    rounds: Round
    private: Names
    final: Final
    shared: Figures | None
    last_five: Figures
    best_on_validation: BestRound
    path: Annotated[list[PathPoint], Field(min_length=1, max_length=limits.PATH)]
    alpha_on_validation: Alpha
    clients: Annotated[list[ClientContent], Field(min_length=1, max_length=limits.CLIENTS)]
    new_clients: Annotated[list[NewClientContent], Field(max_length=limits.CLIENTS)]
    domains: dict[Name, Percent]
    macro: dict[Name, Percent] | None = None
    calibration_error: dict[Name, Percent] | None = None
    privacy: dict[Name, Seconds] | None = None
    bytes_up_per_client_round: Count
    bytes_down_per_client_round: Count
    seconds: Seconds

    @model_validator(mode="after")
    def _check(self) -> Self:
        alphas = [point.alpha for point in self.path]
        if alphas[-1] != 1 or any(one >= other for one, other in pairwise(alphas)):
            raise ValueError(f"the values of alpha in path must increase up to 1, got {alphas[:5]}")
        numbers = [client.client for client in self.clients]
        if len({*numbers}) < len(numbers) or max(numbers) >= self.task.clients:
            raise ValueError(f"the clients must be different ones of the task's {self.task.clients} clients")
        tests = {*self.task.images, "local"}
        of_points = [self.final, *([self.shared] if self.shared else []), self.last_five, *self.path, *self.clients]
        for figures in of_points:
            if missing := tests - {"local", "base"} - {*(figures.__pydantic_extra__ or ())}:
                raise ValueError(f"the accuracies of {', '.join(sorted(missing))} are missing")
        return self


class Record(Content):
    """A line of rounds.jsonl. All other values are numbers: accuracies, cosines, losses and others."""

    __pydantic_extra__: dict[Name, Number] = Field(init=False)
    round: Round
    participants: Annotated[list[Client], Field(max_length=limits.CLIENTS)]
    evaluated: Annotated[list[Client], Field(max_length=limits.CLIENTS)] | None = None
    shared: dict[Name, Number] | None = None
    new_clients: list[dict[Name, Percent]] | None = None
    lost: Text | None = None
    clipped: Annotated[list[Client], Field(max_length=limits.CLIENTS)] | None = None
    dropped: list[Object] | None = None
    refused: list[Object] | None = None
    older_state: list[Object] | None = None
    implausible: list[Object] | None = None
    bytes_down: Count
    bytes_up: Count
    seconds_training: Seconds
    seconds_evaluation: Seconds


class Packages(Content):
    """Versions of packages."""

    __pydantic_extra__: dict[Name, Name] = Field(init=False)
    torch: Name


class Provenance(Content):
    """provenance.json."""

    method: Object
    method_code: Name | None
    seed: Seed
    command: list[InstanceOf[str]]  # an argument may be a file name that is not valid UTF-8
    fedpgp: Name
    python: Name
    platform: Name
    packages: Packages
    checkpoint: Name
    licence: Name
    images: dict[Name, Name]
    started: Name
    resumed: list[Object] = []
    extended: list[Object] = []
    joined: Object = {}


class Origin(Content):
    """The description of an unfinished run in its state."""

    run: Name
    method: Name  # as an operator wrote it for `flwr run`: nodes refuse what is not the name of a method
    seed: Seed
    config: Text
    provenance: Provenance


class Plan(Content):
    """plan.json of a comparison: the methods, each with its seeds."""

    seeds: Annotated[
        dict[MethodName, Annotated[list[Seed], Field(min_length=1, max_length=limits.RUNS)]],
        Field(min_length=1, max_length=limits.RUNS),
    ]
