"""One client on its own machine: it has its own data, and its private part never leaves its directory."""

import logging
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedpgp.data.client_task import counts_of
from fedpgp.errors import FedPGPError, OutputError
from fedpgp.evaluation.evaluator import Evaluation
from fedpgp.federation.client import ClientUpdate, train_clients
from fedpgp.federation.client_runner import ClientRunner
from fedpgp.federation.rounds import own_after
from fedpgp.federation.state import ClientState, grouped, on_device, ungrouped
from fedpgp.flower.client_app import ABOUT, EVALUATE, QUERY
from fedpgp.flower.messages import FAULT, Request, check_terms, evaluated, terms_of, trained
from fedpgp.runtime.files import OWNER_ALONE, make_directory, tensor_bytes, write
from fedpgp.runtime.workers import Workers

RUN = re.compile(r"[0-9a-f]{32}")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnStates:
    """A client's private parts in one run, one file for each round. Only the owner of the files can read them.

    The server decides which rounds count: an update that the server did not receive, or refused, does not count. So a
    client keeps the private part of the last round that counts until a later round counts.
    """

    directory: Path

    def after(self, counted: int) -> tuple[int, ClientState | None]:
        """Return the last saved round up to `counted` and its private part, or 0 and None if no round is saved.

        Raises
        ------
        OutputError
            If the file is damaged, or the directory belongs to another user.
        """
        number = max((number for number in self._rounds() if number <= counted), default=0)
        if not number:
            return 0, None
        file = self._file(number)
        try:
            return number, ungrouped(load_file(file), ClientState)
        except (SafetensorError, OSError, KeyError) as error:
            raise OutputError(
                f"the private part cannot be read: {error}",
                where=str(file),
                remedy="Restore the file from a backup, or remove it to train the private part from the start",
            ) from error

    def keep(self, number: int, counted: int, state: ClientState) -> None:
        """Save the private part of round `number` and keep the file of round `counted`; remove all other files."""
        try:
            make_directory(self.directory, OWNER_ALONE)
            check_owner(self.directory)
            write(self._file(number), tensor_bytes(grouped(state)), mode=0o600)
            for other in {*self._rounds()} - {number, counted}:
                self._file(other).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"the private part cannot be written, but the previous round's is saved: {error.strerror or error}",
                where=str(self.directory),
                remedy="Free disk space, or choose another directory with state in node.toml",
            ) from error

    def _rounds(self) -> list[int]:
        if not self.directory.exists():
            return []
        check_owner(self.directory)
        names = (file.stem.removeprefix("round-") for file in self.directory.glob("round-*.safetensors"))
        return [int(name) for name in names if name.isdecimal()]

    def _file(self, number: int) -> Path:
        return self.directory / f"round-{number:06d}.safetensors"


def check_owner(path: Path) -> None:
    """Raise OutputError if another user owns a file or directory, or has access to it."""
    if os.name != "posix":
        return
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise OutputError(
            f"the owner is another user, with id {status.st_uid}",
            where=str(path),
            remedy="Run the node as that user, or choose another directory with state in node.toml",
        )
    if status.st_mode & 0o077:
        mode = "700" if path.is_dir() else "600"
        raise OutputError(
            "other users have access to it",
            where=str(path),
            remedy=f"Close it with `chmod {mode} {shlex.quote(str(path))}`",
        )


def own_states(directory: Path, run: str, client: int) -> OwnStates:
    """Return the private parts of one client of one run.

    Raises
    ------
    OutputError
        If the id of the run, which comes from the network, is not valid.
    """
    if not RUN.fullmatch(run):
        raise OutputError(
            where="the id of a run",
            allowed="32 hexadecimal digits",
            got=run[:40],
            remedy="Install the same version of fedpgp on the server and on its nodes",
        )
    return OwnStates(directory / run / f"client-{client}")


class Node:
    """A client on its own machine. The server learns only how many images it has.

    Parameters
    ----------
    runner
        The run, with this client only.
    directory
        Directory of the private parts, with a directory for each run.

    Attributes
    ----------
    client
        Number of the client in the run.
    """

    def __init__(self, runner: ClientRunner, directory: Path):
        spec, task = runner.spec, runner.data.task
        (client,) = task.clients
        self.runner, self.client, self.directory = runner, client.id, directory
        self._towers = spec.backbone.towers(spec.method.reads)
        self._terms, self._counts = terms_of(spec.backbone, task), counts_of(task)

    def train(self, request: Request) -> tuple[ClientUpdate, int]:
        """Train for one round and save the private part.

        Training continues from the private part of the last round that counts, or of the last saved round before it.

        Returns
        -------
        tuple[ClientUpdate, int]
            The update, and the round from whose private part the client continued; 0 for a new private part.
        """
        after, own = self._own(request)
        job = self.runner.job(request.number, self.client, request.download, own)
        (update,) = train_clients(self._towers, [job])
        kept = own_after(self.runner.spec, request.number, update)
        own_states(self.directory, request.run, self.client).keep(request.number, after, kept)
        return update, after

    def evaluate(self, request: Request) -> Evaluation:
        """Evaluate the client's model and the shared part after a round; the means are over this client only."""
        _, own = self._own(request)
        sent = request.download
        shared = {**{name: sent.shared[name] for name in self.runner.spec.shared}, **request.alone}
        with Workers(self._towers, 1) as workers:
            return self.runner.evaluate(request.number, shared, lambda _: sent, lambda _: own, workers, request.alphas)

    def _own(self, request: Request) -> tuple[int, ClientState]:
        after, kept = own_states(self.directory, request.run, self.client).after(request.counted)
        spec = self.runner.spec
        return after, spec.first(self.client) if kept is None else on_device(kept, spec.device)

    def reply(self, kind: str, content: RecordDict, trusted: bool) -> RecordDict:
        """Return the client's answer; raise FedPGPError if it cannot answer. For `trusted`, see `answer`."""
        if kind == QUERY:
            check_terms(content, self._terms)
            tests = {f"tests_{name}": count for name, count in self._counts.tests.items()}
            return RecordDict(
                {ABOUT: ConfigRecord({"client": self.client, "examples": self._counts.examples, **tests})}
            )
        spec = self.runner.spec
        request = Request.of(content, spec.device)
        if kind == EVALUATE:
            return evaluated(request, self.evaluate(request), outcomes=trusted)
        update, after = self.train(request)
        return trained(request, update, after, sends=not spec.finetunes(request.number))


class NodeError(FedPGPError):
    """An exception on a node that fedpgp did not raise on purpose."""


def answer(kind: str, content: RecordDict, open_node: Callable[[], Node], *, trusted: bool) -> RecordDict:
    """Return a client's answer to a message of the server. No exception leaves this function.

    Parameters
    ----------
    kind
        Kind of the message.
    content
        The message.
    open_node
        Function that opens the client.
    trusted
        Whether the server belongs to the same party. If it does, it learns which test images a client classified
        correctly, and the text of every error. Otherwise the text, which may name files and classes, stays in the
        node's log, and the server learns only the type of the error and the phase.
    """
    try:
        return open_node().reply(kind, content, trusted)
    except FedPGPError as error:
        log.error("%s", error)
        fault = error
    except Exception as error:
        log.exception("unexpected error in %s", kind)
        fault = NodeError(f"{type(error).__name__}: {error}")
    reason = str(fault) if trusted else f"{type(fault).__name__} in {kind}"
    return RecordDict({FAULT: ConfigRecord({"reason": reason})})
