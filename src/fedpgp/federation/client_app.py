"""The ClientApp. Flower starts a process for every message: nothing is imported here that takes long."""

from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

QUERY, TRAIN, EVALUATE = "query", "train", "evaluate"

Answer = Callable[[str, RecordDict, Context], RecordDict]  # to one of these kinds of message


def client_app(answer: Answer) -> ClientApp:
    """What Flower runs for a client."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(answer(QUERY, message.content, context), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(answer(TRAIN, message.content, context), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(answer(EVALUATE, message.content, context), reply_to=message)

    return app
