"""Drawings from icon packages: the renders of pictograms, and the training drawings of pictoclip.

As a program, this module renders the 31 pretraining sets into build/drawings.parquet and writes the dropped siblings
into tools/siblings.csv. It takes about a minute on two cores.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from common import BUILD, PACKAGES, STYLES, TOOLS, Concept, progress, read_concepts, read_sets, replacing, write_table

EVALUATION_PIXELS = 96
PRETRAINING_PIXELS = 64
SIBLING_PIXELS = 16
SIBLING_CORRELATION = 0.8  # pretraining drawings that are more similar to an evaluation render are dropped
FAINTEST = 4  # drawings with a mean alpha (of 255) below this are empty or nearly so

EMOJI_SETS = ("noto-v1", "emojione", "emojione-v1", "emojione-monotone", "streamline-emojis")
COLOURED_SETS = (
    "flat-color-icons",
    "icon-park",
    "icon-park-twotone",
    "streamline-plump-color",
    "streamline-ultimate-color",
    "streamline-kameleon-color",
    "streamline-stickies-color",
    "streamline-freehand-color",
    "streamline-sharp-color",
    "streamline-cyber-color",
    "streamline-color",
    "fluent-color",
    "meteocons",
)
PICTOGRAM_SETS = (
    "game-icons",
    "healthicons",
    "maki",
    "map",
    "tabler",
    "mdi",
    "ph",
    "solar",
    "temaki",
    "hugeicons",
    "lucide",
    "iconoir",
    "mingcute",
)
PRETRAINING_SETS = EMOJI_SETS + COLOURED_SETS + PICTOGRAM_SETS
ONE_COLOUR_SETS = frozenset(PICTOGRAM_SETS) | {"emojione-monotone"}  # training chooses their colour
SETS_OF_THINGS = frozenset({"game-icons", "healthicons", "temaki"})  # kept even if no second set has the name

# Endings that name a variant of a drawing and not its content.
VARIANT = re.compile(
    r"-(fill|filled|outline|outlined|line|lines|bold|duotone|thin|light|linear|broken|twotone|solid|rounded|variant"
    r"|color|colour|static|off|on|alt|flat|freehand|\d+)$"
)

# Icons of user interfaces, flags, letters and gestures. They are not things, and would outnumber the things.
INTERFACE = re.compile(
    r"skin|flag-|-arrow|arrow-|^arrow|clock-\d|oclock|-thirty|keycap|button$|button-|^file-|^folder-|^format-|^chart-"
    r"|^alpha|^numeric|^letter|^align|^brand|^logo|-logo|^emoji|regional-indicator|^squared|^hand-|chevron|^border"
    r"|^math|^layout|^circle-|-circle$|-square$|^square-|^box-|^text-|^network|^wifi|^currency"
    r"|-(plus|minus|check|remove|add|x|question|cog|edit|search|heart|star|share|pause|play|stop|up|down|left|right"
    r"|bolt|cancel|dollar|code|exclamation|pin|slash|off|lock|sync|alert|refresh|clock|outline|settings|key|bold|time"
    r"|percentage|badge)$"
)

# Words of unseen concepts, their synonyms and close relations. Drawings with one of these words are not trained on.
HELD_OUT_WORDS = (
    "octopus",
    "pineapple",
    "violin",
    "fiddle",
    "tractor",
    "penguin",
    "cactus",
    "lipstick",
    "microscope",
    "snail",
    "volcano",
    "tophat",
    "top-hat",
    "toilet",
    "water-closet",
    "watercloset",
    "wc",
    "restroom",
    "koala",
    "ferris",
    "lollipop",
    "eggplant",
    "aubergine",
    "saxophone",
    "jack-o",
    "jackolantern",
    "pumpkin",
    "halloween",
    "ladybug",
    "lady-beetle",
    "ladybird",
    "ladybeetle",
    "anchor",
)
HELD_OUT = re.compile("|".join(rf"(^|-){word}s?(-|$)" for word in HELD_OUT_WORDS))

# Names of the base and novel concepts in other sets.
SYNONYMS = {
    "airplane": ("plane", "aeroplane"),
    "alarm clock": ("alarm",),
    "automobile": ("car",),
    "basketball": ("basketball ball",),
    "bear": ("bear face",),
    "bee": ("honeybee", "honey bee"),
    "bicycle": ("bike",),
    "bouquet": ("flower bouquet", "bouquet of flowers"),
    "castle": ("european castle",),
    "cat": ("cat face",),
    "chili pepper": ("hot pepper", "chilli", "pepper hot"),
    "christmas tree": ("xmas tree",),
    "corn": ("ear of corn", "maize"),
    "cow face": ("cow",),
    "dog": ("dog face",),
    "doughnut": ("donut",),
    "dragon face": ("dragon",),
    "fire": ("flame",),
    "fountain pen": ("fountain pen tip",),
    "four leaf clover": ("clover", "four-leaf clover"),
    "french fries": ("fries",),
    "frog": ("frog face",),
    "gem": ("gem stone", "diamond", "gemstone"),
    "hamburger": ("burger",),
    "headphone": ("headphones",),
    "house": ("house with garden", "home"),
    "ice cream": ("icecream", "ice cream sundae"),
    "laptop": ("laptop computer", "notebook computer", "personal computer"),
    "light bulb": ("lightbulb", "bulb", "idea"),
    "megaphone": ("bullhorn",),
    "motorcycle": ("motorbike",),
    "necktie": ("tie",),
    "palm tree": ("palm",),
    "panda": ("panda face",),
    "rabbit face": ("rabbit", "bunny"),
    "red apple": ("apple",),
    "rice ball": ("onigiri",),
    "rocket": ("space rocket",),
    "sailboat": ("sail boat",),
    "sheep": ("ewe", "lamb"),
    "snowman": ("snowman without snow",),
    "soccer ball": ("soccer", "football ball"),
    "sunglasses": ("sun glasses", "dark sunglasses"),
    "t-shirt": ("tshirt", "t shirt", "shirt"),
    "telephone": ("phone", "landline phone"),
    "television": ("tv", "television set"),
    "tiger": ("tiger face",),
    "turtle": ("tortoise",),
    "umbrella": ("open umbrella",),
    "whale": ("spouting whale",),
    "wolf": ("wolf face",),
}


@dataclass(frozen=True)
class Icon:
    """One icon of a package: SVG elements, their box in units of the icon, and other names of the icon."""

    body: str
    left: float
    top: float
    width: float
    height: float
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """One icon for pretraining: all drawings of one thing share `name`, and `captions` are all names of the icon."""

    icon_set: str
    key: str
    name: str
    captions: tuple[str, ...]
    icon: Icon


@dataclass(frozen=True)
class Sibling:
    """A candidate that was dropped because it resembles the evaluation render of its concept in the given style."""

    icon_set: str
    key: str
    concept: str
    style: str
    correlation: float


def check_version(packages: Path, name: str, version: str) -> None:
    """Exit if a package has another version, because its icons may differ."""
    found = json.loads((packages / name / "package.json").read_text(encoding="utf-8"))["version"]
    if found != version:
        raise SystemExit(f"@iconify-json/{name} {found} must be version {version}. Run `npm ci --prefix tools`.")


def read_icons(packages: Path, name: str) -> dict[str, Icon]:
    """Return the icons of one package by key, without hidden icons."""
    if not (packages / name).is_dir():
        raise SystemExit(f"{packages / name} is missing. Run `npm install --prefix tools`, or use --packages.")
    check_version(packages, name, read_sets()[name].version)
    data = json.loads((packages / name / "icons.json").read_text(encoding="utf-8"))
    aliases: dict[str, list[str]] = defaultdict(list)
    for alias, target in data.get("aliases", {}).items():
        aliases[target["parent"]].append(alias)
    return {
        key: Icon(
            icon["body"],
            icon.get("left", 0),
            icon.get("top", 0),
            icon.get("width", data.get("width", 16)),
            icon.get("height", data.get("height", 16)),
            tuple(aliases[key]),
        )
        for key, icon in data["icons"].items()
        if not icon.get("hidden")
    }


def render(icon: Icon, pixels: int) -> np.ndarray | None:
    """Return the icon in the middle of a transparent square: uint8 [pixels, pixels, 4], or None if resvg fails."""
    import resvg_py  # imported here, so that drawings can be compared without resvg

    side = max(icon.width, icon.height)
    box = f"{icon.left - (side - icon.width) / 2} {icon.top - (side - icon.height) / 2} {side} {side}"
    body = icon.body.replace("currentColor", "#000")
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{pixels}" height="{pixels}" viewBox="{box}">{body}</svg>'
    )
    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    except ValueError:  # a few icons use features of SVG that resvg does not support
        return None
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


def render_all(icons: list[Icon], pixels: int, what: str) -> list[np.ndarray | None]:
    """Render many icons on all cores, in order."""
    report = progress(what, len(icons))
    rendered = []
    with ProcessPoolExecutor() as pool:
        for image in pool.map(render, icons, [pixels] * len(icons), chunksize=64):
            rendered.append(image)
            report(len(rendered))
    return rendered


def evaluation_renders(packages: Path, concepts: Iterable[Concept]) -> dict[tuple[str, str], np.ndarray]:
    """Return renders uint8 [96, 96, 4] of every concept in every evaluation style, by (style, concept)."""
    renders = {}
    for style in STYLES:
        icons = read_icons(packages, style)
        for concept in concepts:
            image = render(icons[concept.icons[style]], EVALUATION_PIXELS)
            if image is None:
                raise SystemExit(f"resvg cannot render {style}:{concept.icons[style]}")
            renders[style, concept.name] = image
    return renders


def thumbnail(drawing: np.ndarray) -> np.ndarray:
    """Return a drawing (uint8 RGBA) on white at 16 × 16 pixels as a centred vector of unit length."""
    image = drawing.astype(np.float32) / 255
    image = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
    size = (SIBLING_PIXELS, SIBLING_PIXELS)
    small = Image.fromarray((image * 255).astype(np.uint8)).resize(size, Image.Resampling.BOX)
    vector = np.asarray(small).astype(np.float32).ravel()
    vector -= vector.mean()
    return vector / (np.linalg.norm(vector) + 1e-6)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the similarity of two drawings (uint8 RGBA) at a small size: 1 if equal, about 0 if unrelated."""
    return float(thumbnail(first) @ thumbnail(second))


