"""Make two image folders from Debian packages: Fashion-MNIST, and objects as photographs and as clip art.

    apt-get download dataset-fashion-mnist tuxpaint-stamps-default openclipart-png
    python tools/debian_images.py . DIRECTORY

Writes DIRECTORY/fashion-mnist/CLASS/NUMBER.png, 200 images of each class of the test split (MIT licence), and
DIRECTORY/objects/DOMAIN/CLASS/NAME.png with the domains photograph (cut-out photographs of Tux Paint's stamps, GPL-2)
and clip art (Open Clip Art, public domain). Transparent pixels become white. Images with equal bytes are written once.
"""

import argparse
import gzip
import subprocess
import tempfile
from collections import Counter
from hashlib import sha256
from pathlib import Path

from PIL import Image

from common import progress

FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
PER_CLASS, SIDE, HEADER = (
    200,
    28,
    {"images": 16, "labels": 8},
)  # the headers of the IDX files, in bytes
SMALLEST, LARGEST = 24, 512  # allowed sides in pixels
STAMPS, CLIP_ART = Path("usr/share/tuxpaint/stamps"), Path("usr/share/openclipart/png")
OBJECTS = {  # class -> folders of the stamps, folders of the clip art
    "bird": (["animals/birds"], ["animals/birds"]),
    "fish": (["animals/fish", "animals/sharks"], ["animals/fish"]),
    "flower": (["plants/flowers"], ["plants/flowers"]),
    "fruit": (["food/fruit"], ["food/fruit"]),
    "mammal": (["animals/mammals"], ["animals/mammals"]),
    "tool": (["household/tools"], ["tools"]),
    "vehicle": (["vehicles"], ["transportation/vehicles"]),
}


def fashion_mnist(package: Path, directory: Path) -> None:
    """Write the first images of each class of the test split."""
    read = {}
    for what, header in HEADER.items():
        (file,) = package.rglob(f"t10k-{what}-idx*-ubyte.gz")
        read[what] = gzip.decompress(file.read_bytes())[header:]
    taken = Counter[int]()
    for number, label in enumerate(read["labels"]):
        if taken[label] == PER_CLASS:
            continue
        taken[label] += 1
        pixels = read["images"][number * SIDE**2 : (number + 1) * SIDE**2]
        place = directory / FASHION[label] / f"{number:05d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("L", (SIDE, SIDE), pixels).save(place)


def objects(files: list[Path], directory: Path, seen: set[str]) -> None:
    """Write the pictures of one class and domain on white."""
    for file in files:
        content = file.read_bytes()
        if file.is_symlink() or (digest := sha256(content).hexdigest()) in seen:
            continue
        seen.add(digest)
        with Image.open(file) as image:
            if min(image.size) < SMALLEST:
                continue
            picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        white.thumbnail((LARGEST, LARGEST))
        directory.mkdir(parents=True, exist_ok=True)
        white.convert("RGB").save(directory / f"{file.stem}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="folder with the .deb files")
    parser.add_argument("directory", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("dataset-fashion-mnist", "tuxpaint-stamps-default", "openclipart-png"):
            found = sorted(given.packages.glob(f"{name}_*.deb"))
            if not found:
                parser.error(f"{given.packages} has no {name}_*.deb. Download it with `apt-get download {name}`.")
            subprocess.run(["dpkg-deb", "-x", found[-1], f"{temporary}/{name}"], check=True)
        fashion_mnist(Path(temporary) / "dataset-fashion-mnist", given.directory / "fashion-mnist")
        tell, seen = progress("classes", len(OBJECTS)), {"photograph": set[str](), "clip art": set[str]()}
        places = {
            "photograph": Path(temporary) / "tuxpaint-stamps-default" / STAMPS,
            "clip art": Path(temporary) / "openclipart-png" / CLIP_ART,
        }
        for done, (name, folders) in enumerate(OBJECTS.items(), 1):
            for (domain, place), of_domain in zip(places.items(), folders, strict=True):
                files = [file for folder in of_domain for file in sorted((place / folder).rglob("*.png"))]
                photographs = [file for file in files if "cartoon" not in file.parts and "_mirror" not in file.stem]
                objects(photographs, given.directory / "objects" / domain / name, seen[domain])
            tell(done)


if __name__ == "__main__":
    main()
