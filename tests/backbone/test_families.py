"""Compare dual encoders that are not CLIP-shaped with the libraries from which they come."""

import json
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import agreement
import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from families import KINDS, NAMES, TEXTS, of_open_clip, of_transformers, sentence_piece_model
from oracle import fedpgp as oracle
from oracle import promptfl
from PIL import Image
from raising import raises
from safetensors.torch import save_file

import fedpgp
from fedpgp.backbone import load_backbone
from fedpgp.backbone.general_text import GeneralTextEncoder
from fedpgp.backbone.layers import Prompt
from fedpgp.errors import CheckpointError, ConfigError
from fedpgp.methods import FedPGP
from fedpgp.serving.export import export

CLIP_SHAPED = ("convnext", "efficientnet", "eva")  # kinds with this property in their text tower
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
IMAGES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (90, 71 + seed, 3), dtype=np.uint8)) for seed in (1, 2)
]


@contextmanager
def exactly(family):
    """Return the library's model in float64."""
    family.model.double()
    try:
        yield
    finally:
        family.model.float()


def spliced(family, ids, mask, contexts, places):
    """Return features [C, D] of the library, with the context in place of the embeddings of some tokens."""
    module, forward = family.embedding, family.embedding.forward
    weight = forward(ids).to(contexts)
    rows = []
    for c in range(len(ids)):
        row = list(weight[c])
        for m, place in enumerate(places[c]):
            row[place] = contexts[c, m]
        rows.append(torch.stack(row))
    module.forward = lambda ids: torch.stack(rows)
    try:
        return F.normalize(family.text(ids, mask), dim=-1)
    finally:
        module.forward = forward


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_equal_those_of_the_library(kind, precision, made):
    family = made(kind)
    backbone = load_backbone(str(family.directory), precision)
    with exactly(family) if precision == "float64" else nullcontext(), torch.no_grad():
        text = F.normalize(family.text(*family.ids(TEXTS)), dim=-1)
        image = F.normalize(family.image(_cast(family.pixels(IMAGES), getattr(torch, precision))), dim=-1)
    assert (backbone.template_features("a photo of a {}.", NAMES) - text).abs().max() < TOLERANCE[precision]
    assert (backbone.image(IMAGES) - image).abs().max() < TOLERANCE[precision]
    assert (text[0] - text[1]).abs().max() > 1e-3 and (image[0] - image[1]).abs().max() > 1e-3
    assert isinstance(backbone.text, GeneralTextEncoder) == (kind not in CLIP_SHAPED)
    assert backbone.logit_scale.shape == ()


def _cast(pixels, dtype):
    if isinstance(pixels, torch.Tensor):
        return pixels.to(dtype)
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in pixels.items()}


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in CLIP_SHAPED])
def test_gradients_are_those_of_a_spliced_forward_pass(kind, position, made):
    family = made(kind)
    backbone = load_backbone(str(family.directory), "float64")
    with exactly(family):
        _compare_gradients(family, backbone, position)


def _compare_gradients(family, backbone, position):
    M, classes = 3, backbone.class_tokens(NAMES)
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(2, M, backbone.token_width, dtype=torch.float64, generator=generator, requires_grad=True)
    layout = backbone.text._layout(classes, M, position)
    ours = backbone.text(context, classes, position)
    mask = layout.mask if family.ids(TEXTS[:1])[1] is not None else None
    theirs = torch.stack(
        [spliced(family, layout.ids, mask, own.expand(len(NAMES), M, -1), layout.places.tolist()) for own in context]
    )
    assert (ours - theirs).abs().max() < 1e-10
    weights = torch.randn(ours.shape, dtype=torch.float64, generator=generator)
    ((of_ours,), (of_theirs,)) = (torch.autograd.grad((x * weights).sum(), context) for x in (ours, theirs))
    assert (of_ours - of_theirs).abs().max() < 1e-10 * of_theirs.abs().max()
    assert of_theirs.abs().min() > 0, "this test cannot detect an error in a vector that is not read"


