"""What is checked before any work, of methods that read more than one feature of an image."""

from dataclasses import replace

import pytest
import torch

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
    ("method", "changes", "message"),
    [
        (FedCoCoOp(ctx_init="random", context_length=60), (), "a context of fedcocoop must have at most"),
        (FedIVLP(context_length=60, depth=2), (), "a context of fedivlp must have at most"),
        (DeepText(), (), "the prompts of deep-text must reach into at most 3 layers, .* text tower has, got 9"),
        (DeepVision(), (), "the prompts of deep-vision must reach into at most 5 layers, .* image tower has, got 9"),
        (TooHigh(), (), "too-high must begin at a layer of the image tower, 0 to 4, got first_layer 5"),
        (
            METHODS["fedmgp"](),
            ["federation.aggregator=scaffold"],
            "must be one that does not turn gradients for fedmgp",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(method, changes, message, backbone, pictograms):
    config = replace(load_config(changes=changes), methods={method.name: method})
    with pytest.raises(ConfigError, match=message):
        _check_method(config, method.name, backbone, make_task(config, pictograms, 0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fedotp",
            "fedotp reads patches of images in the space of the features, .* from pictoclip: choose another checkpoint",
        ),
        ("fedvpt", "fedvpt changes the image tower, .* unlike that of pictoclip: choose another checkpoint"),
    ],
)
def test_an_image_tower_that_a_method_does_not_fit_is_named(name, message, backbone, pictograms):
    config, image = load_config(), backbone.image
    other = GeneralImageEncoder(image.tower_modules, image.pool, None, image.processor, image.size, {})
    with pytest.raises(ConfigError, match=message):
        _check_method(config, name, replace(backbone, image=other), make_task(config, pictograms, 0))


def test_a_phrase_with_braces_is_refused():
    with pytest.raises(ConfigError, match=r"fedivlp.ctx_init .*got 'a photo of a \{\}'"):
        load_config(changes=["fedivlp.ctx_init=a photo of a {}"])


def test_a_transport_that_does_not_converge_in_evaluation_names_the_client(small, cache):
    changes = ["task.clients=3", "task.shots=4", "federation.rounds=1", "federation.local_epochs=1"]
    with pytest.raises(TrainingError, match=r"client 0 in round 1, step 1: the optimal transport .* iterations = 1"):
        fedpgp.run("fedotp", changes=[*changes, "fedotp.iterations=1", "fedotp.tolerance=1e-6"], cache=cache)


@pytest.mark.parametrize("name", ["fedmgp", "fedpromptsrc", "fedotp", "fedcocoop", "pfedmma"])
def test_from_the_configuration_to_the_results(name, small, cache, tmp_path):
    """Views of the training images, float16, and a run that is read again: with all that its prediction needs."""
    changes = ["task.clients=3", "task.shots=4", "federation.rounds=1", "federation.local_epochs=1"]
    changes += ["data.augmented_views=2", "data.token_precision=float16"]
    made = fedpgp.run(name, changes=changes, cache=cache, output=tmp_path / "out")
    read = fedpgp.load_run(tmp_path / "out")
    assert all(0 <= read.results["final"][key] <= 100 for key in ("local", "base", "novel"))
    assert read.prompts.keys() == made.prompts.keys()
    assert all(torch.equal(read.prompts[key], made.prompts[key]) for key in made.prompts)
