"""The ResNets of CLIP as image towers (Radford et al. 2021, section 2.4): image features alone.

A stem of three convolutions, averages in the place of strides, and at the end what the mean over all places sees of
them, by attention. Module names are those of OpenAI's weights.

Letters: B images, c channels of the last stage, S places of it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpgp.backbone.archive import check_shapes
from fedpgp.errors import CheckpointError

HEAD = 64  # width of an attention head
STRIDE = 32  # pixels of a place of the last stage
EXPANSION = 4  # of a block's channels, by its last convolution
STAGES = 4
COUNT = "num_batches_tracked"  # of batch normalisation, which nobody reads


class Pooled(NamedTuple):
    pooler_output: Tensor


class ResNetTower(nn.Module):
    """blocks: of each of the four stages; width: channels of the first; side: places of the last, in each direction."""

    def __init__(self, blocks: tuple[int, ...], width: int, side: int):
        super().__init__()
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

    def forward(self, pixel_values: Tensor) -> Pooled:
        """[B, 3, height, width] -> [B, c], before the projection."""
        x = F.relu(self.bn1(self.conv1(pixel_values)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        for stage in range(STAGES):
            x = getattr(self, f"layer{stage + 1}")(x)
        return Pooled(self.attnpool(x))


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
        places = x.flatten(2).transpose(1, 2)
        rows = torch.cat([places.mean(1, keepdim=True), places], dim=1) + self.positional_embedding
        query, key, value = (
            projection(of).unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for projection, of in ((self.q_proj, rows[:, :1]), (self.k_proj, rows), (self.v_proj, rows))
        )
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(1)


def resnet_of(weights: Mapping[str, Tensor], where: str) -> tuple[ResNetTower, nn.Linear]:
    """The tower and the projection [D, c] behind it, in float32, of weights under the names "layer1.0.conv1.weight" ….

    where: what a message calls them. Raises CheckpointError for weights that are not those of such a tower.
    """
    given = {name: tensor.float() for name, tensor in weights.items() if not name.endswith(COUNT)}
    blocks = tuple(
        len({name.split(".")[1] for name in given if name.startswith(f"layer{stage + 1}.")}) for stage in range(STAGES)
    )
    try:
        width, places = len(given["conv3.weight"]), len(given["attnpool.positional_embedding"])
        shape = given["attnpool.c_proj.weight"].shape
        projection = {kind: given.pop(f"attnpool.c_proj.{kind}") for kind in ("weight", "bias")}
    except KeyError as error:
        raise CheckpointError(
            f"checkpoint {where} lacks visual.{error.args[0]}: fetch it again, or name a complete one"
        ) from error
    with torch.device("meta"):
        tower = ResNetTower(blocks, width, round((places - 1) ** 0.5))
        linear = nn.Linear(shape[-1], shape[0])
    parts = ((tower, given, "visual."), (linear, projection, "visual.attnpool.c_proj."))
    for module, state, prefix in parts:
        expected = {
            f"{prefix}{name}": tensor for name, tensor in module.state_dict().items() if not name.endswith(COUNT)
        }
        check_shapes(expected, {f"{prefix}{name}": tensor for name, tensor in state.items()}, where, "CLIP's ResNets")
        module.to_empty(device="cpu")
        module.load_state_dict(state, strict=False)
    return tower, linear
