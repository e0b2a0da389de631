"""A comparison as a pandas frame and as Altair charts."""

import csv
import io
from dataclasses import replace

import altair
import numpy as np
import pandas as pd
import pytest
from raising import raises
from test_comparison import FAIR, GOOD, run

import fedpgp
from fedpgp.errors import OutputError
from fedpgp.report import comparison, frames, tables
from fedpgp.report.plots import Plots
from fedpgp.report.style import spec_of
from fedpgp.results.run import Comparison, Run

SHARED = {"local": 50.0, "base": 40.0, "novel": 30.0, "hm": 38.0, "cm": 42.0}


def with_rounds(one: Run, *local: float) -> Run:
    final = one.results["final"]
    records = [
        {"round": number, **{name: final[name] for name in ("base", "novel", "cm")}, "local": value}
        for number, value in enumerate(local, 1)
    ]
    return replace(one, rounds=records)


@pytest.fixture
def both() -> Comparison:
    ones = [run("a", seed, FAIR, GOOD) for seed in (0, 1)]
    ones = [replace(one, results={**one.results, "shared": SHARED, "private": ["U"]}) for one in ones]
    return Comparison(
        [*(with_rounds(one, 40.0 + one.seed, 60.0) for one in ones), with_rounds(run("b", 0, FAIR), 55.0)]
    )


def test_a_frame_has_the_means_and_deviations_of_every_method_and_part(both: Comparison) -> None:
    found = both.table()
    assert list(found.index) == [("a", "client"), ("a", "shared"), ("b", "client")]
    assert found.index.names == ["method", "part"]
    assert list(found.columns[:4]) == ["local", "local_std", "base", "base_std"]
    for method, part in (("a", "final"), ("a", "shared"), ("b", "final")):
        row = found.loc[(method, "client" if part == "final" else part)]
        for name, (mean, deviation) in both.mean(method, part).items():
            assert row[name] == mean
            assert np.isnan(row[f"{name}_std"]) if deviation is None else row[f"{name}_std"] == deviation
    assert np.isnan(found.loc[("a", "shared"), "area"])
    assert set(found.dtypes) == {np.dtype(float)}
    assert found["local"].xs("client", level="part").idxmax() == "a"


def test_the_frame_equals_comparison_csv(both: Comparison) -> None:
    for line in csv.DictReader(io.StringIO(tables.comparison_csv(both))):
        row = both.table().loc[(line["method"], line["part"])]
        for name, value in row.items():
            assert line[name] == ("" if np.isnan(value) else str(value))


def test_a_runs_frame_has_a_row_for_each_part(both: Comparison) -> None:
    found = both.runs[0].table()
    assert list(found.index) == ["client", "shared"] and found.index.name == "part"
    assert found.loc["client", "area"] == both.runs[0].results["final"]["area"]
    assert found.loc["shared", "novel"] == 30.0 and np.isnan(found.loc["shared", "area"])
    assert list(both.runs[2].table().index) == ["client"]


def test_an_empty_comparison_has_an_empty_frame_and_no_figure() -> None:
    assert Comparison([]).table().empty
    with raises(OutputError, where="comparison", remedy="fedpgp compare --resume"):
        Plots(Comparison([]))


