"""The page of a report: what it shows, and what it does with what it cannot show."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import Command
from PIL import Image
from raising import raises
from tiny import SHORT_RUN

import fedpgp
from fedpgp.backbone import Backbone
from fedpgp.data.sources import Source
from fedpgp.errors import ConfigError, OutputError
from fedpgp.evaluation.bootstrap import _both_counts, _local
from fedpgp.report import frames
from fedpgp.report.page import breakdown, run_details, write
from fedpgp.report.page.html import Section
from fedpgp.report.page.write import follow, write_report
from fedpgp.runtime.files import write_json
from fedpgp.serving import classifier

METHODS = ("zero-shot", "promptfl", "fedpgp")
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module", autouse=True)
def small_pages(small_source: Source, backbone: Backbone) -> Iterator[None]:
    """Use images of the small part of the data in pages, and load the checkpoint once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_details, "load_source", lambda *_: small_source)
        patch.setattr(classifier, "configured_backbone", lambda *_: backbone)
        yield


def specs_of(page):
    """Return the specification of each figure by name."""
    found = re.findall(
        r'data-chart="([^"]*)".*?</div>\n<script type="application/json">(.*?)</script>', page, re.DOTALL
    )
    return {name: json.loads(spec) for name, spec in found}


@pytest.mark.slow  # takes seconds
def test_the_page_needs_no_other_file_and_shows_the_results_of_the_runs(compared, tmp_path):
    target = tmp_path / "report.html"
    found = write_report([compared], target, figures=tmp_path / "figures")
    page = target.read_text(encoding="utf-8")
    assert not found.faults
    assert len(page) < 3_000_000
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    outside = re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', markup)
    assert outside == []
    comparison = fedpgp.load_comparison(compared)
    for method in METHODS:
        mean, deviation = comparison.mean(method)["local"]
        assert f"{mean:.1f} ± {deviation:.1f}" in page
    names = {name.partition("-")[2] for name in specs_of(page)}
    assert {
        "tradeoff",
        "rounds",
        "clients",
        "client-by-class",
        "classes",
        "cosines",
        "singular-values",
        "text-features",
    } <= names
    for name in names:
        for suffix, begin in (("svg", b"<svg"), ("pdf", b"%PDF"), ("png", b"\x89PNG")):
            assert (tmp_path / "figures" / f"{name}.{suffix}").read_bytes().startswith(begin)
    rows = list(csv.DictReader((tmp_path / "figures" / "rounds.csv").read_text().splitlines()))
    last = [row for row in rows if row["method"] == "fedpgp" and row["metric"] == "Local"][-1]
    assert float(last["mean"]) == pytest.approx(comparison.mean("fedpgp")["local"][0])
    assert r"\begin{tabular}" in (tmp_path / "figures" / "table.tex").read_text()


def test_the_data_of_figures_equals_naive_loops(compared):
    comparison = fedpgp.load_comparison(compared)
    run = comparison.of("fedpgp")[0]
    outcomes = run.outcomes
    gains = frames.clients(comparison)
    zero = next(one for one in comparison.of("zero-shot") if one.seed == run.seed).outcomes
    for client in range(3):
        own = outcomes.unpack("own")[client]
        rights = [outcomes.unpack("base", point=point)[client][own].mean() for point in (0, -1)]
        others = gains[(gains["method"] == "promptfl") & (gains["seed"] == run.seed) & (gains["client"] == client)]
        averaged = next(one for one in comparison.of("promptfl") if one.seed == run.seed).outcomes
        change = averaged.unpack("base")[client][own].mean() - zero.unpack("base")[client][own].mean()
        assert (others["over"].item(), others["gain"].item()) == ("zero-shot", pytest.approx(100 * change))
        row = gains[(gains["method"] == "fedpgp") & (gains["seed"] == run.seed) & (gains["client"] == client)]
        assert row["gain"].item() == pytest.approx(100 * (rights[1] - rights[0]))
    names = run.results["task"]["base_names"]
    predicted, labels = run.answers["base/predicted"].tolist(), run.answers["base/labels"].tolist()
    table = frames.client_by_class(run)
    for client, row in enumerate(predicted):
        for label in set(labels):
            hits = [said == label for said, truth in zip(row, labels, strict=True) if truth == label]
            found = table[(table["client"] == client) & (table["class"] == names[label])]["accuracy"].item()
            assert found == pytest.approx(100 * sum(hits) / len(hits), abs=0.05)
    confused = breakdown.confusion_frame(run)
    for truth, said, share in confused.itertuples(index=False):
        i, j = names.index(truth), names.index(said)
        every = [row[k] for row in predicted for k in range(len(labels)) if labels[k] == i]
        assert share == pytest.approx(100 * every.count(j) / len(every), abs=0.05)
    values = frames.singular_values(run)
    change = (run.prompts["private/1/U"] @ run.prompts["private/1/V"]).double().numpy()
    expected = np.linalg.svd(change, compute_uv=False)
    assert values[values["client"] == 1]["value"].tolist() == pytest.approx(expected[:4].tolist(), rel=1e-5)


