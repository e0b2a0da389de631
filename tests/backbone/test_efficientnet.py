"""Compare our EfficientNet-Lite0, OpenCLIP preprocessing and photoclip with timm and OpenCLIP."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import NAMES, TEXTS, of_open_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from raising import raises
from references import references
from safetensors.torch import load_file, save_file

from fedpgp import assets
from fedpgp.backbone import load_backbone
from fedpgp.backbone.efficientnet import EfficientNetLite, declared
from fedpgp.backbone.open_clip_processor import OpenClipProcessor
from fedpgp.backbone.text import TextEncoder
from fedpgp.data.decode import decode
from fedpgp.errors import CheckpointError

PHOTOCLIP = assets.DIRECTORY / "photoclip"


@pytest.fixture(scope="module")
def open_clip():
    with references():
        import open_clip

        yield open_clip


@pytest.fixture
def lite(tmp_path, open_clip):
    return of_open_clip("efficientnet", tmp_path / "checkpoint", open_clip)


@pytest.fixture
def changed_config(lite):
    """Change values in sections of the config."""

    def change(**sections):
        file = lite.directory / "open_clip_config.json"
        content = json.loads(file.read_text())
        for section, values in sections.items():
            (content if section == "preprocess_cfg" else content["model_cfg"])[section] |= values
        file.write_text(json.dumps(content))

    return change


def photographs(directory):
    """Files of several modes and shapes, with smooth content like photographs."""
    generator = np.random.default_rng(0)
    files = []
    for number, (mode, shape, suffix) in enumerate(
        [("RGB", (301, 200), "jpg"), ("RGB", (223, 400), "jpg"), ("L", (130, 131), "jpg"), ("RGB", (90, 75), "png")]
    ):
        small = Image.fromarray(generator.integers(0, 255, (9, 7, 3), dtype=np.uint8))
        files.append(directory / f"{number}.{suffix}")
        small.resize(shape, Image.Resampling.BICUBIC).convert(mode).save(files[-1])
    return files


def test_photoclip_gives_the_features_of_openclip_from_the_same_files(tmp_path, open_clip):
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{PHOTOCLIP}")
    tokenizer, files = open_clip.get_tokenizer(f"local-dir:{PHOTOCLIP}"), photographs(tmp_path)
    names = (*NAMES, "Boeing  737-800", "fire_engine", "d'Artagnan & sons")
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in names]
    backbone = load_backbone("photoclip")
    pictures = [decode(file) for file in files]
    pixels = torch.stack([transform(Image.open(file)) for file in files])
    assert torch.equal(backbone.image.processor(images=pictures)["pixel_values"], pixels)
    with torch.no_grad():
        image = F.normalize(model.eval().encode_image(pixels), dim=-1)
        text = F.normalize(model.encode_text(tokenizer(texts)), dim=-1)
    assert (backbone.image(pictures) - image).abs().max() < 1e-5
    assert (backbone.template_features("a photo of a {}.", names) - text).abs().max() < 1e-5
    assert torch.equal(backbone.logit_scale, model.logit_scale)
    assert isinstance(backbone.text, TextEncoder)
    assert backbone.image.patches == math.prod(math.ceil(side / 32) for side in backbone.image.size)


@pytest.mark.slow
def test_photoclip_is_read_without_the_libraries_that_tests_compare_with():
    code = (
        "import sys; sys.modules |= dict.fromkeys(('timm', 'open_clip', 'torchvision'));"
        "from fedpgp.backbone import load_backbone; load_backbone('photoclip').image.patches"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("size", [(64, 64), (75, 75), (96, 131), (33, 50)])
def test_padding_is_tensorflows_at_every_size(size, lite):
    """If the size is even, a convolution with stride 2 has unequal padding on the two sides."""
    weights = load_file(lite.directory / "open_clip_model.safetensors")
    visual = {name.removeprefix("visual."): value for name, value in weights.items() if name.startswith("visual.")}
    tower = EfficientNetLite.of(visual, "x")
    pixels = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = lite.model.double().encode_image(pixels)
    assert torch.allclose(tower(pixels), expected, atol=1e-12 * expected.abs().max())
    assert torch.allclose(tower.positions(pixels).mean(1), expected, atol=1e-12 * expected.abs().max())


@pytest.mark.parametrize("projection", [None, ""])
def test_timms_classifier_is_the_projection_if_there_is_no_other(projection, tmp_path, open_clip, monkeypatch):
    import families

    vision = families.OPEN_CLIP["efficientnet"]["vision_cfg"] | {"timm_proj": projection}
    monkeypatch.setitem(families.OPEN_CLIP["efficientnet"], "vision_cfg", vision)
    family = of_open_clip("efficientnet", tmp_path, open_clip)
    monkeypatch.setattr("fedpgp.backbone.open_clip_models.library", lambda what: pytest.fail("the library is read"))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8))
    expected = F.normalize(family.image(family.pixels([picture])), dim=-1)
    assert (load_backbone(str(tmp_path)).image([picture]) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("vision", "ours"),
    [
        ({}, True),
        ({"timm_model_name": "tf_efficientnet_lite0.in1k", "timm_pool": ""}, True),
        ({"timm_pool": "", "timm_proj": None}, False),  # then there is no pooling
        ({"timm_pool": "rot_attn", "timm_proj": ""}, False),
        ({"timm_proj": "mlp"}, False),
        ({"timm_proj": "none"}, False),
        ({"timm_model_name": "tf_efficientnet_lite1"}, False),
        ({"timm_model_name": None}, False),
    ],
)
def test_the_config_decides_whether_the_tower_is_ours(vision, ours):
    assert declared({"timm_model_name": "tf_efficientnet_lite0"} | vision) == ours


def test_another_projection_and_another_tokenizer_are_left_to_the_library(lite, changed_config):
    text = load_backbone(str(lite.directory)).template_features("a photo of a {}.", NAMES)
    changed_config(text_cfg={"tokenizer_kwargs": {"clean": "lower"}})
    again = load_backbone(str(lite.directory))
    assert not isinstance(again.text, TextEncoder) and not isinstance(again.image.tower_modules[0], EfficientNetLite)
    assert (again.template_features("a photo of a {}.", NAMES) - text).abs().max() < 1e-5


def test_openais_tokenizer_is_used_if_the_config_names_none(lite, changed_config, open_clip):
    tokens = open_clip.get_tokenizer("ViT-B-32")(list(TEXTS))
    weights = load_file(lite.directory / "open_clip_model.safetensors")
    weights["text.token_embedding.weight"] = torch.randn(49408, 32, generator=torch.Generator().manual_seed(0))
    save_file(weights, lite.directory / "open_clip_model.safetensors")
    lite.model.text.token_embedding = torch.nn.Embedding.from_pretrained(weights["text.token_embedding.weight"])
    changed_config(text_cfg={"hf_tokenizer_name": None, "vocab_size": 49408})
    expected = F.normalize(lite.model.encode_text(tokens), dim=-1)
    backbone = load_backbone(str(lite.directory))
    assert (backbone.template_features("a photo of a {}.", NAMES) - expected).abs().max() < 1e-5
    assert [file.name for file in backbone.files] == ["open_clip_config.json", "open_clip_model.safetensors"]


@pytest.mark.parametrize(
    ("name", "value", "fields"),
    [
        ("visual.trunk.blocks.1.0.bn2.running_var", None, {"problem": "bn2.running_var is missing"}),
        (
            "visual.trunk.conv_stem.weight",
            torch.zeros(16, 3, 3, 3),
            {"where": "conv_stem.weight", "allowed": "(32, 3, 3, 3)", "got": (16, 3, 3, 3)},
        ),
        (
            "visual.head.proj.weight",
            torch.zeros(32, 640),
            {"where": "head.proj.weight", "allowed": "(32, 1280)", "got": (32, 640)},
        ),
        ("visual.trunk.blocks.7.0.bn1.weight", torch.zeros(1), {"problem": "visual.trunk.blocks.7.0.bn1.weight"}),
        ("text.ln_final.weight", torch.zeros(1), {"where": "final_layer_norm.weight", "got": (1,)}),
        ("text.token_embedding.weight", None, {"problem": "text_model.embeddings.token_embedding.weight"}),
        ("logit_scale", None, {"problem": "logit_scale"}),
    ],
)
def test_weights_that_do_not_fit_are_one_line(name, value, fields, lite):
    file = lite.directory / "open_clip_model.safetensors"
    weights = load_file(file)
    weights.pop(name, None)
    save_file(weights | ({} if value is None else {name: value}), file)
    with raises(CheckpointError, **fields) as caught:
        load_backbone(str(lite.directory))
    assert "\n" not in str(caught.value) and str(file) in caught.value.where


@pytest.mark.parametrize(
    ("sections", "fields"),
    [
        ({"text_cfg": {"heads": 5}}, {"problem": "5 heads"}),
        ({"vision_cfg": {"image_size": [64]}}, {"where": "open_clip_config.json"}),
        (
            {"preprocess_cfg": {"resize_mode": "crop"}},
            {"where": "preprocess_cfg.resize_mode", "allowed": "shortest", "got": "crop"},
        ),
    ],
)
def test_a_config_that_does_not_fit_is_one_line(sections, fields, lite, changed_config):
    changed_config(**sections)
    with raises(CheckpointError, **fields) as caught:
        load_backbone(str(lite.directory))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_does_not_end_with_the_last_token_is_refused(lite):
    """OpenCLIP reads the feature of a text at its highest token id."""
    file = lite.directory / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"].append(
        content["added_tokens"][-1] | {"id": 1 + content["added_tokens"][-1]["id"], "content": "x"}
    )
    file.write_text(json.dumps(content))
    with raises(CheckpointError, where=str(lite.directory), problem="the tokenizer must have"):
        load_backbone(str(lite.directory))
    for found in lite.directory.glob("*token*"):
        found.unlink()
    with raises(CheckpointError, where=str(lite.directory), problem="the tokenizer cannot be read"):
        load_backbone(str(lite.directory))


SIDES = st.integers(8, 90)


@settings(max_examples=150)
@given(
    picture=st.tuples(SIDES, SIDES),
    size=st.one_of(SIDES, st.tuples(SIDES, SIDES)),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "random"]),
    fill=st.integers(0, 255),
)
@pytest.mark.slow  # takes seconds
def test_preprocessing_is_openclips_to_the_pixel(picture, size, mode, interpolation, fill):
    with references():
        from open_clip.transform import PreprocessCfg, image_transform_v2

    values = {"resize_mode": mode, "interpolation": interpolation, "fill_color": fill, "mean": (0.1, 0.5, 0.7)}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*picture, 3), dtype=np.uint8))
    expected = image_transform_v2(PreprocessCfg(size=size, **values), is_train=False)(image)
    processor = OpenClipProcessor.of(values | {"crop_fraction": 0.8, "std": None}, size)
    assert torch.equal(processor(images=[image, image])["pixel_values"], torch.stack([expected, expected]))
    whole = processor(images=[image], return_tensors="np", do_resize=False, do_center_crop=False)["pixel_values"]
    assert whole.shape == (1, 3, *picture)