def test_pieces_and_class_specific_contexts_give_the_same_features(made):
    backbone = load_backbone(str(made("siglip").directory), "float64")
    classes = backbone.class_tokens(NAMES)
    context = torch.randn(3, 2, backbone.token_width, dtype=torch.float64, requires_grad=True)
    whole = backbone.text(context, classes)
    small = replace(backbone.text, memory=4 * backbone.text._kept[backbone.text.positions])
    of_each = backbone.text(context[:, None].expand(-1, len(NAMES), -1, -1), classes)
    for other in (small(context, classes), of_each, torch.stack(backbone.text.each(list(context), classes))):
        gradients = [
            torch.autograd.grad(x.square().cumsum(-1).sum(), context, retain_graph=True)[0] for x in (whole, other)
        ]
        assert torch.allclose(whole, other, atol=1e-12) and torch.allclose(*gradients, atol=1e-10)


@pytest.mark.parametrize(
    "kind", ["siglip", "altclip", pytest.param("mobileclip", marks=pytest.mark.slow), "biomedclip"]
)
def test_fedpgp_agrees_with_the_oracle(kind, made, monkeypatch):
    family = made(kind)
    backbones = {p: load_backbone(str(family.directory), p) for p in ("float64", "float32")}
    text, masked = backbones["float64"].text, family.ids(TEXTS[:1])[1] is not None

    def prompt_features(clip, tokenizer, context, names, tail="{}."):
        layout = text._layout(clip.class_tokens(names, tail), len(context), "end")
        own = context.expand(len(names), *context.shape)
        return spliced(family, layout.ids, layout.mask if masked else None, own, layout.places.tolist())

    def template_features(clip, tokenizer, template, names):
        with torch.no_grad():
            return F.normalize(family.text(*family.ids([template.format(name) for name in names])), dim=-1)

    for module in (oracle, promptfl):
        monkeypatch.setattr(module, "prompt_features", prompt_features)
    monkeypatch.setattr(oracle, "template_features", template_features)
    monkeypatch.setattr(tiny, "random_features", partial(tiny.random_features, width=backbones["float64"].image.width))
    method = FedPGP(**agreement.HYPER, bottleneck=2, mu=0.7, tau=0.4)
    with exactly(family):
        agreement.check_agreement(method, lambda world: oracle.run(world, 0.7, 0.4), backbones, monkeypatch, rounds=3)


@pytest.mark.parametrize("kind", ["siglip", "mobileclip", "biomedclip", "efficientnet"])
def test_patches_are_the_positions_of_the_pooled_feature(kind, made):
    image = load_backbone(str(made(kind).directory), "float64").image
    pixels = image.processor(images=IMAGES, return_tensors="pt")["pixel_values"]
    patches = image.encode(pixels, "patches")
    assert patches.shape == (2, image.patches, image.width) and image.patches > 1
    assert torch.allclose(patches.norm(dim=-1), torch.ones(patches.shape[:2], dtype=torch.float64))
    if kind in ("mobileclip", "efficientnet"):  # a mean of projected positions
        positions = image.positions(pixels.double())
        assert torch.allclose(F.normalize(positions.mean(1), dim=-1), image.encode(pixels), atol=1e-10)


def test_siglips_own_tokenizer_drops_capitals_and_punctuation(tmp_path):
    family = of_transformers("siglip", tmp_path)
    tokenizer = sentence_piece_model(tmp_path)
    backbone = load_backbone(str(family.directory))
    names = ("Golden Retriever!", "tabby-cat", "Ferry")
    ids = tokenizer([f"A Photo of a {name}." for name in names], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        expected = F.normalize(family.model.get_text_features(**ids).pooler_output, dim=-1)
    assert (backbone.template_features("A Photo of a {}.", names) - expected).abs().max() < 1e-5
    assert torch.equal(
        backbone.template_features("a photo of a {}", names), backbone.template_features("A photo of a {}.", names)
    )


def test_a_tokenizer_with_more_tokens_than_the_tower_reads_is_refused(tmp_path):
    directory = of_transformers("chinese_clip", tmp_path).directory
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] |= {f"more{i}": len(content["model"]["vocab"]) + i for i in range(3)}
    file.write_text(json.dumps(content))
    with raises(CheckpointError, where=str(directory), problem="the text tower reads only"):
        load_backbone(str(directory))


