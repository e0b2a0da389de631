"""Checkpoints that are made to run code, to read other files, or to take all memory or time."""

import io
import json
import os
import shutil
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from families import edit
from raising import raises
from safetensors.torch import load_file, save_file

from fedpgp.backbone import limits, load_backbone
from fedpgp.backbone.archive import read_tensors
from fedpgp.backbone.files import licence_of
from fedpgp.backbone.foreign_configs import check_images, check_values
from fedpgp.backbone.foreign_files import inside, parse
from fedpgp.backbone.foreign_tokenizers import check_expression
from fedpgp.data.sources import cifar
from fedpgp.errors import CheckpointError
from fedpgp.runtime.unpickle import OPERATIONS

STORAGE = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu%stQ"  # a persistent id; %s: the number of values
TOKENIZER = "tokenizer.json"
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def integer(number):
    return b"J" + struct.pack("<i", number)


def tensor(size, stride, count=1, offset=0):
    """Operations that make a tensor in a storage."""
    lengths = b"".join(map(integer, size)), b"".join(map(integer, stride))
    storage = STORAGE % integer(count)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(%s%s(%st(%st\x89}tR" % (storage, integer(offset), *lengths)


def archive(file, content, script=True, data=b"\0\0\0\0", compression=zipfile.ZIP_STORED):
    """Write an archive of PyTorch. content: operations of a pickle."""
    with zipfile.ZipFile(file, "w", compression) as made:
        made.writestr("x/data.pkl", b"\x80\x02" + content + b".")
        made.writestr("x/data/0", data)
        made.writestr("x/version", b"3\n")
        if script:
            made.writestr("x/constants.pkl", b"\x80\x02).")
    return file


def module(attributes):
    return b"c__torch__.x\nModule\n)\x81}(" + attributes + b"ub"


# ---------------------------------------------------------------------------------------------------- code, other files


@pytest.mark.parametrize("name", ["preprocessor_config.json", "tokenizer_config.json", "config.json"])
def test_custom_code_is_ignored_and_never_asked_about(name, copy, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks whether to run code"))
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')")
    classes = {"AutoConfig": "evil.Evil", "AutoImageProcessor": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    edit(copy / name, lambda content: content.update(auto_map=classes))
    load_backbone(str(copy))
    assert not (copy / "ran").exists()


def test_the_implementation_of_attention_is_never_that_of_a_file(copy):
    """It may be the name of a repository with compiled code."""
    usual = load_backbone(str(copy)).image.model.config._attn_implementation
    edit(copy / "config.json", lambda content: content.update(attn_implementation="eager"))
    edit(copy / "config.json", lambda content: content["vision_config"].update(_attn_implementation="eager"))
    config = load_backbone(str(copy)).image.model.config
    assert config._attn_implementation == config.vision_config._attn_implementation == usual != "eager"


@pytest.mark.parametrize("place", ["../x.safetensors", "sub/x.safetensors", "absolute", "..", "x.txt", 5])
def test_an_index_names_only_files_in_its_directory(place, copy):
    if place == "absolute":
        place = str(copy.parent / "x.safetensors")
    (copy / "sub").mkdir()
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    (copy / "model-1.safetensors").touch()
    for file in (copy / "sub" / "x.safetensors", copy.parent / "x.safetensors"):
        save_file(weights, file, metadata={"format": "pt"})
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(weights, place)}))
    with raises(CheckpointError, where="weight_map in", allowed="in the same directory"):
        load_backbone(str(copy))


def test_every_file_of_weights_that_is_read_changes_the_fingerprint(copy):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    (copy / "model-1.safetensors").touch()
    save_file(weights, copy / "other.safetensors", metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(weights, "other.safetensors")}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    before = load_backbone(str(copy)).fingerprint
    save_file({**weights, "logit_scale": torch.tensor(1.0)}, copy / "other.safetensors", metadata={"format": "pt"})
    after = load_backbone(str(copy))
    assert after.logit_scale == 1 and after.fingerprint != before


def test_an_index_of_too_many_files_is_refused(copy, monkeypatch):
    monkeypatch.setattr(limits, "SHARDS", 2)
    (copy / "model.safetensors").rename(copy / "model-1.safetensors")
    index = {"weight_map": {str(n): f"model-{n}.safetensors" for n in range(3)}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with raises(CheckpointError, where="weight_map", allowed="at most 2", got=3):
        load_backbone(str(copy))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", TOKENIZER, "tokenizer_config.json", "merges.txt"])
def test_a_link_that_leads_outside_is_refused(name, copy):
    target = copy.parent / "elsewhere"
    if (copy / name).exists():
        (copy / name).rename(target)
    else:
        target.write_text("a secret")
    (copy / name).symlink_to(target)
    with raises(CheckpointError, where=name, problem="outside of the checkpoint"):
        load_backbone(str(copy))


def test_the_links_in_the_cache_of_the_hub_are_followed(copy, tmp_path):
    home, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    home.mkdir(parents=True), blobs.mkdir()
    for number, file in enumerate(sorted(copy.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (home / file.name).symlink_to(Path("../../blobs") / str(number))
    assert load_backbone(str(home)).fingerprint == load_backbone(str(copy)).fingerprint
    (home / "text").mkdir()
    (home / "text" / "config.json").symlink_to(Path("../../../blobs/0"))
    assert inside(home / "text" / "config.json").is_file()


@pytest.mark.parametrize("name", ["config.json", "other.json", "tokenizer.json", "README.md"])
def test_a_pipe_in_place_of_a_file_does_not_block(name, copy):
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    if name == "README.md":
        assert licence_of(copy) == "not stated"
    else:
        with raises(CheckpointError, where=str(copy)):
            load_backbone(str(copy)).fingerprint  # noqa: B018


@pytest.mark.parametrize("key", ["vocab_file", "tokenizer_file", "merges_file"])
def test_a_tokenizer_reads_no_file_that_its_config_names(key, copy):
    (copy.parent / "secret").write_text("{}")
    before = load_backbone(str(copy)).class_tokens(["red panda"]).ids
    edit(copy / "tokenizer_config.json", lambda content: content.update({key: str(copy.parent / "secret")}))
    assert torch.equal(load_backbone(str(copy)).class_tokens(["red panda"]).ids, before)


def test_other_classes_of_tokenizers_and_processors_are_refused(copy):
    edit(copy / "tokenizer_config.json", lambda content: content.update(tokenizer_class="BertJapaneseTokenizer"))
    with raises(CheckpointError, where="tokenizer_class", got="BertJapaneseTokenizer"):
        load_backbone(str(copy))
    edit(copy / "preprocessor_config.json", lambda content: content.update(image_processor_type="SamImageProcessor"))
    with raises(CheckpointError, where="image_processor_type", got="SamImageProcessor"):
        load_backbone(str(copy))


# ------------------------------------------------------------------------------------------------- files of PyTorch


@pytest.mark.parametrize("script", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        ((2**15, 2**15), (0, 0)),
        ((2**30,), (0,)),
        ((2, 2), (2, 1)),
        ((1,), (1,), 1, 1),
        ((2**30, 2**30, 2**30), (0, 0, 0)),
    ],
)
def test_a_tensor_that_is_larger_than_its_storage_is_refused(shape, script, tmp_path):
    content = b"U\x01a" + tensor(*shape)
    file = archive(tmp_path / "x.pt", module(content) if script else b"}(" + content + b"u", script)
    assert file.stat().st_size < 1000
    with raises(CheckpointError, where="x.pt", problem="larger than its storage"):
        read_tensors(file)


@pytest.mark.parametrize(
    "shape", [((-1,), (1,)), ((1,), (-1,)), ((1,), (1,), 1, -1), ((1, 1), (1,)), ((1,) * 9, (1,) * 9)]
)
def test_a_tensor_with_a_false_shape_is_refused(shape, tmp_path):
    with raises(CheckpointError, where="x.pt", problem="more than tensors"):
        read_tensors(archive(tmp_path / "x.pt", b"}U\x01a" + tensor(*shape) + b"s", False))


def test_tensors_that_share_a_storage_many_times_are_refused(tmp_path):
    """Each is as large as the storage, but copies of all of them are needed."""
    names = [b"U\x02%02d" % number for number in range(50)]
    content = b"}(" + b"".join(name + tensor((1000,), (1,), 1000) for name in names) + b"u"
    with raises(CheckpointError, where="x.pt", problem="50 tensors need 200,000 bytes"):
        read_tensors(archive(tmp_path / "x.pt", content, False, bytes(4000)))


@pytest.mark.parametrize(
    "name", ["__builtin__\nbytearray", "torch\nByteStorage", "torch\nFloatTensor", "builtins\neval"]
)
def test_functions_that_only_take_memory_are_not_called(name, tmp_path):
    """PyTorch's own reader calls the first three: 100 bytes take a gigabyte."""
    content = b"c" + name.encode() + b"\n" + integer(2**30) + b"\x85R"
    with raises(CheckpointError, where="x.pt", problem="more than tensors"):
        read_tensors(archive(tmp_path / "x.pt", content, False))


@pytest.mark.parametrize("member", ["data", "pickle"])
def test_compressed_members_are_not_unpacked(member, tmp_path):
    data = bytes(1 << 22) if member == "data" else b"\0\0\0\0"
    filler = b"" if member == "data" else b"N0" * 1000
    content = filler + b"}U\x01a" + tensor((1 << 20,), (1,), 1 << 20) + b"s"
    file = archive(tmp_path / "x.pt", content, False, data, zipfile.ZIP_DEFLATED)
    with raises(CheckpointError, where="x.pt", problem="compressed"):
        read_tensors(file)


def test_members_of_an_archive_that_overlap_are_refused(tmp_path):
    """Its list names the same bytes many times."""
    file = archive(
        tmp_path / "x.pt", b"}U\x01a" + tensor((2,), (1,), 2) + b"U\x01b" + tensor((1,), (1,)) + b"ss", False
    )
    content = file.read_bytes().replace(struct.pack("<II", 4, 4), struct.pack("<II", 2**20, 2**20))
    file.write_bytes(content)
    with raises(CheckpointError, where="x.pt"):
        read_tensors(file)


def test_an_archive_with_too_many_members_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "DIRECTORY", 1 << 16)
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as made:
        for number in range(2000):
            made.writestr(f"x/{number}", b"")
    with raises(CheckpointError, where="x.pt", problem="list of members has more than 65,536 bytes"):
        read_tensors(tmp_path / "x.pt")


def test_modules_that_contain_others_twice_are_not_walked_forever(tmp_path):
    """Forty modules, each with the module before it twice, have a million million paths."""
    content = module(b"")
    for _ in range(40):
        content = b"c__torch__.x\nModule\n)\x81}(U\x01a" + content + b"q\x00U\x01bh\x00ub"
    with raises(CheckpointError, where="x.pt", problem="modules"):
        read_tensors(archive(tmp_path / "x.pt", content))


def test_older_files_of_pytorch_are_read_and_checked(tmp_path):
    weights = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.arange(3)}
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    found = read_tensors(tmp_path / "x.pt")
    assert all(torch.equal(found[name], weights[name]) and found[name].dtype == weights[name].dtype for name in weights)
    content = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "y.pt").write_bytes(content[:-8])
    with raises(CheckpointError, where="y.pt"):
        read_tensors(tmp_path / "y.pt")
    stored = io.BytesIO()
    torch.save({"a": torch.zeros(1).expand(1000)}, stored, _use_new_zipfile_serialization=False)
    (tmp_path / "z.pt").write_bytes(stored.getvalue())
    with raises(CheckpointError, where="z.pt", problem="larger than its storage"):
        read_tensors(tmp_path / "z.pt")


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_tensors_are_read_as_pytorch_reads_them(kind, tmp_path):
    whole = torch.arange(24).reshape(2, 3, 4).to(kind)
    weights = {"a": whole, "b": whole[:, 1:].transpose(0, 2), "c": whole[1, 1, 1], "d": torch.empty(0, 3, dtype=kind)}
    weights["e"] = torch.nn.Parameter(torch.ones(2))
    torch.save(weights, tmp_path / "x.pt")
    expected = torch.load(tmp_path / "x.pt", weights_only=True)
    found = read_tensors(tmp_path / "x.pt")
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]) and value.stride() == expected[name].stride()


