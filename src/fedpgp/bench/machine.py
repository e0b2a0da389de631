"""What this machine is; and how work is measured: seconds, memory and operations, several ways to do it in turn."""

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


@dataclass(frozen=True)
class Operations:
    """Floating-point operations; a multiplication and an addition are two.

    products: how many matrix products have a shape; these are the products with weights. total: with the operations of
    attention and of convolutions.
    """

    products: Mapping[Shape, int]
    total: int

    @property
    def linear(self) -> int:
        """Operations of the products with weights."""
        return sum(2 * math.prod(shape) * times for shape, times in self.products.items())


@dataclass(frozen=True)
class Measurement(Generic[Result]):
    """result, operations: of the first call; memory: bytes that the process grew by at most in it, None if unknown;
    seconds: of one call, by repetition.
    """

    result: Result
    operations: Operations
    memory: int | None
    seconds: list[float]

    @property
    def figures(self) -> dict[str, Any]:
        """Seconds, memory and operations in JSON's types."""
        return {"seconds": self.seconds, "memory": self.memory, "flops": self.operations.total}


def take_turns(
    works: Mapping[str, Callable[[], Result]],
    repeat: int,
    say: Callable[[str], None] = lambda text: None,
    check: Callable[[str, Result], None] = lambda name, result: None,
) -> dict[str, Measurement[Result]]:
    """Measure several ways to do the same work, all of them in each repetition, so that a slower spell of the machine
    meets all.

    check: gets the first result of each way, and raises an error if the result is not that of the same work.
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
    """The median over the repetitions of the ratio within one repetition."""
    return median(a / b for a, b in zip(slow, fast, strict=True))


def seconds(work: Callable[[], object], at_least: float = 0.3) -> float:
    """Seconds of one call: the mean over as many calls as fill `at_least` seconds."""
    calls, started = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        elapsed = time.perf_counter() - started
        if elapsed >= at_least:
            return elapsed / calls


def _first_call(work: Callable[[], Result]) -> Measurement[Result]:
    """Measure a call: its memory and operations, and its seconds, or those of later calls if it is short."""
    started = time.perf_counter()
    (result, operations), memory = peak_memory(lambda: count_operations(work))
    elapsed = time.perf_counter() - started
    return Measurement(result, operations, memory, [elapsed if elapsed > LONG else seconds(work)])


def peak_memory(work: Callable[[], Result]) -> tuple[Result, int | None]:
    """Call it; return its result and by how many bytes the process grew at most, None where the system does not tell.

    Memory that is free already is given back to the system before.
    """
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the peak
    except (OSError, AttributeError):
        return work(), None
    before = status("VmRSS")
    result = work()
    return result, max(0, status("VmHWM") - before)


def status(field: str) -> int:
    """Bytes in a field of /proc/self/status: VmRSS, in use, or VmHWM, the most that was in use."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def count_operations(work: Callable[[], Result]) -> tuple[Result, Operations]:
    """Call it and count what PyTorch computes meanwhile, forward and backward.

    Not counted are normalization, softmax and activation.
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
    """Floating-point operations per second of torch.mm at the shapes of these products, on so many threads.

    Every shape counts with the share of the operations that it has among `products`.
    """
    with set_torch_threads(threads):
        busy = sum(times * _product_seconds(*shape, dtype) for shape, times in products.items())
    return Operations(products, 0).linear / busy


def _product_seconds(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> float:
    x, weight = torch.randn(rows, inputs, dtype=dtype), torch.randn(outputs, inputs, dtype=dtype)
    torch.mm(x, weight.T)
    return min(seconds(lambda: torch.mm(x, weight.T), 0.02) for _ in range(5))
