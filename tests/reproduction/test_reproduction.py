"""Recipes of the paper: each can be run, its tables hold what its cells gave, and others' figures where they belong."""

import csv
from dataclasses import replace
from statistics import fmean, stdev

import pytest
from commands import Command, refused
from tiny import draw_nothing

import fedpgp
from fedpgp.config import load_config
from fedpgp.errors import ConfigError, OutputError
from fedpgp.grid import cells
from fedpgp.grid.cells import check_cells, distinct
from fedpgp.report.reproduction import reported_table, table, tables
from fedpgp.reproduction.recipe import names, read_recipe
from fedpgp.reproduction.run import asked
from fedpgp.results import Comparison

EXPECTED = {
    "base-to-novel",
    "personalization",
    "leave-one-domain-out",
    "label-shift",
    "feature-label-shift",
    "cross-data-set",
    "domain-generalisation",
    "bottleneck",
    "shots",
    "mu",
    "terms",
    "full-rank",
    "context-length",
    "participation",
    "heterogeneity",
    "clients",
    "new-clients",
}
# Beside what a recipe changes: two rounds of three clients.
TINY = ["task.clients=3", "federation.local_epochs=1", "federation.rounds=2", "federation.path_points=2"]
EMBEDDED = [name for name in sorted(EXPECTED) if name not in ("cross-data-set", "domain-generalisation")]


def test_all_experiments_have_a_recipe():
    assert set(names()) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_recipe_on_the_papers_data_has_valid_configs(name):
    recipe = read_recipe(name)
    grid, file, changes = asked(recipe, "data", None, False, None, 1, ())
    found = grid.cells(file, changes)
    config = load_config(recipe.file)
    assert config.backbone.checkpoint == "openai/clip-vit-base-patch16"
    assert all(cell.config.data.source != "pictograms" for cell in found.values())
    for part in recipe.parts:
        assert part.mean is None or part.mean in part.axes
    assert len(distinct(found)) == len(found), "no two cells of the paper are one"


@pytest.mark.parametrize("seeds", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EMBEDDED)
def test_every_embedded_cell_can_be_run(name, seeds, monkeypatch, pictograms, backbone):
    monkeypatch.setattr("fedpgp.laboratory.load_source", lambda *_: pictograms)
    monkeypatch.setattr("fedpgp.laboratory.load_backbone", lambda *_: backbone)
    grid, file, changes = asked(read_recipe(name), None, None, True, None, seeds, ())
    found = distinct(grid.cells(file, changes))
    work = check_cells(found, grid.seeds)
    assert set(work) == {cell.place for cell in found}
    assert all(cell.config.backbone.checkpoint == "pictoclip" for cell in found)
    assert all(cell.config.methods["fedpgp"].learning_rate == 0.059 for cell in found), "the tuned settings"


