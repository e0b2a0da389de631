"""Compare the image tower with transformers: from any layer, with prompts and adapters, complete and in pieces."""

from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracle.clip_image import tower_features
from raising import raises
from test_text_encoder import on
from transformers import CLIPConfig, CLIPVisionModelWithProjection

from fedpgp.backbone.image import PATCHES, ImageEncoder, ImageTower, state_below
from fedpgp.backbone.layers import KEPT, Adapter, Affine, Prompt
from fedpgp.errors import CheckpointError

LAYERS, WIDTH, TOKENS = 5, 160, 37  # layers and width of pictoclip's image tower


@pytest.fixture(scope="module")
def pixels(backbone, pictograms):
    """Three preprocessed images."""
    pictures = [pictograms.test.image(i) for i in (0, 100, 1000)]
    return backbone.image.processor(images=pictures, return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="module")
def states(exact, pixels):
    """Input of each layer for these images, in float64."""
    return [exact.image.encode(pixels, state_below(number)).clone() for number in range(LAYERS)]


def clip(seed=0, layers=3, heads=2, head_width=4, activation="quick_gelu", grid=2, dtype=torch.float64):
    """Return a CLIPModel for grid² patches, with random weights that are large enough to affect the result."""
    vision = {
        "hidden_size": heads * head_width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 12,
        "hidden_act": activation,
        "image_size": 4 * grid,
        "patch_size": 4,
    }
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = CLIPConfig(
        text_config={**text, "vocab_size": 40, "bos_token_id": 38, "eos_token_id": 39},
        vision_config=vision,
        projection_dim=6,
    )
    return tiny.random_clip(config, seed, dtype)


def drawn(rng, *shape, scale=0.5):
    """Draw numbers in float64 that float32 can also represent."""
    return (scale * torch.randn(*shape, generator=rng)).double()


def prompt_of(rng, width, vectors=0, deeper=0, length=None, adapters=()):
    """Draw a prompt; `length` is the number of deeper vectors per layer, if it differs from that in the first layer."""
    hidden, other = 4, 3

    def affine(to, of):
        return Affine(drawn(rng, to, of), drawn(rng, to))

    return Prompt(
        drawn(rng, vectors, width),
        drawn(rng, deeper, vectors if length is None else length, width) if deeper else None,
        {n: Adapter(affine(hidden, width), affine(other, hidden), affine(width, other), 0.3) for n in adapters},
    )


def mapped(prompt, change):
    """Return the prompt with a function applied to every tensor."""

    def adapter(one):
        return Adapter(*(Affine(*map(change, part)) for part in one[:3]), one.scale)

    return Prompt(
        change(prompt.vectors),
        None if prompt.deeper is None else change(prompt.deeper),
        {number: adapter(one) for number, one in prompt.adapters.items()},
    )


def of_oracle(model, states, prompt, first):
    def beside(one):
        def add(x):
            hidden = x @ one.down.weight.T + one.down.bias
            hidden = torch.where(hidden > 0, hidden, 0) @ one.middle.weight.T + one.middle.bias
            return one.scale * (torch.where(hidden > 0, hidden, 0) @ one.up.weight.T + one.up.bias)

        return add

    of_layers = [prompt.vectors, *([] if prompt.deeper is None else prompt.deeper)] if len(prompt.vectors) else []
    adapters = {number: beside(one) for number, one in prompt.adapters.items()}
    return tower_features(model, states, of_layers, adapters, first)


def features_and_gradients(function, prompts, weights):
    """Return the features for each prompt, and the gradients of a weighted sum of all features for every tensor."""
    leaves = [mapped(prompt, lambda tensor: tensor.clone().requires_grad_()) for prompt in prompts]
    features = torch.stack(function(leaves))
    tensors = [tensor for leaf in leaves for tensor in leaf.tensors]
    slopes = torch.autograd.grad((features * weights.to(features)).sum(), tensors, materialize_grads=True)
    return features.detach(), slopes


