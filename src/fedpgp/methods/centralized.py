"""One prompt trained on everybody's images, which no federation may do: the upper reference."""

from pydantic.dataclasses import dataclass

from fedpgp.methods.base import STRICT
from fedpgp.methods.promptfl import PromptFL


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Centralized(PromptFL):
    """CoOp on the images of all clients pooled: in a round as many epochs over them as a client trains."""

    name = "centralized"
    source = "CoOp, Zhou et al. 2021, arXiv 2109.01134, on all clients' data"
    year = 2022
    venue = "IJCV"
    pooled = True
