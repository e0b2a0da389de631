"""What a page shows of one run that its files alone do not hold: text features, and images that clients get wrong."""

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

CLIENTS = 5  # whose text features are drawn: more could not be told apart
PICTURES = 12
SIDE = 96  # pixels of a picture
PERPLEXITY = 15


def text_features(run: Run, first: Classifier) -> pd.DataFrame:
    """prompt, kind, class, projection, x, y. first: as `first_model`.

    Raises FedPGPError where a model is more than text features.
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
    start = (components / components[:, 0].std() * 1e-4).astype(np.float32)  # as sklearn begins with its own PCA
    similar = TSNE(2, perplexity=perplexity, init=start, random_state=0, max_iter=500, method="exact")
    points = pd.DataFrame(
        [(*head, name) for head in heads for name in classes.names], columns=["prompt", "kind", "class"]
    )
    projections = {"t-SNE": similar.fit_transform(matrix).astype(float), "PCA": components}
    return pd.concat(
        [points.assign(projection=name, x=at[:, 0].round(4), y=at[:, 1].round(4)) for name, at in projections.items()]
    )


def wrong(run: Run, first: Classifier) -> list[dict[str, Any]]:
    """Test images of clients' own classes that they get wrong, a few, with what the shared part says of them.

    Each has picture, a data URL; truth; client; answered; and shared, the answer of the shared part. Raises FedPGPError
    where images, checkpoint or answers are not here.
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
    """The shared part, or client 0 where that predicts nothing by itself; raises FedPGPError where neither is here."""
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
