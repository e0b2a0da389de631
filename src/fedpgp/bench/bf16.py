"""A step with matrix products in bfloat16 beside the same step in float32: how much faster, and how different."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fedpgp.backbone.text import TextEncoder
from fedpgp.bench.machine import seconds
from fedpgp.bench.stages import Step, differences, packed


@dataclass(frozen=True)
class Coarse:
    """single, coarse: seconds of the step in float32 and with products in bfloat16, by repetition; differences of loss
    and gradients as in `Measured`, and not held to any tolerance.
    """

    single: Sequence[float]
    coarse: Sequence[float]
    loss_difference: float
    gradient_difference: float


def measure_bf16(step: Step, repeat: int) -> Coarse:
    """Times the library's step in both precisions in turn. step: in float32."""
    backbone = step.scene.backbone
    text = TextEncoder.of(step.scene.model, backbone.tokenizer.bos_token_id, torch.bfloat16)
    same = replace(step, scene=replace(step.scene, backbone=replace(backbone, text=text)))
    loss, gradient = differences(packed(same), packed(step))
    turns = [(seconds(lambda: packed(step)), seconds(lambda: packed(same))) for _ in range(repeat)]
    single, coarse = zip(*turns, strict=True)
    return Coarse(single, coarse, loss, gradient)
