"""Config section of the frozen dual encoder."""

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedpgp.runtime.validation import STRICT


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BackboneConfig:
    """Settings of the frozen dual encoder."""

    checkpoint: str = Field(
        default="openai/clip-vit-base-patch16",
        description='"photoclip" or "pictoclip" (embedded), a directory, a hub id, or open_clip:ARCHITECTURE/TAG'
        " (paper: ViT-B/16)",
    )
    precision: Literal["float32", "float64", "bf16"] = Field(
        default="float32",
        description='precision; "bf16" applies to the matrix products and attention of the text tower only',
    )
    device: str = Field(
        default="cpu", pattern=r"^(cpu|mps|cuda(:\d+)?)$", description='"cpu", "cuda", "cuda:1" or "mps"'
    )
    patches: Literal["value", "attention"] = Field(
        default="value",
        description='patch features of a CLIP ResNet: "value" of each position (MaskCLIP), or its "attention" to all'
        " positions (public code of PLOT)",
    )
