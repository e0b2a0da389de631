"""Class names -> the token ids that follow the context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from fedpgp.errors import CheckpointError

Position = Literal["end", "middle", "front"]  # of the class name in the context (CoOp, section 3.2)


class Tokenizer(Protocol):
    """What is asked of a transformers tokenizer."""

    bos_token_id: int
    eos_token_id: int

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]: ...


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


def split_template(template: str) -> tuple[str, str]:
    """("a photo of a", "{}.") of "a photo of a {}.": what stands before the class name, and from it on."""
    before, halves, after = template.partition("{}")
    if not halves:
        raise CheckpointError(f"template {template!r} must hold {{}} where the class name belongs")
    return before.strip(), "{}" + after


def class_tokens(tokenizer: Tokenizer, class_names: Sequence[str], tail: str = "{}.") -> ClassTokens:
    """Tokens of every class name (underscores read as spaces) put into `tail`, such as "of a {}.", and EOS.

    Raises CheckpointError for a tail without a place for the name, or with other braces.
    """
    if tail.count("{}") != 1 or {"{", "}"} & {*tail.replace("{}", "")}:
        raise CheckpointError(f"tail {tail!r} must hold {{}} once, where the class name belongs, and no other braces")
    eos, (ahead, _, behind) = tokenizer.eos_token_id, tail.partition("{}")
    rows = [[*text_ids(tokenizer, tail.format(name.replace("_", " "))), eos] for name in class_names]
    longest = max(map(len, rows))
    head = len(text_ids(tokenizer, ahead))
    while any(row[:head] != rows[0][:head] for row in rows):  # where what is ahead grows together with a name
        head -= 1
    return ClassTokens(
        ids=torch.tensor([row + [eos] * (longest - len(row)) for row in rows]),
        end=torch.tensor([len(row) - 1 for row in rows]),
        tail=len(text_ids(tokenizer, behind)) + 1,
        head=head,
    )
