"""EfficientNet-Lite0 as an image tower: the features of timm's `tf_efficientnet_lite0` without timm.

Tan and Le (2019) describe the network. The "lite" variant has no squeeze-and-excitation, and ReLU6 instead of swish.
The tower is frozen, so each batch normalization is folded into the preceding convolution. All tensors use the
channels-last memory format, which is the fastest on CPUs.

Letters: B images, c channels, h x w positions of the grid, P = h w, D feature width.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedpgp.backbone.resnet import COUNT
from fedpgp.errors import CheckpointError

NAME = "tf_efficientnet_lite0"  # timm's name, to which a dot and the name of weights may be added
STEM, LAST = 32, 1280  # channels of the first and the last convolution
STAGES = (  # kernel, stride of the first block, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
EPSILON = 1e-3  # of batch normalization, as in TensorFlow
REMEDY = "Download it again, or choose another checkpoint"


def declared(vision: Mapping[str, Any]) -> bool:
    """Return whether a `vision_cfg` of OpenCLIP declares this tower, with mean pooling and a linear projection."""
    name = str(vision.get("timm_model_name")).partition(".")[0]
    pool, projection = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
    # Without a projection after timm's network, its classifier is the projection. A pool of "" means no pooling.
    return name == NAME and (pool, projection or "") in {("avg", "linear"), ("", "linear"), ("avg", "")}


class EfficientNetLite(nn.Module):
    """Image tower: the projected mean over the positions of the last convolution."""

    def __init__(self, stem: "Convolution", blocks: "list[Block]", last: "Convolution", projection: nn.Linear):
        super().__init__()
        self.stem, self.blocks, self.last, self.projection = stem, nn.Sequential(*blocks), last, projection

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], where: str) -> "EfficientNetLite":
        """Create the tower from weights under OpenCLIP's names, "trunk.conv_stem.weight" …, "head.proj.weight".

        The projection is `head.proj`, or timm's own `trunk.classifier`; it may have a bias.

        Parameters
        ----------
        weights
            Tensors by name, without the prefix "visual.".
        where
            Name of the checkpoint in messages.

        Raises
        ------
        CheckpointError
            If a weight is missing, unexpected or of another shape.
        """
        reader = _Reader(weights, where)
        stem = reader.convolution("conv_stem", "bn1", 3, STEM, kernel=3, stride=2)
        blocks, channels = [], STEM
        for stage, (kernel, stride, expansion, width, count) in enumerate(STAGES):
            for number in range(count):
                name = f"blocks.{stage}.{number}"
                blocks.append(reader.block(name, channels, width, kernel, 1 if number else stride, expansion))
                channels = width
        last = reader.convolution("conv_head", "bn2", channels, LAST)
        projection = reader.linear("head.proj" if "head.proj.weight" in weights else "trunk.classifier", LAST)
        reader.check_empty()
        return cls(stem, blocks, last, projection)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return image features [B, D] of pixels [B, 3, H, W], before normalization."""
        features: Tensor = self.projection(self._places(pixels).mean((2, 3)))
        return features

    def positions(self, pixels: Tensor) -> Tensor:
        """Return the projected positions [B, P, D] of pixels [B, 3, H, W].

        Their mean is the image feature, because the projection is linear.
        """
        positions: Tensor = self.projection(self._places(pixels).flatten(2).transpose(1, 2))
        return positions

    def _places(self, pixels: Tensor) -> Tensor:
        """Return the output [B, c, h, w] of the last convolution."""
        places: Tensor = self.last(self.blocks(self.stem(pixels.contiguous(memory_format=torch.channels_last))))
        return places


