"""Tables: a CSV, TSV or Parquet file with one row for each image."""

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedpgp.data.decode import FilePictures
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import hugging_face
from fedpgp.data.sources.columns import IMAGE, described, find_columns
from fedpgp.data.sources.listing import OUTSIDE, Listing
from fedpgp.data.sources.names import reading
from fedpgp.errors import DataError

TABS = (".tsv", ".tab")
SUFFIXES = (".csv", *TABS, ".parquet")
REMEDY = "Make it readable, fix the row in question, or save it again as a table in UTF-8"


def read(file: Path, data: DataConfig) -> Listing:
    """Return all images that a table lists.

    Raises
    ------
    DataError
        If the file is not such a table, or if a row is wrong.
    """
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    where = str(file)
    if file.suffix.lower() == ".parquet":
        with reading(where, REMEDY):
            schema = pyarrow.parquet.read_schema(file)
        if not _has_paths(schema, data, where):
            return hugging_face.read_files({"train": [where]}, "parquet", file, data)
        names = schema.names
        columns = find_columns(names, data, where)
        with reading(where, REMEDY):
            table = pyarrow.parquet.read_table(file, columns=list(dict.fromkeys(columns.values())))
    else:
        names, separator = _header(file)
        columns = find_columns(names, data, where)
        few = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())  # many rows have few distinct values
        with reading(where, REMEDY):
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
    if not len(table):
        raise DataError("the table has no row", where=where, remedy="Add a row for each image")
    column = table[columns[IMAGE]]
    kind = column.type.value_type if pyarrow.types.is_dictionary(column.type) else column.type
    if not _is_text(kind):
        raise DataError(
            where=f"{where}, column {columns[IMAGE]!r}",
            allowed="a column of paths or encoded images",
            got=str(kind),
            remedy="Set data.image_column to another column",
        )
    paths = _relative(column.cast(kind).cast(pyarrow.large_string()).combine_chunks(), file.parent)
    _check_paths(paths, where)
    contents = paths.cast(pyarrow.large_binary())
    pictures = FilePictures(file.parent, contents, where, in_rows=True, follow_links=data.follow_links)
    listing = described(table, columns, where, data, pictures, None)
    unused = {f"column {name or 'without a name'}": len(paths) for name in names if name not in columns.values()}
    return replace(listing, ignored={**unused, **listing.ignored})


def _has_paths(schema: Any, data: DataConfig, where: str) -> bool:
    """Return whether the images of a Parquet file are paths, not bytes."""
    import pyarrow.types as types

    encoded = [types.is_struct(kind) or _is_bytes(kind) for kind in schema.types]
    try:
        image = find_columns(schema.names, data, where)[IMAGE]
    except DataError:  # a column of images may have any name
        return not any(encoded)
    return not encoded[schema.names.index(image)]


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _header(file: Path) -> tuple[list[str], str]:
    """Return the names of the columns of a text file, and the separator."""
    with reading(file, REMEDY), file.open(encoding="utf-8-sig", newline="") as lines:
        header = lines.readline(1 << 16)
    separator = "\t" if file.suffix.lower() in TABS else max(",;\t", key=header.count)
    names = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DataError(
            f"more than one column has the name {min(twice)!r}",
            where=str(file),
            remedy="Give each column its own name in the first line",
        )
    return names, separator


def _relative(paths: Any, directory: Path) -> Any:
    """Return the paths without the directory of the table, which absolute paths to its images begin with."""
    import pyarrow.compute as compute

    return compute.replace_substring_regex(paths, pattern=f"^{re.escape(str(directory.absolute()))}/+", replacement="")


def _check_paths(paths: Any, where: str) -> None:
    """Raise DataError for the first path that is empty, absolute, or contains `..`."""
    import pyarrow.compute as compute

    outside = compute.match_substring_regex(paths, OUTSIDE.pattern).fill_null(True)
    row = compute.index(outside, True).as_py()
    if row >= 0:
        directory, path = Path(where).parent, str(paths[row].as_py())
        raise DataError(
            where=f"{where}, row {row + 1}: the path",
            allowed=f"relative to {directory}, and inside of it",
            got=path,
            remedy="Put the table into a directory above its images",
        )
