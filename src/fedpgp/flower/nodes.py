"""The clients of a run on Flower, as the loop in its ServerApp sees them, and what they answer."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import recorddict_to_proto
from flwr.serverapp import Grid

from fedpgp.aggregators import Download, Server
from fedpgp.backbone import Backbone
from fedpgp.data.client_task import Counts, counts_of
from fedpgp.data.tasks import Client, Task
from fedpgp.errors import FedPGPError, NamesError, TooFewError, TrainingError
from fedpgp.evaluation.evaluator import Evaluation
from fedpgp.federation.client import ClientUpdate
from fedpgp.federation.run_spec import RunSpec
from fedpgp.federation.settings import PrivacyConfig
from fedpgp.federation.state import ClientState
from fedpgp.flower.client_app import EVALUATE, QUERY, TRAIN
from fedpgp.flower.messages import Request, evaluated, evaluation, together, trained
from fedpgp.flower.node import Node
from fedpgp.flower.secure_aggregation import secure_sum
from fedpgp.flower.update_validation import ABOUT, Asked, Refused, check, excerpt, facts, line, unlike_others
from fedpgp.runs.setup import OpenRun
from fedpgp.runtime.version import __version__

FAULT = "fault"  # in the place of a reply: why there is none, for a person to read
MOST_EXAMPLES = 10**8  # that a client may say that it has
POLL = 0.05  # seconds between two looks at who has answered

log = logging.getLogger("fedpgp")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Terms:
    """What server and clients must have in common. checkpoint: the fingerprint of the frozen CLIP."""

    fedpgp: str
    checkpoint: str
    classes: tuple[str, ...]

    def content(self) -> RecordDict:
        about: dict[str, Any] = {**asdict(self), "classes": list(self.classes)}
        return RecordDict({ABOUT: ConfigRecord(about)})

    @classmethod
    def of(cls, content: RecordDict) -> "Terms":
        """Raises Refused for a message that has none."""
        about: Mapping[str, Any] = content.config_records.get(ABOUT, {})
        try:
            return cls(str(about["fedpgp"]), str(about["checkpoint"]), tuple(str(name) for name in about["classes"]))
        except (KeyError, TypeError) as error:
            raise Refused("the server's greeting is none of this version of fedpgp") from error

    def check(self, node: "Terms") -> None:
        """Raises Refused, saying how a node's terms differ from these of the server."""
        if self.fedpgp != node.fedpgp:
            raise Refused(f"the node has fedpgp {node.fedpgp}, the server {self.fedpgp}: install the same on both")
        if self.checkpoint != node.checkpoint:
            raise Refused(
                "the node's checkpoint is another than the server's (their fingerprints differ): give both the same"
                " files as backbone.checkpoint"
            )
        if self.classes != node.classes:
            more, fewer = sorted({*node.classes} - {*self.classes}), sorted({*self.classes} - {*node.classes})
            named = (("it has", more), ("it lacks", fewer))
            parts = [f"{what} {', '.join(map(repr, some[:5]))}" for what, some in named if some]
            raise Refused(f"the node's class names differ: {'; '.join(parts) or 'they stand in another order'}")


def terms_of(backbone: Backbone, task: Task) -> Terms:
    return Terms(__version__, backbone.fingerprint, task.class_names)


@dataclass(frozen=True)
class NodeClient:
    """A client as its node opens it. counts: of its images, all that the server gets to know."""

    node: Node
    terms: Terms
    counts: Counts


def node_client(opened: OpenRun, client: Client, directory: Path) -> NodeClient:
    """One client of a run, by itself. directory: of what clients keep of their runs."""
    runner = opened.runner_of(client)
    node = Node(runner, opened.backbone.towers(opened.method.reads), client.id, directory)
    return NodeClient(node, terms_of(opened.backbone, opened.task), counts_of(runner.data.task))