def test_without_a_path_shared_and_personal_models_give_the_same_answers(compared):
    run = fedpgp.load_comparison(compared).of("fedpgp")[0]
    single = replace(run, outcomes=SimpleNamespace(alphas=(1.0,)))
    gains = frames.clients(fedpgp.Comparison([single]))
    assert set(gains["over"]) == {"shared part"} and not gains["gain"].any()
    alone = replace(single.config.federation, path_points=1)
    unasked = replace(single, config=replace(single.config, federation=alone))
    assert frames.clients(fedpgp.Comparison([unasked])).empty, "Local of the shared part is unknown"


def test_resampled_local_equals_a_loop_over_clients(compared):
    outcomes = fedpgp.load_comparison(compared).of("fedpgp")[0].outcomes
    counts, _, narrow_counts = _both_counts(outcomes.base_images, outcomes.novel_images)
    found = _local(outcomes, narrow_counts)
    for point in (0, len(outcomes.alphas) - 1):
        for r in (0, 1, 700, 2000):
            shares = []
            for client in range(len(outcomes.own)):
                weight = counts[:, r] * outcomes.unpack("own")[client]
                if weight.sum():
                    shares.append((weight * outcomes.unpack("base", point=point)[client]).sum() / weight.sum())
            assert found[point, r] == pytest.approx(np.mean(shares))


def rename_first_class(results_file: Path) -> None:
    """Give the first class of a run a name that is a script."""
    results = json.loads(results_file.read_text())
    first = results["task"]["base_names"][0]
    results["task"]["base_names"][0] = EVIL
    for client in results["clients"]:
        client["classes"] = [EVIL if name == first else name for name in client["classes"]]
    write_json(results_file, results)


def test_the_page_lists_what_it_cannot_show_and_shows_the_rest(own_comparison, small, cache, tmp_path):
    """A damaged run, a running run, other settings, another task, an empty directory, a script as a class name."""
    out = own_comparison
    other, again, running, nothing = (tmp_path / name for name in ("other", "again", "running", "nothing"))
    shutil.copytree(out / "fedpgp" / "seed-0", running)
    (running / "results.json").unlink()
    (running / "state.sqlite").write_bytes(b"of another process")
    nothing.mkdir()
    for change, place in (("task.protocol=personalization", other), ("promptfl.learning_rate=0.5", again)):
        fedpgp.run("promptfl", changes=[*SHORT_RUN, change], output=place, cache=cache)
    for file in [again / "results.json", *out.glob("*/seed-*/results.json")]:
        rename_first_class(file)
    (out / "promptfl" / "seed-1" / "results.json").write_text("{")

    found = write_report([out, other, again, running, nothing], tmp_path / "report.html", focus="promptfl")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(found.parts) == 2 and "Task 2" in page and "personalization on pictograms" in page
    assert "running (2 rounds)" in page
    assert "promptfl minus" in page  # the method in focus, which is not the last
    before = fedpgp.load_run(out / "promptfl" / "seed-0").config.methods["promptfl"].learning_rate
    settings = f"(promptfl.learning_rate 0.5 instead of {before})"
    assert len(found.faults) == 3
    for text in ("damaged", f"{nothing}", settings):
        assert any(text in fault for fault in found.faults), text
    assert "<script>alert" not in page and "<img src=x" not in page
    assert EVIL in json.dumps(specs_of(page), ensure_ascii=False)

    with raises(OutputError, problem=f"{nothing}", remedy="fedpgp compare"):
        write_report([nothing], tmp_path / "other.html")
    with raises(OutputError, where="missing", allowed="directory"):
        write_report([tmp_path / "missing"], tmp_path / "other.html")


