"""Figures on labelled images, compared with scikit-learn, SciPy and naive loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

from fedpgp.evaluation import scoring

CLASSES = 5


@st.composite
def answers(draw):
    """True and predicted classes, and confidences. Some confidences are on the edges of bins."""
    images = draw(st.integers(1, 40))
    of_class = st.lists(st.integers(0, CLASSES - 1), min_size=images, max_size=images)
    edges = st.sampled_from([0.0, 1 / 15, 0.2, 1 / 3, 0.6, 1.0])
    confidence = st.lists(st.floats(0, 1) | edges, min_size=images, max_size=images)
    return np.array(draw(of_class)), np.array(draw(of_class)), np.array(draw(confidence))


def naive_bins(confidence, correct):
    """Return the pairs of confidence and answer in each of 15 bins (low, high], of which the first contains 0."""
    bins = [[] for _ in range(15)]
    for p, right in zip(confidence, correct, strict=True):
        number = next(k for k in range(15) if p <= (k + 1) / 15 + 1e-12)
        bins[number].append((p, right))
    return bins


@given(answers())
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@pytest.mark.filterwarnings("ignore:The number of unique classes is greater than 50%")
def test_accuracies_and_confusion_are_those_of_scikit_learn(drawn):
    truth, predicted, _ = drawn
    correct = truth == predicted
    accuracy, macro = scoring.accuracy(correct), scoring.macro_accuracy(correct, truth)
    assert accuracy.value == pytest.approx(100 * accuracy_score(truth, predicted))
    assert macro.value == pytest.approx(100 * balanced_accuracy_score(truth, predicted))
    expected = confusion_matrix(truth, predicted, labels=range(CLASSES))
    assert np.array_equal(scoring.confusion(truth, predicted, CLASSES), expected)
    for figure in (accuracy, macro):
        assert 0 <= figure.low <= figure.value <= figure.high <= 100


@settings(max_examples=30)
@given(answers())
def test_reliability_is_that_of_a_naive_loop(drawn):
    truth, predicted, confidence = drawn
    correct = truth == predicted
    found, bins = scoring.reliability(confidence, correct), naive_bins(confidence, correct)
    assert found.images.tolist() == list(map(len, bins))
    error = 0.0
    for k, pairs in enumerate(bins):
        if pairs:
            mean, right = (float(np.mean(values)) for values in zip(*pairs, strict=True))
            assert (found.confidence[k], found.accuracy[k]) == pytest.approx((100 * mean, 100 * right))
            error += 100 * len(pairs) / len(truth) * abs(mean - right)
        else:
            assert np.isnan([found.confidence[k], found.accuracy[k], found.low[k]]).all()
    (interval,) = scoring.calibration_errors([(confidence, correct)])
    assert interval.value == pytest.approx(error, abs=1e-9)
    assert 0 <= interval.low <= interval.value <= interval.high


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_a_proportion_is_wilsons(drawn):
    right, images = drawn
    expected = binomtest(right, images).proportion_ci(method="wilson")
    low, high = scoring.wilson(right, images)
    assert (float(low), float(high)) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)


def test_a_class_without_an_image_has_no_interval():
    low, high = scoring.wilson(np.array([0, 3]), np.array([0, 3]))
    assert np.isnan([low[0], high[0]]).all()
    assert high[1] == 100


def covered(figure, truth, repetitions=150):
    return np.mean([(found := figure()).low <= truth <= found.high for _ in range(repetitions)])


@pytest.mark.parametrize(("accuracies", "images"), [([0.9, 0.5, 0.99], 4), ([0.95] * 10, 20), ([0.7] * 40, 2)])
def test_the_interval_of_macro_accuracy_contains_the_true_value(accuracies, images):
    rng, targets = np.random.default_rng(0), np.repeat(np.arange(len(accuracies)), images)

    def drawn():
        return scoring.macro_accuracy(rng.random(len(targets)) < np.array(accuracies)[targets], targets)

    assert covered(drawn, 100 * np.mean(accuracies)) > 0.9


@pytest.mark.parametrize(("shift", "images"), [(0.0, 50), (0.0, 200), (0.15, 100)])
def test_the_interval_of_the_calibration_error_contains_the_true_value(shift, images, monkeypatch):
    monkeypatch.setattr(scoring, "RESAMPLES", 200)
    rng = np.random.default_rng(0)

    def world(n):
        confidence = rng.uniform(0.3, 1, n)
        return confidence, rng.random(n) < confidence - shift

    truth = scoring.calibration_error(*world(300_000))
    assert covered(lambda: scoring.calibration_errors([world(images)])[0], truth) >= 0.9
