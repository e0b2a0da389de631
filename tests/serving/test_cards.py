"""The code on the model cards of exports works as printed, with the library of the checkpoint."""

import copy
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from cards import code_of, packages_of, run_card
from families import CLASSICAL, KINDS, TRANSFORMERS, of_transformers, save_classical, sentence_piece_model
from PIL import Image
from raising import raises
from references import path_of_processes
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

import fedpgp
from fedpgp.backbone import load_backbone
from fedpgp.backbone.image import ImageEncoder
from fedpgp.backbone.prepare_image import prepare_image
from fedpgp.backbone.resnet import ResNetTower
from fedpgp.errors import ConfigError
from fedpgp.serving.checkpoint import place, preprocessing
from fedpgp.serving.export import export
from fedpgp.serving.hub import _files as uploaded

SHORT = ["task.clients=1", "task.shots=1", "federation.rounds=1", "federation.local_epochs=1"]
SIGLIPS_OWN = "siglip with its own tokenizer"
OPENAIS = "CLIP in OpenAI's form"
OTHERS = (*CLASSICAL, SIGLIPS_OWN, OPENAIS)
# For an export, the other kinds are equivalent to these.
LEVELS = dict.fromkeys(("siglip", "siglip2", "timm-siglip", "mobileclip", "biomedclip", OPENAIS), pytest.mark.slow)
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
        code = code_of(directory)
        assert "fedpgp" not in code and checkpoint not in code
        assert uploaded(directory), "every file of an export can be uploaded"
        found = run_card(directory, tmp_path / "image.png", path_of_processes(tmp_path))
        if form in ("clip-head", "onnx"):
            assert found == pytest.approx(of_heads, abs=1e-5)
        else:
            assert found[0] == pytest.approx([of_prompts[name] for name in some], abs=1e-5)


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


@pytest.fixture(scope="module")
def trained(small_source, compact, cache):
    """A run whose clients differ."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: small_source)
        patch.setattr("fedpgp.runs.setup.configured_backbone", lambda *_: compact)
        changes = [*SHORT, "task.clients=3", "fedpgp.private_learning_rate=3"]
        yield fedpgp.run("fedpgp", changes=changes, cache=cache)


@pytest.fixture
def loaded(compact, monkeypatch):
    """The checkpoint is loaded only once."""
    monkeypatch.setattr("fedpgp.serving.classifier.configured_backbone", lambda *_: compact)


def test_a_card_gives_the_figures_of_the_model_in_the_export(trained, loaded, tmp_path):
    right = trained.answers["base/predicted"].numpy() == trained.answers["base/labels"].numpy()
    novel = trained.answers["novel/predicted"].numpy() == trained.answers["novel/labels"].numpy()
    own = trained.outcomes.unpack("own")
    stated = []
    for client in range(3):
        export(trained, tmp_path / f"{client}", "clip-head", client=client)
        local = f"local {100 * right[client, own[client]].mean():.1f} ({own[client].sum()} images)"
        base = f"base {100 * right[client].mean():.1f} ({right.shape[1]} images)"
        stated.append(f"{local}, {base}, novel {100 * novel[client].mean():.1f} ({novel.shape[1]} images).")
        card = (tmp_path / f"{client}/README.md").read_text(encoding="utf-8")
        assert f"model (client {client}) after the last round, in percent: {stated[-1]}" in card
    assert len(set(stated)) > 1, "equal figures cannot show an error"
    export(trained, tmp_path / "shared", "clip-head")
    shared = trained.results["shared"]
    card = (tmp_path / "shared/README.md").read_text(encoding="utf-8")
    assert f"local {shared['local']:.1f} (mean over 3 clients), base {shared['base']:.1f} (" in card


@pytest.mark.parametrize("umask", [0o022, 0o027])
@pytest.mark.parametrize("form", ["safetensors", "clip-head", "hf", pytest.param("onnx", marks=pytest.mark.slow)])
def test_every_file_of_an_export_has_the_mode_of_a_new_file(form, umask, trained, loaded, tmp_path):
    before = os.umask(umask)
    try:
        export(trained, tmp_path / "out", form)
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {oct(0o666 & ~umask)}, modes


def test_pictures_are_prepared_as_transformers_does(compact):
    pixels = {"size": {"shortest_edge": 40}, "crop_size": 24, "image_mean": [0.1, 0.2, 0.3], "resample": 2}
    processors = (
        CLIPImageProcessorPil(size=24, crop_size=24),
        CLIPImageProcessorPil(**pixels),
        SiglipImageProcessorPil(size={"height": 24, "width": 24}),
    )
    rng = np.random.default_rng(0)
    for processor in processors:
        settings = preprocessing(replace(compact, image=ImageEncoder(compact.image.model, processor)), "x")
        for height, width in itertools.product((13, 24, 27, 31, 90), repeat=2):
            picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            expected = processor(images=picture, return_tensors="np")["pixel_values"]
            np.testing.assert_allclose(prepare_image(picture, settings), expected, atol=1e-5)
    other = CLIPImageProcessorPil(size=24, crop_size=24, do_normalize=False)
    with raises(ConfigError, where="format", remedy="--format clip-head"):
        preprocessing(replace(compact, image=ImageEncoder(compact.image.model, other)), "x")


@pytest.mark.by_hand
@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_the_packages_on_a_card_are_enough_in_a_new_environment(form, trained, loaded, tmp_path):
    """This needs the package index. With the default index, PyTorch takes several gigabytes."""
    directory = export(trained, tmp_path / "out", form)
    Image.new("RGB", (50, 40), "orange").save(directory / "image.png")
    (directory / "code.py").write_text(code_of(directory), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", *packages_of(directory)], check=True)
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, "code.py"], cwd=directory, env=settings, check=True)
