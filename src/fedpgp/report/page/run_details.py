"""Details of one run that need its model and images: text features, and images that clients get wrong."""

import base64
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from fedpgp.data.sources import load_source
from fedpgp.errors import FedPGPError
from fedpgp.results.run import Run
from fedpgp.serving.classifier import Classifier, load, params_of
from fedpgp.serving.reduce import head_of

CLIENTS = 5  # clients whose text features are drawn; more would be hard to distinguish
PICTURES = 12
SIDE = 96  # longer side of a picture in pixels
PERPLEXITY = 15


def text_features(run: Run, first: Classifier) -> pd.DataFrame:
    """Return prompt, kind, class, projection, x and y of the text features of a run.

    Parameters
    ----------
    run
        A finished run.
    first
        Result of `first_model`.

    Raises
    ------
    FedPGPError
        If a model has more than text features.
    """
    classes = first.read()
    heads = {("hand-written", "hand-written"): classes.frozen.guidance}
    if first.client is None:
        heads["shared part", "shared"] = head_of(first, classes)
    if run.results["private"] or any(name.startswith(("kept/", "received/")) for name in run.prompts):
        for client in [about["client"] for about in run.results["clients"][:CLIENTS]]:
            model = replace(first, params=params_of(run, first.method, first.backbone, client), client=client)
            heads[f"client {client}", "personal"] = head_of(model, model.read())
    matrix = torch.cat(list(heads.values())).double().cpu().numpy()
    perplexity = min(PERPLEXITY, (len(matrix) - 1) / 3)
    components = PCA(2, svd_solver="covariance_eigh").fit_transform(matrix)
    start = (components / components[:, 0].std() * 1e-4).astype(np.float32)  # as with init="pca" of sklearn
    similar = TSNE(2, perplexity=perplexity, init=start, random_state=0, max_iter=500, method="exact")
    points = pd.DataFrame(
        [(*head, name) for head in heads for name in classes.names], columns=["prompt", "kind", "class"]
    )
    projections = {"t-SNE": similar.fit_transform(matrix).astype(float), "PCA": components}
    return pd.concat(
        [points.assign(projection=name, x=at[:, 0].round(4), y=at[:, 1].round(4)) for name, at in projections.items()]
    )


def wrong(run: Run, first: Classifier) -> list[dict[str, Any]]:
    """Return some test images of clients' own classes that the clients get wrong.

    Each item has `picture` (a data URL), `truth`, `client`, `answered`, and `shared`, the answer of the shared model.

    Parameters
    ----------
    run
        A finished run.
    first
        Result of `first_model`.

    Raises
    ------
    FedPGPError
        If the images, the checkpoint or the answers are missing.
    """
    if "base/predicted" not in run.answers or run.outcomes is None:
        return []
    names = run.results["task"]["base_names"]
    labels, numbers = run.answers["base/labels"].numpy(), run.answers["base/images"].numpy()
    predicted, own = run.answers["base/predicted"].numpy(), run.outcomes.unpack("own")
    rng = np.random.default_rng(0)
    missed = np.argwhere(own & (predicted != labels))
    chosen = missed[rng.permutation(len(missed))[:PICTURES]]
    if not len(chosen):
        return []
    split = run.results["task"]["evaluated_on"]
    source = getattr(load_source(run.config.data, ("train", "validation", split)), split)
    pictures = [source.image(int(numbers[image])) for _, image in chosen]
    shared = ["—"] * len(pictures)
    if first.client is None:
        shared = [next(iter(answer)) for answer in first.classify(pictures, names)]
    return [
        {
            "picture": _url(picture),
            "truth": names[labels[image]],
            "client": run.results["clients"][client]["client"],
            "answered": names[predicted[client, image]],
            "shared": answer,
        }
        for picture, (client, image), answer in zip(pictures, chosen, shared, strict=True)
    ]


def first_model(run: Run) -> Classifier:
    """Return the shared model, or the model of client 0 if the shared part cannot predict; may raise FedPGPError."""
    try:
        return load(run)
    except FedPGPError:
        return load(run, 0)


def _url(picture: Any) -> str:
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
