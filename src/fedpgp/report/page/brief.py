"""The question, the setting and the answer of a comparison in words, and its page."""

from fedpgp.evaluation.bootstrap import METRICS, RESAMPLES
from fedpgp.methods import METHODS
from fedpgp.methods.plugins import installed
from fedpgp.report.page.html import Part, Section, page, texts
from fedpgp.report.tables import caption, difference_table, others_title, table, text_table, titles
from fedpgp.results.formats import Table
from fedpgp.results.run import Comparison, columns
from fedpgp.runs.comparison_plan import counted, seeds_text

CONFIG = "config.toml"
NOVEL = {
    "classes": "classes that no client trained on",
    "domains": "domains that no client trained on",
    "data sets": "another dataset",
}


def question(comparison: Comparison) -> str:
    """Return the question that a comparison answers."""
    run, named = comparison.runs[0], titles(comparison)
    novel = NOVEL.get(run.results["task"]["novel"])
    others = f", and on {novel} ({named['novel']})" if novel else ""
    asked = f"on a client's own images (Local), on images of all classes of the training (Base){others}?"
    methods = comparison.methods
    if len(methods) == 1:
        return f"How accurate are the models of {methods[0]} {asked}"
    return f"What method, of {len(methods)}, has the most accurate models {asked}"


def setting_table(comparison: Comparison) -> Table:
    """Return a table of the task, the training and the versions of a comparison."""
    run = comparison.runs[0]
    task, federation, made = run.results["task"], run.config.federation, run.provenance
    rounds = max(one.results["rounds"] for one in comparison.runs)  # zero-shot has none
    images = ", ".join(f"{count:,} for {name.capitalize()}" for name, count in task["images"].items())
    rows = {
        "methods": ", ".join(comparison.methods),
        "task": caption(comparison).partition(";")[0],
        "training images per class": str(run.config.task.shots or "all"),
        "test images": f"{images} ({task['evaluated_on']} split)",
        "training": f"{counted(rounds, 'round')} of {counted(federation.local_epochs, 'local epoch')},"
        f" {100 * federation.participation:g} % of the clients in a round, batches of {federation.batch_size} images",
        "dual encoder": f"{run.config.backbone.checkpoint}, {run.config.backbone.precision}",
        "seeds": ", ".join(map(str, comparison.seeds)),
        "made": f"{str(made.get('started', ''))[:10]} with fedpgp {made.get('fedpgp', '')}",
    }
    return text_table("", ["setting", "value"], [[name, value] for name, value in rows.items()])


def answer(comparison: Comparison) -> list[str]:
    """Return a sentence for each metric: the best method, and its difference from the next one with its interval.

    Raises
    ------
    OutputError
        If the clients keep their predictions.
    """
    whole = [each for each in comparison.methods if [run.seed for run in comparison.of(each)] == comparison.seeds]
    if len(whole) < 2:
        return []
    named, sentences = titles(comparison), []
    for metric in (name for name in METRICS if name in columns(comparison.runs[0])):
        means = {each: comparison.mean(each)[metric][0] for each in whole}
        best, second = sorted(means, key=lambda each: -means[each])[:2]
        found = comparison.against(best, second)[metric]
        interval = f"95 % interval {found.low:.1f} to {found.high:.1f}"
        start = f"{named[metric]}: {best} has the highest mean, {means[best]:.1f}."
        if found.mean == found.low == found.high == 0:
            sentences.append(f"{named[metric]}: {best} and {second} have the highest mean, {means[best]:.1f}.")
        elif found.excludes_zero:
            sentences.append(f"{start} It is {found.mean:.1f} points higher than {second}, the next one ({interval}).")
        else:
            sentences.append(
                f"{start} The difference from {second}, the next one, is {found.mean:.1f} points and may be chance"
                f" ({interval})."
            )
    return sentences


def confidence(comparison: Comparison) -> str:
    """Return what the intervals mean."""
    return (
        f"The intervals are from a paired bootstrap over test images with {RESAMPLES:,} resamples, and"
        f" {seeds_text(comparison.seeds)}. They cover only the choice of the test images. An interval that contains"
        " zero means that the test images do not show which method is better."
    )


def repeat(comparison: Comparison) -> tuple[str, str]:
    """Return the commands that repeat a comparison with its config.toml, and a text about them."""
    seeds = {method: len(comparison.of(method)) for method in comparison.methods}
    most, fewest = max(seeds.values()), min(seeds.values())
    command = f"fedpgp compare --config {CONFIG} --methods {','.join(seeds)} --seeds {most}"
    if fewest < most:
        command += f" --costly-seeds {fewest}"
    if comparison.seeds != list(range(most)):  # compare cannot choose seeds
        runs = [f"--method {run.method} --seed {run.seed}" for run in comparison.runs]
        command = "\n".join(f"fedpgp run --config {CONFIG} {run}" for run in runs)
    text = f"Save {CONFIG}, which has all settings, and run the command in its directory."
    known = {*METHODS, *installed()}
    own = [method for method in seeds if method not in known]
    if own:
        text += f" {', '.join(own)}: write path/to/file.py:Class instead of the name, because fedpgp does not have it."
    return command, text


def opening(comparison: Comparison) -> list[Part]:
    """Return the parts with which each page begins: question and setting."""
    return [
        Part("question", "Question", lines=[question(comparison)]),
        Part("setting", "Setting", table=setting_table(comparison)),
    ]


def repeating(comparison: Comparison) -> Part:
    """Return the part with the command that repeats a comparison."""
    command, text = repeat(comparison)
    return Part("repeat", "Repeat it", text, command=command, file=(CONFIG, comparison.runs[0].config.to_toml()))


def differing(comparison: Comparison, reference: str | None = None) -> Part:
    """Return the part that says what differs, and with which confidence."""
    shown = difference_table(comparison, reference)
    return Part("differences", "What differs", confidence(comparison), answer(comparison), shown)


def comparison_page(comparison: Comparison, svg: str) -> str:
    """Return the page of a comparison: question, setting, table, figure, what differs, and how to repeat it.

    Parameters
    ----------
    comparison
        The comparison.
    svg
        Its trade-off as a figure.
    """
    parts = [
        *opening(comparison),
        Part("results", "Results", table=table(comparison)),
        Part("tradeoff", *texts("tradeoff", others=others_title(comparison)), svg=svg),
    ]
    if len(comparison.methods) > 1:
        parts.append(differing(comparison))
    return page("Comparison of methods", [Section(caption(comparison), [*parts, repeating(comparison)])])
