"""What is asked of a benchmark, and what its parts work on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedpgp.bench.shapes import SHAPES
from fedpgp.bench.step import Step
from fedpgp.errors import ConfigError, nearest
from fedpgp.methods.plugins import find_method

PARTS = (
    "step",
    "round",
    "scaling",
    "classes",
    "general",
    "bf16",
    "profile",
    "recipe",
    "methods",
    "depth",
    "conditional",
)
# Of loss and gradients, relative. In float32 transformers differs from itself, cut at EOS, by 1.0e-5 (AVX512).
TOLERANCE = {"float32": 2e-5, "float64": 1e-9}


@dataclass(frozen=True)
class Options:
    """What to measure. repeat: of every timing; classes: names in the part of that name; methods: none means all."""

    shape: str
    parts: Sequence[str]
    repeat: int
    threads: int
    seed: int
    precision: str
    classes: int
    methods: Sequence[str] = ()

    def __post_init__(self) -> None:
        checked = [("shape", self.shape, SHAPES), ("precision", self.precision, TOLERANCE)]
        for name, value, known in [*checked, *(("parts", part, PARTS) for part in self.parts)]:
            if value not in known:
                raise ConfigError(f"{name} must be known, got {value!r}; {nearest(value, known)}")
        if "bf16" in self.parts and self.precision != "float32":
            raise ConfigError(
                f"precision must be float32 for the part bf16, which is held against it, got {self.precision!r}"
            )
        for name, least in {"repeat": 1, "threads": 1, "classes": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be {least} or more, got {getattr(self, name)}")
        for method in self.methods:
            find_method(method)


@dataclass(frozen=True)
class Bench:
    """What the parts work on. say: hears what is going on; result: of the parts before, by name.

    A part is a function of a Bench, and returns what `fedpgp bench --json` prints of it.
    """

    options: Options
    step: Step
    say: Callable[[str], None] = lambda text: None
    result: dict[str, Any] = field(default_factory=dict)
