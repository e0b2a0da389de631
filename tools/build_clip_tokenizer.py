"""Build the tokenizer of OpenAI's CLIP for transformers from the vocabulary in the PyPI package of OpenCLIP.

pip install --no-deps open_clip_torch==3.3.0
python tools/build_clip_tokenizer.py .venv/lib/python3.11/site-packages/open_clip/bpe_simple_vocab_16e6.txt.gz
"""

import gzip
import sys
from pathlib import Path

from transformers import CLIPTokenizer

TARGET = Path(__file__).parents[1] / "src" / "fedpgp" / "assets" / "clip-tokenizer"
MERGES = 49152 - 256 - 2  # number of merges of CLIP; the file has more


def byte_characters() -> list[str]:
    """Return the printable character of every byte, in the order of the vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + number) for number in range(len(others)))]


def main() -> None:
    with gzip.open(sys.argv[1], "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 1 + MERGES]
    merges = [tuple(line.split()) for line in lines]
    single = byte_characters()
    words = [*single, *(one + "</w>" for one in single), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=merges)
    tokenizer.model_max_length = 77
    TARGET.mkdir(exist_ok=True)
    tokenizer.save_pretrained(TARGET)


if __name__ == "__main__":
    main()
