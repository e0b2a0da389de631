"""The page of a report: what it shows, and what it does with what it cannot show."""

import csv
import json
import re
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from tiny import SHORT_RUN
from typer.testing import CliRunner

import fedpgp
from fedpgp import cli
from fedpgp.bootstrap import _both_counts, _local
from fedpgp.errors import ConfigError, OutputError
from fedpgp.files import write_json
from fedpgp.report.page import follow, frames, write_report

METHODS = ("zero-shot", "promptfl", "fedpgp")


@pytest.fixture(autouse=True)
def own_streams(monkeypatch):
    for console in (cli.out, cli.err):  # another test may have left its own stream there
        monkeypatch.setattr(console, "_file", None)


@pytest.fixture
def out(small, cache, tmp_path):
    fedpgp.compare(METHODS, 2, changes=SHORT_RUN, output=tmp_path / "out", cache=cache)
    return tmp_path / "out"


def specs_of(page):
    return json.loads(re.search(r'<script type="application/json" id="specs">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_stands_alone_and_shows_what_the_runs_hold(out, tmp_path):
    target = tmp_path / "report.html"
    found = write_report([out], target, figures=tmp_path / "figures")
    page = target.read_text(encoding="utf-8")
    assert not found.faults
    assert len(page) < 3_000_000
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    outside = re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', markup)
    assert outside == []
    comparison = fedpgp.load_comparison(out)
    for method in METHODS:
        mean, deviation = comparison.mean(method)["local"]
        assert f"{mean:.1f} ± {deviation:.1f}" in page
    names = {name.partition("-")[2] for name in specs_of(page)}
    assert {"tradeoff", "rounds", "clients", "client-by-class", "cosines", "singular-values", "text-features"} <= names
    for name in names:
        for suffix, begin in (("svg", b"<svg"), ("pdf", b"%PDF"), ("png", b"\x89PNG")):
            assert (tmp_path / "figures" / f"{name}.{suffix}").read_bytes().startswith(begin)
    rows = list(csv.DictReader((tmp_path / "figures" / "rounds.csv").read_text().splitlines()))
    last = [row for row in rows if row["method"] == "fedpgp" and row["metric"] == "Local"][-1]
    assert float(last["mean"]) == pytest.approx(comparison.mean("fedpgp")["local"][0])
    assert r"\begin{tabular}" in (tmp_path / "figures" / "table.tex").read_text()


def test_the_numbers_behind_figures_are_those_of_naive_loops(out):
    comparison = fedpgp.load_comparison(out)
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
    confused = frames.confusion(run)
    for truth, said, share in confused.itertuples(index=False):
        i, j = names.index(truth), names.index(said)
        every = [row[k] for row in predicted for k in range(len(labels)) if labels[k] == i]
        assert share == pytest.approx(100 * every.count(j) / len(every))
    values = frames.singular_values(run)
    change = (run.prompts["private/1/U"] @ run.prompts["private/1/V"]).double().numpy()
    expected = np.linalg.svd(change, compute_uv=False)
    assert values[values["client"] == 1]["value"].tolist() == pytest.approx(expected[:4].tolist(), rel=1e-5)


def test_local_is_resampled_as_by_a_loop_over_clients(out):
    outcomes = fedpgp.load_comparison(out).of("fedpgp")[0].outcomes
    counts = _both_counts(outcomes.base_images, outcomes.novel_images)[0]
    found = _local(outcomes)
    for point in (0, len(outcomes.alphas) - 1):
        for r in (0, 1, 700, 2000):
            shares = []
            for client in range(len(outcomes.own)):
                weight = counts[:, r] * outcomes.unpack("own")[client]
                if weight.sum():
                    shares.append((weight * outcomes.unpack("base", point=point)[client]).sum() / weight.sum())
            assert found[point, r] == pytest.approx(np.mean(shares))


def test_what_is_damaged_unfinished_or_of_another_task_is_named_and_the_rest_shown(out, small, cache, tmp_path):
    other = tmp_path / "other"
    fedpgp.run("promptfl", 0, changes=[*SHORT_RUN, "task.protocol=personalization"], output=other, cache=cache)
    (out / "promptfl" / "seed-1" / "results.json").write_text("{")
    running = tmp_path / "running"
    shutil.copytree(out / "fedpgp" / "seed-0", running)
    (running / "results.json").unlink()
    (running / "state.sqlite").write_bytes(b"of another process")
    (tmp_path / "nothing").mkdir()
    target = tmp_path / "report.html"
    found = write_report([out, other, running, tmp_path / "nothing"], target)
    page = target.read_text(encoding="utf-8")
    assert len(found.parts) == 2
    assert "Task 2" in page
    assert any("damaged" in fault for fault in found.faults)
    assert any("holds no run" in fault for fault in found.faults)
    assert "running (2 rounds)" in page
    assert "personalization on pictograms" in page
    with pytest.raises(OutputError, match="nothing to report on"):
        write_report([tmp_path / "nothing"], target)
    with pytest.raises(OutputError, match="is no directory"):
        write_report([tmp_path / "no"], target)


def test_a_second_run_of_a_method_is_named_with_the_settings_that_differ(out, small, cache, tmp_path):
    other = tmp_path / "other"
    fedpgp.run("promptfl", changes=[*SHORT_RUN, "promptfl.learning_rate=0.5"], output=other, cache=cache)
    (fault,) = write_report([out, other], tmp_path / "report.html").faults
    before = fedpgp.load_run(out / "promptfl" / "seed-0").config.methods["promptfl"].learning_rate
    assert f"with other settings (promptfl.learning_rate 0.5, there {before}): make a report of each" in fault


def test_class_names_cannot_bring_a_script_into_the_page(out, tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    for path in out.glob("*/seed-*/results.json"):
        results = json.loads(path.read_text())
        first = results["task"]["base_names"][0]
        results["task"]["base_names"][0] = evil
        for client in results["clients"]:
            client["classes"] = [evil if name == first else name for name in client["classes"]]
        write_json(path, results)
    target = tmp_path / "report.html"
    write_report([out], target)
    page = target.read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert evil in json.dumps(specs_of(page), ensure_ascii=False)


def test_it_replaces_nothing_but_a_report(out, tmp_path):
    target = tmp_path / "thesis.html"
    target.write_text("<p>mine</p>")
    with pytest.raises(OutputError, match="is not a report"):
        write_report([out], target)
    assert target.read_text() == "<p>mine</p>"
    write_report([out], target, force=True)
    write_report([out], target, focus="promptfl")
    with pytest.raises(ConfigError, match="focus must be a method of the runs, got 'fedppg'"):
        write_report([out], target, focus="fedppg")
    with pytest.raises(OutputError, match="its directory does not exist"):
        write_report([out], tmp_path / "no" / "report.html")
    done = CliRunner().invoke(cli.app, ["report", str(out), "-o", str(target), "--quiet"])
    assert done.exit_code == 0, done.output


def test_runs_across_machines_are_shown_without_what_stayed_there(out, tmp_path):
    run = fedpgp.load_run(out / "fedpgp" / "seed-0")
    across = tmp_path / "across"
    shutil.copytree(out / "fedpgp" / "seed-0", across)
    config = replace(run.config, federation=replace(run.config.federation, engine="deployment"))
    (across / "config.toml").write_text(config.to_toml())
    (across / "answers.safetensors").unlink()
    (across / "outcomes.safetensors").unlink()
    found = write_report([across], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not found.faults
    assert "confusion: the runs have nothing to show here" in page
    assert "rounds" in {name.partition("-")[2] for name in specs_of(page)}


def test_it_follows_a_running_experiment_until_its_end(small, cache, tmp_path):
    target, seen = tmp_path / "live.html", []

    def work():
        fedpgp.run("fedpgp", 0, changes=[*SHORT_RUN, "federation.rounds=6"], output=tmp_path / "run", cache=cache)

    worker = threading.Thread(target=work)
    worker.start()
    while not (tmp_path / "run").exists() and worker.is_alive():
        time.sleep(0.02)
    watcher = threading.Thread(target=lambda: follow([tmp_path / "run"], target, rest=0.05))
    watcher.start()
    while watcher.is_alive():
        if target.exists():
            page = target.read_text(encoding="utf-8")
            seen.append('http-equiv="refresh"' in page)
        time.sleep(0.05)
    worker.join()
    page = target.read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in page
    assert "singular-values" in page
    assert seen[-1] in (True, False)
