"""Time the text tower in training steps of dual encoders with published shapes and random weights, and a naive step.

python tools/backbone_steps.py [KIND …]

A step is a forward and a backward pass of two prompts of 16 vectors over five classes. The naive step replaces the
token embeddings of one prompt after the other and uses the forward pass of the original library; both steps compute the
same numbers. The step of several clients reads the prompts of all clients at once: ten clients, or four if ten take too
long. "ViT-B/16" is the same step with the fast encoder. Times are processor seconds on one thread, so that other
programs have little effect. Ratios use the best of several alternating repetitions. Memory is the growth of the process
in a step.
"""

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
from fedpgp.bench.machine import peak_memory
from fedpgp.bench.shapes import published_config, random_backbone
from references import references

from published_shapes import KINDS, save

VECTORS, PROMPTS, REPEATS = 16, 2, 3
LONG = 40.0  # seconds; a step that takes longer is not repeated
NAMES = [f"class {number}" for number in range(5)]


def best(steps: dict[str, Callable[[], object]], repeats: int = REPEATS) -> dict[str, float]:
    """Return the processor seconds of each step, measured in alternating order."""
    seconds = {name: float("inf") for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            started = time.process_time()
            step()
            seconds[name] = min(seconds[name], time.process_time() - started)
    return seconds


def step_of(read: Callable[[Tensor], Tensor], width: int, prompts: int) -> Callable[[], object]:
    contexts = torch.randn(prompts, VECTORS, width, generator=torch.Generator().manual_seed(0)) * 0.02

    def step() -> object:
        own = contexts.clone().requires_grad_()
        return torch.autograd.grad(read(own).square().cumsum(-1).sum(), own)

    return step


def naive(text: GeneralTextEncoder, layout: Layout, contexts: Tensor) -> Tensor:
    """Return text features [K, C, D], one prompt after the other, with the context in the token embeddings."""
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
    """Return time and memory of a step of a saved checkpoint."""
    started = time.perf_counter()
    backbone = load_backbone(str(directory))
    loaded = time.perf_counter() - started
    text, classes, fast = backbone.text, backbone.class_tokens(NAMES), vit.class_tokens(NAMES)
    ours = partial(text, classes=classes)
    one = step_of(ours, text.token_width, PROMPTS)
    _, memory = peak_memory(one)
    clients = 10 if 10 * best({"one": one}, 1)["one"] < LONG else 4
    steps = {
        "one": one,
        "all": step_of(ours, text.token_width, clients * PROMPTS),
        "ViT-B/16": step_of(partial(vit.text, classes=fast), vit.token_width, PROMPTS),
    }
    if isinstance(text, GeneralTextEncoder):
        layout = text._layout(classes, VECTORS, "end")
        steps["naive"] = step_of(partial(naive, text, layout), text.token_width, PROMPTS)
        (found,), (expected,) = one(), steps["naive"]()
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max(), "both must compute the same"
    seconds = best(steps)
    return {
        "load s": round(loaded, 1),
        "step ms": round(1000 * seconds["one"]),
        "of naive": round(seconds["one"] / seconds["naive"], 3) if "naive" in seconds else "fast encoder",
        f"of one client, each of {clients}": round(seconds["all"] / clients / seconds["one"], 3),
        "of ViT-B/16": round(seconds["one"] / seconds["ViT-B/16"], 2),
        "memory MB": None if memory is None else round(memory / 1e6),
    }


def main() -> None:
    torch.set_num_threads(1)
    vit = random_backbone(published_config("vit-b-16"), "float32", 0)
    with references(), tempfile.TemporaryDirectory() as place:
        for kind in sys.argv[1:] or KINDS:
            directory = Path(place) / kind
            save(kind, directory)
            print(kind, measure(directory, vit), flush=True)


if __name__ == "__main__":
    main()
