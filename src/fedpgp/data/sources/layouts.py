"""The layouts of image files on a disk: the values of data.layout."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import cifar, folder, hugging_face, known_folders, known_lists, mnist, table
from fedpgp.data.sources.known import KNOWN
from fedpgp.data.sources.listing import Listing
from fedpgp.errors import DataError, nearest

AUTO = "auto"
DOCUMENTED = "`fedpgp data layouts` lists all layouts, and docs/data.md explains them"


@dataclass(frozen=True)
class Layout:
    """A layout of files on a disk.

    Attributes
    ----------
    about
        A description in one line.
    recognises
        A function that is true for a path with this layout; it reads only names and first lines.
    read
        A function that returns all images of a path, or raises DataError.
    """

    about: str
    recognises: Callable[[Path], object]
    read: Callable[[Path, DataConfig], Listing]


def _holds(*names: str) -> Callable[[Path], bool]:
    """Return a test whether all of these files and folders are in a directory."""
    return lambda path: all((path / name).exists() for name in names)


LAYOUTS: Mapping[str, Layout] = {  # tried in this order
    "coop": Layout(
        "split_zhou_….json of CoOp, with lists of path, label and class name, and its images",
        known_lists.is_coop,
        known_lists.read_coop,
    ),
    "fgvc_aircraft": Layout(
        "variants.txt, images_variant_train.txt, …val.txt, …test.txt, and images/NUMBER.jpg",
        _holds("variants.txt", "images_variant_train.txt"),
        known_lists.read_aircraft,
    ),
    "imagenet": Layout(
        "images/train/IDENTIFIER/…, images/val/IDENTIFIER/…, and classnames.txt with identifiers and names",
        _holds("classnames.txt", "images/train"),
        known_folders.read_imagenet,
    ),
    **{
        name: Layout(
            f"{KNOWN[name].images}/CLASS/… and classnames.txt: a version of ImageNet for tests",
            _holds("classnames.txt", KNOWN[name].images),
            partial(known_folders.read_version, name=name),
        )
        for name in known_folders.VERSIONS
    },
    "tiny_imagenet": Layout(
        "wnids.txt, words.txt, train/IDENTIFIER/images/…, val/images/… and val/val_annotations.txt",
        _holds("wnids.txt", "words.txt", "val/val_annotations.txt"),
        known_lists.read_tiny_imagenet,
    ),
    "idx": Layout(
        "train-images-idx3-ubyte, train-labels-idx1-ubyte and t10k-…, gzipped or not, as in MNIST",
        mnist.recognises,
        mnist.read,
    ),
    "cifar": Layout(
        "cifar-10-batches-py or cifar-100-python, the Python version of CIFAR, or its archive .tar.gz",
        cifar.located,
        cifar.read,
    ),
    "domainnet": Layout(
        "clipart_train.txt, clipart_test.txt and the lists of the other five domains of DomainNet, and their images",
        known_lists.domainnet_lists,
        partial(known_lists.read_domainnet, name="domainnet"),
    ),
    "domainnet10": Layout(
        "the same files, but only the ten classes of FedBN; must be set by name",
        lambda _: False,
        partial(known_lists.read_domainnet, name="domainnet10"),
    ),
    **{
        name: Layout(
            f"folders {', '.join(KNOWN[name].domains)}, each with a folder for each class",
            partial(known_folders.has_domains, name=name),
            partial(known_folders.read_domains, name=name),
        )
        for name in known_folders.DOMAIN_SETS
    },
    "table": Layout(
        "a CSV, TSV or Parquet file with the columns path (or image) and label, and optionally domain, client, split",
        lambda path: path.is_file() and path.suffix.lower() in table.SUFFIXES,
        table.read,
    ),
    "hugging-face": Layout(
        "a directory that datasets.save_to_disk wrote, or of Parquet files as on the hub",
        hugging_face.is_saved,
        hugging_face.read_saved,
    ),
    "webdataset": Layout(
        "tars with an image and a cls, txt or json file of the same name for each example",
        hugging_face.is_tars,
        hugging_face.read_tars,
    ),
    # `folder.recognised` chooses among these.
    **{name: Layout(about, lambda _: False, partial(folder.read, layout=name)) for name, about in folder.ABOUT.items()},
}


def layout_of(path: Path, wanted: str = AUTO) -> str:
    """Return the name of the layout that is wanted, or that recognises a path.

    Raises
    ------
    DataError
        If no layout recognises the path.
    """
    if wanted == AUTO:
        recognising = (name for name, layout in LAYOUTS.items() if layout.recognises(path))
        name = next(recognising, None) or folder.recognised(path)
        if name is None:
            raise _unrecognised(path)
        return name
    if wanted not in LAYOUTS:
        raise DataError(
            where="data.layout", allowed="a known layout", got=wanted, remedy=nearest(wanted, [AUTO, *LAYOUTS])
        )
    return wanted


def _unrecognised(path: Path) -> DataError:
    """Return the error for a path that no layout recognises."""
    if folder.is_image(path.name) and path.is_file():
        remedy = f"Set data.source to the directory with a folder for each class; {DOCUMENTED}"
        return DataError("this is a single image", where=str(path), remedy=remedy)
    if not path.is_dir():
        remedy = f"Set data.source to a table, or to a directory of images; {DOCUMENTED}"
        return DataError(f"this is not a table ({', '.join(table.SUFFIXES)})", where=str(path), remedy=remedy)
    names = sorted(entry.name for entry in path.iterdir() if not folder.hidden(entry.name) and entry.is_file())
    tables = [name for name in names if Path(name).suffix.lower() in table.SUFFIXES]
    images = sum(map(folder.is_image, names))
    remedy = f"Put {'them' if images else 'images'} into a folder for each class, {path}/CLASS/…"
    if tables:
        remedy += f", or set data.source to the table that describes them, such as {path / tables[0]}"
    remedy += f"; {DOCUMENTED}"
    if not images:
        return DataError("there is no image here", where=str(path), remedy=remedy)
    if images and all(folder.BACKSLASH in name for name in names if folder.is_image(name)):
        return DataError(folder.BACKSLASHES, where=str(path / names[0]), remedy=f"{folder.UNPACK}; {DOCUMENTED}")
    folders = "no folder with images" if folder.folders(path) else "no folders"
    problem = f"there {'are' if images > 1 else 'is'} {images:,} image{'s' if images > 1 else ''} and {folders} here"
    return DataError(problem, where=str(path), remedy=remedy)
