"""The code on the model cards of exports works as printed, with the library of the checkpoint."""

import copy
import json
import re
from dataclasses import replace

import pytest
from families import CLASSICAL, KINDS, TRANSFORMERS, of_transformers, save_classical, sentence_piece_model
from PIL import Image
from raising import raises

import fedpgp
from fedpgp.backbone import load_backbone
from fedpgp.backbone.image import ImageEncoder
from fedpgp.backbone.resnet import ResNetTower
from fedpgp.errors import ConfigError
from fedpgp.serving.checkpoint import place
from fedpgp.serving.export import export
from fedpgp.serving.hub import _files as uploaded

SHORT = ["task.clients=1", "task.shots=1", "federation.rounds=1", "federation.local_epochs=1"]
SIGLIPS_OWN = "siglip with its own tokenizer"
OPENAIS = "CLIP in OpenAI's form"
OTHERS = (*CLASSICAL, SIGLIPS_OWN, OPENAIS)
# For an export, the other kinds are equivalent to these. siglip2 is fast, because it has no ONNX file.
LEVELS = {
    "siglip2": (),
    **dict.fromkeys(("siglip", "timm-siglip", "mobileclip", "biomedclip", OPENAIS), pytest.mark.slow),
}
REFUSED = {
    **{(kind, "hf"): "--format safetensors" for kind in KINDS if kind not in TRANSFORMERS},
    ("openclip-resnet", "hf"): "--format safetensors",
    (SIGLIPS_OWN, "hf"): "--format safetensors",
    ("siglip2", "onnx"): "--format clip-head",
}  # the remedy in the error


@pytest.fixture
def checkpoint(kind, request, tmp_path, open_clip):
    """The directory of a saved checkpoint."""
    if kind in KINDS:
        return str(request.getfixturevalue("made")(kind).directory)
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    if kind == SIGLIPS_OWN:
        of_transformers("siglip", directory)
        sentence_piece_model(directory)
    else:
        save_classical("openclip-vit" if kind == OPENAIS else kind, directory, open_clip)
        if kind == OPENAIS:
            return str(directory / "open_clip_model.safetensors")
    return str(directory)


def transparent_and_turned(picture, file):
    """Save an image that `Image.open(file).convert("RGB")` reads differently than fedpgp does."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = picture.convert("RGBA").resize((41, 37))  # for a tower of 32, 1.5 of 35 pixels are cropped on each side
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    picture.save(file, exif=exif)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=LEVELS.get(kind, pytest.mark.by_hand)) for kind in (*KINDS, *OTHERS)],
)
def test_the_code_on_a_card_predicts_what_fedpgp_does(
    kind, checkpoint, small_source, cache, tmp_path, command, monkeypatch
):
    monkeypatch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: small_source)
    changes = [*SHORT, "promptfl.context_length=4", f"backbone.checkpoint={checkpoint}"]
    run = fedpgp.run("promptfl", changes=changes, output=tmp_path / "run", cache=cache)
    transparent_and_turned(small_source.test.image(3), tmp_path / "image.png")

    def predicted(*classes):
        done = command("predict", "run", "image.png", "--format", "json", "--quiet", *classes)
        assert done.code == 0, done.err
        return json.loads(done.out)["images"][0]["probabilities"]

    base = run.results["task"]["base_names"]
    some = [name.replace("_", " ") for name in base[:3]]
    of_heads, of_prompts = predicted(), predicted("--classes", ",".join(some))
    assert max(of_prompts.values()) - min(of_prompts.values()) > 1e-3, "equal probabilities cannot show an error"
    for form in ("safetensors", "clip-head", "onnx", "hf"):
        directory = tmp_path / form
        if (kind, form) in REFUSED:
            with raises(ConfigError, where="format", remedy=REFUSED[kind, form]):
                export(run, directory, form)
            continue
        export(run, directory, form)
        (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(encoding="utf-8"), re.DOTALL)
        assert "fedpgp" not in code and checkpoint not in code
        assert uploaded(directory), "every file of an export can be uploaded"
        (directory / "image.png").write_bytes((tmp_path / "image.png").read_bytes())
        printed = []
        with monkeypatch.context() as patch:
            patch.chdir(directory)
            patch.syspath_prepend(directory)
            exec(code, {"print": printed.append})
        (found,) = printed
        if form in ("clip-head", "onnx"):
            assert found == pytest.approx(of_heads, abs=1e-5)
        else:
            assert found[0].tolist() == pytest.approx([of_prompts[name] for name in some], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "checkpoint", "weights"),
    [
        ("org/model", '"hf-hub:org/model"', '"hf-hub:org/model"'),
        ("hf-hub:org/model", '"hf-hub:org/model"', '"hf-hub:org/model"'),
        ("open_clip:MobileCLIP2-S0/dfndr2b", '"MobileCLIP2-S0"', '"MobileCLIP2-S0", pretrained="dfndr2b"'),
    ],
)
def test_a_model_of_openclip_that_can_be_downloaded_is_named_and_not_copied(name, checkpoint, weights, made, tmp_path):
    found = place(load_backbone(str(made("mobileclip").directory)), name, tmp_path)
    assert found == {"library": "open_clip", "checkpoint": checkpoint, "weights": weights}
    assert not any(tmp_path.iterdir())


def test_a_resnet_that_no_library_loads_from_its_file_is_refused(compact, tmp_path):
    model = copy.deepcopy(compact.image.model)
    model.vision_model = ResNetTower((1, 1, 1, 1), 8, 2)
    resnet = replace(compact, image=ImageEncoder(model, compact.image.processor))
    with raises(ConfigError, where="RN.pt", remedy="--format onnx"):
        place(resnet, "RN.pt", tmp_path)


def test_a_class_name_whose_tokens_depend_on_its_position_is_refused(made, small_source, cache, tmp_path, monkeypatch):
    """SentencePiece has different tokens for a full stop after a class name than after a context."""
    monkeypatch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: small_source)
    changes = [*SHORT, "promptfl.class_token_position=front", f"backbone.checkpoint={made('siglip').directory}"]
    run = fedpgp.run("promptfl", changes=[*changes, "promptfl.context_length=4"], cache=cache)
    for form in ("safetensors", "hf"):
        with raises(ConfigError, where="format", problem=f"the format {form} is not possible"):
            export(run, tmp_path / form, form)
    assert not any(tmp_path.iterdir())