def test_towers_without_a_common_space_are_refused(tmp_path, open_clip):
    family = of_open_clip("timm-siglip", tmp_path, open_clip)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["embed_dim"] = 32
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    weights = dict(family.model.state_dict())
    for name in ("text.text_projection.weight", "text.text_projection.bias"):
        weights[name] = weights[name][:32].clone()
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    with raises(CheckpointError, problem="have 96 dimensions, but text features have 32"):
        load_backbone(str(tmp_path))


def test_a_context_that_is_too_long_and_deeper_vectors_are_refused(made):
    backbone = load_backbone(str(made("siglip").directory))
    classes = backbone.class_tokens(NAMES)
    with raises(CheckpointError, remedy="Shorten the context or the class names"):
        backbone.text(torch.zeros(1, 62, backbone.token_width), classes)
    deep = Prompt(torch.zeros(1, 2, backbone.token_width), torch.zeros(1, 1, 2, backbone.token_width))
    with raises(CheckpointError, where="backbone.checkpoint", problem="vectors or adapters in its layers"):
        backbone.text(deep, classes)


def test_errors_of_openclip_are_one_line(tmp_path, open_clip):
    with raises(CheckpointError, where="open_clip:ViT-Z-1/openai", problem="'ViT-Z-1'"):
        load_backbone("open_clip:ViT-Z-1/openai")
    with raises(CheckpointError, problem="no weights 'unknown'", remedy="open_clip:ViT-B-32/openai"):
        load_backbone("open_clip:ViT-B-32/unknown")
    family = of_open_clip("mobileclip", tmp_path, open_clip)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    for section, key, value in (("text_cfg", "width", 64), ("vision_cfg", "timm_model_name", "no_such_tower")):
        changed = json.loads(json.dumps(config))
        changed["model_cfg"][section][key] = value
        (tmp_path / "open_clip_config.json").write_text(json.dumps(changed))
        with raises(CheckpointError, where=str(family.directory), problem="OpenCLIP cannot read it") as caught:
            load_backbone(str(family.directory))
        assert "\n" not in str(caught.value)


def test_other_openclip_weights_are_downloaded_if_there_are_no_safetensors(tmp_path, open_clip, monkeypatch):
    family = of_open_clip("mobileclip", tmp_path, open_clip)
    torch.save(family.model.state_dict(), tmp_path / "kept.bin")
    (tmp_path / "open_clip_model.safetensors").unlink()
    (tmp_path / "config.json").write_text("{}")  # a file of another library, which the prefix excludes
    asked = []

    def fetch(name, allow_patterns):
        asked.append(name)
        if "open_clip_pytorch_model.bin" in allow_patterns:
            (tmp_path / "kept.bin").rename(tmp_path / "open_clip_pytorch_model.bin")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    features = load_backbone("hf-hub:somebody/model").template_features("a photo of a {}.", NAMES)
    with torch.no_grad():
        expected = F.normalize(family.text(*family.ids(TEXTS)), dim=-1)
    assert (features - expected).abs().max() < 1e-5 and asked == ["somebody/model"] * 2


@pytest.mark.parametrize(
    ("section", "values", "where", "got"),
    [
        (
            "text_cfg",
            {"tokenizer_kwargs": {"trust_remote_code": True}},
            "text_cfg.tokenizer_kwargs",
            "trust_remote_code",
        ),
        ("text_cfg", {"hf_model_name": "../elsewhere"}, "text_cfg.hf_model_name", "../elsewhere"),
        ("text_cfg", {"hf_model_name": "/etc"}, "text_cfg.hf_model_name", "/etc"),
        ("vision_cfg", {"timm_model_name": "hf-hub:me/model"}, "vision_cfg.timm_model_name", "hf-hub:me/model"),
    ],
)
def test_a_config_that_would_run_or_read_something_else_is_refused(section, values, where, got, tmp_path, open_clip):
    of_open_clip("biomedclip", tmp_path, open_clip)
    file = tmp_path / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"][section] |= values
    file.write_text(json.dumps(config))
    with raises(CheckpointError, where=where, got=got):
        load_backbone(str(tmp_path))


