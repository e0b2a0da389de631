"""Compare the text encoder with transformers' CLIPModel on padded sequences, with small random towers."""

import json
import shutil
from dataclasses import fields, replace

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from raising import raises
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModelWithProjection

from fedpgp.backbone import load_backbone
from fedpgp.backbone.convert import _text_shapes
from fedpgp.backbone.layers import Layers
from fedpgp.backbone.text import TextEncoder
from fedpgp.backbone.tokens import ClassTokens, class_tokens, split_template, text_ids
from fedpgp.errors import CheckpointError

NAMES = ["ant", "red apple"]
VOCABULARY, POSITIONS = 40, 24  # 1 + 8 + 12 + 1 fit
START, END = VOCABULARY - 2, VOCABULARY - 1


def tower(seed=0, layers=2, heads=2, head_width=4, activation="quick_gelu", eos_rule="first", dtype=torch.float64):
    """Return a CLIPModel with random weights that are large enough to affect the result.

    eos_rule: "argmax" configures start and end as 0 and 2, like OpenAI's checkpoints; "first" configures the real ids.
    """
    text = {
        "hidden_size": heads * head_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 12,
        "hidden_act": activation,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 0 if eos_rule == "argmax" else START,
        "eos_token_id": 2 if eos_rule == "argmax" else END,
        "pad_token_id": 1,
    }
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = CLIPConfig(text_config=text, vision_config={**vision, "image_size": 8, "patch_size": 8}, projection_dim=6)
    return tiny.random_clip(config, seed, dtype)


def made_up_names(lengths, rng):
    """Draw class-name tokens of the given lengths, including 2, the id that the old rule configures."""
    return [torch.randint(0, START, (n,), generator=rng).tolist() for n in lengths]


def tokens_of(names):
    """Return ClassTokens of names given as token ids, filled with EOS."""
    longest = max(map(len, names)) + 1
    ids = [[*name, *[END] * (longest - len(name))] for name in names]
    return ClassTokens(torch.tensor(ids), torch.tensor([len(name) for name in names]))


