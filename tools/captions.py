"""Captions from names of drawings, and tokens of captions for pictoclip.

As a program, this module trains a tokenizer of 3,072 entries on such captions. The trainer of `tokenizers` breaks ties
at random and gives another vocabulary each time. The tokenizer in src/fedpgp/assets/pictoclip is therefore a committed
file, and the weights fit only this tokenizer: train another tokenizer only together with new weights.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from common import BUILD, replacing
from drawings import SYNONYMS, read_names

CONTEXT = 40  # tokens, including start and end
VOCABULARY = 3072
START, END = "<|startoftext|>", "<|endoftext|>"  # the last two ids; transformers expects the highest id at the end
LONGEST_NAME = 5  # in words
CAPTIONS_PER_NAME = 16
PLAIN_CAPTIONS = 3  # number of captions in the template of the evaluation
PLAIN_TEMPLATE = "a photo of a {}."
TEMPLATES = 4000

ADJECTIVES = (
    "small", "big", "simple", "nice", "cute", "little", "plain", "clean", "bright", "dark", "colorful", "old",
    "new", "typical", "single", "beautiful", "ordinary", "detailed", "shiny", "tiny", "large", "round",
    "pretty", "blurry", "noisy", "grey",
)  # fmt: skip
KINDS = (
    "photo", "picture", "drawing", "icon", "image", "sketch", "illustration", "symbol", "painting", "emoji",
    "cartoon", "snapshot", "render",
)  # fmt: skip
FILLERS = (
    "it", "is", "was", "very", "there", "here", "and", "or", "but", "with", "for", "on", "in", "at", "by",
    "from", "as", "so", "up", "out",
)  # fmt: skip
SHORT_TEMPLATES = ("{}", "{}.", "a {}", "the {}", "a {}.", "one {}")
LEADS = (
    "here you can see",
    "we are looking at",
    "in the middle of the page there is",
    "on this plain background we see",
    "what is shown here is",
    "somebody made for us",
    "found in a very old book next to others",
)
ENDS = ("", ".", ".", ".", " on white.", " on a table.", " in the picture.", " seen from the side.")


def random_template(rng: random.Random) -> str:
    """Return a caption with {} for the name.

    22 % are the plain template, and 10 % are very short. A fifth starts with a phrase, and a fifth with six to
    seventeen unrelated words. They train positions far from the start, where long learned prompts put the name.
    """
    kind = rng.random()
    if kind < 0.22:
        return PLAIN_TEMPLATE
    if kind < 0.32:
        return rng.choice(SHORT_TEMPLATES)
    text = described(rng)
    if 0.62 <= kind < 0.82:
        text = f"{rng.choice(LEADS)} {text}"
    elif kind >= 0.82:
        loose_words = rng.choices(ADJECTIVES + KINDS + FILLERS, k=rng.randint(6, 17))
        text = f"{' '.join(loose_words)} {{}}"
    return re.sub(" +", " ", text + rng.choice(ENDS))


def described(rng: random.Random) -> str:
    """Return a caption such as "the small shiny drawing of a {}"."""
    first = rng.choice(("a", "the", "this", "one"))
    adjectives = " ".join(rng.sample(ADJECTIVES, rng.choice((0, 0, 1, 1, 2, 3))))
    link = rng.choice(("of", "showing", "with", "that shows"))
    article = rng.choice(("a", "the", "one", f"a {rng.choice(ADJECTIVES)}"))
    return f"{first} {adjectives} {rng.choice(KINDS)} {link} {article} {{}}"


def random_templates(seed: int) -> list[str]:
    """Return the templates of one run, many of which are equal."""
    rng = random.Random(f"templates {seed}")
    return [random_template(rng) for _ in range(TEMPLATES)]


def words_for(names: Iterable[str], captions: Iterable[Iterable[str]]) -> dict[str, Counter[str]]:
    """Return the possible names of each thing with weights: short names of its drawings, and synonyms.

    Parameters
    ----------
    names
        Name of each drawing (with hyphens); drawings of one thing share it.
    captions
        All names of each drawing (with spaces).
    """
    words: dict[str, Counter[str]] = defaultdict(Counter)
    for name, texts in zip(names, captions, strict=True):
        short = [text for text in texts if 1 <= len(text.split()) <= LONGEST_NAME]
        words[name].update(short or texts)
    for concept, synonyms in SYNONYMS.items():
        name = concept.replace(" ", "-")
        if name in words:
            words[name].update({concept: 5})
            words[name].update(synonyms)
    return words


def encode_all(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Return the ids of each text with start and end; a long text loses words, but keeps its end."""
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    return [[start, *encoding.ids[: CONTEXT - 2], end] for encoding in encodings]


def tokens_for(words: dict[str, Counter[str]], tokenizer: Tokenizer, seed: int) -> np.ndarray:
    """Return captions of each thing in sorted order: int16 [names, 16, 40], padded with the id of the end."""
    rng = random.Random(f"captions {seed}")
    templates = random_templates(seed)
    chosen, plain = [], []
    for name in sorted(words):
        called, weights = list(words[name]), list(words[name].values())
        for number in range(CAPTIONS_PER_NAME):
            template = PLAIN_TEMPLATE if number < PLAIN_CAPTIONS else rng.choice(templates)
            text = rng.choices(called, weights)[0]
            chosen.append(template.replace("{}", text))
            plain.append(PLAIN_TEMPLATE.replace("{}", text))
    tokens = np.full((len(chosen), CONTEXT), VOCABULARY - 1, np.int16)
    for row, (ids, short) in enumerate(zip(encode_all(tokenizer, chosen), encode_all(tokenizer, plain), strict=True)):
        fitting = ids if len(ids) < CONTEXT else short  # the name is at the end and would be cut off
        tokens[row, : len(fitting)] = fitting
    return tokens.reshape(len(words), CAPTIONS_PER_NAME, CONTEXT)


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """Return a lower-case byte-pair encoding like CLIP's with `vocabulary` entries; it differs each time."""
    tokenizer = Tokenizer(models.BPE(unk_token=None, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pieces = pre_tokenizers.Split(Regex(r"[a-z]+|[0-9]|[^\sa-z0-9]+"), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces])
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        end_of_word_suffix="</w>",
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789.,-'!?&"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([START, END])
    ids = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ids)
    return tokenizer


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--drawings",
        type=Path,
        default=BUILD / "drawings.parquet",
        help="file that tools/drawings.py wrote (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=BUILD / "tokenizer.json", help="file to write (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the templates (default: %(default)s)")
    arguments = parser.parse_args()
    words = words_for(*read_names(arguments.drawings))
    templates = [template.replace("{}", "") for template in random_templates(arguments.seed)[: TEMPLATES // 2]]
    names = [text for counter in words.values() for text in counter]
    with replacing(arguments.out) as temporary:
        train_tokenizer(templates + names + names).save(str(temporary))


if __name__ == "__main__":
    main()