def test_a_report_replaces_only_a_report(compared, command: Command, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "section", lambda *_: Section("empty", []))  # figures take long
    target = tmp_path / "thesis.html"
    target.write_text("<p>mine</p>")
    with raises(OutputError, where="thesis.html", remedy="--force"):
        write_report([compared], target)
    assert target.read_text() == "<p>mine</p>"
    write_report([compared], target, force=True)
    before = target.read_text()
    with raises(ConfigError, where="focus", got="fedppg", remedy="fedpgp, promptfl"):
        write_report([compared], target, focus="fedppg")
    with raises(OutputError, where="report.html", remedy=f"mkdir -p {tmp_path / 'no'}"):
        write_report([compared], tmp_path / "no" / "report.html")
    assert target.read_text() == before
    ended = command("report", str(compared), "-o", str(target), "--quiet")
    assert ended.code == 0, ended.err


def test_runs_across_machines_are_shown_without_their_answers(compared, tmp_path):
    run = fedpgp.load_run(compared / "fedpgp" / "seed-0")
    across = tmp_path / "across"
    shutil.copytree(compared / "fedpgp" / "seed-0", across)
    config = replace(run.config, federation=replace(run.config.federation, engine="deployment"))
    (across / "config.toml").write_text(config.to_toml())
    (across / "answers.safetensors").unlink()
    (across / "outcomes.safetensors").unlink()
    found = write_report([across], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not found.faults
    assert "confusion: the runs have no data" in page
    assert "rounds" in {name.partition("-")[2] for name in specs_of(page)}


def test_it_follows_a_running_experiment_until_its_end(small, cache, tmp_path, monkeypatch):
    target, pages, written = tmp_path / "live.html", [], []
    rounds = fedpgp.rounds("fedpgp", changes=SHORT_RUN, output=tmp_path / "run", cache=cache)
    next(rounds)

    def rest(seconds: float) -> None:
        """Continue the run after every second rest."""
        pages.append(target.read_text(encoding="utf-8"))
        written.append(target.stat().st_ino)  # a page is replaced, not changed
        if len(pages) % 2 == 0:
            next(rounds, None)

    monkeypatch.setattr(write.time, "sleep", rest)
    follow([tmp_path / "run"], target)
    assert all('http-equiv="refresh"' in page for page in pages)
    assert [re.search(r"\((\d) rounds\)", page)[1] for page in pages] == ["1", "1", "2", "2"]
    assert written[0] == written[1] != written[2] == written[3], "written again only after a round"
    last = target.read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in last and "singular-values" in last


def test_every_part_is_in_the_menu(compared, tmp_path):
    write_report([compared], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    menu = re.findall(r'<li><a href="#([^"]*)">', page)
    assert menu == re.findall(r'<h3 id="([^"]*)">', page) and len(menu) > 18


def test_examples_are_right_and_wrong_and_have_the_top_three(compared):
    run = fedpgp.load_comparison(compared).of("fedpgp")[0]
    found = run_details.examples(run_details.models(run))
    assert {item["right"] for item in found} == {True, False} and len(found) <= 12
    assert [item["right"] for item in found] == sorted(item["right"] for item in found), "wrong ones come first"
    for item in found:
        name, share = item["answered"].rsplit(", ", 1)
        assert (name == item["truth"]) == item["right"]
        assert len(item["own"]) == len(item["shared"]) == 3
        assert item["own"][0] == (name, share.removesuffix(" %")), "the stored answer, computed again"
        assert len(item["picture"]) < 10_000
    picture = Image.open(io.BytesIO(base64.b64decode(found[0]["picture"].partition(",")[2])))
    assert max(picture.size) <= run_details.SIDE


@pytest.mark.slow  # starts a process
def test_a_report_is_made_without_slow_imports():
    slow = "'scipy', 'sklearn', 'transformers.models.clip.modeling_clip'"
    code = f"""
import sys, fedpgp.report.page.write
from fedpgp.backbone import load_backbone
load_backbone("photoclip")
assert not {{{slow}}} & {{*sys.modules}}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
