"""Run a command, and end all of its descendants when the command ends, or when the process that wanted it ends.

    python guardian.py PIPE GROUP COMMAND...

Flower's processes start further processes, some of them in sessions of their own, which may continue when their parent
ends. This small process therefore stands between fedpgp and a command. It is a subreaper: the kernel makes it the
parent of each descendant whose own parent has ended, so it finds and kills all of them. It does this when the command
ends, and when the other end of its pipe is closed. The kernel closes that end when the process that holds it is killed.

This file is started by its path, and it imports only what Python imports in milliseconds.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

SUBREAPER, DEATH_SIGNAL = 36, 1  # PR_SET_CHILD_SUBREAPER and PR_SET_PDEATHSIG of prctl(2)


def guard(pipe: int, group: int, command: list[str]) -> int:
    """Run a command until it ends or a pipe is closed, and kill its descendants. SIGTERM is passed on to the command.

    Parameters
    ----------
    pipe
        File descriptor of the pipe's end for reading.
    group
        Process group of the command; 0 means the group of this process.
    command
        The command.

    Returns
    -------
    int
        Exit code of the command; 128 plus the number of the signal if a signal ended it.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(SUBREAPER, 1)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    child = subprocess.Popen(
        command,
        preexec_fn=lambda: prctl(DEATH_SIGNAL, signal.SIGKILL),  # safe: this process has no threads
        process_group=group or None,
    ).pid
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the process that holds the pipe decides what they mean
    while (code := _ended(child)) is None:
        if pipe in select.select([pipe, woken], [], [])[0]:
            code = -signal.SIGKILL
            break
        os.read(woken, select.PIPE_BUF)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _kill_children()
    return code if code >= 0 else 128 - code


def _ended(child: int) -> int | None:
    """Reap the children that have ended, and return the exit code of `child` if it is one of them."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            return None


def _kill_children() -> None:
    """Kill all children. The children of a killed child become children of this process, and are killed next."""
    with suppress(ChildProcessError):  # no child is left
        while True:
            for file in Path("/proc").glob("[0-9]*/stat"):
                with suppress(OSError):  # the process may have ended
                    if int(file.read_bytes().rpartition(b")")[2].split()[1]) == os.getpid():
                        os.kill(int(file.parent.name), signal.SIGKILL)
            os.waitpid(-1, 0)


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
