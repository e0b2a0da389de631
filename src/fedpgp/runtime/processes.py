"""How further processes are started, to train or to decode."""

import multiprocessing
import os
import signal
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

# What workers need; PyTorch's optimizers import the compiler when the first of them is made, which takes a second.
PRELOADED = ["fedpgp.federation.client", "torch._dynamo"]

ENDED = (
    "ended before its work was done: set workers to 1, or free memory; a script that uses more than one worker needs"
    " `if __name__ == '__main__':`"
)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def context() -> BaseContext:
    """Processes that are forked from a server which has PyTorch loaded and no threads yet.

    A fork of this process, which has threads, may hang; a spawned one that ends early leaves its parent waiting.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    return server


def leave_ctrl_c() -> None:
    """Ctrl-C reaches every process of a terminal; it is the parent's to handle, which then ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def warm_up() -> None:
    """Starts the server, which loads PyTorch while this process does something else."""
    if context().get_start_method() == "forkserver":
        forkserver.ensure_running()
