"""The roles of the columns of a table: images, labels, domains, clients and splits."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources.folder import split_numbers
from fedpgp.data.sources.listing import UNLABELLED, ChosenPictures, Listing
from fedpgp.data.sources.names import INTEGER, named, superclasses_of
from fedpgp.errors import DataError

IMAGE, LABEL, DOMAIN, CLIENT, SPLIT, SUPERCLASS = "image", "label", "domain", "client", "split", "superclass"
USUAL: Mapping[str, str] = {
    IMAGE: "path file filename file_name filepath file_path image image_path img img_path jpg png webp",
    LABEL: "label labels class category target class_name label_name fine_label cls",
    DOMAIN: "domain style site source",
    CLIENT: "client client_id user user_id writer writer_id hospital",
    SPLIT: "split set partition fold",
    SUPERCLASS: "coarse_label",  # column of CIFAR-100 on the hub
}
NEEDED = (IMAGE, LABEL)
FOLDS = ("fold", "set", "partition")  # columns whose numbers are parts of a cross-validation
NO_CLASS = "-1"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
FRACTION = re.compile(r".*[.eE].*")  # not a class if integers are written without a point
LIST = re.compile(r"\[.*\]|\{.*\}", re.DOTALL)
MISSING = ("", "nan", "na", "null", "none", "<na>")  # missing values among numbers and booleans
TRUTH: Mapping[str, str] = {"true": "1", "false": "0"}


def find_columns(names: Sequence[str], data: DataConfig, where: str) -> dict[str, str]:
    """Find the column of each role.

    Parameters
    ----------
    names
        The names of the columns.
    data
        The section [data] of the config, which may name columns. Other columns are found by their usual names.
    where
        The table, for messages.

    Returns
    -------
    Column by role. Only the roles image and label must have a column.

    Raises
    ------
    DataError
        If a configured or necessary column is missing, or if several columns could have one role.
    """
    chosen: dict[str, str] = {}
    has = f"the table has the columns {', '.join(names)}"
    for role, words in USUAL.items():
        usual = words.split()
        key = f"data.{role}_column"
        wanted = getattr(data, f"{role}_column", "")  # there is no setting for the column of superclasses
        if wanted:
            if wanted not in names:
                raise DataError(
                    f"the table has no column {wanted!r}, which {key} names",
                    where=where,
                    remedy=f"Set {key} to another one: {has}",
                )
            chosen[role] = wanted
            continue
        fitting = [name for name in names if name.strip().casefold() in usual]
        if len(fitting) > 1:
            raise DataError(
                f"{' and '.join(map(repr, fitting))} could both be the column of the {role}",
                where=where,
                remedy=f"Set {key} to one of them",
            )
        if fitting:
            chosen[role] = fitting[0]
        elif role in NEEDED:
            raise DataError(
                f"the table has no column of the {role}, such as {usual[0]}", where=where, remedy=f"Set {key}: {has}"
            )
    return chosen


def described(
    table: Any,
    columns: Mapping[str, str],
    where: str,
    data: DataConfig,
    pictures: Any,
    class_names: Sequence[str] | None,
) -> Listing:
    """Return the listing of a pyarrow table.

    Parameters
    ----------
    table
        The table.
    columns
        Column by role.
    where
        The table, for messages.
    data
        The section [data] of the config.
    pictures
        The images of the rows.
    class_names
        The class names, if the labels are indices into them.
    """

    rows, unlabelled = np.arange(len(table)), 0
    if data.drop_unlabelled:
        rows = _labelled(table[columns[LABEL]], f"{where}, column {columns[LABEL]!r}")
        if not len(rows):
            raise DataError(
                "no row has a label",
                where=f"{where}, column {columns[LABEL]!r}",
                remedy="Set data.label_column to another column",
            )
        unlabelled = len(table) - len(rows)
        if unlabelled:
            table, pictures = table.take(rows), ChosenPictures(pictures, rows)

    def place(image: int) -> str:
        return f"row {rows[image] + 1}"

    def codes_of(role: str) -> tuple[list[str], NDArray[np.int64]]:
        return _codes(table[columns[role]], role, where, columns[role], rows)

    def sorted_codes(role: str) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
        """Return names of domains or clients, sorted, integers by value, and [n] the index of each row's name."""
        if role not in columns:
            return (), None
        values, codes = codes_of(role)
        names = sorted(values, key=int if all(map(INTEGER.fullmatch, values)) else None)
        order = {name: number for number, name in enumerate(names)}
        return tuple(names), np.array([order[value] for value in values], dtype=np.int64)[codes]

    values, codes = codes_of(LABEL)
    if NO_CLASS in values and all(map(INTEGER.fullmatch, values)):
        row = int(np.argmax(codes == values.index(NO_CLASS)))
        raise DataError(
            f"the label {NO_CLASS} is not a class",
            where=f"{where}, {place(row)}, column {columns[LABEL]!r}",
            remedy="Leave such rows out with --set data.drop_unlabelled=true",
        )
    if class_names is not None and not data.names:
        labels = np.array(values, dtype=np.int64)[codes]
        names = tuple(class_names)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if len(wrong):
            raise DataError(
                where=f"{where}, {place(int(wrong[0]))}, label",
                allowed=f"0 to {len(names) - 1}, the indices of the class names",
                got=int(labels[wrong[0]]),
                remedy="Remove the row",
            )
    else:
        names, labels = named(values, codes, where, data, place, needed=True)
    splits = None
    ignored = {UNLABELLED[0]: unlabelled} if unlabelled else {}
    if SPLIT in columns:
        words, of_split = codes_of(SPLIT)
        if columns[SPLIT].strip().casefold() in FOLDS and not data.split_column and all(map(INTEGER.fullmatch, words)):
            ignored[f"column {columns[SPLIT]}, whose numbers are not splits"] = len(rows)
        else:
            remedy = "Write one of these, or set data.split_column to another column"
            splits = split_numbers(
                words, of_split, lambda image: f"{where}, {place(image)}, column {columns[SPLIT]!r}", remedy
            )
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
        ignored=ignored,
    )


