"""Flower's SuperNode as fedpgp starts it, on a connection without a server: received apps and sent errors."""

import sys
import threading
from contextlib import contextmanager

import apps
import httpx
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import ErrorCode
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory
from raising import raises

from fedpgp.errors import FedPGPError
from fedpgp.flower.deployment import supernode
from fedpgp.flower.deployment.app_policy import AppPolicy, app_hash, unpacked
from fedpgp.flower.deployment.app_process import AnsweringState, prepare

NODE = 11


class OverError(BaseException):
    """Ends a SuperNode; Flower does not catch this exception."""


class Server:
    """A server that sends one message of a run, and stores the node's replies."""

    def __init__(self, run, fab, answered=False):
        self.run, self.fab, self.answered = run, fab, answered
        self.states = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
        self.states.state_instance = AnsweringState(self.states.objectstore_factory.store())
        self.replies, self.pushed = [], []
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run.run_id, 1  # as in the server's app
        self.message = Message(RecordDict(), NODE, "query")
        self.message.metadata.__dict__["_message_id"] = self.message.object_id
        self._waiting = [self.message]

    @contextmanager
    def connect(self, *_, **__):
        objects = {name: one.deflate() for name, one in get_all_nested_objects(self.message).items()}

        def receive():
            if not self._waiting:
                raise OverError
            message = self._waiting.pop()
            return message, get_object_tree(message)

        def send(message, tree, seconds):
            self.replies.append(message)
            return {tree.object_id}, "session"

        def confirm(run_id, identifier):
            if not self.answered:
                raise OverError  # the node would now run the app

        def push(run_id, session, identifier, content):
            self.pushed.append(content)

        yield (
            NODE,
            receive,
            send,
            lambda run: self.run,
            lambda *_: self.fab,
            lambda run, name: objects[name],
            push,
            confirm,
        )

    @property
    def stored(self):
        """The app that the node has accepted, or None."""
        return self.states.state().get_fab(self.fab.hash_str)


def served(server, policy, monkeypatch, guard=True):
    """Run Flower's own main loop with a server, with the guard or only with the guard's options."""
    monkeypatch.setattr(start_client_internal, "register_signal_handlers", lambda **_: None)
    monkeypatch.setattr(start_client_internal, supernode.CONNECTION, server.connect)
    with supernode.guarded(policy) as trusted:
        if not guard:  # as if Flower no longer used this name
            monkeypatch.setattr(start_client_internal, supernode.CONNECTION, server.connect)
        with pytest.raises(OverError):
            start_client_internal.start_client_internal(
                state_factory=server.states,
                server_address="127.0.0.1:1",
                node_config={},
                insecure=True,
                isolation="process",
                trusted_entities=trusted,
            )


@pytest.fixture
def own(layout):
    """Return the federation's own app, as a server sends it."""
    content = build_fab_from_disk(layout.app)
    return apps.sent(content, unpacked(content))


@pytest.fixture
def foreign(layout):
    (layout.app / "federation" / "client_app.py").write_text("raise SystemExit('foreign')\n")
    content = build_fab_from_disk(layout.app)
    return apps.sent(content, unpacked(content))


def test_flowers_own_loop_takes_the_nodes_own_app(own, policy, monkeypatch):
    server = Server(*own)
    served(server, policy, monkeypatch)
    assert server.stored.content == own[1].content
    assert server.replies == []


def test_flowers_own_loop_does_not_get_a_foreign_app_and_the_log_names_it(foreign, policy, monkeypatch, caplog):
    server = Server(*foreign)
    monkeypatch.setattr(supernode.log, "propagate", True)
    served(server, policy, monkeypatch)
    assert server.stored is None
    (reply,) = server.replies
    assert reply.error.code == ErrorCode.INVALID_FAB
    assert reply.error.reason.startswith("INVALID_FAB in query")
    assert "app 'fedpgp/ours' with the hash" in caplog.text
    assert "federation/client_app.py" in caplog.text


def test_if_flower_connected_in_another_way_the_node_would_refuse_every_app(own, policy, monkeypatch):
    server = Server(*own)
    served(server, policy, monkeypatch, guard=False)
    assert server.stored is None
    assert server.replies[0].error.code == ErrorCode.INVALID_FAB


def test_a_node_that_cannot_be_guarded_does_not_start(policy, monkeypatch):
    monkeypatch.delattr(start_client_internal, supernode.CONNECTION)
    with raises(FedPGPError, problem="Flower", remedy="fedpgp[flower]"), supernode.guarded(policy):
        pass


