"""Class names, from a file or from the images."""

import csv
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unicodedata import category

import numpy as np
from numpy.typing import NDArray

from fedpgp.data.settings import DataConfig
from fedpgp.errors import DataError, first_line

BESIDE = ("classes.txt", "classnames.txt")
HEADERS = frozenset(("id", "identifier", "label", "class"))
INTEGER = re.compile(r"-?\d+")


def named(
    labels: Sequence[str],
    codes: NDArray[np.int64],
    where: str,
    data: DataConfig,
    place: Callable[[int], str],
    needed: bool = False,
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Turn the labels of images into class names.

    The names and their order come from the file data.names, else from a file next to the images, else from the sorted
    labels; integers are sorted by value.

    Parameters
    ----------
    labels
        The distinct labels.
    codes
        [n] indices into `labels`.
    where
        The directory of the images, or the file that lists them.
    data
        The section [data] of the config.
    place
        A function from the index of an image to its place, for messages.
    needed
        Whether integers must have names.

    Returns
    -------
    names
        The class names.
    labels
        [n] the index of each image's class name.

    Raises
    ------
    DataError
        If a label has no name, or a name has no label.
    """
    integers = all(map(INTEGER.fullmatch, labels))
    directory = Path(where) if Path(where).is_dir() else Path(where).parent
    beside = next((directory / name for name in BESIDE if (directory / name).is_file()), None)
    file = Path(data.names) if data.names else beside
    if file is None:
        if integers and needed:
            raise DataError(
                "the labels are integers (true is 1, false is 0), but CLIP reads names",
                where=where,
                remedy="Set data.names to a file with one class name in each line, or put that file next to the images"
                f" as {BESIDE[0]}",
            )
        names = {label: label for label in sorted(labels, key=int if integers else None)}
    else:
        names = _matched(read_lines(file), labels, integers, file)
        unnamed = [label for label in labels if label not in names]
        if unnamed:
            images = np.flatnonzero(codes == labels.index(unnamed[0]))
            at = f" ({place(int(images[0]))})" if len(images) else ""
            hint = f"; lines without a number count from 0 to {len(names) - 1}" if integers else ""
            raise DataError(
                f"there is no name for {len(unnamed)} of {len(labels)} classes, starting with {unnamed[0]!r}{at}{hint}",
                where=str(file),
                remedy="Add a line for each class",
            )
    order = {label: number for number, label in enumerate(names)}
    return tuple(names.values()), np.array([order[label] for label in labels], dtype=np.int64)[codes]


def renamed(names: Sequence[str], where: str, data: DataConfig) -> tuple[str, ...]:
    """Return the names of the labels 0, 1, … of a dataset: its own names, or the names of the file data.names."""
    if not data.names:
        return tuple(names)
    labels = [str(label) for label in range(len(names))]
    given, places = named(labels, np.arange(len(names)), where, data, "label {}".format)
    return tuple(given[place] for place in places)


def read_lines(file: Path, remedy: str = "Set data.names to a file with one class name in each line") -> list[str]:
    """Return the lines of a file that are not empty, stripped; raise DataError with `remedy` if it has no text."""
    return list(numbered_lines(file, remedy).values())


def numbered_lines(file: Path, remedy: str) -> dict[int, str]:
    """Return the same lines by their numbers in the file, starting at 1."""
    with reading(file, remedy):
        text = file.read_text(encoding="utf-8-sig")
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), 1) if line.strip()}
    if not lines:
        raise DataError("the file is empty", where=str(file), remedy=remedy)
    return lines


@contextmanager
def reading(where: Path | str, remedy: str) -> Iterator[None]:
    """Raise DataError with `remedy` for anything that a library raises for a missing or damaged file."""
    try:
        yield
    except Exception as error:  # libraries do not document what they raise for damaged files
        raise DataError(
            f"cannot be read: {first_line(error).removesuffix('.')}", where=str(where), remedy=remedy
        ) from error


def told_apart(names: Mapping[str, str], longer: Mapping[str, str]) -> dict[str, str]:
    """Return the name of each identifier, or its longer name if several identifiers share the name."""
    shared = Counter(map(plain, names.values()))
    return {key: longer.get(key, name) if shared[plain(name)] > 1 else name for key, name in names.items()}


def plain(name: str) -> str:
    """Return a name without what CLIP ignores: case, underscores, spaces, and the encoding of accents.

    Lower case is as in CLIP's tokenizer, for which Maße and Masse are two words.
    """
    return " ".join(unicodedata.normalize("NFC", name.replace("_", " ").lower()).split())


def is_text(name: str) -> bool:
    """Return whether a name can be written as UTF-8 and has no control characters except whitespace."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not any(category(letter) == "Cc" and not letter.isspace() for letter in name)


def superclasses_of(
    labels: NDArray[np.int64], superclasses: NDArray[np.int64], names: Sequence[str], where: str
) -> tuple[int, ...]:
    """Return the superclass of each class, from [n] the superclasses of the images.

    Raises
    ------
    DataError
        If a class is in several superclasses.
    """
    pairs = np.unique(np.stack([labels, superclasses]), axis=1)
    classes, counts = np.unique(pairs[0], return_counts=True)
    if (counts > 1).any():
        name = names[classes[counts > 1][0]]
        raise DataError(
            f"the images of {name!r} are in several superclasses", where=where, remedy="Get the dataset again"
        )
    of = dict(pairs.T.tolist())
    return tuple(of.get(label, 0) for label in range(len(names)))


def _matched(lines: Sequence[str], labels: Sequence[str], integers: bool, file: Path) -> dict[str, str]:
    """Return the name of each label, in the order of the lines."""
    exact = {label: label for label in labels}
    near = {plain(label): label for label in labels}
    names: dict[str, str] = {}
    strange: list[str] = []
    numbered = integers and any(_split(line)[0] in exact for line in lines)
    for number, line in enumerate(lines):
        label, name = _split(line)
        if integers and not numbered:
            label, name = str(number), line
        elif (whole := exact.get(line) or near.get(plain(line))) is not None:
            label, name = whole, line
        # A number without an image is a class without images, which is reported elsewhere.
        elif not name or not (label in exact or (numbered and INTEGER.fullmatch(label))):
            if number > 0 or label.lower() not in HEADERS:
                strange.append(line)
            continue
        if label in names:
            raise DataError(f"class {label!r} has more than one line", where=str(file), remedy="Keep one of the lines")
        names[label] = name
    if strange:
        raise DataError(
            f"{len(strange)} of {len(lines)} lines do not start with a class of the images, such as {strange[0]!r}",
            where=str(file),
            remedy="Remove these lines, or add images",
        )
    return names


def _split(line: str) -> tuple[str, str]:
    """Return the identifier and the name of a line, separated by a tab, a comma or spaces; the name may be missing."""
    if "\t" in line:
        identifier, _, name = line.partition("\t")
        return identifier.strip(), name.strip()
    fields = next(csv.reader([line]), [])
    if len(fields) == 2 and not re.search(r"\s", fields[0]):
        return fields[0], fields[1].strip()
    first, *rest = line.split(maxsplit=1)
    return first, rest[0] if rest else ""
