"""The ResNets of CLIP as frozen image towers (Radford et al. 2021, section 2.4).

They have a stem of three convolutions, average pooling instead of strides, and attention pooling with the mean over all
positions as the query. Module names are from OpenAI's weights.

Letters: B images, c channels of the last stage, S positions of the last stage.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64  # width of an attention head
STRIDE = 32  # pixels per position of the last stage
EXPANSION = 4  # factor by which the last convolution of a block increases the channels
STAGES = 4
COUNT = "num_batches_tracked"  # counter of batch normalization, which is not used
RESNET = "vision_model.layer1."  # prefix of weights that only these towers have


class Pooled(NamedTuple):
    """Output of the tower, named as in transformers."""

    pooler_output: Tensor


class ResNetTower(nn.Module):
    """Image tower of a CLIP with a ResNet.

    Parameters
    ----------
    blocks
        Number of blocks in each of the four stages.
    width
        Channels of the first stage.
    side
        Positions of the last stage in each direction.
    """

    def __init__(self, blocks: Sequence[int], width: int, side: int):
        super().__init__()
        self.side = side
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(blocks):
            inner = width * 2**stage
            made = []
            for number in range(count):
                made.append(Block(channels, inner, 2 if stage and not number else 1))
                channels = inner * EXPANSION
            setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
        self.attnpool = AttentionPool(channels, side)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> "ResNetTower":
        """Create an uninitialized tower for weights with these names ("vision_model.conv1.weight" …) and shapes.

        Raises
        ------
        KeyError
            With the name of a missing weight.
        """
        stages = [name.split(".")[1:3] for name in weights if name.startswith("vision_model.layer")]
        blocks = [len({block for stage, block in stages if stage == f"layer{n + 1}"}) for n in range(STAGES)]
        places = len(weights["vision_model.attnpool.positional_embedding"]) - 1
        return cls(blocks, len(weights["vision_model.conv3.weight"]), round(places**0.5))

    def forward(self, pixel_values: Tensor) -> Pooled:
        """Return features [B, c] of pixels [B, 3, height, width], before the projection."""
        return Pooled(self.attnpool(self._last_stage(pixel_values)))

    def positions(self, pixel_values: Tensor, kind: str) -> Tensor:
        """Return a feature of each position, [B, S, c], before the projection.

        Parameters
        ----------
        pixel_values
            [B, 3, height, width].
        kind
            "value": the position's value in the attention pooling, without its position embedding and independent of
            other positions, as in dense variants of CLIP (MaskCLIP: Zhou et al. 2022, section 3.2). "attention": the
            output of the attention pooling with the position as the query (public code of PLOT).
        """
        places = self._last_stage(pixel_values)
        if kind == "attention":
            return self.attnpool.seen_from(places, slice(1, None))
        return self.attnpool.v_proj(places.flatten(2).transpose(1, 2))

    def _last_stage(self, pixel_values: Tensor) -> Tensor:
        """Return the output [B, c, side, side] of the last stage."""
        x = F.relu(self.bn1(self.conv1(pixel_values)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        for stage in range(STAGES):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x


class Block(nn.Module):
    """Bottleneck block of 1 × 1, 3 × 3 and 1 × 1 convolutions, with a residual connection of the same resolution."""

    def __init__(self, channels: int, inner: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, inner * EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner * EXPANSION)
        self.downsample = None
        if stride > 1 or channels != inner * EXPANSION:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, inner * EXPANSION, 1, bias=False), nn.BatchNorm2d(inner * EXPANSION)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self._reduced(F.relu(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(self._reduced(x))))

    def _reduced(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class AttentionPool(nn.Module):
    """Attention pooling from [B, c, side, side] to [B, c]: the mean over all positions is the query."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(side**2 + 1, channels))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.seen_from(x, slice(1)).flatten(1)

    def seen_from(self, x: Tensor, chosen: slice) -> Tensor:
        """Return the attention output [B, rows, c] of chosen rows; the first row is the mean over all positions."""
        places = x.flatten(2).transpose(1, 2)
        rows = torch.cat([places.mean(1, keepdim=True), places], dim=1) + self.positional_embedding
        query, key, value = (
            projection(of).unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for projection, of in ((self.q_proj, rows[:, chosen]), (self.k_proj, rows), (self.v_proj, rows))
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
