"""The tables of a reproduction: the paper's, the same over the last five rounds, and what others reported."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fedpgp.report.curves import write_figures
from fedpgp.report.tables import figure_text, titles
from fedpgp.results.formats import Table, TableCell, latex, markdown, to_csv
from fedpgp.results.run import Run, columns, spread
from fedpgp.runs.comparison_plan import seeds_text
from fedpgp.runtime.files import write
from fedpgp.studies.axes import slug
from fedpgp.studies.recipe import Recipe, Reported, read_recipe
from fedpgp.studies.reported_settings import Agreement

if TYPE_CHECKING:
    from fedpgp.studies.study import Key, Study, StudyPart

PARTS = {"final": "last round", "last_five": "mean of the last five rounds"}
REPORTED = "reported.csv"
WIDEST = 12  # columns that a page or a terminal has room for


def write_reproduction(found: "Study", directory: Path) -> None:
    """Writes figures as .svg and .png, reproduction.md, reproduction.tex and, last of all, reproduction.csv.

    If others reported figures for some cells, they are also in reported.csv.
    """
    recipe = read_recipe(found.asked["recipe"])
    shown = tables(found)
    text = [f"# {recipe.title}", recipe.about]
    if found.asked["embedded"]:
        text.append(f"Embedded: {recipe.embedded_note}. No figure of the paper is to be compared with these.")
    text += [f"## {one.heading}\n\n{markdown(one)}" for one in shown]
    for part in found.parts:
        prefix = f"{slug(part.name)}-" if len(found.parts) > 1 else ""
        drawn = write_figures(found, part, directory, prefix)
        text += [f"![{part.name}: {what}]({name}.svg)\n\n{part.name}: {what}" for name, what in drawn.items()]
    text.append("## Provenance\n\n" + "\n".join(f"- {what}: {value}" for what, value in provenance(found).items()))
    write(directory / "reproduction.md", ("\n\n".join(text) + "\n").encode())
    comment = "".join(f"% {what}: {value}\n" for what, value in provenance(found).items())
    write(directory / "reproduction.tex", (comment + "\n".join(map(latex, shown))).encode())
    if reported := reported_rows(found, recipe):
        write(directory / REPORTED, to_csv(reported).encode())
    write(directory / "reproduction.csv", to_csv(found.rows()).encode())


def tables(found: "Study") -> list[Table]:
    """For each part the table of the last round and that of the last five, where clients have one domain each a table
    by domain, and one of what others reported."""
    recipe = read_recipe(found.asked["recipe"])
    shown = [table(found, recipe, part, kind) for part in found.parts for kind in PARTS]
    shown += [domain_table(found, part) for part in found.parts if _domains(found, part)]
    reported = reported_table(found, recipe)
    return [*shown, reported] if reported.rows else shown


def table(found: "Study", recipe: Recipe, part: "StudyPart", kind: str) -> Table:
    """Mean ± std over the seeds: a row for each method, columns for each cell and figure.

    With one method, or more than `WIDEST` columns, a row for each cell and method. A method whose clients hold a
    private part has its shared part beside, in the last round alone. kind: one of `PARTS`.
    """
    groups = dict(_groups(part))
    figures = {title: _figures(found, recipe, keys) for title, keys in groups.items()}
    heading = f"{part.name}: {PARTS[kind]}, percent, {seeds_text(found.seeds)}"
    lines = [(method, kind) for method in found.methods]
    if kind == "final":
        first = found.comparisons[next(part.cell_keys())]
        lines = [line for method in found.methods for line in _with_shared(first.of(method), method)]

    def texts(title: str, method: str, where: str) -> list[TableCell]:
        runs = [found.comparisons[key].of(method) for key in groups[title]]
        return [TableCell(_text(runs, where, name)) for name in figures[title]]

    def named(method: str, where: str) -> str:
        return f"{method}, shared part" if where == "shared" else method

    across = [f"{title} {name}" for title in groups for name in figures[title].values()]
    same = len({tuple(names) for names in figures.values()}) == 1
    if same and (len(found.methods) == 1 or len(across) > WIDEST):
        rows = [
            [TableCell(title), TableCell(named(*line)), *texts(title, *line)] for title, line in product(groups, lines)
        ]
        return Table(heading, [", ".join(part.axes), "method", *next(iter(figures.values())).values()], rows)
    rows = [[TableCell(named(*line)), *(cell for title in groups for cell in texts(title, *line))] for line in lines]
    return Table(heading, ["method", *across], rows)


def domain_table(found: "Study", part: "StudyPart") -> Table:
    """Local in the last round, the mean over the clients of each domain: mean ± std over the seeds."""
    names = _domains(found, part)
    rows = []
    for key, method in product(part.cell_keys(), found.methods):
        each = [run.results["domains"] for run in found.comparisons[key].of(method)]
        texts = [figure_text(*spread([of[name] for of in each])) if name in each[0] else "" for name in names]
        rows.append([TableCell(text) for text in (", ".join(key[1:]), method, *texts)])
    heading = f"{part.name}: Local by domain, last round, percent, {seeds_text(found.seeds)}"
    return Table(heading, [", ".join(part.axes), "method", *names], rows)


@dataclass(frozen=True)
class _ReportedFigure:
    """A reported figure beside that of a cell. deviation: over the seeds; None with one seed."""

    part: "StudyPart"
    key: "Key"
    reported: Reported
    name: str
    title: str
    mean: float
    deviation: float | None
    agreement: Agreement

    @property
    def figure(self) -> float:
        return self.reported.figures[self.name]

    @property
    def difference(self) -> float | None:
        """Ours minus the reported figure; None if a setting that the source states is another one here."""
        return self.mean - self.figure if self.agreement.is_same else None


def _entries(found: "Study", recipe: Recipe) -> Iterator[_ReportedFigure]:
    for part in found.parts:
        for key, one in product(part.cell_keys(), recipe.reported):
            if one.method not in found.methods or not one.is_of(part, key):
                continue
            comparison = found.comparisons[key]
            runs = comparison.of(one.method)
            agreement = one.compare(runs[0].config)
            for name in one.figures:
                mean, deviation = spread([run.results["final"][name] for run in runs])
                yield _ReportedFigure(part, key, one, name, titles(comparison)[name], mean, deviation, agreement)


def reported_table(found: "Study", recipe: Recipe) -> Table:
    """What others published beside what was found, with the difference if all settings that the source states agree.

    The notes say which settings differ, or which the source does not state.
    """
    rows, notes = [], list[str]()
    for one in _entries(found, recipe):
        note = _note(one.reported.source, one.agreement)
        if note not in notes:
            notes.append(note)
        difference = "other settings" if one.difference is None else f"{one.difference:+.1f}"
        texts = [", ".join(one.key[1:]), one.reported.method, one.title, f"{one.figure:.2f}"]
        texts += [figure_text(one.mean, one.deviation), difference]
        rows.append([TableCell(text) for text in [*texts, f"{one.reported.source} [{notes.index(note) + 1}]"]])
    return Table(
        "Reported by others",
        ["cell", "method", "figure", "reported", "here", "difference", "source"],
        rows,
        "The original paper's own tables are not at hand, so none of their figures stand here.",
        [f"[{number}] {note}" for number, note in enumerate(notes, 1)],
    )


def _note(source: str, agreement: Agreement) -> str:
    """The settings that differ, or if none does, those that the source does not state."""
    if agreement.is_same:
        keys: dict[str, list[str]] = {}
        for section, _, key in (one.partition(".") for one in agreement.unknown):
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


def reported_rows(found: "Study", recipe: Recipe) -> list[dict[str, Any]]:
    """A row for every reported figure, with the settings that differ and those that its source does not state."""
    return [
        {
            **({"part": one.part.name} if one.part.name else {}),
            **dict(zip(one.part.axes, one.key[1:], strict=True)),
            "method": one.reported.method,
            "figure": one.name,
            "reported": one.figure,
            "here": one.mean,
            "here_std": one.deviation,
            "difference": one.difference,
            "source": one.reported.source,
            "differs": _differing(one.agreement),
            "not_expressible": "; ".join(one.agreement.not_expressible),
            "unknown": "; ".join(one.agreement.unknown),
        }
        for one in _entries(found, recipe)
    ]


def provenance(found: "Study") -> dict[str, str]:
    """What made the figures: versions, weights, seeds, config and command."""
    runs = found.runs()
    checkpoints = sorted({run.config.backbone.checkpoint for run in runs})
    packages: Mapping[str, Any] = runs[0].provenance["packages"]
    return {
        "command": str(found.asked["command"]),
        "fedpgp": str(runs[0].provenance["fedpgp"]),
        "packages": ", ".join(f"{name} {number}" for name, number in packages.items()),
        "python": str(runs[0].provenance["python"]),
        "checkpoint": ", ".join(Path(name).name for name in checkpoints),
        "fingerprint of the checkpoint": ", ".join(sorted({str(run.provenance["checkpoint"]) for run in runs})),
        "seeds": ", ".join(map(str, found.seeds)),
        "SHA-256 of config.toml": found.digest,
    }


def _domains(found: "Study", part: "StudyPart") -> list[str]:
    """Of the clients of a part's cells; none where clients have images of several."""
    each = [run.results["domains"] for key in part.cell_keys() for run in found.comparisons[key].runs]
    return list(dict.fromkeys(name for of in each for name in of))


