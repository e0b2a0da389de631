"""What is kept of images, and what of it a method is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageFeatures:
    """What is kept of n images.

    pooled: features [n, D] of unit length, or [n, V, D] of V views of each; kept: where a method reads more, what more
    is kept of a whole split, [N, …] for each view, perhaps in half precision and mapped from a disk: patch features, or
    states of the image tower; rows: [n] the places of these images in it.

    What is kept is read when it is asked for; to another process goes only what belongs to these images.
    """

    pooled: Tensor
    kept: Sequence[Tensor] | None = None
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, chosen: Tensor | slice) -> "ImageFeatures":
        return ImageFeatures(self.pooled[chosen], self.kept, None if self.rows is None else self.rows[chosen])

    def __reduce__(self) -> tuple[Any, ...]:
        if self.kept is None or self.rows is None:
            return ImageFeatures, (self.pooled,)
        return ImageFeatures, (self.pooled, [view[self.rows] for view in self.kept], torch.arange(len(self)))

    @property
    def tokens(self) -> Tensor:
        """What more is kept of these images, in the precision and on the device of the pooled features."""
        assert self.kept is not None and self.rows is not None, "of these images nothing but pooled features is kept"
        (only,) = self.kept
        return only[self.rows].to(self.pooled)

    def views(self, chosen: Tensor) -> "ImageFeatures":
        """One of the views of each image; all of them have views."""
        pooled = self.pooled[torch.arange(len(self)), chosen]
        if self.kept is None or self.rows is None:
            return ImageFeatures(pooled)
        pairs = zip(chosen.tolist(), self.rows.tolist(), strict=True)
        return ImageFeatures(
            pooled, [torch.stack([self.kept[view][row] for view, row in pairs])], torch.arange(len(self))
        )

    @property
    def viewed(self) -> bool:
        """There are several views of each image."""
        return self.pooled.dim() == 3