def test_a_model_of_openclip_that_is_larger_than_its_weights_takes_no_memory(tmp_path, open_clip):
    """Four gigabytes of parameters, and weights of some kilobytes."""
    of_open_clip("eva", tmp_path, open_clip)
    content = json.loads((tmp_path / "open_clip_config.json").read_text())
    content["model_cfg"]["vision_cfg"] |= {"timm_model_name": "vit_giant_patch14_224", "image_size": 224}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    with raises(CheckpointError, problem="but the weights have only"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "where"),
    [("num_hidden_layers", 10**5, "num_hidden_layers in"), ("vocab_size", 10**6, "open_clip_model.safetensors")],
)
def test_the_text_tower_of_a_config_within_a_checkpoint_has_limits(key, value, where, tmp_path, open_clip):
    of_open_clip("biomedclip", tmp_path, open_clip)
    content = json.loads((tmp_path / "text" / "config.json").read_text())
    (tmp_path / "text" / "config.json").write_text(json.dumps(content | {key: value, "hidden_size": 768}))
    with raises(CheckpointError, where=where):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("place", ["tokenizer_config.json", "text/config.json"])
def test_code_in_a_checkpoint_is_not_run_nor_asked_about(place, tmp_path, open_clip, monkeypatch):
    of_open_clip("biomedclip", tmp_path, open_clip)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    (tmp_path / place).parent.joinpath("evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    content = json.loads((tmp_path / place).read_text())
    content |= {"model_type": "unknown", "tokenizer_class": "Evil"}
    content["auto_map"] = {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    (tmp_path / place).write_text(json.dumps(content))
    with raises(CheckpointError, where=str(tmp_path)):
        load_backbone(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_without_the_library_the_extra_is_named(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {"embed_dim": 8, "vision_cfg": {"timm_model_name": "x"}, "text_cfg": {}}})
    )
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    known = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "open_clip"}
    sys.modules["open_clip"] = None
    try:
        with raises(CheckpointError, where=str(tmp_path), remedy="fedpgp[open-clip]"):
            load_backbone(str(tmp_path))
    finally:
        del sys.modules["open_clip"]
        sys.modules.update(known)


@pytest.mark.by_hand
@pytest.mark.parametrize("kind", ["siglip", "mobileclip", "biomedclip", "convnext", "efficientnet"])
def test_a_run_is_trained_resumed_and_exported(kind, made, tmp_path):
    checkpoint = str(made(kind).directory)
    changes = [
        "task.clients=2",
        "task.shots=1",
        "federation.local_epochs=1",
        "fedpgp.context_length=4",
        f"backbone.checkpoint={checkpoint}",
    ]
    shown = {"cache": tmp_path / "cache"}
    run = fedpgp.run("fedpgp", changes=[*changes, "federation.rounds=1"], output=tmp_path / "run", **shown)
    for method in ("fedplot", "fedcocoop", "fedclip"):
        assert fedpgp.run(method, changes=[*changes, "federation.rounds=1"], **shown).results["rounds"] == 1
    for method in ("fedvpt", "fedmaple"):
        with pytest.raises(ConfigError, match=method):
            fedpgp.run(method, changes=changes, **shown)
    assert (export(run, tmp_path / "head", "clip-head") / "README.md").is_file()
    again = load_backbone(str(tmp_path / "head"))  # a copy of a checkpoint that others cannot download
    assert torch.equal(again.template_features("{}", NAMES), load_backbone(checkpoint).template_features("{}", NAMES))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["siglip", "mobileclip", "biomedclip"])
def test_worker_processes_give_the_same_bits(kind, made, in_processes, small_source, tmp_path, monkeypatch):
    monkeypatch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: small_source)
    checkpoint = f"backbone.checkpoint={made(kind).directory}"
    changes = ["task.clients=2", "task.shots=1", "federation.rounds=1", "fedpgp.context_length=4", checkpoint]
    one, two = (
        fedpgp.run("fedpgp", changes=changes, cache=tmp_path / "cache", workers=count).results["final"]
        for count in (1, 2)
    )
    assert one == two
