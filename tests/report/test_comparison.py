"""What a comparison makes of its runs: means, ranks, marks, tables and files."""

import csv
import io
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from fedpgp.config import ExperimentConfig
from fedpgp.errors import OutputError
from fedpgp.evaluation.bootstrap import METRICS, Outcomes, differences, resampled
from fedpgp.evaluation.metrics import area_of, summary
from fedpgp.report import charts, frames, tables
from fedpgp.report.comparison import markdown
from fedpgp.report.style import rendered
from fedpgp.results import formats
from fedpgp.results.run import Comparison, Run

N, BASE, NOVEL = 2, 400, 300
OWN = np.arange(BASE) % N == np.arange(N)[:, None]
TASK = {
    "protocol": "base-to-novel",
    "data": "made-up",
    "clients": N,
    "base_classes": 4,
    "novel": "classes",
    "partition": "classes",
    "novel_data": None,
    "novel_classes": 3,
    "novel_domains": ["photo"],
    "evaluated_on": "test",
    "images": {"base": BASE, "novel": NOVEL},
}


def rows(base: NDArray[np.bool_], novel: NDArray[np.bool_]) -> dict[str, float]:
    """Return the metrics of some outcomes as simple means."""
    local = np.mean([100 * base[i][OWN[i]].mean() for i in range(N)])
    return summary({"local": [local], "base": [100 * base.mean()], "novel": [100 * novel.mean()]})


def run(method: str, seed: int, *shares: tuple[float, float, float], chosen: float = 1.0, luck: int = 0) -> Run:
    """Return a run with these accuracies on own, other and novel images, for each point of the path."""
    rng = np.random.default_rng((seed, luck))
    drawn, drawn_novel = rng.random((N, BASE)), rng.random((N, NOVEL))
    alphas = np.linspace(0, 1, len(shares)) if len(shares) > 1 else np.ones(1)
    base = np.stack([np.where(OWN, drawn < own, drawn < other) for own, other, _ in shares])
    novel = np.stack([drawn_novel < share for *_, share in shares])
    path = [{"alpha": float(alpha), **rows(*found)} for alpha, *found in zip(alphas, base, novel, strict=True)]
    final = {key: path[-1][key] for key in ("local", "base", "novel", "hm", "cm")}
    locals_ = [100 * float(base[-1][i][OWN[i]].mean()) for i in range(N)]
    return Run(
        config=ExperimentConfig(),
        results={
            "method": method,
            "seed": seed,
            "task": TASK,
            "final": {**final, "area": area_of(path)},
            "shared": None,
            "private": [],
            "last_five": final,
            "best_on_validation": {"round": 3, **final},
            "path": path,
            "alpha_on_validation": chosen,
            "clients": [{"local": local} for local in locals_],
            "bytes_up_per_client_round": 2048,
            "seconds": 1.5,
        },
        rounds=[],
        prompts={},
        outcomes=Outcomes(
            alphas,
            *(np.packbits(images, axis=-1) for images in (base, novel, OWN)),
            base_images=BASE,
            novel_images=NOVEL,
        ),
        provenance={},
    )


GOOD, FAIR = (0.9, 0.8, 0.8), (0.6, 0.5, 0.5)


def test_the_first_resampled_metrics_are_the_metrics_of_the_run() -> None:
    """Check the personal models and another point; the area is the area of the whole path at both."""
    one = run("a", 0, (0.5, 0.6, 0.6), (0.7, 0.5, 0.4), (0.9, 0.3, 0.2))
    for alpha in (1.0, 0.5):
        found = resampled(one.outcomes, alpha)
        final = one.at(alpha).results["final"]
        for name in METRICS:
            assert found[name][0] == pytest.approx(final[name]), name
            assert found[name][1:].std() > 0
            assert found[name][1:].mean() == pytest.approx(final[name], abs=0.5)


def test_the_area_of_a_path_is_larger_than_the_area_of_its_best_point() -> None:
    one = run("a", 0, (0.5, 0.6, 0.6), (0.9, 0.3, 0.2))
    single = [point["local"] * point["others"] / 100 for point in one.results["path"]]
    assert one.results["final"]["area"] > max(single)


def test_a_run_at_an_alpha_has_the_metrics_of_that_point() -> None:
    one = run("a", 0, (0.5, 0.6, 0.6), (0.7, 0.5, 0.4), (0.9, 0.3, 0.2), chosen=0.5)
    for alpha in (0.5, "validation"):
        moved = one.at(alpha)
        assert moved.alpha == 0.5
        assert moved.results["final"]["local"] == one.results["path"][1]["local"] != one.results["final"]["local"]
        assert moved.results["final"]["area"] == one.results["final"]["area"]
        assert moved.row["alpha"] == 0.5 and moved.row["cm"] == one.results["path"][1]["cm"]
    point = run("b", 0, GOOD)
    assert point.at(0.5) is point
    with pytest.raises(OutputError, match=r"0, 0\.5, 1\b.*0\.3"):
        one.at(0.3)


