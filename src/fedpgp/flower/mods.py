"""What Flower does to a client's update before it is sent. Imported for every message: nothing here takes long."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable, Mod

SHARED, CONTROL, LOSSES, ABOUT = "shared", "control", "losses", "about"  # the records of a message
FACTS = ("run", "round", "after", "examples")  # in the last
LOSS = "loss/"  # before the name of a loss among the facts


def mods(privacy: Mapping[str, Any]) -> list[Mod]:
    """Of the ClientApp of an experiment, the outermost first. privacy: its section [privacy]."""
    found: list[Mod] = []
    kind = privacy["differential_privacy"]
    if privacy["secure_aggregation"]:
        from flwr.client.mod import secaggplus_mod

        found += [secaggplus_mod, partial(_as_older, weighted=kind == "none")]
    if kind == "local":
        norm = float(privacy["clipping_norm"])
        # Any two updates that are cut to this norm are at most twice as far apart.
        found.append(LocalDpMod(norm, 2 * norm, float(privacy["local_epsilon"]), float(privacy["delta"])))
    elif kind == "central" and privacy["clipped_by"] == "client":
        found.append(adaptiveclipping_mod if privacy["clipping"] == "adaptive" else fixedclipping_mod)
    return found


def _as_older(message: Message, context: Context, call_next: ClientAppCallable, *, weighted: bool) -> Message:
    """A reply in the form of Flower's older API, which SecAgg+ reads: the change of the shared part, and facts.

    weighted: by the number of examples, or all alike, as differential privacy asks.
    """
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
    from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
    from flwr.compat.common.recorddict_compat import fitres_to_recorddict

    del message.content[RECORD_KEY_CONFIGS]
    received = {name: array.numpy() for name, array in message.content.array_records[SHARED].items()}
    reply = call_next(message, context)
    if reply.has_error() or ABOUT not in reply.content:
        raise RuntimeError("the client could not train: the log of its node says why")
    content = reply.content
    shared, about = content.array_records[SHARED], content.config_records[ABOUT]
    facts: dict[str, Any] = {name: about[name] for name in FACTS}
    facts |= {f"{LOSS}{name}": figure for name, figure in content.metric_records[LOSSES].items()}
    changes = [shared[name].numpy().astype("float64") - received[name] for name in sorted(shared)]
    weight = int(facts["examples"]) if weighted else 1
    older = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(changes), weight, facts)
    return Message(fitres_to_recorddict(older, False), reply_to=message)
