"""What is kept of images, and what of it a method is given."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """What is kept of n images.

    pooled: features [n, D] of unit length, or [n, V, D] of V views of each; kept: where a method reads more, what more
    is kept of the whole split, [N, …] or [N, V, …], perhaps in half precision and on a disk: patch features, or states
    of the image tower; rows: [n] the places of these images in `kept`.
    """

    pooled: Tensor
    kept: Tensor | None = None
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, chosen: Tensor | slice) -> "Images":
        return Images(self.pooled[chosen], self.kept, None if self.rows is None else self.rows[chosen])

    @property
    def tokens(self) -> Tensor:
        """What more is kept of these images, in the precision and on the device of the pooled features."""
        assert self.kept is not None and self.rows is not None, "of these images nothing but pooled features is kept"
        return self.kept[self.rows].to(self.pooled)

    def gathered(self) -> "Images":
        """The same without the rest of the split."""
        if self.kept is None or self.rows is None:
            return self
        return Images(self.pooled, self.kept[self.rows], torch.arange(len(self)))

    def views(self, chosen: Sequence[int] | Tensor) -> "Images":
        """One of the views of each image; all of them have views."""
        one = torch.as_tensor(chosen)
        pooled = self.pooled[torch.arange(len(self)), one]
        if self.kept is None or self.rows is None:
            return Images(pooled)
        return Images(pooled, self.kept[self.rows, one], torch.arange(len(self)))

    @property
    def viewed(self) -> bool:
        """There are several views of each image."""
        return self.pooled.dim() == 3
