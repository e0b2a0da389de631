"""A name, directory or hub id becomes a frozen dual encoder: image features, text features, tokens.

It may import the runtime, the assets and errors, and it alone imports transformers and open_clip. Start with `load`.
"""

from fedpgp.backbone.dual_encoder import Backbone, Towers
from fedpgp.backbone.files import PHOTOCLIP
from fedpgp.backbone.load import bfloat16_speed, configured_backbone, load_backbone

__all__ = ["PHOTOCLIP", "Backbone", "Towers", "bfloat16_speed", "configured_backbone", "load_backbone"]
