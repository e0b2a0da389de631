"""Description of this machine, and measurement of work: seconds, memory and operations, in alternating order."""

import ctypes
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Generic, TypeVar

import torch
import transformers
from torch.utils.benchmark import set_torch_threads
from torch.utils.flop_counter import FlopCounterMode

Result = TypeVar("Result")
Shape = tuple[int, int, int]  # rows, inputs and outputs of a matrix product

STATUS = Path("/proc/self/status")
LONG = 2.0  # seconds; the first call is representative if it takes longer


def machine(threads: int) -> dict[str, str | int]:
    """Return the description of the machine that readers of the results need."""
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


@dataclass(frozen=True)
class Operations:
    """Floating-point operations; a multiplication and an addition count as two.

    Attributes
    ----------
    products
        Number of matrix products with weights, by shape.
    total
        Operations of these products, attention and convolutions.
    """

    products: Mapping[Shape, int]
    total: int

    @property
    def linear(self) -> int:
        """Number of operations of the products with weights."""
        return sum(2 * math.prod(shape) * times for shape, times in self.products.items())


@dataclass(frozen=True)
class Measurement(Generic[Result]):
    """Measurement of one way to do some work.

    Attributes
    ----------
    result
        Result of the first call.
    operations
        Operations of the first call.
    memory
        Peak growth of the process during the first call, in bytes; None if unknown.
    seconds
        Seconds of one call, by repetition.
    """

    result: Result
    operations: Operations
    memory: int | None
    seconds: list[float]

    @property
    def figures(self) -> dict[str, Any]:
        """Seconds, memory and operations in the types of JSON."""
        return {"seconds": self.seconds, "memory": self.memory, "flops": self.operations.total}


def take_turns(
    works: Mapping[str, Callable[[], Result]],
    repeat: int,
    say: Callable[[str], None] = lambda text: None,
    check: Callable[[str, Result], None] = lambda name, result: None,
) -> dict[str, Measurement[Result]]:
    """Measure several ways to do the same work.

    Each repetition calls all of them, so that a slow period of the machine affects all.

    Parameters
    ----------
    works
        Ways to do the work, by name.
    repeat
        Number of repetitions.
    say
        Function that is called with progress texts.
    check
        Function that is called with the name and the first result of each way; it raises an error for a wrong result.
    """
    measured: dict[str, Measurement[Result]] = {}
    for turn in range(repeat):
        for name, work in works.items():
            say(f"{name}, {turn + 1} of {repeat}")
            if turn == 0:
                measured[name] = _first_call(work)
                check(name, measured[name].result)
            else:
                measured[name].seconds.append(seconds(work))
    return measured


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median of the ratios within each repetition."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def seconds(work: Callable[[], object], at_least: float = 0.3) -> float:
    """Return the mean seconds of one call; calls are repeated for `at_least` seconds."""
    calls, started = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        elapsed = time.perf_counter() - started
        if elapsed >= at_least:
            return elapsed / calls


def _first_call(work: Callable[[], Result]) -> Measurement[Result]:
    """Measure memory, operations and seconds of the first call; if the call is short, time later calls instead."""
    started = time.perf_counter()
    (result, operations), memory = peak_memory(lambda: count_operations(work))
    elapsed = time.perf_counter() - started
    return Measurement(result, operations, memory, [elapsed if elapsed > LONG else seconds(work)])


def peak_memory(work: Callable[[], Result]) -> tuple[Result, int | None]:
    """Return the result of a call and the peak growth of the process in bytes, or None if the system has no such data.

    Free memory is returned to the system before the call.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
    except (OSError, AttributeError):
        return work(), None
    before = status("VmRSS")
    result = work()
    return result, max(0, status("VmHWM") - before)


def status(field: str) -> int:
    """Return a field of /proc/self/status in bytes: VmRSS (memory in use) or VmHWM (peak)."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def count_operations(work: Callable[[], Result]) -> tuple[Result, Operations]:
    """Return the result of a call and the operations that PyTorch computes in it, forward and backward.

    Normalization, softmax and activation are not counted.
    """
    products: Counter[Shape] = Counter()

    def product(x: torch.Size, weight: torch.Size) -> int:
        shape = (*x, weight[1])
        products[shape] += 1
        return 2 * math.prod(shape)

    def attention(queries: torch.Size, keys: torch.Size) -> int:
        return 4 * math.prod(queries) * keys[-2]  # scores, and weighted sums

    aten = torch.ops.aten
    formulas = {
        aten.mm: lambda x, weight, **_: product(x, weight),
        aten.addmm: lambda bias, x, weight, **_: product(x, weight),
        # PyTorch's counter knows fused attention of accelerators only.
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, *_, **__: attention(q, k),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, q, k, *_, **__: 2 * attention(q, k),
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        result = work()
    return result, Operations(products, counter.get_total_flops())


def gemm_speed(products: Mapping[Shape, int], dtype: torch.dtype, threads: int) -> float:
    """Return floating-point operations per second of torch.mm at the shapes of these products.

    Parameters
    ----------
    products
        Number of products by shape; each shape has the weight of its operations.
    dtype
        Type of the matrices.
    threads
        Number of threads.
    """
    with set_torch_threads(threads):
        busy = sum(times * _product_seconds(*shape, dtype) for shape, times in products.items())
    return Operations(products, 0).linear / busy


def _product_seconds(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    x, weight = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
    torch.mm(x, weight.T)
    return min(seconds(lambda: torch.mm(x, weight.T), 0.02) for _ in range(5))
