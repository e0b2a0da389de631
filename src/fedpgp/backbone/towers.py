"""What computes, without what loads and preprocesses."""

from typing import NamedTuple

from fedpgp.backbone.text import TextEncoder
from fedpgp.backbone.tower import ImageTower


class Towers(NamedTuple):
    """What a worker process needs of a CLIP. image: None where no method changes the image tower."""

    text: TextEncoder
    image: ImageTower | None = None
