"""Tables: a CSV, TSV or Parquet file with a row for each image."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.decode import FilePictures
from fedpgp.data.sources import hugging_face
from fedpgp.data.sources.columns import IMAGE, described, find_columns
from fedpgp.data.sources.listing import Listing
from fedpgp.errors import DataError

if TYPE_CHECKING:
    from fedpgp.data.settings import DataConfig

TEXT = (".csv", ".tsv", ".tab")
SUFFIXES = (*TEXT, ".parquet")


def read(file: Path, data: "DataConfig") -> Listing:
    """All images that a table names; raises DataError for a file that is no such table, and for rows that are wrong."""
    if file.suffix.lower() == ".parquet":
        columns, unused, table = _parquet(file, data)
        if table is None:
            return hugging_face.read_files({"train": [str(file)]}, "parquet", file, data)
    else:
        columns, unused, table = _text(file, data)
    where = str(file)
    paths = table[columns[IMAGE]].combine_chunks()
    _check_paths(paths, where)
    pictures = FilePictures(file.parent, _bytes(paths), where, _rows(len(paths)))
    found = described(table, columns, where, file.parent, data, pictures)
    return replace(found, ignored={f"column {name}": len(paths) for name in unused})


def _text(file: Path, data: "DataConfig") -> tuple[dict[str, str], list[str], Any]:
    import pyarrow
    import pyarrow.csv

    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            header = lines.readline(1 << 16)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; make it readable") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no table: it is no text in UTF-8; save it as CSV") from error
    separator = "\t" if file.suffix.lower() in TEXT[1:] else max(",;\t", key=header.count)
    names = [name.strip('" \r\n') for name in header.split(separator)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(f"{file}: has more than one column {min(twice)!r}: give each a name in the first line")
    columns = find_columns(names, data, str(file))
    few = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())  # of many rows, few values
    try:
        table = pyarrow.csv.read_csv(
            file,
            read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(dict.fromkeys(columns.values())),
                column_types={name: pyarrow.string() if role == IMAGE else few for role, name in columns.items()},
                strings_can_be_null=False,
            ),
        )
    except (pyarrow.ArrowInvalid, pyarrow.ArrowKeyError) as error:
        message = next(iter(str(error).splitlines()))
        raise DataError(f"{file}: is no table: {message}; mend that row, or save it as CSV again") from error
    if not len(table):
        raise DataError(f"{file}: has no row: write one for each image")
    return columns, _unused(names, columns), table


def _parquet(file: Path, data: "DataConfig") -> tuple[dict[str, str], list[str], Any]:
    """The columns, those without a use, and the table if its images are paths."""
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
        if any(pyarrow.types.is_struct(kind) or pyarrow.types.is_binary(kind) for kind in schema.types):
            return {}, [], None
        columns = find_columns(schema.names, data, str(file))
        table = pyarrow.parquet.read_table(file, columns=list(dict.fromkeys(columns.values())))
        return columns, _unused(schema.names, columns), table
    except (pyarrow.ArrowInvalid, OSError) as error:
        message = next(iter(str(error).splitlines()))
        raise DataError(f"{file}: is no Parquet file that can be read: {message}; write it again") from error


def _unused(names: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    return [name for name in names if name not in columns.values()]


def _bytes(paths: Any) -> Any:
    import pyarrow

    return paths.cast(pyarrow.large_string()).cast(pyarrow.large_binary())


def _rows(count: int) -> NDArray[np.int64]:
    return np.arange(1, count + 1)


def _check_paths(paths: Any, where: str) -> None:
    """Raises DataError for the first path that is empty, absolute, or has `..` in it."""
    import pyarrow.compute as compute

    bad = compute.match_substring_regex(paths, r"^\s*$|^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)")
    rows = np.flatnonzero(bad.fill_null(True).to_numpy(zero_copy_only=False))
    if len(rows):
        row = int(rows[0])
        path = paths[row].as_py()
        raise DataError(
            f"{where}: row {row + 1}: the path must be relative to {os.path.dirname(where) or '.'} and stay below it,"  # noqa: PTH120
            f" got {path!r}: put the table above its images"
        )
