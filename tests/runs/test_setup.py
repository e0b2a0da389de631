"""Checks before any work, and runs of methods that read more than one feature of an image."""

from dataclasses import replace

import pytest
import torch
from raising import raises

import fedpgp
from fedpgp.backbone.general_image import GeneralImageEncoder
from fedpgp.backbone.layers import Prompt
from fedpgp.config import load_config
from fedpgp.errors import ConfigError, TrainingError
from fedpgp.methods import METHODS, FedCoCoOp, FedIVLP, FedVPT, PromptFL
from fedpgp.runs.checks import _check_method
from fedpgp.runs.tasks import make_task


class DeepText(PromptFL):
    name = "deep-text"
    reads = ("deep text", "images")

    def prompts(self, params, frozen):
        p = params.shared["p_G"]
        return [Prompt(p, p.expand(8, *p.shape))]


class DeepVision(FedVPT):
    name = "deep-vision"

    def visual_prompts(self, params):
        p = params.shared["visual"]
        return [Prompt(p, p.expand(8, *p.shape))]


class TooHigh(FedVPT):
    name = "too-high"
    first_layer = 5


@pytest.mark.parametrize(
    ("method", "changes", "fields"),
    [
        (
            FedCoCoOp(ctx_init="random", context_length=60),
            (),
            {"where": "fedcocoop", "got": 60, "remedy": "context_length"},
        ),
        (FedIVLP(context_length=60, depth=2), (), {"where": "fedivlp", "got": 60, "remedy": "context_length"}),
        (DeepText(), (), {"where": "deep-text", "allowed": "at most 3", "got": 9, "remedy": "[deep-text]"}),
        (DeepVision(), (), {"where": "deep-vision", "allowed": "at most 5", "got": 9, "remedy": "[deep-vision]"}),
        (TooHigh(), (), {"where": "first_layer of too-high", "allowed": "0 to 4", "got": 5}),
        (
            METHODS["fedmgp"](),
            ["federation.aggregator=scaffold"],
            {"where": "federation.aggregator", "allowed": "fedmgp", "got": "scaffold"},
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(method, changes, fields, backbone, pictograms):
    config = replace(load_config(changes=changes), methods={method.name: method})
    with raises(ConfigError, **fields):
        _check_method(config, method.name, backbone, make_task(config, pictograms, 0))


@pytest.mark.parametrize(("name", "problem"), [("fedotp", "patches"), ("fedvpt", "image tower")])
def test_an_image_tower_that_does_not_fit_a_method_is_refused(name, problem, backbone, pictograms):
    config, image = load_config(), backbone.image
    other = GeneralImageEncoder(image.tower_modules, image.pool, None, image.processor, image.size, {})
    with raises(ConfigError, where="pictoclip", problem=problem, remedy="openai/clip-vit-base-patch16") as caught:
        _check_method(config, name, replace(backbone, image=other), make_task(config, pictograms, 0))
    assert name in caught.value.problem


def test_a_phrase_with_braces_is_refused():
    with pytest.raises(ConfigError, match=r"fedivlp\.ctx_init.*'a photo of a \{\}'"):
        load_config(changes=["fedivlp.ctx_init=a photo of a {}"])


def test_a_transport_that_does_not_converge_in_evaluation_names_the_client(small, cache):
    changes = ["task.clients=3", "task.shots=4", "federation.rounds=1", "federation.local_epochs=1"]
    with pytest.raises(TrainingError, match=r"client 0.*round 1"):
        fedpgp.run("fedotp", changes=[*changes, "fedotp.iterations=1", "fedotp.tolerance=1e-6"], cache=cache)


@pytest.mark.parametrize("name", ["fedmgp", "fedpromptsrc", "fedotp", "fedcocoop", "pfedmma"])
def test_from_the_configuration_to_the_results(name, small, cache, tmp_path):
    """A run with views of the training images and float16 is read again, with all tensors for its predictions."""
    changes = ["task.clients=3", "task.shots=4", "federation.rounds=1", "federation.local_epochs=1"]
    changes += ["data.augmented_views=2", "data.token_precision=float16"]
    made = fedpgp.run(name, changes=changes, cache=cache, output=tmp_path / "out")
    read = fedpgp.load_run(tmp_path / "out")
    assert all(0 <= read.results["final"][key] <= 100 for key in ("local", "base", "novel"))
    assert read.prompts.keys() == made.prompts.keys()
    assert all(torch.equal(read.prompts[key], made.prompts[key]) for key in made.prompts)