# ------------------------------------------------------------------------------------------------- safetensors and JSON


def safetensors(file, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


@pytest.mark.parametrize(
    "header",
    [
        b"{" * 2000,
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {}}',
        {
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        {"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}},
        [],
    ],
)
def test_a_false_header_is_refused(header, tmp_path):
    with raises(CheckpointError, where="x.safetensors", problem="cannot be read"):
        read_tensors(safetensors(tmp_path / "x.safetensors", header, bytes(4)))


def test_a_header_larger_than_the_limits_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2**40))
    with raises(CheckpointError, problem=f"more than {limits.HEADER:,}"):
        read_tensors(tmp_path / "x.safetensors")
    monkeypatch.setattr(limits, "TENSORS", 9)
    header = {str(number): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(10)}
    with raises(CheckpointError, problem="10 tensors, more than 9"):
        read_tensors(safetensors(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize(
    "text",
    [
        *('{"a": 1, "a": 2}', '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', "[]", "{", "\xff"),
        '{"a": ' + "[" * 9999,
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_json_that_libraries_read_differently_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse(text.encode("latin1"))


def test_a_config_larger_than_the_limit_is_refused(copy):
    with (copy / "config.json").open("r+") as file:
        file.truncate(limits.CONFIG + 1)
    with raises(CheckpointError, where="config.json", allowed=f"{limits.CONFIG:,} bytes"):
        load_backbone(str(copy))


# ----------------------------------------------------------------------------------------------------- sizes of models


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_config", "num_hidden_layers", 100_000),
        ("vision_config", "num_hidden_layers", -5),
        ("vision_config", "image_size", 10**6),
        ("text_config", "vocab_size", 2**31),
        ("text_config", "max_position_embeddings", 10**6),
        ("text_config", "hidden_size", 10**12),
        ("text_config", "hidden_act", "x" * 1000),
        ("text_config", "layer_norm_eps", 1e300),
        ("text_config", "num_attention_heads", [[[[[[5]]]]]]),
    ],
)
def test_values_of_a_config_outside_the_limits_are_refused(section, key, value, copy):
    edit(copy / "config.json", lambda content: content[section].update({key: value}))
    with raises(CheckpointError, where=f"{key} in {copy / 'config.json'}"):
        load_backbone(str(copy))


@pytest.mark.parametrize(
    "change",
    [
        *({"hidden_size": "128"}, {"num_hidden_layers": 1.5}, {"num_attention_heads": 0}, {"hidden_act": "what"}),
        *({"vocab_size": True}, {"num_hidden_layers": [3]}, {"eos_token_id": "x"}, {"layer_norm_eps": None}),
    ],
)
def test_values_of_another_type_are_refused_in_a_line(change, copy):
    edit(copy / "config.json", lambda content: content["text_config"].update(change))
    with raises(CheckpointError, where=str(copy)) as error:
        load_backbone(str(copy))
    assert "\n" not in str(error.value)


def test_a_model_much_larger_than_its_weights_takes_no_memory(copy):
    edit(copy / "config.json", lambda content: content["text_config"].update(vocab_size=10**6, hidden_size=2**16))
    with raises(CheckpointError, where="config.json", problem="but the weights have only"):
        load_backbone(str(copy))


def test_images_of_many_pixels_or_patches_are_refused(copy):
    with raises(CheckpointError, where="images in", allowed="2,048 × 2,048 pixels"):
        check_images((2049, 8), 8, "x")
    edit(copy / "config.json", lambda content: content["vision_config"].update(image_size=90, patch_size=1))
    weights = load_file(copy / "model.safetensors")
    weights["vision_model.embeddings.position_embedding.weight"] = torch.zeros(8101, 160).half()
    weights["vision_model.embeddings.patch_embedding.weight"] = torch.zeros(160, 3, 1, 1).half()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with raises(CheckpointError, where="images in", got="90 × 90 pixels and 8,100 patches"):
        load_backbone(str(copy))


def test_a_text_of_many_positions_is_refused(tmp_path):
    weights = {"token_embedding.weight": torch.zeros(1, 64), "positional_embedding": torch.zeros(10_000, 1)}
    weights |= {"transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(1)}
    save_file(weights, tmp_path / "x.safetensors")
    with raises(CheckpointError, where="positional_embedding", got=10_000):
        load_backbone(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("key", ["encoder_layers", "num_decoder_layers", "num_layers", "layers"])
def test_every_number_of_layers_has_the_limit(key):
    with raises(CheckpointError, where=key, got=limits.LAYERS + 1):
        check_values({"text_cfg": {key: limits.LAYERS + 1}}, Path("x"))


@pytest.mark.parametrize("first", ["transformer.resblocks.", "visual.transformer.resblocks."])
def test_layers_are_counted_before_they_are_created(first, tmp_path):
    names = ["token_embedding.weight", "positional_embedding", "visual.proj", f"{first}0.mlp.c_fc.weight"]
    weights = {name: torch.zeros(64, 64) for name in [*names, "transformer.resblocks.0.mlp.c_fc.weight"]}
    weights |= {"visual.conv1.weight": torch.zeros(64, 3, 8, 8), "visual.positional_embedding": torch.zeros(17, 64)}
    weights |= {f"{first}{number}.ln_1.bias": torch.zeros(1) for number in range(limits.LAYERS + 1)}
    save_file(weights, tmp_path / "x.safetensors")
    with raises(CheckpointError, where="encoder.layers", allowed=f"at most {limits.LAYERS}", got=limits.LAYERS + 1):
        load_backbone(str(tmp_path / "x.safetensors"))


def test_the_shapes_of_a_few_weights_take_no_memory(tmp_path):
    """Widths of a million in one direction need terabytes in two."""
    wide = 10**6
    weights = {"visual.layer1.0.conv1.weight": torch.zeros(1), "visual.conv3.weight": torch.zeros(wide)}
    weights |= {
        "visual.attnpool.positional_embedding": torch.zeros(wide),
        "visual.attnpool.c_proj.weight": torch.zeros(1, 1),
    }
    weights |= {"token_embedding.weight": torch.zeros(1, wide), "positional_embedding": torch.zeros(1)}
    weights |= {"transformer.resblocks.0.mlp.c_fc.weight": torch.zeros(1), "text_projection": torch.zeros(1, 1)}
    save_file(weights, tmp_path / "x.safetensors")
    with raises(CheckpointError, where="x.safetensors"):
        load_backbone(str(tmp_path / "x.safetensors"))


# ----------------------------------------------------------------------------------------------------------- tokenizers


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda content: content.update(normalizer=REPLACE | {"content": "a" * 99}), "replacements"),
        (
            lambda content: content.update(normalizer={"type": "Sequence", "normalizers": [REPLACE] * 9}),
            "replacements",
        ),
        (
            lambda content: content.update(normalizer=REPLACE | {"pattern": {"Regex": "(a+)+x"}}),
            "regular expression",
        ),
        (lambda content: content.update(padding={"strategy": {"Fixed": 10**10}}), "number"),
        (lambda content: content["model"].update(dropout=0.5), "dropout"),
    ],
)
def test_a_tokenizer_that_takes_memory_or_time_is_refused(change, where, copy):
    edit(copy / TOKENIZER, change)
    with raises(CheckpointError, where=where):
        load_backbone(str(copy))


def test_a_token_beyond_the_vocabulary_of_the_text_tower_is_refused(copy):
    def change(content):
        name = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
        content["model"]["vocab"][name] = 10**6

    edit(copy / TOKENIZER, change)
    with raises(CheckpointError, where=str(copy)):
        load_backbone(str(copy))


PUBLISHED = [
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)",
    r" {2,}",
    r"\s+",
]


