"""What a federation keeps from round to round, in one SQLite file: a round is written whole or not at all.

There is no state of generators to keep: every draw is a function of (seed, purpose, round, client), see
`fedpgp.runtime.randomness`.
"""

import dataclasses
import json
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.torch import load
from torch import Tensor

from fedpgp.aggregators import Server, Tensors
from fedpgp.errors import InUseError, OutputError
from fedpgp.evaluation.evaluator import Evaluation, Point
from fedpgp.runtime.files import tensor_bytes

FILE = "state.sqlite"  # in a run directory
SCHEMA = 3  # of the tables below
PATIENCE = 2.0  # seconds for another process that only looks, as `fedpgp show` does
TABLES = """
CREATE TABLE origin (content TEXT NOT NULL);
CREATE TABLE server (tensors BLOB NOT NULL);
CREATE TABLE clients (client INTEGER PRIMARY KEY, tensors BLOB NOT NULL);
CREATE TABLE rounds (number INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE evaluation (arrays BLOB NOT NULL, means TEXT NOT NULL);
"""


@dataclass(frozen=True)
class ClientState:
    """What a client keeps from round to round; nothing of it is ever sent.

    private: the method's private part; kept: the shared part as it trained it last, where its model is made of that;
    control: the aggregator's; optimizer: where federation.optimizer_state is "keep", what its optimizer remembers, as
    "KEY/NAME", such as "momentum_buffer/U".
    """

    private: Tensors = field(default_factory=dict)
    kept: Tensors = field(default_factory=dict)
    control: Tensors = field(default_factory=dict)
    optimizer: Tensors = field(default_factory=dict)


Kept = TypeVar("Kept", Server, ClientState)


