"""Recipes of the paper: each can be run, and its tables have the results of its cells and the reported figures."""

import csv
import json
from dataclasses import replace
from statistics import fmean, stdev

import pytest
from commands import Command, refused
from raising import raises
from tiny import draw_nothing

import fedpgp
from fedpgp.config import load_config
from fedpgp.errors import ConfigError, OutputError
from fedpgp.evaluation.bootstrap import differences
from fedpgp.methods import METHODS
from fedpgp.report.reproduction import (
    question_table,
    reported_rows,
    reported_table,
    table,
    tables,
    write_reproduction,
)
from fedpgp.report.tables import TITLES, difference_text
from fedpgp.results.formats import latex, markdown
from fedpgp.results.run import Comparison
from fedpgp.studies import cells
from fedpgp.studies.axes import axis_of_values
from fedpgp.studies.cells import check_cells
from fedpgp.studies.recipe import Question, Reported, Side, names, read_recipe
from fedpgp.studies.reported_settings import Inexpressible
from fedpgp.studies.reproduction import reproduce
from fedpgp.studies.study import StudyPart

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
    "photographs",
}
PAPERS = sorted(EXPECTED - {"photographs"})  # recipes on the data of the paper
# Changes in addition to the changes of a recipe: two rounds of three clients.
TINY = ["task.clients=3", "federation.local_epochs=1", "federation.rounds=2", "federation.path_points=2"]
EMBEDDED = [name for name in PAPERS if name not in ("cross-data-set", "domain-generalisation")]


def test_all_experiments_have_a_recipe():
    assert set(names()) == EXPECTED


@pytest.mark.parametrize("name", PAPERS)
def test_every_recipe_on_the_papers_data_has_valid_configs(name):
    recipe = read_recipe(name)
    study = reproduce(name, data="data", output=None)
    config = load_config(recipe.file)
    assert config.backbone.checkpoint == "openai/clip-vit-base-patch16"
    assert all(cell.config.data.source != "pictograms" for cell in study.distinct_cells)
    for part in recipe.parts:
        assert part.mean is None or part.mean in part.axes
    assert len(study.distinct_cells) == len(study.cells), "no two cells of the paper are one"


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_recipes_augment_where_the_authors_do(name):
    for cell in reproduce(name, data="data", output=None).distinct_cells:
        data, federation = cell.config.data, cell.config.federation
        epochs = federation.rounds * federation.local_epochs
        assert data.augmented_views == (1 if data.source.startswith("cifar") else epochs), cell.name
        assert data.augmented_views <= 50


