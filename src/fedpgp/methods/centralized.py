"""One prompt trained on the images of all clients: an upper reference that no real federation can reach."""

from pydantic.dataclasses import dataclass

from fedpgp.methods.base import STRICT
from fedpgp.methods.promptfl import PromptFL


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Centralized(PromptFL):
    """CoOp on the pooled images of all clients. A round has as many epochs over them as a client has over its own."""

    name = "centralized"
    source = "CoOp, Zhou et al. 2021, arXiv 2109.01134, on all clients' data"
    year = 2022
    venue = "IJCV"
    pooled = True
