"""The model card of an export: what was exported, how accurate it is, and code that uses it without fedpgp."""

import json
from collections.abc import Mapping
from importlib import resources
from string import Template
from typing import Any

from fedpgp.results.run import Run
from fedpgp.runtime.escaping import markdown, python
from fedpgp.runtime.version import __version__
from fedpgp.serving import checkpoint
from fedpgp.serving.classifier import Classifier

SHOWN = 3  # class names in the example


def card(run: Run, classifier: Classifier, format: str, facts: Mapping[str, Any]) -> str:
    """Return the card of an export as Markdown.

    Parameters
    ----------
    run
        The run.
    classifier
        The exported model.
    format
        Format of the export.
    facts
        "library", the library that the card's code uses, and the other values in the template of the format.
    """
    task = run.results["task"]
    name, licence = run.config.backbone.checkpoint, classifier.backbone.licence
    header = {"license": licence, "base_model": name}
    examples = python([name.replace("_", " ") for name in classifier.base[:SHOWN]])
    return _template("card").substitute(
        {key: markdown(str(task[key])) for key in ("clients", "protocol", "data", "base_classes")},
        header="".join(f"{key}: {json.dumps(value)}\n" for key, value in header.items() if value != "not stated"),
        method=markdown(run.method),
        whose=markdown(classifier.owner),
        checkpoint=markdown(name),
        seed=run.seed,
        version=__version__,
        accuracies=_accuracies(run, classifier.client),
        packages=" ".join(checkpoint.packages(classifier.backbone, facts["library"])),
        usage=_template(f"{facts['library']}/{format}").substitute(
            facts, examples=examples, image=checkpoint.reading(classifier.backbone, facts["library"])
        ),
        licence=markdown(licence),
    )


def _accuracies(run: Run, client: int | None) -> str:
    """Return the test accuracies of a model after the last round, with the numbers of test images, as text."""
    rows, outcomes, counts = run.results["clients"], run.outcomes, {}
    places = {row["client"]: place for place, row in enumerate(rows)}
    if client is not None and client not in places:
        return "not measured"
    figures = run.results["shared"] if client is None else rows[places[client]]
    if outcomes is not None:
        counts = {"base": outcomes.base_images, "novel": outcomes.novel_images}
        if client is not None:
            counts["local"] = int(outcomes.unpack("own")[places[client]].sum())
    notes = {name: f" ({count} images)" for name, count in counts.items()}
    if client is None:
        notes["local"] = f" (mean over {len(rows)} clients)"
    names = [name for name in ("local", "base", "novel") if name in figures]
    return ", ".join(f"{name} {figures[name]:.1f}{notes.get(name, '')}" for name in names)


def _template(name: str) -> Template:
    return Template((resources.files("fedpgp.serving") / "cards" / f"{name}.md").read_text(encoding="utf-8"))
