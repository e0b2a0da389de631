"""What it costs that a text tower is not CLIP-shaped: CLIP's own tower, read by the general and by the fast encoder.

Both have the same weights and compute the same numbers, so the difference is what the general encoder cannot share: it
reads [SOS] and the context once for each class, every layer for every position, and the products of the first layer
with class tokens that never change.
"""

from dataclasses import replace
from typing import Any

from fedpgp.backbone.general_text import GeneralTextEncoder
from fedpgp.backbone.tokens import ClassTokens
from fedpgp.backbone.transformers_models import TextPart
from fedpgp.bench.options import Bench
from fedpgp.bench.shapes import CLIENTS
from fedpgp.bench.stages import Stage, batched_clients, compare_stages, fewer_passes, packed
from fedpgp.bench.step import Step, prepared
from fedpgp.bench.variants import with_classes

CLASSES = 10  # whole sequences of ten clients with all classes would take minutes


def measure_general(bench: Bench) -> list[dict[str, Any]]:
    """A step over ten classes with cached image features and constant z_C, by a naive spliced pass and by the encoders.

    Returns the rows of `compare_stages`.
    """
    prompt = bench.step.naive.prompt
    step = with_classes(bench.step, bench.step.job.classes.select(range(CLASSES)), bench.options.seed)
    step = replace(step, naive=replace(step.naive, prompt=ClassTokens(prompt.ids[:CLASSES], prompt.end[:CLASSES])))
    whole, cut = _general(step, padded=True), _general(step, padded=False)
    fast = prepared(step)
    stages = {
        "naive": Stage("the context spliced in, one pass of whole sequences per prompt", fewer_passes),
        "general": Stage("the general encoder, of a tower that attends to padding", lambda _: packed(whole)),
        "cut": Stage("the general encoder, of a tower whose mask hides padding", lambda _: packed(cut)),
        "batched clients": Stage(
            "the same, ten clients as one batch, SGD included", lambda _: batched_clients(cut), CLIENTS
        ),
        "fast": Stage("the fast encoder, of a CLIP-shaped tower", lambda _: packed(fast)),
    }
    rows, _ = compare_stages(bench, "general", stages, step)
    return rows


def _general(step: Step, padded: bool) -> Step:
    """The same step, whose text the general encoder reads. padded: sequences are as long as the tower reads."""
    backbone = step.scene.backbone
    embeddings = step.scene.model.text_model.embeddings
    tokenizer = backbone.tokenizer
    text = GeneralTextEncoder(
        TextPart(step.scene.model, masked=False),
        embeddings.token_embedding,
        start=[tokenizer.bos_token_id],
        filler=0,
        pad=tokenizer.eos_token_id,
        positions=embeddings.position_embedding.num_embeddings,
        padded=padded,
    )
    return replace(step, scene=replace(step.scene, backbone=replace(backbone, text=text)))