def reference(model, contexts, names, padding, position="end"):
    """Return features [K, C, D] of CLIPModel on sequences of full length, with contexts in place of placeholders."""
    K, M, _ = contexts.shape
    ahead = {"end": M, "middle": M // 2, "front": 0}[position]
    rows = [[START, *[0] * ahead, *name, *[0] * (M - ahead), END] for name in names]
    ids = torch.tensor([row + [padding] * (POSITIONS - len(row)) for row in rows])
    features = []
    for k in range(K):

        def put_context(module, inputs, embeddings, k=k):
            before, after = contexts[k, :ahead], contexts[k, ahead:]
            pieces = []
            for row, name in zip(embeddings, names, strict=True):
                start, end = 1 + ahead, 1 + ahead + len(name)
                pieces.append(torch.cat([row[:1], before, row[start:end], after, row[1 + len(name) + M :]]))
            return torch.stack(pieces)

        hook = model.text_model.embeddings.token_embedding.register_forward_hook(put_context)
        features.append(F.normalize(model.get_text_features(input_ids=ids).pooler_output, dim=-1))
        hook.remove()
    return torch.stack(features)


def features_and_gradients(function, contexts, weights):
    """Return the features, and the gradient of a weighted sum of them with respect to the contexts."""
    leaf = contexts.clone().requires_grad_()
    features = function(leaf)
    return features.detach(), torch.autograd.grad((features * weights.to(features)).sum(), leaf)[0]


@settings(max_examples=15)
@example(592, 1, 1, 2, "gelu", "first", 1, 3, [1, 1, 6, 12], "end", 2**31)  # norms of two nearly equal numbers
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    head_width=st.sampled_from([2, 5]),
    activation=st.sampled_from(["quick_gelu", "gelu"]),
    eos_rule=st.sampled_from(["first", "argmax"]),
    prompts=st.integers(1, 3),
    context=st.integers(1, 8),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    position=st.sampled_from(["end", "end", "middle", "front"]),
    memory=st.sampled_from([2**31, 2**31, 2**14, 1]),
)
def test_features_and_gradients_are_those_of_transformers(
    seed, layers, heads, head_width, activation, eos_rule, prompts, context, lengths, position, memory
):
    """Compare complete computation, and pieces if the memory is too small for all prompts and classes at once.

    In float32, a tower may amplify rounding errors, so the distance of transformers from the exact values is also
    allowed.
    """
    rng = torch.Generator().manual_seed(seed)
    names = made_up_names(lengths, rng)
    drawn = torch.randn(prompts, context, heads * head_width, generator=rng)
    weights = torch.randn(prompts, len(names), 6, generator=rng)
    padding = END if eos_rule == "first" else 1  # both rules must ignore the tokens after EOS
    for dtype, tolerance in [(torch.float64, 1e-10), (torch.float32, 1e-5)]:
        model = tower(seed, layers, heads, head_width, activation, eos_rule, dtype)
        contexts, tokens = drawn.to(dtype), tokens_of(names)
        encoder = replace(TextEncoder.of(model, START), memory=memory)
        found, slope = features_and_gradients(lambda c, e=encoder, t=tokens: e(c, t, position), contexts, weights)
        theirs, their_slope = features_and_gradients(
            lambda c, m=model, p=padding: reference(m, c, names, p, position), contexts, weights
        )
        if dtype == torch.float64:  # single precision is also compared with the exact values
            expected, expected_slope = theirs, their_slope
        assert found.shape == (prompts, len(names), 6)
        off = float((theirs - expected).abs().max())
        assert torch.allclose(found.double(), expected, rtol=0, atol=tolerance + 4 * off)
        scale, off = max(1.0, float(expected_slope.abs().max())), float((their_slope - expected_slope).abs().max())
        assert torch.allclose(slope.double(), expected_slope, rtol=0, atol=tolerance * scale + 4 * off)


@pytest.mark.parametrize("eos_rule", ["first", "argmax"])
def test_eos_is_where_transformers_reads(eos_rule):
    """With a short and a long name, one of which contains id 2, both rules of transformers read at the first EOS."""
    model = tower(eos_rule=eos_rule)
    assert model.text_model.eos_token_id == (END if eos_rule == "first" else 2)
    names = [[5], [2, 7, 2, 9]]
    contexts = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(1)).double()
    found = TextEncoder.of(model, START)(contexts, tokens_of(names))
    assert torch.allclose(found, reference(model, contexts, names, END), rtol=0, atol=1e-12)
    shifted = ClassTokens(tokens_of(names).ids, tokens_of(names).end - 1)
    assert not torch.allclose(TextEncoder.of(model, START)(contexts, shifted), found, atol=1e-3)


@pytest.mark.parametrize(("context", "name", "fits"), [(8, 14, True), (8, 15, False), (23, 1, False)])
def test_a_sequence_longer_than_the_checkpoint_reads_is_refused(context, name, fits):
    encoder, tokens = TextEncoder.of(tower(), START), tokens_of([[3], [4] * name])
    contexts = torch.zeros(1, context, 8, dtype=torch.float64)
    if fits:
        assert encoder(contexts, tokens).shape == (1, 2, 6)
    else:
        needed = 1 + context + name + 1
        with raises(CheckpointError, problem=f"need {needed} positions, but the checkpoint has 24"):
            encoder(contexts, tokens)


def test_an_activation_that_is_not_known_is_refused():
    with raises(CheckpointError, where="hidden_act", allowed="quick_gelu, gelu", got="relu"):
        TextEncoder.of(tower(activation="relu"), START)


