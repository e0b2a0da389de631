"""How many floating-point operations a step needs: a multiplication and an addition are two.

Counted are the products with weights, forward and backward to their inputs (frozen weights need no gradient), the
attention products and the projection; not counted are normalisation, softmax and activation.

Letters: K prompts, M context vectors, P = 1 + M prefix rows, C classes, T tokens of a class with EOS, S = Σ T, d width.
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


def packed(
    text_config: Any,
    prompts: int,
    context: int,
    tokens: Sequence[int],
    *,
    head: int = 0,
    lowest: int = 0,
    backward: bool = True,
) -> Count:
    """A step of the library's encoder: forward and, unless told otherwise, backward to the contexts.

    text_config: transformers' CLIPTextConfig with two layers or more; context: M; tokens: T of each class, behind so
    many tokens `head` that stand ahead of every name; lowest: the first layer through which a gradient comes back.

    Every layer works on K(P + S) rows. In the first, only the K·M rows of context vectors have queries, keys and values
    that change. In the last, all rows have keys and values, and the rest is for the K·C rows of EOS.
    """
    d, inner, layers = text_config.hidden_size, text_config.intermediate_size, text_config.num_hidden_layers
    prefix = 1 + context + head
    rows, vectors, ends = prompts * (prefix + sum(tokens)), prompts * context, prompts * len(tokens)
    forward = (
        Product(vectors, d, 3 * d, 1),
        Product(rows, d, 3 * d, layers - 2),
        Product(rows, d, d, layers - 1),
        Product(rows, d, inner, layers - 1),
        Product(rows, inner, d, layers - 1),
        Product(rows, d, 2 * d, 1),
        Product(ends, d, d, 2),
        Product(ends, d, inner, 1),
        Product(ends, inner, d, 1),
        Product(ends, d, text_config.projection_dim, 1),
    )
    below = (  # of each product, how many of its layers have no gradient
        min(1, lowest),
        min(layers - 2, max(0, lowest - 1)),
        *[min(layers - 1, lowest)] * 3,
        *[int(lowest == layers), 2 * int(lowest == layers), *[int(lowest == layers)] * 2, 0],
    )
    returned = tuple(
        Product(p.rows, p.outputs, p.inputs, p.times - absent) for p, absent in zip(forward, below, strict=True)
    )
    # A row's scores and weighted sum take 4·d operations for each row that it sees; backward, twice that.
    of_rows = prefix * prefix + sum(T * (prefix + T) for T in tokens)
    of_ends = sum(prefix + T for T in tokens)
    pairs = (layers - 1) * of_rows + of_ends
    if not backward:
        return Count(forward, 4 * d * prompts * pairs)
    back = pairs - min(lowest, layers - 1) * of_rows - (of_ends if lowest == layers else 0)
    return Count(forward + returned, 4 * d * prompts * (pairs + 2 * back))


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


def tower(
    vision_config: Any, projection: int, images: int, vectors: int, first: int, *, backward: bool = True
) -> Count:
    """The library's image tower with a prompt of so many vectors, from the state below layer `first`.

    In the last layer all rows have keys and values, and the rest is for the class token. Backward, the first layer's
    queries, keys and values are those of the vectors alone. Without vectors something stands beside the first layer,
    through which itself no gradient comes back.
    """
    w, inner = vision_config.hidden_size, vision_config.intermediate_size
    length = 1 + (vision_config.image_size // vision_config.patch_size) ** 2 + vectors
    rows, whole = images * length, vision_config.num_hidden_layers - 1 - first

    def layers(times: int) -> tuple[Product, ...]:
        return (
            Product(rows, w, 3 * w, times),
            Product(rows, w, w, times),
            Product(rows, w, inner, times),
            Product(rows, inner, w, times),
        )

    last = (
        Product(rows, w, 2 * w, 1),
        Product(images, w, w, 2),
        Product(images, w, inner, 1),
        Product(images, inner, w, 1),
    )
    end = (Product(images, w, projection, 1),)
    of_layer, of_last = 4 * w * images * length * length, 4 * w * images * length
    forward = Count((*layers(whole), *last, *end), whole * of_layer + of_last)
    if not backward:
        return forward
    if vectors:
        constant = (Product(images * (length - vectors), w, 3 * w, -1 if whole else 0),)
        back, attention = (*layers(whole), *constant, *last, *end), whole * of_layer + of_last
    elif whole:
        back, attention = (*layers(whole - 1), *last, *end), (whole - 1) * of_layer + of_last
    else:
        back, attention = end, 0
    return Count(forward.products + back, forward.attention + 2 * attention)


def image(vision_config: Any, projection: int) -> int:
    """Operations of one image in the image tower."""
    layers = vision_config.num_hidden_layers
    return image_below(vision_config, layers) + 2 * vision_config.hidden_size * projection


def image_below(vision_config: Any, layer: int) -> int:
    """Operations of one image up to what goes into a layer."""
    d, patch = vision_config.hidden_size, vision_config.patch_size
    patches = (vision_config.image_size // patch) ** 2
    rows = patches + 1
    of_layer = 2 * rows * d * (4 * d + 2 * vision_config.intermediate_size) + 4 * d * rows * rows
    return 2 * patches * vision_config.num_channels * patch * patch * d + layer * of_layer
