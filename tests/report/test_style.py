"""The look of every method: colours for colour-blind readers and dark pages, and the same look in every chart."""

import json
import re
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from test_comparison import FAIR, GOOD, run

from fedpgp.methods import METHODS
from fedpgp.report import charts, frames
from fedpgp.report.style import COLOURS, GREY, LOOKS, MARKERS, Series, look_of, rendered
from fedpgp.results.run import Comparison

COMPARED = ("zero-shot", "local", "promptfl", "fedpgp", "fedkgcoop", "promptfolio", "fedotp", "pfedmoap")
GROUNDS = ("#FFFFFF", "#17181C")  # of a page, and of the report in dark mode
# Machado, Oliveira and Fernandes 2009, severity 1.0: matrices of linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> NDArray[np.float64]:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    xyz = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(1)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    low, high = sorted(XYZ[1] @ linear(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("vision", VISIONS)
def test_two_colours_differ_for_every_reader(vision: str) -> None:
    seen = {colour: lab(np.array(VISIONS[vision]) @ linear(colour)) for colour in COLOURS}
    assert min(np.linalg.norm(seen[one] - seen[other]) for one, other in combinations(COLOURS, 2)) >= 20


@pytest.mark.parametrize("ground", GROUNDS)
def test_colours_have_contrast_on_white_and_in_dark_mode(ground: str) -> None:
    assert min(contrast(colour, ground) for colour in COLOURS) >= 3


def test_every_built_in_method_has_a_look_of_its_own() -> None:
    """The marker and the dashes are enough, as in black-and-white print."""
    assert set(LOOKS) == set(METHODS)
    assert len({(look.marker, look.dash) for look in LOOKS.values()}) == len(LOOKS)
    for one, other in combinations(LOOKS.values(), 2):
        if one.marker == other.marker:
            assert abs(lab(linear(one.colour))[0] - lab(linear(other.colour))[0]) >= 7, (one, other)
    compared = [LOOKS[name] for name in COMPARED]
    assert len({look.colour for look in compared}) == len({look.marker for look in compared}) == len(COMPARED)


def test_a_look_depends_only_on_the_name_of_the_method() -> None:
    assert look_of("my-method") == look_of("my-method, seed 1 (running)")
    assert look_of("fedpgp, seed 0 (running)") == LOOKS["fedpgp"]
    others = {look_of(f"method-{i}") for i in range(2000)}
    assert len(others) == (len(COLOURS) - 1) * len(MARKERS) * 2, "as the docstring says"
    assert not {(look.marker, look.dash) for look in others} & {(look.marker, look.dash) for look in LOOKS.values()}
    assert GREY not in {look.colour for look in others}


def looks_in(chart: Any) -> dict[str, tuple[str, str]]:
    """Return the colour and the marker of each method in a specification."""
    markers, colours = dict[str, str](), dict[str, str]()

    def read(part: Any) -> None:
        if isinstance(part, dict):
            if str(part.get("calculate", "")).endswith("[datum.method]"):
                markers.update(json.loads(part["calculate"].removesuffix("[datum.method]")))
            colour = part.get("color")
            if isinstance(colour, dict) and colour.get("field") == "method":
                colours.update(zip(colour["scale"]["domain"], colour["scale"]["range"], strict=True))
            part = list(part.values())
        if isinstance(part, list):
            for one in part:
                read(one)

    read(chart.to_dict())
    return {name: (colour, markers[name]) for name, colour in colours.items()}


def test_a_method_has_the_same_look_in_every_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["promptfl", "mine", "fedpgp"]
    runs = [run(name, seed, FAIR, GOOD) for name in names for seed in (0, 1)]
    final = runs[0].results["final"]
    trained = [replace(one, rounds=[{"round": number, **final} for number in (1, 2)]) for one in runs]
    comparison = Comparison([*trained, replace(run("zero-shot", 0, FAIR), rounds=[{"round": 0, **final}])])
    points = [(name, label, final) for name in ["zero-shot", *names] for label in ("1", "2")]
    of_clients = [[name, 0, 0, 50.0, 1.0, "shared part", ""] for name in [*names, "zero-shot"]]
    columns = ["method", "seed", "client", "local", "gain", "over", "classes"]
    path = frames.tradeoff(comparison)
    made = [
        charts.curves(frames.learning_curves(comparison)),
        charts.curves(frames.spreads("label", points, {"local": "Local"}), "mu"),
        charts.curves(frames.spreads("label", points[::-1], {"local": "Local"}), "mu", joined=False, standing=["1"]),
        charts.tradeoff(path, "Base"),
        charts.tradeoff(path[path["method"] != "promptfl"], "Base"),
        charts.clients(pd.DataFrame(of_clients, columns=columns)),
    ]
    monkeypatch.setattr(charts, "TOGETHER", 2)
    made.append(charts.tradeoff(path, "Base"))
    for chart in made:
        found = looks_in(chart)
        assert {"mine", "fedpgp", "zero-shot"} <= set(found)
        assert found == {name: (look_of(name).colour, MARKERS[look_of(name).marker]) for name in found}


def test_points_of_an_axis_have_looks_by_position() -> None:
    looks = Series([str(i) for i in range(12)], "mu").looks
    assert len(set(looks)) == 12 and looks[:3] == Series(["a", "b", "c"], "mu").looks


def texts_of(chart: Any) -> list[str]:
    """Return the texts of the picture, which has a white ground."""
    svg = rendered(chart, "svg").decode()
    assert re.search(r'^<svg [^>]+><rect [^>]+ fill="white"/>', svg)
    return re.findall(r">([^<]+)</t(?:ext|span)>", svg)


def test_a_picture_explains_itself() -> None:
    """The SVG has a white ground, the meaning of each axis and panel, and the meaning of bands, dots and lines."""
    runs = [run(name, seed, FAIR, GOOD) for name in ("promptfl", "fedpgp") for seed in (0, 1)]
    both = Comparison(runs)
    svg = texts_of(charts.tradeoff(frames.tradeoff(both), "HM(Base, Novel)"))
    for text in (
        "Large mark: the clients' own models, mean over 2 seeds.",
        "Small outlines: the clients' own models of each seed.",
        "Line with dots: from there to the shared model; each dot is a mixture of both.",
        "each client's own test images",
        "harmonic mean of both",
        "Local (%)",
        "HM(Base, Novel) (%)",
    ):
        assert text in svg, text
    single = texts_of(charts.tradeoff(frames.tradeoff(Comparison([run("zero-shot", 0, FAIR)])), "Base"))
    assert not re.search("seed|Line", " ".join(single)) and "all classes that clients train on" in single
    points = [
        (name, number, {"local": number + seed, "base": 1.0, "novel": 1.0, "cm": 1.0})
        for name, number, seed in [("zero-shot", 0, 0), ("fedpgp", 1, 0), ("fedpgp", 1, 3), ("fedpgp", 2, 0)]
    ]
    named = {"local": "Local", "base": "Base", "novel": "Novel", "cm": "CM"}
    svg = texts_of(charts.curves(frames.spreads("round", points, named)))
    for text in (
        "Bands: one standard deviation over the seeds.",
        "Horizontal line: zero-shot, which does not train.",
        "Local: each client's own test images",
        "Novel: classes that no client trains on",
        "CM: mean of Local and HM(Base, Novel)",
    ):
        assert text in svg, text
    svg = texts_of(charts.curves(frames.spreads("round", points[1:2], {"local": "Local", "cm": "CM"})))
    assert not re.search("deviation|Horizontal", " ".join(svg)) and "CM: mean of Local and Base" in svg
