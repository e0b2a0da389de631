"""Class names -> the token ids that follow the context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fedpgp.errors import CheckpointError

Position = Literal["end", "middle", "front"]  # of the class name in the context (CoOp, section 3.2)


class Tokenizer(Protocol):
    """What is asked of a transformers tokenizer."""

    @property
    def bos_token_id(self) -> int: ...

    @property
    def eos_token_id(self) -> int: ...

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]: ...


@dataclass(frozen=True)
class AnyTokenizer:
    """The tokenizer of a text tower that is not CLIP-shaped: what it puts around a text, and what it fills up with.

    tokenizer: of transformers; clean: what its model's library does to a text before. start: tokens ahead of a text.
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
        """Find what a tokenizer of transformers puts around a text; raises CheckpointError if that is not one token.

        padded: the tower attends to padding, so that a tokenizer must say what it fills up with. sep_is_pad: the
        model's library replaces the last token by padding.
        """
        word = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        whole = list(tokenizer("a")["input_ids"])
        ahead = next((i for i in range(len(whole)) if word and whole[i : i + len(word)] == word), None)
        end = [] if ahead is None else whole[ahead + len(word) :]
        pad = tokenizer.pad_token_id
        if ahead is None or len(end) != 1 or (padded and pad is None):
            raise CheckpointError(
                "the tokenizer must put one token after a text and have a padding token, but it turns 'a' into"
                f" {tokenizer.convert_ids_to_tokens(whole)}, and its padding token is {pad}",
                remedy="Download the tokenizer files of the checkpoint again",
            )
        pad = end[0] if pad is None else pad
        return cls(tokenizer, clean, tuple(whole[:ahead]), pad if sep_is_pad else end[0], pad, word[0])

    @property
    def bos_token_id(self) -> int:
        """The token ahead of a text; where there is none, what is behind it."""
        return self.start[0] if self.start else self.eos_token_id

    def __call__(self, text: str, *, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": list(self.tokenizer(self.clean(text), add_special_tokens=add_special_tokens)["input_ids"])}

    def __len__(self) -> int:
        return len(self.tokenizer)

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokens as text, as the tokenizer writes them."""
        return list(self.tokenizer.convert_ids_to_tokens(ids))


@dataclass(frozen=True)
class ClassTokens:
    """What stands behind the context, for C classes: `[class tokens] . [EOS]`.

    ids: [C, T] token ids, cut at EOS; rows shorter than the longest are filled with EOS, which the causal text encoder
        never sees from the row's own EOS.
    end: [C] position of EOS in `ids`.
    tail: tokens that follow every class name, EOS included. head: tokens ahead of every class name.
    """

    ids: Tensor
    end: Tensor
    tail: int = 1
    head: int = 0

    def __len__(self) -> int:
        return len(self.end)

    def select(self, classes: Sequence[int]) -> "ClassTokens":
        """The tokens of some classes, in the order given, cut at the longest of them."""
        index = torch.as_tensor(list(classes))
        end = self.end[index]
        return ClassTokens(self.ids[index, : int(end.max()) + 1], end, self.tail, self.head)

    def split(self) -> list[tuple[list[int], list[int]]]:
        """For each class the tokens of its name, with what is ahead of it, and those that follow it up to EOS."""
        rows = [row[: end + 1] for row, end in zip(self.ids.tolist(), self.end.tolist(), strict=True)]
        return [(row[: -self.tail], row[-self.tail :]) for row in rows]


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The token ids of a text without start and end."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def following_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The token ids of a text behind another word: some tokenizers mark the space ahead of a word in its token."""
    word, together = text_ids(tokenizer, "a"), text_ids(tokenizer, f"a {text}")
    return together[len(word) :] if together[: len(word)] == word else text_ids(tokenizer, text)


def check_readable(tokenizer: Tokenizer, class_names: Sequence[str]) -> None:
    """Raise CheckpointError for a class name of which a tokenizer has no token, and for two that are the same to it."""
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
    """("a photo of a", "{}.") of "a photo of a {}.": what stands before the class name, and from it on."""
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
    """Tokens of every class name (underscores read as spaces) put into `tail`, such as "of a {}.", and EOS.

    first: nothing stands ahead of them. Raises CheckpointError for a tail without a place for the name, or with other
    braces.
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
    while any(row[:head] != rows[0][:head] for row in rows):  # where what is ahead grows together with a name
        head -= 1
    return ClassTokens(
        ids=torch.tensor([row + [eos] * (longest - len(row)) for row in rows]),
        end=torch.tensor([len(row) - 1 for row in rows]),
        tail=len(text_ids(tokenizer, behind)) + 1,
        head=head,
    )
