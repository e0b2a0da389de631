"""What this machine is, how fast it multiplies matrices, and how much memory a piece of work takes."""

import ctypes
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import transformers

from fedpgp.bench.flops import Product

Result = TypeVar("Result")

STATUS = Path("/proc/self/status")
LONG = 2.0  # seconds after which a first call is as good as any


def machine(threads: int) -> dict[str, str | int]:
    """What a reader must know of the machine beside the ratios."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "threads": threads,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch works on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(work: Callable[[], object], at_least: float = 0.3) -> float:
    """Seconds of one call: the mean over as many calls as fill `at_least` seconds."""
    calls, started = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        elapsed = time.perf_counter() - started
        if elapsed >= at_least:
            return elapsed / calls


def gemm_speed(products: Sequence[Product], dtype: torch.dtype, count: int) -> float:
    """Floating-point operations per second of torch.mm at the shapes of these products, on so many threads.

    Every shape counts with the share of the operations that it has among `products`.
    """
    with threads(count):
        busy = {shape: _product_seconds(*shape, dtype) for shape in {product[:3] for product in products}}
    return sum(product.flops for product in products) / sum(product.times * busy[product[:3]] for product in products)


def _product_seconds(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    x, weight = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
    torch.mm(x, weight.T)
    return min(seconds(lambda: torch.mm(x, weight.T), 0.02) for _ in range(5))


def peak_memory(work: Callable[[], Result]) -> tuple[Result, int | None]:
    """Calls it, and says by how many bytes the process grew at most meanwhile; None where the system does not tell."""
    before = _rewind()
    result = work()
    return result, None if before is None else max(0, status("VmHWM") - before)


def first_call(work: Callable[[], Result]) -> tuple[Result, int | None, float]:
    """The result, the bytes as in `peak_memory`, and the seconds of a call: of this one, or of more if it is short."""
    started = time.perf_counter()
    result, memory = peak_memory(work)
    elapsed = time.perf_counter() - started
    return result, memory, elapsed if elapsed > LONG else seconds(work)


def _rewind() -> int | None:
    """Gives freed memory back to the system, forgets the peak, and returns the bytes in use."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except (OSError, AttributeError):
        return None
    return status("VmRSS")


def status(field: str) -> int:
    """Bytes in a field of /proc/self/status: VmRSS, in use, or VmHWM, the most that was in use."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
