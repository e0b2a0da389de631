"""What Flower does to a client's update before it is sent. Imported for every message: nothing here takes long."""

from collections.abc import Mapping
from typing import Any

from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import Mod


def mods(privacy: Mapping[str, Any]) -> list[Mod]:
    """Of the ClientApp of an experiment. privacy: its section [privacy]."""
    found: list[Mod] = []
    kind = privacy["differential_privacy"]
    if kind == "local":
        norm = float(privacy["clipping_norm"])
        # Any two updates that are cut to this norm are at most twice as far apart.
        found.append(LocalDpMod(norm, 2 * norm, float(privacy["local_epsilon"]), float(privacy["delta"])))
    elif kind == "central" and privacy["clipped_by"] == "client":
        found.append(adaptiveclipping_mod if privacy["clipping"] == "adaptive" else fixedclipping_mod)
    return found
