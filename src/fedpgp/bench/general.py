"""Cost of the general text encoder, measured with the text tower of CLIP, which the fast encoder can read, too.

Both encoders have the same weights and compute the same numbers. The general encoder shares less work: for each class
it computes [SOS] and the context, every layer at every position, and the products of the first layer with class tokens,
which never change.
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

CLASSES = 10  # with all classes, whole sequences of ten clients would take minutes


def measure_general(bench: Bench) -> list[dict[str, Any]]:
    """Measure a step over ten classes with cached image features and constant z_C: naive, general and fast encoder.

    Returns the rows of `compare_stages`.
    """
    prompt = bench.step.naive.prompt
    step = with_classes(bench.step, bench.step.job.classes.select(range(CLASSES)), bench.options.seed)
    step = replace(step, naive=replace(step.naive, prompt=ClassTokens(prompt.ids[:CLASSES], prompt.end[:CLASSES])))
    whole, cut = _general(step, padded=True), _general(step, padded=False)
    fast = prepared(step)
    stages = {
        "naive": Stage("context inserted into whole sequences, one pass for each prompt", fewer_passes),
        "general": Stage("general encoder, for a tower that attends to padding", lambda _: packed(whole)),
        "cut": Stage("general encoder, for a tower whose mask hides padding", lambda _: packed(cut)),
        "batched clients": Stage(
            "the same with ten clients as one batch, including SGD", lambda _: batched_clients(cut), CLIENTS
        ),
        "fast": Stage("fast encoder, for a CLIP-shaped tower", lambda _: packed(fast)),
    }
    rows, _ = compare_stages(bench, "general", stages, step)
    return rows


def _general(step: Step, padded: bool) -> Step:
    """Return the step with the general encoder; `padded` sequences have the full length of the tower."""
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
