"""One client where it works by itself: it holds its own data, and its private part never leaves its directory."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from fedpgp.aggregators import Download, Tensors
from fedpgp.backbone import Towers
from fedpgp.errors import OutputError
from fedpgp.evaluation.evaluator import Evaluation
from fedpgp.federation.client import ClientUpdate, train_clients
from fedpgp.federation.client_runner import ClientRunner
from fedpgp.federation.rounds import own_after
from fedpgp.federation.state import ClientState, grouped, on_device, ungrouped
from fedpgp.runtime.files import OWNER_ALONE, make_directory, tensor_bytes, write
from fedpgp.runtime.workers import Workers

RUN = re.compile(r"[0-9a-f]{32}")


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
        found = max((number for number in self._rounds() if number <= counted), default=0)
        if not found:
            return 0, None
        file = self._file(found)
        try:
            return found, ClientState(**ungrouped(load_file(file), ClientState))
        except (SafetensorError, OSError, KeyError) as error:
            raise OutputError(
                f"{file} cannot be read: {error}; restore it, or remove it and the client begins again"
            ) from error

    def keep(self, number: int, counted: int, state: ClientState) -> None:
        """Keeps it as of a round, beside the last one that counts; all others go."""
        try:
            make_directory(self.directory, OWNER_ALONE)
            check_owner(self.directory)
            write(self._file(number), tensor_bytes(grouped(state)), mode=0o600)
            for gone in self._rounds():
                if gone not in (number, counted):
                    with suppress(FileNotFoundError):
                        self._file(gone).unlink()
        except OSError as error:
            raise OutputError(
                f"{self.directory} cannot be written: {error.strerror or error}; the private part of the round before"
                " is safe: free space, or name another directory with state="
            ) from error

    def _rounds(self) -> list[int]:
        if not self.directory.exists():
            return []
        check_owner(self.directory)
        names = (file.stem.removeprefix("round-") for file in self.directory.glob("round-*.safetensors"))
        return sorted(int(name) for name in names if name.isdecimal())

    def _file(self, number: int) -> Path:
        return self.directory / f"round-{number:06d}.safetensors"


def check_owner(path: Path) -> None:
    """Raises OutputError for a file or directory in which somebody else may have put, or may read, what is private."""
    if os.name != "posix":
        return
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise OutputError(
            f"{path} belongs to another user (id {found.st_uid}): run the node as that user, or name"
            " another directory with state="
        )
    if found.st_mode & 0o077:
        mode = "700" if path.is_dir() else "600"
        raise OutputError(f"{path} is open to other users: close it with chmod {mode} {path}")


@dataclass(frozen=True)
class Node:
    """runner: of the run, with the images of this client alone; client: its number in the run.

    directory: where what it keeps of each of its runs lies, by the run's id.
    """

    runner: ClientRunner
    towers: Towers
    client: int
    directory: Path

    def train(self, run: str, number: int, counted: int, download: Download) -> tuple[ClientUpdate, int]:
        """A round's local training, from what the client kept of the last round that counts, or of one before it.

        What it keeps is kept. Gives what comes of it, and the round from which it went on, 0 from the beginning.
        """
        after, own = self._own(run, counted)
        (update,) = train_clients(self.towers, [self.runner.job(number, self.client, download, own)])
        self._states(run).keep(number, after, own_after(self.runner.spec, number, update))
        return update, after

    def evaluate(
        self, run: str, number: int, counted: int, download: Download, alone: Tensors, alphas: Sequence[float]
    ) -> Evaluation:
        """How the client's model, and the shared part alone, do after a round; means are over this client alone.

        alone: what of the server's shared part is another than this client is sent.
        """
        _, own = self._own(run, counted)
        with Workers(self.towers, 1) as workers:
            shared = {**{name: download.shared[name] for name in self.runner.spec.shared}, **alone}
            return self.runner.evaluate(number, shared, lambda _: download, lambda _: own, workers, alphas)

    def _own(self, run: str, counted: int) -> tuple[int, ClientState]:
        after, kept = self._states(run).after(counted)
        spec = self.runner.spec
        return after, spec.first(self.client) if kept is None else on_device(kept, spec.device)

    def _states(self, run: str) -> OwnStates:
        return own_states(self.directory, run, self.client)


def own_states(directory: Path, run: str, client: int) -> OwnStates:
    """Of one client of one run. Raises OutputError for a run's id that is none of ours: it comes from the network."""
    if not RUN.fullmatch(run):
        raise OutputError(f"the id of a run must be 32 hexadecimal digits, got {run[:40]!r}")
    return OwnStates(directory / run / f"client-{client}")
