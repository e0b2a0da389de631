"""The ClientApp, and how it changes an update before it is sent.

A node starts a process for every message, so this module imports nothing that takes long.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable, Mod

QUERY, TRAIN, EVALUATE = "query", "train", "evaluate"
SHARED, CONTROL, LOSSES, ABOUT = "shared", "control", "losses", "about"  # the records of a message
FACTS = ("run", "round", "after", "examples")  # keys of the record "about"
LOSS = "loss/"  # prefix of a loss's name in the record "about"

Answer = Callable[[str, RecordDict, Context], RecordDict]  # answers a message of one of these kinds


def client_app(answer: Answer, privacy: Mapping[str, Any]) -> ClientApp:
    """Return the ClientApp that Flower runs for a client.

    Parameters
    ----------
    answer
        Function that answers a message.
    privacy
        The section [privacy] of the experiment.
    """
    app = ClientApp()

    def handler(kind: str) -> Callable[[Message, Context], Message]:
        return lambda message, context: Message(answer(kind, message.content, context), reply_to=message)

    app.query()(handler(QUERY))
    app.train(mods=mods(privacy))(handler(TRAIN))
    app.evaluate()(handler(EVALUATE))
    return app


def mods(privacy: Mapping[str, Any]) -> list[Mod]:
    """Return Flower's mods that change an update before it is sent, the outermost first.

    Parameters
    ----------
    privacy
        The section [privacy] of the experiment.
    """
    chosen: list[Mod] = []
    kind = privacy["differential_privacy"]
    if privacy["secure_aggregation"]:
        from flwr.client.mod import secaggplus_mod

        chosen += [secaggplus_mod, partial(_in_older_form, weighted=kind == "none")]
    if kind == "local":
        norm = float(privacy["clipping_norm"])
        # The distance of two updates that are clipped to this norm is at most twice the norm.
        chosen.append(LocalDpMod(norm, 2 * norm, float(privacy["local_epsilon"]), float(privacy["delta"])))
    elif kind == "central" and privacy["clipped_by"] == "client":
        chosen.append(adaptiveclipping_mod if privacy["clipping"] == "adaptive" else fixedclipping_mod)
    return chosen


def _in_older_form(message: Message, context: Context, call_next: ClientAppCallable, *, weighted: bool) -> Message:
    """Return a reply in the form of Flower's older API, which SecAgg+ reads: changes of the shared part, and facts.

    If `weighted`, the weight of a client is its number of examples; otherwise, as differential privacy requires, all
    clients have the same weight.
    """
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
    from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
    from flwr.compat.common.recorddict_compat import fitres_to_recorddict

    del message.content[RECORD_KEY_CONFIGS]
    received = {name: array.numpy() for name, array in message.content.array_records[SHARED].items()}
    reply = call_next(message, context)
    if reply.has_error() or ABOUT not in reply.content:
        raise RuntimeError("the client could not train. Read the log of the node.")
    content = reply.content
    shared, about = content.array_records[SHARED], content.config_records[ABOUT]
    facts: dict[str, Any] = {name: about[name] for name in FACTS}
    facts |= {f"{LOSS}{name}": figure for name, figure in content.metric_records[LOSSES].items()}
    changes = [shared[name].numpy().astype("float64") - received[name] for name in sorted(shared)]
    weight = int(facts["examples"]) if weighted else 1
    older = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(changes), weight, facts)
    return Message(fitres_to_recorddict(older, False), reply_to=message)
