"""What a SuperNode runs for a message: it asks the client that stays loaded beside it, or else loads the client."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from fedpgp.flower.client_app import client_app
from fedpgp.flower.deployment.resident import ask
from fedpgp.flower.mods import mods

RESIDENT = "resident"  # in the node's config: where the client that stays loaded is


def make_client_app(experiment: Path) -> ClientApp:
    """The ClientApp of a federation. experiment: its file, as every node has it from the server."""

    def answer(kind: str, content: RecordDict, context: Context) -> RecordDict:
        about: dict[str, Any] = {"experiment": str(experiment.absolute()), **context.node_config}
        about |= {name: context.run_config[name] for name in ("method", "seed")}
        address = about.pop(RESIDENT, "")
        if address:
            try:
                return ask(str(address), kind, content, about)
            except (OSError, EOFError):
                pass  # it was ended: what it kept is on the disk
        return _alone(kind, content, about)

    privacy = tomllib.loads(experiment.read_text(encoding="utf-8"))["privacy"]
    return client_app(answer, mods(privacy))


def _alone(kind: str, content: RecordDict, about: Mapping[str, Any]) -> RecordDict:
    from fedpgp.flower.deployment.client import answer_as  # with PyTorch, which takes seconds

    return answer_as(kind, content, about)
