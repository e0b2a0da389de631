"""Time a training step's text tower on dual encoders of published shapes with random weights, against a naive step.

python tools/backbone_steps.py [KIND …]

A step is a forward and a backward pass of two prompts of 16 vectors over five classes. The naive step replaces the
token embeddings one prompt after the other, with the library's own forward pass; both compute the same numbers. "Four"
reads eight prompts at once, as four clients have them, per client. "ViT-B/16" is the same step on the fast encoder.
Ratios are of the best of several repeats, taken in turns.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from fedpgp.backbone import Backbone, load_backbone
from fedpgp.backbone.general_text import GeneralTextEncoder, Layout
from fedpgp.bench.shapes import published_config, random_backbone
from references import references

KINDS = ("MobileCLIP2-S0", "EVA02-B-16", "convnext_base_w")
VECTORS, REPEATS = 16, 3
NAMES = [f"class {number}" for number in range(5)]


def saved(kind: str, directory: Path) -> None:
    """A model of OpenCLIP's with random weights, as it is published."""
    import open_clip
    from safetensors.torch import save_file

    config = open_clip.get_model_config(kind)
    model = open_clip.create_model(kind, pretrained=None)
    if not config.get("custom_text"):
        from open_clip.model import convert_to_custom_text_state_dict as custom

        weights = custom(dict(model.state_dict()))
    else:
        weights = model.state_dict()
    save_file(
        {name: value.contiguous().clone() for name, value in weights.items()}, directory / "open_clip_model.safetensors"
    )
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**config, "custom_text": True}}))


def best(steps: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each step, taken in turns."""
    seconds = {name: float("inf") for name in steps}
    for _ in range(REPEATS):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


def step_of(read: Callable[[Tensor], Tensor], width: int, prompts: int) -> Callable[[], object]:
    contexts = torch.randn(prompts, VECTORS, width, generator=torch.Generator().manual_seed(0)) * 0.02

    def step() -> object:
        own = contexts.clone().requires_grad_()
        return torch.autograd.grad(read(own).square().cumsum(-1).sum(), own)

    return step


def naive(text: GeneralTextEncoder, layout: Layout, contexts: Tensor) -> Tensor:
    """Text features [K, C, D], one prompt after the other, with the context spliced into the token embeddings."""
    features = []
    first, forward = len(text.start), text.embedding.forward
    for context in contexts:
        embedded = text.embed(layout.ids)
        own = context.expand(len(embedded), -1, -1)
        spliced = torch.cat([embedded[:, :first], own, embedded[:, first + len(context) :]], dim=1)
        text.embedding.forward = partial(lambda value, ids: value, spliced)
        try:
            features.append(F.normalize(text.tower(layout.ids, layout.mask), dim=-1))
        finally:
            text.embedding.forward = forward
    return torch.stack(features)


def measure(directory: Path, vit: Backbone) -> dict[str, object]:
    """What a step of a saved checkpoint takes."""
    started = time.perf_counter()
    backbone = load_backbone(str(directory))
    loaded = time.perf_counter() - started
    text, classes, fast = backbone.text, backbone.class_tokens(NAMES), vit.class_tokens(NAMES)
    ours = partial(text, classes=classes)
    steps = {
        "ours": step_of(ours, text.token_width, 2),
        "four": step_of(ours, text.token_width, 8),
        "ViT-B/16": step_of(partial(vit.text, classes=fast), vit.token_width, 2),
    }
    if isinstance(text, GeneralTextEncoder):
        layout = text._layout(classes, VECTORS, "end")
        steps["naive"] = step_of(partial(naive, text, layout), text.token_width, 2)
        (found,), (expected,) = steps["ours"](), steps["naive"]()
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), "both must compute the same"
    seconds = best(steps)
    return {
        "load s": round(loaded, 1),
        "step ms": round(1000 * seconds["ours"]),
        "of naive": round(seconds["ours"] / seconds["naive"], 3) if "naive" in seconds else "fast encoder",
        "of one client, each of four": round(seconds["four"] / 4 / seconds["ours"], 3),
        "of ViT-B/16": round(seconds["ours"] / seconds["ViT-B/16"], 2),
    }


def main() -> None:
    vit = random_backbone(published_config("vit-b-16"), "float32", 0)
    with references(), tempfile.TemporaryDirectory() as place:
        for kind in sys.argv[1:] or KINDS:
            directory = Path(place) / kind
            directory.mkdir()
            saved(kind, directory)
            print(kind, measure(directory, vit), flush=True)


if __name__ == "__main__":
    main()