def check_near(found, expected, tolerance):
    """Compare features, which are of order 1, and gradients relative to the largest number in each."""
    assert found[0].shape == expected[0].shape
    assert (found[0].double() - expected[0]).abs().max() < tolerance
    for slope, other in zip(found[1], expected[1], strict=True):
        assert slope.shape == other.shape
        if other.numel():
            assert (slope.double() - other).abs().max() <= tolerance * max(1.0, float(other.abs().max()))


PROMPTS = {  # the first layer, and a prompt
    "shallow": (0, {"vectors": 3}),
    "deep": (0, {"vectors": 3, "deeper": LAYERS - 1}),
    "deep for some layers": (0, {"vectors": 2, "deeper": 2}),
    "deep and shorter": (0, {"vectors": 4, "deeper": 3, "length": 1}),
    "adapters": (0, {"adapters": [0, 2, 4]}),
    "adapters above": (2, {"adapters": [2, 3, 4]}),
    "one adapter above": (3, {"adapters": [4]}),
    "the last layer": (4, {"adapters": [4]}),
    "all": (0, {"vectors": 3, "deeper": 4, "length": 2, "adapters": [1, 2, 3, 4]}),
}


@pytest.mark.parametrize("form", PROMPTS)
def test_features_and_gradients_are_those_of_transformers(form, exact, backbone, states):
    first, shape = PROMPTS[form]
    rng = torch.Generator().manual_seed(1)
    prompt, weights = prompt_of(rng, WIDTH, **shape), drawn(rng, 1, 3, 128)
    below = states[first]
    model = exact.image.model
    expected = features_and_gradients(lambda p: [of_oracle(model, below, p[0], first)], [prompt], weights)
    assert all(slope.any() for slope in expected[1] if slope.numel())
    found = features_and_gradients(lambda p: exact.image.tower.each(below, p, first), [prompt], weights)
    check_near(found, expected, 1e-10)
    single = mapped(prompt, torch.Tensor.float)
    found = features_and_gradients(lambda p: backbone.image.tower.each(below.float(), p, first), [single], weights)
    assert found[0].dtype == torch.float32
    check_near(found, expected, 1e-4)


def test_several_prompts_are_each_seen_alone(exact, states):
    rng = torch.Generator().manual_seed(2)
    prompts = [prompt_of(rng, WIDTH, **shape) for first, shape in PROMPTS.values() if first == 0]
    weights = drawn(rng, len(prompts), 3, 128)
    tower = exact.image.tower
    found = features_and_gradients(lambda p: tower.each(states[0], p, 0), prompts, weights)
    alone = features_and_gradients(lambda p: [tower.each(states[0], [one], 0)[0] for one in p], prompts, weights)
    check_near(found, alone, 1e-12)
    assert len({features.numpy().tobytes() for features in found[0]}) == len(prompts)
    assert tower.each(states[0], [], 0) == []


@pytest.mark.parametrize("memory", [1, "two images", "a prompt and a half"])
def test_in_pieces_it_computes_the_same(memory, exact, states):
    """The memory is enough for one image, for two of three images, or for one of two prompts."""
    rng = torch.Generator().manual_seed(3)
    prompts = [prompt_of(rng, WIDTH, vectors=2, deeper=2, adapters=[1, 4]), prompt_of(rng, WIDTH, vectors=3)]
    rows = TOKENS + 3
    image = (KEPT * WIDTH + exact.image.tower.layers.heads * rows) * LAYERS * rows * 8
    allowed = {1: 1, "two images": 2, "a prompt and a half": 4}[memory]
    bounded = Counted(**vars(replace(exact.image.tower, memory=memory if memory == 1 else allowed * image)))
    bounded.seen.clear()
    weights = drawn(rng, 2, 3, 128)
    expected = features_and_gradients(lambda p: exact.image.tower.each(states[0], p, 0), prompts, weights)
    check_near(features_and_gradients(lambda p: bounded.each(states[0], p, 0), prompts, weights), expected, 1e-12)
    pieces = {1: [1, 1, 1], "two images": [2, 1], "a prompt and a half": [3]}[memory]
    assert bounded.seen[: 2 * len(pieces)] == [*pieces, *pieces]
    assert sorted(bounded.seen) == sorted([*pieces, *pieces] * 2)  # again for the gradients
    bounded.seen.clear()
    with torch.no_grad():
        found = torch.stack(bounded.each(states[0], prompts, 0))
    assert torch.allclose(found, expected[0], rtol=0, atol=1e-12)
    assert bounded.seen == [*pieces, *pieces]