def plain_name(key: str, icon_set: str) -> str:
    """Return the key of an icon without prefixes and endings that name its variant."""
    name = key.lower()
    if icon_set.startswith("streamline") and icon_set != "streamline-emojis":
        name = re.sub(r"^(flat|freehand|color)-", "", name)
    for _ in range(3):
        name = VARIANT.sub("", name)
    return name


def candidates_of(icon_set: str, icons: dict[str, Icon], shared_names: dict[str, str]) -> list[Candidate]:
    """Return the icons of one set that may be trained on: things that are not held-out concepts.

    `shared_names` maps synonyms to names of concepts, both with hyphens.
    """
    chosen = []
    count: Counter[str] = Counter()
    for key, icon in icons.items():
        own_name = plain_name(key, icon_set)
        if INTERFACE.search(key) or any(HELD_OUT.search(name) for name in (key, own_name, *icon.aliases)):
            continue
        name = shared_names.get(own_name, own_name)
        count[name] += 1
        if icon_set in PICTOGRAM_SETS and count[name] > 2:
            continue  # two weights of one pictogram are enough
        names = {name, own_name, *(plain_name(alias, icon_set) for alias in icon.aliases)}
        captions = tuple(sorted(n.replace("-", " ") for n in names))
        chosen.append(Candidate(icon_set, key, name, captions, icon))
    return chosen


