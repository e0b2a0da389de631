"""Kill `fedpgp run` at random moments, or let its writes fail, then resume it and compare the files of the run.

    python tools/kill_and_resume.py --kills 50 --limits 20 --full 10

A kill is SIGKILL to the whole process group: at any time, in the transaction of a round, or while results are written
at the end. A resumed run may be killed again. A limit restricts the size of a file (RLIMIT_FSIZE: a write fails with
EFBIG). A full disk is a small tmpfs (a write fails with ENOSPC), which only root can mount. The sizes are random, so
that a write of the run or of its results stops in the middle. At the end, every file must be byte-identical to the file
of an undisturbed run, except for times.

Every run is a separate process that is forked from this program, which has imported everything that a run needs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import fedpgp.runs.run  # noqa: F401 - imported before the fork, so that a run starts quickly
import torch
from fedpgp import cli
from fedpgp.backbone import load_backbone

# Two of six clients in a round, some of which take part late; rounds with and without evaluation.
CHANGES = [
    "task.clients=6", "task.classes_per_client=1", "federation.rounds=6", "federation.participation=0.34",
    "federation.independent_private=true", "federation.eval_every=3", "federation.local_epochs=1",
]  # fmt: skip
TIMES = {"seconds", "seconds_training", "seconds_evaluation"}
SAME = "the same result"
STATE = "state.sqlite"
FINAL = "outcomes.safetensors"  # a file in the middle of the final writes


class Trial:
    """One run in its own directory; `cache` has the image features that all trials share."""

    def __init__(self, directory: Path, cache: Path):
        directory.mkdir()
        self.output, self._log, self._cache = directory / "out", directory.with_suffix(".log"), cache
        self.journal = self.output / f"{STATE}-journal"

    def start(self, limit: int | None = None) -> int:
        """Start or resume the run and return its process; `limit` is the largest size of its files in bytes."""
        if self.output.exists():
            arguments = ["--resume", str(self.output)]
        else:
            arguments = ["--method", "fedpgp", "-o", str(self.output)]
            arguments += [part for change in CHANGES for part in ("--set", change)]
        process = os.fork()
        if process == 0:
            os.setsid()
            torch.set_num_threads(1)  # repairs the thread pool of PyTorch after the fork, before several threads use it
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            sys.argv = ["fedpgp", "run", *arguments, "--workers", "1", "-q", "--cache-dir", str(self._cache)]
            try:
                cli.main()
            except SystemExit as ended:
                os._exit(int(ended.code or 0))
            finally:
                os._exit(1)
        return process

    def finish(self, limit: int | None = None) -> int:
        """Start or resume the run, wait for its end, and return its exit code."""
        return _exit_code(self.start(limit))

    def in_transaction(self) -> bool:
        """Return whether SQLite is writing a round; between rounds, the header of the journal is zero."""
        try:
            with self.journal.open("rb") as file:
                return any(file.read(28))
        except FileNotFoundError:
            return False

    def said(self) -> str:
        """Return the last line that the run printed."""
        return (self._log.read_text().splitlines() or [""])[-1]

    def artefacts(self) -> dict[str, object]:
        """Return the files of the run by name, without times."""
        found: dict[str, object] = {}
        for path in sorted(self.output.iterdir()):
            if path.name == "results.json":
                found[path.name] = _timeless(json.loads(path.read_text()))
            elif path.name == "rounds.jsonl":
                found[path.name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
            else:
                found[path.name] = None if path.name == "provenance.json" else path.read_bytes()
        return found


def _timeless(content: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in content.items() if name not in TIMES}


def _exit_code(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


# Moments of a kill: functions that are called until they return True. seconds: time of a whole run.


def anywhere(trial: Trial, rng: random.Random, seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + rng.uniform(0, seconds)
    return lambda: time.monotonic() >= end


def in_a_round(trial: Trial, rng: random.Random, seconds: float) -> Callable[[], bool]:
    """Return a moment in the transaction of a round: at its beginning, or before or during the commit."""
    begin, delay, seen = time.monotonic() + rng.uniform(0, seconds), rng.choice([0.0, rng.uniform(0, 0.02)]), [0.0]

    def come() -> bool:
        now = time.monotonic()
        if not seen[0] and now >= begin and trial.in_transaction():
            seen[0] = now
        return bool(seen[0]) and now >= seen[0] + delay

    return come


def at_the_end(trial: Trial, rng: random.Random, seconds: float) -> Callable[[], bool]:
    names = ("rounds.jsonl", "prompts.safetensors", FINAL, "provenance.json", "results.json")
    file = trial.output / rng.choice([name for whole in names for name in (whole, f".{whole}.partial")])
    return file.exists


def killed(trial: Trial, rng: random.Random, seconds: float) -> tuple[int, int]:
    """Start and kill the run until it is finished; return the numbers of all kills and of kills in a transaction."""
    kills = inside = 0
    while True:
        process = trial.start()
        if kills == 0 or rng.random() < 0.5:
            come = rng.choice([anywhere, in_a_round, at_the_end])(trial, rng, seconds)
            while not come() and not os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                time.sleep(0.0002)
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
        code = _exit_code(process)
        if code == 0 and kills:
            return kills, inside
        if code == 0:
            shutil.rmtree(trial.output)  # the run finished before the kill: try again
            continue
        if code != -signal.SIGKILL:
            raise SystemExit(f"the run ended with exit code {code}: {trial.said()}")
        kills += 1
        inside += trial.in_transaction()


def limited(trial: Trial, rng: random.Random, largest: int) -> int:
    """Run with a limit that a write exceeds, resume without the limit, and return the limit."""
    limit = rng.randrange(1000, largest)
    _refused(trial, trial.finish(limit), f"a limit of {limit} bytes")
    return limit


def full(trial: Trial, rng: random.Random, needed: int) -> int:
    """Run on a disk that becomes full, resume with more space, and return the size of the disk in bytes."""
    size = 4096 * rng.randrange(4, needed // 4096)
    subprocess.run(["mount", "-o", f"remount,size={size}", str(trial.output.parent)], check=True)
    code = trial.finish()
    subprocess.run(["mount", "-o", "remount,size=1g", str(trial.output.parent)], check=True)
    _refused(trial, code, f"a disk of {size} bytes")
    return size


def _refused(trial: Trial, code: int, what: str) -> None:
    """Check that a run ended because of a failed write, and resume it to its end."""
    if code != 2 or "fedpgp: error:" not in trial.said():
        raise SystemExit(f"with {what}, the run ended with exit code {code}: {trial.said()}")
    if trial.finish() != 0:
        raise SystemExit(f"after {what}: {trial.said()}")


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """Mount a file system in memory on a directory."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def differing(found: dict[str, object], expected: dict[str, object]) -> str:
    """Return the files that differ, or "the same result"."""
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return f"ANOTHER {', '.join(names)}" if names else SAME


