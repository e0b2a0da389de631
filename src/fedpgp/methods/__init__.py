"""The methods by the names that the command line and the config use, and what a method is made of."""

from fedpgp.methods.base import (
    STRICT,
    Batch,
    Frozen,
    Method,
    Params,
    PromptMethod,
    SinglePromptMethod,
    logits,
    mean_cosine,
    normal,
    templates_of,
)
from fedpgp.methods.centralized import Centralized
from fedpgp.methods.fedkgcoop import FedKgCoOp
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.methods.fedproda import FedProDA
from fedpgp.methods.fedprograd import FedProGrad
from fedpgp.methods.local import Local
from fedpgp.methods.promptfl import PromptFL
from fedpgp.methods.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (ZeroShot, Centralized, Local, PromptFL, FedKgCoOp, FedProGrad, FedProDA, FedPGP)
}

__all__ = [
    "METHODS",
    "STRICT",
    "Batch",
    "Centralized",
    "FedKgCoOp",
    "FedPGP",
    "FedProDA",
    "FedProGrad",
    "Frozen",
    "Local",
    "Method",
    "Params",
    "PromptFL",
    "PromptMethod",
    "SinglePromptMethod",
    "ZeroShot",
    "logits",
    "mean_cosine",
    "normal",
    "templates_of",
]