def pretraining_candidates(packages: Path) -> list[Candidate]:
    """Return the icons of all 31 pretraining sets that may be trained on, including siblings."""
    shared_names = {
        synonym.replace(" ", "-"): concept.replace(" ", "-")
        for concept, synonyms in SYNONYMS.items()
        for synonym in synonyms
    }
    chosen = []
    for icon_set in PRETRAINING_SETS:
        chosen += candidates_of(icon_set, read_icons(packages, icon_set), shared_names)
    sets_of_name: dict[str, set[str]] = defaultdict(set)
    for candidate in chosen:
        sets_of_name[candidate.name].add(candidate.icon_set)

    def is_wanted(candidate: Candidate) -> bool:
        """Return whether an icon has a short name that another set also has, or its set draws things."""
        if candidate.icon_set not in PICTOGRAM_SETS:
            return True
        known = len(sets_of_name[candidate.name]) >= 2 or candidate.icon_set in SETS_OF_THINGS
        return known and len(candidate.name.split("-")) <= 3

    return [candidate for candidate in chosen if is_wanted(candidate)]


def find_sibling(
    candidate: Candidate, image: np.ndarray, evaluation: dict[str, tuple[str, np.ndarray]]
) -> Sibling | None:
    """Return the candidate as a sibling if its similarity to an evaluation render of its concept is above 0.8.

    `evaluation` maps the name of a concept, with hyphens, to (concept, thumbnails [styles, 768]).
    """
    if candidate.name not in evaluation:
        return None
    concept, thumbnails = evaluation[candidate.name]
    alike = thumbnails @ thumbnail(image)
    best = int(alike.argmax())
    if alike[best] <= SIBLING_CORRELATION:
        return None
    return Sibling(candidate.icon_set, candidate.key, concept, STYLES[best], float(alike[best]))