def _groups(part: "StudyPart") -> Iterator[tuple[str, list["Key"]]]:
    """The cells of a table by title, each by itself, and then those that a mean is taken over."""
    over: dict[str, list[Key]] = {}
    names = list(part.axes)
    for key in part.cell_keys():
        yield ", ".join(key[1:]), [key]
        if part.mean is not None:
            rest = [label for name, label in zip(names, key[1:], strict=True) if name != part.mean]
            over.setdefault(", ".join(["mean", *rest]), []).append(key)
    yield from ((title, keys) for title, keys in over.items() if len(keys) > 1)


def _figures(found: "Study", recipe: Recipe, keys: Sequence["Key"]) -> dict[str, str]:
    """Name -> title of what a group of cells shows: what the recipe asks for; where it asks for nothing, all."""
    first = found.comparisons[keys[0]]
    named = titles(first)
    return {name: named[name] for name in recipe.figures or columns(first.runs[0])}


def _with_shared(runs: Sequence[Run], method: str) -> list[tuple[str, str]]:
    has_private = any(name.startswith("private/") for name in runs[0].prompts)
    shared = has_private and runs[0].results["shared"] is not None
    return [(method, "final"), (method, "shared")] if shared else [(method, "final")]


def _text(cells: Sequence[Sequence[Run]], where: str, name: str) -> str:
    """The mean over cells of each seed, and then over the seeds; "" for what a run does not have."""
    if any(name not in run.results[where] for runs in cells for run in runs):
        return ""
    seeds = zip(*cells, strict=True)
    return figure_text(*spread([fmean(run.results[where][name] for run in of_seed) for of_seed in seeds]))