@pytest.mark.parametrize("seeds", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", EMBEDDED)
def test_every_embedded_cell_can_be_run(name, seeds, monkeypatch, pictograms, backbone):
    monkeypatch.setattr("fedpgp.runs.tasks.load_source", lambda *_: pictograms)
    monkeypatch.setattr("fedpgp.runs.setup.configured_backbone", lambda *_: backbone)
    study = reproduce(name, embedded=True, seeds=seeds, output=None)
    found = study.distinct_cells
    work = check_cells(found, study.seeds)
    assert set(work) == {cell.place for cell in found}
    assert all(cell.config.backbone.checkpoint == "pictoclip" for cell in found)
    assert all(cell.config.methods["fedpgp"].learning_rate == 0.059 for cell in found), "the tuned settings"


@pytest.fixture
def short(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a small part of the data, and draw no charts."""
    draw_nothing(monkeypatch)


@pytest.mark.usefixtures("short")
class TestReproduction:
    def test_tables_have_the_results_of_the_cells(self, tmp_path, cache, monkeypatch):
        settings = {"embedded": True, "methods": ["zero-shot", "fedpgp"], "seeds": 2, "changes": TINY, "cache": cache}
        found = fedpgp.reproduce("base-to-novel", output=tmp_path / "out", **settings)
        recipe, (part,) = read_recipe("base-to-novel"), found.parts
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
            "Do not compare these figures with the figures of the paper",
        ):
            assert piece in text
        assert "Reported by others" not in text, "there are no reported figures on pictograms"
        assert (tmp_path / "out/reproduction.tex").read_text().count("\\begin{tabular}") == 2
        assert len(tables(found)) == 2
        assert {path.stem for path in (tmp_path / "out").glob("*.svg")} == {"shots", "rounds-0-4", "rounds-1-8"}
        assert all(f"]({name}.svg)" in text for name in ("shots", "rounds-0-4", "rounds-1-8"))

        with monkeypatch.context() as patch:
            patch.setattr(cells, "compare", None)
            (tmp_path / "out/reproduction.md").unlink()
            fedpgp.resume_reproduction(tmp_path / "out", cache=cache)
        assert (tmp_path / "out/reproduction.md").read_text() == text
        with pytest.raises(OutputError, match="--force"):
            fedpgp.reproduce("base-to-novel", output=tmp_path / "out", **settings)

        # The same figures, as if they were from Caltech101, for which there are reported figures.
        axes = {"data-set": {"caltech101": []}, "shots": {"4": [], "16": []}}
        here = replace(part, axes=axes)
        keys = dict(zip(here.cell_keys(), found.comparisons.values(), strict=True))
        moved = replace(found, parts=[here], comparisons=keys)
        reported = reported_table(moved, recipe)
        assert [(row[0].text, row[1].text, row[3].text) for row in reported.rows] == [
            ("caltech101, 16", "fedpgp", figure) for figure in ("96.91", "97.35", "94.37")
        ]
        assert {row[5].text for row in reported.rows} == {"other settings"}
        assert {row[6].text for row in reported.rows} == {"FedMGP's paper [1]"}

        # The list of differences follows the table.
        (note,) = reported.notes
        for piece in (
            "[1] Settings that differ, here / in FedMGP's paper: ",
            "backbone.checkpoint: pictoclip / clip-vit-base-patch16",
            "data.augmented_views: 1 / a new random crop and flip in every epoch",
            "fedpgp.guidance: template / placeholder",
            "that fedpgp does not have: two prompts (N = 2); ",
        ):
            assert piece in note
        (tmp_path / "moved").mkdir()
        write_reproduction(moved, tmp_path / "moved")
        assert f"\n{note}\n" in (tmp_path / "moved/reproduction.md").read_text()
        below = (tmp_path / "moved/reproduction.tex").read_text().rpartition(r"\end{tabular}")[2]
        assert "backbone.checkpoint: pictoclip / clip-vit-base-patch16" in below
        with (tmp_path / "moved/reported.csv").open() as rows:
            (first, *_) = csv.DictReader(rows)
        assert [first[name] for name in ("data-set", "figure", "reported", "difference")] == [
            *("caltech101", "local", "96.91", ""),
        ]
        assert "fedpgp.guidance: template / placeholder" in first["differs"].split("; ")
        assert "fedpgp.learning_rate" in first["unknown"].split("; ")
        assert not (tmp_path / "out/reported.csv").exists()

        # A source that states only settings that the cell has.
        same = replace(
            recipe.reported[0], settings={"data.source": "pictograms", "task.clients": 3}, not_expressible=[]
        )
        alike = reported_table(moved, replace(recipe, reported=[same]))
        runs = moved.comparisons[(part.name, "caltech101", "16")].of("fedpgp")
        here = fmean(run.results["final"]["local"] for run in runs)
        assert alike.rows[0][5].text == f"{here - 96.91:+.1f}"
        (note,) = alike.notes
        assert "All settings that FedMGP's paper states are the same here. It does not state: [data] layout, " in note
        unknown = note.partition("[fedpgp] ")[2].rstrip(".").split(", ")
        assert {"learning_rate", "guidance"} <= set(unknown)
        assert note in markdown(alike) and "[federation] rounds, local" in note
        assert r"[federation] rounds, local\_epochs" in latex(alike)
        assert reported_rows(moved, replace(recipe, reported=[same]))[0]["difference"] == here - 96.91

    def test_one_method_has_a_row_for_each_cell(self, tmp_path, command: Command):
        changes = [part for change in TINY for part in ("--set", change)]
        code, printed, _ = command("reproduce", "bottleneck", "--embedded", "--seeds", "1", *changes, "-o", "out")
        assert code == 0 and "mean of the last five rounds" in printed
        assert command("reproduce", "--resume", "out").out == printed
        found = fedpgp.load_reproduction(tmp_path / "out")
        one = table(found, read_recipe("bottleneck"), found.parts[0], "last_five")
        assert [row[0].text for row in one.rows] == ["1", "2", "4", "8"]
        assert list(one.header)[:3] == ["bottleneck", "method", "Local"]
        assert {path.stem for path in (tmp_path / "out").glob("*.svg")} == {"bottleneck", "rounds"}

        assert not any("by domain" in shown.heading for shown in tables(found))

        # As if each client had one domain; one domain is missing in the second cell.
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

    def test_parts_have_their_own_methods_and_questions_have_intervals(self, tmp_path, monkeypatch, cache):
        at = {name: Side("mu", point={"mu": name}) for name in ("0.0", "1.0")}
        recipe = replace(
            read_recipe("mu"),
            methods=["zero-shot", "promptfl", "fedpgp"],
            embedded_methods=["zero-shot", "promptfl", "fedpgp"],
            embedded=[
                StudyPart("all", {}, ["fedpgp.mu=1.0"]),
                StudyPart("mu", {"mu": axis_of_values("fedpgp.mu", [0.0, 1.0])}, methods=["fedpgp"]),
                StudyPart("last", {}, ["fedpgp.mu=0.0"], methods=["promptfl"]),
            ],
            questions=[
                Question("gain", Side("all"), Side("all", "promptfl")),
                Question("guidance", at["1.0"], at["0.0"]),
                Question("the shared part", Side("all", alpha=0.0), Side("all", "zero-shot")),
                Question("not asked", Side("elsewhere"), Side("all")),
                Question("nor this", Side("all", "local"), Side("all")),
            ],
        )
        for module in ("studies", "report"):
            monkeypatch.setattr(f"fedpgp.{module}.reproduction.read_recipe", lambda _: recipe)
        settings = {"embedded": True, "seeds": 2, "changes": TINY, "cache": cache}
        planned = reproduce("mu", output=None, **settings)
        assert planned.plan().endswith(": 10 runs") and "3 cells × up to 3 methods" in planned.plan()
        found = fedpgp.reproduce("mu", output=tmp_path / "out", **settings)
        found = fedpgp.load_reproduction(tmp_path / "out")
        whole, zero = found.comparisons["all",], found.comparisons["mu", "0.0"]
        assert found.cells["mu", "1.0"] is found.cells["all",], "FedPGP is not trained twice"
        assert found.cells["last",] is not found.cells["mu", "0.0"], "which has no PromptFL"
        assert found.comparisons["mu", "1.0"].methods == zero.methods == ["fedpgp"]
        assert [row["method"] for row in found.rows() if row["part"] != "all"] == ["fedpgp"] * 4 + ["promptfl"] * 2
        first = table(found, recipe, found.parts[0], "final")
        assert list(first.header) == ["method", "Local", "Base", "Novel", "HM", "CM"]

        asked = question_table(found, recipe)
        assert [row[0].text for row in asked.rows] == ["gain", "guidance", "the shared part"]
        mine = [run.resampled for run in whole.of("fedpgp")]
        shared = [run.at(0.0).resampled for run in whole.of("fedpgp")]
        expected = [
            whole.against("fedpgp", "promptfl"),
            differences(mine, [run.resampled for run in zero.of("fedpgp")]),
            differences(shared, [run.resampled for run in whole.of("zero-shot")]),
        ]
        for row, of_row in zip(asked.rows, expected, strict=True):
            named = zip(row[1:], ("local", "base", "novel", "hm", "cm"), strict=True)
            assert all(cell.text == difference_text(of_row[name]) for cell, name in named)
        assert "first minus second" in (tmp_path / "out/reproduction.md").read_text()
        with raises(ConfigError, where="questions", got=2):
            Side("mu").key(recipe.embedded)

        one_method = reproduce("mu", methods=["promptfl"], output=None, **settings)
        assert {cell.methods for cell in one_method.distinct_cells} == {("promptfl",)}


@pytest.mark.slow
def test_photographs_need_no_download_and_every_question_has_one_cell():
    recipe = read_recipe("photographs")
    study = reproduce("photographs", seeds=1, output=None)
    study.check()
    assert {cell.config.backbone.checkpoint for cell in study.distinct_cells} == {"photoclip"}
    for question in recipe.questions:
        for side in (question.first, question.second):
            assert side.method in study.cells[side.key(study.parts)].methods


REPORTED = [(name, one) for name in sorted(EXPECTED) for one in read_recipe(name).reported]


def known_settings(one: Reported) -> list[str]:
    """Return changes that give a config all settings of a source that a config can have."""
    values = {key: value for key, value in one.settings.items() if not isinstance(value, Inexpressible)}
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@pytest.mark.parametrize(("name", "one"), REPORTED)
def test_reported_figures_have_a_cell_with_the_same_data_and_checkpoint(name, one):
    recipe = read_recipe(name)
    study = reproduce(name, data="data", changes=known_settings(one), output=None)
    beside = [study.cells[key] for part in recipe.parts for key in part.cell_keys() if one.is_of(part, key)]
    assert beside and one.method in METHODS and set(one.figures) <= set(TITLES)
    for cell in beside:
        differs = one.compare(cell.config).differs
        assert {"data.source", "backbone.checkpoint"} <= set(one.settings) - set(differs)


def test_any_other_setting_is_reported_and_prevents_a_difference():
    (one, *_) = read_recipe("base-to-novel").reported
    one = replace(
        one,
        settings={key: value for key, value in one.settings.items() if not isinstance(value, Inexpressible)},
        not_expressible=[],
    )
    file, same = read_recipe("base-to-novel").file, known_settings(one)
    agreement = one.compare(load_config(file, same))
    assert agreement.is_same
    assert {"fedpgp.learning_rate", "federation.participation"} <= set(agreement.unknown)

    other = one.compare(load_config(file, [*same, "federation.batch_size=16"]))
    assert not other.is_same and other.differs == {"federation.batch_size": ("16", "8")}
    prompts = replace(one, not_expressible=["two prompts (N = 2)"]).compare(load_config(file, same))
    assert not prompts.is_same and not prompts.differs


@pytest.mark.parametrize("name", EMBEDDED)
def test_figures_of_a_larger_checkpoint_are_never_compared_with_embedded_ones(name):
    for cell in reproduce(name, embedded=True, output=None).distinct_cells:
        for _, one in REPORTED:
            differs = one.compare(cell.config).differs
            assert differs["backbone.checkpoint"] == ("pictoclip", "clip-vit-base-patch16")


@pytest.mark.parametrize(
    ("name", "settings", "fields"),
    [
        ("base-to-nowel", {}, {"where": "recipe", "got": "base-to-nowel", "remedy": "'base-to-novel'"}),
        ("cross-data-set", {"embedded": True}, {"where": "--embedded", "got": "cross-data-set", "remedy": "--data"}),
        ("mu", {"embedded": True, "data": "x"}, {"where": "--embedded", "remedy": "--data and --backbone"}),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_before_any_work(name, settings, fields, tmp_path, cache):
    with raises(ConfigError, **fields):
        fedpgp.reproduce(name, output=tmp_path / "out", cache=cache, **settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mu", {"embedded": True, "methods": ["fedpg"]}, "fedpg"),
        ("mu", {"embedded": True, "seeds": 0}, r"seeds.*\b0"),
        (
            "mu",
            {"data": "/nowhere", "backbone": "/no/checkpoint"},
            "(?s)caltech101, mu 0.0 and 24 more: .*/no/checkpoint.*oxford_pets, mu 0.0 and 4 more: data.source",
        ),
    ],
)
def test_other_bad_input_is_refused_before_any_work(name, settings, message, tmp_path, cache):
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
    refused(together, "--resume out")
    refused(command("reproduce", "nothing"), "'nothing'")
    assert not list(tmp_path.iterdir())
