"""The page on fidelity: it is up to date, every aspect has an entry, and the comparison of the defaults is right."""

import dataclasses
import sys
from pathlib import Path

import pytest

from fedpgp.methods import METHODS, FedCLIP, FedPGP, PFedMoAP, ZeroShot
from fedpgp.methods.published import Setting

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import build_fidelity
from build_fidelity import ASPECTS, BY_HAND, NONE, PAGE, STATUSES, computed, default, read_written, rows, word

ROOT = Path(__file__).parents[2]


def compared(monkeypatch, method, aspect, expected=(), effective=None, **published):
    """The computed row of a method whose published settings are these, each with the source "paper"."""
    settings = [Setting(method.name, method.name, key, value, "paper") for key, value in published.items()]
    monkeypatch.setattr(build_fidelity, "published_settings", lambda name: settings)
    return computed(method, aspect, expected, effective or {})


def test_the_page_is_what_the_tool_writes():
    same = PAGE.read_text(encoding="utf-8") == build_fidelity.page()
    assert same, "docs/fidelity.md is out of date: run python tools/build_fidelity.py and commit the page"


def test_the_entries_are_those_of_the_methods():
    assert set(read_written()) == {"text", *METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_every_aspect_has_an_entry_with_a_status_a_source_and_what_differs(name):
    written = read_written()[name]
    assert set(written) - {"effective"} == set(BY_HAND)
    assert set(written.get("effective", {})) <= {field.name for field in dataclasses.fields(METHODS[name])}
    for aspect in BY_HAND:
        if (entry := written[aspect]) != NONE:
            assert set(entry) - {"differs"} == {"status", "source"}, aspect
            assert entry["status"] in STATUSES and entry["source"], aspect
            assert ("differs" in entry) == (entry["status"] != "exact"), aspect


@pytest.mark.parametrize("name", METHODS)
def test_every_cell_has_one_of_the_words_and_every_row_four_cells(name):
    table = list(rows(METHODS[name](), read_written()[name]))
    assert {word(table, aspect) for aspect in ASPECTS} <= {*STATUSES.values(), NONE}
    assert word(table, "defaults") != NONE
    for row in table:
        assert row.status in STATUSES and row.source
        assert not any("|" in cell or "\n" in cell for cell in row), row


@pytest.mark.parametrize("name", METHODS)
def test_the_files_that_a_section_names_exist(name):
    module = METHODS[name].__module__.rpartition(".")[2]
    assert (ROOT / "src" / "fedpgp" / "methods" / f"{module}.py").is_file()
    assert (ROOT / "tests" / "oracle" / f"{module}.py").is_file()


def test_equal_values_are_exact_and_others_a_difference_that_names_both(monkeypatch):
    row = compared(monkeypatch, FedPGP(), "defaults", mu=0.5, tau=0.5, learning_rate=3.0)
    assert (row.status, row.differs) == ("exact", "")
    row = compared(monkeypatch, FedPGP(mu=0.6), "defaults", mu=0.5, tau=0.5)
    assert (row.status, row.differs) == ("documented difference", "`mu`: published 0.5, default 0.6")
    row = compared(monkeypatch, FedPGP(), "schedule", schedule="constant", warmup_rate=1e-5)
    assert row.differs == "`warmup_rate`: published 1e-05, default unset"


def test_without_a_published_value_nothing_was_found_and_single_ones_are_listed(monkeypatch):
    row = compared(monkeypatch, FedPGP(), "defaults", ("mu", "tau"), learning_rate=0.001)
    assert (row.status, row.differs) == ("not found", "")
    row = compared(monkeypatch, FedPGP(), "defaults", ("mu", "tau"), mu=0.5)
    assert (row.status, row.differs) == ("exact", "no value in the recipe: `tau`")


def test_a_value_of_ours_in_a_recipe_is_not_compared(monkeypatch):
    ours = Setting("fedpgp", "fedpgp", "schedule_over", "epochs", "ours: its epochs become our rounds")
    monkeypatch.setattr(build_fidelity, "published_settings", lambda name: [ours])
    assert computed(FedPGP(), "schedule", (), {}).status == "not found"


def test_a_default_that_does_not_say_its_value_is_compared_by_what_it_amounts_to(monkeypatch):
    row = compared(monkeypatch, METHODS["fedvpt"](), "defaults", depth=12)
    assert row.differs == "`depth`: published 12, default unset"
    assert compared(monkeypatch, METHODS["fedvpt"](), "defaults", effective={"depth": 12}, depth=12).status == "exact"


@pytest.mark.parametrize(
    "method, key, value",
    [
        (FedPGP(), "weight_decay", 5e-4),  # of [federation]
        (FedPGP(), "private_learning_rate", 1e-3),  # as the shared part
        (FedPGP(schedule="cosine"), "private_schedule", "cosine"),
        (FedCLIP(), "betas", [0.9, 0.98]),
        (PFedMoAP(), "gate_learning_rate", 3e-3),
        (PFedMoAP(), "experts", 10),
    ],
)
def test_the_value_that_nobody_set(method, key, value):
    assert default(method, key) == value


def test_a_method_that_does_not_train_has_no_optimizer():
    table = list(rows(ZeroShot(), read_written()["zero-shot"]))
    assert [word(table, aspect) for aspect in ("shared", "loss", "optimizer", "schedule")] == [NONE] * 4


def test_a_difference_counts_before_what_was_not_found_and_that_before_what_is_exact():
    exact, missing, other = (build_fidelity.Row("init", status, "paper") for status in STATUSES)
    assert word([exact, other._replace(aspect="init, default")], "init") == "not found"
    assert word([exact, missing, other], "init") == "difference"
