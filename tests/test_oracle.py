"""The building blocks of the oracle, zero-shot CLIP, and gradients by finite differences.

tests/methods compares the methods with their transcriptions, with agreement.py.
"""

import agreement
import pytest
import tiny
import torch
from agreement import difference
from oracle import clip_text
from oracle import zero_shot as zero_shot_oracle
from oracle.training import average, cross_entropy

from fedpgp.federation.client_runner import frozen_of
from fedpgp.methods import Batch, FedPGP, Local, Params, PromptFL, ZeroShot

TOLERANCE = agreement.TOLERANCE
METHODS = {
    "fedpgp": FedPGP(**agreement.HYPER, bottleneck=2, mu=0.7, tau=0.4),
    "promptfl": PromptFL(**agreement.HYPER),
    "local": Local(**agreement.HYPER),
}
NAMES, ALL_NAMES = agreement.NAMES, agreement.ALL_NAMES


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_zero_shot_agrees_with_the_oracle(precision, backbone, exact):
    ours = exact if precision == "float64" else backbone
    data, method = tiny.data(ours), ZeroShot()
    (only,) = tiny.run(method, ours, data)
    clip, tokenizer = exact.image.model, exact.tokenizer
    worst = 0.0
    for name, test in data.task.tests.items():
        images = data.tests[name].pooled
        names = [tiny.NAMES[label].replace("_", " ") for label in test.classes]
        expected = zero_shot_oracle.logits_of(clip, tokenizer, names, images.double())
        frozen = frozen_of(method, data.task, ours).select(test.classes)
        found = method.predict(Params({}, {}), torch.empty(0), images, frozen)
        worst = max(worst, difference(found, expected))
        right = expected.argmax(-1).numpy() == test.targets
        assert (tiny.bools(only.evaluation.correct[name], len(test.images)) == right).all()
    print(f"zero-shot, {precision}: logits {worst:.1e}")
    assert worst < TOLERANCE[precision]


def test_guidance_agrees_with_the_checkpoint_reading_the_whole_template(backbone, exact):
    """Compare z_C in both precisions with CLIPModel.get_text_features of the full tokenized string."""
    expected = clip_text.template_features(exact.image.model, exact.tokenizer, "a photo of a {}.", ALL_NAMES)
    for ours, bound in [(exact, 1e-12), (backbone, 1e-5)]:
        assert (ours.template_features("a photo of a {}.", tiny.NAMES).double() - expected).abs().max() < bound


def test_the_oracle_agrees_with_transformers(exact):
    """Check the oracle on known numbers: a prompt made of the embeddings of a phrase is that phrase."""
    clip, tokenizer = exact.image.model, exact.tokenizer
    written = clip_text.template_features(clip, tokenizer, "a photo of a {}.", ["red apple"])
    learned = clip_text.prompt_features(clip, tokenizer, exact.phrase("a photo of a"), ["red apple"])
    assert torch.allclose(learned, written, rtol=0, atol=1e-12)
    logits = torch.tensor([[0.0, 0.0], [3.0, -1.0]], dtype=torch.float64)
    expected = (0.6931471805599453 + 4.0181499279178094) / 2  # ln 2 and 4 + ln(1 + e^-4)
    assert cross_entropy(logits, torch.tensor([0, 1])).item() == pytest.approx(expected, rel=1e-12)
    assert average([torch.tensor([1.0]), torch.tensor([4.0])], [1, 2]).item() == 3.0


@pytest.mark.parametrize("name", METHODS)
def test_gradients_agree_with_central_differences(name, exact):
    """Compare along random directions of each parameter, through the text encoder, in float64."""
    method, rng = METHODS[name], torch.Generator().manual_seed(3)
    data = tiny.data(exact)
    shared = method.init_shared(data.task, exact, tiny.generator(0, "shared"))
    private = method.init_private(data.task, exact, tiny.generator(0, "private"), 0)
    start = {k: v + 0.1 * torch.randn(v.shape, generator=rng) for k, v in {**shared, **private}.items()}
    tokens, classes = exact.class_tokens(NAMES[:3]), tiny.BASE[:3]
    batch = Batch(tiny.random_features(5, exact.logit_scale, seed=4), torch.tensor([0, 2, 1, 1, 0]))
    frozen = frozen_of(method, data.task, exact).select(classes)

    def loss(values):
        params = Params({k: values[k] for k in shared}, {k: values[k] for k in private})
        text = exact.text(torch.stack(list(method.prompts(params, frozen))), tokens)
        return sum(method.loss(params, text, batch, frozen).values())

    leaves = {k: v.clone().requires_grad_() for k, v in start.items()}
    gradients = dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))
    step = 1e-5
    for key, value in start.items():
        for _ in range(3):
            direction = torch.randn(value.shape, generator=rng).double()
            after, before = (loss({**start, key: value + sign * step * direction}).item() for sign in (1, -1))
            slope = (gradients[key] * direction).sum().item()
            assert slope == pytest.approx((after - before) / (2 * step), rel=1e-6, abs=1e-8)
