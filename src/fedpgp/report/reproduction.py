"""Tables of a reproduction: the last round, the mean of the last five rounds, and the reported figures."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpgp.evaluation.bootstrap import differences
from fedpgp.report.grid import write_figures
from fedpgp.report.tables import TITLES, difference_text, figure_text, figure_texts, has_both, text_table, titles
from fedpgp.results.formats import Table, latex, markdown, to_csv
from fedpgp.results.run import Run, columns, spread
from fedpgp.runs.comparison_plan import seeds_text
from fedpgp.runtime import escaping
from fedpgp.runtime.files import write
from fedpgp.studies.axes import slug
from fedpgp.studies.recipe import Recipe, Side, read_recipe
from fedpgp.studies.reported_settings import Agreement

if TYPE_CHECKING:
    from fedpgp.studies.study import Key, Study, StudyPart

PARTS = {"final": "last round", "last_five": "mean of the last five rounds"}
REPORTED = "reported.csv"
QUESTIONED = ("local", "base", "novel", "hm", "cm")
WIDEST = 12  # most columns that fit a page or a terminal


def write_reproduction(study: "Study", directory: Path) -> None:
    """Write the figures, then reproduction.md and reproduction.tex, and at the end reproduction.csv.

    If there are reported figures for some cells, reported.csv has them, too.
    """
    recipe = read_recipe(study.asked["recipe"])
    all_tables = tables(study)
    made_by = provenance(study)
    text = [f"# {escaping.markdown(recipe.title)}", recipe.about]
    if study.asked["embedded"]:
        text.append(f"Embedded: {recipe.embedded_note}. Do not compare these figures with the figures of the paper.")
    text += [f"## {escaping.markdown(shown.heading)}\n\n{markdown(shown)}" for shown in all_tables]
    for part in study.parts:
        prefix = f"{slug(part.name)}-" if len(study.parts) > 1 else ""
        drawn = write_figures(study, part, directory, prefix)
        text += [f"![{part.name}: {what}]({name}.svg)\n\n{part.name}: {what}" for name, what in drawn.items()]
    text.append(
        "## Provenance\n\n" + "\n".join(f"- {what}: {escaping.markdown(value)}" for what, value in made_by.items())
    )
    write(directory / "reproduction.md", ("\n\n".join(text) + "\n").encode())
    comment = "".join(f"% {what}: {' '.join(value.split())}\n" for what, value in made_by.items())
    write(directory / "reproduction.tex", (comment + "\n".join(map(latex, all_tables))).encode())
    if reported := reported_rows(study, recipe):
        write(directory / REPORTED, to_csv(reported).encode())
    write(directory / "reproduction.csv", to_csv(study.rows()).encode())


def tables(study: "Study") -> list[Table]:
    """Return the tables of a reproduction.

    Each part has a table of the last round, a table of the last five rounds and, if each client has one domain, a table
    by domain. A table of the recipe's questions and a table of reported figures follow.
    """
    recipe = read_recipe(study.asked["recipe"])
    shown = [table(study, recipe, part, kind) for part in study.parts for kind in PARTS]
    shown += [domain_table(study, part) for part in study.parts if _domains(study, part)]
    return [*shown, *(last for last in (question_table(study, recipe), reported_table(study, recipe)) if last.rows)]


def table(study: "Study", recipe: Recipe, part: "StudyPart", kind: str) -> Table:
    """Return a table of mean ± std over the seeds: a row for each method, columns for each cell and metric.

    With one method, or with more than `WIDEST` columns, there is a row for each cell and method instead. In the last
    round, a method with a private part has a second row for its shared part.

    Parameters
    ----------
    study
        A finished reproduction.
    recipe
        Its recipe.
    part
        One of its parts.
    kind
        One of the keys of `PARTS`.
    """
    groups = dict(_groups(part))
    figures = {title: _figures(study, recipe, keys) for title, keys in groups.items()}
    heading = f"{part.name}: {PARTS[kind]}, percent, {seeds_text(study.seeds)}"
    lines = {}  # text of the first column -> method, and the part of its results
    for method in study.methods_of(part):
        lines[method] = method, kind
        if kind == "final" and has_both(study.comparisons[next(part.cell_keys())].of(method)[0]):
            lines[f"{method}, shared part"] = method, "shared"

    def texts(title: str, line: str) -> list[str]:
        method, where = lines[line]
        runs = [study.comparisons[key].of(method) for key in groups[title]]
        return figure_texts(runs, figures[title], where)

    across = [f"{title} {name}".strip() for title in groups for name in figures[title].values()]
    same = len({tuple(names) for names in figures.values()}) == 1
    if same and (len(study.methods_of(part)) == 1 or len(across) > WIDEST):
        rows = [[title, line, *texts(title, line)] for title, line in product(groups, lines)]
        return text_table(heading, [", ".join(part.axes), "method", *next(iter(figures.values())).values()], rows)
    rows = [[line, *(text for title in groups for text in texts(title, line))] for line in lines]
    return text_table(heading, ["method", *across], rows)


def domain_table(study: "Study", part: "StudyPart") -> Table:
    """Return a table of Local in the last round for the clients of each domain: mean ± std over the seeds."""
    names = _domains(study, part)
    rows = []
    for key, method in product(part.cell_keys(), study.methods_of(part)):
        figures = [run.results["domains"] for run in study.comparisons[key].of(method)]
        texts = [figure_text(*spread([of[name] for of in figures])) if name in figures[0] else "" for name in names]
        rows.append([", ".join(key[1:]), method, *texts])
    heading = f"{part.name}: Local by domain, last round, percent, {seeds_text(study.seeds)}"
    return text_table(heading, [", ".join(part.axes), "method", *names], rows)


def question_table(study: "Study", recipe: Recipe) -> Table:
    """Return a table of the differences that a recipe asks for, with 95 % intervals of the paired bootstrap.

    Questions about methods or cells that the study does not have are left out.
    """
    rows = []
    for question in recipe.questions:
        sides = [_runs(study, side) for side in (question.first, question.second)]
        if all(sides):
            found = differences(*([run.resampled for run in runs] for runs in sides))
            rows.append([question.text, *(difference_text(found[n]) if n in found else "" for n in QUESTIONED)])
    heading = f"Questions: differences with 95 % intervals, {seeds_text(study.seeds)}"
    return text_table(heading, ["first minus second", *(TITLES[name] for name in QUESTIONED)], rows)


def _runs(study: "Study", side: Side) -> list[Run]:
    if side.part not in {part.name for part in study.parts}:
        return []
    comparison = study.comparisons[side.key(study.parts)]
    return [run.at(side.alpha) for run in comparison.of(side.method)] if side.method in comparison.methods else []


def _reported(study: "Study", recipe: Recipe) -> Iterator[tuple[list[str], Agreement, dict[str, Any]]]:
    """Yield for every reported figure of a cell: the first texts of a table row, the agreement, and a row of the file.

    The difference is the figure of the study minus the reported figure, or None if settings differ.
    """
    for part in study.parts:
        for key, reported in product(part.cell_keys(), recipe.reported):
            if reported.method not in study.methods_of(part) or not reported.is_of(part, key):
                continue
            comparison = study.comparisons[key]
            runs = comparison.of(reported.method)
            agreement = reported.compare(runs[0].config)
            for name, figure in reported.figures.items():
                mean, deviation = spread([run.results["final"][name] for run in runs])
                texts = [", ".join(key[1:]), reported.method, titles(comparison)[name], f"{figure:.2f}"]
                row = {
                    **({"part": part.name} if part.name else {}),
                    **dict(zip(part.axes, key[1:], strict=True)),
                    "method": reported.method,
                    "figure": name,
                    "reported": figure,
                    "here": mean,
                    "here_std": deviation,
                    "difference": mean - figure if agreement.is_same else None,
                    "source": reported.source,
                    "differs": _differing(agreement),
                    "not_expressible": "; ".join(agreement.not_expressible),
                    "unknown": "; ".join(agreement.unknown),
                }
                yield [*texts, figure_text(mean, deviation)], agreement, row


def reported_rows(study: "Study", recipe: Recipe) -> list[dict[str, Any]]:
    """Return a row for every reported figure, with the settings that differ and the settings that are not stated."""
    return [row for *_, row in _reported(study, recipe)]


def reported_table(study: "Study", recipe: Recipe) -> Table:
    """Return a table of reported figures and figures of the study, with differences if all stated settings agree.

    The notes list the settings that differ, or the settings that the source does not state.
    """
    rows, numbers = [], dict[str, int]()  # note -> its number
    for texts, agreement, row in _reported(study, recipe):
        number = numbers.setdefault(_note(row["source"], agreement), len(numbers) + 1)
        difference = f"{row['difference']:+.1f}" if agreement.is_same else "other settings"
        rows.append([*texts, difference, f"{row['source']} [{number}]"])
    return text_table(
        "Reported by others",
        ["cell", "method", "figure", "reported", "here", "difference", "source"],
        rows,
        "The tables of the original paper are not available, so this table has none of their figures.",
        [f"[{number}] {note}" for note, number in numbers.items()],
    )


def _note(source: str, agreement: Agreement) -> str:
    """Return the settings that differ or, if none differs, the settings that the source does not state."""
    if agreement.is_same:
        keys: dict[str, list[str]] = {}
        for section, _, key in (name.partition(".") for name in agreement.unknown):
            keys.setdefault(section, []).append(key)
        unknown = "; ".join(f"[{section}] {', '.join(of_section)}" for section, of_section in keys.items())
        return f"All settings that {source} states are the same here. It does not state: {unknown or 'none'}."
    text = ""
    if agreement.differs:
        text += f"Settings that differ, here / in {source}: {_differing(agreement)}. "
    if agreement.not_expressible:
        text += f"Settings of {source} that fedpgp does not have: {'; '.join(agreement.not_expressible)}. "
    return text + f"{source} does not state {len(agreement.unknown)} other settings; {REPORTED} names them."


def _differing(agreement: Agreement) -> str:
    return "; ".join(f"{key}: {ours} / {theirs}" for key, (ours, theirs) in agreement.differs.items())


def provenance(study: "Study") -> dict[str, str]:
    """Return the origin of the figures: versions, weights, seeds, config and command."""
    runs = study.runs()
    checkpoints = sorted({run.config.backbone.checkpoint for run in runs})
    packages: Mapping[str, Any] = runs[0].provenance["packages"]
    return {
        "command": str(study.asked["command"]),
        "fedpgp": str(runs[0].provenance["fedpgp"]),
        "packages": ", ".join(f"{name} {number}" for name, number in packages.items()),
        "python": str(runs[0].provenance["python"]),
        "checkpoint": ", ".join(Path(name).name for name in checkpoints),
        "fingerprint of the checkpoint": ", ".join(sorted({str(run.provenance["checkpoint"]) for run in runs})),
        "seeds": ", ".join(map(str, study.seeds)),
        "SHA-256 of config.toml": study.digest,
    }


def _domains(study: "Study", part: "StudyPart") -> list[str]:
    """Return the domains of the clients of a part; empty if a client has several domains."""
    runs = (run for key in part.cell_keys() for run in study.comparisons[key].runs)
    return list(dict.fromkeys(name for run in runs for name in run.results["domains"]))


def _groups(part: "StudyPart") -> Iterator[tuple[str, list["Key"]]]:
    """Yield the title and the keys of each column group: single cells, then groups for means."""
    over: dict[str, list[Key]] = {}
    names = list(part.axes)
    for key in part.cell_keys():
        yield ", ".join(key[1:]), [key]
        if part.mean is not None:
            rest = [label for name, label in zip(names, key[1:], strict=True) if name != part.mean]
            over.setdefault(", ".join(["mean", *rest]), []).append(key)
    yield from ((title, keys) for title, keys in over.items() if len(keys) > 1)


def _figures(study: "Study", recipe: Recipe, keys: Sequence["Key"]) -> dict[str, str]:
    """Return the mapping metric -> title of a group of cells: the metrics of the recipe, or else all metrics."""
    first = study.comparisons[keys[0]]
    named = titles(first)
    return {name: named[name] for name in recipe.figures or columns(first.runs[0]) if name in columns(first.runs[0])}