def write_drawings(path: Path, drawings: list[tuple[Candidate, np.ndarray]]) -> None:
    """Write drawings as Parquet: set, key, name, captions and the raw pixels (uint8, 64 × 64 × RGBA)."""
    table = pa.table(
        {
            "set": [candidate.icon_set for candidate, _ in drawings],
            "key": [candidate.key for candidate, _ in drawings],
            "name": [candidate.name for candidate, _ in drawings],
            "captions": [list(candidate.captions) for candidate, _ in drawings],
            "pixels": pa.array([image.tobytes() for _, image in drawings], pa.binary(PRETRAINING_PIXELS**2 * 4)),
        }
    )
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", use_dictionary=["set"], row_group_size=4096)


def read_names(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the name and the captions of each drawing that write_drawings wrote."""
    table = pq.read_table(path, columns=["name", "captions"])
    return table["name"].to_pylist(), table["captions"].to_pylist()


def build_drawings(packages: Path, output: Path) -> list[Sibling]:
    """Render the pretraining drawings into a Parquet file, and return the siblings, which the file does not have."""
    concepts = read_concepts()
    renders = evaluation_renders(packages, concepts)
    evaluation = {
        concept.name.replace(" ", "-"): (
            concept.name,
            np.stack([thumbnail(renders[style, concept.name]) for style in STYLES]),
        )
        for concept in concepts
    }
    candidates = pretraining_candidates(packages)
    images = render_all([candidate.icon for candidate in candidates], PRETRAINING_PIXELS, "drawings")
    kept, siblings = [], []
    for candidate, image in zip(candidates, images, strict=True):
        if image is None or image[..., 3].mean() < FAINTEST:
            continue
        sibling = find_sibling(candidate, image, evaluation)
        if sibling is None:
            kept.append((candidate, image))
        else:
            siblings.append(sibling)
    write_drawings(output, kept)
    names = len({candidate.name for candidate, _ in kept})
    print(f"{len(kept)} drawings of {names} names in {output}; {len(siblings)} siblings dropped")
    return siblings


def write_siblings(path: Path, siblings: list[Sibling]) -> None:
    """Write the dropped siblings, sorted by set and icon."""
    ordered = sorted(siblings, key=lambda s: (s.icon_set, s.key))
    rows: list[list[object]] = [[s.icon_set, s.key, s.concept, s.style, f"{s.correlation:.4f}"] for s in ordered]
    write_table(path, ["set", "icon", "concept", "style", "correlation"], rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--packages", type=Path, default=PACKAGES, help="folder with the @iconify-json packages (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=BUILD / "drawings.parquet", help="file to write (default: %(default)s)"
    )
    parser.add_argument(
        "--siblings", type=Path, default=TOOLS / "siblings.csv", help="table to write (default: %(default)s)"
    )
    arguments = parser.parse_args()
    write_siblings(arguments.siblings, build_drawings(arguments.packages, arguments.out))


if __name__ == "__main__":
    main()
