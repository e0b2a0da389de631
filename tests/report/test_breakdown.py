"""Clients and classes of one method, against plain loops; a thousand clients stay small."""

import numpy as np
import pytest
from large_results import write_clients

import fedpgp
from fedpgp.report import frames
from fedpgp.report.page import breakdown


@pytest.fixture(scope="module")
def comparison(compared):
    return fedpgp.load_comparison(compared)


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_accuracies_of_classes_equal_a_loop(comparison):
    rows = {(row[0], row[1]): row for row in texts(breakdown.class_table(comparison, "fedpgp"))}
    task = comparison.task
    assert set(rows) == {(label, name) for name in ("base", "novel") for label in task[f"{name}_names"]}
    for (label, name), (_, _, images, own, mean, best, highest) in rows.items():
        accuracies = {}
        for method in comparison.methods:
            of_runs = []
            for run in comparison.of(method):
                truth = run.answers[f"{name}/labels"].tolist()
                place = task[f"{name}_names"].index(label)
                for row in run.answers[f"{name}/predicted"].tolist():
                    of_class = [said == place for said, at in zip(row, truth, strict=True) if at == place]
                    of_runs.append(np.mean(of_class))
            accuracies[method] = 100 * np.mean(of_runs)
        assert int(images) == len(of_class)
        assert float(own) == pytest.approx(accuracies["fedpgp"], abs=0.051)
        assert float(mean) == pytest.approx(np.mean(list(accuracies.values())), abs=0.051)
        assert float(highest) == pytest.approx(max(accuracies.values()), abs=0.051)
        assert accuracies[best] == pytest.approx(max(accuracies.values()))


def test_confusions_equal_a_loop(comparison):
    run = comparison.of("fedpgp")[0]
    names, counts = run.results["task"]["base_names"], breakdown.confusions(run)
    expected = np.zeros_like(counts)
    for row in run.answers["base/predicted"].tolist():
        for truth, said in zip(run.answers["base/labels"].tolist(), row, strict=True):
            expected[truth, said] += 1
    assert counts.tolist() == expected.tolist()
    pairs = texts(breakdown.confused_pairs(run))
    shares = [float(share) for *_, share in pairs]
    assert shares == sorted(shares, reverse=True) and len(pairs) == (expected - np.diag(np.diag(expected)) > 0).sum()
    for truth, said, images, share in pairs:
        i, j = names.index(truth), names.index(said)
        assert float(share) == pytest.approx(100 * expected[i, j] / expected[i].sum(), abs=0.051)
        assert int(images) == run.answers["base/labels"].tolist().count(i)


def test_the_table_of_clients_has_their_figures_and_hardest_classes(comparison):
    run = comparison.of("fedpgp")[0]
    gains = frames.clients(comparison)
    found = breakdown.client_table(run, gains)
    assert found.header[:4] == ["client", "classes", "training images", "Local"]
    for row, about in zip(texts(found), run.results["clients"], strict=True):
        assert row[3] == f"{about['local']:.1f}"
        name, share = row[-1].rsplit(" (", 1)
        assert name in about["classes"]
        truth = run.answers["base/labels"].numpy()
        said = run.answers["base/predicted"].numpy()[about["client"]]
        own = {
            label: (said[truth == place] == place).mean()
            for place, label in enumerate(run.results["task"]["base_names"])
        }
        assert own[name] == min(own[label] for label in about["classes"])
        assert share == f"{100 * own[name]:.0f} %)"
    counts = breakdown.histogram(run, gains).groupby("model", sort=False)["clients"].sum()
    assert counts.to_dict() == {"own model": 3, "shared part": 3}


def test_a_thousand_clients_stay_small(comparison, tmp_path):
    run = fedpgp.load_run(write_clients(comparison.of("fedpgp")[0], tmp_path / "run"))
    gains = frames.clients(fedpgp.Comparison([run]))
    assert len(gains) == 1000 == len(breakdown.client_table(run, gains).rows)
    quantiles = breakdown.gain_quantiles(gains)
    assert quantiles[["p5", "p50", "p95"]].to_numpy()[0] == pytest.approx(np.quantile(gains["gain"], [0.05, 0.5, 0.95]))
    assert quantiles["losing"].item() == pytest.approx(100 * (gains["gain"] < 0).mean())
    few = breakdown.shown_clients(run)
    values = sorted(client["local"] for client in run.results["clients"])
    shown = sorted(client["local"] for client in few.results["clients"])
    assert shown == [*values[:15], *values[-15:]]
    cells = frames.client_by_class(few)
    assert len(cells) == 30 * 6
    place = few.results["clients"][7]["client"]
    expected = frames.client_by_class(run)
    same = cells[cells["client"] == place].reset_index(drop=True)
    assert same.equals(expected[expected["client"] == place].reset_index(drop=True))
    assert breakdown.histogram(run, gains).groupby("model")["clients"].sum().tolist() == [1000, 1000]
