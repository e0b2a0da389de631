"""Known datasets from mirrors on the Hugging Face hub, stored as `datasets` saves them, and steps to get others."""

from pathlib import Path

from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import LAYOUTS, as_known, caltech101, known
from fedpgp.data.sources.hugging_face import HUB, read_saved, reading_dataset
from fedpgp.errors import DataError, nearest
from fedpgp.runtime.files import new_directory


def fetch(name: str, root: Path) -> Path:
    """Download a known dataset into a directory below `root`, and return that directory.

    The directory appears when all files are written. For Caltech101, whose list of images is in the package, check the
    images that the user downloaded by hand. No hub was in reach when this was written; it was tested with files.

    Raises
    ------
    DataError
        If the name has no mirror (the error lists the steps to take), if the dataset exists already, or if a mirror
        cannot be reached or has other content.
    """
    import datasets

    if name not in known.NAMES:
        raise DataError(
            where="the name of the dataset", allowed="a known name", got=name, remedy=nearest(name, known.NAMES)
        )
    of = known.KNOWN[name]
    places = [root / place for place in of.places if not Path(place).is_absolute()]
    present = next((place for place in places if place.exists()), None)
    if name == caltech101.NAME:
        if present is None:
            raise _steps(places[0])
        caltech101.add_split(present)
        return present
    if present is not None:
        raise DataError(
            f"{name} is already here", where=str(present), remedy="Remove it, or choose another directory with --to"
        )
    if not of.mirror:
        about = LAYOUTS[of.layout].about
        raise DataError(
            "this dataset has no known mirror",
            where=name,
            remedy=f"Get it from {of.page} and put it at {places[0]}, with this layout: {about}",
        )
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
                raise DataError(
                    f"the mirror has unexpected content: {str(error).removesuffix('.')}",
                    where=f"{HUB}{of.mirror}",
                    remedy=f"Get {name} from {of.page}",
                ) from error
    except OSError as error:
        raise DataError(
            f"cannot be written: {error}",
            where=str(place),
            remedy="Free disk space, or choose another directory with --to",
        ) from error
    return place


def _steps(place: Path) -> DataError:
    """Return an error with the steps to get Caltech101's images, and with what works without them."""
    return DataError(
        "the images (Li, Andreeto, Ranzato and Perona 2022, CC BY 4.0) are on no known mirror",
        where=caltech101.NAME,
        remedy=f"Download caltech-101.zip from {known.KNOWN[caltech101.NAME].page}, unpack it and the archive"
        f" 101_ObjectCategories in it, put the directory at {place / caltech101.IMAGES}, and run this command again: it"
        " adds CoOp's split file and checks that every image is there. Without the images, --data"
        f" {caltech101.NAME} --backbone photoclip works with their features, which ship with fedpgp",
    )
