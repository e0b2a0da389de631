"""Sweeps: every cell is the comparison of its config, finished cells are not run again, a stopped sweep continues."""

import csv
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from commands import Command, refused, sets
from raising import raises
from tiny import SHORT_RUN, draw_nothing, use_small_source

import fedpgp
from fedpgp import Silent
from fedpgp.backbone import Backbone
from fedpgp.data.sources import Source
from fedpgp.errors import ConfigError, OutputError
from fedpgp.report import grid
from fedpgp.report.grid import table
from fedpgp.report.style import rendered
from fedpgp.studies import cells
from fedpgp.studies.sweep import read_sweep

CHANGES = [*SHORT_RUN, "federation.path_points=2"]
AXES = {"federation.rounds": [2, 1], "fedpgp.full_rank": [True, False]}


def sweep(axes, output: Path, cache: Path, **settings):
    return fedpgp.sweep(axes, output=output, cache=cache, **{"methods": ["promptfl"], "changes": CHANGES, **settings})


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.suffix in (".safetensors", ".svg", ".toml") or path.name.startswith("sweep.")
    }


class Told(Silent):
    """Reporter that keeps the progress and the notices of the grid, and interrupts it after `rounds` rounds."""

    def __init__(self, rounds: int = -1):
        self.left, self.said, self.notices = rounds, [], []

    def progress(self, what, done, total, detail=""):
        if what == "cells":
            self.said.append((done, total, detail))

    def notice(self, text):
        self.notices.append(text)

    def round(self, method, seed, record):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def told() -> Told:
    """Reporter of the grid of `finished`."""
    return Told()


