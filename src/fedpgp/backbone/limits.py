"""Limits for the files of a checkpoint, so that a small file cannot take all memory or time; see SECURITY.md."""

LAYERS = 256  # of a tower; the deepest published tower has 64, and each takes milliseconds to create
SIDE = 2048  # pixels in height and width of an image tower; published towers read at most 1,024
PATCHES = 4096  # patches of an image; published towers read at most 1,024, and attention needs the square in memory
POSITIONS = 8192  # of a text tower; published towers have at most 514
VOCABULARY = 1 << 20  # tokens; published tokenizers have at most 256,000
NUMBER = 1 << 20  # largest number in a config, such as a width; published configs have none above a vocabulary
TEXT = 200  # characters of a value in a config; names of classes and activations have at most 40
CONFIG = 4 << 20  # bytes of a config of JSON; the largest, with all special tokens, have 1 million
CARD = 1 << 20  # bytes of a model card, from which only the licence is read; most have some thousands
TOKENIZER = 48 << 20  # bytes of a file of a tokenizer; published ones have at most 35 million
HEADER = 8 << 20  # bytes of the header of a .safetensors file; 1,000 tensors need 100,000
TENSORS = 20_000  # in all files of weights; the largest published checkpoints have 2,000
SHARDS = 256  # files of weights that an index names; published dual encoders have at most 8
PICKLE = 4 << 20  # bytes of the list of tensors in a file of PyTorch; 1,000 tensors need 150,000
DIRECTORY = 4 << 20  # bytes of the list of members of an archive; 20,000 members need 2 million
DIMENSIONS = 8  # of a tensor; weights have at most 4
NUMBERS = 1 << 48  # in a tensor, more than a disk contains; products of sizes stay short
ROOM = 2  # bytes that the weights may need for each byte of their files; tied weights may be stored once
EXPRESSION = 1000  # characters of a regular expression of a tokenizer; published ones have at most 300
GROUPS = 1  # in an alternative of such an expression; published ones have at most one
REPETITIONS = 2  # unbounded ones in an alternative of such an expression, so that a match takes at most quadratic time
CHARACTERS = 1 << 20  # of a text in a tokenizer's preparation of texts; XLM-R's table of characters has 316,720
REPLACEMENTS = 8  # that a tokenizer makes in a text, and characters of each, so that texts stay short
SHOWN = 80  # characters of a name from a file in a message
