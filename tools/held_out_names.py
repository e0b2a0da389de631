"""Measure how well names predict the targets of unseen classes: the formula of photoclip and of its prototype.

    python tools/held_out_names.py --wheels FOLDER [--wordnet FOLDER]

For three draws of 200 ImageNet classes, the target of each class is computed from the rows of the other 800 classes.
The rows of the classifier then have to identify the target among the 200 classes. No photograph is needed. The
prototype weights rows by the similarity of names and by the nearest common ancestor in WordNet; photoclip also uses the
similarity of glosses.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from photoclip_space import SentenceEncoder, download, make_space, read_imagenet
from photoclip_texts import ANCESTOR_SHARE, NAME_SHARE, SHARPNESS, ancestor_likeness, gloss_text
from train_photoclip import BUILD, HELD_OUT
from wordnet import DEBIAN_FOLDER, read_wordnet

DRAWS = 3
PROTOTYPE_SHARPNESS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, default=BUILD / "wheels", help="default: %(default)s")
    parser.add_argument("--wordnet", type=Path, default=DEBIAN_FOLDER, help="default: %(default)s")
    given = parser.parse_args()
    given.wheels.mkdir(parents=True, exist_ok=True)
    download(given.wheels)
    imagenet, wordnet = read_imagenet(given.wheels), read_wordnet(given.wordnet)
    rows = make_space(imagenet.classifier).rows
    encode = SentenceEncoder(given.wheels, BUILD / "sentence-encoder")
    synsets = [wordnet.synsets[offset] for offset in imagenet.offsets]
    of_class = [
        list(dict.fromkeys([name.lower(), *(word.lower() for word in synset.words)]))
        for name, synset in zip(imagenet.names, synsets, strict=True)
    ]
    texts = sorted({name for names in of_class for name in names})
    vectors = dict(zip(texts, encode(texts).float(), strict=True))

    def means(names: list[list[str]]) -> Tensor:
        return functional.normalize(
            torch.stack([torch.stack([vectors[n] for n in own]).mean(0) for own in names]), dim=1
        )

    both, own = means(of_class), means([[word.lower() for word in synset.words] for synset in synsets])
    glosses = encode([gloss_text(synset) for synset in synsets]).float()
    ancestors = ancestor_likeness(wordnet, imagenet.offsets, imagenet.offsets)
    likeness = {
        "prototype": (both @ both.T + ancestors) / PROTOTYPE_SHARPNESS,
        "photoclip": (NAME_SHARE * own @ own.T + glosses @ glosses.T + ANCESTOR_SHARE * ancestors) / SHARPNESS,
    }
    for name, of_all in likeness.items():
        found = []
        for draw in range(DRAWS):
            held = torch.from_numpy(np.random.default_rng(draw).permutation(1000)[:HELD_OUT])
            weights = of_all[held].index_fill(1, held, -torch.inf).softmax(1)
            cosines = functional.normalize(weights @ rows, dim=1) @ rows[held].T
            found.append(100 * (cosines.argmax(1) == torch.arange(HELD_OUT)).float().mean().item())
        print(f"{name}: {', '.join(f'{one:.1f}' for one in found)}; mean {np.mean(found):.1f} %, chance 0.5 %")


if __name__ == "__main__":
    main()
