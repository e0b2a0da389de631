"""Compare checkpoints of other libraries with these libraries, and read files that are not trusted."""

import copy
import importlib.util
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from raising import raises
from references import references
from safetensors.torch import save_file

import fedpgp
from fedpgp import assets
from fedpgp.backbone import load_backbone
from fedpgp.backbone.convert import standard_processor, to_clip_model
from fedpgp.backbone.files import licence_of, openai_tokenizer
from fedpgp.data.read_image import read_image
from fedpgp.errors import CheckpointError, ConfigError

RESNET = {"embed_dim": 96, "width": 128, "layers": 2, "size": 64, "context": 77, "blocks": (1, 2, 1, 1), "channels": 8}
RN50 = {
    "embed_dim": 1024,
    "width": 512,
    "layers": 12,
    "size": 224,
    "context": 77,
    "blocks": (3, 4, 6, 3),
    "channels": 64,
}
NAMES = ("ant", "red apple", "fire_engine", "café's pâté", "Boeing 737-800")
SMALL = {"embed_dim": 96, "width": 128, "layers": 2, "patch": 8, "size": 32, "context": 77}
REAL = {"embed_dim": 512, "width": 512, "layers": 12, "patch": 16, "size": 224, "context": 77}


def module_of(package: str, name: str):
    """Import one file of an installed package, without the dependencies of the package."""
    with references():
        (directory,) = importlib.util.find_spec(package).submodule_search_locations
        spec = importlib.util.spec_from_file_location(f"reference_{package}_{name}", Path(directory) / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference_tokenizer():
    return module_of("clip", "simple_tokenizer").SimpleTokenizer()


@pytest.fixture(scope="module")
def tokenizer():
    return openai_tokenizer()


@pytest.fixture(autouse=True)
def one_tokenizer(tokenizer, monkeypatch):
    """Share one tokenizer among checkpoints without a tokenizer, because reading its 49,408 tokens takes long."""
    monkeypatch.setattr("fedpgp.backbone.files.openai_tokenizer", lambda: tokenizer)


@pytest.fixture(scope="module")
def open_clip_model():
    """OpenCLIP's own CLIP."""
    with references():
        from open_clip.model import CLIP

        yield CLIP


def randomised(model, scale=0.05):
    """Return the model with weights that are not close to zero, so that mistakes are visible."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        norm = name.endswith(("ln_1.weight", "ln_2.weight")) or (".bn" in name and name.endswith("weight"))
        conv = weight.dim() == 4 and hasattr(model.visual, "layer1")  # many layers need larger weights
        weight.data = 1 + 0.1 * noise if norm else noise * ((2 / weight[0].numel()) ** 0.5 if conv else scale)
    for name, weight in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            noise = torch.rand(weight.shape, generator=generator)
            weight.data = 0.1 * noise + (0.5 if name.endswith("var") else 0)
    model.logit_scale.data = torch.tensor(3.0)
    return model.float().eval().requires_grad_(False)


def openai_model(shape):
    CLIP = module_of("clip", "model").CLIP
    heads, layers = shape["width"] // 64, shape["layers"]
    tower = (
        (shape["blocks"], shape["channels"], None) if "blocks" in shape else (layers, wide_of(shape), shape["patch"])
    )
    model = CLIP(shape["embed_dim"], shape["size"], *tower, shape["context"], 49408, shape["width"], heads, layers)
    return randomised(model)


@pytest.fixture(scope="module")
def vit():
    return openai_model(SMALL)


@pytest.fixture(scope="module")
def resnet():
    return openai_model(RESNET)


def wide_of(shape):
    return 768 if shape is REAL else 192


def texts(tokenizer, names=NAMES, length=77):
    rows = [[49406, *tokenizer.encode(f"a photo of a {name.replace('_', ' ')}."), 49407] for name in names]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


def check(checkpoint, model, shape, tokenizer):
    """Return our backbone after a comparison of its text and image features with the reference."""
    backbone = load_backbone(str(checkpoint))
    pixels = torch.randn(2, 3, shape["size"], shape["size"], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        of_text = F.normalize(model.encode_text(texts(tokenizer)), dim=-1)
        of_images = F.normalize(model.encode_image(pixels), dim=-1)
    ours = backbone.template_features("a photo of a {}.", NAMES), backbone.image.encode(pixels)
    difference = max((a - b).abs().max().item() for a, b in zip(ours, (of_text, of_images), strict=True))
    print(f"largest difference {difference:.1e}")
    assert difference < 1e-4
    assert backbone.logit_scale.item() == pytest.approx(3.0)
    spread = (of_text[0] - of_text[1]).abs().max(), (of_images[0] - of_images[1]).abs().max()
    assert min(spread) > 0.01, "equal features cannot show an error"
    return backbone


def saved_open_clip(directory, CLIP, shape, quick_gelu=False, as_bin=False):
    vision = {"image_size": shape["size"], "layers": shape["layers"], "width": wide_of(shape)}
    if "blocks" in shape:
        vision |= {"layers": list(shape["blocks"]), "width": shape["channels"]}
    else:
        vision["patch_size"] = shape["patch"]
    text = {"context_length": 77, "vocab_size": 49408, "width": shape["width"], "heads": shape["width"] // 64}
    config = {"embed_dim": shape["embed_dim"], "vision_cfg": vision, "text_cfg": {**text, "layers": shape["layers"]}}
    model = randomised(CLIP(**config, quick_gelu=quick_gelu))
    config |= {"quick_gelu": True} if quick_gelu else {}
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "interpolation": "bicubic"}
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (directory / "open_clip_config.json").write_text(json.dumps(content))
    weights = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    if as_bin:
        torch.save(weights, directory / "open_clip_pytorch_model.bin")
    else:
        save_file(weights, directory / "open_clip_model.safetensors")
    return model


def saved_script(file, model, size, dtype=torch.float32):
    """Save a TorchScript archive like OpenAI's files; only its weights are used here."""

    class Program(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual, self.transformer, self.ln_final = model.visual, model.transformer, model.ln_final
            self.token_embedding = model.token_embedding
            self.positional_embedding, self.text_projection = model.positional_embedding, model.text_projection
            self.logit_scale = model.logit_scale
            self.register_buffer("input_resolution", torch.tensor(size))

        def forward(self, pixels):
            return self.visual(pixels) * self.logit_scale

    with torch.no_grad():
        program = torch.jit.trace(Program().eval(), torch.zeros(1, 3, size, size, dtype=dtype), check_trace=False)
    torch.jit.save(program, str(file))


@pytest.mark.parametrize("kind", ["script", "state dict", "safetensors"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_openais_files_give_the_features_of_openais_code(kind, vit, tmp_path, reference_tokenizer):
    file = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pt")
    if kind == "script":
        saved_script(file, vit, SMALL["size"])
    elif kind == "state dict":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in vit.state_dict().items()}}, file)
    else:
        save_file(vit.state_dict(), file)
    check(file, vit, SMALL, reference_tokenizer)


@pytest.mark.parametrize(("quick_gelu", "as_bin"), [(True, False), (False, True)])
def test_openclips_files_give_the_features_of_openclip(
    quick_gelu, as_bin, tmp_path, open_clip_model, reference_tokenizer
):
    model = saved_open_clip(tmp_path, open_clip_model, SMALL, quick_gelu, as_bin)
    processor = check(tmp_path, model, SMALL, reference_tokenizer).image.processor
    assert list(processor.settings["mean"]) == [0.5, 0.4, 0.3] and processor.settings["size"] == 32


@pytest.fixture(scope="module")
def openais(vit, tokenizer, tmp_path_factory):
    """A checkpoint in OpenAI's format."""
    file = tmp_path_factory.mktemp("openai") / "x.safetensors"
    save_file(vit.state_dict(), file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedpgp.backbone.files.openai_tokenizer", lambda: tokenizer)
        return load_backbone(str(file))


@settings(max_examples=40)
@given(width=st.integers(8, 200), height=st.integers(8, 200))
@example(width=35, height=32)  # like 227 x 224 for 224 pixels: 1.5 pixels are cropped on each side
@example(width=32, height=37)
def test_a_checkpoint_in_openais_form_has_openais_crop_and_one_of_transformers_its_own(openais, compact, width, height):
    with references():
        from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture, mean = Image.fromarray(values), (0.48145466, 0.4578275, 0.40821073)
    deviation = (0.26862954, 0.26130258, 0.27577711)
    whole = [Resize(32, interpolation=InterpolationMode.BICUBIC), CenterCrop(32)]  # as in OpenAI's clip.py
    expected = Compose([*whole, ToTensor(), Normalize(mean, deviation)])(picture)
    assert torch.equal(openais.image.processor(images=[picture], return_tensors="pt")["pixel_values"][0], expected)
    assert read_image(values, square=32).tobytes() == Compose(whole)(picture).tobytes()
    side, shorter = compact.image.size[0], min(picture.size)
    sides = [side if length == shorter else int(side * length / shorter) for length in picture.size]
    left, top = ((length - side) // 2 for length in sides)
    cut = picture.resize(sides, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
    expected = (np.asarray(cut) / 255 - mean) / deviation
    found = compact.image.processor(images=[picture], return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(found.transpose(1, 2, 0), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["script", "state dict", "open-clip"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_resnets_give_the_features_of_openais_and_openclips_code(kind, resnet, tmp_path, request, reference_tokenizer):
    where, model = tmp_path / "RN.pt", resnet
    if kind == "open-clip":
        where, model = tmp_path, saved_open_clip(tmp_path, request.getfixturevalue("open_clip_model"), RESNET)
    elif kind == "script":
        half = copy.deepcopy(resnet).half()
        saved_script(where, half, RESNET["size"], torch.float16)
        model = half.float()
    else:
        torch.save(model.state_dict(), where)
    image = check(where, model, RESNET, reference_tokenizer).image
    assert (image.patches, image.layers, image.size) == (4, 0, (64, 64))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pool = model.visual.attnpool
        model.visual.attnpool = torch.nn.Identity()
        places = model.visual(pixels).flatten(2).transpose(1, 2)
        model.visual.attnpool = pool
        expected = torch.stack([torch.stack([pool.c_proj(pool.v_proj(place)) for place in row]) for row in places])
        asked = []  # the query is the position instead of the mean
        rows = torch.cat([places.mean(1, keepdim=True), places], dim=1) + pool.positional_embedding
        for number in range(1, rows.shape[1]):
            q, k, v = pool.q_proj(rows[:, number]), pool.k_proj(rows), pool.v_proj(rows)
            q, k, v = (x.unflatten(-1, (pool.num_heads, -1)) for x in (q, k, v))
            weight = torch.softmax((q[:, None] * k).sum(-1) / q.shape[-1] ** 0.5, dim=1)
            asked.append(pool.c_proj((weight[..., None] * v).sum(1).flatten(1)))
    assert (image.encode(pixels, "patches") - F.normalize(expected, dim=-1)).abs().max() < 1e-5
    other = load_backbone(str(where), patches="attention").image
    attended = F.normalize(torch.stack(asked, dim=1), dim=-1)
    assert (other.encode(pixels, "patches") - attended).abs().max() < 1e-5
    assert other.fingerprint != image.fingerprint
    assert torch.equal(other.encode(pixels), image.encode(pixels))


def test_another_kind_of_patches_is_refused_if_there_is_only_one():
    with raises(CheckpointError, where="backbone.patches", got="attention", remedy="--set backbone.patches=value"):
        load_backbone("pictoclip", patches="attention")


def test_methods_that_change_the_image_tower_are_refused_on_a_resnet(resnet, tmp_path, small_source, monkeypatch):
    torch.save(resnet.state_dict(), tmp_path / "RN.pt")
    backbone = load_backbone(str(tmp_path / "RN.pt"))
    monkeypatch.setattr("fedpgp.runs.tasks.load_source", lambda *_: small_source)
    monkeypatch.setattr("fedpgp.runs.setup.configured_backbone", lambda *_: backbone)
    changes = ["task.clients=1", "task.shots=1", "federation.rounds=1"]
    for name in ("fedvpt", "fedmaple"):
        with pytest.raises(ConfigError, match=name):
            fedpgp.run(name, changes=changes, cache=tmp_path / "cache")
    for name in ("fedpgp", "fedplot", "fedotp"):
        assert fedpgp.run(name, changes=changes, cache=tmp_path / "cache").results["rounds"] == 1


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (
            {"visual.layer2.0.conv2.weight": (1, 2, 3, 3)},
            {"where": "vision_model.layer2.0.conv2.weight", "allowed": "(16, 16, 3, 3)", "got": (1, 2, 3, 3)},
        ),
        ({"visual.layer1.0.bn1.bias": None}, {"problem": "vision_model.layer1.0.bn1.bias is missing"}),
        ({"visual.conv3.weight": None}, {"problem": "vision_model.conv3.weight", "remedy": "RN50"}),
        (
            {"visual.attnpool.c_proj.weight": (5, 256), "visual.attnpool.c_proj.bias": (5,)},
            {"where": "RN.pt", "problem": "image features have 5"},
        ),
    ],
)
def test_an_incomplete_resnet_is_refused(change, fields, resnet, tmp_path):
    weights = resnet.state_dict()
    for name, shape in change.items():
        weights.pop(name) if shape is None else weights.update({name: torch.zeros(shape)})
    torch.save(weights, tmp_path / "RN.pt")
    with raises(CheckpointError, **fields) as caught:
        load_backbone(str(tmp_path / "RN.pt"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sharded", [False, True])
def test_transformers_older_files_are_read_and_run_nothing(
    sharded, vit, tokenizer, tmp_path, monkeypatch, reference_tokenizer
):
    """The older files are pytorch_model.bin, or its shards with an index."""
    model, where = to_clip_model(vit.state_dict(), "x"), tmp_path / "older"
    model.config.save_pretrained(where)
    weights = model.state_dict()
    shards = [dict(list(weights.items())[start::2]) for start in (0, 1)] if sharded else [weights]
    names = [f"pytorch_model-{i + 1:05d}-of-00002.bin" for i in (0, 1)] if sharded else ["pytorch_model.bin"]
    for name, shard in zip(names, shards, strict=True):
        torch.save(shard, where / name)
    if sharded:
        index = {"metadata": {}, "weight_map": {key: n for n, s in zip(names, shards, strict=True) for key in s}}
        (where / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    save_assets(where, standard_processor(SMALL["size"]))
    before = check(where, vit, SMALL, reference_tokenizer).fingerprint
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: tokenizer)  # reading takes long
    shards[0]["logit_scale"] = torch.tensor(1.0)
    torch.save(shards[0], where / names[0])
    assert load_backbone(str(where)).fingerprint != before
    target = tmp_path / "done"
    torch.save({"a": Malicious(str(target))}, where / names[0])
    with raises(CheckpointError, where=str(where), problem="contains more than tensors"):
        load_backbone(str(where))
    assert not target.exists()


def save_assets(directory, processor):
    """Write the files of a transformers checkpoint other than its weights."""
    for asset in ("tokenizer.json", "tokenizer_config.json"):
        (directory / asset).write_bytes((assets.DIRECTORY / "clip-tokenizer" / asset).read_bytes())
    processor.save_pretrained(directory)


@pytest.mark.by_hand
def test_rn50(tmp_path, reference_tokenizer):
    model = openai_model(RN50)
    torch.save(model.state_dict(), tmp_path / "RN50.pt")
    check(tmp_path / "RN50.pt", model, RN50, reference_tokenizer)


@pytest.mark.by_hand
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("form", ["openai", "open-clip", "transformers"])
def test_vit_b_16_in_every_form(form, tmp_path, request, reference_tokenizer):
    where = tmp_path
    if form == "openai":
        where, model = tmp_path / "ViT-B-16.pt", openai_model(REAL)
        saved_script(where, model, 224)
    else:
        model = saved_open_clip(tmp_path, request.getfixturevalue("open_clip_model"), REAL, quick_gelu=True)
    if form == "transformers":
        backbone, where = load_backbone(str(tmp_path)), tmp_path / "converted"
        backbone.image.model.half().save_pretrained(where, max_shard_size="100MB")
        save_assets(where, standard_processor(REAL["size"]))
        assert len(list(where.glob("*.safetensors"))) > 1, "shards, in half precision"
        model = model.half().float()
    check(where, model, REAL, reference_tokenizer)


@settings(max_examples=50)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x17F), max_size=40))
def test_the_tokenizer_has_the_reference_tokenizers_ids(reference_tokenizer, tokenizer, text):
    import ftfy

    plain = ftfy.fix_text(text)
    if plain != text or "&" in text or any("\x7f" <= character <= "\xa0" for character in text):
        return  # tokenizers of transformers do not repair broken text
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == reference_tokenizer.encode(text)


# ------------------------------------------------------------------------------------------------------ untrusted files


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_a_malicious_pickle_is_not_executed(tmp_path):
    target, file = str(tmp_path / "done"), tmp_path / "x.pt"
    torch.save({"a": Malicious(target)}, file)
    with raises(CheckpointError, where="x.pt"):
        load_backbone(str(file))
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as archive:  # looks like a TorchScript archive
        archive.writestr("y/version", b"3")
        archive.writestr("y/data.pkl", pickle.dumps(Malicious(target), protocol=2))
        archive.writestr("y/constants.pkl", b"")
    with raises(CheckpointError, where="y.pt", problem="contains more than tensors"):
        load_backbone(str(tmp_path / "y.pt"))
    assert not Path(target).exists()


CONFIG = '{"model_cfg": {"vision_cfg": {%s}, "text_cfg": {%s "heads": 2}}, "preprocess_cfg": {%s}}'
BUILDS = {
    "a class": b"c__torch__.x\nModule\n",
    "a type": b"ctorch.jit._pickle\nrestore_type_tag\n",
    "a function": b"ctorch._utils\n_rebuild_tensor_v2\n",
    "a container": b"ccollections\nOrderedDict\n",
}


@pytest.mark.parametrize("what", BUILDS)
@pytest.mark.parametrize("state", ["}X\x06\x00\x00\x00markedK\x01s", "N}X\x06\x00\x00\x00markedK\x01s\x86"])
def test_an_archive_cannot_change_our_objects(what, state, tmp_path):
    """Pickle's BUILD sets attributes of the preceding object."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/version", b"3")
        archive.writestr("x/data.pkl", b"\x80\x02" + BUILDS[what] + state.encode("latin1") + b"b.")
        archive.writestr("x/constants.pkl", b"")
    with raises(CheckpointError, where="x.pt", problem="contains more than tensors"):
        load_backbone(str(tmp_path / "x.pt"))
    from collections import OrderedDict

    from fedpgp.backbone import torch_files as ours
    from fedpgp.runtime.unpickle import Name

    for one in (ours._Module, ours.View, Name, torch._utils._rebuild_tensor_v2, OrderedDict):
        assert not hasattr(one, "marked")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "no data.pkl"),
        (b"\x80\x02c__torch__.x\nModule\n)\x81q\x00}(X\x01\x00\x00\x00ah\x00ub.", "recursion"),
        (b"\x80\x02c__torch__.x\nModule\n)\x81}b.", "no module with tensors"),
    ],
)
def test_an_archive_without_tensors_is_refused_in_a_line(data, reason, tmp_path):
    """The archives have no data, a module that contains itself, or an empty module."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/version", b"3")
        archive.writestr("x/constants.pkl", b"")
        if data is not None:
            archive.writestr("x/data.pkl", data)
    with raises(CheckpointError, where="x.pt", problem=reason):
        load_backbone(str(tmp_path / "x.pt"))


def damaged(directory, *, weights=None, config=None):
    """Create a damaged directory of an OpenCLIP checkpoint."""
    good = {"model_cfg": {"vision_cfg": {}, "text_cfg": {"heads": 2}}}
    (directory / "open_clip_config.json").write_text(config or json.dumps(good))
    if weights is not None:
        save_file(
            {name: torch.zeros(shape) for name, shape in weights.items()}, directory / "open_clip_model.safetensors"
        )
    return str(directory)


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"config": "{"}, {"where": "open_clip_config.json"}),
        ({}, {"problem": "open_clip_model.safetensors"}),
        ({"weights": {"visual.trunk.stem.weight": (1,)}}, {"problem": "'visual.trunk.stem.weight'"}),
        ({"weights": {"logit_bias": (1,)}}, {"problem": "'logit_bias'"}),
        ({"weights": {"what": (1,)}}, {"problem": "'what'", "remedy": "ViT-B-32"}),
        ({"weights": {"logit_scale": (1,)}}, {"problem": "'text_model.embeddings.token_embedding.weight' is missing"}),
    ],
)
def test_a_checkpoint_that_is_not_a_clip_is_refused_in_a_line(given, fields, tmp_path):
    with raises(CheckpointError, **fields) as caught:
        load_backbone(damaged(tmp_path, **given))
    assert "\n" not in str(caught.value)