@pytest.mark.parametrize("template", ["a photo of a {}.", "{}.", "X X X {}.", "a drawing of {} on white"])
def test_template_features_are_those_of_the_whole_string(template, backbone):
    names = ["ant", "red apple", "fire_engine"]
    for name, found in zip(names, backbone.template_features(template, names), strict=True):
        text = template.format(name.replace("_", " "))
        read = backbone.tokenizer(text, return_tensors="pt", padding="max_length", max_length=40)["input_ids"]
        with torch.no_grad():
            expected = backbone.image.model.get_text_features(input_ids=read).pooler_output[0]
        assert torch.allclose(found, expected / expected.norm(), rtol=0, atol=1e-5)


def test_a_template_without_a_place_for_the_name_is_refused():
    assert split_template("a photo of a {}.") == ("a photo of a", "{}.")
    with raises(CheckpointError, where="template", got="a photo"):
        split_template("a photo")


def test_class_tokens_are_cut_at_eos_and_selected_in_the_order_given(backbone):
    tokenizer = backbone.tokenizer
    names = ["fire_engine", "ant"]
    tokens = class_tokens(tokenizer, names)
    long, short = (text_ids(tokenizer, f"{name}.") for name in ("fire engine", "ant"))
    assert len(long) > len(short)
    eos = tokenizer.eos_token_id
    assert tokens.ids.tolist() == [[*long, eos], [*short, eos, *[eos] * (len(long) - len(short))]]
    assert tokens.end.tolist() == [len(long), len(short)]
    only = tokens.select([1])
    assert (only.ids.tolist(), only.end.tolist()) == ([[*short, eos]], [len(short)])
    assert tokens.select([1, 0]).end.tolist() == [len(short), len(long)]