@dataclass
class Tried:
    """Results of the trials of one kind."""

    what: str
    trials: int
    same: int = 0
    detail: str = ""


def trials(directory: Path, kills: int, limits: int, fulls: int, seed: int) -> Iterator[Tried]:
    """Do all trials of each kind, and print their results."""
    torch.set_num_threads(1)  # a process with threads cannot be forked
    load_backbone("pictoclip")  # imports much of transformers, which would take most of the time of a run
    cache = directory / "features"
    Trial(directory / "first", cache).finish()  # encodes the images
    whole = Trial(directory / "whole", cache)
    started = time.monotonic()
    if whole.finish() != 0:
        raise SystemExit(whole.said())
    seconds = time.monotonic() - started
    expected = whole.artefacts()
    sizes = [path.stat().st_size for path in whole.output.iterdir()]

    def compare(tried: Tried, trial: Trial, happened: str) -> None:
        ended = differing(trial.artefacts(), expected)
        tried.same += ended == SAME
        print(f"{happened}: {ended}", flush=True)

    tried, times, inside = Tried("SIGKILL", kills), 0, 0
    for number in range(kills):
        trial = Trial(directory / f"kill-{number}", cache)
        counts = killed(trial, random.Random(f"{seed}/kill/{number}"), seconds)
        times, inside = times + counts[0], inside + counts[1]
        compare(tried, trial, f"killed {counts[0]} times, {counts[1]} of them in a transaction")
    tried.detail = f": {times} kills, {inside} of them in a round's transaction"
    yield tried

    tried = Tried("a write beyond a limit (EFBIG)", limits)
    for number in range(limits):
        trial = Trial(directory / f"limit-{number}", cache)
        limit = limited(trial, random.Random(f"{seed}/limit/{number}"), max(sizes))
        compare(tried, trial, f"no file of more than {limit} bytes")
    yield tried

    tried = Tried("a full disk (ENOSPC)", fulls)
    for number in range(fulls):
        trial = Trial(directory / f"full-{number}", cache)
        with small_disk(trial.output.parent):
            size = full(trial, random.Random(f"{seed}/full/{number}"), sum(sizes))
            compare(tried, trial, f"a disk of {size} bytes")
    yield tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="trials with kills (default: 50)")
    parser.add_argument("--limits", type=int, default=20, help="trials with too large files (default: 20)")
    parser.add_argument("--full", type=int, default=0, help="trials with a full disk, for root on Linux (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the moments, limits and disks (default: 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        kinds = list(trials(Path(directory), options.kills, options.limits, options.full, options.seed))
    for tried in kinds:
        if tried.trials:
            print(f"{tried.same} of {tried.trials} resumed bit-identically after {tried.what}{tried.detail}")
    sys.exit(0 if all(tried.same == tried.trials for tried in kinds) else 1)


if __name__ == "__main__":
    main()
