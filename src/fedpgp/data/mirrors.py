"""Known datasets from mirrors on the Hugging Face hub, kept as `datasets` saves them, and steps to get the others."""

from pathlib import Path

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import LAYOUTS, as_known, caltech101, known
from fedpgp.data.sources.hugging_face import HUB, read_saved, reading_dataset
from fedpgp.errors import DataError, nearest
from fedpgp.runtime.files import new_directory


def fetch(name: str, root: Path) -> Path:
    """Downloads a known dataset, and returns its directory below `root`, which appears when all of it is written.

    Of Caltech101, whose list of images is in the package, images that were downloaded by hand are checked.

    Raises DataError for a name without a mirror, with the steps to take; if it is there already; and for a mirror that
    cannot be reached or holds something else. No hub was in reach when this was written: it was tried with files.
    """
    import datasets

    if name not in known.NAMES:
        raise DataError(f"a data set to get must be a known one, got {name!r}; {nearest(name, known.NAMES)}")
    of = known.KNOWN[name]
    places = [root / place for place in of.places if not Path(place).is_absolute()]
    present = next((place for place in places if place.exists()), None)
    if name == caltech101.NAME:
        if present is None:
            raise DataError(_steps(places[0]))
        caltech101.add_split(present)
        return present
    if present is not None:
        raise DataError(f"{name} is at {present} already: remove that, or choose another directory with --to")
    if not of.mirror:
        about = LAYOUTS[of.layout].about
        raise DataError(f"{name} is on no known mirror: get it from {of.page} and put it at {places[0]}, as {about}")
    place = root / name
    with reading_dataset(f"{HUB}{of.mirror}"):
        splits = datasets.load_dataset(of.mirror)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with new_directory(place) as filled:
            splits.save_to_disk(filled)
            try:
                as_known(read_saved(filled, DataConfig()), name, DataConfig())
            except DataError as error:
                raise DataError(f"{HUB}{of.mirror} is not what it was: {error}; get {name} from {of.page}") from error
    except OSError as error:
        raise DataError(f"{place} cannot be written: {error}; make room, or choose another with --to") from error
    return place


def _steps(place: Path) -> str:
    """How to get Caltech101's images, and what works without them."""
    return (
        f"{caltech101.NAME} (Li, Andreeto, Ranzato and Perona 2022, CC BY 4.0) is on no known mirror. Download"
        f" caltech-101.zip from {known.KNOWN[caltech101.NAME].page}, unpack it and the archive 101_ObjectCategories in"
        f" it, put the directory at {place / caltech101.IMAGES}, and give this command again: it adds CoOp's split file"
        f" and checks that every image is there. Without the images, --data {caltech101.NAME} --backbone photoclip"
        " works with their features, which ship with fedpgp"
    )