class State:
    """What the server knows and what every client that took part keeps, the records, and the last evaluation.

    Tensors are kept as safetensors; those of the server and of a client in groups, see `grouped`. While a state is
    open, no other process can open its file.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path | None):
        self._connection, self._path = connection, path
        self._file = None if path is None else path.stat()

    @classmethod
    def create(cls, path: Path | None = None, origin: Mapping[str, Any] | None = None) -> "State":
        """A new file, or without a path SQLite's private temporary database, which is gone when it is closed.

        origin: what the run is, in JSON's types, to be compared when it is resumed.
        """
        state = cls._connect("" if path is None else str(path.absolute()), path)
        with state.round():
            for statement in TABLES.split(";"):
                state._execute(statement)
            state._execute(f"PRAGMA user_version = {SCHEMA}")
            state._execute("INSERT INTO origin VALUES (?)", json.dumps(origin or {}))
        return state

    @classmethod
    def open(cls, path: Path, patience: float = PATIENCE) -> "State":
        """The state that a file holds.

        Raises OutputError where it is missing, damaged or of another version of fedpgp, InUseError where it stays
        open in another process. patience: seconds to wait for that one.
        """
        state = cls._connect(f"{path.absolute().as_uri()}?mode=rw", path, patience)
        try:
            state._execute("BEGIN EXCLUSIVE")  # and, as the locking mode says, for as long as the state is open
            state._execute("COMMIT")
            ((verdict,),) = state._execute("PRAGMA quick_check(1)")
            if verdict != "ok":
                raise state._damaged(verdict)
            ((schema,),) = state._execute("PRAGMA user_version")
            if schema == 0:
                raise state._damaged("it holds nothing")
            if schema != SCHEMA:
                raise OutputError(
                    f"{path} has schema {schema}, this version of fedpgp reads schema {SCHEMA}: resume it with the"
                    " fedpgp that wrote it, or start the run again"
                )
        except BaseException:
            state.close()
            raise
        return state

    @classmethod
    def _connect(cls, name: str, path: Path | None, patience: float = 0) -> "State":
        try:
            connection = sqlite3.connect(name, timeout=patience, isolation_level=None, uri=name.startswith("file:"))
        except sqlite3.Error as error:
            raise OutputError(f"{path} cannot be opened: {error}; name the directory of an unfinished run") from error
        state = cls(connection, path)
        state._execute("PRAGMA locking_mode = EXCLUSIVE")
        return state

    def close(self) -> None:
        self._connection.close()

    def remove(self) -> None:
        """Closes the state and deletes its file, when what it holds has been written elsewhere.

        Another file that has taken its place stays.
        """
        path, ours = self._path, False
        with suppress(FileNotFoundError):  # asked while it is open: until it is closed no other file gets its inode
            ours = path is not None and self._file is not None and os.path.samestat(path.stat(), self._file)
        self.close()
        if path is not None and ours:
            remove(path)

    def __enter__(self) -> "State":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------ reading

    def origin(self) -> dict[str, Any]:
        """What the run is, as `create` was told; of runs that are exactly the same "run" is another."""
        ((content,),) = self._execute("SELECT content FROM origin")
        return json.loads(content)

    def server(self) -> Server | None:
        """The server after the last round, on the CPU; None before the first."""
        return self._kept(Server, "SELECT tensors FROM server")

    def client(self, client: int) -> ClientState | None:
        """What a client keeps, on the CPU; None if it never took part."""
        return self._kept(ClientState, "SELECT tensors FROM clients WHERE client = ?", client)

    def records(self) -> list[dict[str, Any]]:
        """The record of every round, in their order."""
        return [json.loads(record) for (record,) in self._execute("SELECT record FROM rounds ORDER BY number")]

    def rounds(self) -> int:
        """How many rounds are finished."""
        ((count,),) = self._execute("SELECT count(*) FROM rounds")
        return count

    def evaluation(self) -> Evaluation:
        """The last evaluation."""
        ((arrays, means),) = self._execute("SELECT arrays, means FROM evaluation")
        points: dict[float, dict[str, dict[str, Any]]] = defaultdict(lambda: {"clients": {}, "correct": {}})
        for name, array in sorted(load_arrays(arrays).items()):  # safetensors has them in any order
            alpha, kind, key = name.split("/", 2)
            points[float(alpha)].setdefault(kind, {})[key] = array
        own = points.pop(1.0)
        return Evaluation(**own, **json.loads(means), path={alpha: Point(**points[alpha]) for alpha in sorted(points)})

    # ------------------------------------------------------------------------------------------------------ writing

    @contextmanager
    def round(self) -> Iterator[None]:
        """All that is kept inside becomes part of the state at the end, or, after an error or a kill, none of it."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite has rolled back by itself where it could not write
                self._connection.rollback()
            raise

    def keep(self, server: Server, clients: Mapping[int, ClientState]) -> None:
        """Keeps the server and what those keep who took part."""
        self._execute("DELETE FROM server")
        self._execute("INSERT INTO server VALUES (?)", tensor_bytes(grouped(server)))
        for client, state in clients.items():
            self._execute("REPLACE INTO clients VALUES (?, ?)", client, tensor_bytes(grouped(state)))

    def keep_evaluation(self, evaluation: Evaluation) -> None:
        """Keeps an evaluation in the place of the one before."""
        arrays: dict[str, NDArray[Any]] = {}
        for alpha, point in {**evaluation.path, 1.0: evaluation}.items():
            kinds = ("clients", "correct", "predicted", "confidence") if point is evaluation else ("clients", "correct")
            for kind in kinds:
                arrays |= {f"{alpha!r}/{kind}/{name}": values for name, values in getattr(point, kind).items()}
        means = json.dumps({"shared": evaluation.shared, "diagnostics": evaluation.diagnostics}, allow_nan=False)
        self._execute("DELETE FROM evaluation")
        self._execute("INSERT INTO evaluation VALUES (?, ?)", save_arrays(arrays), means)

    def keep_record(self, number: int, record: Mapping[str, Any]) -> None:
        """Keeps the record of a round, which is finished with it."""
        self._execute("INSERT INTO rounds VALUES (?, ?)", number, json.dumps(record, allow_nan=False))

    def keep_origin(self, origin: Mapping[str, Any]) -> None:
        """Keeps another description of what the run is."""
        self._execute("UPDATE origin SET content = ?", json.dumps(origin))

    # ------------------------------------------------------------------------------------------------------- errors

    def _execute(self, statement: str, *values: Any) -> list[Any]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def _refused(self, error: sqlite3.Error) -> OutputError:
        if self._path is None:
            return OutputError(f"the temporary state of the run cannot be written: {error}; free space, or set TMPDIR")
        kind = getattr(error, "sqlite_errorname", "")
        if kind in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            return InUseError(f"{self._path.parent} is in use: another process works on this run; wait for it")
        if kind.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")):
            return OutputError(
                f"{self._path} cannot be written: {error}; the finished rounds are safe:"
                f" free space, then go on with --resume {self._path.parent}"
            )
        return self._damaged(error)

    def _damaged(self, cause: object) -> OutputError:
        reason = " ".join(str(cause).split())  # SQLite's own may have several lines
        return OutputError(f"{self._path} is damaged: {reason}; start the run again, with another -o or --force")

    def _kept(self, kind: type[Kept], statement: str, *values: Any) -> Kept | None:
        rows = self._execute(statement, *values)
        try:
            return ungrouped(dict(sorted(load(rows[0][0]).items())), kind) if rows else None
        except SafetensorError as error:
            raise self._damaged(error) from error


def on_device(kept: Kept, device: torch.device) -> Kept:
    """The same with all tensors on a device."""
    groups = {f.name: {k: t.to(device) for k, t in getattr(kept, f.name).items()} for f in dataclasses.fields(kept)}
    return type(kept)(**groups)


def grouped(kept: Server | ClientState) -> dict[str, Tensor]:
    """All tensors as "GROUP/NAME", such as "private/U"."""
    return {
        f"{f.name}/{name}": tensor
        for f in dataclasses.fields(kept)
        for name, tensor in sorted(getattr(kept, f.name).items())
    }


def remove(path: Path) -> None:
    """Deletes a state's file, if it is there, and the journal that a killed process may have left beside it."""
    for file in (path, path.with_name(f"{path.name}-journal")):
        file.unlink(missing_ok=True)


def ungrouped(tensors: Mapping[str, Tensor], kind: type[Kept]) -> Kept:
    """The reverse of `grouped`; raises KeyError for a tensor of no group."""
    groups: dict[str, dict[str, Tensor]] = {f.name: {} for f in dataclasses.fields(kind)}
    for name, tensor in tensors.items():
        group, _, key = name.partition("/")
        groups[group][key] = tensor
    return kind(**groups)
