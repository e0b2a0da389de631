"""Where the time of a step goes, by kind of operation, and what Python and the dispatcher add."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile

# Operations by the first kind whose word is in their name.
KINDS = {
    "attention products": ("bmm", "scaled_dot_product"),
    "matrix multiplies": ("aten::mm", "addmm"),
    "softmax": ("softmax",),
    "norm": ("layer_norm",),
    "activation": ("gelu", "sigmoid", "aten::mul", "silu"),
    "copies": ("copy_", "aten::cat", "contiguous", "clone", "aten::index", "fill_", "zero_", "gather", "scatter"),
}
STEPS = 3


@dataclass(frozen=True)
class Profile:
    """seconds: of one step; shares: of that time by kind, "other" operations and "Python and dispatch" among them."""

    seconds: float
    shares: Mapping[str, float]


def profile_step(step: Callable[[], object]) -> Profile:
    """Profiles some steps. What is not inside an operation is Python's and the dispatcher's, profiler included."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        started = time.perf_counter()
        for _ in range(STEPS):
            step()
        wall = time.perf_counter() - started
    busy: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        name = str(event.key)
        if name.startswith("aten::"):
            busy[_kind(name)] += event.self_cpu_time_total / 1e6
    shares = {kind: busy[kind] / wall for kind in (*KINDS, "other")}
    return Profile(wall / STEPS, {**shares, "Python and dispatch": 1 - sum(shares.values())})


def _kind(name: str) -> str:
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")
