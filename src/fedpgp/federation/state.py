"""The state of a federation between rounds, in one SQLite file. A round is stored completely or not at all.

There are no generator states to store, because every random draw is a function of (seed, purpose, round, client); see
`fedpgp.runtime.randomness`.
"""

import dataclasses
import json
import os
import sqlite3
import sys
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
from fedpgp.errors import InUseError, OutputError, first_line
from fedpgp.evaluation.evaluator import Evaluation, Point
from fedpgp.runtime.files import tensor_bytes
from fedpgp.runtime.untrusted import check_file

FILE = "state.sqlite"  # in a run directory
SCHEMA = 3  # version of the tables below
MAGIC = bytes.fromhex("d9d505f920a163d7")  # of SQLite, at the beginning of a journal and after the name in it
PATIENCE = 2.0  # seconds to wait for another process that only reads, such as `fedpgp show`
TABLES = """
CREATE TABLE origin (content TEXT NOT NULL);
CREATE TABLE server (tensors BLOB NOT NULL);
CREATE TABLE clients (client INTEGER PRIMARY KEY, tensors BLOB NOT NULL);
CREATE TABLE rounds (number INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE evaluation (arrays BLOB NOT NULL, means TEXT NOT NULL);
"""


@dataclass(frozen=True)
class ClientState:
    """The tensors that a client keeps between rounds and never sends.

    Attributes
    ----------
    private
        The private part of the method.
    kept
        The shared part that the client trained last, if its model uses it.
    control
        The client's tensors of the aggregator.
    optimizer
        The state of the optimizer by "KEY/NAME", such as "momentum_buffer/U", if federation.optimizer_state is "keep".
    """

    private: Tensors = field(default_factory=dict)
    kept: Tensors = field(default_factory=dict)
    control: Tensors = field(default_factory=dict)
    optimizer: Tensors = field(default_factory=dict)


Kept = TypeVar("Kept", Server, ClientState)


