"""Names of classes: from a file, or as the images have them."""

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
    """What images have as labels -> class names, and [n] the index of each image's.

    labels: distinct; codes: [n] index into them. The names and their order are those of the file data.names, else of a
    file beside the images, else the labels themselves, sorted; integers are sorted as numbers.
    where: the directory of the images, or the file that lists them; place: index of an image -> where a message says
    that it is; needed: integers must have names.

    Raises DataError for labels without a name, and names without a label.
    """
    integers = all(map(INTEGER.fullmatch, labels))
    directory = Path(where) if Path(where).is_dir() else Path(where).parent
    beside = next((directory / name for name in BESIDE if (directory / name).is_file()), None)
    file = Path(data.names) if data.names else beside
    if file is None:
        if integers and needed:
            raise DataError(
                f"{where}: the labels are integers (true is 1, false is 0), and CLIP reads names: name a file with a"
                f" class name in each line with data.names, or put it beside the images as {BESIDE[0]}"
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
                f"{file}: has no name for {len(unnamed)} of {len(labels)} classes, the first is {unnamed[0]!r}{at}: add"
                f" a line for each{hint}"
            )
    order = {label: number for number, label in enumerate(names)}
    return tuple(names.values()), np.array([order[label] for label in labels], dtype=np.int64)[codes]


def renamed(names: Sequence[str], where: str, data: DataConfig) -> tuple[str, ...]:
    """The names of labels 0, 1, … that a dataset has itself, or those of the file data.names, for the same labels."""
    if not data.names:
        return tuple(names)
    labels = [str(label) for label in range(len(names))]
    given, places = named(labels, np.arange(len(names)), where, data, "label {}".format)
    return tuple(given[place] for place in places)


def read_lines(file: Path, remedy: str = "data.names must name a file with a class name in each line") -> list[str]:
    """The lines of a file that are not empty, stripped; raises DataError, with the remedy, if it has no text."""
    return list(numbered_lines(file, remedy).values())


def numbered_lines(file: Path, remedy: str) -> dict[int, str]:
    """The same by their numbers in the file, from 1."""
    with reading(file, remedy):
        text = file.read_text(encoding="utf-8-sig")
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), 1) if line.strip()}
    if not lines:
        raise DataError(f"{file}: is empty: {remedy}")
    return lines


@contextmanager
def reading(where: Path | str, remedy: str) -> Iterator[None]:
    """Raise DataError, with the remedy, for whatever a library raises for a file that is missing or damaged."""
    try:
        yield
    except Exception as error:  # what a damaged file makes a library raise is not documented
        raise DataError(f"{where} cannot be read: {first_line(error)}; {remedy}") from error


def told_apart(names: Mapping[str, str], longer: Mapping[str, str]) -> dict[str, str]:
    """Identifier -> name, or where several have the same name, its longer one, if it has one."""
    shared = Counter(map(plain, names.values()))
    return {key: longer.get(key, name) if shared[plain(name)] > 1 else name for key, name in names.items()}


def plain(name: str) -> str:
    """A name without what makes no difference to CLIP: case, underscores, spaces, and how an accent is encoded.

    Lower case as CLIP's tokenizer has it, in which Maße and Masse are two words.
    """
    return " ".join(unicodedata.normalize("NFC", name.replace("_", " ").lower()).split())


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8, and has no control characters but blanks."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not any(category(letter) == "Cc" and not letter.isspace() for letter in name)


def superclasses_of(
    labels: NDArray[np.int64], superclasses: NDArray[np.int64], names: Sequence[str], where: str
) -> tuple[int, ...]:
    """The superclass of each class, from [n] those of the images; raises DataError for a class that is in several."""
    pairs = np.unique(np.stack([labels, superclasses]), axis=1)
    classes, counts = np.unique(pairs[0], return_counts=True)
    if (counts > 1).any():
        name = names[classes[counts > 1][0]]
        raise DataError(f"{where}: the images of {name!r} are in more than one superclass: get it again")
    of = dict(pairs.T.tolist())
    return tuple(of.get(label, 0) for label in range(len(names)))


def _matched(lines: Sequence[str], labels: Sequence[str], integers: bool, file: Path) -> dict[str, str]:
    """Label -> name, in the order of the lines."""
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
        # A number without an image is a class that has none, which is told as such.
        elif not name or not (label in exact or (numbered and INTEGER.fullmatch(label))):
            if number > 0 or label.lower() not in HEADERS:
                strange.append(line)
            continue
        if label in names:
            raise DataError(f"{file}: names class {label!r} more than once: leave one of the lines")
        names[label] = name
    if strange:
        raise DataError(
            f"{file}: {len(strange)} of {len(lines)} lines begin with no class of the images, the first is"
            f" {strange[0]!r}: take them out, or add images"
        )
    return names


def _split(line: str) -> tuple[str, str]:
    """The identifier and the name of a line, apart by a tab, a comma or spaces; the name may be missing."""
    if "\t" in line:
        identifier, _, name = line.partition("\t")
        return identifier.strip(), name.strip()
    fields = next(csv.reader([line]), [])
    if len(fields) == 2 and not re.search(r"\s", fields[0]):
        return fields[0], fields[1].strip()
    first, *rest = line.split(maxsplit=1)
    return first, rest[0] if rest else ""
