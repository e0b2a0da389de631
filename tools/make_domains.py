"""Makes four domains of one folder of photographs: as they are, grey, blurred, and as a sketch of their edges.

    python tools/make_domains.py FOLDER DIRECTORY

FOLDER: of classes, as 101_ObjectCategories of Caltech101 is. Writes DIRECTORY/DOMAIN/CLASS/NAME.jpg. Every photograph
goes to one domain alone, so that no picture of a held-out domain was trained on in another dress. The domains are made,
not found: a result on them says how a method bears changes of style, and nothing about real sketches.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageFilter, ImageOps

from common import progress

OUTSIDE = {"BACKGROUND_Google", "Faces_easy"}  # which CoOp's split leaves out
NAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}  # as there


def sketch(image: Image.Image) -> Image.Image:
    """Dark lines on white, where the brightness changes; a slight blur before keeps grain from becoming lines."""
    edges = image.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    edges = ImageOps.expand(ImageOps.crop(edges, 2), 2)  # the filter leaves the outermost pixels as they were
    return ImageOps.autocontrast(ImageOps.invert(edges), cutoff=1)


DOMAINS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "photo": lambda image: image,
    "grey": ImageOps.grayscale,
    "blur": lambda image: image.filter(ImageFilter.GaussianBlur(max(image.size) / 75)),
    "sketch": sketch,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("directory", type=Path)
    given = parser.parse_args()
    classes = sorted(path for path in given.folder.iterdir() if path.is_dir() and path.name not in OUTSIDE)
    if not classes:
        parser.error(f"{given.folder} has no folder of a class")
    tell = progress("classes", len(classes))
    for done, of_class in enumerate(classes, 1):
        for number, file in enumerate(sorted(of_class.glob("[!.]*.jpg"))):
            name = list(DOMAINS)[number % len(DOMAINS)]
            place = given.directory / name / NAMES.get(of_class.name, of_class.name) / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(file) as image:
                DOMAINS[name](image.convert("RGB")).convert("RGB").save(place, quality=95)
        tell(done)


if __name__ == "__main__":
    main()