class State:
    """The state of the server and of every client that took part, the records of the rounds, and the last evaluation.

    Tensors are stored as safetensors, and the tensors of the server and of a client are grouped as in `grouped`. While
    a state is open, no other process can open its file.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path | None):
        self._connection, self._path = connection, path
        self._file = None if path is None else path.stat()

    @classmethod
    def create(cls, path: Path | None = None, origin: Mapping[str, Any] | None = None) -> "State":
        """Create a state.

        Parameters
        ----------
        path
            A new file. Without it, the state is a private temporary database that SQLite deletes when it is closed.
        origin
            Description of the run, in JSON types. It is compared when the run is resumed.
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
        """Open the state in a file.

        Parameters
        ----------
        path
            The file.
        patience
            Seconds to wait for another process that has the file open.

        Raises
        ------
        OutputError
            The file is missing or damaged, or another version of fedpgp wrote it.
        InUseError
            Another process keeps the file open.
        """
        _check_files(path)
        state = cls._connect(f"{path.absolute().as_uri()}?mode=rw", path, patience)
        try:
            state._execute("BEGIN EXCLUSIVE")  # the locking mode keeps this lock until the state is closed
            state._execute("COMMIT")
            ((verdict,),) = state._execute("PRAGMA quick_check(1)")
            if verdict != "ok":
                raise state._damaged(verdict)
            ((schema,),) = state._execute("PRAGMA user_version")
            if schema == 0:
                raise state._damaged("it is empty")
            made = {" ".join(sql.split()) for (sql,) in state._execute("SELECT coalesce(sql, '') FROM sqlite_schema")}
            if schema == SCHEMA and made != {statement.strip() for statement in TABLES.split(";")} - {""}:
                raise state._damaged("it has other tables, or views or triggers")
            if schema != SCHEMA:
                raise OutputError(
                    f"it has schema {schema}, but this version of fedpgp reads schema {SCHEMA}",
                    where=f"{path}",
                    got=schema,
                    remedy="Resume the run with the version of fedpgp that wrote it, or start the run again",
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
            raise OutputError(
                f"it cannot be opened: {error}", where=f"{path}", remedy="Name the directory of an unfinished run"
            ) from error
        state = cls(connection, path)
        state._execute("PRAGMA locking_mode = EXCLUSIVE")
        return state

    def close(self) -> None:
        self._connection.close()

    def remove(self) -> None:
        """Close the state and delete its file. Call it after the content has been written elsewhere.

        Another file that has replaced the state's file is not deleted.
        """
        path, ours = self._path, False
        with suppress(FileNotFoundError):  # checked while the file is open, because no other file can get its inode
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
        """Return the description of the run that `create` stored. Its key "run" differs even between equal runs."""
        ((content,),) = self._rows("SELECT content FROM origin", 1)
        return self._json(content)

    def server(self) -> Server | None:
        """Return the server after the last round, on the CPU, or None before the first round."""
        return self._kept(Server, "SELECT tensors FROM server")

    def client(self, client: int) -> ClientState | None:
        """Return the state of a client, on the CPU, or None if it never took part."""
        return self._kept(ClientState, "SELECT tensors FROM clients WHERE client = ?", client)

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all finished rounds, in order."""
        return [self._json(record) for (record,) in self._execute("SELECT record FROM rounds ORDER BY number")]

    def rounds(self) -> int:
        """Return the number of finished rounds."""
        ((count,),) = self._execute("SELECT count(*) FROM rounds")
        return int(count)

    def evaluation(self) -> Evaluation:
        """Return the last evaluation."""
        ((arrays, means),) = self._rows("SELECT arrays, means FROM evaluation", 1)
        points: dict[float, dict[str, dict[str, Any]]] = defaultdict(lambda: {"clients": {}, "correct": {}})
        try:
            for name, array in sorted(load_arrays(arrays).items()):  # safetensors has no fixed order
                alpha, kind, key = name.split("/", 2)
                points[float(alpha)].setdefault(kind, {})[key] = array
            own, path = points.pop(1.0), {alpha: Point(**points[alpha]) for alpha in sorted(points)}
            return Evaluation(**own, **self._json(means), path=path)
        except (SafetensorError, LookupError, ValueError, TypeError) as error:
            raise self._damaged(error) from error

    # ------------------------------------------------------------------------------------------------------ writing

    @contextmanager
    def round(self) -> Iterator[None]:
        """Store everything written in this context at its end, or nothing after an error or a kill."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):  # SQLite has already rolled back if it could not write
                self._connection.rollback()
            raise

    def keep(self, server: Server, clients: Mapping[int, ClientState]) -> None:
        """Store the server and the states of the clients that took part."""
        self._execute("DELETE FROM server")
        self._execute("INSERT INTO server VALUES (?)", tensor_bytes(grouped(server)))
        for client, state in clients.items():
            self._execute("REPLACE INTO clients VALUES (?, ?)", client, tensor_bytes(grouped(state)))

    def keep_evaluation(self, evaluation: Evaluation) -> None:
        """Store an evaluation instead of the previous one."""
        arrays: dict[str, NDArray[Any]] = {}
        for alpha, point in {**evaluation.path, 1.0: evaluation}.items():
            kinds = ("clients", "correct", "predicted", "confidence") if point is evaluation else ("clients", "correct")
            for kind in kinds:
                arrays |= {f"{alpha!r}/{kind}/{name}": values for name, values in getattr(point, kind).items()}
        means = json.dumps({"shared": evaluation.shared, "diagnostics": evaluation.diagnostics}, allow_nan=False)
        self._execute("DELETE FROM evaluation")
        self._execute("INSERT INTO evaluation VALUES (?, ?)", save_arrays(arrays), means)

    def keep_record(self, number: int, record: Mapping[str, Any]) -> None:
        """Store the record of a round. The round is then finished."""
        self._execute("INSERT INTO rounds VALUES (?, ?)", number, json.dumps(record, allow_nan=False))

    def keep_origin(self, origin: Mapping[str, Any]) -> None:
        """Replace the description of the run."""
        self._execute("UPDATE origin SET content = ?", json.dumps(origin))

    # ------------------------------------------------------------------------------------------------------- errors

    def _execute(self, statement: str, *values: Any) -> list[Any]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def _rows(self, statement: str, least: int, *values: Any) -> list[Any]:
        """Return at most one row of a table, and at least `least` rows."""
        rows = self._execute(statement, *values)
        if not least <= len(rows) <= 1:
            raise self._damaged(f"a table has {len(rows)} rows instead of {'1' if least else '0 or 1'}")
        return rows

    def _json(self, text: Any) -> Any:
        try:
            return json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise self._damaged(f"it contains JSON that is not valid: {first_line(error)}") from error

    def _refused(self, error: sqlite3.Error) -> OutputError:
        if self._path is None:
            return OutputError(
                f"the temporary state of the run cannot be written: {error}",
                remedy="Free disk space, or set TMPDIR to a directory on another disk",
            )
        directory, kind = self._path.parent, getattr(error, "sqlite_errorname", "")
        if kind in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            return InUseError(
                "another process is using this run", where=f"{directory}", remedy="Wait until it ends, or stop it"
            )
        if kind.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")):
            return OutputError(
                f"it cannot be written: {error}. The finished rounds are stored",
                where=f"{self._path}",
                remedy=f"Free disk space, then resume the run with --resume {directory}",
            )
        return self._damaged(error)

    def _damaged(self, cause: object) -> OutputError:
        reason = " ".join(str(cause).split())  # SQLite's message may have several lines
        return OutputError(
            f"it is damaged: {reason}",
            where=f"{self._path}",
            remedy="Start the run again, with another -o or with --force",
        )

    def _kept(self, kind: type[Kept], statement: str, *values: Any) -> Kept | None:
        rows = self._rows(statement, 0, *values)
        try:
            return ungrouped(dict(sorted(load(rows[0][0]).items())), kind) if rows else None
        except (SafetensorError, LookupError, ValueError, TypeError) as error:
            raise self._damaged(error) from error


def _check_files(path: Path) -> None:
    """Check the files of a state before SQLite opens them.

    The journal of a killed process is read by SQLite. If it ends with the name of another file, SQLite deletes that
    file. A state has no such name, because its transactions change only one database.

    Raises
    ------
    OutputError
        A file is not a regular file, or the journal names another file.
    """
    remedy = "Start the run again, with another -o or with --force"
    journal = path.with_name(f"{path.name}-journal")
    for file in (path, journal, *(path.with_name(f"{path.name}-{end}") for end in ("wal", "shm"))):
        with suppress(FileNotFoundError):
            check_file(file, sys.maxsize, remedy)
            if file == journal and _end(file, len(MAGIC)) == MAGIC:
                raise OutputError("it names another file", where=f"{file}", remedy=remedy)
            if file not in (path, journal):
                raise OutputError("it does not belong to a state", where=f"{file}", remedy=remedy)


def _end(file: Path, count: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - count))
        return opened.read(count)


def on_device(kept: Kept, device: torch.device) -> Kept:
    """Return a copy with all tensors on a device."""
    groups = {f.name: {k: t.to(device) for k, t in getattr(kept, f.name).items()} for f in dataclasses.fields(kept)}
    return type(kept)(**groups)


def grouped(kept: Server | ClientState) -> dict[str, Tensor]:
    """Return all tensors by "GROUP/NAME", such as "private/U"."""
    return {
        f"{f.name}/{name}": tensor
        for f in dataclasses.fields(kept)
        for name, tensor in sorted(getattr(kept, f.name).items())
    }


def remove(path: Path) -> None:
    """Delete the file of a state, if it exists, and the journal file that a killed process may have left."""
    for file in (path, path.with_name(f"{path.name}-journal")):
        file.unlink(missing_ok=True)


def ungrouped(tensors: Mapping[str, Tensor], kind: type[Kept]) -> Kept:
    """Invert `grouped`. Raise KeyError for a tensor without a group."""
    groups: dict[str, dict[str, Tensor]] = {f.name: {} for f in dataclasses.fields(kind)}
    for name, tensor in tensors.items():
        group, _, key = name.partition("/")
        groups[group][key] = tensor
    return kind(**groups)
