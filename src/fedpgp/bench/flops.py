"""How many floating-point operations a step needs: a multiplication and an addition are two.

Counted are the products with weights, forward and backward to their inputs (frozen weights need no gradient), the
attention products and the projection; not counted are normalisation, softmax and activation.

Letters: K prompts, P = 1 + M prefix rows, T tokens of a class with its EOS, S = Σ T, C classes, d token width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class Product(NamedTuple):
    """x [rows, inputs] times a weight [outputs, inputs], so many times in a step."""

    rows: int
    inputs: int
    outputs: int
    times: int

    @property
    def flops(self) -> int:
        return 2 * self.rows * self.inputs * self.outputs * self.times


@dataclass(frozen=True)
class Count:
    """products: with weights, of the whole step; attention: operations of the products of queries, keys and values."""

    products: tuple[Product, ...]
    attention: int

    @property
    def linear(self) -> int:
        """Operations of the products with weights."""
        return sum(product.flops for product in self.products)

    @property
    def total(self) -> int:
        return self.linear + self.attention


def packed(text_config: Any, prompts: int, prefix: int, tokens: Sequence[int]) -> Count:
    """A step of the library's encoder: forward, and backward to the contexts.

    text_config: transformers' CLIPTextConfig; tokens: T of each class.

    Every layer works on K(P + S) rows. In the last layer only keys and values do, and the rest on the K·C rows of EOS.
    The first layer's queries, keys and values of class tokens are constants, so nothing goes back through them.
    """
    d, inner, layers = text_config.hidden_size, text_config.intermediate_size, text_config.num_hidden_layers
    rows, ends, head = prompts * (prefix + sum(tokens)), prompts * len(tokens), prompts * prefix
    entering = rows if layers > 1 else head  # rows that the last layer's keys and values go back to
    inner_layers = layers - 1
    products = (
        Product(rows, d, 3 * d, inner_layers),
        Product(rows, d, d, 2 * inner_layers),
        Product(rows, d, inner, 2 * inner_layers),
        Product(rows, inner, d, 2 * inner_layers),
        Product(head, 3 * d, d, min(1, inner_layers)),
        Product(rows, 3 * d, d, max(0, inner_layers - 1)),
        Product(rows, d, 2 * d, 1),
        Product(entering, 2 * d, d, 1),
        Product(ends, d, d, 3 if layers == 1 else 4),
        Product(ends, d, inner, 2),
        Product(ends, inner, d, 2),
        Product(ends, d, text_config.projection_dim, 1),
        Product(ends, text_config.projection_dim, d, 1),
    )
    # Scores and weighted sums are 4·d operations for each pair of a row and one that it sees; backward, twice that.
    of_rows = sum(T * (prefix + T) for T in tokens)
    of_ends = sum(prefix + T for T in tokens)
    pairs = inner_layers * (prefix * prefix + of_rows) + of_ends
    return Count(tuple(product for product in products if product.times), 3 * 4 * d * prompts * pairs)


def padded(text_config: Any, sequences: int, length: int, *, forward: int, backward: int) -> Count:
    """So many forward and backward passes of a tower over whole sequences of one length, every layer in full."""
    d, inner, layers = text_config.hidden_size, text_config.intermediate_size, text_config.num_hidden_layers
    rows, passes = sequences * length, forward + backward
    products = (
        Product(rows, d, d, 4 * layers * passes),
        Product(rows, d, inner, layers * passes),
        Product(rows, inner, d, layers * passes),
        Product(sequences, d, text_config.projection_dim, passes),
    )
    return Count(products, (forward + 2 * backward) * 4 * d * sequences * length * length * layers)


def image(vision_config: Any, projection: int) -> int:
    """Operations of one image in the image tower."""
    d, patch = vision_config.hidden_size, vision_config.patch_size
    patches = (vision_config.image_size // patch) ** 2
    rows = patches + 1
    layer = 2 * rows * d * (4 * d + 2 * vision_config.intermediate_size) + 4 * d * rows * rows
    embedding = 2 * patches * vision_config.num_channels * patch * patch * d
    return embedding + vision_config.num_hidden_layers * layer + 2 * d * projection
