"""Reader of the nouns of WordNet 3.0: names, glosses, hypernyms, and the senses of each name.

The Debian package wordnet-base installs the files in /usr/share/wordnet.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

DEBIAN_FOLDER = Path("/usr/share/wordnet")
MARKER = re.compile(r"\((?:a|p|ip)\)$")  # the syntactic marker of an adjective
RELATIONS = ("@", "@i")  # hypernym, hypernym of an instance


@dataclass(frozen=True)
class Synset:
    """One meaning.

    Attributes
    ----------
    words
        Names, the most frequent first.
    gloss
        Definition without examples.
    category
        Number of the lexicographer file (5 animals, 6 artifacts, 13 food, 18 persons …).
    hypernyms
        Offsets of the hypernyms.
    is_instance
        Whether it is an individual, such as a city or a writer.
    """

    words: tuple[str, ...]
    gloss: str
    category: int
    hypernyms: tuple[str, ...]
    is_instance: bool


@dataclass(frozen=True)
class WordNet:
    """Nouns of WordNet.

    Attributes
    ----------
    synsets
        Synsets by offset (eight digits).
    senses
        Offsets of each name in lower case, the most frequent sense first.
    tagged
        Number of senses of each name that occur in the tagged corpus. Only these senses are ordered by frequency.
    """

    synsets: dict[str, Synset]
    senses: dict[str, tuple[str, ...]]
    tagged: dict[str, int]

    @cached_property
    def ancestors(self) -> dict[str, frozenset[str]]:
        """Return each synset and its hypernyms up to the root."""
        known: dict[str, frozenset[str]] = {}

        def visit(offset: str) -> frozenset[str]:
            if offset not in known:
                above = [visit(hypernym) for hypernym in self.synsets[offset].hypernyms]
                known[offset] = frozenset({offset}).union(*above)
            return known[offset]

        for offset in self.synsets:
            visit(offset)
        return known

    @cached_property
    def information(self) -> dict[str, float]:
        """Return the information content of each synset by its number of descendants: 0 for the root, 1 for a leaf."""
        descendants = Counter(above for all_above in self.ancestors.values() for above in all_above)
        total = math.log(len(self.synsets))
        return {offset: 1 - math.log(count) / total for offset, count in descendants.items()}


def read_synset(line: str) -> tuple[str, Synset]:
    """Return the offset and the synset of a line of data.noun. Format: WordNet's manual page wndb(5)."""
    head, _, gloss = line.rstrip("\n").partition(" | ")
    fields = head.split(" ")
    words = int(fields[3], 16)
    start = 4 + 2 * words
    pointers = [fields[start + 1 + 4 * i : start + 4 + 4 * i] for i in range(int(fields[start]))]
    above = [(symbol, offset) for symbol, offset, part in pointers if symbol in RELATIONS and part == "n"]
    synset = Synset(
        words=tuple(MARKER.sub("", word).replace("_", " ") for word in fields[4:start:2]),
        gloss=gloss.split('; "')[0].strip(),
        category=int(fields[1]),
        hypernyms=tuple(offset for _, offset in above),
        is_instance=any(symbol == "@i" for symbol, _ in above),
    )
    return fields[0], synset


def read_senses(line: str) -> tuple[str, tuple[str, ...], int]:
    """Return the name, the offsets and the number of tagged senses of a line of index.noun."""
    fields = line.split()
    start = 4 + int(fields[3])
    return fields[0].replace("_", " "), tuple(fields[start + 2 :]), int(fields[start + 1])


def read_wordnet(folder: Path) -> WordNet:
    """Read data.noun and index.noun of a folder.

    Raises
    ------
    SystemExit
        If one of the files is missing.
    """
    lines: dict[str, list[str]] = {}
    for kind in ("data", "index"):
        path = folder / f"{kind}.noun"
        if not path.is_file():
            raise SystemExit(
                f"{path} is missing. Run apt-get install wordnet-base, or give the folder of WordNet 3.0 with --wordnet"
            )
        text = path.read_text(encoding="latin-1")
        lines[kind] = [line for line in text.splitlines() if not line.startswith("  ")]  # without the licence
    entries = [read_senses(line) for line in lines["index"]]
    return WordNet(
        synsets=dict(map(read_synset, lines["data"])),
        senses={name: offsets for name, offsets, _ in entries},
        tagged={name: tagged for name, _, tagged in entries},
    )
