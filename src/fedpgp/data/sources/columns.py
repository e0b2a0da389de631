"""What the columns of a table mean: which has the images, their labels, domains, clients and splits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.sources.folder import split_number
from fedpgp.data.sources.listing import Listing
from fedpgp.data.sources.names import INTEGER, named
from fedpgp.errors import DataError

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

IMAGE, LABEL, DOMAIN, CLIENT, SPLIT = "image", "label", "domain", "client", "split"
USUAL: Mapping[str, tuple[str, ...]] = {
    IMAGE: (
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "image",
        "image_path",
        "img",
        "img_path",
        "jpg",
        "png",
        "webp",
    ),
    LABEL: ("label", "labels", "class", "category", "target", "class_name", "label_name", "fine_label", "cls"),
    DOMAIN: ("domain", "style", "site", "source"),
    CLIENT: ("client", "client_id", "user", "user_id", "writer", "writer_id", "hospital"),
    SPLIT: ("split", "set", "partition", "fold"),
}
NEEDED = (IMAGE, LABEL)


def find_columns(names: Sequence[str], data: "DataConfig", where: str) -> dict[str, str]:
    """Role -> column: those that a config names, else those with a usual name; only image and label must exist.

    Raises DataError for a column that is named and missing, needed and not found, or one of several that could be it.
    """
    chosen: dict[str, str] = {}
    has = f"it has the columns {', '.join(names)}"
    for role, usual in USUAL.items():
        key = f"data.{role}_column"
        wanted = getattr(data, f"{role}_column")
        if wanted:
            if wanted not in names:
                raise DataError(f"{where}: has no column {wanted!r}, which {key} names; {has}")
            chosen[role] = wanted
            continue
        found = [name for name in names if name.strip().casefold() in usual]
        if len(found) > 1:
            raise DataError(f"{where}: {' and '.join(map(repr, found))} could both be the {role}: set {key} to one")
        if found:
            chosen[role] = found[0]
        elif role in NEEDED:
            raise DataError(f"{where}: has no column that is the {role}, such as {usual[0]}: set {key}; {has}")
    return chosen


def described(
    table: Any,
    columns: Mapping[str, str],
    where: str,
    directory: Path,
    data: "DataConfig",
    pictures: Any,
    splits: NDArray[np.int64] | None = None,
    class_names: Sequence[str] | None = None,
) -> Listing:
    """The listing of a pyarrow table whose columns have these roles; its images are given.

    splits: where no column has them; class_names: of labels that index these.
    """

    def place(image: int) -> str:
        return f"row {image + 1}"

    found, codes = _codes(table[columns[LABEL]], f"{where}: column {columns[LABEL]!r}")
    if class_names is not None and not data.names:
        labels = np.array([int(one) for one in found], dtype=np.int64)[codes]
        names = tuple(class_names)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
        if len(wrong):
            raise DataError(
                f"{where}: {place(int(wrong[0]))} has the label {labels[wrong[0]]}, and the names of its classes are 0"
                f" to {len(names) - 1}: take the row out"
            )
    else:
        names, labels = named(found, codes, where, directory, data, place, needed=True)
    if SPLIT in columns:
        words, which = _codes(table[columns[SPLIT]], f"{where}: column {columns[SPLIT]!r}")
        numbers = [split_number(word) for word in words]
        if None in numbers:
            code = numbers.index(None)
            row = int(np.flatnonzero(which == code)[0])
            raise DataError(
                f"{where}: {place(row)}: {columns[SPLIT]} must be train, validation or test, got {words[code]!r}: write"
                " one of them, or set data.split_column to another column"
            )
        splits = np.array(numbers, dtype=np.int64)[which]
    domain_names, domains = _sorted(table, columns, DOMAIN, where)
    client_names, clients = _sorted(table, columns, CLIENT, where)
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
    )


def _codes(column: Any, where: str) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct values of a column as texts, and [n] the place of each row's; raises DataError for an empty cell."""
    import pyarrow

    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pyarrow.ChunkedArray):
        whole = pyarrow.concat_arrays(whole.chunks)
    if not isinstance(whole, pyarrow.DictionaryArray):
        whole = whole.dictionary_encode()
    values = ["" if value is None else str(value).strip() for value in whole.dictionary.to_pylist()]
    empty = np.isin(np.arange(len(values)), [i for i, value in enumerate(values) if not value])
    codes = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = np.flatnonzero((codes < 0) | np.r_[empty, True][codes])
    if len(rows):
        raise DataError(f"{where} is empty in row {rows[0] + 1}: fill it in, or take the row out")
    distinct = list(dict.fromkeys(values))  # two may be the same but for spaces
    place = {value: i for i, value in enumerate(distinct)}
    return distinct, np.array([place[value] for value in values], dtype=np.int64)[codes]


def _sorted(
    table: Any, columns: Mapping[str, str], role: str, where: str
) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Names of domains or clients in order, integers as numbers, and [n] each row's."""
    if role not in columns:
        return (), None
    found, codes = _codes(table[columns[role]], f"{where}: column {columns[role]!r}")
    names = sorted(found, key=int) if all(INTEGER.fullmatch(one) for one in found) else sorted(found)
    return tuple(names), np.array([names.index(one) for one in found], dtype=np.int64)[codes]
