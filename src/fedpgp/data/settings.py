"""The sections of the config about images and about the clients that hold them."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedpgp.runtime.validation import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """Source of the images."""

    source: str = Field(
        default="pictograms",
        description='Dataset: "pictograms" (embedded), a directory or file, "hf:ORG/NAME", or a known name, searched'
        ' below root; without its images, "caltech101" uses embedded features of photoclip',
    )
    root: str = Field(default="data", description="Directory that holds the datasets with a known name")
    layout: str = Field(default="auto", description="Layout of the files; `fedpgp data layouts` lists all of them")
    names: str = Field(default="", description="File with one class name, or one identifier and its name, in each line")
    template: str = Field(
        default="", description='Hand-written prompt with {} for the class name; "": the prompt of the dataset'
    )
    image_column: str = Field(
        default="", description="Column of a table with the images; an unset column is found by its name"
    )
    label_column: str = Field(default="", description="Column of a table with the labels")
    domain_column: str = Field(default="", description="Column of a table with the domains")
    client_column: str = Field(default="", description="Column of a table with the owner of each image")
    split_column: str = Field(default="", description="Column of a table with the splits: train, validation or test")
    drop_unlabelled: bool = Field(
        default=False,
        description="Leave out table rows whose label is empty or −1, and images outside the folders of the classes",
    )
    drop_unused_classes: bool = Field(default=False, description="Leave out classes without an image")
    follow_links: bool = Field(default=False, description="Follow links to images and folders outside of the directory")
    test_share: float = Field(
        default=0.2, gt=0, lt=1, description="Share of each class for testing, if the dataset has no test split"
    )
    validation_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share of each class's training images for validation, if the dataset has no validation split",
    )
    augmented_views: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Stored views of each training image; 1: the centre crop; K > 1: random crops, half of them"
        " flipped, one drawn in each epoch (authors' code: a new crop in each epoch; for CIFAR neither crop nor flip)",
    )
    token_precision: Literal["full", "float16"] = Field(
        default="full", description="Precision of stored patch features and image tower states; float16 halves the size"
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TaskConfig:
    """Division of the images among the clients, and test sets.

    With `domain_per_client`, the training images and the own test images of a client come from one domain. The domains
    are assigned in turn, and a partition of images divides each domain separately. The `new_clients` take no part
    before training is over.
    """

    protocol: Literal["base-to-novel", "personalization", "leave-one-domain-out", "cross-data-set", "global"] = Field(
        default="base-to-novel",
        description="Evaluation protocol; Novel tests the second half of the classes with base-to-novel, held-out"
        " domains with leave-one-domain-out, other datasets with cross-data-set",
    )
    partition: Literal["classes", "dirichlet", "pachinko", "pathological", "shards", "iid", "natural", "own"] = Field(
        default="classes",
        description="Division of the training images among the clients; classes: each class belongs to one client"
        " (paper); own: only in a deployment, each client has all images of its node's data source",
    )
    class_names: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="Class names of all clients with the partition own; base-to-novel: the first half is base",
    )
    clients: int = Field(
        default=10,
        ge=1,
        le=1_000_000,
        description="Number of clients (10: paper, base-to-novel); natural: the owners with the most images",
    )
    new_clients: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Number of clients that join after training and fit only their private part",
    )
    classes_per_client: int | None = Field(
        default=None,
        ge=1,
        description="Number of classes of each client; classes: unset divides all classes (paper); pathological:"
        " clients may share a class, unset is 2",
    )
    class_division: Literal["even", "authors"] = Field(
        default="even",
        description='Rule of the partition classes; "even": class counts differ by at most one, drawn with the seed;'
        ' "authors": round(C / N) classes for each client, the rest for the last, the same draw for all seeds',
    )
    shards_per_client: int = Field(
        default=2, ge=1, description="Number of shards of each client with the partition shards (McMahan et al.)"
    )
    concentration: float = Field(
        default=0.3,
        gt=0,
        le=1e6,
        description="Dirichlet parameter, of each class with dirichlet, of superclasses with pachinko (paper: 0.3)",
    )
    fine_concentration: float = Field(
        default=10.0,
        gt=0,
        le=1e6,
        description="Dirichlet parameter of the classes of a superclass with pachinko (paper: 10)",
    )
    domain_per_client: bool = Field(
        default=False, description="Give each client images of only one domain; domains are assigned in turn"
    )
    held_out: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="Domains that no client trains on with leave-one-domain-out; empty: the dataset's last domain",
    )
    targets: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        default=(),
        description="Datasets to test on with cross-data-set, each like data.source; the first is Novel",
    )
    shots: int = Field(default=8, ge=0, description="Training images per class (paper: 8 and 16); 0: all")
    fewer_shots: bool = Field(
        default=False, description="Let a class with fewer training images than shots contribute all it has"
    )
    evaluate_on: Literal["test", "validation"] = Field(
        default="test",
        description='Split to test on; "validation": choose settings, on validation images of base classes only',
    )

    @property
    def everybody(self) -> int:
        """The number of clients, including clients that join after training."""
        return self.clients + self.new_clients
