"""A run on photoclip works like a run on any other checkpoint: predictions and exports."""

import json

import pytest
import torch
import torch.nn.functional as F
from commands import refused
from safetensors import safe_open

import fedpgp
from fedpgp.backbone import Backbone, load_backbone
from fedpgp.data.decode import decode

CHANGES = ("task.clients=3", "task.shots=1", "federation.rounds=1", "federation.local_epochs=1")
NAMES = ("ant", "red panda", "grand piano")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photoclip() -> Backbone:
    return load_backbone("photoclip")


@pytest.fixture(scope="module")
def run(small_source, cache, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: small_source)
        fedpgp.compare(
            ["fedpgp", "fedotp"],
            changes=[*CHANGES, "backbone.checkpoint=photoclip"],
            output=directory,
            cache=cache,
        )
    return directory / "fedpgp/seed-0"


@pytest.fixture
def picture(pictograms, tmp_path):
    pictograms.test.image(0).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def predicted(command, run, picture):
    """Return the probabilities of `NAMES` from `fedpgp predict`."""
    ended = command("predict", str(run), str(picture), "--classes", ",".join(NAMES), "--format", "json", "--quiet")
    (image,) = json.loads(ended.out)["images"]
    return torch.tensor([image["probabilities"][name] for name in NAMES])


@pytest.mark.parametrize("form", ["clip-head", "safetensors"])
def test_an_export_has_the_checkpoint_and_agrees_with_predict(form, run, picture, command, photoclip, tmp_path):
    classes = ("--classes", ",".join(NAMES)) if form == "clip-head" else ()
    assert command("export", str(run), "--format", form, "-o", "out", *classes).code == 0
    again = load_backbone(str(tmp_path / "out"))
    assert again.image.fingerprint == photoclip.image.fingerprint
    feature = again.image([decode(picture)])
    if form == "clip-head":
        with safe_open(tmp_path / "out/head.safetensors", "pt") as head:
            weight, scale = head.get_tensor("weight"), head.get_tensor("scale")
    else:
        with safe_open(tmp_path / "out/prompt.safetensors", "pt") as prompt:
            context = prompt.get_tensor("context")
        weight, scale = again.text(context[None], again.class_tokens(NAMES))[0], again.logit_scale.exp()
    probabilities = (scale * feature @ F.normalize(weight, dim=-1).T).softmax(-1)[0]
    assert (probabilities - predicted(command, run, picture)).abs().max() < 1e-5


def test_an_onnx_file_agrees_with_predict(run, picture, command, photoclip, tmp_path):
    import onnxruntime

    assert command("export", str(run), "--format", "onnx", "-o", "out", "--classes", ",".join(NAMES)).code == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
    pixels = photoclip.image.processor(images=[decode(picture)] * 3, return_tensors="np")["pixel_values"]
    _, probabilities = session.run(None, {"pixels": pixels})
    assert (torch.from_numpy(probabilities) - predicted(command, run, picture)).abs().max() < 1e-5


def test_a_clip_of_transformers_is_refused_by_name(run, command):
    refused(command("export", str(run), "--format", "hf", "-o", "out"), "photoclip", "--format safetensors")
