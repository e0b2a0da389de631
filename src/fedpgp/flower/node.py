"""One client where it works by itself: it holds its own data, and its private part never leaves its directory."""

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
    """What a client keeps of one run, by the round after which it does, in files that only their owner can read.

    The server decides which rounds count: an update that it did not get, or that it refused, is as if it had never been
    made. So the part of the last round that counts stays until a later one does.
    """

    directory: Path

    def after(self, counted: int) -> tuple[int, ClientState | None]:
        """The last round up to `counted` of which something is kept, and what; 0 and None where nothing is.

        Raises OutputError for a file that is damaged, or of a directory that belongs to somebody else.
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
        """Keeps it as of a round, beside the last one that counts; all others go."""
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
    """Raises OutputError for a file or directory in which somebody else may have put, or may read, what is private."""
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
    """Of one client of one run. Raises OutputError for a run's id that is none of ours: it comes from the network."""
    if not RUN.fullmatch(run):
        raise OutputError(
            where="the id of a run",
            allowed="32 hexadecimal digits",
            got=run[:40],
            remedy="Install the same version of fedpgp on the server and on its nodes",
        )
    return OwnStates(directory / run / f"client-{client}")


class Node:
    """A client by itself. runner: of the run, with this client alone; client: its number in the run.

    directory: where what it keeps of each of its runs lies, by the id of the run. Of its
    images the server gets to know how many there are.
    """

    def __init__(self, runner: ClientRunner, directory: Path):
        spec, task = runner.spec, runner.data.task
        (client,) = task.clients
        self.runner, self.client, self.directory = runner, client.id, directory
        self._towers = spec.backbone.towers(spec.method.reads)
        self._terms, self._counts = terms_of(spec.backbone, task), counts_of(task)

    def train(self, request: Request) -> tuple[ClientUpdate, int]:
        """A round's local training, from what the client kept of the last round that counts, or of one before it.

        What it keeps is kept. Gives what comes of it, and the round from which it went on, 0 from the beginning.
        """
        after, own = self._own(request)
        job = self.runner.job(request.number, self.client, request.download, own)
        (update,) = train_clients(self._towers, [job])
        kept = own_after(self.runner.spec, request.number, update)
        own_states(self.directory, request.run, self.client).keep(request.number, after, kept)
        return update, after

    def evaluate(self, request: Request) -> Evaluation:
        """How the client's model, and the shared part alone, do after a round; means are over this client alone."""
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
        """What the client answers; raises FedPGPError where it cannot. trusted: see `answer`."""
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
    """An exception at a node that fedpgp did not raise on purpose."""


def answer(kind: str, content: RecordDict, open_node: Callable[[], Node], *, trusted: bool) -> RecordDict:
    """What a client answers to a message of the server; nothing is raised.

    open_node: gives the client; trusted: the server is of the same party, and gets to know which test images a client
    got right, and the text of every error. Otherwise the text, which may name files and classes, stays in the node's
    log, and the server learns the type of the error and the phase.
    """
    try:
        return open_node().reply(kind, content, trusted)
    except FedPGPError as error:
        log.error("%s", error)
        fault = error
    except Exception as error:
        log.exception("an unexpected error in %s", kind)
        fault = NodeError(f"{type(error).__name__}: {error}")
    reason = str(fault) if trusted else f"{type(fault).__name__} in {kind}. Read the log of the node."
    return RecordDict({FAULT: ConfigRecord({"reason": reason})})