@pytest.fixture
def short(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are on a small part of the data, and nothing is drawn."""
    draw_nothing(monkeypatch)


@pytest.mark.usefixtures("short")
class TestReproduction:
    def test_tables_hold_what_the_cells_gave(self, tmp_path, cache, monkeypatch):
        settings = {"embedded": True, "methods": ["zero-shot", "fedpgp"], "seeds": 2, "changes": TINY, "cache": cache}
        found = fedpgp.reproduce("base-to-novel", output=tmp_path / "out", **settings)
        recipe, (part,) = read_recipe("base-to-novel"), found.grid.parts
        last, five = table(found, recipe, part, "final"), table(found, recipe, part, "last_five")
        assert [row[0].text for row in last.rows] == ["zero-shot", "fedpgp", "fedpgp, shared part"]
        assert [row[0].text for row in five.rows] == ["zero-shot", "fedpgp"]
        with (tmp_path / "out/reproduction.csv").open() as rows:
            read = [row for row in csv.DictReader(rows) if row["method"] == "fedpgp" and row["shots"] == "8"]
        for one, column in ((last, "hm"), (five, "last_five_hm")):
            values = [float(row[column]) for row in read]
            expected = f"{fmean(values):.1f} ± {stdev(values):.1f}"
            assert one.rows[1][list(one.header).index("8 HM")].text == expected
        text = (tmp_path / "out/reproduction.md").read_text()
        run = found.runs()[0]
        for piece in (
            "mean of the last five rounds",
            "fedpgp reproduce base-to-novel --embedded --seeds 2",
            run.provenance["checkpoint"],
            found.digest,
            "No figure of the paper is to be compared with these",
        ):
            assert piece in text
        assert "Reported by others" not in text, "nobody reported figures on pictograms"
        assert (tmp_path / "out/reproduction.tex").read_text().count("\\begin{tabular}") == 2
        assert len(tables(found)) == 2
        assert {path.stem for path in (tmp_path / "out").glob("*.svg")} == {"shots", "rounds-0-4", "rounds-1-8"}
        assert all(f"]({name}.svg)" in text for name in ("shots", "rounds-0-4", "rounds-1-8"))

        with monkeypatch.context() as patch:
            patch.setattr(cells, "compare", None)
            (tmp_path / "out/reproduction.md").unlink()
            fedpgp.resume_reproduction(tmp_path / "out", cache=cache)
        assert (tmp_path / "out/reproduction.md").read_text() == text
        with pytest.raises(OutputError, match="exists"):
            fedpgp.reproduce("base-to-novel", output=tmp_path / "out", **settings)

        # The same figures, as if they were of Caltech101: then others' stand beside them.
        axes = {"data-set": {"caltech101": []}, "shots": {"4": [], "16": []}}
        here = replace(part, axes=axes)
        keys = dict(zip(here.cell_keys(), found.comparisons.values(), strict=True))
        moved = replace(found, grid=replace(found.grid, parts=[here]), comparisons=keys)
        reported = reported_table(moved, recipe)
        assert [(row[0].text, row[1].text, row[3].text) for row in reported.rows] == [
            ("caltech101, 16", "fedpgp", figure) for figure in ("96.91", "97.35", "94.37")
        ]
        assert {row[5].text for row in reported.rows} == {"another setting"}

    def test_one_method_has_a_row_for_each_cell(self, tmp_path, command: Command):
        changes = [part for change in TINY for part in ("--set", change)]
        code, printed, _ = command("reproduce", "bottleneck", "--embedded", "--seeds", "1", *changes, "-o", "out")
        assert code == 0 and "mean of the last five rounds" in printed
        assert command("reproduce", "--resume", "out").out == printed
        found = fedpgp.load_reproduction(tmp_path / "out")
        one = table(found, read_recipe("bottleneck"), found.grid.parts[0], "last_five")
        assert [row[0].text for row in one.rows] == ["1", "2", "4", "8"]
        assert list(one.header)[:3] == ["bottleneck", "method", "Local"]
        assert {path.stem for path in (tmp_path / "out").glob("*.svg")} == {"bottleneck", "rounds"}

        assert not any("by domain" in shown.heading for shown in tables(found))

        # As if the clients had had a domain each: in the second cell one of them has none.
        each = [{"noto": 50.0, "twemoji": 70.0}, {"noto": 20.0}, {"noto": 0.0, "twemoji": 1.0}, {"noto": 0.0}]
        cells = dict(zip(found.comparisons, each, strict=True))
        known = {
            key: Comparison([replace(run, results={**run.results, "domains": cells[key]}) for run in one.runs])
            for key, one in found.comparisons.items()
        }
        (one,) = [shown for shown in tables(replace(found, comparisons=known)) if "by domain" in shown.heading]
        assert list(one.header) == ["bottleneck", "method", "noto", "twemoji"]
        assert [[cell.text for cell in row] for row in one.rows[:2]] == [
            ["1", "fedpgp", "50.0", "70.0"],
            ["2", "fedpgp", "20.0", ""],
        ]


def test_a_difference_is_told_only_in_the_same_setting():
    (one, *_) = read_recipe("base-to-novel").reported
    same = load_config(
        read_recipe("base-to-novel").file,
        ["task.shots=16", "federation.rounds=10", 'backbone.checkpoint="/anywhere/clip-vit-base-patch16"'],
    )
    assert one.is_same(same)
    for change in ("task.shots=8", "federation.rounds=25", 'backbone.checkpoint="pictoclip"'):
        section, _, key = change.partition("=")[0].partition(".")
        value = load_config(None, [change])
        other = replace(getattr(same, section), **{key: getattr(getattr(value, section), key)})
        assert not one.is_same(replace(same, **{section: other}))


def test_what_is_not_known_of_a_setting_is_never_the_same():
    recipe = read_recipe("label-shift")
    assert [one.is_same(load_config(recipe.file)) for one in recipe.reported] == [False, False]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("base-to-nowel", {}, "a recipe must be one that ships with the package, got 'base-to-nowel'.*base-to-novel"),
        ("cross-data-set", {"embedded": True}, "cross-data-set cannot be run with --embedded: there is no second"),
        ("mu", {"embedded": True, "data": "x"}, "leave out --data and --backbone"),
        ("mu", {"embedded": True, "methods": ["fedpg"]}, "fedpg"),
        ("mu", {"embedded": True, "seeds": 0}, "seeds"),
        (
            "mu",
            {"data": "/nowhere", "backbone": "/no/checkpoint"},
            "(?s)caltech101, mu 0.0 and 4 more: .*/no/checkpoint",
        ),
    ],
)
def test_bad_input_is_refused_before_any_work(name, settings, message, tmp_path, cache):
    with pytest.raises(ConfigError, match=message):
        fedpgp.reproduce(name, output=tmp_path / "out", cache=cache, **settings)
    assert not (tmp_path / "out").exists()


def test_the_command_lists_and_plans(command: Command, small, tmp_path):
    listed = command("reproduce", "--list").out
    assert all(f"{name}: " in listed for name in EXPECTED)
    arguments = ["--embedded", "--dry-run", "--seeds", "2", "--set", "task.clients=3"]
    code, plan, _ = command("reproduce", "bottleneck", *arguments)
    assert code == 0 and "4 cells × 1 method (fedpgp) × 2 (seeds 0, 1): 8 runs" in plan
    assert "bottleneck, bottleneck 8" in plan
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_in_lines(command: Command, tmp_path):
    refused(command("reproduce"))
    together = command("reproduce", "bottleneck", "--embedded", "--resume", "out")
    refused(together, "goes on with the settings of that reproduction")
    refused(command("reproduce", "nothing"), "got 'nothing'")
    assert not list(tmp_path.iterdir())