def test_the_trade_off_equals_the_written_one(both: Comparison, tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(comparison, "write_chart", lambda directory, name, chart: drawn.append((name, chart)))
    monkeypatch.setattr(comparison, "comparison_page", lambda *_: "")
    (tmp_path / "comparison.svg").touch()
    comparison.write_comparison(both, tmp_path)
    ((name, written),) = drawn
    assert name == "comparison" and spec_of(written) == Plots(both).tradeoff().to_dict()
    frame = written.data
    ends = frame[frame["alpha"] == 1].groupby("method")["local"].mean()
    assert {method: pytest.approx(both.mean(method)["local"][0]) for method in both.methods} == dict(ends)


def test_the_curves_are_means_over_the_seeds(both: Comparison) -> None:
    frame = Plots(both).curves().data
    assert list(frame["metric"].unique()) == ["Local", "Base", "Novel", "CM"]
    local = frame[frame["metric"] == "Local"].set_index(["method", "round"])
    assert list(local.loc["a"].index) == [1, 2] and list(local.loc["a"]["mean"]) == [40.5, 60.0]
    spread = local.loc[("a", 1)]["high"] - local.loc[("a", 1)]["mean"]
    assert spread == pytest.approx(np.std([40.0, 41.0], ddof=1))
    assert list(local.loc[("b", 1)][["mean", "low", "high"]]) == [55.0] * 3, "one seed has no deviation"


def test_a_chart_can_be_changed_and_saved(both: Comparison, tmp_path) -> None:
    """The caller can change and save the chart, and notebooks show it."""
    chart = Plots(both).curves().properties(title="mine")
    chart.save(tmp_path / "mine.pdf")
    assert (tmp_path / "mine.pdf").read_bytes().startswith(b"%PDF")
    assert Plots(both).curves().to_dict()["title"]["text"] == "Results over the rounds"
    with altair.renderers.enable("svg"):
        assert ">mine</text>" in chart._repr_mimebundle_()["image/svg+xml"]


def test_no_panel_is_empty(both: Comparison) -> None:
    """A metric without a value, or only of methods that do not train, has no panel."""
    named = {"local": "Local", "base": "Base", "novel": "Novel", "cm": "CM"}
    points = [
        ("zero-shot", 0, {"local": 1.0, "novel": 2.0}),
        ("a", 1, {"local": 3.0, "base": None, "cm": float("nan")}),
        ("a", 2, {"local": 4.0}),
    ]
    assert list(frames.spreads("round", points, named)["metric"].unique()) == ["Local"]
    assert frames.spreads("round", points[:1], named).empty
    assert not frames.spreads("label", [("a", "0", {"local": 1.0})], named).empty, "the label 0 is a place"
    with raises(OutputError, where="comparison", remedy="method that trains"):
        Plots(Comparison([replace(run("zero-shot", 0, FAIR), rounds=[{"round": 0, **SHARED}])])).curves()
    grid = Plots(both).curves().to_dict()
    assert grid["resolve"]["axis"] == {"x": "independent"}, "an axis at each panel, none at an empty place of the grid"


def test_an_axis_does_not_magnify_small_differences() -> None:
    ones = Comparison([run("a", 0, FAIR), run("b", 0, FAIR)])
    spec = Plots(ones).tradeoff().to_dict()
    x = next(layer["encoding"]["x"] for layer in spec["layer"] if "x" in layer.get("encoding", {}))
    low, high = x["scale"]["domain"]
    assert high - low == 2 and low < ones.runs[0].results["final"]["local"] < high


def test_a_comparison_and_a_run_show_their_table_and_not_their_config(both: Comparison) -> None:
    for shown in (repr(both), both._repr_html_(), repr(both.runs[0]), both.runs[0]._repr_html_()):
        assert "novel" in shown and "nan" not in shown.lower()
        assert len(shown.splitlines()) < 200
    assert repr(both).startswith("fedpgp.Comparison: 2 methods, seeds 0, 1")
    assert repr(both.runs[0]).splitlines()[0].startswith("fedpgp.Run: a, seed 0, ")
    assert repr(Comparison([])) == "fedpgp.Comparison: 0 methods, seeds none; percent"


def test_every_class_has_the_same_weight_in_macro_accuracy(compared):
    comparison = fedpgp.load_comparison(compared)
    run = comparison.of("fedpgp")[0]
    older = replace(run, results={name: value for name, value in run.results.items() if name != "macro"})
    assert older.macro == pytest.approx(run.results["macro"]) and set(run.macro) == {"local", "base", "novel"}
    frame = frames.by_class(run)
    for name in ("base", "novel"):
        of_set = frame[frame["set"] == name]
        assert of_set["accuracy"].mean() == pytest.approx(run.macro[name])
        micro = (of_set["accuracy"] * of_set["images"]).sum() / of_set["images"].sum()
        assert micro == pytest.approx(run.results["final"][name])
    csv = pd.read_csv(io.StringIO(tables.comparison_csv(comparison)))
    row = csv[(csv["method"] == "fedpgp") & (csv["part"] == "client")].iloc[0]
    assert row["macro_base"] == pytest.approx(np.mean([one.macro["base"] for one in comparison.of("fedpgp")]))
    assert "macro Base" in tables.diagnosis_table(comparison).header
    kept = replace(older, answers={})  # of a run across machines
    assert kept.macro == {} and frames.by_class(kept).empty
