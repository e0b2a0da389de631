"""Class names of a Caltech-like task, and their numbers of tokens in the vocabulary of CLIP.

The vocabulary of OpenAI is not in the package. The time of a step depends only on the number of tokens, so this file
has these numbers (counted with the published merges), and the ids are made up.
"""

import re
import zlib

import torch

from fedpgp.backbone.tokens import ClassTokens
from fedpgp.runtime.randomness import generator


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# The 100 classes of Caltech101 in the order of CoOp's split: the first half is base, the second half novel.
BASE_NAMES = _words(
    "face leopard motorbike accordion airplane anchor ant barrel bass beaver binocular bonsai brain brontosaurus"
    " buddha butterfly camera cannon car_side ceiling_fan cellphone chair chandelier cougar_body cougar_face crab"
    " crayfish crocodile crocodile_head cup dalmatian dollar_bill dolphin dragonfly electric_guitar elephant emu"
    " euphonium ewer ferry flamingo flamingo_head garfield gerenuk gramophone grand_piano hawksbill headphone"
    " hedgehog helicopter"
)
NOVEL_NAMES = _words(
    "ibis inline_skate joshua_tree kangaroo ketch lamp laptop llama lobster lotus mandolin mayfly menorah"
    " metronome minaret nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid revolver rhino rooster"
    " saxophone schooner scissors scorpion sea_horse snoopy soccer_ball stapler starfish stegosaurus stop_sign"
    " strawberry sunflower tick trilobite umbrella watch water_lilly wheelchair wild_cat windsor_chair wrench"
    " yin_yang"
)

# Words of these names with several tokens. All other words, and punctuation marks, are one token.
PIECES = {
    **dict.fromkeys(
        _words("binocular crayfish dalmatian ewer gramophone hawksbill mandolin mayfly menorah minaret"), 2
    ),
    **dict.fromkeys(_words("okapi schooner stapler"), 2),
    **dict.fromkeys(_words("brontosaurus euphonium gerenuk metronome nautilus platypus stegosaurus trilobite"), 3),
}

# Number of tokens -> how many of OpenAI's 1,000 ImageNet names have this number.
IMAGENET_TOKENS = {1: 246, 2: 508, 3: 154, 4: 50, 5: 22, 6: 10, 7: 8, 9: 1, 12: 1}


class CountingTokenizer:
    """Tokenizer with the same numbers of tokens as CLIP's and made-up ids, only for the words of this file."""

    bos_token_id: int = 49406
    eos_token_id: int = 49407

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        words = re.findall(r"[a-z]+|[^\sa-z]+", text.lower())
        pieces = [f"{word} {piece}" for word in words for piece in range(PIECES.get(word, 1))]
        return {"input_ids": [zlib.crc32(piece.encode()) % self.bos_token_id for piece in pieces]}


def imagenet_like(classes: int, vocabulary: int, seed: int) -> ClassTokens:
    """Return random class names whose lengths have the distribution of ImageNet names.

    Parameters
    ----------
    classes
        Number of class names.
    vocabulary
        Size of the vocabulary; the last id is EOS, and [SOS] is before it.
    seed
        Random seed.
    """
    rng = generator(seed, "ImageNet-like names")
    counts = torch.tensor(list(IMAGENET_TOKENS.values()), dtype=torch.float64)
    drawn = torch.multinomial(counts, classes, replacement=True, generator=rng)
    end = torch.tensor(list(IMAGENET_TOKENS))[drawn] + 1  # "." follows the name
    ids = torch.randint(vocabulary - 2, (classes, int(end.max()) + 1), generator=rng)
    return ClassTokens(ids.where(torch.arange(ids.shape[1]) < end[:, None], torch.tensor(vocabulary - 1)), end)
