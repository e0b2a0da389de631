"""Build the features of Caltech101 that ship with the package, from the published images.

FOLDER contains 101_ObjectCategories and split_zhou_Caltech101.json. The tool writes into assets/caltech101 the features
of all images in the order of the split, in half precision, the fingerprint of the image tower, and the split file. It
updates checksums.json. Nothing is random: the same images and versions give the same bytes. After Ctrl-C, the same
command continues.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from fedpgp.backbone import PHOTOCLIP, load_backbone
from fedpgp.data.features import split_features
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import load_source
from fedpgp.data.sources.caltech101 import ABOUT, FEATURES, NAME, SPLIT
from safetensors.torch import save

from checksum_assets import write_checksums
from common import ASSETS, BUILD, progress, replacing


def build(folder: Path, assets: Path, cache: Path, checkpoint: str = PHOTOCLIP) -> None:
    """Write the features of all images of a folder, the fingerprint and the split file into assets."""
    source = load_source(DataConfig(source=str(folder), layout="coop"))
    assert source.test is not None
    splits = [source.train, source.validation, source.test]  # the order of the split file
    encoder = load_backbone(checkpoint).image
    told = {}  # progress function of each task

    def report(what: str, done: int, total: int, _: str) -> None:
        told.setdefault(what, progress(what, total))(done)

    features, _ = split_features(encoder, splits, cache, progress=report)
    values = torch.cat([features[split.fingerprint] for split in splits]).half()
    about = {"checkpoint": checkpoint, "encoder": encoder.fingerprint}
    with replacing(assets / NAME / FEATURES) as temporary:
        temporary.write_bytes(save({"features": values}))  # save_file would make it readable only for its owner
    with replacing(assets / NAME / ABOUT) as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    with replacing(assets / NAME / SPLIT) as temporary:
        shutil.copyfile(folder / SPLIT, temporary)
    write_checksums(assets)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the published images and CoOp's split file")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="folder of the assets (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=BUILD / "features", help="feature cache (default: %(default)s)")
    options = parser.parse_args()
    build(options.folder, options.assets, options.cache)


if __name__ == "__main__":
    main()
