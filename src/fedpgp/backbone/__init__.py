"""Load a frozen dual encoder from a name, a directory or a hub id: image features, text features and tokens.

This package may import only the runtime, the assets and errors. No other package imports transformers or open_clip.
Start with `load`.
"""

from fedpgp.backbone.dual_encoder import Backbone, Towers
from fedpgp.backbone.files import PHOTOCLIP
from fedpgp.backbone.load import bfloat16_speed, configured_backbone, load_backbone

__all__ = ["PHOTOCLIP", "Backbone", "Towers", "bfloat16_speed", "configured_backbone", "load_backbone"]