def test_towers_that_disagree_and_files_cut_short_are_refused(vit, tmp_path):
    weights = vit.state_dict()
    save_file({**weights, "text_projection": torch.zeros(128, 64)}, tmp_path / "a.safetensors")
    with raises(CheckpointError, where="a.safetensors", problem="have 64 dimensions, but image features have 96"):
        load_backbone(str(tmp_path / "a.safetensors"))
    save_file({**weights, "ln_final.gain": torch.zeros(5)}, tmp_path / "a.safetensors")
    with raises(CheckpointError, where="a.safetensors", problem="final_layer_norm.gain does not belong"):
        load_backbone(str(tmp_path / "a.safetensors"))
    save_file({**weights, "ln_final.bias": torch.zeros(5)}, tmp_path / "b.safetensors")
    with raises(CheckpointError, where="final_layer_norm.bias", allowed="(128,)", got=(5,)):
        load_backbone(str(tmp_path / "b.safetensors"))
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(whole[: len(whole) // 2])
    with raises(CheckpointError, where="c.safetensors"):
        load_backbone(str(tmp_path / "c.safetensors"))
    (tmp_path / "d.pt").write_bytes(b"not a checkpoint")
    with raises(CheckpointError, where="d.pt"):
        load_backbone(str(tmp_path / "d.pt"))


@pytest.mark.parametrize("kind", ["clap", "bert"])
def test_other_models_of_transformers_are_refused(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with raises(CheckpointError, where="model_type", allowed="'clip'", got=kind):
        load_backbone(str(tmp_path))


def test_offline_mode_sends_no_request_to_the_hub(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with raises(CheckpointError, where="nobody/nothing", remedy="--backbone photoclip") as caught:
        load_backbone("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_the_licence_is_what_the_model_card_says(tmp_path, backbone):
    assert backbone.licence == "apache-2.0"
    assert licence_of(tmp_path) == "not stated"
    (tmp_path / "README.md").write_text('---\ntags: [x]\nlicense: "mit"\n---\nlicense: gpl\n')
    assert licence_of(tmp_path) == "mit"
    (tmp_path / "README.md").write_text("license: gpl\n")
    assert licence_of(tmp_path) == "not stated"
