"""The tables of a score: figures, classes, confusion, calibration and predictions of one model after the other.

Letters: n images, C classes.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpgp.data.sources.names import plain
from fedpgp.evaluation import scoring
from fedpgp.results.run import Run
from fedpgp.serving.classifier import Classifier

FRAMES = ("models", "classes", "confusion", "reliability", "predictions")
FIGURES = ("accuracy", "macro_accuracy", "own_accuracy", "calibration_error")


class Answers(NamedTuple):
    """The predicted class [n] of each image, and its probability [n]."""

    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]


@dataclass(frozen=True)
class ScoreTables:
    """The tables of a `Score`.

    Attributes
    ----------
    run
        The run.
    names
        C candidates.
    targets
        [n] the columns of the true classes.
    images
        n names of the images.
    """

    run: Run
    names: tuple[str, ...]
    targets: NDArray[np.int64]
    images: list[str]

    def of(self, model: Classifier, answers: Answers, error: scoring.Interval) -> Iterator[pd.DataFrame]:
        """Yield the model's rows of models, classes, confusion, reliability and predictions."""
        names, targets, (predicted, confidence) = self.names, self.targets, answers
        correct, whose = predicted == targets, model.owner.removeprefix("the ")
        own = self._own(model.client)
        figures = dict(
            zip(
                FIGURES,
                (
                    scoring.accuracy(correct),
                    scoring.macro_accuracy(correct, targets),
                    scoring.accuracy(correct[own[targets]]),
                    error,
                ),
                strict=True,
            )
        )
        row = {"model": whose, "client": model.client, "images": len(targets), "temperature": model.temperature}
        for name, figure in figures.items():
            row |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
        yield pd.DataFrame([row]).astype({"client": "Int64"})

        counts = scoring.confusion(targets, predicted, len(names))
        images, right = counts.sum(1), counts.diagonal()
        low, high = scoring.wilson(right, images)
        wrong = counts - np.diag(right)
        trained = {plain(name) for name in model.base}
        yield pd.DataFrame(
            {
                "model": whose,
                "class": names,
                "trained": [plain(name) in trained for name in names],
                "own": own,
                "images": images,
                "accuracy": 100 * right / np.where(images > 0, images, np.nan),
                "low": low,
                "high": high,
                "mistaken_for": [names[row.argmax()] if row.any() else "" for row in wrong],
            }
        )

        rows = np.flatnonzero(images)
        about = pd.DataFrame({"model": whose, "truth": [names[row] for row in rows]})
        yield pd.concat([about, pd.DataFrame(counts[rows], columns=list(names))], axis=1)

        edges = 100 * np.arange(scoring.BINS + 1) / scoring.BINS
        found = asdict(scoring.reliability(confidence, correct))
        yield pd.DataFrame({"model": whose, "from": edges[:-1], "to": edges[1:], **found})

        said = np.array(names, dtype=object)
        yield pd.DataFrame(
            {
                "model": whose,
                "image": self.images,
                "truth": said[targets],
                "predicted": said[predicted],
                "probability": confidence,
            }
        )

    def _own(self, client: int | None) -> NDArray[np.bool_]:
        """Return [C] whether a client trained on each candidate; nothing for the shared part."""
        clients = {row["client"]: row["classes"] for row in self.run.results["clients"]}
        own = {plain(name) for name in clients.get(client, ())}
        return np.array([plain(name) in own for name in self.names], dtype=np.bool_)
