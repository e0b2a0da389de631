"""Class names -> the token ids that follow the context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedpgp.errors import CheckpointError


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
    """

    ids: Tensor
    end: Tensor

    def __len__(self) -> int:
        return len(self.end)

    def select(self, classes: Sequence[int]) -> "ClassTokens":
        """The tokens of some classes, in the order given, cut at the longest of them."""
        index = torch.as_tensor(list(classes), device=self.end.device)
        end = self.end[index]
        return ClassTokens(self.ids[index, : int(end.max()) + 1], end)


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The token ids of a text without start and end."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def split_template(template: str) -> tuple[str, str]:
    """("a photo of a", "{}.") of "a photo of a {}.": what stands before the class name, and from it on."""
    before, found, after = template.partition("{}")
    if not found:
        raise CheckpointError(f"template {template!r} must hold {{}} where the class name belongs")
    return before.strip(), "{}" + after


def class_tokens(tokenizer: Tokenizer, class_names: Sequence[str], tail: str = "{}.") -> ClassTokens:
    """Tokens of every class name (underscores read as spaces) put into `tail`, and EOS."""
    rows = [[*text_ids(tokenizer, tail.format(name.replace("_", " "))), tokenizer.eos_token_id] for name in class_names]
    longest = max(map(len, rows))
    filled = [row + [tokenizer.eos_token_id] * (longest - len(row)) for row in rows]
    return ClassTokens(torch.tensor(filled), torch.tensor([len(row) - 1 for row in rows]))
