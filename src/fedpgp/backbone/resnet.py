"""The ResNets of CLIP as image towers (Radford et al. 2021, section 2.4): image features alone.

A stem of three convolutions, averages in the place of strides, and at the end what the mean over all places sees of
them, by attention. Module names are those of OpenAI's weights.

Letters: B images, c channels of the last stage, S places of it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD = 64  # width of an attention head
STRIDE = 32  # pixels of a place of the last stage
EXPANSION = 4  # of a block's channels, by its last convolution
STAGES = 4
COUNT = "num_batches_tracked"  # of batch normalisation, which nobody reads
RESNET = "vision_model.layer1."  # prefix of weights that only these towers have


class Pooled(NamedTuple):
    pooler_output: Tensor


class ResNetTower(nn.Module):
    """blocks: of each of the four stages; width: channels of the first; side: places of the last, in each direction."""

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
        """The tower that has weights of these names, "vision_model.conv1.weight" …, and shapes, with other values.

        Raises KeyError with the name of a weight that is missing.
        """
        stages = [name.split(".")[1:3] for name in weights if name.startswith("vision_model.layer")]
        blocks = [len({block for stage, block in stages if stage == f"layer{n + 1}"}) for n in range(STAGES)]
        places = len(weights["vision_model.attnpool.positional_embedding"]) - 1
        return cls(blocks, len(weights["vision_model.conv3.weight"]), round(places**0.5))

    def forward(self, pixel_values: Tensor) -> Pooled:
        """[B, 3, height, width] -> [B, c], before the projection."""
        return Pooled(self.attnpool(self._last_stage(pixel_values)))

    def positions(self, pixel_values: Tensor, kind: str) -> Tensor:
        """[B, 3, height, width] -> [B, S, c], before the projection: a feature of each place.

        kind: "value", a place's value in the attention that pools, without its position and the other places, as dense
        variants of CLIP take it (MaskCLIP: Zhou et al. 2022, section 3.2); or "attention", what the place itself sees
        of all places in that attention (public code of PLOT).
        """
        places = self._last_stage(pixel_values)
        if kind == "attention":
            return self.attnpool.seen_from(places, slice(1, None))
        return self.attnpool.v_proj(places.flatten(2).transpose(1, 2))

    def _last_stage(self, pixel_values: Tensor) -> Tensor:
        """[B, c, side, side]"""
        x = F.relu(self.bn1(self.conv1(pixel_values)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        for stage in range(STAGES):
            x = getattr(self, f"layer{stage + 1}")(x)
        return x


class Block(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 around which the input goes, reduced as the block reduces it."""

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
    """[B, c, side, side] -> [B, c]: what the mean over the places sees of them and of itself."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(side**2 + 1, channels))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.seen_from(x, slice(1)).flatten(1)

    def seen_from(self, x: Tensor, chosen: slice) -> Tensor:
        """[B, c, side, side] -> [B, rows, c]: what some rows see of all; the first row is the mean over the places."""
        places = x.flatten(2).transpose(1, 2)
        rows = torch.cat([places.mean(1, keepdim=True), places], dim=1) + self.positional_embedding
        query, key, value = (
            projection(of).unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for projection, of in ((self.q_proj, rows[:, chosen]), (self.k_proj, rows), (self.v_proj, rows))
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
