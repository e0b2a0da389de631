"""The ClientApp. Flower starts a process for every message: nothing is imported here that takes long."""

from collections.abc import Callable, Sequence

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

QUERY, TRAIN, EVALUATE = "query", "train", "evaluate"

Answer = Callable[[str, RecordDict, Context], RecordDict]  # to one of these kinds of message


def client_app(answer: Answer, mods: Sequence[Mod] = ()) -> ClientApp:
    """What Flower runs for a client. mods: what becomes of its answer to training."""
    app = ClientApp()

    def handler(kind: str) -> Callable[[Message, Context], Message]:
        return lambda message, context: Message(answer(kind, message.content, context), reply_to=message)

    app.query()(handler(QUERY))
    app.train(mods=list(mods))(handler(TRAIN))
    app.evaluate()(handler(EVALUATE))
    return app
