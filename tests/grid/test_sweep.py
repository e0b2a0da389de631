"""Grids: every cell is the comparison of its config, finished ones are not run again, and what is stopped goes on."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import SHORT_RUN

import fedpgp
from fedpgp import Silent, cli
from fedpgp.errors import ConfigError, OutputError
from fedpgp.grid import cells
from fedpgp.report import curves
from fedpgp.report.grid import table

AXES = ["fedpgp.mu=0.0,2.0", "task.shots=2,4"]


def sweep(output: Path, cache: Path, axes=AXES, **settings):
    return fedpgp.sweep(
        axes, **{"output": output, "cache": cache, "methods": ["fedpgp"], "seeds": 1, "changes": SHORT_RUN, **settings}
    )


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.suffix in (".safetensors", ".svg", ".toml") or path.name.startswith("sweep.")
    }


class Told(Silent):
    """Keeps what a reporter is told of the grid as a whole."""

    def __init__(self):
        self.said: list[tuple[int, int, str]] = []
        self.notices: list[str] = []

    def progress(self, what, done, total, detail=""):
        if what == "cells":
            self.said.append((done, total, detail))

    def notice(self, text):
        self.notices.append(text)


@pytest.mark.usefixtures("small")
class TestSweep:
    def test_what_it_writes(self, tmp_path, cache):
        told = Told()
        found = sweep(tmp_path / "out", cache, reporter=told, seeds=2)
        with (tmp_path / "out/sweep.csv").open() as rows:
            read = list(csv.DictReader(rows))
        assert [(row["fedpgp.mu"], row["task.shots"], row["seed"]) for row in read] == [
            (mu, shots, seed) for mu in ("0.0", "2.0") for shots in "24" for seed in "01"
        ]
        alone = fedpgp.run("fedpgp", 1, changes=[*SHORT_RUN, "fedpgp.mu=2.0", "task.shots=2"], cache=cache)
        assert float(read[5]["local"]) == alone.results["final"]["local"]
        assert float(read[5]["last_five_local"]) == alone.results["last_five"]["local"]
        one = table(found, found.grid.parts[0])
        locals_ = [float(row["local"]) for row in read[4:6]]
        assert [cell.text for cell in one.rows[2][:3]] == ["2.0", "2", "fedpgp"]
        assert one.rows[2][3].text == f"{np.mean(locals_):.1f} ± {np.std(locals_, ddof=1):.1f}"
        assert "4 cells × 1 method (fedpgp) × 2 (seeds 0, 1): 8 runs" in told.notices[0]
        after = [(done, detail) for done, total, detail in told.said if "left" in detail]
        assert [done for done, _ in after] == [1, 2, 3] and all(total == 4 for _, total, _ in told.said)
        assert after[0][1].startswith("about ")
        drawn = {path.stem for path in (tmp_path / "out").glob("*.svg")}
        assert len(drawn) == 5 and "rounds" in drawn, "two axes, two points of the other each; learning curves of all"
        assert fedpgp.load_sweep(tmp_path / "out").rows() == found.rows()
        assert len(json.loads(json.dumps(found.as_json()))["rows"]) == 8

    @pytest.mark.slow
    @pytest.mark.parametrize("at", [0, 2])
    def test_what_is_stopped_goes_on(self, at, tmp_path, cache, monkeypatch):
        sweep(tmp_path / "whole", cache)
        compare, made = cells.compare, []

        def stopped(*arguments, **settings):
            if len(made) == at:
                raise KeyboardInterrupt
            made.append(settings["output"])
            return compare(*arguments, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(cells, "compare", stopped)
            with pytest.raises(KeyboardInterrupt):
                sweep(tmp_path / "out", cache)
        with pytest.raises(OutputError, match=r"is missing; go on with: fedpgp sweep --resume"):
            fedpgp.load_sweep(tmp_path / "out")
        again: list[Path] = []
        monkeypatch.setattr(cells, "compare", lambda *a, **k: again.append(k["output"]) or compare(*a, **k))
        fedpgp.resume_sweep(tmp_path / "out", cache=cache)
        assert len(again) == 4 - at and not {*again} & {*made}
        assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")

    def test_a_file_and_equal_cells(self, tmp_path, cache):
        (tmp_path / "grid.toml").write_text(
            'methods = ["zero-shot"]\n[axes]\nshots = {key = "task.shots", values = [2]}\n'
            'mu = {settings = {"as it is" = [], "four again" = ["task.shots=2"]}}\n'
        )
        found = sweep(tmp_path / "out", cache, tmp_path / "grid.toml", methods=None)
        assert len(found.runs()) == 1, "both settings are one config"
        assert [row["mu"] for row in found.rows()] == ["as it is", "four again"]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"fedpgp.mu": []}, "axis fedpgp.mu must have a value or more, got none"),
        ([], "a grid must have an axis or more"),
        (["fedpgp.mu="], "--grid must have the form section.key=a,b,c"),
        (["mu=1,2"], "--grid must have the form section.key=a,b,c"),
        (["fedpgp.mu=1,1"], "must have each value once"),
        (["fedpgp.mu=1", "fedpgp.mu=2"], "must be given once, with all its values"),
        (["fedpgp.nu=1,2"], r"fedpgp.nu 1: .*fedpgp.nu is not a key"),
        (["task.shots=2,99"], r"task.shots 99: .*99"),
        ("missing.toml", "missing.toml cannot be read"),
    ],
)
def test_bad_input_is_refused_before_any_work(axes, message, tmp_path, cache):
    with pytest.raises(ConfigError, match=message) as caught:
        sweep(tmp_path / "out", cache, axes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small")
def test_the_command_prints_the_table_and_goes_on(tmp_path, cache, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ["--cache-dir", str(cache), "--workers", "1", "--quiet"]

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fedpgp", "sweep", *arguments, *common])
        for console, stream in ((cli.out, sys.stdout), (cli.err, sys.stderr)):
            monkeypatch.setattr(console, "file", stream)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    changes = [part for change in SHORT_RUN for part in ("--set", change)]
    grid = ["--grid", "task.shots=2,4", "--methods", "zero-shot", *changes]
    code, printed, _ = command(*grid, "-o", "out")
    assert code == 0 and "task.shots" in printed and "zero-shot" in printed
    assert command("--resume", "out")[1] == printed
    assert len(json.loads(command("--resume", "out", "--json")[1])["rows"]) == 2
    for arguments, message in (
        ([], "name a grid"),
        ([*grid, "--resume", "out"], "goes on with the settings of that grid"),
        ([*grid, "-o", "out"], "exists"),
    ):
        code, _, told = command(*arguments)
        assert code == 2 and message in told


@pytest.mark.usefixtures("small")
def test_figures_hold_the_means_and_join_numbers_alone(tmp_path, cache, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "rendered", lambda figure, suffix: drawn.append(figure) or b"")
    found = fedpgp.sweep(
        {"federation.rounds": [3, 2], "fedpgp.full_rank": [True, False]},
        methods=["fedpgp", "zero-shot"], seeds=2, changes=[SHORT_RUN[0], SHORT_RUN[3]],
        output=tmp_path / "out", cache=cache,
    )  # fmt: skip
    (part,) = found.grid.parts
    axes = list(curves.axes_of(part))
    assert [(axis, [key[1:] for key in keys]) for _, axis, keys in axes] == [
        ("federation.rounds", [("2", "true"), ("3", "true")]),
        ("federation.rounds", [("2", "false"), ("3", "false")]),
        ("fedpgp.full_rank", [("3", "true"), ("3", "false")]),
        ("fedpgp.full_rank", [("2", "true"), ("2", "false")]),
    ]
    for (_, axis, keys), figure in zip(axes, drawn[0:8:2], strict=True):
        lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"]
        wanted = [found.comparisons[key].mean("fedpgp")["local"][0] for key in keys]
        assert list(lines[0].get_ydata()) == pytest.approx(wanted)
        assert (lines[0].get_linestyle() == "-") == (axis == "federation.rounds")
    key = next(part.cell_keys())
    local = drawn[8].axes[0]
    wanted = [np.mean([run.rounds[i]["local"] for run in found.comparisons[key].of("fedpgp")]) for i in range(3)]
    assert list(local.lines[0].get_ydata()) == pytest.approx(wanted)
    assert local.lines[1].get_linestyle() != "-", "zero-shot has no rounds"