def test_image_features_are_those_of_transformers(backbone, pictograms):
    pictures = [pictograms.test.image(i) for i in (0, 100, 1000)]
    pixels = backbone.image.processor(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = backbone.image.model.get_image_features(pixel_values=pixels).pooler_output
    found = backbone.image(pictures)
    assert torch.allclose(found, expected / expected.norm(dim=-1, keepdim=True), rtol=0, atol=1e-6)
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_start_and_end_are_the_tokenizers_whatever_the_config_says(backbone, tmp_path):
    """OpenAI's configs state 0 and 2, which their tokenizer uses for other tokens."""
    shutil.copytree(backbone.files[0].parent, tmp_path / "clip")
    config = json.loads((tmp_path / "clip/config.json").read_text())
    config["text_config"] |= {"bos_token_id": 0, "eos_token_id": 2}
    (tmp_path / "clip/config.json").write_text(json.dumps(config))
    found = load_backbone(str(tmp_path / "clip")).template_features("a photo of a {}.", NAMES)
    torch.testing.assert_close(found, backbone.template_features("a photo of a {}.", NAMES), atol=1e-6, rtol=0)


def on(device, value):
    """Return the tensors, in tuples of tuples, on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        moved = [on(device, part) for part in value]
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    if isinstance(value, Layers):
        return replace(value, weights=on(device, value.weights))
    return value


@pytest.mark.parametrize(("memory", "position"), [(2**31, "end"), (1, "middle")])
def test_the_text_tower_computes_on_the_device_of_its_weights(backbone, memory, position):
    """The meta device computes shapes and refuses tensors of another device, like a GPU."""
    parts = {f.name: on("meta", getattr(backbone.text, f.name)) for f in fields(backbone.text) if f.name != "_prepared"}
    encoder = TextEncoder(**parts | {"memory": memory})
    contexts = torch.empty(2, 4, 128, device="meta", requires_grad=True)
    features = encoder(contexts, backbone.class_tokens(NAMES), position)
    features.sum().backward()
    assert (features.shape, features.device.type, contexts.grad.device.type) == ((2, 2, 128), "meta", "meta")


def test_bf16_gives_features_and_gradients_in_float32(backbone):
    """The results are accurate to about eight bits of mantissa, but not to the last bit of float32."""
    coarse = load_backbone("pictoclip", "bf16")
    tokens = backbone.class_tokens(["ant", "red apple", "fire_engine"])
    contexts = 0.02 * torch.randn(2, 4, 128, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(2, 3, 128, generator=torch.Generator().manual_seed(1))
    one, other = (
        features_and_gradients(lambda c, e=e: e(c, tokens), contexts, weights) for e in (backbone.text, coarse.text)
    )
    assert {tensor.dtype for tensor in (*other, coarse.logit_scale)} == {torch.float32}
    for found, expected in zip(other, one, strict=True):
        assert 1e-5 < (found - expected).abs().max() / expected.abs().max() < 0.05


def test_the_memory_limit_is_respected(backbone):
    """A call keeps at most the number of bytes for its backward pass that `rows_within` assumes."""
    encoder, tokens = backbone.text, backbone.class_tokens([f"a {'very ' * (i % 5)}red apple" for i in range(40)])
    frozen = {part.data_ptr() for layer in encoder.layers.weights for affine in layer for part in affine}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    contexts = torch.randn(3, 16, 128, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = encoder(contexts, tokens)
    assert features.requires_grad
    rows = 3 * encoder.rows(contexts[0], tokens)
    assert rows <= encoder.rows_within(sum(kept.values())) * 1.5  # the last of the three layers keeps less
    assert encoder.rows_within(sum(kept.values())) <= rows


def test_no_contexts_have_no_features(backbone):
    """A method may use no text in a step."""
    assert backbone.text(torch.empty(0, 0, 0), backbone.class_tokens(NAMES)).shape == (0, 2, 128)


def test_damaged_text_weights_are_reported_before_a_run(backbone):
    norm = backbone.text.final_norm
    damaged = replace(backbone, text=replace(backbone.text, final_norm=norm._replace(bias=norm.bias * torch.nan)))
    with raises(CheckpointError, where="backbone.checkpoint", problem="'a photo of a ant.' is not finite"):
        damaged.template_features("a photo of a {}.", NAMES)


@given(
    classes=st.integers(1, 5),
    length=st.integers(1, 5),
    position=st.sampled_from(["end", "middle", "front"]),
    memory=st.sampled_from([2**31, 1]),
)
@settings(max_examples=8)
def test_a_context_of_a_class_affects_only_this_class(exact, classes, length, position, memory):
    """Compare [K, C, M, d] with a call for each class with [K, M, d]: features and gradients are the same."""
    encoder = replace(exact.text, memory=memory)
    names = ["ant", "red apple", "fire engine", "alarm clock", "jar"][:classes]
    tokens = exact.class_tokens(names)
    contexts = 0.5 * torch.randn(2, classes, length, 128, generator=torch.Generator().manual_seed(0)).double()
    weights = torch.randn(2, classes, 128, generator=torch.Generator().manual_seed(1)).double()

    def alone(stacked):
        parts = [exact.text(stacked[:, c], tokens.select([c]), position) for c in range(classes)]
        return torch.cat(parts, dim=1)

    found = features_and_gradients(lambda c: encoder(c, tokens, position), contexts, weights)
    expected = features_and_gradients(alone, contexts, weights)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < 1e-12


def test_contexts_of_several_shapes_are_read_in_their_order(exact):
    tokens = exact.class_tokens(NAMES)
    rng = torch.Generator().manual_seed(0)
    contexts = [torch.randn(*shape, 128, generator=rng).double() for shape in [(3,), (5,), (2, 4), (3,), (0,)]]
    found = exact.text.each(contexts, tokens)
    for context, features in zip(contexts, found, strict=True):
        assert torch.allclose(features, exact.text(context[None], tokens)[0], rtol=0, atol=1e-12)
    assert exact.text.each([], tokens) == []


def test_the_expected_shapes_of_a_text_tower_are_those_of_transformers():
    config = CLIPTextConfig(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        projection_dim=6,
        bos_token_id=START,
        eos_token_id=END,
    )
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(config)
    assert _text_shapes(config) == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
