"""A small stage for the tests of the demo, and its visitors."""

import re
from dataclasses import replace

import numpy as np
import pytest
from demo_pages import KINDS, Demo
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


@pytest.fixture
def demo(cache, tmp_path):
    """A demo in a separate process, which is stopped after the test."""
    demo = Demo(cache, tmp_path / "err")
    demo.address = demo.start()
    yield demo
    demo.stop()


@pytest.fixture
def address(demo):
    return demo.address


@pytest.fixture
def faults():
    """Faults that the pages of a test reported. There must be none in the end, except refusals with a message."""
    faults = []
    yield faults
    assert [fault for fault in faults if not re.search("status of (409|422)", fault)] == []


@pytest.fixture
def visit(browser, address, faults):
    """Open the page, and note all that it loads from other hosts, and the errors of the console."""
    pages = []

    def open_page(address=address, context=None, **options):
        options = {"viewport": {"width": 1360, "height": 900}, **options}
        page = context.new_page() if context else browser.new_page(**options)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console", lambda said: faults.append(f"{said.text} {said.location['url']}") if said.type in KINDS else None
        )
        page.on("request", lambda asked: None if asked.url.startswith((address, "blob:")) else faults.append(asked.url))
        page.goto(address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
