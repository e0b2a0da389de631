"""Flower's SuperNode with a guard: it runs only apps that its owner agreed to, and sends no text of an error.

    python -m fedpgp.flower.deployment.supernode --experiment FILE [--app HASH]... [options of flower-supernode]

With Flower's option --trusted-entities, a SuperNode runs only signed apps. Here this process signs: with a new key, it
signs each app that `AppPolicy` accepts, between the server and Flower. An app that arrives in another way has no
signature, and Flower refuses it.

This SuperNode also ends when it has given up. Flower's own does not: its main thread ends, for example when a TLS
handshake is interrupted twice, but a thread of its servers continues, and no service manager restarts it.
"""

import argparse
import base64
import hashlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign
from flwr.supercore.run import Run
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

from fedpgp.errors import FedPGPError
from fedpgp.flower.deployment.app_policy import AppPolicy, AppRefused

CONNECTION = "http_request_response"  # Flower's name of the function that connects a node with its server
SIGNER = "fpk_fedpgp"  # name of the key in Flower
LICENCE = "valid_license"  # without this entry, Flower does not check signatures

log = logging.getLogger("flwr")
Connect = Callable[..., AbstractContextManager[tuple[Any, ...]]]


@contextmanager
def guarded(policy: AppPolicy) -> Iterator[list[str]]:
    """Let SuperNodes of this process run only apps that a policy accepts, until the block ends.

    Yields
    ------
    list[str]
        Further options with which the SuperNode must be started.

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
    with TemporaryDirectory(prefix="fedpgp-") as directory:
        trusted = Path(directory) / "trusted.yaml"
        trusted.write_text(json.dumps({SIGNER: public.decode()}), encoding="utf-8")  # JSON is also YAML
        setattr(start_client_internal, CONNECTION, _guard(connect, policy, key))
        try:
            yield ["--trusted-entities", str(trusted)]
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


def main() -> None:
    """Run the guarded SuperNode and exit with its code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--experiment", type=Path, required=True)
    parser.add_argument("--app", action="append", default=[])
    options, flowers = parser.parse_known_args()
    code = 1
    try:
        with guarded(AppPolicy(options.experiment, options.app)) as trusted:
            sys.argv[1:] = [*flowers, *trusted]
            flower_supernode()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
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