@pytest.mark.parametrize("expression", PUBLISHED)
def test_the_expressions_of_published_tokenizers_are_accepted(expression):
    check_expression(expression, Path("x"))


@pytest.mark.parametrize(
    "expression",
    [
        *("(a*)*b", "(a|aa)+b", "(?:a+){9}b", "a*a*a*b", "(a|a)(a|a)(a|a)b", "a?a?a?a?a?a?aaaaaa", r"(a)\1"),
        *("x" * 1001, r"(?<n>a)\k<n>", r"[a](\w+\s?)*$", "(((((a", r"\\(a+)+"),
    ],
)
def test_expressions_that_may_take_exponential_time_are_refused(expression):
    with raises(CheckpointError, where="regular expression"):
        check_expression(expression, Path("x"))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"size": {"shortest_edge": 10**6}}, "shortest_edge"),
        ({"crop_size": {"height": -5, "width": 10}}, "height"),
        ({"crop_size": {"height": 24, "width": 10**6}}, "width"),
        ({"image_mean": [0.5, "x", 0.5]}, "mean"),
        ({"image_std": [0, 0, 0]}, "std"),
        ({"resample": 99}, ""),
        ({"do_resize": "x" * 999}, "do_resize"),
        ({"do_center_crop": False}, "checkpoint"),
    ],
)
def test_a_false_processor_is_refused(change, where, copy):
    edit(copy / "preprocessor_config.json", lambda content: content.update(change))
    with raises(CheckpointError, where=where):
        load_backbone(str(copy))


def test_a_model_card_takes_no_memory(tmp_path):
    """Aliases of YAML make a text of a million million letters from a few lines."""
    lists = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10) if n else 'x'}]" for n in range(12))
    (tmp_path / "README.md").write_text(f"---\n{lists}\nlicense: *a11\n---\n")
    started = time.monotonic()
    assert licence_of(tmp_path) == "not stated"
    assert time.monotonic() - started < 1


def test_the_limits_are_in_the_documentation():
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    names = [name for name in vars(limits) if name.isupper() and name != "SHOWN"]
    constants = {name: getattr(limits, name) for name in names}
    constants |= {"OPERATIONS": OPERATIONS, "LARGEST": cifar.LARGEST, "LARGEST_ARCHIVE": cifar.LARGEST_ARCHIVE}
    for name, value in constants.items():
        assert f"| {value:,} | `{name}` |" in text