@dataclass
class Nodes:
    """The clients of a run, each on a node of Flower; see `fedpgp.federation.rounds.ClientPool`.

    run: its id; counted: by client, the last round that counts;
    deadline: seconds that a round waits for replies; forgiving: a client that fails is left out of a round, and why is
    told. Otherwise it ends the run with a TrainingError, as it does where all clients are in one process. held: what
    clients said that they have; refused: how many sent what was refused in the round.
    """

    grid: Grid
    spec: RunSpec
    run: str
    terms: Terms
    counted: dict[int, int]
    deadline: float
    forgiving: bool
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    held: dict[int, Counts] = field(default_factory=dict)
    refused: int = 0
    _places: dict[int, int] = field(default_factory=dict)  # client -> node
    _greeted: set[int] = field(default_factory=set)
    _told: dict[str, Any] = field(default_factory=lambda: defaultdict(list))

    def gather(self, clients: int) -> None:
        """Waits until so many clients are there, or the deadline is over; raises TrainingError where none is.

        Who comes and who is refused is told as it happens.
        """
        end = time.monotonic() + self.deadline
        there, refused = 0, 0
        while True:
            self._greet()
            for one in self._told["refused"][refused:]:
                log.warning("node %s is refused: %s", one["node"], one["reason"])
            refused = len(self._told["refused"])
            if len(self._places) != there and self.forgiving:
                there = len(self._places)
                log.info("%d of %d clients are there: %s", there, clients, ", ".join(map(str, sorted(self._places))))
            if len(self._places) >= clients or time.monotonic() > end:
                break
            time.sleep(POLL)
        missing = [client for client in range(clients) if client not in self._places]
        if missing and (not self.forgiving or not self._places):
            faults = "; ".join(sorted({one["reason"] for one in self._told["refused"]}))
            raise TrainingError(
                f"{len(missing)} of {clients} clients are not there after {self.deadline:g} seconds, the first of them"
                f" is client {missing[0]}{f': {faults}' if faults else ''}"
            )

    def train(self, number: int, downloads: Mapping[int, Download]) -> Sequence[ClientUpdate]:
        requests = {
            client: Request(self.run, number, self.counted.get(client, 0), download)
            for client, download in downloads.items()
        }
        expected = {} if self.spec.finetunes(number) else self.spec.shared
        self.refused = 0

        def read(client: int, content: RecordDict) -> ClientUpdate:
            asked = Asked(
                client=client,
                round=number,
                run=self.run,
                shared=expected,
                control=self.spec.sent_control if expected else {},
                received=downloads[client].shared,
                most_examples=self.held[client].examples if client in self.held else MOST_EXAMPLES,
                largest_change=self.spec.settings.largest_change,
                figures=self.spec.aggregator.answered,
            )
            update = check(content, asked)
            after = content.config_records[ABOUT]["after"]
            if after != self.counted.get(client, 0):
                self._told["older_state"].append({"client": client, "after": after, "instead": self.counted[client]})
            return update

        if self.privacy.secure_aggregation and expected:
            return self._summed(number, requests)
        found = self._ask(TRAIN, requests, read)
        for client, reason in unlike_others(list(found.values())).items():
            self._drop(client, TRAIN, reason)
            self.refused += 1
            del found[client]
        updates = list(found.values())
        if not updates and not self._answered:
            raise TrainingError(
                f"no client answered in round {number} within {self.deadline:g} seconds: the rounds before it are safe,"
                " start the run again when clients are there"
            )
        return updates

    def _summed(self, number: int, requests: Mapping[int, Request]) -> Sequence[ClientUpdate]:
        """The round by secure aggregation: each update is the mean, which is all that there is to see.

        Raises TooFewError where nothing could be summed.
        """
        self._greet()
        places = {self._places[client]: client for client in requests if client in self._places}
        for client in requests.keys() - places.values():
            self._drop(client, TRAIN, "it has no node")
        received = next(iter(requests.values())).download.shared
        contents = {node: requests[client].content() for node, client in places.items()}
        weighted = self.privacy.differential_privacy == "none"
        most = max((self.held[client].examples for client in places.values() if client in self.held), default=1)
        try:
            found = secure_sum(
                self._send,
                number,
                contents,
                received,
                self.privacy.shares,
                self.privacy.threshold,
                self.privacy.value_range,
                most if weighted else 1,
            )
        except TooFewError as error:
            if not self.forgiving:
                raise
            self._told["lost"] = str(error)
            return []
        mean = {name: value + found.change[name] for name, value in received.items()}
        updates = []
        for node, client in places.items():
            if node not in found.facts:
                self._drop(client, TRAIN, f"its part was not there within {self.deadline:g} seconds")
                continue
            asked = Asked(client, number, self.run, {}, {}, {}, most_examples=MOST_EXAMPLES)
            try:
                update = facts(found.facts[node], asked)
            except Refused as error:  # in the sum it is, all the same: nobody can take it out
                self._told["implausible"].append({"client": client, "reason": str(error)})
                continue
            updates.append(replace(update, upload=replace(update.upload, shared=mean)))
        return updates

    def _send(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The replies to messages that come before the deadline."""
        self.grid.push_messages(messages)
        waiting = {message.metadata.message_id for message in messages}
        found: list[Message] = []
        end = time.monotonic() + self.deadline
        while waiting and time.monotonic() < end:
            for reply in self.grid.pull_messages(list(waiting)):
                if reply.metadata.reply_to_message_id in waiting:
                    waiting.remove(reply.metadata.reply_to_message_id)
                    found.append(reply)
            if waiting:
                time.sleep(POLL)
        return found

    def kept(self, number: int, updates: Sequence[ClientUpdate]) -> Mapping[int, ClientState]:
        """Nothing here: each client keeps it, and from now on its round counts."""
        self.counted |= {update.upload.client: number for update in updates}
        return {}

    def evaluate(self, number: int, server: Server, alphas: Sequence[float]) -> Evaluation | None:
        requests = {}
        for client in range(self.spec.clients):
            sent = self.spec.aggregator.download(server, client)
            alone = {name: value for name, value in server.shared.items() if value is not sent.shared.get(name)}
            requests[client] = Request(
                self.run, number, self.counted.get(client, 0), replace(sent, control={}), alone, tuple(alphas)
            )
        figures = ("local", *self.spec.tests, "validation_local", "validation_base")
        found = self._ask(EVALUATE, requests, lambda client, content: evaluation(content, requests[client], figures))
        if len(found) < len(requests):
            self._told["evaluated"] = list(found)
        return together(list(found.values())) if found else None

    def round_notes(self, number: int) -> Mapping[str, Any]:
        told = dict(self._told)
        self._told.clear()
        return {name: fmean(found) if name.startswith("wire_") else found for name, found in told.items()}

    def _ask(
        self, kind: str, requests: Mapping[int, Request], read: Callable[[int, RecordDict], Read]
    ) -> dict[int, Read]:
        """What clients answer, ascending; of those that do not, or not as they must, the reason is told."""
        self._greet()
        found: dict[int, Read] = {}
        places = {client: self._places[client] for client in requests if client in self._places}
        contents = {place: requests[client].content() for client, place in places.items()}
        replies = self._exchange(kind, next(iter(requests.values())).number, contents)
        self._answered = len(replies)
        for client in requests:
            place = places.get(client)
            reply = None if place is None else replies.get(place)
            if place is None:
                self._drop(client, kind, "it has no node")
            elif reply is None:
                self._drop(client, kind, f"no reply within {self.deadline:g} seconds")
            elif reply.has_error():
                self._drop(client, kind, self._failure(reply.error))
            elif FAULT in reply.content.config_records:
                self._drop(client, kind, line(reply.content.config_records[FAULT].get("reason")))
            else:
                try:
                    found[client] = read(client, reply.content)
                except Refused as error:
                    self._drop(client, kind, str(error))
                    self.refused += 1
                else:
                    size = recorddict_to_proto(reply.content).ByteSize()
                    self._told[f"wire_up_{kind}"].append(size)
                    self._told[f"wire_down_{kind}"].append(recorddict_to_proto(contents[place]).ByteSize())
        return found

    def _exchange(self, kind: str, number: int, contents: Mapping[int, RecordDict]) -> dict[int, Message]:
        """By node, the replies that come before the deadline."""
        asked = [
            Message(content, dst_node_id=node, message_type=kind, group_id=str(number), ttl=self.deadline)
            for node, content in contents.items()
        ]
        replies = self._send(asked) if asked else []
        nodes = {message.metadata.message_id: message.metadata.dst_node_id for message in asked}
        return {nodes[reply.metadata.reply_to_message_id]: reply for reply in replies}

    def _greet(self) -> None:
        """Asks nodes that are new which client they are, and whether they fit; a node is greeted once."""
        here = set(self.grid.get_node_ids())
        self._greeted &= here  # who comes back says again who it is
        new = sorted(here - self._greeted)
        for node, reply in sorted(self._exchange(QUERY, 0, {node: self.terms.content() for node in new}).items()):
            if reply.has_error():
                continue  # it is asked again
            self._greeted.add(node)
            try:
                client, counts = self._guest(node, here, reply.content)
            except Refused as error:
                self._told["refused"].append({"node": str(node), "reason": str(error)})
            else:
                self._places[client] = node
                self.held[client] = counts

    def _guest(self, node: int, here: Container[int], content: RecordDict) -> tuple[int, Counts]:
        """Which client a node is, and how many images it has; raises Refused for one that cannot take part."""
        if FAULT in content.config_records:
            raise Refused(line(content.config_records[FAULT].get("reason")))
        about: Mapping[str, Any] = content.config_records.get(ABOUT, {})
        client, examples = about.get("client"), about.get("examples")
        if type(client) is not int or not 0 <= client < self.spec.clients:
            raise Refused(f"it says that it is client {excerpt(client)}: client= must be 0 to {self.spec.clients - 1}")
        if self._places.get(client, node) != node and self._places[client] in here:
            raise Refused(f"it says that it is client {client}, which another node is: give each a number of its own")
        tests = {name: about.get(f"tests_{name}", 0) for name in self.spec.tests}
        plausible = all(type(count) is int and 0 <= count <= MOST_EXAMPLES for count in tests.values())
        if type(examples) is not int or not 1 <= examples <= MOST_EXAMPLES or not plausible:
            raise Refused(f"it says that it has {excerpt(examples)} images")
        return client, Counts(examples, tests)

    def _failure(self, error: Error) -> str:
        if error.code == ErrorCode.MESSAGE_UNAVAILABLE:  # it has expired
            return f"no reply within {self.deadline:g} seconds"
        if error.code == ErrorCode.NODE_UNAVAILABLE:
            return "its node has not been heard of for a while"
        return f"its node failed: {line(error.reason)}"

    def _drop(self, client: int, kind: str, reason: str) -> None:
        if not self.forgiving:
            raise TrainingError(f"client {client}: {reason}")
        self._told["dropped"].append({"client": client, "in": kind, "reason": reason})


def answer(kind: str, content: RecordDict, open_guest: Callable[[], NodeClient], *, trusted: bool) -> RecordDict:
    """What a client answers to a message of the server.

    open_guest: gives the client, and raises a FedPGPError where it cannot; trusted: the server is of the same party,
    and gets to know which test images a client got right, and the text of every error, which may name files.
    """
    try:
        guest = open_guest()
        return _ANSWERS[kind](guest, content, trusted)
    except FedPGPError as error:
        logging.getLogger(__name__).error("%s", error)
        tells = trusted or isinstance(error, TrainingError | NamesError | Refused)
        reason = str(error) if tells else f"{type(error).__name__}: the log of its node says more"
        return RecordDict({FAULT: ConfigRecord({"reason": reason})})


def _greeted(guest: NodeClient, content: RecordDict, trusted: bool) -> RecordDict:
    Terms.of(content).check(guest.terms)
    tests = {f"tests_{name}": count for name, count in guest.counts.tests.items()}
    about = {"client": guest.node.client, "examples": guest.counts.examples, **tests}
    return RecordDict({ABOUT: ConfigRecord({**about})})


def _trained(guest: NodeClient, content: RecordDict, trusted: bool) -> RecordDict:
    spec = guest.node.runner.spec
    request = Request.of(content, spec.device)
    update, after = guest.node.train(request.run, request.number, request.counted, request.download)
    return trained(request, update, after, not spec.finetunes(request.number))


def _evaluated(guest: NodeClient, content: RecordDict, trusted: bool) -> RecordDict:
    request = Request.of(content, guest.node.runner.spec.device)
    found = guest.node.evaluate(
        request.run, request.number, request.counted, request.download, request.alone, request.alphas
    )
    return evaluated(request, found, outcomes=trusted)


_ANSWERS = {QUERY: _greeted, TRAIN: _trained, EVALUATE: _evaluated}
