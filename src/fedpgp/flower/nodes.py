"""The clients of a run on Flower, as the loop of rounds in the ServerApp uses them."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, TypeVar

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid

from fedpgp.aggregators import Download, Server
from fedpgp.data.client_task import Counts
from fedpgp.errors import TooFewError, TrainingError
from fedpgp.evaluation.evaluator import Evaluation
from fedpgp.federation.client import ClientUpdate
from fedpgp.federation.privacy import longest_change
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import PrivacyConfig
from fedpgp.federation.state import ClientState, State
from fedpgp.flower.client_app import ABOUT, EVALUATE, QUERY, TRAIN
from fedpgp.flower.messages import FAULT, Request, evaluation, together
from fedpgp.flower.secure_aggregation import secure_sum
from fedpgp.flower.update_validation import Asked, Refused, check, check_facts, excerpt, facts, line, unlike_others

MOST_EXAMPLES = 10**8  # the largest number of examples that a client may report
POLL = 0.05  # seconds between two checks for replies
REFUSES = "the node does not run this app, because its code or experiment.toml differs from the node's"
READ_LOG = "Read the log of the node"

log = logging.getLogger("fedpgp")
Read = TypeVar("Read")


class Nodes:
    """The clients of a run, each on a node of Flower; see `fedpgp.federation.rounds.ClientPool`.

    Parameters
    ----------
    grid
        Flower's connection to the nodes.
    spec
        What to train.
    state
        State of the run, with its id and its earlier rounds.
    terms
        What the server and the clients must have in common.
    privacy
        The section [privacy] of the config.
    forgiving
        If true, a client that fails is left out of the round, and the record of the round has the reason. Otherwise a
        client that fails ends the run with a TrainingError, as in a run with all clients in one process.
    numbers
        Function that returns, by node, the number of the client whose key the node has. None if the nodes have no keys;
        each node is then the client that it reports.

    Attributes
    ----------
    counted
        By client, the last round that counts.
    held
        By client, the numbers of images that it reported.
    refused
        Number of refused replies in the current round.
    """

    def __init__(
        self,
        grid: Grid,
        spec: RunSpec,
        state: State,
        terms: Mapping[str, Any],
        privacy: PrivacyConfig,
        forgiving: bool,
        numbers: Callable[[], Mapping[int, int]] | None = None,
    ):
        self.grid, self.forgiving, self.refused = grid, forgiving, 0
        self.run: str = state.origin()["run"]
        self.counted = {client: record["round"] for record in state.records() for client in record["participants"]}
        self.held: dict[int, Counts] = {}
        self._spec, self._privacy, self._numbers = spec, privacy, numbers
        self._greeting = RecordDict({ABOUT: ConfigRecord({**terms})})
        self._deadline = spec.settings.deadline
        self._places: dict[int, int] = {}  # client -> node
        self._greeted: set[int] = set()
        self._notes: dict[str, Any] = defaultdict(list)

    def gather(self) -> None:
        """Wait until all clients are connected or the deadline is over, and log each client that connects.

        Raises
        ------
        TrainingError
            If no client is connected at the deadline, or, unless `forgiving`, a client is missing.
        """
        clients, end = self._spec.clients, time.monotonic() + self._deadline
        self._greet()
        while len(self._places) < clients and time.monotonic() <= end:
            time.sleep(POLL)
            self._greet()
        missing = [client for client in range(clients) if client not in self._places]
        if missing and (not self.forgiving or not self._places):
            faults = "; ".join(sorted({refusal["reason"] for refusal in self._notes["refused"]}))
            raise TrainingError(
                f"{len(missing)} of {clients} clients did not connect within {self._deadline:g} seconds; the first"
                f" missing one is client {missing[0]}{f' ({faults})' if faults else ''}",
                where="federation.deadline",
                remedy="Start the missing nodes, and correct refused nodes; for more time, use a higher deadline",
            )

    def train(self, number: int, downloads: Mapping[int, Download]) -> Sequence[ClientUpdate]:
        requests = {client: self._request(client, number, download) for client, download in downloads.items()}
        expected = {} if self._spec.finetunes(number) else self._spec.shared
        self.refused = 0
        if self._privacy.secure_aggregation and expected:
            return self._train_with_secure_sum(number, requests)

        def read(client: int, content: RecordDict) -> ClientUpdate:
            asked = Asked(
                client=client,
                round=number,
                run=self.run,
                shared=expected,
                control=self._spec.sent_control if expected else {},
                received=downloads[client].shared,
                most_examples=self.held[client].examples if client in self.held else MOST_EXAMPLES,
                largest_change=min(self._spec.settings.largest_change, longest_change(downloads[client])),
                figures=self._spec.aggregator.answered if expected else (),
            )
            update = check(content, asked)
            after, counted = content.config_records[ABOUT]["after"], requests[client].counted
            if after != counted:
                self._notes["older_state"].append({"client": client, "after": after, "instead": counted})
            return update

        return list(self._ask(TRAIN, requests, read, lambda update: update.losses).values())

    def _train_with_secure_sum(self, number: int, requests: Mapping[int, Request]) -> Sequence[ClientUpdate]:
        """Train with secure aggregation: every update is the mean, because the server sees nothing else.

        Raises TooFewError, unless `forgiving`, if no sum could be computed.
        """
        end = time.monotonic() + self._deadline
        self._greet()
        places = {self._places[client]: client for client in requests if client in self._places}
        for client in requests.keys() - places.values():
            self._drop(client, TRAIN, "no node of this client is connected")
        received = next(iter(requests.values())).download.shared
        contents = {node: requests[client].content() for node, client in places.items()}
        most = max((self.held[client].examples for client in places.values() if client in self.held), default=1)
        weighted = self._privacy.differential_privacy == "none"
        try:
            change, said = secure_sum(self._send, number, contents, received, self._privacy, most if weighted else 1)
        except TooFewError as error:
            if not self.forgiving:
                raise
            self._notes["lost"] = str(error)
            sleep_until(end)
            return []
        mean = {name: value + change[name] for name, value in received.items()}
        updates = []
        for node, client in places.items():
            if node not in said:
                self._drop(client, TRAIN, f"the client's part did not arrive within {self._deadline:g} seconds")
                continue
            try:
                update = check_facts(said[node], client, self.run, number, MOST_EXAMPLES)
            except Refused as error:  # the update remains in the sum and cannot be removed from it
                self._notes["implausible"].append({"client": client, "reason": str(error)})
            else:
                updates.append(replace(update, upload=replace(update.upload, shared=mean)))
        return updates

    def kept(self, number: int, updates: Sequence[ClientUpdate]) -> Mapping[int, ClientState]:
        """Count the round of these clients; return nothing, because each client keeps its private part itself."""
        self.counted |= {update.upload.client: number for update in updates}
        return {}

    def evaluate(self, number: int, server: Server, alphas: Sequence[float]) -> Evaluation | None:
        requests = {}
        for client in range(self._spec.clients):
            sent = self._spec.aggregator.download(server, client)
            alone = {name: value for name, value in server.shared.items() if value is not sent.shared.get(name)}
            requests[client] = self._request(client, number, replace(sent, control={}), alone, tuple(alphas))
        figures = ("local", *self._spec.tests, "validation_local", "validation_base")

        def read(client: int, content: RecordDict) -> Evaluation:
            return evaluation(content, requests[client], figures, outcomes=not self.forgiving)

        answers = self._ask(EVALUATE, requests, read, lambda answer: answer.diagnostics)
        if len(answers) < len(requests):
            self._notes["evaluated"] = list(answers)
        return together(list(answers.values())) if answers else None

    def round_notes(self, number: int) -> Mapping[str, Any]:
        notes = {name: fmean(note) if name.startswith("wire_") else note for name, note in self._notes.items()}
        self._notes.clear()
        return notes

    def _request(self, client: int, number: int, *asked: Any) -> Request:
        return Request(self.run, number, self.counted.get(client, 0), *asked)

    def _ask(
        self,
        kind: str,
        requests: Mapping[int, Request],
        read: Callable[[int, RecordDict], Read],
        figures: Callable[[Read], Collection[str]],
    ) -> dict[int, Read]:
        """Return the clients' answers in ascending order; the round's notes have a reason for each missing answer.

        Training without any usable answer lasts until the deadline, because errors arrive immediately and clients may
        come back. Raises TrainingError if no client answers in training.

        Parameters
        ----------
        kind
            Kind of the message.
        requests
            Requests by client.
        read
            Reads the answer of a client; raises Refused if it is not valid.
        figures
            Returns the names in an answer that must be the same for all clients.
        """
        end = time.monotonic() + self._deadline
        self._greet()
        answers: dict[int, Read] = {}
        number = next(iter(requests.values())).number
        contents = {self._places[client]: requests[client].content() for client in requests if client in self._places}
        replies = self._exchange(kind, number, contents)
        for client in requests:
            try:
                content = self._answer(client, replies)
                answers[client] = read(client, content)
            except TrainingError as error:
                self._drop(client, kind, str(error))
            except Refused as error:
                self._refuse(client, kind, str(error))
            else:
                sent = contents[self._places[client]]
                self._notes[f"wire_up_{kind}"].append(recorddict_to_proto(content).ByteSize())
                self._notes[f"wire_down_{kind}"].append(recorddict_to_proto(sent).ByteSize())
        for client, reason in unlike_others({client: figures(answer) for client, answer in answers.items()}).items():
            self._refuse(client, kind, reason)
            del answers[client]
        if kind == TRAIN and not answers:
            sleep_until(end)
        if kind == TRAIN and all(reply.has_error() for reply in replies.values()):
            raise TrainingError(
                f"no client answered within {self._deadline:g} seconds; the earlier rounds are saved",
                where=f"round {number}",
                remedy="Start the run again when the nodes are connected",
            )
        return answers

    def _answer(self, client: int, replies: Mapping[int, Message]) -> RecordDict:
        """Return the answer of a client from its node's reply; raise TrainingError with the reason if there is none."""
        if client not in self._places:
            raise TrainingError("no node of this client is connected", remedy="Start the client's node")
        reply = replies.get(self._places[client])
        expired = reply is not None and reply.has_error() and reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
        if reply is None or expired:
            raise TrainingError(f"no reply within {self._deadline:g} seconds", remedy=READ_LOG)
        if reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE:
            raise TrainingError("the node has sent no heartbeat for a while", remedy="Start the client's node again")
        if reply.has_error() and reply.error.code == ErrorCode.INVALID_FAB:
            raise TrainingError(REFUSES, remedy=READ_LOG)
        if reply.has_error():
            raise TrainingError(f"the node failed: {line(reply.error.reason)}", remedy=READ_LOG)
        if FAULT in reply.content.config_records:
            raise TrainingError(line(reply.content.config_records[FAULT].get("reason")).rstrip("."), remedy=READ_LOG)
        return reply.content

    def _exchange(self, kind: str, number: int, contents: Mapping[int, RecordDict]) -> dict[int, Message]:
        """Return, by node, the replies that arrive before the deadline."""
        messages = [
            Message(content, dst_node_id=node, message_type=kind, group_id=str(number), ttl=self._deadline)
            for node, content in contents.items()
        ]
        replies = self._send(messages) if messages else []
        nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
        return {nodes[reply.metadata.reply_to_message_id]: reply for reply in replies}

    def _send(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the replies that arrive before the deadline, each once."""
        self.grid.push_messages(messages)
        waiting = {message.metadata.message_id for message in messages}
        replies: list[Message] = []
        end = time.monotonic() + self._deadline
        while waiting and time.monotonic() < end:
            for reply in self.grid.pull_messages(list(waiting)):
                if reply.metadata.reply_to_message_id in waiting:
                    waiting.remove(reply.metadata.reply_to_message_id)
                    replies.append(reply)
            if waiting:
                time.sleep(POLL)
        return replies

    def _greet(self) -> None:
        """Ask each new node once which client it is and whether its terms fit."""
        here = set(self.grid.get_node_ids())
        self._greeted &= here  # a node that comes back is asked again
        new = dict.fromkeys(sorted(here - self._greeted), self._greeting)
        replies = self._exchange(QUERY, 0, new)
        numbers = self._numbers() if self._numbers and replies else None
        for node, reply in sorted(replies.items()):
            if reply.has_error() and reply.error.code != ErrorCode.INVALID_FAB:
                continue  # it is asked again
            self._greeted.add(node)
            try:
                client, counts = self._client_of(node, here, reply, numbers)
            except Refused as error:
                log.warning("node %s is refused: %s", node, error)
                self._notes["refused"].append({"node": str(node), "reason": str(error)})
            else:
                self._places[client], self.held[client] = node, counts
                log.info("%d of %d clients are connected: %s", len(self.held), self._spec.clients, sorted(self.held))

    def _client_of(
        self, node: int, here: Container[int], reply: Message, numbers: Mapping[int, int] | None
    ) -> tuple[int, Counts]:
        """Return which client a node is, and how many images it has; raise Refused if it cannot participate.

        `numbers` has the client numbers of the nodes' keys. The client that a node reports must have the node's key.
        """
        if reply.has_error():
            raise Refused(REFUSES, remedy=READ_LOG)
        content, clients = reply.content, self._spec.clients
        if FAULT in content.config_records:
            raise Refused(line(content.config_records[FAULT].get("reason")).rstrip("."), remedy=READ_LOG)
        names = ("client", "examples", *(f"tests_{name}" for name in self._spec.tests))
        client, *counts = facts(content, **dict.fromkeys(names, int))
        if numbers is not None and client != numbers.get(node):
            allowed = f"{numbers[node]}, the number of the node's key" if node in numbers else "the number of a key"
            raise Refused(where="client", allowed=allowed, got=client, remedy="Correct client in the node's node.toml")
        if not 0 <= client < clients:
            allowed = f"0 to {clients - 1}"
            raise Refused(where="client", allowed=allowed, got=client, remedy="Correct client in the node's node.toml")
        if self._places.get(client, node) != node and self._places[client] in here:
            raise Refused(
                f"another node is client {client} already",
                where="client",
                remedy="Give each node its own number in its node.toml",
            )
        if not all(0 <= count <= MOST_EXAMPLES for count in counts) or not counts[0]:
            raise Refused(
                f"the node has {excerpt(counts)} images in its training set and test sets",
                where="the number of images",
                remedy="Check the node's data",
            )
        return client, Counts(counts[0], dict(zip(self._spec.tests, counts[1:], strict=True)))

    def _refuse(self, client: int, kind: str, reason: str) -> None:
        """Leave out a client whose reply is not valid, and count it as faulty."""
        self._drop(client, kind, reason)
        self.refused += 1

    def _drop(self, client: int, kind: str, reason: str) -> None:
        if not self.forgiving:
            remedy = "Resume the run when the cause is fixed"
            raise TrainingError(reason.removesuffix("."), where=f"client {client}", remedy=remedy)
        self._notes["dropped"].append({"client": client, "in": kind, "reason": reason})


def sleep_until(end: float) -> None:
    """Wait until `time.monotonic` has the value `end`."""
    time.sleep(max(0.0, end - time.monotonic()))
