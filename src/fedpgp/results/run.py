"""Results of one run, and of a comparison of several runs."""

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

SUMMARIES = ("hm", "cm", "area")  # metrics in the last columns of every table
RANKED = ("local", "base", "novel")  # metrics of a rank, if the task has them
PARTS = {"final": "client", "shared": "shared"}  # key of the results -> name in frames and CSV files
VALIDATION: Final = "validation"  # instead of an α: the α that is best on each run's validation images


@dataclass(frozen=True)
class Run:
    """Results of one method with one seed: the content of a run directory.

    Attributes
    ----------
    config
        config.toml.
    results
        results.json.
    rounds
        rounds.jsonl: one record per round.
    prompts
        prompts.safetensors, read when it is used: "shared/NAME" of the server and "private/CLIENT/NAME" of each client.
        A client that keeps a shared part of its own also has "kept/CLIENT/NAME", and a client that receives tensors of
        its own has "received/CLIENT/NAME".
    outcomes
        outcomes.safetensors; None for a run across machines, because its clients keep them.
    provenance
        provenance.json.
    alpha
        Interpolation between the shared model (0) and the personal models (1) that "final" of the results belongs to.
        `at` chooses another.
    answers
        answers.safetensors: the predictions of the clients' models for every test image, described in
        `fedpgp.results.summary.answers`; empty if the clients keep them.
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
        """Name of the method."""
        return str(self.results["method"])

    @property
    def seed(self) -> int:
        """Random seed of the run."""
        return int(self.results["seed"])

    @property
    def coverage(self) -> str:
        """How many clients the results cover, such as "3 of 4 clients"; empty if no client is missing."""
        if "evaluated" not in self.results:
            return ""
        return f"{len(self.results['evaluated'])} of {self.results['task']['clients']} clients"

    def at(self, alpha: float | Literal["validation"]) -> "Run":
        """Return the run with the results at an interpolation between the shared (0) and the personal models (1).

        Only "final" of the results and `client_locals` change. A run without a path stays as it is.

        Parameters
        ----------
        alpha
            A value that was evaluated, or "validation" for the value that is best on this run's validation images of
            base classes.

        Raises
        ------
        OutputError
            The run was not evaluated at this value.
        """
        path = self.results["path"]
        chosen: float = self.results["alpha_on_validation"] if alpha == VALIDATION else alpha
        if len(path) == 1:
            return self
        point = next((point for point in path if math.isclose(point["alpha"], chosen, abs_tol=1e-9)), None)
        if point is None:
            known = ", ".join(f"{point['alpha']:g}" for point in path)
            raise OutputError(
                where="alpha",
                allowed=f"{VALIDATION!r} or one of {known}, the values at which {self.method} was evaluated",
                got=alpha,
                remedy="Use one of these values, or run the method again with more federation.path_points",
            )
        final = {name: point.get(name, value) for name, value in self.results["final"].items()}
        return replace(self, results={**self.results, "final": final}, alpha=point["alpha"])

    @cached_property
    def resampled(self) -> Figures:
        """Every metric, computed on the test images and on each resample of them."""
        if self.outcomes is None:
            raise OutputError(
                "a run across machines cannot be resampled, because its clients keep their predictions",
                where=f"{self.method}, seed {self.seed}",
                remedy="Compare runs of one machine instead",
            )
        return resampled(self.outcomes, self.alpha)

    @property
    def client_locals(self) -> list[float] | None:
        """Local accuracy of each client's model at `alpha`, in percent.

        None if it is unknown: for a run across machines at α < 1, because the clients keep their predictions.
        """
        if self.alpha == 1:
            return [client["local"] for client in self.results["clients"]]
        return None if self.outcomes is None else self.outcomes.local(self.alpha)

    def class_accuracies(self, name: Literal["local", "base", "novel"]) -> NDArray[np.float64] | None:
        """Return the accuracy of each client on each class.

        Parameters
        ----------
        name
            The test set.

        Returns
        -------
        [N, C] in percent, for N clients and the C classes of `results["task"]["base_names"]` or "novel_names". NaN if a
        client has no image of a class. None if the clients keep their predictions, or if there is no novel class.
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
        """Local, Base and Novel of the last round, averaged over classes with equal weights, in percent.

        The results of an older run do not contain it, so it is computed from the answers. It is empty if the clients
        keep them.
        """
        if "macro" in self.results:
            return dict(self.results["macro"])
        names: tuple[Literal["local", "base", "novel"], ...] = ("local", "base", "novel")
        found = {name: self.class_accuracies(name) for name in names}
        return {name: macro_accuracy(of_classes) for name, of_classes in found.items() if of_classes is not None}

    def table(self) -> "DataFrame":
        """Return a row for "client" and, if there is a shared model, for "shared"; metrics in percent."""
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
        """The run as a row of `--json`, with the accuracies of the last round in percent."""
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
    """A run that is not finished.

    Attributes
    ----------
    method, seed
        The run.
    rounds
        The number of rounds that it will have.
    record
        Record of its last round; None before the first.
    running
        Another process works on it, so that its progress cannot be read. Otherwise it was stopped and can be resumed.
    """

    method: str
    seed: int
    rounds: int
    record: Mapping[str, Any] | None = None
    running: bool = False