def _codes(
    column: Any, role: str, where: str, name: str, rows: NDArray[np.int64]
) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct values of a column as texts, and [n] the index of each row's value.

    `rows`: [n] row numbers for messages. Raises DataError for an empty cell, and for a label that is not a class.
    """
    values, codes = _typed(*_encoded(column, role, f"{where}, column {name!r}"), boolean=role == LABEL)

    def first(value: str) -> str:
        row = int(rows[np.argmax(codes == values.index(value))]) + 1
        return f"{where}, row {row}, column {name!r}"

    if "" in values:
        remedy = "Fill it in, or remove the row"
        if role == LABEL:
            remedy += ", or leave out all such rows with --set data.drop_unlabelled=true"
        raise DataError("the cell is empty", where=first(""), remedy=remedy)
    no_class = FRACTION if all(map(NUMBER.fullmatch, values)) else LIST
    wrong = next((value for value in values if role == LABEL and no_class.fullmatch(value)), None)
    if wrong is not None:
        raise DataError(
            where=first(wrong),
            allowed="one class, as text or an integer",
            got=wrong,
            remedy="Write its class there, or set data.label_column to another column",
        )
    return values, codes


def _labelled(column: Any, where: str) -> NDArray[np.int64]:
    """Return the rows whose label is neither empty nor, among integers, −1."""
    values, codes = _typed(*_encoded(column, LABEL, where), boolean=True)
    integers = all(value == "" or INTEGER.fullmatch(value) for value in values)
    missing = [place for place, value in enumerate(values) if value == "" or (integers and value == NO_CLASS)]
    return np.flatnonzero(~np.isin(codes, missing))


def _encoded(column: Any, role: str, where: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct values of a column as written, with "" for an empty cell, and [n] each row's index."""
    import pyarrow
    import pyarrow.compute as compute
    import pyarrow.types as types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    try:
        if types.is_nested(kind) or (role == LABEL and types.is_temporal(kind)):
            raise pyarrow.ArrowTypeError("neither text nor number")
        texts = compute.utf8_trim_whitespace(column.cast(kind).cast(pyarrow.large_string()))
    except pyarrow.ArrowException as error:
        raise DataError(
            where=where,
            allowed="a column of texts or numbers",
            got=str(column.type),
            remedy="Write texts or numbers" if role == SUPERCLASS else f"Set data.{role}_column to another column",
        ) from error
    encoded = texts.fill_null("").combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _typed(values: list[str], codes: NDArray[np.int64], boolean: bool) -> tuple[list[str], NDArray[np.int64]]:
    """Return the same values with numbers and booleans in one notation: integers without a point, missing ones as "".

    `boolean`: true becomes 1 and false becomes 0.
    """
    present = [value for value in values if value.casefold() not in MISSING]
    meant = dict(zip(values, values, strict=True))
    if boolean and present and all(value.casefold() in TRUTH for value in present):
        meant = {value: TRUTH.get(value.casefold(), "") for value in values}
    elif present and all(map(NUMBER.fullmatch, present)):
        whole = {value: str(int(float(value))) for value in present if float(value).is_integer()}
        if len(whole) == len(present) and not all(map(INTEGER.fullmatch, present)):
            meant |= whole
        meant |= {value: "" for value in values if value not in present}
    order = {value: number for number, value in enumerate(dict.fromkeys(meant.values()))}
    return list(order), np.array([order[meant[value]] for value in values], dtype=np.int64)[codes]
