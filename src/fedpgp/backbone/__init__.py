"""Frozen CLIP."""

from fedpgp.backbone.load import Backbone, bfloat16_speed, load_backbone
from fedpgp.backbone.towers import Towers

__all__ = ["Backbone", "Towers", "bfloat16_speed", "load_backbone"]
