"""Flower's Grid with all nodes in this process. Messages are sent as protobuf, so a test can read their bytes."""

from collections.abc import Callable, Mapping, Sequence
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

FAILED = 2  # Flower's code for a ClientApp that raised an exception


class InProcessGrid(Grid):
    """A grid of ClientApps.

    Parameters
    ----------
    apps
        ClientApps by node.
    meddle
        Function that gets a node, a message and the reply as bytes, and returns the bytes that arrive instead, or None
        if nothing arrives.

    Attributes
    ----------
    sent, received
        Contents of the server's messages as bytes, and of the replies as (node, bytes), in their order.
    """

    def __init__(
        self,
        apps: Mapping[int, ClientApp],
        meddle: Callable[[int, Message, bytes], bytes | None] = lambda node, message, reply: reply,
    ):
        self.apps, self.meddle = dict(apps), meddle
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1  # as in Flower's own processes
        self.contexts = {node: _context(node) for node in apps}
        self.sent: list[bytes] = []
        self.received: list[tuple[int, bytes]] = []
        self.away: set[int] = set()
        self._replies: dict[str, Message] = {}

    def get_node_ids(self):
        return [node for node in self.apps if node not in self.away]

    def push_messages(self, messages: Sequence[Message]):
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        identifier = str(uuid4())
        message.metadata.__dict__["_message_id"] = identifier
        node = message.metadata.dst_node_id
        packed = recorddict_to_proto(message.content).SerializeToString()
        self.sent.append(packed)
        if node in self.away:
            return identifier
        arrived = Message(_read(packed), node, message.metadata.message_type, group_id=message.metadata.group_id)
        arrived.metadata.__dict__["_message_id"] = identifier
        try:
            reply = self.apps[node](arrived, self.contexts[node])
        except Exception as error:  # as in Flower: a ClientApp can raise any exception
            self._replies[identifier] = Message(Error(FAILED, repr(error)), reply_to=arrived)
            return identifier
        if reply.has_error():
            self._replies[identifier] = reply
            return identifier
        content = self.meddle(node, arrived, recorddict_to_proto(reply.content).SerializeToString())
        if content is not None:
            self.received.append((node, content))
            self._replies[identifier] = Message(_read(content), reply_to=arrived)
        return identifier

    def pull_messages(self, message_ids):
        return [self._replies.pop(one) for one in message_ids if one in self._replies]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(list(messages)))

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, *arguments):
        raise NotImplementedError


def _read(packed: bytes) -> RecordDict:
    return recorddict_from_proto(RecordDictProto.FromString(packed))


def _context(node: int) -> Context:
    return Context(1, node, UserConfig(), RecordDict(), UserConfig())
