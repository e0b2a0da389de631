"""Start of worker processes that train or decode images."""

import multiprocessing
import os
import signal
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

# Modules that workers need. The first optimizer of PyTorch imports torch._dynamo, which takes a second.
PRELOADED = ["fedpgp.federation.client", "torch._dynamo"]

ENDED = "ended before its work was done"
ENDED_REMEDY = (
    "Use 1 worker, or free memory; a script that uses more than one worker needs `if __name__ == '__main__':`"
)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def context() -> BaseContext:
    """Return a context whose processes are forked from a server that has loaded PyTorch and has no threads.

    A fork of this process may hang, because this process has threads. A spawned process that ends early would leave
    its parent waiting.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    return server


def leave_ctrl_c() -> None:
    """Ignore Ctrl-C, which reaches every process of a terminal. The parent handles it and ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def warm_up() -> None:
    """Start the server of processes, which loads PyTorch while this process does other work."""
    if context().get_start_method() == "forkserver":
        forkserver.ensure_running()