@dataclass(frozen=True)
class Comparison:
    """Results of several methods on one task.

    Attributes
    ----------
    runs
        The finished runs.
    unfinished
        The runs that are not finished.
    """

    runs: Sequence[Run]
    unfinished: Sequence[Unfinished] = ()

    @cached_property
    def methods(self) -> list[str]:
        """Methods with a finished run, in the order of the runs."""
        return list(dict.fromkeys(run.method for run in self.runs))

    @cached_property
    def seeds(self) -> list[int]:
        """Seeds with a finished run, sorted."""
        return sorted({run.seed for run in self.runs})

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row for each finished run, see `Run.row`."""
        return [run.row for run in self.runs]

    @property
    def task(self) -> dict[str, Any] | None:
        """Description of the task of all runs; None before a run is finished."""
        return dict(self.runs[0].results["task"]) if self.runs else None

    def of(self, method: str) -> list[Run]:
        """Return the finished runs of a method, sorted by seed.

        Parameters
        ----------
        method
            Name of the method.

        Raises
        ------
        OutputError
            The method has no finished run.
        """
        if method not in self.methods:
            raise OutputError(
                where="method",
                allowed="a method with a finished run in the comparison",
                got=method,
                remedy=nearest(method, self.methods),
            )
        return sorted((run for run in self.runs if run.method == method), key=lambda run: run.seed)

    def only(self, methods: Sequence[str]) -> "Comparison":
        """Return a comparison with the finished runs of the given methods."""
        chosen = [methods] if isinstance(methods, str) else methods
        return Comparison([run for run in self.runs if run.method in chosen])

    def mean(self, method: str, part: str = "final") -> dict[str, tuple[float, float | None]]:
        """Return the mean and the standard deviation of every metric over the seeds of a method.

        Parameters
        ----------
        method
            Name of the method.
        part
            "final" for the clients' models, or "shared" for the shared model.

        Returns
        -------
        Metric -> mean and standard deviation; with one seed, the standard deviation is None.
        """
        figures = [run.results[part] for run in self.of(method)]
        return {name: spread([figure[name] for figure in figures]) for name in figures[0]}

    def against(self, first: str, second: str) -> dict[str, Difference]:
        """Return the differences of the metrics, first minus second, with a paired bootstrap over the test images.

        Parameters
        ----------
        first, second
            Names of the methods. Their common seeds are compared.

        Raises
        ------
        OutputError
            The methods have no common seed.
        """
        ones, others = ({run.seed: run.resampled for run in self.of(method)} for method in (first, second))
        common = [seed for seed in ones if seed in others]
        if not common:
            raise OutputError(
                f"{first} and {second} have no finished runs with a common seed", remedy="Run both with the same seed"
            )
        return differences([ones[seed] for seed in common], [others[seed] for seed in common])

    def rank(self, method: str) -> float:
        """Return the mean rank of a method, with 1 for the best.

        The mean is over its seeds and over Local, Base and, if the task has it, Novel. Each rank is among all methods
        with the same seed. Methods with equal accuracies share the mean of their ranks.
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
        """Return the comparison with every run at an interpolation α, as in `Run.at`."""
        return replace(self, runs=[run.at(alpha) for run in self.runs])

    def table(self) -> "DataFrame":
        """Return a row for each method and part, with the mean and the standard deviation of every metric in percent.

        The parts are "client" and "shared". The standard deviation is in column NAME_std, and is NaN for one seed. A
        metric that a part does not have is NaN, too. The order is the order of the printed table.
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
        """Return the object that `--json` prints."""
        return {"task": self.task, "rows": self.rows}


def columns(run: Run) -> list[str]:
    """Return the metrics of a run in the order of the tables: the test sets, then the summaries."""
    return [*(name for name in run.results["final"] if name not in SUMMARIES), *SUMMARIES]


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation, which is None for one value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def _text(frame: "DataFrame") -> str:
    return frame.dropna(axis="columns", how="all").to_string(float_format="%.1f", na_rep="")


def _html(heading: str, frame: "DataFrame") -> str:
    return f"<p>{escape(heading)}</p>{frame.dropna(axis='columns', how='all').to_html(float_format='%.1f', na_rep='')}"


def headline(record: Mapping[str, Any]) -> str:
    """Describe a round in one line: its accuracies if it was evaluated, otherwise its loss."""
    if "local" in record:
        accuracies = ", ".join(f"{name.capitalize()} {record[name]:.1f}" for name in RANKED if name in record)
        covered = len(record.get("evaluated", ()))
        missing = sum(drop["in"] == "evaluate" for drop in record.get("dropped", ()))
        return accuracies + (f" (covers {covered} of {covered + missing} clients)" if covered else "")
    return f"loss {sum(value for name, value in record.items() if name.startswith('loss_')):.3f}"
