"""What the columns of a table mean: which has the images, their labels, domains, clients and splits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources.folder import split_numbers
from fedpgp.data.sources.listing import Listing
from fedpgp.data.sources.names import INTEGER, named, superclasses_of
from fedpgp.errors import DataError

IMAGE, LABEL, DOMAIN, CLIENT, SPLIT, SUPERCLASS = "image", "label", "domain", "client", "split", "superclass"
USUAL: Mapping[str, str] = {
    IMAGE: "path file filename file_name filepath file_path image image_path img img_path jpg png webp",
    LABEL: "label labels class category target class_name label_name fine_label cls",
    DOMAIN: "domain style site source",
    CLIENT: "client client_id user user_id writer writer_id hospital",
    SPLIT: "split set partition fold",
    SUPERCLASS: "coarse_label",  # of CIFAR-100 on the hub
}
NEEDED = (IMAGE, LABEL)


def find_columns(names: Sequence[str], data: DataConfig, where: str) -> dict[str, str]:
    """Role -> column: those that a config names, else those with a usual name; only image and label must exist.

    Raises DataError for a column that is named and missing, needed and not found, or one of several that could be it.
    """
    chosen: dict[str, str] = {}
    has = f"it has the columns {', '.join(names)}"
    for role, words in USUAL.items():
        usual = words.split()
        key = f"data.{role}_column"
        wanted = getattr(data, f"{role}_column", "")  # no setting names a column of superclasses
        if wanted:
            if wanted not in names:
                raise DataError(f"{where}: has no column {wanted!r}, which {key} names; {has}")
            chosen[role] = wanted
            continue
        fitting = [name for name in names if name.strip().casefold() in usual]
        if len(fitting) > 1:
            raise DataError(f"{where}: {' and '.join(map(repr, fitting))} could both be the {role}: set {key} to one")
        if fitting:
            chosen[role] = fitting[0]
        elif role in NEEDED:
            raise DataError(f"{where}: has no column that is the {role}, such as {usual[0]}: set {key}; {has}")
    return chosen


def described(
    table: Any,
    columns: Mapping[str, str],
    where: str,
    data: DataConfig,
    pictures: Any,
    class_names: Sequence[str] | None,
) -> Listing:
    """The listing of a pyarrow table whose columns have these roles; its images are given.

    class_names: of labels that index these.
    """

    def place(image: int) -> str:
        return f"row {image + 1}"

    def codes_of(role: str) -> tuple[list[str], NDArray[np.int64]]:
        return _codes(table[columns[role]], f"{where}: column {columns[role]!r}")

    def sorted_codes(role: str) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
        """Names of domains or clients in order, integers as numbers, and [n] each row's."""
        if role not in columns:
            return (), None
        values, codes = codes_of(role)
        names = sorted(values, key=int if all(map(INTEGER.fullmatch, values)) else None)
        return tuple(names), np.array([names.index(value) for value in values], dtype=np.int64)[codes]

    values, codes = codes_of(LABEL)
    if class_names is not None and not data.names:
        labels = np.array(values, dtype=np.int64)[codes]
        names = tuple(class_names)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if len(wrong):
            raise DataError(
                f"{where}: {place(int(wrong[0]))} has the label {labels[wrong[0]]}, and the names of its classes are 0"
                f" to {len(names) - 1}: take the row out"
            )
    else:
        names, labels = named(values, codes, where, data, place, needed=True)
    splits = None
    if SPLIT in columns:
        remedy = "write one of them, or set data.split_column to another column"
        splits = split_numbers(*codes_of(SPLIT), lambda image: f"{where}: {place(image)}: {columns[SPLIT]}", remedy)
    domain_names, domains = sorted_codes(DOMAIN)
    client_names, clients = sorted_codes(CLIENT)
    _, superclasses = sorted_codes(SUPERCLASS)
    return Listing(
        name=Path(where).stem,
        where=where,
        pictures=pictures,
        class_names=names,
        labels=labels,
        splits=splits,
        domain_names=domain_names or ("all",),
        domains=domains,
        client_names=client_names,
        clients=clients,
        superclasses=None if superclasses is None else superclasses_of(labels, superclasses, names, where),
    )


def _codes(column: Any, where: str) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct values of a column as texts, and [n] the place of each row's; raises DataError for an empty cell."""
    import pyarrow
    import pyarrow.compute as compute

    try:
        texts = compute.utf8_trim_whitespace(column.cast(pyarrow.large_string())).fill_null("").combine_chunks()
    except pyarrow.ArrowException as error:
        raise DataError(f"{where} must hold texts or numbers, got {column.type}: name another column") from error
    encoded = texts.dictionary_encode()
    values, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    if "" in values:
        row = int(np.argmax(codes == values.index("")))
        raise DataError(f"{where} is empty in row {row + 1}: fill it in, or take the row out")
    return values, codes
