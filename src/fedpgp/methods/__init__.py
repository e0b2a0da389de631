"""The methods by the names that the command line and the config use."""

from fedpgp.errors import ConfigError, nearest
from fedpgp.methods.base import Batch, ClientUpdate, Frozen, Method, Params, PromptMethod
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.methods.local import Local
from fedpgp.methods.promptfl import PromptFL
from fedpgp.methods.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {method.name: method for method in (ZeroShot, Local, PromptFL, FedPGP)}


def find_method(name: str) -> type[Method]:
    """The class of a method; raises ConfigError with the nearest name for one that is unknown."""
    if name not in METHODS:
        raise ConfigError(f"method must be a known one, got {name!r}; {nearest(name, METHODS)}")
    return METHODS[name]


__all__ = [
    "METHODS",
    "Batch",
    "ClientUpdate",
    "FedPGP",
    "Frozen",
    "Local",
    "Method",
    "Params",
    "PromptFL",
    "PromptMethod",
    "ZeroShot",
    "find_method",
]
