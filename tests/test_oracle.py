"""The library against naive transcriptions of the methods (tests/oracle), three clients, three rounds.

The oracle always works in float64. "Relative" is the largest difference over the oracle's largest entry.
`pytest tests/test_oracle.py -rP` prints the largest differences.
"""

from dataclasses import dataclass, field

import pytest
import tiny
import torch
from oracle import clip_text
from oracle import fedpgp as fedpgp_oracle
from oracle import local as local_oracle
from oracle import promptfl as promptfl_oracle
from oracle import zero_shot as zero_shot_oracle
from oracle.training import Settings, average, cross_entropy

from fedpgp.data.sources import load_source
from fedpgp.methods import Batch, FedPGP, Frozen, Local, Params, PromptFL, ZeroShot

ROUNDS, EPOCHS, BATCH = 3, 2, 4
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
UNIT_TOLERANCE = {"float64": 1e-9, "float32": 1e-5}
HYPER = {"context_length": 3, "learning_rate": 0.05}
METHODS = {
    "fedpgp": FedPGP(**HYPER, bottleneck=2, mu=0.7, tau=0.4),
    "promptfl": PromptFL(**HYPER),
    "local": Local(**HYPER),
}
NAMES = [tiny.NAMES[label].replace("_", " ") for label in tiny.BASE]
ALL_NAMES = [name.replace("_", " ") for name in tiny.NAMES]


@dataclass
class Watched:
    """What the library does, seen from outside: every step's loss and gradients."""

    losses: list = field(default_factory=list)
    gradients: list = field(default_factory=list)
    hooks: list = field(default_factory=list)

    def watch(self, monkeypatch, method) -> None:
        plain = type(method).loss

        def loss(method, params, text, batch, frozen):
            terms = plain(method, params, text, batch, frozen)
            gradient = {}
            for hook in self.hooks:
                hook.remove()
            self.hooks = [
                tensor.register_hook(lambda g, name=name, keep=gradient: keep.__setitem__(name, g.clone()))
                for name, tensor in {**params.shared, **params.private}.items()
            ]
            self.losses.append(sum(terms.values()).item())
            self.gradients.append(gradient)
            return terms

        monkeypatch.setattr(type(method), "loss", loss)


def difference(found, expected) -> float:
    """The largest difference over the largest entry of what is expected."""
    found, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (found, expected))
    assert found.shape == expected.shape and expected.abs().max() > 0
    return float((found - expected).abs().max() / expected.abs().max())


def real_features(backbone):
    """Features of as many real pictures as the tiny task trains on."""
    pictures = load_source("pictograms").train
    count = sum(tiny.EXAMPLES)
    return backbone.image([pictures.image(7 * i) for i in range(count)]).clone()


def oracle_schedule(task, seed):
    """Per round, the batches of each client that takes part, from the library's draws."""
    return [
        {
            client.id: [
                batch
                for permutation in tiny.order(seed, number, client.id, len(client.train), EPOCHS)
                for batch in permutation.split(BATCH)
            ]
            for client in task.clients
        }
        for number in range(1, ROUNDS + 1)
    ]


def oracle_run(method, exact, data, first, seed=0):
    """The same federation, by the oracle, in float64."""
    clip, tokenizer = exact.image.model, exact.tokenizer
    labels, clients = data.task.train.labels, []
    for client in data.task.clients:
        columns = torch.tensor([tiny.BASE.index(label) for label in labels[client.train]])
        clients.append((data.train[torch.from_numpy(client.train)].double(), columns))
    settings = Settings(method.learning_rate, tiny.SETTINGS["momentum"], tiny.SETTINGS["weight_decay"])
    work = oracle_schedule(data.task, seed)
    inputs = (clip, tokenizer, NAMES, clients, {k: v.double() for k, v in first.items()}, work, settings)
    if isinstance(method, FedPGP):
        return fedpgp_oracle.run(*inputs, method.mu, method.tau)
    return (promptfl_oracle if isinstance(method, PromptFL) else local_oracle).run(*inputs)


def first_values(method, backbone, data, seed=0):
    return {
        **method.init_shared(data.task, backbone, tiny.generator(seed, "shared")),
        **method.init_private(data.task, backbone, tiny.generator(seed, "private")),
    }


def oracle_context(shared, own):
    """p_i, whatever the method calls its parts."""
    if "U" in own:
        return shared["p_G"] + own["U"] @ own["V"]
    return own["p"] if "p" in own else shared["p_G"]


def frozen_of(backbone, method, classes):
    return Frozen(backbone.template_features(method.template, tiny.NAMES), backbone.logit_scale).select(classes)


@pytest.fixture(scope="module")
def oracle(exact):
    """Runs the oracle once for all precisions: (method, kind of images) -> its record."""
    done = {}

    def run(name, images):
        if (name, images) not in done:
            data = tiny.data(exact, train=real_features(exact) if images == "real" else None)
            done[name, images] = oracle_run(METHODS[name], exact, data, first_values(METHODS[name], exact, data))
        return done[name, images]

    return run


