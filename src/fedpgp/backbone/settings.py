"""Config section of the frozen dual encoder."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from fedpgp.runtime.validation import STRICT


def _one_device(name: str) -> str:
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name, re.ASCII):
        raise PydanticCustomError("device", "Input should be 'cpu', 'mps', 'cuda' or 'cuda:1' (one device for a run)")
    return name


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
    device: Annotated[str, AfterValidator(_one_device)] = Field(
        default="cpu", description='one device: "cpu", "cuda", "cuda:1" or "mps"'
    )
    patches: Literal["value", "attention"] = Field(
        default="value",
        description='patch features of a CLIP ResNet: "value" of each position (MaskCLIP), or its "attention" to all'
        " positions (public code of PLOT)",
    )
