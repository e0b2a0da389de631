"""The section of the config on the frozen encoder."""

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedpgp.runtime.validation import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BackboneConfig:
    """The frozen dual encoder."""

    checkpoint: str = Field(
        default="openai/clip-vit-base-patch16",
        description='"photoclip" or "pictoclip" (embedded), a directory, a hub id, or open_clip:ARCHITECTURE/TAG'
        " (paper: ViT-B/16)",
    )
    precision: Literal["float32", "float64", "bf16"] = Field(
        default="float32", description='"bf16": the text tower\'s products and attention; all else stays in float32'
    )
    device: str = Field(
        default="cpu", pattern=r"^(cpu|mps|cuda(:\d+)?)$", description='"cpu", "cuda", "cuda:1" or "mps"'
    )
    patches: Literal["value", "attention"] = Field(
        default="value",
        description='patch features of a CLIP ResNet: "value" of each place (MaskCLIP), or "attention" of each place to'
        " all others (public code of PLOT)",
    )