class Counted(ImageTower):
    """Tower that records how many images it processes at once."""

    seen: list[int] = []  # noqa: RUF012

    def _see(self, states, prompt, first):
        self.seen.append(len(states))
        return super()._see(states, prompt, first)


def kept_for_the_backward_pass(tower, states, prompt, first):
    """Return the bytes kept for the backward pass, without the frozen weights and the trained tensors."""
    leaf = mapped(prompt, lambda tensor: tensor.clone().requires_grad_())
    frozen = {part.data_ptr() for layer in tower.layers.weights for affine in layer for part in affine}
    frozen |= {tensor.data_ptr() for tensor in (*tower.first_norm, *tower.final_norm, tower.projection, states)}
    frozen |= {tensor.data_ptr() for tensor in leaf.tensors}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = (
                tensor,
                storage.nbytes(),
            )  # prevents reuse of the address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        (features,) = tower.each(states, [leaf], first)
    assert features.requires_grad
    return sum(size for _, size in kept.values())


@pytest.mark.parametrize("form", ["deep", "adapters above"])
def test_the_memory_limit_is_respected(form, exact, states):
    """A call keeps about the estimated number of bytes for its backward pass, and very few in pieces."""
    first, shape = PROMPTS[form]
    prompt = prompt_of(torch.Generator().manual_seed(4), WIDTH, **shape)
    below = states[first].repeat(3, 1, 1)
    estimated = KEPT * (LAYERS - first) * WIDTH * 8 * (TOKENS + len(prompt.vectors)) * len(below)
    whole = kept_for_the_backward_pass(exact.image.tower, below, prompt, first)
    print(f"{form}: {whole / estimated:.2f} of the estimate")
    assert 0.6 * estimated < whole < 1.1 * estimated
    pieces = kept_for_the_backward_pass(replace(exact.image.tower, memory=estimated // 4), below, prompt, first)
    assert pieces < 0.01 * estimated


def test_states_are_what_goes_into_transformers_layers(exact, pixels, states):
    with torch.no_grad():
        seen = exact.image.model.vision_model(pixel_values=pixels.double(), output_hidden_states=True)
    assert len(seen.hidden_states) == LAYERS + 1
    for number, state in enumerate(states):
        assert state.shape == (3, *exact.image.shape(state_below(number))) == (3, TOKENS, WIDTH)
        assert torch.allclose(state, seen.hidden_states[number], rtol=0, atol=1e-12)


def test_without_a_prompt_features_are_those_of_transformers_from_every_layer(exact, pixels, states):
    model = exact.image.model
    vision = CLIPVisionModelWithProjection(model.config.vision_config).double().eval()
    vision.load_state_dict({name: w for name, w in model.state_dict().items() if name.startswith("vis")})
    with torch.no_grad():
        expected = F.normalize(vision(pixel_values=pixels.double()).image_embeds, dim=-1)
    assert torch.allclose(exact.image.encode(pixels), expected, rtol=0, atol=1e-12)
    for first in range(LAYERS):
        (found,) = exact.image.tower.each(states[first], [Prompt(torch.empty(0, WIDTH).double())], first)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12), first


def test_patches_are_read_and_projected_as_the_class_token_is(exact, pixels):
    model = exact.image.model
    found = exact.image.encode(pixels, PATCHES)
    assert found.shape == (3, *exact.image.shape(PATCHES)) == (3, TOKENS - 1, 128)
    with torch.no_grad():
        last = model.vision_model(pixel_values=pixels.double(), output_hidden_states=True).hidden_states[-1]
        for image in range(3):
            for patch in (0, 7, TOKENS - 2):
                read = model.visual_projection(model.vision_model.post_layernorm(last[image, 1 + patch]))
                assert torch.allclose(found[image, patch], read / read.norm(), rtol=0, atol=1e-12)
        pooled = model.visual_projection(model.vision_model.post_layernorm(last[:, 0]))
    assert torch.allclose(exact.image.encode(pixels), F.normalize(pooled, dim=-1), rtol=0, atol=1e-12)


@settings(max_examples=20)
@example(seed=1, layers=1, heads=1, head_width=2, activation="gelu", grid=1, images=1, vectors=1, deeper=0, length=0,
         adapters={0}, memory=1)  # fmt: skip
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 4),
    heads=st.integers(1, 3),
    head_width=st.sampled_from([2, 5]),
    activation=st.sampled_from(["quick_gelu", "gelu"]),
    grid=st.integers(1, 3),
    images=st.integers(1, 4),
    vectors=st.integers(0, 3),
    deeper=st.integers(0, 3),
    length=st.integers(0, 3),
    adapters=st.sets(st.integers(0, 3)),
    memory=st.sampled_from([2**31, 2**12, 1]),
)
def test_towers_of_other_shapes(
    seed, layers, heads, head_width, activation, grid, images, vectors, deeper, length, adapters, memory
):
    """Compare features and gradients from the first layer, and features without a prompt from every layer."""
    model, rng = clip(seed, layers, heads, head_width, activation, grid), torch.Generator().manual_seed(seed)
    encoder, width = ImageEncoder(model, None), heads * head_width
    assert (encoder.layers, encoder.token_width, encoder.patches) == (layers, width, grid**2)
    pixels = torch.randn(images, 3, 4 * grid, 4 * grid, generator=rng).double()
    prompt = prompt_of(
        rng, width, vectors, min(deeper, layers - 1), min(length, vectors), {n for n in adapters if n < layers}
    )
    tower = replace(ImageTower.of(model), memory=memory)
    weights, below = drawn(rng, 1, images, 6), encoder.encode(pixels, state_below(0)).clone()
    expected = features_and_gradients(
        lambda p: [of_oracle(model, below, p[0], 0) + 0 * p[0].vectors.sum()], [prompt], weights
    )
    check_near(features_and_gradients(lambda p: tower.each(below, p, 0), [prompt], weights), expected, 1e-9)
    with torch.no_grad():
        theirs = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    for first in range(layers):
        state = encoder.encode(pixels, state_below(first)).clone()
        (found,) = tower.each(state, [Prompt(torch.empty(0, width).double())], first)
        assert torch.allclose(found, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "layers"), [({"vectors": 2, "deeper": LAYERS}, LAYERS + 1), ({"adapters": [1, 6]}, 7)]
)
def test_a_prompt_deeper_than_the_tower_is_refused(shape, layers, exact, states):
    fits, deep = (prompt_of(torch.Generator().manual_seed(0), WIDTH, **one) for one in ({"vectors": 2}, shape))
    assert deep.layers == layers
    expected = f"needs {layers} layers, but the image tower of the checkpoint has {LAYERS}"
    with raises(CheckpointError, problem=expected):
        exact.image.tower.each(states[0], [fits, deep], 0)


def test_an_activation_that_is_not_known_is_refused():
    with raises(CheckpointError, where="vision_config", allowed="quick_gelu, gelu", got="relu"):
        ImageTower.of(clip(activation="relu"))


@pytest.mark.parametrize(("form", "memory"), [("all", 2**31), ("adapters above", 1)])
def test_the_image_tower_computes_on_the_device_of_its_weights(form, memory, exact, states):
    """The meta device computes shapes and refuses tensors of another device, like a GPU."""
    parts = {name: on("meta", part) for name, part in vars(exact.image.tower).items()}
    tower = ImageTower(**parts | {"memory": memory})
    first, shape = PROMPTS[form]
    prompt = prompt_of(torch.Generator().manual_seed(5), WIDTH, **shape)
    leaf = mapped(prompt, lambda tensor: tensor.to("meta").requires_grad_())
    (features,) = tower.each(states[first].to("meta"), [leaf], first)
    features.sum().backward()
    assert (features.shape, features.device.type) == ((3, 128), "meta")
    assert {tensor.grad.device.type for tensor in leaf.tensors if tensor.numel()} == {"meta"}
