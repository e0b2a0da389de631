"""Convert class names to the token ids that follow the context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fedpgp.errors import CheckpointError

Position = Literal["end", "middle", "front"]  # position of the class name in the context (CoOp, section 3.2)


class Tokenizer(Protocol):
    """Interface that this package uses of a tokenizer of transformers."""

    @property
    def bos_token_id(self) -> int: ...

    @property
    def eos_token_id(self) -> int: ...

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]: ...


@dataclass(frozen=True)
class AnyTokenizer:
    """Tokenizer of a text tower that is not CLIP-shaped, with the special tokens that it adds to a text.

    Attributes
    ----------
    tokenizer
        The tokenizer of transformers.
    clean
        Function that the model's library applies to a text first.
    start
        Tokens before a text.
    eos_token_id
        Token after a text.
    pad
        Token that fills a sequence up.
    filler
        A token without a special meaning.
    """

    tokenizer: Any
    clean: Callable[[str], str]
    start: tuple[int, ...]
    eos_token_id: int
    pad: int
    filler: int

    @classmethod
    def of(
        cls, tokenizer: Any, clean: Callable[[str], str] = str, *, padded: bool = False, sep_is_pad: bool = False
    ) -> "AnyTokenizer":
        """Determine the special tokens that a tokenizer of transformers adds to a text.

        Parameters
        ----------
        tokenizer
            The tokenizer.
        clean
            Function that the model's library applies to a text first.
        padded
            Whether the tower attends to padding, so that the tokenizer must have a padding token.
        sep_is_pad
            Whether the model's library replaces the last token by padding.

        Raises
        ------
        CheckpointError
            If the tokenizer does not put exactly one token after a text, or lacks a padding token.
        """
        word = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        whole = list(tokenizer("a")["input_ids"])
        ahead = next((i for i in range(len(whole)) if word and whole[i : i + len(word)] == word), None)
        end = [] if ahead is None else whole[ahead + len(word) :]
        pad = tokenizer.pad_token_id
        if ahead is None or len(end) != 1 or (padded and pad is None):
            raise CheckpointError(
                "it must put one token after a text and have a padding token, but it turns 'a' into"
                f" {tokenizer.convert_ids_to_tokens(whole)}, and its padding token is {pad}",
                where="tokenizer of the checkpoint",
                remedy="Download the tokenizer's files again",
            )
        pad = end[0] if pad is None else pad
        return cls(tokenizer, clean, tuple(whole[:ahead]), pad if sep_is_pad else end[0], pad, word[0])

    @property
    def bos_token_id(self) -> int:
        """The token before a text; if there is none, the token after it."""
        return self.start[0] if self.start else self.eos_token_id

    def __call__(self, text: str, *, add_special_tokens: bool = False) -> dict[str, list[int]]:
        """Return {"input_ids": token ids} of a text."""
        return {"input_ids": list(self.tokenizer(self.clean(text), add_special_tokens=add_special_tokens)["input_ids"])}

    def __len__(self) -> int:
        return len(self.tokenizer)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens as text, as the tokenizer writes them."""
        return list(self.tokenizer.convert_ids_to_tokens(ids))


