"""The texts that photoclip's text tower learns, and their targets in the shared space.

The texts are glosses of WordNet's nouns, and their names in templates. The target of a synset that is a class is the
row of this class. The target of an ancestor of classes is the mean of their rows. The target of every other synset is
the mean of all rows with weights softmax((½ n + g + ½ i) / 0.1). Here n and g are the cosines of the names and of the
glosses in the sentence encoder, and i is the information content of the nearest common ancestor of synset and class.
The target of a name with several meanings is the weighted mean of their targets. Frequent meanings and visible things
have the largest weights.

As a program, this module trains a tokenizer of 8,192 entries on the names, glosses and templates. The trainer of
`tokenizers` breaks ties at random. The tokenizer in src/fedpgp/assets/photoclip is therefore a committed file, and the
weights fit only this tokenizer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from captions import PLAIN_TEMPLATE, encode_all, random_templates, train_tokenizer
from common import BUILD, replacing
from photoclip_space import ImageNet, SentenceEncoder, Space
from wordnet import DEBIAN_FOLDER, Synset, WordNet, read_wordnet

CONTEXT = 40  # tokens, including start and end
VOCABULARY = 8192
LONGEST_NAME = 40  # in characters
SENSES = 4  # most senses of a name

# Numbers of lexicographer files: categories that photographs show, and categories that they show in part
VISIBLE = frozenset({5, 6, 8, 13, 17, 20})  # animals, artifacts, body, food, natural objects, plants
PARTLY_VISIBLE = frozenset({3, 4, 10, 14, 15, 18, 19, 25, 27})  # acts, signs, groups, places, persons, shapes …
HIDDEN_SENSE = 0.15  # weight of an invisible sense relative to a visible sense

NAME_SHARE, ANCESTOR_SHARE = 0.5, 0.5  # weights of n and i; the weight of g is 1
SHARPNESS = 0.1

CLASS, ANCESTOR, OTHER = range(3)
KIND_SHARES = (0.4, 0.1, 0.5)  # shares of the kinds of texts in a batch
GLOSS_SHARE = 0.12
PLURAL_SHARE = 0.04  # share of names that get an s at the end, or lose it


@dataclass(frozen=True)
class Vocabulary:
    """The texts of training and their targets.

    Attributes
    ----------
    names
        Names.
    senses, shares
        Numbers of synsets, int64 [names, 4], and their weights, float [names, 4].
    chances, gloss_chances
        Cumulated probabilities, float [kinds, names] and [kinds, synsets].
    glosses
        One gloss for each synset.
    targets
        Half [synsets, 512] of unit length.
    rows
        Rows of the classes that are not held out, float [classes, 512].
    """

    names: list[str]
    senses: np.ndarray
    shares: np.ndarray
    chances: np.ndarray
    glosses: list[str]
    gloss_chances: np.ndarray
    targets: Tensor
    rows: Tensor


def chosen_synsets(wordnet: WordNet) -> list[str]:
    """Return the offsets of the synsets that are learned: visible things, without names of persons."""
    physical = next(offset for offset, synset in wordnet.synsets.items() if synset.words[0] == "physical entity")
    return [
        offset
        for offset, synset in wordnet.synsets.items()
        if (synset.category in VISIBLE | PARTLY_VISIBLE or physical in wordnet.ancestors[offset])
        and (not synset.is_instance or synset.category in VISIBLE)
    ]


def gloss_text(synset: Synset) -> str:
    """Return the text by which the sentence encoder compares glosses."""
    return f"{', '.join(synset.words[:3])}: {synset.gloss}"


def cached_embeddings(texts: list[str], cache: Path, encoder: Callable[[], SentenceEncoder]) -> Tensor:
    """Return the sentence vectors of texts, half [n, 384], from the cache if the cache has the same texts."""
    if cache.is_file():
        saved = torch.load(cache, weights_only=True)
        if saved["texts"] == texts:
            return saved["vectors"]
    vectors = encoder()(texts).half()
    with replacing(cache) as temporary:
        torch.save({"texts": texts, "vectors": vectors}, temporary)
    return vectors


def ancestor_likeness(wordnet: WordNet, offsets: list[str], classes: list[str]) -> Tensor:
    """Return the information content of the nearest common ancestor of each synset and class: float [n, classes]."""
    nothing = torch.zeros(len(classes))
    own: dict[str, Tensor] = {}
    for number, offset in enumerate(classes):
        for above in wordnet.ancestors[offset]:
            own.setdefault(above, nothing.clone())[number] = wordnet.information[above]
    return torch.stack(
        [torch.stack([own.get(above, nothing) for above in wordnet.ancestors[offset]]).amax(0) for offset in offsets]
    )


def synset_targets(
    wordnet: WordNet, offsets: list[str], classes: list[str], space: Space, vectors: dict[str, Tensor], kept: np.ndarray
) -> tuple[Tensor, np.ndarray]:
    """Return the targets, float [synsets, 512] of unit length, and the kind of each synset.

    Parameters
    ----------
    vectors
        Sentence vectors by text, of all names in lower case and of all gloss texts.
    kept
        bool [classes]; the rows of the other classes are not used.
    """
    synsets = [wordnet.synsets[offset] for offset in offsets]
    number_of = {offset: number for number, offset in enumerate(offsets)}
    named = torch.stack([torch.stack([vectors[word.lower()] for word in s.words]).float().mean(0) for s in synsets])
    named = functional.normalize(named, dim=1)
    glossed = torch.stack([vectors[gloss_text(synset)] for synset in synsets]).float()
    used = np.flatnonzero(kept)
    places = torch.tensor([number_of[classes[number]] for number in used])
    rows = space.rows[torch.from_numpy(used)]
    targets = torch.empty(len(offsets), rows.shape[1])
    for start in range(0, len(offsets), 4096):
        part = slice(start, start + 4096)
        likeness = NAME_SHARE * named[part] @ named[places].T + glossed[part] @ glossed[places].T
        likeness += ANCESTOR_SHARE * ancestor_likeness(wordnet, offsets[part], [classes[n] for n in used])
        targets[part] = (likeness / SHARPNESS).softmax(1) @ rows
    kinds = np.full(len(offsets), OTHER)
    below: dict[str, list[int]] = {}
    for position, number in enumerate(used):
        for above in wordnet.ancestors[classes[number]]:
            below.setdefault(above, []).append(position)
    for above, positions in below.items():
        if above in number_of:
            targets[number_of[above]] = rows[positions].mean(0)
            kinds[number_of[above]] = ANCESTOR
    for position, number in enumerate(used):
        targets[number_of[classes[number]]] = rows[position]
        kinds[number_of[classes[number]]] = CLASS
    return functional.normalize(targets, dim=1), kinds


def senses_of(wordnet: WordNet, name: str, number_of: dict[str, int]) -> list[tuple[int, float]]:
    """Return the numbers and shares of the senses of a name, in descending order. The shares add up to 1."""
    tagged = wordnet.tagged[name]
    weighed = []
    for rank, offset in enumerate(wordnet.senses[name]):
        if offset in number_of:
            weight = (
                1 / (rank + 1) if rank < tagged else 1 / (tagged + 1.5)
            )  # the order of untagged senses has no meaning
            visible = wordnet.synsets[offset].category in VISIBLE
            weighed.append((number_of[offset], weight * (1.0 if visible else HIDDEN_SENSE)))
    weighed = sorted(weighed, key=lambda pair: -pair[1])[:SENSES]
    total = sum(weight for _, weight in weighed)
    return [(number, weight / total) for number, weight in weighed]


def name_weight(synset: Synset, tagged: int) -> float:
    """Return the sampling weight of a name that is not a class: high for frequent names, low for rare plants."""
    weight = 3.0 if tagged else 1.0
    if synset.category not in VISIBLE or (synset.category == 20 and not tagged):
        weight *= 0.5
    return weight


def make_vocabulary(
    wordnet: WordNet,
    imagenet: ImageNet,
    space: Space,
    embed: Callable[[list[str]], Tensor],
    held_rows: np.ndarray,
    held_names: np.ndarray,
) -> Vocabulary:
    """Return the names and glosses with their targets.

    Parameters
    ----------
    embed
        Function from texts to their sentence vectors.
    held_rows
        bool [classes]: classes whose rows are not used. They are treated like other synsets.
    held_names
        bool [classes]: classes whose names and glosses are not used either.
    """
    offsets = chosen_synsets(wordnet)
    synsets = [wordnet.synsets[offset] for offset in offsets]
    number_of = {offset: number for number, offset in enumerate(offsets)}
    texts = sorted({word.lower() for s in synsets for word in s.words} | {gloss_text(s) for s in synsets})
    vectors = dict(zip(texts, embed(texts), strict=True))
    targets, kinds = synset_targets(wordnet, offsets, imagenet.offsets, space, vectors, ~held_rows)
    hidden = np.zeros(len(offsets), bool)
    hidden[[number_of[offset] for offset in np.array(imagenet.offsets)[held_names]]] = True
    hidden_names = {word.lower() for number in np.flatnonzero(hidden) for word in synsets[number].words}
    hidden_names |= {imagenet.names[number].lower() for number in np.flatnonzero(held_names)}

    entries: list[tuple[str, list[tuple[int, float]], float]] = []
    for name in wordnet.senses:
        senses = senses_of(wordnet, name, number_of)
        if senses and len(name) < LONGEST_NAME and name not in hidden_names:
            first = senses[0][0]
            weight = 1.0 if kinds[first] == CLASS else name_weight(synsets[first], wordnet.tagged[name])
            entries.append((name, senses, weight))
    for number in np.flatnonzero(~held_names):  # OpenCLIP chose these names to distinguish the classes
        entries.append((imagenet.names[number].lower(), [(number_of[imagenet.offsets[number]], 1.0)], 3.0))

    senses_table = np.zeros((len(entries), SENSES), np.int64)
    shares = np.zeros((len(entries), SENSES), np.float32)
    weights = np.zeros((len(KIND_SHARES), len(entries)))
    for row, (_, senses, weight) in enumerate(entries):
        for column, (number, share) in enumerate(senses):
            senses_table[row, column], shares[row, column] = number, share
        weights[kinds[senses[0][0]], row] = weight
    gloss_weights = np.array([[(kinds == kind) & ~hidden] for kind in range(len(KIND_SHARES))], float)[:, 0]
    return Vocabulary(
        [name for name, _, _ in entries],
        senses_table,
        shares,
        cumulated(weights),
        [synset.gloss for synset in synsets],
        cumulated(gloss_weights),
        targets.half(),
        space.rows[torch.from_numpy(~held_rows)],
    )


def cumulated(weights: np.ndarray) -> np.ndarray:
    """Return the cumulated probabilities of each row of weights."""
    sums = weights.cumsum(1)
    return sums / sums[:, -1:]


def draw_texts(
    vocabulary: Vocabulary, templates: list[str], tokenizer: Tokenizer, count: int, rng: np.random.Generator
) -> tuple[list[list[int]], Tensor]:
    """Draw texts. Return their ids and their targets, float [count, 512] of unit length."""
    kinds = rng.choice(len(KIND_SHARES), count, p=KIND_SHARES)
    is_gloss = rng.random(count) < GLOSS_SHARE
    draws = rng.random(count)
    chosen_templates = rng.integers(len(templates), size=count)
    is_plural = rng.random(count) < PLURAL_SHARE
    texts, plain = [], []
    senses, shares = np.zeros((count, SENSES), np.int64), np.zeros((count, SENSES), np.float32)
    for row in range(count):
        if is_gloss[row]:
            number = int(np.searchsorted(vocabulary.gloss_chances[kinds[row]], draws[row], side="right"))
            texts.append(vocabulary.glosses[number])
            plain.append(vocabulary.glosses[number])
            senses[row, 0], shares[row, 0] = number, 1.0
        else:
            entry = int(np.searchsorted(vocabulary.chances[kinds[row]], draws[row], side="right"))
            name = vocabulary.names[entry]
            if is_plural[row]:
                name = name.removesuffix("s") if name.endswith("s") else f"{name}s"
            texts.append(templates[chosen_templates[row]].replace("{}", name))
            plain.append(PLAIN_TEMPLATE.replace("{}", name))
            senses[row], shares[row] = vocabulary.senses[entry], vocabulary.shares[entry]
    ids = [
        full if len(full) < CONTEXT else short  # the name is at the end and would be cut off
        for full, short in zip(encode_all(tokenizer, texts), encode_all(tokenizer, plain), strict=True)
    ]
    targets = vocabulary.targets[torch.from_numpy(senses)].float() * torch.from_numpy(shares)[..., None]
    return ids, functional.normalize(targets.sum(1), dim=1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--wordnet", type=Path, default=DEBIAN_FOLDER, help="folder of WordNet 3.0 (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=BUILD / "photoclip-tokenizer.json", help="file to write (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the templates (default: %(default)s)")
    arguments = parser.parse_args()
    wordnet = read_wordnet(arguments.wordnet)
    synsets = [wordnet.synsets[offset] for offset in chosen_synsets(wordnet)]
    templates = [template.replace("{}", "") for template in random_templates(arguments.seed)]
    names = [word.lower() for synset in synsets for word in synset.words]
    common = [name for name in names if wordnet.tagged[name]]
    glosses = [synset.gloss for synset in synsets]
    tokenizer = train_tokenizer(templates + names + 4 * common + glosses, VOCABULARY)
    with replacing(arguments.out) as temporary:
        tokenizer.save(str(temporary))


if __name__ == "__main__":
    main()
