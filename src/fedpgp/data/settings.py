"""The sections of the config on images, and on who has them."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedpgp.runtime.validation import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Where the images come from."""

    source: str = Field(
        default="pictograms",
        description='"pictograms" (embedded), "caltech101" (embedded as features of photoclip if it is not below root),'
        ' a directory or file, "hf:ORG/NAME", or a known name that lies below root',
    )
    root: str = Field(default="data", description="the directory that holds the data sets with a known name")
    layout: str = Field(default="auto", description="how a directory is to be read; fedpgp data layouts lists them")
    names: str = Field(
        default="", description="a file with a class name in each line, or with an identifier and its name"
    )
    template: str = Field(
        default="", description='hand-written prompt with {} for the class name; "": that of the data set'
    )
    image_column: str = Field(default="", description="of a table; this and the next four: found by its name if unset")
    label_column: str = Field(default="", description="of a table")
    domain_column: str = Field(default="", description="of a table")
    client_column: str = Field(default="", description="of a table: whose image it is")
    split_column: str = Field(default="", description="of a table: train, validation or test")
    drop_unlabelled: bool = Field(
        default=False,
        description="leave out rows of a table whose label is empty or −1",
    )
    drop_unused_classes: bool = Field(default=False, description="leave out class names of which there is no image")
    follow_links: bool = Field(
        default=False, description="read images and folders also where a link leads out of the directory"
    )
    test_share: float = Field(
        default=0.2, gt=0, lt=1, description="of every class, where the data set has no test split"
    )
    validation_share: float = Field(
        default=0.1, gt=0, lt=1, description="of every class's training images, where there is no validation split"
    )
    augmented_views: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="views of each training image. 1: the centre crop; K: random crops, half of them flipped, of which"
        " each epoch draws one (authors' code: a new crop in each epoch; CIFAR: neither crop nor flip)",
    )
    token_precision: Literal["full", "float16"] = Field(
        default="full", description="of patch features and states of the image tower on disk; float16 takes half"
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskConfig:
    """Who has what, and what is tested.

    domain_per_client: a client's images, and its own test images, are of one domain; domains are dealt out in turn, and
    a partition of images shares out each domain by itself. new_clients take part in nothing before training is over.
    """

    protocol: Literal["base-to-novel", "personalization", "leave-one-domain-out", "cross-data-set", "global"] = Field(
        default="base-to-novel",
        description="novel: the second half of the classes, nothing, domains, other data sets, or nothing",
    )
    partition: Literal["classes", "dirichlet", "pachinko", "pathological", "shards", "iid", "natural", "own"] = Field(
        default="classes",
        description="who has which training images; classes: dealt out without overlap (paper); own: deployment alone,"
        " all that a node's data source holds are its client's",
    )
    class_names: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="own: of all clients' images, in one order; base-to-novel: the first half is base"
    )
    clients: int = Field(default=10, ge=1, description="N (paper, base-to-novel); natural: those with the most images")
    new_clients: int = Field(
        default=0, ge=0, description="so many of them join after training: the shared part stays, they fit their own"
    )
    classes_per_client: int | None = Field(
        default=None,
        ge=1,
        description="classes: of each; unset: all dealt out (paper). pathological: of each, with overlap",
    )
    class_division: Literal["even", "authors"] = Field(
        default="even",
        description='with the partition classes; "even": numbers of classes that differ by at most one, drawn by the'
        ' seed; "authors": round(C / N) for each client, the rest for the last one, one draw for all seeds',
    )
    shards_per_client: int = Field(default=2, ge=1, description="shards: sorted by class and cut (McMahan et al.)")
    concentration: float = Field(
        default=0.3, gt=0, le=1e6, description="dirichlet: of each class; pachinko: of superclasses (paper: 0.3)"
    )
    fine_concentration: float = Field(
        default=10.0, gt=0, le=1e6, description="pachinko: of the classes of a superclass (paper: 10)"
    )
    domain_per_client: bool = Field(
        default=False, description="every client has images of one domain alone, dealt out in turn"
    )
    held_out: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="leave-one-domain-out: the domains that nobody trains on; none: the last of the data set",
    )
    targets: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(), description="cross-data-set: what data.source could be, to be tested on; the first is Novel"
    )
    shots: int = Field(default=8, ge=0, description="training images per class (paper: 8 and 16); 0: all")
    fewer_shots: bool = Field(
        default=False, description="shots is at most: a class with fewer training images gives all that it has"
    )
    evaluate_on: Literal["test", "validation"] = Field(
        default="test",
        description='"validation": the protocol within the base classes on validation images, to choose settings',
    )

    @property
    def everybody(self) -> int:
        return self.clients + self.new_clients