@pytest.mark.parametrize(
    ("name", "precision", "images"),
    [*((name, precision, "random") for name in METHODS for precision in TOLERANCE), ("fedpgp", "float64", "real")],
)
def test_training_agrees_with_the_oracle(name, precision, images, backbone, exact, oracle, monkeypatch):
    method, ours = METHODS[name], exact if precision == "float64" else backbone
    data = tiny.data(ours, train=real_features(ours) if images == "real" else None)
    watched = Watched()
    watched.watch(monkeypatch, method)
    rounds = tiny.run(method, ours, data, rounds=ROUNDS, local_epochs=EPOCHS, batch_size=BATCH)
    monkeypatch.undo()
    expected = oracle(name, images)

    steps = ROUNDS * EPOCHS * sum(-(-n // BATCH) for n in tiny.EXAMPLES)
    assert len(watched.losses) == len(expected.losses) == steps
    worst = {"loss": max(difference(a, b) for a, b in zip(watched.losses, expected.losses, strict=True))}
    assert watched.gradients[0].keys() == expected.gradients[0].keys()
    worst["gradients"] = max(
        difference(found[k], gradient)
        for found, step in zip(watched.gradients, expected.gradients, strict=True)
        for k, gradient in step.items()
    )
    worst["parameters"] = worst["features"] = worst["logits"] = 0.0
    tokens = ours.class_tokens(tiny.NAMES)
    test_images = tiny.random_features(9, ours.logit_scale, seed=9)
    for found, (shared, private) in zip(rounds, expected.rounds, strict=True):
        assert found.shared.keys() == shared.keys()
        for part, reference in [(found.shared, shared), *zip(found.private, private, strict=True)]:
            assert part.keys() == reference.keys()
            worst["parameters"] = max([worst["parameters"], *(difference(part[k], v) for k, v in reference.items())])
        for client, own in enumerate(private):
            params = Params(found.shared, found.private[client])
            text = ours.text(method.prompts(params), tokens)
            logits = method.predict(params, text, test_images, frozen_of(ours, method, range(len(tiny.NAMES))))
            features = clip_text.prompt_features(
                exact.image.model, exact.tokenizer, oracle_context(shared, own), ALL_NAMES
            )
            worst["features"] = max(worst["features"], float((text[-1].double() - features).abs().max()))
            if len(text) > 1:  # FedPGP reads p_G too
                of_shared = clip_text.prompt_features(exact.image.model, exact.tokenizer, shared["p_G"], ALL_NAMES)
                worst["features"] = max(worst["features"], float((text[0].double() - of_shared).abs().max()))
            reference = torch.exp(exact.logit_scale) * test_images.double() @ features.T
            worst["logits"] = max(worst["logits"], difference(logits, reference))

    print(f"{name}, {precision}, {images} images: " + ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))
    unit = worst.pop("features")
    assert unit < UNIT_TOLERANCE[precision]
    assert max(worst.values()) < TOLERANCE[precision], worst


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_zero_shot_agrees_with_the_oracle(precision, backbone, exact):
    ours = exact if precision == "float64" else backbone
    data, method = tiny.data(ours), ZeroShot()
    (only,) = tiny.run(method, ours, data)
    clip, tokenizer = exact.image.model, exact.tokenizer
    worst = 0.0
    for name, test in data.task.tests.items():
        images = data.tests[name]
        names = [tiny.NAMES[label].replace("_", " ") for label in test.classes]
        expected = zero_shot_oracle.logits_of(clip, tokenizer, names, images.double())
        found = method.predict(Params({}, {}), torch.empty(0), images, frozen_of(ours, method, test.classes))
        worst = max(worst, difference(found, expected))
        right = expected.argmax(-1).numpy() == test.targets
        assert (tiny.bools(only.evaluation.correct[name], len(test.images)) == right).all()
    print(f"zero-shot, {precision}: logits {worst:.1e}")
    assert worst < TOLERANCE[precision]


def test_guidance_agrees_with_the_checkpoint_reading_the_whole_template(backbone, exact):
    """z_C in both precisions, against CLIPModel.get_text_features of the full tokenized string."""
    expected = clip_text.template_features(exact.image.model, exact.tokenizer, "a photo of a {}.", ALL_NAMES)
    for ours, bound in [(exact, 1e-12), (backbone, 1e-5)]:
        assert (ours.template_features("a photo of a {}.", tiny.NAMES).double() - expected).abs().max() < bound


def test_the_oracle_reads_what_transformers_reads(exact):
    """The oracle's own pieces on numbers that need no code: a prompt made of a phrase's embeddings is that phrase."""
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
    """Along random directions of each parameter, through the text encoder, in float64."""
    method, rng = METHODS[name], torch.Generator().manual_seed(3)
    data = tiny.data(exact)
    start = {k: v + 0.1 * torch.randn(v.shape, generator=rng) for k, v in first_values(method, exact, data).items()}
    tokens, classes = exact.class_tokens(NAMES[:3]), tiny.BASE[:3]
    batch = Batch(tiny.random_features(5, exact.logit_scale, seed=4), torch.tensor([0, 2, 1, 1, 0]))
    frozen = frozen_of(exact, method, classes)
    private_names = set(method.init_private(data.task, exact, tiny.generator(0, "private")))

    def loss(values):
        params = Params(
            {k: v for k, v in values.items() if k not in private_names},
            {k: v for k, v in values.items() if k in private_names},
        )
        return sum(method.loss(params, exact.text(method.prompts(params), tokens), batch, frozen).values())

    leaves = {k: v.clone().requires_grad_() for k, v in start.items()}
    gradients = dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))
    step = 1e-5
    for key, value in start.items():
        for _ in range(3):
            direction = torch.randn(value.shape, generator=rng).double()
            ahead, behind = (loss({**start, key: value + sign * step * direction}).item() for sign in (1, -1))
            slope = (gradients[key] * direction).sum().item()
            assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-6, abs=1e-8)
