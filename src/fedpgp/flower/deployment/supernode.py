"""Flower's SuperNode with a guard: it runs only apps that its owner agreed to, and sends no text of an error.

    python -m fedpgp.flower.deployment.supernode --experiment FILE [--app HASH]... --superlink ADDRESS
        --node-config FILE [--root-certificates FILE --key FILE] [--monitor PORT]

If a SuperNode has a list of trusted entities, it runs only signed apps. Here this process signs: with a new key, it
signs each app that `AppPolicy` accepts, between the server and Flower. An app that arrives in another way has no
signature, and Flower refuses it.

This SuperNode differs from the command flower-supernode in three ways. It runs apps as `app_process` describes. It
listens on no port, because its processes do not need one. It ends when it has given up: the main thread of
flower-supernode ends, for example when a TLS handshake is interrupted twice, but the thread of its HTTP server
continues, and no service manager restarts it.
"""

import argparse
import base64
import hashlib
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message
from flwr.common.config import parse_config_args
from flwr.common.constant import ISOLATION_MODE_PROCESS, ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal
from flwr.supernode.nodestate import NodeStateFactory

from fedpgp.errors import FedPGPError, OutputError
from fedpgp.flower.deployment.app_policy import AppPolicy, AppRefused
from fedpgp.flower.deployment.app_process import AnsweringState, prepare
from fedpgp.flower.deployment.credentials import COPY_AGAIN
from fedpgp.flower.deployment.monitor import NodeActivity, monitored
from fedpgp.flower.deployment.processes import STILL_CONNECTED

CONNECTION = "http_request_response"  # Flower's name of the function that connects a node with its server
SIGNER = "fpk_fedpgp"  # name of the key in Flower
LICENCE = "valid_license"  # without this entry, Flower does not check signatures

log = logging.getLogger("flwr")
Connect = Callable[..., AbstractContextManager[tuple[Any, ...]]]


@contextmanager
def guarded(policy: AppPolicy) -> Iterator[dict[str, str]]:
    """Let SuperNodes of this process run only apps that a policy accepts, until the block ends.

    Yields
    ------
    dict[str, str]
        The trusted entities with which the SuperNode must be started.

    Raises
    ------
    FedPGPError
        If this version of Flower connects in another way.
    """
    connect: Connect | None = getattr(start_client_internal, CONNECTION, None)
    if connect is None:
        raise FedPGPError(
            "fedpgp cannot keep this version of Flower from running foreign apps, so the node does not start",
            remedy='Install the version that fedpgp needs with `pip install "fedpgp[flower]"`',
        )
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    setattr(start_client_internal, CONNECTION, _guard(connect, policy, key))
    try:
        yield {SIGNER: public.decode()}
    finally:
        setattr(start_client_internal, CONNECTION, connect)


def _guard(connect: Connect, policy: AppPolicy, key: Ed25519PrivateKey) -> Connect:
    """Guard Flower's connection of a node: let in only apps that the policy accepts, and send no text of an error."""

    @contextmanager
    def guard(*arguments: Any, **named: Any) -> Iterator[tuple[Any, ...]]:
        with connect(*arguments, **named) as connection:
            node, receive, send, get_run, get_fab, pull_object, push_object, confirm = connection
            runs: dict[int, Run] = {}

            def kept_run(run_id: int) -> Run:
                runs[run_id] = get_run(run_id)
                return runs[run_id]

            def checked_fab(fab_hash: str, run_id: int) -> Fab:
                fab = get_fab(fab_hash, run_id)
                try:
                    policy.check(runs.pop(run_id), fab)
                except Exception as error:
                    log.error("%s", error if isinstance(error, AppRefused) else f"an app is refused: {error!r}")
                    return Fab(fab.hash_str, b"", {LICENCE: SIGNER})  # Flower refuses it: it has no signature
                return Fab(fab.hash_str, fab.content, {LICENCE: SIGNER, SIGNER: _signature(fab.content, key)})

            def send_plain(message: Message, tree: ObjectTree, seconds: float) -> tuple[set[str], str]:
                if not message.has_error():
                    return send(message, tree, seconds)
                log.error("a message could not be answered: %s", message.error.reason)
                plain = without_text(message)
                wanted, session = send(plain, get_object_tree(plain), seconds)
                for identifier in wanted:
                    push_object(plain.metadata.run_id, session, identifier, plain.deflate())
                return set(), session

            yield node, receive, send_plain, kept_run, checked_fab, pull_object, push_object, confirm

    return guard