def test_an_error_leaves_the_node_as_its_type_and_phase(own, policy, monkeypatch):
    """Flower answers with the text of an exception, for example if the disk is full when it unpacks an app."""
    server = Server(*own)
    text = "<class 'OSError'>:<'[Errno 28] No space left on device: /srv/site1/crown'>"
    failed = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text), reply_to=server.message)
    connect = supernode._guard(server.connect, policy, supernode.Ed25519PrivateKey.generate())
    state, store = server.states.state(), server.states.objectstore_factory.store()
    start_client_internal._insert_message(failed, state, store)
    with connect() as (_, _, send, _, _, _, push, _):
        start_client_internal._push_messages(state=state, object_store=store, send=send, push_object=push)
    (reply,), (pushed,) = server.replies, server.pushed
    assert reply.error.reason.startswith("CLIENT_APP_RAISED_EXCEPTION in query")
    assert reply.metadata.reply_to_message_id == server.message.metadata.message_id
    assert Message.inflate(pushed).error == reply.error
    assert b"crown" not in pushed
    assert not state.get_messages_legacy(is_reply=True)  # and the reply is not sent again


APP = """
import os
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.query()
def answer(message, context):
    starts = Path({starts!r})
    with starts.open("a") as file:
        file.write("x")
    number = starts.stat().st_size
    if number <= {kills}:
        os.kill(os.getpid(), 9)
    if {fails}:
        raise ValueError("crown")
    context.state["seen"] = ConfigRecord({{"starts": number}})
    return Message(RecordDict({{"answer": ConfigRecord({{"start": number}})}}), reply_to=message)
"""


def answered(layout, tmp_path, monkeypatch, kills=0, fails=False):
    """Run an app that the owner allowed, whose process is killed some times, and return the server and the starts."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    starts = tmp_path / "starts"
    text = APP.format(starts=str(starts), kills=kills, fails=fails)
    (layout.app / "federation" / "client_app.py").write_text(text)
    content = build_fab_from_disk(layout.app)
    files = unpacked(content)
    server = Server(*apps.sent(content, files), answered=True)
    prepare()
    served(server, AppPolicy(layout.node(0) / "experiment.toml", [app_hash(files)]), monkeypatch)
    return server, starts.stat().st_size


@pytest.mark.slow
def test_an_app_whose_process_is_killed_is_started_again_and_answers_once(layout, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(supernode.log, "propagate", True)
    server, starts = answered(layout, tmp_path, monkeypatch, kills=2)
    (reply,) = server.replies
    assert starts == 3
    assert not reply.has_error()
    assert reply.metadata.reply_to_message_id == server.message.metadata.message_id
    state = server.states.state()
    assert state.get_run_series_context(server.run.series_id).state["seen"]["starts"] == 3
    assert caplog.text.count("ended with code -9 before it answered") == 2
    assert not server.states.objectstore_factory.store().store  # nothing of the message is kept


@pytest.mark.slow
def test_an_app_whose_process_is_always_killed_or_that_fails_is_answered_with_an_error(layout, tmp_path, monkeypatch):
    server, starts = answered(layout, tmp_path, monkeypatch, kills=9)
    assert starts == 3
    (reply,) = server.replies
    assert reply.error.reason.startswith("CLIENT_APP_CRASHED in query")
    (tmp_path / "starts").unlink()
    server, starts = answered(layout, tmp_path, monkeypatch, fails=True)
    assert starts == 1
    (reply,) = server.replies
    assert reply.error.reason.startswith("CLIENT_APP_RAISED_EXCEPTION in query")
    assert not any(b"crown" in content for content in server.pushed)


def test_the_exception_of_a_thread_is_reported_unless_the_server_refuses_the_key(capsys):
    for code in (401, 500):
        request = httpx.Request("POST", "https://server")
        error = httpx.HTTPStatusError(f"{code}", request=request, response=httpx.Response(code, request=request))
        supernode.report_thread(threading.ExceptHookArgs((type(error), error, None, threading.current_thread())))
    said = capsys.readouterr().err
    assert "500" in said and "401" not in said


@pytest.mark.parametrize(
    ("body", "expected"),
    [('{"code": 2004, "detail": ""}', True), ('{"code": 2005, "detail": ""}', False), ("no JSON", False)],
)
def test_flower_ends_with_an_own_code_if_an_earlier_process_is_still_connected(body, expected):
    request = httpx.Request("POST", "http://127.0.0.1")
    with pytest.raises(SystemExit) as ended:
        try:
            raise httpx.HTTPStatusError("", request=request, response=httpx.Response(400, text=body, request=request))
        except httpx.HTTPStatusError:
            sys.exit(1)
    assert supernode.is_still_connected(ended.value) == expected
