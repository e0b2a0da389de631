"""Details of one run that need its model and images: text features, and images with the answers of clients."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from fedpgp.data.sources import load_source
from fedpgp.errors import FedPGPError
from fedpgp.report.page.projections import principal, tsne
from fedpgp.results.run import Run
from fedpgp.serving.classifier import Classes, Classifier, load, params_of
from fedpgp.serving.reduce import head_of

CLIENTS = 5  # clients whose models are shown; the text features of more would be hard to distinguish
DRAWN = 60  # classes whose text features are drawn
WRONG, RIGHT = 8, 4  # example images that a client gets wrong and right
SIDE = 96  # longer side of a picture in pixels
BEST = 3  # most probable classes of an example image


@dataclass(frozen=True)
class Models:
    """Models of a run with the class names of the training.

    Attributes
    ----------
    run
        The run.
    shared
        The shared model, or the model of client 0 if the shared part cannot predict.
    personal
        Models of some clients by their place in the results; empty if all clients have the shared model.
    classes
        The class names as each model reads them.
    """

    run: Run
    shared: Classifier
    personal: dict[int, Classifier]
    classes: dict[int | None, Classes]


def models(run: Run) -> Models:
    """Return the shared model and the models of the first clients of a run; may raise FedPGPError."""
    try:
        shared = load(run)
    except FedPGPError:
        shared = load(run, 0)
    personal: dict[int, Classifier] = {}
    if run.results["private"] or any(name.startswith(("kept/", "received/")) for name in run.prompts):
        for place, about in enumerate(run.results["clients"][:CLIENTS]):
            client = about["client"]
            params = params_of(run, shared.method, shared.backbone, client)
            personal[place] = replace(shared, params=params, client=client)
    read: dict[int | None, Classes] = {None: shared.read()}
    return Models(run, shared, personal, read | {place: model.read() for place, model in personal.items()})


def text_features(found: Models) -> pd.DataFrame:
    """Return prompt, kind, class, projection, x and y of the text features of a run.

    Raises
    ------
    FedPGPError
        If a model has more than text features.
    """
    read = found.classes
    heads = {("hand-written", "hand-written"): read[None].frozen.guidance}
    if found.shared.client is None:
        heads["shared part", "shared"] = head_of(found.shared, read[None])
    for place, model in found.personal.items():
        heads[f"client {model.client}", "personal"] = head_of(model, read[place])
    names = read[None].names
    drawn = np.sort(np.random.default_rng(0).permutation(len(names))[:DRAWN])
    matrix = torch.cat([head[drawn] for head in heads.values()]).double().cpu().numpy()
    components = principal(matrix)
    points = pd.DataFrame(
        [(*head, names[place]) for head in heads for place in drawn], columns=["prompt", "kind", "class"]
    )
    projections = {"t-SNE": tsne(matrix, components), "PCA": components}
    return pd.concat(
        [points.assign(projection=name, x=at[:, 0].round(4), y=at[:, 1].round(4)) for name, at in projections.items()]
    )


def examples(found: Models) -> list[dict[str, Any]]:
    """Return some test images of clients' own classes, first images that the clients get wrong, then right ones.

    Each item has `picture` (a data URL), `truth`, `client`, `right`, `answered` (the class and its probability at the
    end of the run), and `own` and `shared`: the most probable classes of the client's and the shared model with their
    percentages, computed again from the stored prompts.

    Raises
    ------
    FedPGPError
        If the images or the answers are missing.
    """
    run = found.run
    if "base/predicted" not in run.answers or run.outcomes is None:
        return []
    names = run.results["task"]["base_names"]
    labels, numbers = run.answers["base/labels"].numpy(), run.answers["base/images"].numpy()
    predicted = run.answers["base/predicted"].numpy()[:CLIENTS]
    confidence = run.answers["base/confidence"].numpy()
    own = run.outcomes.unpack("own", slice(0, CLIENTS))
    rng = np.random.default_rng(0)
    chosen: list[tuple[int, int]] = []
    for right, count in ((False, WRONG), (True, RIGHT)):
        pairs = np.argwhere(own & ((predicted == labels) == right))
        chosen += [(int(client), int(image)) for client, image in pairs[rng.permutation(len(pairs))[:count]]]
    if not chosen:
        return []
    split = run.results["task"]["evaluated_on"]
    source = getattr(load_source(run.config.data, ("train", "validation", split)), split)
    pictures = [source.image(int(numbers[image])) for _, image in chosen]
    shared = _best(found, None, pictures)
    items = []
    for at, (place, image) in enumerate(chosen):
        model = place if place in found.personal else None
        share = f"{100 * float(confidence[place, image]):.0f} %"
        items.append(
            {
                "picture": _url(pictures[at]),
                "truth": names[labels[image]],
                "client": run.results["clients"][place]["client"],
                "right": bool(predicted[place, image] == labels[image]),
                "answered": f"{names[predicted[place, image]]}, {share}",
                "own": shared[at] if model is None else _best(found, model, pictures[at : at + 1])[0],
                "shared": shared[at] if model is not None and found.shared.client is None else [],
            }
        )
    return items


def _best(found: Models, place: int | None, pictures: Sequence[Any]) -> list[list[tuple[str, str]]]:
    """Return the most probable classes of a model for each picture, with percentages."""
    model = found.shared if place is None else found.personal[place]
    answers = model.stream(pictures, found.classes[place], workers=0)
    return [[(name, f"{100 * share:.0f}") for name, share in answer.best(BEST)] for answer in answers]


def _url(picture: Any) -> str:
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
