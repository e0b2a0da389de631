"""The methods by the names that the command line and the config use."""

from fedpgp.methods.base import Batch, Frozen, Method, Params, PromptMethod, SinglePromptMethod
from fedpgp.methods.centralized import Centralized
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.methods.local import Local
from fedpgp.methods.promptfl import PromptFL
from fedpgp.methods.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {method.name: method for method in (ZeroShot, Centralized, Local, PromptFL, FedPGP)}

__all__ = [
    "METHODS",
    "Batch",
    "Centralized",
    "FedPGP",
    "Frozen",
    "Local",
    "Method",
    "Params",
    "PromptFL",
    "PromptMethod",
    "SinglePromptMethod",
    "ZeroShot",
]
