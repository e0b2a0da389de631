"""Frozen CLIP."""

from fedpgp.backbone.load import Backbone, bfloat16_speed, load_backbone

__all__ = ["Backbone", "bfloat16_speed", "load_backbone"]