class Convolution(nn.Module):
    """Convolution with TensorFlow's "same" padding and a bias, optionally followed by ReLU6.

    Parameters
    ----------
    weight
        [c, c of the input, k, k], or [c, 1, k, k] for a depthwise convolution.
    bias
        [c].
    stride
        Step of the convolution in both directions.
    active
        Whether ReLU6 follows.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, active: bool):
        super().__init__()
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.stride, self.active = stride, active
        self.groups = len(weight) if weight.shape[1] == 1 else 1

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[-1]
        padding = kernel // 2
        if self.stride > 1:  # an odd padding is larger at the end than at the start, unlike PyTorch's padding
            missing = [max(0, (-(-n // self.stride) - 1) * self.stride + kernel - n) for n in (x.shape[3], x.shape[2])]
            x, padding = F.pad(x, [side for m in missing for side in (m // 2, m - m // 2)]), 0
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return F.relu6(x, inplace=True) if self.active else x


class Block(nn.Module):
    """Sequence of convolutions, with a residual connection if input and output have the same shape."""

    def __init__(self, convolutions: list[Convolution], skips: bool):
        super().__init__()
        self.convolutions, self.skips = nn.Sequential(*convolutions), skips

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.convolutions(x)
        return y.add_(x) if self.skips else y


class _Reader:
    """Reader that takes each weight by name once, with the errors of `EfficientNetLite.of`."""

    def __init__(self, weights: Mapping[str, Tensor], where: str):
        self.weights = {name: tensor for name, tensor in weights.items() if not name.endswith(COUNT)}
        self.where = where

    def block(self, name: str, channels: int, width: int, kernel: int, stride: int, expansion: int) -> Block:
        inner = channels * expansion
        names = ("conv_dw", "conv_pw") if expansion == 1 else ("conv_pw", "conv_dw", "conv_pwl")
        widths = (inner, inner, width) if expansion == 1 else (channels, inner, inner, width)
        convolutions = []
        for number, (part, (before, after)) in enumerate(zip(names, pairwise(widths), strict=True), 1):
            wide = {"kernel": kernel, "stride": stride} if part == "conv_dw" else {}
            convolutions.append(
                self.convolution(
                    f"{name}.{part}",
                    f"{name}.bn{number}",
                    1 if part == "conv_dw" else before,
                    after,
                    active=number < len(names),
                    **wide,
                )
            )
        return Block(convolutions, stride == 1 and channels == width)

    def convolution(
        self, name: str, norm: str, before: int, after: int, kernel: int = 1, stride: int = 1, active: bool = True
    ) -> Convolution:
        """Return a convolution with its batch normalization folded in, computed in float64.

        before: input channels of each output channel; after: output channels.
        """
        weight = self._take(f"trunk.{name}.weight", after, before, kernel, kernel)
        scale, shift, mean, variance = (
            self._take(f"trunk.{norm}.{part}", after) for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = scale / (variance + EPSILON).sqrt()
        return Convolution(weight * scale[:, None, None, None], shift - mean * scale, stride, active)

    def linear(self, name: str, before: int) -> nn.Linear:
        weight, bias = (self.weights.get(f"{name}.{part}") for part in ("weight", "bias"))
        after = 0 if weight is None else len(weight)
        made = nn.Linear(before, after, bias=bias is not None, device="meta")  # before the shape is checked
        made.weight = nn.Parameter(self._take(f"{name}.weight", after, before), requires_grad=False)
        if bias is not None:
            made.bias = nn.Parameter(self._take(f"{name}.bias", after), requires_grad=False)
        return made

    def _take(self, name: str, *shape: int) -> Tensor:
        tensor = self.weights.pop(name, None)
        if tensor is None:
            raise CheckpointError(
                f"the weight visual.{name} is missing", where=f"checkpoint {self.where}", remedy=REMEDY
            )
        if tensor.shape != shape:
            raise CheckpointError(
                where=f"weight visual.{name} in checkpoint {self.where}",
                allowed=f"of shape {shape}",
                got=tuple(tensor.shape),
                remedy=REMEDY,
            )
        return tensor.double()

    def check_empty(self) -> None:
        if self.weights:
            raise CheckpointError(
                f"the weight visual.{min(self.weights)} does not belong to {NAME}",
                where=f"checkpoint {self.where}",
                remedy=REMEDY,
            )
