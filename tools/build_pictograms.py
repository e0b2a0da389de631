"""Build the dataset pictograms from the icon packages, with the same bytes each time.

The simulated camera of camera.py captures 120 concepts in six drawing styles at 64 pixels. Each concept and style has
six training, two validation and six test captures and one clean render. Writes Parquet files in Hugging Face's image
format into src/fedpgp/assets/pictograms, and the checksums of all assets. Takes about two minutes on one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from camera import capture, on_white
from checksum_assets import write_checksums
from common import ASSETS, PACKAGES, STYLES, Concept, progress, read_concepts, read_sets, replacing, write_table
from drawings import evaluation_renders

CAPTURES = {"train": 6, "validation": 2, "test": 6}  # for each concept and style
CLEAN = "clean"
PIXELS = 64
SEVERITY = 0.6
WEBP_QUALITY = 85
SEED = "pictograms 1"  # change this text for another edition of the captures


def generator_for(split: str, style: str, concept: str) -> torch.Generator:
    """Return the generator for the captures of one concept in one style and split."""
    digest = hashlib.sha256(f"{SEED}/{split}/{style}/{concept}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # seeds are signed 64-bit numbers


def to_tensor(render: np.ndarray) -> Tensor:
    """Return a render, uint8 [s, s, 4], as float [1, 4, s, s] in 0..1."""
    return torch.from_numpy(render.copy()).permute(2, 0, 1).unsqueeze(0).float() / 255


def images_of(render: np.ndarray, split: str, style: str, concept: str) -> Tensor:
    """Return the images of one concept in one style and split: float [captures, 3, 64, 64] in 0..1."""
    drawing = to_tensor(render)
    if split == CLEAN:
        return on_white(drawing, PIXELS)
    copies = drawing.expand(CAPTURES[split], -1, -1, -1)
    return capture(copies, PIXELS, SEVERITY, generator_for(split, style, concept))


def encode(image: Tensor) -> bytes:
    """Return an image [3, h, w] in 0..1 as lossy WebP."""
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=WEBP_QUALITY, method=6)
    return file.getvalue()


def schema(names: list[str]) -> pa.Schema:
    """Return the Arrow schema of the files, with the features that `datasets` uses to decode them."""
    text = {"dtype": "string", "_type": "Value"}
    features = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
        "concept": text,
        "style": text,
        "capture": {"dtype": "int64", "_type": "Value"},
        "licence": text,
    }
    fields = [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("label", pa.int64()),
        ("concept", pa.string()),
        ("style", pa.string()),
        ("capture", pa.int64()),
        ("licence", pa.string()),
    ]
    return pa.schema(fields).with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def rows_of(
    split: str, style: str, concepts: list[Concept], renders: dict[tuple[str, str], np.ndarray]
) -> list[dict[str, object]]:
    """Return the rows of one file, by label and capture."""
    licence = read_sets()[style].licence
    rows: list[dict[str, object]] = []
    for label, concept in enumerate(concepts):
        images = images_of(renders[style, concept.name], split, style, concept.name)
        for number, image in enumerate(images):
            name = f"{style}-{split}-{concept.name.replace(' ', '-')}-{number}.webp"
            rows.append(
                {
                    "image": {"bytes": encode(image), "path": name},
                    "label": label,
                    "concept": concept.name,
                    "style": style,
                    "capture": number,
                    "licence": licence,
                }
            )
    return rows


def build(packages: Path, output: Path) -> None:
    """Write all files of the dataset into `output`."""
    concepts = read_concepts()
    names = [concept.name for concept in concepts]
    classes: list[list[object]] = [[concept.name, concept.group, concept.split] for concept in concepts]
    write_table(output / "classes.csv", ["name", "group", "split"], classes)
    renders = evaluation_renders(packages, concepts)
    splits = [*CAPTURES, CLEAN]
    report = progress("files", len(STYLES) * len(splits))
    for done, (style, split) in enumerate([(style, split) for style in STYLES for split in splits], start=1):
        table = pa.Table.from_pylist(rows_of(split, style, concepts, renders), schema(names))
        with replacing(output / style / f"{split}.parquet") as temporary:
            pq.write_table(table, temporary, compression="zstd")
        report(done)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--packages", type=Path, default=PACKAGES, help="folder with the @iconify-json packages (default: %(default)s)"
    )
    parser.add_argument(
        "--assets", type=Path, default=ASSETS, help="folder for pictograms/ and checksums.json (default: %(default)s)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # several threads may round sums differently
    build(arguments.packages, arguments.assets / "pictograms")
    write_checksums(arguments.assets)


if __name__ == "__main__":
    main()
