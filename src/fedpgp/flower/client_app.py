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

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(answer(QUERY, message.content, context), reply_to=message)

    @app.train(mods=list(mods))
    def train(message: Message, context: Context) -> Message:
        return Message(answer(TRAIN, message.content, context), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(answer(EVALUATE, message.content, context), reply_to=message)

    return app
