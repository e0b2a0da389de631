"""Kills `fedpgp run` at random moments, or lets its writes fail, resumes it, and compares what it leaves behind.

    python tools/kill_and_resume.py --kills 50 --full 20

A kill is SIGKILL to the whole process group: anywhere, in the middle of writing a round, or while the results are
written at the end; what was resumed may be killed again. A failing write is a limit on the size of a file
(RLIMIT_FSIZE), drawn anew each time, so that some write of the run or its results ends in the middle. In the end every
file must be, times left out, byte for byte that of a run that nothing happened to.

Every run is a process of its own, forked from this program, which has imported everything that a run needs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import fedpgp.experiment  # noqa: F401 - imported before the fork, so that a run starts at once
import torch
from fedpgp import cli
from fedpgp.backbone import load_backbone

# Two of six clients in a round, some of whom take part late; rounds with and without evaluation.
CHANGES = [
    "task.clients=6", "task.classes_per_client=1", "federation.rounds=6", "federation.participation=0.34",
    "federation.independent_private=true", "federation.eval_every=3", "federation.local_epochs=1",
]  # fmt: skip
TIMES = {"seconds", "seconds_training", "seconds_evaluation"}
SAME = "the same result"
STATE = "state.sqlite"
FINAL = "outcomes.safetensors"  # in the middle of the files that are written at the end


class Trial:
    """One run in a directory of its own; cache: the image features that all trials share."""

    def __init__(self, directory: Path, cache: Path):
        directory.mkdir()
        self.output, self._log, self._cache = directory / "out", directory / "log", cache

    def start(self, limit: int | None = None) -> int:
        """Starts the run, or goes on with it; returns its process. limit: bytes that a file of it may have."""
        if self.output.exists():
            arguments = ["--resume", str(self.output)]
        else:
            arguments = ["--method", "fedpgp", "-o", str(self.output)]
            arguments += [part for change in CHANGES for part in ("--set", change)]
        process = os.fork()
        if process == 0:
            os.setsid()
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
        """Starts the run, or goes on with it, to its end; its exit code."""
        return _exit_code(self.start(limit))

    def said(self) -> str:
        """The last line that the run printed."""
        return (self._log.read_text().splitlines() or [""])[-1]

    def artefacts(self) -> dict[str, object]:
        """The files that the run left, by name; times left out."""
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


# The moments of a kill: whether it has come, asked again and again. seconds: what a whole run takes.


def anywhere(trial: Trial, rng: random.Random, seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + rng.uniform(0, seconds)
    return lambda: time.monotonic() >= end


def in_a_round(trial: Trial, rng: random.Random, seconds: float) -> Callable[[], bool]:
    """In a transaction of SQLite's, as long as which the journal beside the state has a header that is not zero."""
    journal = trial.output / f"{STATE}-journal"
    wait = rng.uniform(0, seconds)
    started = time.monotonic()

    def come() -> bool:
        if time.monotonic() - started < wait:
            return False
        try:
            with journal.open("rb") as file:
                return any(file.read(8))
        except FileNotFoundError:
            return False

    return come


def at_the_end(trial: Trial, rng: random.Random, seconds: float) -> Callable[[], bool]:
    names = ("rounds.jsonl", "prompts.safetensors", FINAL, "provenance.json", "results.json")
    file = trial.output / rng.choice([name for whole in names for name in (whole, f".{whole}.partial")])
    return file.exists


def killed(trial: Trial, rng: random.Random, seconds: float) -> int:
    """Starts and kills the run until it comes to its end; how often it was killed."""
    kills = 0
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
            return kills
        if code == 0:
            shutil.rmtree(trial.output)  # it was faster than the kill: once more
            continue
        if code != -signal.SIGKILL:
            raise SystemExit(f"the run ended with {code}: {trial.said()}")
        kills += 1


def full(trial: Trial, rng: random.Random, largest: int) -> int:
    """Runs with a limit that some write exceeds, and without it to the end; the limit."""
    while True:
        limit = rng.randrange(1000, largest)
        code = trial.finish(limit)
        if code == 0:
            raise SystemExit(f"no write failed with a limit of {limit}")
        if code != 2 or "fedpgp: error:" not in trial.said():
            raise SystemExit(f"with a limit of {limit} bytes the run ended with {code}: {trial.said()}")
        if trial.finish() != 0:
            raise SystemExit(f"after a limit of {limit} bytes: {trial.said()}")
        return limit


def differing(found: dict[str, object], expected: dict[str, object]) -> str:
    """The files that are not the same, or "the same result"."""
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return f"ANOTHER {', '.join(names)}" if names else SAME


def trials(directory: Path, kills: int, fulls: int, seed: int) -> Iterator[tuple[str, str]]:
    """What happened in each trial, and how the run ended: as one that nothing happened to, or otherwise."""
    torch.set_num_threads(1)  # a process with threads could not be forked
    load_backbone("pictoclip")  # imports much of transformers, which would take most of a run
    cache = directory / "features"
    Trial(directory / "first", cache).finish()  # encodes the images
    whole = Trial(directory / "whole", cache)
    started = time.monotonic()
    if whole.finish() != 0:
        raise SystemExit(whole.said())
    seconds = time.monotonic() - started
    expected = whole.artefacts()
    largest = max(path.stat().st_size for path in whole.output.iterdir())
    for number in range(kills):
        trial = Trial(directory / f"kill-{number}", cache)
        happened = killed(trial, random.Random(f"{seed}/kill/{number}"), seconds)
        yield f"killed {happened} times", differing(trial.artefacts(), expected)
    for number in range(fulls):
        trial = Trial(directory / f"full-{number}", cache)
        limit = full(trial, random.Random(f"{seed}/full/{number}"), largest)
        yield f"no room for a file of more than {limit} bytes", differing(trial.artefacts(), expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="trials with kills (default: 50)")
    parser.add_argument("--full", type=int, default=20, help="trials with failing writes (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and limits (default: 0)")
    options = parser.parse_args()
    same = {"killed": 0, "no": 0}
    with tempfile.TemporaryDirectory() as directory:
        for happened, ended in trials(Path(directory), options.kills, options.full, options.seed):
            print(f"{happened}: {ended}", flush=True)
            same[happened.split()[0]] += ended == SAME
    print(f"{same['killed']} of {options.kills} resumed bit-identically after SIGKILL")
    print(f"{same['no']} of {options.full} resumed bit-identically after a failing write")
    sys.exit(0 if same == {"killed": options.kills, "no": options.full} else 1)


if __name__ == "__main__":
    main()
