"""Options of a benchmark, and the input of its parts."""

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
# Relative tolerance of loss and gradients. In float32, cutting at EOS changes transformers by 1.0e-5 (AVX512).
TOLERANCE = {"float32": 2e-5, "float64": 1e-9}


@dataclass(frozen=True)
class Options:
    """Options of a benchmark.

    Attributes
    ----------
    shape
        Name of the shape of the model, one of `SHAPES`.
    parts
        Parts to measure, some of `PARTS`.
    repeat
        Number of repetitions of every timing.
    threads
        Number of threads.
    seed
        Random seed.
    precision
        Name of the floating-point type.
    classes
        Number of class names in the part "classes".
    methods
        Names of methods in the part "methods"; empty means all.
    """

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
                raise ConfigError(where=name, allowed="known", got=value, remedy=nearest(value, known))
        if "bf16" in self.parts and self.precision != "float32":
            raise ConfigError(
                where="precision",
                allowed="float32 for the part bf16, which is compared with float32",
                got=self.precision,
                remedy="Use --precision float32, or leave bf16 out of --parts",
            )
        for name, least in {"repeat": 1, "threads": 1, "classes": 1, "seed": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(
                    where=name, allowed=f"{least} or more", got=getattr(self, name), remedy=f"Use --{name} {least}"
                )
        for method in self.methods:
            find_method(method)


@dataclass(frozen=True)
class Bench:
    """Input of the parts. A part is a function of a Bench that returns its results for `fedpgp bench --json`.

    Attributes
    ----------
    options
        Options of the benchmark.
    step
        The local step that is measured.
    say
        Function that is called with progress texts.
    result
        Results of the preceding parts, by name.
    """

    options: Options
    step: Step
    say: Callable[[str], None] = lambda text: None
    result: dict[str, Any] = field(default_factory=dict)
