"""A comparison as a pandas frame and as matplotlib's figures."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_comparison import FAIR, GOOD, run

from fedpgp.errors import OutputError
from fedpgp.report import curves, tables, tradeoff
from fedpgp.report.plots import Plots
from fedpgp.report.style import house_style, rendered
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


def test_the_frame_says_what_comparison_csv_says(both: Comparison) -> None:
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


def test_nothing_has_an_empty_frame_and_no_figure() -> None:
    assert Comparison([]).table().empty
    with pytest.raises(OutputError, match="no finished run: there is nothing to draw"):
        Plots(Comparison([]))


def test_the_trade_off_is_the_one_that_is_written(both: Comparison) -> None:
    figure = Plots(both).tradeoff()
    assert isinstance(figure, Figure)
    assert figure.axes[0].get_legend_handles_labels()[1] == ["a", "b"]
    with house_style():
        assert rendered(figure, "svg") == tradeoff.picture(both, "svg")


def test_the_curves_are_means_over_the_seeds(both: Comparison) -> None:
    figure = Plots(both).curves()
    assert [axes.get_title() for axes in figure.axes] == ["Local", "Base", "Novel", "CM"]
    line, level = figure.axes[0].lines
    assert [*line.get_xdata()] == [1, 2] and [*line.get_ydata()] == [40.5, 60.0]
    assert [*level.get_ydata()] == [55.0, 55.0]
    with house_style():
        lines = {method: both.of(method) for method in both.methods}
        assert rendered(Plots(both).curves(), "svg") == curves.over_rounds(lines, tables.titles(both), "", "svg")


def test_a_figure_is_the_callers_own(both: Comparison, tmp_path) -> None:
    """It is saved as others are, and pyplot does not hold it."""
    import matplotlib.pyplot

    Plots(both).tradeoff().savefig(tmp_path / "mine.pdf")
    assert (tmp_path / "mine.pdf").read_bytes().startswith(b"%PDF")
    assert matplotlib.pyplot.get_fignums() == []


def test_a_comparison_and_a_run_show_their_table_and_not_their_config(both: Comparison) -> None:
    for shown in (repr(both), both._repr_html_(), repr(both.runs[0]), both.runs[0]._repr_html_()):
        assert "novel" in shown and "nan" not in shown.lower()
        assert len(shown.splitlines()) < 200
    assert repr(both).startswith("fedpgp.Comparison: 2 methods, seeds 0, 1")
    assert repr(both.runs[0]).splitlines()[0].startswith("fedpgp.Run: a, seed 0, ")
    assert repr(Comparison([])) == "fedpgp.Comparison: 0 methods, seeds none; percent"
