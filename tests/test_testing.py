"""The conformance checks: every built-in method passes them, and they find each violation of the contract."""

import sys
from dataclasses import replace
from typing import ClassVar

import pytest
import tiny
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from fedpgp.backbone.layers import Prompt
from fedpgp.methods import METHODS, FedPGP, Method, PromptFL
from fedpgp.methods.base import STRICT
from fedpgp.testing import CHECKS, ConformanceError, check_method

# One method of each kind: no training, a private part, a separate download for each client, prompts of other clients,
# text per image, patches, both towers. The other methods take a minute together.
QUICK = ("zero-shot", "fedpgp", "prompt-amp", "pfedmoap", "fedcocoop", "fedotp", "fedmaple")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_every_built_in_method_keeps_the_contract(name, exact):
    assert len(check_method(tiny.small(METHODS[name]), exact)) == len(CHECKS)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Broken(PromptFL):
    """A correct method, which each test breaks in one place."""

    name: ClassVar[str] = "broken"


def broken(monkeypatch, **changes):
    """Return a method with changes to its class, which is added to this module so that it can be pickled."""
    found = type("Changed", (Broken,), {"__doc__": "A method.", "__module__": __name__, **changes})
    monkeypatch.setattr(sys.modules[__name__], "Changed", found, raising=False)
    return found(context_length=3, learning_rate=0.05)


class Sending(FedPGP):
    """Copies V [b, d] into the shared context [M, d] after training."""

    name = "sending"

    def after_training(self, params, rng):
        V = params.private["V"]
        return replace(params, shared={"p_G": torch.cat([V, params.shared["p_G"][len(V) :]])})


def changes_arguments(self, params, text, images, frozen):
    images.mul_(0.5)
    return PromptFL.predict(self, params, text, images, frozen)


def looks_at_the_batch(self, params, text, images, frozen):
    return PromptFL.predict(self, params, text, images - images.mean(0), frozen)


def global_generator(self, task, backbone, rng):
    return {"p_G": torch.randn(3, backbone.token_width).to(backbone.logit_scale)}


def scales_the_guidance(self, params, text, batch, frozen):
    frozen.guidance.mul_(0.5)
    return PromptFL.loss(self, params, text, batch, frozen)


def wrong_width(self, params, frozen):
    return [params.shared["p_G"][:, :-1]]


def wrong_columns(self, params, text, images, frozen):
    return PromptFL.predict(self, params, text, images, frozen)[:, :-1]


def two_numbers(self, params, text, batch, frozen):
    return {"task": text.mean((0, 2))[:2]}


def single_precision(self, task, backbone, rng):
    return {"p_G": 0.02 * torch.randn(3, backbone.token_width, generator=rng)}


def idle(self, task, backbone, rng, client):
    return {"unused": torch.ones(2, 3).to(backbone.logit_scale)}


def deep(self, params, frozen):
    return [Prompt(params.shared["p_G"], params.shared["p_G"][None])]


def one_for_all(self, params, images, frozen):
    return [params.shared["p_G"]]


def keeps_half(self, params, rng):
    return replace(params, shared={"p_G": params.shared["p_G"][:1]})


def doubles_in_place(self, params, rng):
    params.shared["p_G"].mul_(2)
    return params


def halves_in_place(self, params):
    for tensor in params.shared.values():
        tensor.mul_(0.5)
    return params


