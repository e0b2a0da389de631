"""Logs of a server and of a node in one format: a line with the time, the level and the source, or a JSON object.

Flower's processes, which a server and a node start, write to the same streams in three formats. Here this process reads
what they write, through a pipe that replaces both streams, and writes it again in the one format.
"""

import codecs
import datetime
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from fedpgp.errors import FedPGPError
from fedpgp.runtime.escaping import CONTROL

READ = 1 << 16  # bytes
PATIENCE = 1.0  # seconds for the last lines of processes that have ended

LEVELS = "DEBUG|INFO|WARNING|ERROR|CRITICAL"
FORMATS = (  # of records, after colours are removed
    re.compile(rf"(?P<level>{LEVELS}) *: *(?P<message>.*)"),  # Flower, and uvicorn in a SuperNode
    re.compile(rf"\d{{4}}-\S+Z (?P<level>{LEVELS}) \[(?P<source>[\w.]+)\] (?P<message>.*)"),  # uvicorn in a SuperLink
    re.compile(r"\S+:\d+: (?P<warning>\w*Warning): (?P<message>.*)"),  # Python's module warnings
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
SECRET = re.compile(r"(--token[= ]|[Bb]earer |flwr-signature: )\S+")
ROUTINE = re.compile(r"ControlServicer\.(ListNodes|ListRuns|StreamLogs)$|\"POST /v1/control/list-(nodes|runs) \S+ 200")
ROUND = re.compile(r"\[RUN (?P<run>\d+)(?:, ROUND (?P<round>\d+))?\]$")  # Flower's heading of the records that follow
OWN_ROUND = re.compile(r"round (?P<round>\d+) of \d+: ")
ENDED = "Sent successfully"  # the last record of a message


class Log:
    """A log on a stream; several threads may write to it.

    Parameters
    ----------
    stream
        The stream.
    as_json
        Whether each record is a JSON object instead of a line of text.
    known
        Values that all records have, such as the client; only JSON has them.

    Attributes
    ----------
    heard
        Function that is called with every message of Flower's processes.
    """

    heard: Callable[[str], None]

    def __init__(self, stream: TextIO, as_json: bool, **known: Any):
        self._stream, self._json, self._known = stream, as_json, known
        self._lock = threading.Lock()
        self.heard = lambda message: None

    def write(self, level: str, source: str, message: str, **known: Any) -> None:
        """Write a record.

        Parameters
        ----------
        level
            Level, such as WARNING.
        source
            The part of the system that reports.
        message
            Text of one line or more.
        known
            Further values, such as the run and the round; None is left out.
        """
        now = datetime.datetime.now(datetime.UTC)
        message = SECRET.sub(r"\1…", CONTROL.sub("", message.rstrip()))
        if self._json:
            record = {"time": now.isoformat(timespec="milliseconds"), "level": level, "source": source}
            record |= {"message": message, **self._known, **known}
            line = json.dumps({name: value for name, value in record.items() if value is not None})
        else:
            line = f"{now:%Y-%m-%d %H:%M:%S} UTC  {level:<8} {source}: {message}".replace("\n", "\n    ")
        with self._lock:
            self._stream.write(f"{line}\n")
            self._stream.flush()


class Output:
    """Output of Flower's processes, which is written to a log.

    Parameters
    ----------
    log
        The log.
    source
        Source of records that do not name theirs.
    known
        Values that all records have.
    """

    def __init__(self, log: Log, source: str, **known: Any):
        self._log, self._source, self._known = log, source, known
        self._rest = ""

    def feed(self, text: str, last: bool = False) -> None:
        """Write the complete lines of a text to the log, and keep an incomplete last line until more arrives.

        Lines that do not begin a record, such as a traceback, belong to the record before them in the text.

        Parameters
        ----------
        text
            Text as the processes wrote it.
        last
            Whether nothing follows.
        """
        *lines, self._rest = COLOUR.sub("", self._rest + text).split("\n")
        if last and self._rest:
            lines.append(self._rest)
        records: list[tuple[str, str, list[str]]] = []
        for line in lines:
            match = next((one for pattern in FORMATS if (one := pattern.fullmatch(line))), None)
            if match is not None:
                found = match.groupdict()
                source = (found.get("source") or self._source).partition(".")[0]
                if "warning" in found:
                    records.append(("WARNING", "warnings", [f"{found['warning']}: {found['message']}"]))
                else:
                    records.append((found["level"], source, [found["message"]]))
            elif records:
                records[-1][2].append(line)
            elif line.strip():
                records.append(("ERROR" if "rror" in line or "Traceback" in line else "INFO", self._source, [line]))
        for level, source, parts in records:
            message = "\n".join(parts).strip()
            if not message or ROUTINE.search(message):
                continue
            for pattern in (ROUND, OWN_ROUND):
                if heading := pattern.match(message):
                    self._known |= heading.groupdict()
            self._log.write(level, source, message, **self._known)
            if message == ENDED:
                self._known |= {"run": None, "round": None}
            self._log.heard(message)


class _Handler(logging.Handler):
    """Writes the records of this process to a log, except Flower's, which arrive through the pipe."""

    def __init__(self, log: Log):
        super().__init__()
        self._log, self._formatter = log, logging.Formatter("%(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        package, _, module = record.name.partition(".")
        if package == "flwr":
            return
        own = module.rpartition(".")[2] or record.module
        source = "warnings" if record.name == "py.warnings" else own if package == "fedpgp" else package
        self._log.write(record.levelname, source, self._formatter.format(record))


@contextmanager
def one_format(as_json: bool, **known: Any) -> Iterator[Log]:
    """Write everything that this process, its children and their libraries report in one format on standard error.

    Parameters
    ----------
    as_json
        Whether each record is a JSON object.
    known
        Values that all records have, such as the client.

    Raises
    ------
    SystemExit
        With code 2 instead of a FedPGPError if records are JSON objects; the error is then a record.
    """
    root, own = logging.getLogger(), logging.getLogger("fedpgp")
    inner, outer = os.pipe()
    _flush()
    kept = {number: os.dup(number) for number in (1, 2)}
    written = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    log = Log(written, as_json, **known)
    handler, level = _Handler(log), own.level
    reader = threading.Thread(target=_read, args=(inner, Output(log, "flower")), daemon=True)
    for number in kept:
        os.dup2(outer, number)
    os.close(outer)
    root.addHandler(handler)
    own.setLevel(logging.INFO)
    logging.captureWarnings(True)
    reader.start()
    try:
        yield log
    except FedPGPError as error:
        if not as_json:
            raise
        log.write("ERROR", "fedpgp", str(error))
        raise SystemExit(2) from error
    finally:
        _flush()
        for number, before in kept.items():
            os.dup2(before, number)
            os.close(before)
        logging.captureWarnings(False)
        own.setLevel(level)
        root.removeHandler(handler)
        reader.join(PATIENCE)
        if not reader.is_alive():
            written.close()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _read(inner: int, output: Output) -> None:
    """Write what arrives in a pipe to a log, until all processes that can write to the pipe have ended."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with os.fdopen(inner, "rb", buffering=0) as pipe:
        while content := pipe.read(READ):
            output.feed(decoder.decode(content))
    output.feed("", last=True)