def test_a_comparison_at_an_alpha_compares_those_models() -> None:
    both = Comparison([run("a", 0, FAIR, GOOD), run("b", 0, FAIR)])
    assert both.against("a", "b")["base"].mean > 20
    moved = both.at(0.0).against("a", "b")
    assert moved["base"].mean == moved["base"].low == 0
    assert moved["area"].mean > 20  # area of the whole path
    assert "α 0" in tables.caption(both.at(0.0)) and "α" not in tables.caption(both)


def test_the_table_says_how_many_clients_it_covers_if_clients_are_missing() -> None:
    whole = run("a", 0, (0.5, 0.5, 0.5))
    part = replace(whole, results={**whole.results, "evaluated": [1]})
    assert "covers" not in tables.caption(Comparison([whole]))
    assert tables.caption(Comparison([part])).endswith("; Local covers 1 of 2 clients")
    assert tables.table(Comparison([part])).heading.endswith("; Local covers 1 of 2 clients")
    other = replace(whole, results={**whole.results, "method": "b"})
    assert tables.caption(Comparison([part, other])).endswith("; Local of a, seed 0, covers 1 of 2 clients")


def test_methods_are_compared_on_the_seeds_that_both_have() -> None:
    a0, a1, b1 = run("a", 0, GOOD), run("a", 1, FAIR), run("b", 1, FAIR, luck=1)
    found = Comparison([a0, a1, b1]).against("a", "b")
    assert found == differences([a1.resampled], [b1.resampled])
    with pytest.raises(OutputError, match=r"\ba\b.*\bb\b"):
        Comparison([a0, b1]).against("a", "b")


def test_rank_is_the_mean_over_seeds_and_metrics() -> None:
    runs = [run("a", 0, GOOD), run("b", 0, FAIR), run("c", 0, FAIR), run("a", 1, FAIR), run("b", 1, GOOD)]
    found = Comparison(runs)
    assert found.rank("a") == pytest.approx((1 + 2) / 2)
    assert found.rank("b") == pytest.approx((2.5 + 1) / 2)  # equal to c in the first seed
    assert found.rank("c") == 2.5


def test_the_best_method_and_methods_without_a_difference_are_marked() -> None:
    """The first of two equal methods is the best; a method with fewer seeds is marked, and is never the best."""
    runs = [
        run(name, seed, shares) for (name, shares), seed in product({"a": GOOD, "b": FAIR, "c": GOOD}.items(), (0, 1))
    ]
    runs += [run("few", 0, (0.99, 0.99, 0.99))]
    made = tables.table(Comparison(runs))
    marks = {row[0].text: row[1].mark for row in made.rows}
    assert marks == {"a": "best", "b": None, "c": "same", "few (seed 0)": "above"}
    text = formats.markdown(made)
    assert text.count("**") == 2 * 6  # Local, Base, Novel, HM, CM and area, of one method
    assert "=: no difference" in text
    assert tables.table(Comparison(runs[:2])).legend == ""


def test_a_single_method_has_no_mark() -> None:
    made = tables.table(Comparison([run("a", 0, GOOD)]))
    assert all(cell.mark is None for row in made.rows for cell in row)
    assert made.rows[0][1].text == f"{run('a', 0, GOOD).results['final']['local']:.1f}"


def test_the_diagnosis_of_clients_depends_on_alpha_if_the_run_has_outcomes() -> None:
    """A run across machines has no outcomes: only Local of the personal models is known."""
    own = run("a", 0, (0.5, 0.6, 0.6), (0.9, 0.3, 0.2))
    assert own.outcomes is not None and own.outcomes.local(1.0) == pytest.approx(own.client_locals)
    right = own.outcomes.unpack("base", point=0)
    locals_ = [100 * right[i][OWN[i]].mean() for i in range(N)]

    def texts(shown: Run) -> list[str]:
        made = tables.diagnosis_table(Comparison([shown]))
        return [made.rows[0][list(made.header).index(title)].text for title in list(made.header)[-2:]]

    assert texts(own.at(0.0)) == [f"{min(locals_):.1f}", f"{np.std(locals_, ddof=1):.1f}"] != texts(own)
    assert texts(replace(own, outcomes=None)) == texts(own)
    assert texts(replace(own, outcomes=None).at(0.0)) == ["", ""]


def test_the_reference_is_the_last_method_or_the_given_method() -> None:
    both = Comparison([run("a", 0, GOOD), run("b", 0, FAIR, luck=1)])
    assert tables.difference_table(both).header[0] == "b minus"
    named = tables.difference_table(both, "a")
    assert named.header[0] == "a minus" and [row[0].text for row in named.rows] == ["b"]
    assert named.rows[0][1].text.startswith("+")
    with pytest.raises(OutputError, match="'z'"):
        tables.difference_table(both, "z")


