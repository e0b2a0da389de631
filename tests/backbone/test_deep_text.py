"""Compare vectors in deeper layers of the text tower with transformers' layers, one padded sentence at a time."""

from dataclasses import replace

import pytest
import torch
from oracle.clip_text import padded, prompt_features
from raising import raises
from transformers.masking_utils import create_causal_mask

from fedpgp.backbone.layers import Layers, Prompt
from fedpgp.errors import CheckpointError

NAMES = ["ant", "red apple", "fire engine", "jar"]
M, J = 4, 3  # number of layers of the embedded text tower


def drawn(seed, *shape):
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def feature(backbone, context, deeper, name, position="end", tail="{}."):
    """Compute a feature like the oracle, for any position of the name; `deeper` replaces the first context vectors."""
    clip, tokenizer, count = backbone.image.model, backbone.tokenizer, len(context)
    ids, end = padded(clip, tokenizer, tail.format(name), placeholders=count)
    inner = len(tokenizer(tail.partition("{}")[0] + name, add_special_tokens=False)["input_ids"])
    ahead = {"end": count, "middle": count // 2, "front": 0}[position]
    rows = clip.text_model.embeddings.token_embedding(ids)[0]
    name_rows, behind = rows[1 + count : 1 + count + inner], rows[1 + count + inner :]
    sequence = [rows[:1], context[:ahead], name_rows, context[ahead:], behind]
    places = [
        *range(1, 1 + ahead),
        *range(1 + ahead + inner, 1 + count + inner),
    ]  # of the context vectors
    hidden = torch.cat(sequence)[None]
    hidden = hidden + clip.text_model.embeddings.position_embedding(torch.arange(hidden.shape[1]))
    mask = create_causal_mask(
        config=clip.config.text_config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
    )
    for number, layer in enumerate(clip.text_model.encoder.layers):
        if 0 < number <= len(deeper):
            rows = list(hidden[0])
            for place, vector in zip(places, deeper[number - 1], strict=False):
                rows[place] = vector
            hidden = torch.stack(rows)[None]
        hidden = layer(hidden, mask, is_causal=True)
    read = clip.text_projection(clip.text_model.final_layer_norm(hidden[0, end]))
    return read / read.norm()


def with_gradients(function, *tensors):
    """Return the result of a function, and the gradients of a weighted sum of it."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    found = function(*leaves)
    weights = drawn(99, *found.shape)
    return [found.detach(), *torch.autograd.grad((found * weights).sum(), leaves)]


def check(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-10 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize(
    ("layers", "replaced", "tail", "memory"),
    [
        (1, M, "{}.", 2**31),
        (J - 1, M, "{}.", 1),
        (J - 1, M - 1, "of a {}.", 2**31),
        (J - 1, M - 1, "{}.", 1),
        (1, 1, "of a {}.", 1),
    ],
)
def test_deeper_vectors_agree_with_the_oracle(layers, replaced, tail, memory, exact):
    """Compare complete and piecewise computation; all or some context vectors replaced; in some or all layers."""
    encoder, tokens = replace(exact.text, memory=memory), exact.class_tokens(NAMES, tail)
    given = drawn(0, M, exact.token_width), drawn(1, layers, replaced, exact.token_width)
    found = with_gradients(lambda context, deeper: encoder.each([Prompt(context, deeper)], tokens)[0], *given)
    check(
        found,
        with_gradients(
            lambda context, deeper: prompt_features(
                exact.image.model, exact.tokenizer, context, NAMES, deeper, tail=tail
            ),
            *given,
        ),
    )
    assert all(gradient.abs().max() > 1e-6 for gradient in found[1:])


@pytest.mark.parametrize(
    ("replaced", "position", "tail", "memory"),
    [
        (M, "middle", "{}.", 1),
        (M - 1, "middle", "{}.", 2**31),
        (M - 1, "front", "{}.", 1),
        (M - 1, "middle", "of a {}.", 1),
        (M, "front", "{}.", 2**31),
    ],
)
def test_deeper_vectors_follow_the_context_around_the_name(replaced, position, tail, memory, exact):
    """If the name is inside the context, the first vectors precede it, the others follow it, and no rows are shared."""
    encoder, tokens = replace(exact.text, memory=memory), exact.class_tokens(NAMES, tail)
    given = drawn(0, M, exact.token_width), drawn(1, J - 1, replaced, exact.token_width)
    found = with_gradients(lambda context, deeper: encoder.each([Prompt(context, deeper)], tokens, position)[0], *given)
    check(
        found,
        with_gradients(
            lambda context, deeper: torch.stack(
                [feature(exact, context, deeper, name, position, tail) for name in NAMES]
            ),
            *given,
        ),
    )


def test_the_reference_in_this_file_equals_the_oracle_if_the_name_is_last(exact):
    context, deeper = drawn(0, M, exact.token_width), drawn(1, J - 1, M - 1, exact.token_width)
    expected = prompt_features(exact.image.model, exact.tokenizer, context, NAMES, deeper, tail="of a {}.")
    found = torch.stack([feature(exact, context, deeper, name, tail="of a {}.") for name in NAMES])
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("memory", [2**31, 1])
def test_contexts_of_classes_share_their_deeper_vectors(memory, exact):
    encoder, tokens = replace(exact.text, memory=memory), exact.class_tokens(NAMES)
    given = drawn(0, len(NAMES), M, exact.token_width), drawn(1, J - 1, M - 1, exact.token_width)
    found = with_gradients(lambda contexts, deeper: encoder.each([Prompt(contexts, deeper)], tokens)[0], *given)
    check(
        found,
        with_gradients(
            lambda contexts, deeper: torch.stack(
                [
                    prompt_features(exact.image.model, exact.tokenizer, context, [name], deeper)[0]
                    for context, name in zip(contexts, NAMES, strict=True)
                ]
            ),
            *given,
        ),
    )


@pytest.mark.parametrize("memory", [2**31, 1])
def test_prompts_of_several_depths_are_read_in_their_order(memory, exact):
    """Prompts of equal shape are computed together, and no prompt sees the deeper vectors of another."""
    encoder, tokens, d = replace(exact.text, memory=memory), exact.class_tokens(NAMES), exact.token_width
    shapes = [(M, 0, 0), (M, 2, M), (3, 2, 2), (M, 2, M), (M, 1, 2), (M, 0, 0)]
    prompts = [
        Prompt(drawn(i, count, d), drawn(10 + i, layers, replaced, d) if layers else None)
        for i, (count, layers, replaced) in enumerate(shapes)
    ]
    for prompt, found in zip(prompts, encoder.each(prompts, tokens), strict=True):
        deeper = [] if prompt.deeper is None else prompt.deeper
        expected = prompt_features(exact.image.model, exact.tokenizer, prompt.vectors, NAMES, deeper)
        assert (found - expected).abs().max() < 1e-10
    plain = encoder.each([prompts[0].vectors], tokens)[0]
    assert torch.allclose(plain, encoder.each(prompts[:1], tokens)[0], rtol=0, atol=1e-12)


def test_single_precision_is_near_the_exact_values(backbone, exact):
    context, deeper = drawn(0, M, exact.token_width), drawn(1, J - 1, M, exact.token_width)
    found = backbone.text.each([Prompt(context.float(), deeper.float())], backbone.class_tokens(NAMES))[0]
    expected = exact.text.each([Prompt(context, deeper)], exact.class_tokens(NAMES))[0]
    assert found.dtype == torch.float32 and (found - expected).abs().max() < 1e-5


def test_replacing_deeper_vectors_by_their_own_values_changes_nothing(exact):
    """The deeper vectors are the output of the first layer for the context."""
    clip, context = exact.image.model, drawn(0, M, exact.token_width)
    ids, _ = padded(clip, exact.tokenizer, "ant.", placeholders=M)
    rows = clip.text_model.embeddings.token_embedding(ids)
    hidden = torch.cat([rows[:, :1], context[None], rows[:, 1 + M :]], dim=1)
    hidden = hidden + clip.text_model.embeddings.position_embedding(torch.arange(hidden.shape[1]))
    mask = create_causal_mask(
        config=clip.config.text_config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
    )
    after = clip.text_model.encoder.layers[0](hidden, mask, is_causal=True)[0, 1 : 1 + M]
    tokens = exact.class_tokens(NAMES)
    found, expected = exact.text.each([Prompt(context, after[None].detach()), context], tokens)
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("layers", [J, 8])
def test_a_prompt_deeper_than_the_tower_is_refused(layers, exact):
    tokens, prompt = exact.class_tokens(NAMES), Prompt(drawn(0, M, 128), drawn(1, layers, M, 128))
    with raises(CheckpointError, problem=f"{layers + 1} layers, but the text tower of the checkpoint has {J}"):
        exact.text.each([prompt], tokens)
    assert isinstance(exact.text.layers, Layers) and len(exact.text.layers) == J