@pytest.fixture(scope="module")
def finished(
    told: Told, small_source: Source, backbone: Backbone, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A grid of two axes, run once. Read the directory."""
    directory = tmp_path_factory.mktemp("finished") / "out"
    with pytest.MonkeyPatch.context() as patch:
        use_small_source(patch, small_source, backbone)
        draw_nothing(patch)
        patch.setattr(grid, "write_chart", lambda *_: None)  # another test draws the charts
        sweep(AXES, directory, cache, methods=["fedpgp", "zero-shot"], seeds=2, reporter=told)
    return directory


def test_files_and_progress_of_a_sweep(finished, told, small, cache):
    found = fedpgp.load_sweep(finished)
    with (finished / "sweep.csv").open() as rows:
        read = list(csv.DictReader(rows))
    assert [(row["federation.rounds"], row["fedpgp.full_rank"], row["seed"], row["method"]) for row in read] == list(
        product("21", ("true", "false"), "01", ("fedpgp", "zero-shot"))
    )
    changes = [*CHANGES, "federation.rounds=1", "fedpgp.full_rank=true"]
    alone = fedpgp.run("fedpgp", 1, changes=changes, cache=cache)
    assert float(read[10]["local"]) == alone.results["final"]["local"]
    assert float(read[10]["last_five_local"]) == alone.results["last_five"]["local"]
    one = table(found, found.parts[0])
    locals_ = [float(row["local"]) for row in (read[8], read[10])]
    assert [cell.text for cell in one.rows[4][:3]] == ["1", "true", "fedpgp"]
    assert one.rows[4][3].text == f"{np.mean(locals_):.1f} ± {np.std(locals_, ddof=1):.1f}"
    assert "4 cells × 2 methods (fedpgp, zero-shot) × 2 (seeds 0, 1): 16 runs" in told.notices[0]
    after = [(done, detail) for done, total, detail in told.said if "left" in detail]
    assert [done for done, _ in after] == [1, 2, 3] and all(total == 4 for _, total, _ in told.said)
    assert after[0][1].startswith("about ")
    assert len(json.loads(json.dumps(found.as_json()))["rows"]) == 16


def test_figures_have_the_means_and_lines_join_only_numbers(finished, tmp_path, monkeypatch):
    found, drawn = fedpgp.load_sweep(finished), []
    (part,) = found.parts
    monkeypatch.setattr(grid, "write_chart", lambda directory, name, chart: drawn.append(chart))
    names = list(grid.write_figures(found, part, tmp_path))
    assert len(names) == 8, "two axes, two points of the other each; learning curves of each cell"
    axes = list(grid.axes_of(part))
    assert [(axis, [key[1:] for key in keys]) for _, axis, keys in axes] == [
        ("federation.rounds", [("1", "true"), ("2", "true")]),
        ("federation.rounds", [("1", "false"), ("2", "false")]),
        ("fedpgp.full_rank", [("2", "true"), ("2", "false")]),
        ("fedpgp.full_rank", [("1", "true"), ("1", "false")]),
    ]
    for (_, axis, keys), chart in zip(axes, drawn[:4], strict=True):
        frame = chart.data[(chart.data["method"] == "fedpgp") & (chart.data["metric"] == "Local")]
        wanted = [found.comparisons[key].mean("fedpgp")["local"] for key in keys]
        assert list(frame["mean"]) == pytest.approx([mean for mean, _ in wanted])
        assert list(frame["high"] - frame["low"]) == pytest.approx([2 * deviation for _, deviation in wanted])
        joined = any(layer["mark"]["type"] == "line" for layer in chart.to_dict()["spec"]["layer"])
        assert joined == (axis == "federation.rounds")
    key = next(part.cell_keys())
    local = drawn[4].data[drawn[4].data["metric"] == "Local"].set_index("method")
    wanted = [np.mean([run.rounds[i]["local"] for run in found.comparisons[key].of("fedpgp")]) for i in range(2)]
    assert list(local.loc["fedpgp"]["mean"]) == pytest.approx(wanted)
    assert local.loc["zero-shot"]["round"] == 0, "zero-shot has no rounds: a dashed level"

    alone = replace(found, methods=["fedpgp"])
    assert list(grid.write_figures(alone, part, tmp_path)) == [*names[:4], "rounds"], "one method: all cells together"


def test_figures_are_drawn(finished):
    found = fedpgp.load_sweep(finished)
    (part,) = found.parts
    _, axis, keys = next(grid.axes_of(part))
    svg = rendered(grid.along(found, part, axis, keys), "svg").decode()
    for text in ("Local", "Novel", "federation.rounds", "fedpgp.full_rank true", "zero-shot"):
        assert text in svg


def test_a_stopped_sweep_continues(small, cache, tmp_path, monkeypatch):
    """One cell is finished, one is stopped in its first round, and one has not started."""
    draw_nothing(monkeypatch)
    whole, stopped, axes = tmp_path / "whole", tmp_path / "stopped", ["task.shots=2,3,4"]
    sweep(axes, whole, cache)
    with pytest.raises(KeyboardInterrupt):
        sweep(axes, stopped, cache, reporter=Told(rounds=3))
    with raises(OutputError, where="stopped", problem="is missing", remedy=f"`fedpgp sweep --resume {stopped}`"):
        fedpgp.load_sweep(stopped)
    compare, again = cells.compare, []
    monkeypatch.setattr(cells, "compare", lambda *a, **k: again.append(k["output"]) or compare(*a, **k))
    fedpgp.resume_sweep(stopped, cache=cache)
    assert len(again) == 1
    assert files_of(stopped) == files_of(whole)
    assert len(list(stopped.glob("*.svg"))) == len(list(stopped.glob("*.png"))) == 2, "along the axis, and the rounds"


def test_a_file_and_equal_cells(small, cache, tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    (tmp_path / "grid.toml").write_text(
        'methods = ["zero-shot"]\n[axes]\nshots = {key = "task.shots", values = [2]}\n'
        'mu = {settings = {"as it is" = [], "four again" = ["task.shots=2"]}}\n'
    )
    found = sweep(tmp_path / "grid.toml", tmp_path / "out", cache, methods=None)
    assert len(found.runs()) == 1, "both settings are one config"
    assert [row["mu"] for row in found.rows()] == ["as it is", "four again"]


@pytest.mark.parametrize(
    ("axes", "fields"),
    [
        ({"fedpgp.mu": []}, {"where": "fedpgp.mu", "got": []}),
        ([], {"where": "--grid", "remedy": "--grid fedpgp.mu=0.1,1"}),
        (["fedpgp.mu="], {"where": "--grid", "got": "fedpgp.mu="}),
        (["mu=1,2"], {"where": "--grid", "got": "mu=1,2"}),
        (["fedpgp.mu=1,1"], {"where": "fedpgp.mu", "got": "1"}),
        (["fedpgp.mu=1", "fedpgp.mu=2"], {"where": "--grid", "got": "fedpgp.mu"}),
        ("missing.toml", {"where": "missing.toml"}),
    ],
)
def test_grids_of_another_form_are_refused_before_any_work(axes, fields, small, tmp_path, cache):
    with raises(ConfigError, **fields) as caught:
        sweep(axes, tmp_path / "out", cache)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["fedpgp.nu=1,2"], r"fedpgp.nu 1: .*fedpgp.nu"),
        (["task.shots=2,99"], r"task.shots 99: .*99"),
        (["federation.engine=deployment"], r"federation.engine deployment: .*machines"),
    ],
)
def test_cells_that_cannot_be_run_are_refused_before_any_work(axes, message, small, tmp_path, cache):
    with pytest.raises(ConfigError, match=message) as caught:
        sweep(axes, tmp_path / "out", cache)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("axis", "fields"),
    [
        ('{key = "fedpgp.mu", value = [1.0]}', {"where": "axes.a", "got": {"key": "fedpgp.mu", "value": [1.0]}}),
        ('{key = "mu", values = [1.0]}', {"where": "axes.a", "got": {"key": "mu", "values": [1.0]}}),
        ('{key = "fedpgp.mu", values = []}', {"where": "axes.a", "got": {"key": "fedpgp.mu", "values": []}}),
        ('{key = "fedpgp.mu", values = [1.0], study = "mu"}', {"where": "axes.a", "remedy": "study = NAME"}),
        ("3", {"where": "axes.a", "got": 3}),
        ("{settings = {}}", {"where": "axes.a.settings", "got": {}}),
        ('{settings = {x = "fedpgp.mu=1"}}', {"where": "axes.a.settings.'x'", "got": "fedpgp.mu=1"}),
        ('{study = "muu"}', {"got": "muu", "remedy": "'mu'"}),
        ('{study = "mu", settings = ["7"]}', {"where": "axes.a.settings", "got": "7"}),
        ('{study = "mu", settings = []}', {"where": "axes.a", "got": {"study": "mu", "settings": []}}),
    ],
)
def test_an_axis_of_another_form_is_refused(axis, fields, tmp_path):
    (tmp_path / "grid.toml").write_text(f"[axes]\na = {axis}\n")
    with raises(ConfigError, **fields):
        read_sweep(tmp_path / "grid.toml")


def test_the_command_prints_the_table_and_continues(command: Command, small, monkeypatch):
    draw_nothing(monkeypatch)
    grid = ["--grid", "task.shots=2,4", "--methods", "zero-shot", *sets()]
    code, printed, _ = command("sweep", *grid, "-o", "out")
    assert code == 0 and "task.shots" in printed and "zero-shot" in printed
    assert command("sweep", "--resume", "out").out == printed
    assert len(json.loads(command("sweep", "--resume", "out", "--json").out)["rows"]) == 2
    refused(command("sweep"), "--grid")
    refused(command("sweep", *grid, "--resume", "out"), "--resume", "--grid")
    refused(command("sweep", *grid, "-o", "out"), "out", "--force")