def test_the_table_names_held_out_domains() -> None:
    one = run("a", 0, GOOD)
    other = {**one.results, "task": {**TASK, "novel": "domains", "novel_domains": ["clipart", "sketch"]}}
    made = tables.table(Comparison([replace(one, results=other)]))
    assert "Held-out" in made.header and "Novel" not in made.header
    assert "held out: clipart, sketch" in made.heading


def test_csv_files_have_the_numbers_of_the_tables() -> None:
    both = Comparison([run("a", 0, FAIR, GOOD), run("a", 1, FAIR, GOOD), run("b", 0, FAIR, luck=1)])
    found = list(csv.DictReader(io.StringIO(tables.comparison_csv(both))))
    assert [(row["method"], row["seeds"]) for row in found] == [("a", "0 1"), ("b", "0")]
    mean, deviation = both.mean("a")["cm"]
    assert (float(found[0]["cm"]), float(found[0]["cm_std"])) == (mean, deviation)
    assert found[1]["cm_std"] == ""
    path = list(csv.DictReader(io.StringIO(tables.path_csv(both))))
    assert [(row["method"], row["seed"], row["alpha"]) for row in path] == [
        ("a", "0", "0.0"), ("a", "0", "1.0"), ("a", "1", "0.0"), ("a", "1", "1.0"), ("b", "0", "1.0"),
    ]  # fmt: skip
    pairs = list(csv.DictReader(io.StringIO(tables.differences_csv(both))))
    assert len(pairs) == 2 * len(METRICS)
    there, back = pairs[0], pairs[len(METRICS)]
    assert (there["first"], there["second"], there["metric"]) == (back["second"], back["first"], back["metric"])
    assert float(there["first_minus_second"]) == pytest.approx(-float(back["first_minus_second"]))
    assert float(there["low"]) == pytest.approx(-float(back["high"]))


def test_latex_escapes_and_marks() -> None:
    cells = [[formats.TableCell("pfed_x"), formats.TableCell("64.1 ± 0.2", "best"), formats.TableCell("7", "same")]]
    text = formats.latex(formats.Table("50 % of", ["method", "α", "b"], cells))
    assert r"50 \% of" in text and r"pfed\_x" in text
    assert r"\textbf{64.1 $\pm$ 0.2} & 7$^{=}$ \\" in text
    assert r"\begin{tabular}{lrr}" in text and r"$\alpha$" in text


def test_notes_follow_a_table() -> None:
    one = formats.Table("heading", ["a"], [[formats.TableCell("1")]], "legend", ["[1] a_b: {} / x", "[2] c"])
    assert formats.markdown(one) == "| a |\n| --- |\n| 1 |\n\nlegend\n\n[1] a_b: {} / x\n\n[2] c\n"
    below = formats.latex(one).partition(r"\end{tabular}")[2]
    assert r"{\footnotesize [1] a\_b: \{\} / x\par}" in below and "[2] c" in below


def test_the_diagnosis_has_a_row_for_every_method() -> None:
    both = Comparison([run("a", 0, FAIR, GOOD, chosen=0.0), run("b", 0, FAIR, luck=1)])
    made = tables.diagnosis_table(both)
    cells = {row[0].text: dict(zip(made.header, (cell.text for cell in row), strict=True)) for row in made.rows}
    assert cells["a"]["that α"] == "0" and cells["b"]["that α"] == ""
    assert cells["a"]["CM at validation's α"] == f"{both.runs[0].results['path'][0]['cm']:.1f}" != cells["a"]["CM"]
    assert all("" not in list(row.values())[:6] for row in cells.values())
    assert "| a |" in markdown(both) and "Diagnosis" in markdown(both)


@pytest.mark.parametrize("together", [4, 5])
def test_the_trade_off_is_the_same_bytes_each_time_and_names_every_method(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one panel, or in a panel for each method; also if the path of some runs is one point."""
    monkeypatch.setattr(charts, "TOGETHER", together)
    runs = [run(f"method-{i}", seed, (0.5, 0.6, 0.6), (0.9, 0.3 + i / 50, 0.2)) for i in range(5) for seed in (0, 1)]
    runs[1] = run("method-0", 1, FAIR)
    frame = frames.tradeoff(Comparison(runs))
    first = frame[frame["method"] == "method-0"]
    assert list(first["alpha"]) == [0, 1, 0, 1] and first[first["seed"] == 1]["local"].nunique() == 1
    chart = charts.tradeoff(frame, "HM(Base, Novel)")
    assert ("facet" in chart.to_dict()) == (together == 4)
    svg = rendered(chart, "svg")
    assert svg == rendered(chart, "svg")
    assert all(f"method-{i}<" in svg.decode() for i in range(5))
    assert rendered(chart, "pdf") == rendered(chart, "pdf")
    png = rendered(chart, "png")
    assert png == rendered(chart, "png") and png.startswith(b"\x89PNG")
