"""What a run left behind, and what several say together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from html import escape
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedpgp.config import ExperimentConfig
from fedpgp.errors import OutputError, nearest
from fedpgp.evaluation.bootstrap import Difference, Figures, Outcomes, differences, resampled
from fedpgp.evaluation.metrics import class_accuracies, macro_accuracy

if TYPE_CHECKING:
    from pandas import DataFrame

SUMMARIES = ("hm", "cm", "area")  # the last columns of every table
RANKED = ("local", "base", "novel")  # where the task has them
PARTS = {"final": "client", "shared": "shared"}  # of results -> what frames and CSV files call it
VALIDATION: Final = "validation"  # in the place of an α: the one that validation images choose for each run


@dataclass(frozen=True)
class Run:
    """One method with one seed: exactly what its directory holds.

    results: results.json; rounds: rounds.jsonl, one record per round; prompts: prompts.safetensors, the server's
    "shared/NAME", each client's "private/CLIENT/NAME", where it keeps a shared part of its own "kept/CLIENT/NAME" and
    where it is sent what nobody else is "received/CLIENT/NAME", read when asked for; outcomes: outcomes.safetensors,
    None of a run across machines, where the clients keep them; provenance: provenance.json. alpha: where on the path
    between the shared part alone and the clients' own models "final" is, see `at`. answers: answers.safetensors, what
    the clients' models said of every test image, see `fedpgp.results.summary.answers`; empty where the clients keep it.
    """

    config: ExperimentConfig
    results: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    prompts: Mapping[str, Tensor]
    outcomes: Outcomes | None
    provenance: Mapping[str, Any]
    alpha: float = 1.0
    answers: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return str(self.results["method"])

    @property
    def seed(self) -> int:
        return int(self.results["seed"])

    def at(self, alpha: float | Literal["validation"]) -> "Run":
        """The same run with the models at α between the shared part alone (0) and the clients' own (1).

        That is its "final" and `client_locals`; other results stay as they are.

        alpha: one that was evaluated, or "validation" for the one that this run's validation images of base classes
        choose. A run without a path stays as it is. Raises OutputError for another α.
        """
        path = self.results["path"]
        chosen: float = self.results["alpha_on_validation"] if alpha == VALIDATION else alpha
        if len(path) == 1:
            return self
        point = next((point for point in path if math.isclose(point["alpha"], chosen, abs_tol=1e-9)), None)
        if point is None:
            known = ", ".join(f"{point['alpha']:g}" for point in path)
            raise OutputError(
                f"alpha must be {VALIDATION!r} or one of {known}, where {self.method} was evaluated, got {alpha}: run"
                " it with another federation.path_points for more of them"
            )
        final = {name: point.get(name, value) for name, value in self.results["final"].items()}
        return replace(self, results={**self.results, "final": final}, alpha=point["alpha"])

    @cached_property
    def resampled(self) -> Figures:
        """Every metric, as it is and in each resample of the test images."""
        if self.outcomes is None:
            raise OutputError(
                f"{self.method}, seed {self.seed} was run across machines, where which test image a client gets right"
                " stays with the client: there is nothing to resample"
            )
        return resampled(self.outcomes, self.alpha)

    @property
    def client_locals(self) -> list[float] | None:
        """Local of each client's model at `alpha`, in percent.

        None where that is not known: at α < 1 of a run across machines, whose clients keep what tells it.
        """
        if self.alpha == 1:
            return [client["local"] for client in self.results["clients"]]
        return None if self.outcomes is None else self.outcomes.local(self.alpha)

    def class_accuracies(self, name: Literal["local", "base", "novel"]) -> NDArray[np.float64] | None:
        """[N, C] percent of each class's test images that each client gets right; NaN where it has none of a class.

        Columns are those of `results["task"]["base_names"]`, or of "novel_names". None where the clients keep what
        tells it, or where nothing is novel.
        """
        test = "novel" if name == "novel" else "base"
        if f"{test}/predicted" not in self.answers:
            return None
        predicted, labels = (self.answers[f"{test}/{what}"].numpy() for what in ("predicted", "labels"))
        own = None if name != "local" or self.outcomes is None else self.outcomes.unpack("own")
        count = len(self.results["task"][f"{test}_names"])
        return class_accuracies(predicted == labels, labels.astype(np.int64), count, own)

    @cached_property
    def macro(self) -> Mapping[str, float]:
        """Local, Base and Novel of the last round with every class of the same weight, in percent.

        Of a run whose results do not have it yet, it is computed from the answers; empty where the clients keep them.
        """
        if "macro" in self.results:
            return dict(self.results["macro"])
        names: tuple[Literal["local", "base", "novel"], ...] = ("local", "base", "novel")
        found = {name: self.class_accuracies(name) for name in names}
        return {name: macro_accuracy(of_classes) for name, of_classes in found.items() if of_classes is not None}

    def table(self) -> "DataFrame":
        """A row for each part, "client" and, where there is one, "shared" alone; metrics in percent."""
        from pandas import DataFrame, Index

        parts = {title: self.results[part] for part, title in PARTS.items() if self.results[part] is not None}
        return DataFrame(list(parts.values()), index=Index(parts, name="part"), columns=columns(self), dtype=float)

    def __repr__(self) -> str:
        return f"{self._heading}\n{_text(self.table())}"

    def _repr_html_(self) -> str:  # what a notebook shows
        return _html(self._heading, self.table())

    @property
    def _heading(self) -> str:
        return f"fedpgp.Run: {self.method}, seed {self.seed}, {len(self.rounds)} rounds; percent"

    @property
    def row(self) -> dict[str, Any]:
        """The run as a row of `--json`; accuracies in percent, of the last round."""
        return {
            "method": self.method,
            "seed": self.seed,
            "alpha": self.alpha,
            **{name: self.results["final"][name] for name in columns(self)},
            "bytes_up_per_client_round": self.results["bytes_up_per_client_round"],
            "seconds": self.results["seconds"],
        }


@dataclass(frozen=True)
class Unfinished:
    """A run that was stopped and can be resumed, or that another process works on, whose progress cannot be read.

    rounds: how many it is to have; record: of its last round, or None before the first.
    """

    method: str
    seed: int
    rounds: int
    record: Mapping[str, Any] | None = None
    running: bool = False


@dataclass(frozen=True)
class Comparison:
    """Several methods on one task. runs: those that are finished."""

    runs: Sequence[Run]
    unfinished: Sequence[Unfinished] = ()

    @cached_property
    def methods(self) -> list[str]:
        """Those with a finished run, in the order of the runs."""
        return list(dict.fromkeys(run.method for run in self.runs))

    @cached_property
    def seeds(self) -> list[int]:
        """Those with which any method has finished."""
        return sorted({run.seed for run in self.runs})

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [run.row for run in self.runs]

    @property
    def task(self) -> dict[str, Any] | None:
        """What all runs were trained and tested on; None before one is finished."""
        return dict(self.runs[0].results["task"]) if self.runs else None

    def of(self, method: str) -> list[Run]:
        """The finished runs of a method, by seed; raises OutputError for one that has none."""
        if method not in self.methods:
            raise OutputError(
                f"method must be one of the comparison's, got {method!r}; {nearest(method, self.methods)}"
            )
        return sorted((run for run in self.runs if run.method == method), key=lambda run: run.seed)

    def only(self, methods: Sequence[str]) -> "Comparison":
        """The same with the finished runs of some of its methods."""
        chosen = [methods] if isinstance(methods, str) else methods
        return Comparison([run for run in self.runs if run.method in chosen])

    def mean(self, method: str, part: str = "final") -> dict[str, tuple[float, float | None]]:
        """Mean and standard deviation (None for one seed) over its seeds of every figure. part: "final" or "shared"."""
        figures = [run.results[part] for run in self.of(method)]
        return {name: spread([figure[name] for figure in figures]) for name in figures[0]}

    def against(self, first: str, second: str) -> dict[str, Difference]:
        """First minus second on the seeds that both have: paired bootstrap over the test images.

        Raises OutputError where they have none in common.
        """
        ones, others = ({run.seed: run.resampled for run in self.of(method)} for method in (first, second))
        common = [seed for seed in ones if seed in others]
        if not common:
            raise OutputError(f"{first} and {second} share no finished seed: nothing to compare; run both with one")
        return differences([ones[seed] for seed in common], [others[seed] for seed in common])

    def rank(self, method: str) -> float:
        """The mean rank of a method, 1 the best, in Local, Base and, where the task has it, Novel of each of its seeds.

        It is the rank among all methods that have the seed. Equal figures share the mean of their ranks.
        """
        ranks = []
        for run in self.of(method):
            others = [other for other in self.runs if other.seed == run.seed]
            for name in RANKED:
                if name not in run.results["final"]:
                    continue
                figure = run.results["final"][name]
                better = sum(other.results["final"][name] > figure for other in others)
                equal = sum(other.results["final"][name] == figure for other in others)
                ranks.append(better + (equal + 1) / 2)
        return fmean(ranks)

    def at(self, alpha: float | Literal["validation"]) -> "Comparison":
        """The same with every run's models at an α of its path, see `Run.at`."""
        return replace(self, runs=[run.at(alpha) for run in self.runs])

    def table(self) -> "DataFrame":
        """A row for each method and part ("client", or "shared" alone): mean and, as NAME_std, standard deviation.

        In percent, in the order of the printed table; of one seed the deviation is NaN, as is what a part has not.
        """
        from pandas import DataFrame, MultiIndex

        shown = columns(self.runs[0]) if self.runs else []
        rows = {
            (method, title): [value for name in shown for value in figures.get(name, (None, None))]
            for method in self.methods
            for part, title in PARTS.items()
            if self.of(method)[0].results[part] is not None
            for figures in [self.mean(method, part)]
        }
        return DataFrame(
            list(rows.values()),
            index=MultiIndex.from_tuples(rows, names=("method", "part")) if rows else None,
            columns=[column for name in shown for column in (name, f"{name}_std")],
            dtype=float,
        )

    def __repr__(self) -> str:
        return f"{self._heading}\n{_text(self.table())}" if self.runs else self._heading

    def _repr_html_(self) -> str:  # what a notebook shows
        return _html(self._heading, self.table())

    @property
    def _heading(self) -> str:
        waiting = f", {len(self.unfinished)} runs unfinished" if self.unfinished else ""
        seeds = ", ".join(map(str, self.seeds)) or "none"
        return f"fedpgp.Comparison: {len(self.methods)} methods, seeds {seeds}{waiting}; percent"

    def as_json(self) -> dict[str, Any]:
        """The one object that `--json` prints."""
        return {"task": self.task, "rows": self.rows}


def columns(run: Run) -> list[str]:
    """The figures of a run in the order in which tables show them: its test sets, then what sums them up."""
    return [*(name for name in run.results["final"] if name not in SUMMARIES), *SUMMARIES]


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; None where there is one value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def _text(frame: "DataFrame") -> str:
    return frame.dropna(axis="columns", how="all").to_string(float_format="%.1f", na_rep="")


def _html(heading: str, frame: "DataFrame") -> str:
    return f"<p>{escape(heading)}</p>{frame.dropna(axis='columns', how='all').to_html(float_format='%.1f', na_rep='')}"


def headline(record: Mapping[str, Any]) -> str:
    """What to tell of a round in a line: its accuracies, where it was evaluated, or else its loss."""
    if "local" in record:
        return ", ".join(f"{name.capitalize()} {record[name]:.1f}" for name in RANKED if name in record)
    return f"loss {sum(value for name, value in record.items() if name.startswith('loss_')):.3f}"