def _signature(content: bytes, key: Ed25519PrivateKey) -> str:
    now = int(time.time())
    signed = key.sign(create_message_to_sign(hashlib.sha256(content).digest(), now))
    return json.dumps({"signed_at": now, "signature": base64.urlsafe_b64encode(signed).decode()})


def without_text(message: Message) -> Message:
    """Replace the text of an error by its type and the phase: Flower's text may name files and classes."""
    code = message.error.code
    kind = next((name for name, value in vars(ErrorCode).items() if value == code), f"error {code}")
    plain = deepcopy(message)
    plain.error = Error(code, f"{kind} in {message.metadata.message_type}")
    plain.metadata.__dict__["_message_id"] = plain.object_id  # as Flower does
    return plain


def read_key(path: Path) -> EllipticCurvePrivateKey:
    """Return the private key of a node; raise OutputError if the file does not have one."""
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise OutputError(f"the key cannot be read: {error}", where=str(path), remedy=COPY_AGAIN) from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise OutputError("the file does not have an elliptic-curve key", where=str(path), remedy=COPY_AGAIN)
    return key


def run_supernode(options: argparse.Namespace) -> None:
    """Run a guarded SuperNode until it ends with SystemExit or another exception."""
    states = NodeStateFactory(ObjectStoreFactory())
    states.state_instance = AnsweringState(states.objectstore_factory.store())
    certificates = options.root_certificates
    key = None if options.key is None else read_key(options.key)
    activity = NodeActivity()
    with (
        monitored("127.0.0.1", options.monitor, "monitor in node.toml", activity.report),
        guarded(AppPolicy(options.experiment, options.app)) as trusted,
    ):
        setattr(start_client_internal, CONNECTION, activity.noting(getattr(start_client_internal, CONNECTION)))
        prepare()
        start_client_internal.start_client_internal(
            state_factory=states,
            server_address=options.superlink,
            node_config=parse_config_args([str(options.node_config)]),
            root_certificates=None if certificates is None else certificates.read_bytes(),
            insecure=certificates is None,
            authentication_keys=None if key is None else (key, key.public_key()),
            isolation=ISOLATION_MODE_PROCESS,
            trusted_entities=trusted,
        )


def report_thread(ended: threading.ExceptHookArgs) -> None:
    """Report the exception that ended a thread, unless the server has refused the key: the SuperNode then ends, too."""
    error = ended.exc_value
    if not (isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED):
        threading.__excepthook__(ended)


def is_still_connected(ended: SystemExit) -> bool:
    """Return whether Flower ended because the server counts an earlier process with this key as connected."""
    cause = ended.__context__  # Flower ends in the handler of this exception
    if not isinstance(cause, httpx.HTTPStatusError):
        return False
    reason = FlowerError.from_json(cause.response.text)
    return reason is not None and reason.code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED


def main() -> None:
    """Run the guarded SuperNode and exit with its code."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--experiment", type=Path, required=True)
    parser.add_argument("--app", action="append", default=[])
    parser.add_argument("--superlink", required=True)
    parser.add_argument("--node-config", type=Path, required=True)
    parser.add_argument("--root-certificates", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--monitor", type=int, default=0)
    code = 1
    threading.excepthook = report_thread
    try:
        run_supernode(parser.parse_args())
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        code = STILL_CONNECTED if is_still_connected(ended) else code
    except FedPGPError as error:
        sys.stderr.write(f"error: {error}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
