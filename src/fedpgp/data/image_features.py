"""The stored features of images, and the part that a method receives."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageFeatures:
    """The stored features of n images.

    `kept` is read on demand. Only the rows of these images are sent to another process.

    Attributes
    ----------
    pooled
        Features [n, D] of unit length, or [n, V, D] of V views of each image.
    kept
        Patch features or image tower states of a whole split, if a method reads them: [N, …] for each view, perhaps in
        half precision and mapped from a disk.
    rows
        [n] the rows of `kept` that belong to these images.
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
        """The patch features or image tower states of these images, as precise as `pooled` and on its device."""
        assert self.kept is not None and self.rows is not None, "only pooled features of these images are stored"
        (only,) = self.kept
        return only[self.rows].to(self.pooled)

    def views(self, chosen: Tensor) -> "ImageFeatures":
        """Return one view of each image, chosen by number; `pooled` must have several views."""
        pooled = self.pooled[torch.arange(len(self)), chosen]
        if self.kept is None or self.rows is None:
            return ImageFeatures(pooled)
        pairs = zip(chosen.tolist(), self.rows.tolist(), strict=True)
        return ImageFeatures(
            pooled, [torch.stack([self.kept[view][row] for view, row in pairs])], torch.arange(len(self))
        )

    @property
    def viewed(self) -> bool:
        """Whether there are several views of each image."""
        return self.pooled.dim() == 3
