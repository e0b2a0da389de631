"""The page of a comparison: question, answer, and the command that repeats it."""

import html
import json
import re
import shlex

import pytest

import fedpgp
from fedpgp.report.page import brief


@pytest.fixture(scope="module")
def page(compared):
    return (compared / "comparison.html").read_text(encoding="utf-8")


def test_the_page_of_a_comparison_is_small_and_has_every_part_in_its_menu(page):
    assert len(page) < 300_000 and "vegaEmbed =" not in page
    assert "<svg" in page
    menu = re.findall(r'<a href="#0-([^"]*)">', page)
    assert menu == re.findall(r'<h3 id="0-([^"]*)">', page)
    assert menu == ["question", "setting", "results", "tradeoff", "differences", "repeat"]
    outside = re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL))
    assert outside == []


def test_each_answer_names_the_best_method_and_its_difference_from_the_next_one(compared, page):
    comparison = fedpgp.load_comparison(compared)
    sentences = brief.answer(comparison)
    assert [sentence.partition(":")[0] for sentence in sentences] == ["Local", "Base", "Novel", "HM", "CM", "area"]
    for name, sentence in zip(("local", "base", "novel", "hm", "cm", "area"), sentences, strict=True):
        first, second = sorted(comparison.methods, key=lambda method: -comparison.mean(method)[name][0])[:2]
        difference = comparison.against(first, second)[name]
        assert sentence in html.unescape(page)
        if difference.low == difference.high == 0:
            assert f"{first} and {second} have the highest mean, {comparison.mean(first)[name][0]:.1f}." in sentence
            continue
        assert f"{first} has the highest mean, {comparison.mean(first)[name][0]:.1f}." in sentence
        assert second in sentence and f"95 % interval {difference.low:.1f} to {difference.high:.1f}" in sentence
        assert ("may be chance" in sentence) == (not difference.excludes_zero)
    assert brief.answer(comparison.only(["fedpgp"])) == []


def test_the_question_and_the_setting_name_the_task(compared):
    comparison = fedpgp.load_comparison(compared)
    assert brief.question(comparison).startswith("What method, of 3,")
    assert "classes that no client trained on (Novel)" in brief.question(comparison)
    assert brief.question(comparison.only(["fedpgp"])).startswith("How accurate are the models of fedpgp")
    setting = {row[0].text: row[1].text for row in brief.setting_table(comparison).rows}
    assert setting["training"].startswith("2 rounds of 1 local epoch, 100 %")
    assert setting["training images per class"] == "4" and setting["seeds"] == "0, 1"


@pytest.mark.slow  # compares again
def test_the_command_on_the_page_repeats_the_comparison(compared, page, command, small, tmp_path):
    config = re.search(r'data-name="config.toml">.*?<template>(.*?)</template>', page, re.DOTALL)[1]
    (tmp_path / "config.toml").write_text(html.unescape(config), encoding="utf-8")
    typed = shlex.split(html.unescape(re.search(r"<code>fedpgp (.*?)</code>", page)[1]))
    ended = command(*typed, "-o", "again", "--quiet")
    assert ended.code == 0, ended.err

    def figures(directory):
        rows = json.loads((directory / "comparison.json").read_text())["rows"]
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    assert figures(tmp_path / "again") == figures(compared)


def test_methods_with_fewer_seeds_and_own_methods_are_part_of_the_command(compared):
    comparison = fedpgp.load_comparison(compared)
    runs = [run for run in comparison.runs if run.method != "fedpgp" or run.seed == 0]
    for run in runs:
        if run.method == "promptfl":
            run.results["method"] = "mine"
    typed, text = brief.repeat(fedpgp.Comparison(runs))
    assert typed.endswith("--methods zero-shot,mine,fedpgp --seeds 2 --costly-seeds 1")
    assert "mine: write path/to/file.py:Class" in text


def test_other_seeds_are_repeated_one_by_one(compared):
    second = [run for run in fedpgp.load_comparison(compared).runs if run.seed == 1]
    typed, _ = brief.repeat(fedpgp.Comparison(second))
    start = "fedpgp run --config config.toml --method"
    assert typed.splitlines() == [f"{start} {name} --seed 1" for name in ("zero-shot", "promptfl", "fedpgp")]