def remembering():
    seen = []

    def loss(self, params, text, batch, frozen):
        seen.append(1)
        terms = PromptFL.loss(self, params, text, batch, frozen)
        return {"task": terms["task"] * (1 + 0.01 * len(seen))}

    return loss


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"__doc__": ""}, "docstring"),
        ({"name": "Not A Name"}, "lowercase letters"),
        ({"learning_rates": property(lambda self: {})}, "learning rate for 'shared'"),
        ({"init_shared": global_generator}, "draw p_G only from rng"),
        ({"init_shared": single_precision}, "like backbone.logit_scale"),
        ({"init_private": idle}, "unused"),
        ({"init_private": lambda self, *_: {"p_G": torch.ones(3, dtype=torch.float64)}}, "not use a name twice"),
        ({"prompts": wrong_width}, r"contexts \[M, 128\]"),
        ({"predict": wrong_columns}, r"logits \[images, classes\].*\[5, 6\], got \[5, 5\]"),
        ({"predict": looks_at_the_batch}, "each image independently"),
        ({"predict": changes_arguments}, "not change its arguments"),
        ({"loss": scales_the_guidance}, "not change its arguments in place, in loss"),
        ({"loss": two_numbers}, "one finite number|tensor of one number"),
        ({"loss": remembering()}, "together|another process|its own state|separately"),
        ({"pooled": True, "init_private": idle}, "not have private parameters"),
        ({"reads": ("text", "image towers")}, "got 'image towers'.*'image tower'"),
        ({"reads": ("patches", "image tower")}, "only one of them"),
        ({"reads": ("text per image",), "per_example": True, "custom_gradient": True}, "it is per_example"),
        ({"prompts": deep}, 'declare that it reads "deep text"'),
        ({"conditional_prompts": one_for_all}, 'declare that it reads "text per image"'),
        ({"visual_prompts": lambda self, params: [None]}, 'declare that it reads "image tower"'),
        (
            {"conditional_prompts": one_for_all, "reads": ("text per image", "images")},
            "conditional prompt for each image",
        ),
        ({"after_training": keeps_half}, "names and shapes of its shared part in after_training"),
        ({"after_training": doubles_in_place}, "not change its arguments in after_training"),
        ({"for_prediction": halves_in_place}, "not change its arguments in place"),
    ],
)
def test_a_broken_method_is_found(changes, message, exact, monkeypatch):
    with pytest.raises(ConformanceError, match=message) as found:
        check_method(broken(monkeypatch, **changes), exact)
    assert str(found.value).startswith((changes.get("name", "broken"), "broken"))


class SendingARow(FedPGP):
    """Copies one row of V [b, d], and a part of another, into the shared context."""

    name = "sending"

    def after_training(self, params, rng):
        row = torch.cat([params.private["V"][0, :64], params.shared["p_G"][0, 64:]])[None]
        return replace(params, shared={"p_G": torch.cat([params.private["V"][1:2], row, params.shared["p_G"][2:]])})


class Detour(FedPGP):
    """Its path ends beyond the model."""

    name = "detour"

    def path(self, params, alpha):
        return super().path(params, 2 * alpha)


class LateStart(FedPGP):
    """Its path does not start at the shared model."""

    name = "late"

    def path(self, params, alpha):
        return super().path(params, 0.5 + alpha / 2)

    def without_private(self, params):
        return super().path(params, 0)


class SendingAnImage(PromptFL):
    """Sends the features of its first training image."""

    name = "sending"

    def init_shared(self, task, backbone, rng):
        return {
            **super().init_shared(task, backbone, rng),
            "z": torch.zeros(backbone.image.width).to(backbone.logit_scale),
        }

    def memory(self, images, labels, frozen):
        return {"first": images[0]}

    def after_training(self, params, rng):
        return replace(params, shared={**params.shared, "z": params.memory["first"]})


class SummingExamples(PromptFL):
    """Returns the sum of the losses of its examples instead of their mean."""

    name = "summing"
    custom_gradient = True
    per_example = True

    def loss(self, params, text, batch, frozen):
        return {"task": len(batch.labels) * super().loss(params, text, batch, frozen)["task"]}

    def direction(self, gradients, params, rng):
        return {name: each.mean(0) for name, each in gradients["task"].items()}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (SendingARow, "must not send V, which is private"),
        (SendingAnImage, "must not send first, which is private|must not send the images"),
        (SummingExamples, "is the mean of the losses of its examples"),
        (Detour, "must end its path"),
        (LateStart, "must start its path"),
    ],
)
def test_a_partial_leak_a_wrong_mean_or_a_wrong_path_is_found(cls, message, exact):
    small = {"bottleneck": 2} if issubclass(cls, FedPGP) else {}
    with pytest.raises(ConformanceError, match=message):
        check_method(cls(context_length=3, learning_rate=0.05, **small), exact)


def test_a_private_part_in_the_upload_is_found(exact):
    with pytest.raises(ConformanceError, match="must not send V, which is private"):
        check_method(Sending(context_length=3, bottleneck=2, learning_rate=0.05), exact)


def test_a_setting_without_a_description_is_found(exact):
    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Anonymous(PromptFL):
        """A method."""

        name: ClassVar[str] = "anonymous"
        strength: float = Field(default=1.0)

    with pytest.raises(ConformanceError, match="must describe strength"):
        check_method(Anonymous(context_length=3), exact)


def test_the_errors_are_assertion_errors_for_pytest():
    assert issubclass(ConformanceError, AssertionError) and issubclass(Broken, Method)