@dataclass(frozen=True)
class ClassTokens:
    """Tokens after the context for C classes: `[class tokens] . [EOS]`.

    Attributes
    ----------
    ids
        [C, T], token ids cut at EOS. Shorter rows are filled with EOS, which does not affect the causal text encoder at
        the row's own EOS.
    end
        [C], position of EOS in `ids`.
    tail
        Number of tokens after every class name, including EOS.
    head
        Number of equal tokens before every class name.
    """

    ids: Tensor
    end: Tensor
    tail: int = 1
    head: int = 0

    def __len__(self) -> int:
        return len(self.end)

    def select(self, classes: Sequence[int]) -> "ClassTokens":
        """Return the tokens of some classes, in the given order, cut at the longest of them."""
        index = torch.as_tensor(list(classes))
        end = self.end[index]
        return ClassTokens(self.ids[index, : int(end.max()) + 1], end, self.tail, self.head)

    def split(self) -> list[tuple[list[int], list[int]]]:
        """Return for each class the tokens up to the end of its name, and the tokens after it up to EOS."""
        rows = [row[: end + 1] for row, end in zip(self.ids.tolist(), self.end.tolist(), strict=True)]
        return [(row[: -self.tail], row[-self.tail :]) for row in rows]


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a text without start and end."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def following_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a text after another word; some tokenizers mark the preceding space in a word's token."""
    word, together = text_ids(tokenizer, "a"), text_ids(tokenizer, f"a {text}")
    return together[len(word) :] if together[: len(word)] == word else text_ids(tokenizer, text)


def check_readable(tokenizer: Tokenizer, class_names: Sequence[str]) -> None:
    """Check that a tokenizer can read class names and distinguish them.

    Parameters
    ----------
    tokenizer
        The tokenizer.
    class_names
        The class names.

    Raises
    ------
    CheckpointError
        If the tokenizer has no token for a class name, or the same tokens for two.
    """
    unknown = getattr(getattr(tokenizer, "tokenizer", tokenizer), "unk_token_id", None)
    known: dict[tuple[int, ...], str] = {}
    for name in class_names:
        ids = tuple(text_ids(tokenizer, name.replace("_", " ")))
        if not any(token != unknown for token in ids):
            raise CheckpointError(
                "the tokenizer of the checkpoint knows no part of it",
                where=f"class name {name!r}",
                remedy="Use other words for the class, or a checkpoint that can read its name",
            )
        if known.setdefault(ids, name) != name:
            raise CheckpointError(
                "the tokenizer of the checkpoint turns both into the same tokens",
                where=f"class names {known[ids]!r} and {name!r}",
                remedy="Use other words for one of them, or a checkpoint that distinguishes them",
            )


def split_template(template: str) -> tuple[str, str]:
    """Split "a photo of a {}." into the text before the class name, "a photo of a", and the rest, "{}."."""
    before, halves, after = template.partition("{}")
    if not halves:
        raise CheckpointError(
            where="template",
            allowed="text with {} in place of the class name",
            got=template,
            remedy="Add {} to the template",
        )
    return before.strip(), "{}" + after


def class_tokens(
    tokenizer: Tokenizer, class_names: Sequence[str], tail: str = "{}.", first: bool = False
) -> ClassTokens:
    """Return the tokens of `tail` with every class name inserted, and EOS.

    Parameters
    ----------
    tokenizer
        The tokenizer.
    class_names
        C class names; underscores are read as spaces.
    tail
        Text with {} for the class name, such as "of a {}.".
    first
        Whether no text precedes the tokens.

    Raises
    ------
    CheckpointError
        If the tail does not contain {} exactly once, or if it contains other braces.
    """
    if tail.count("{}") != 1 or {"{", "}"} & {*tail.replace("{}", "")}:
        raise CheckpointError(
            where="tail",
            allowed="text with {} once, in place of the class name, and without other braces",
            got=tail,
            remedy="Use, for example, 'of a {}.'",
        )
    eos, (ahead, _, behind) = tokenizer.eos_token_id, tail.partition("{}")
    ids_of = text_ids if first else following_ids
    rows = [[*ids_of(tokenizer, tail.format(name.replace("_", " "))), eos] for name in class_names]
    longest = max(map(len, rows))
    head = len(ids_of(tokenizer, ahead))
    while any(row[:head] != rows[0][:head] for row in rows):  # if the text before a name is merged with it
        head -= 1
    return ClassTokens(
        ids=torch.tensor([row + [eos] * (longest - len(row)) for row in rows]),
        end=torch.tensor([len(row) - 1 for row in rows]),
        tail=len(text_ids(tokenizer, behind)) + 1,
        head=head,
    )
