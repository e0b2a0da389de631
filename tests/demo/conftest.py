"""A small stage for the tests of the demo, and its visitors."""

from dataclasses import replace

import numpy as np
import pytest
from demo_visits import visiting

from fedpgp.data.features import split_features
from fedpgp.demo.show import Show
from fedpgp.demo.stage import SUBJECTS, DemoSetup, part_of

DRAWINGS = SUBJECTS["drawings"]


@pytest.fixture(scope="module")
def stage(pictograms, compact, cache):
    """The demo's classes with a few images each."""

    def thin(dataset, per_class):
        chosen = [np.flatnonzero(dataset.labels == label)[:per_class] for label in np.unique(dataset.labels)]
        return dataset.select(np.sort(np.concatenate(chosen)))

    source = part_of(pictograms, DRAWINGS)
    splits = {name: thin(getattr(source, name), 2) for name in ("validation", "test")}
    source = replace(source, train=thin(source.train, 8), **splits)
    features, _ = split_features(
        compact.image, [source.train, source.validation, source.test], cache, augmented_views=1
    )
    return DemoSetup(DRAWINGS, source, compact, features)


@pytest.fixture
def show(stage):
    return Show(lambda subject, progress: stage)


@pytest.fixture(scope="module")
def visitor(stage):
    """A visitor of a demo in which no federation is started."""
    show = Show(lambda subject, progress: stage)
    with visiting(show) as client:
        yield client
    assert show.view()["run"] is None
