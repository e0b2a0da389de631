"""Flower's SuperNode, which runs only what its owner agreed to, tells no error's text, and ends when it has given up.

    python -m fedpgp.flower.deployment.supernode --experiment FILE [--app HASH]... [options of flower-supernode]

Flower's option --trusted-entities takes only apps that somebody has signed. Here the process itself is that somebody: a
new key signs an app that `AppPolicy` accepts, on its way from the server to Flower. What does not come this way has no
signature, and Flower refuses it.

Flower's own SuperNode stays when it has given up: its main thread ends, as when a handshake of TLS is cut twice, a
thread of its servers goes on, and nobody starts it again.
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

CONNECTION = "http_request_response"  # the name in Flower of what connects a node with its server
SIGNER = "fpk_fedpgp"  # Flower's name of the key
LICENCE = "valid_license"  # without it Flower does not look at signatures

log = logging.getLogger("flwr")
Connect = Callable[..., AbstractContextManager[tuple[Any, ...]]]


@contextmanager
def guarded(policy: AppPolicy) -> Iterator[list[str]]:
    """Until the block ends a SuperNode of this process runs only what a policy accepts, with the options that it gives.

    Raises FedPGPError where this version of Flower connects in another way.
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
        trusted.write_text(json.dumps({SIGNER: public.decode()}), encoding="utf-8")  # which is YAML, too
        setattr(start_client_internal, CONNECTION, _guard(connect, policy, key))
        try:
            yield ["--trusted-entities", str(trusted)]
        finally:
            setattr(start_client_internal, CONNECTION, connect)


def _guard(connect: Connect, policy: AppPolicy, key: Ed25519PrivateKey) -> Connect:
    """Flower's connection of a node, on which only what a policy accepts comes in, and no error's text goes out."""

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
                    return Fab(fab.hash_str, b"", {LICENCE: SIGNER})  # which Flower refuses
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
    """An error as its type and the phase: what Flower has of an exception may name files and classes."""
    code = message.error.code
    kind = next((name for name, value in vars(ErrorCode).items() if value == code), f"error {code}")
    plain = deepcopy(message)
    plain.error = Error(code, f"{kind} in {message.metadata.message_type}. Read the log of the node.")
    plain.metadata.__dict__["_message_id"] = plain.object_id  # as Flower sets it
    return plain


def main() -> None:
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
