"""Files for fuzz.py: each kind is a function that prepares a directory and returns an attack with random numbers."""

import contextlib
import copy
import io
import json
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fedpgp import assets
from fedpgp.backbone import load_backbone
from fedpgp.backbone.archive import read_tensors
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import read_listing
from PIL import Image
from safetensors.torch import load_file, save_file

Attack = Callable[[random.Random], None]
NUMBERS = (-1, 0, 1, 2, 255, 2**31, 2**32, 2**63, 10**9, 10**20, -(10**9), 1.5, -0.0, 1e300, float("nan"))
TEXTS = ("", "x", "../x", "/dev/zero", "\0", "\x1b[2J", "9" * 50, "a" * 10_000, "(a*)*b", "😀", "\ud800")
VALUES = (*NUMBERS, *TEXTS, None, True, False, [], {}, [[[[[[]]]]]], {"a": {"a": {"a": {}}}}, ["x"] * 999)
KEYS = ("auto_map", "attn_implementation", "_attn_implementation", "vocab_file", "quantization_config")
KEYS += ("text_config_dict", "model_type", "tokenizer_class", "image_processor_type", "dtype", "hidden_size", "a")
NAMES = (b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_parameter", b"collections\nOrderedDict")
NAMES += (b"torch\nFloatStorage", b"__torch__.x\nModule", b"torch.jit._pickle\nbuild_intlist", b"numpy\ndtype")
NAMES += (b"numpy\nndarray", b"numpy.core.multiarray\n_reconstruct", b"builtins\neval", b"builtins\nbytearray")


# -------------------------------------------------------------------------------------------------------------- changes


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return bytes with some of them changed, removed or repeated."""
    made = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(made) + 1) if draw.random() < 0.5 else draw.randrange(min(len(made), 400) + 1)
        length = draw.choice((1, 1, 2, 4, 8, 100))
        change = draw.randrange(4)
        if change == 0:
            made[place : place + length] = draw.randbytes(length)
        elif change == 1:
            del made[place : place + length]
        elif change == 2:
            made[place:place] = made[place : place + length]
        elif draw.random() < 0.3:
            del made[place:]
        elif place < len(made):
            made[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, made[place] ^ 1 << draw.randrange(8)))
    return bytes(made)


def changed(document: Any, draw: random.Random) -> bytes:
    """Return a document as JSON with some values changed, removed, added or repeated."""
    made = json.loads(json.dumps(document))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        inner = made
        while True:
            places = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not places:
                break
            key = draw.choice(places)
            if isinstance(inner[key], dict | list) and draw.random() < 0.8:
                inner = inner[key]
                continue
            change = draw.randrange(4)
            if change == 0:
                del inner[key]
            elif change == 1 and isinstance(inner, dict):
                inner[draw.choice(KEYS)] = copy.deepcopy(draw.choice(VALUES))
            else:
                inner[key] = copy.deepcopy(draw.choice(VALUES))
            break
    text = json.dumps(made, ensure_ascii=draw.random() < 0.9).encode(errors="surrogatepass")
    change = draw.randrange(20)
    if change == 0:
        return damaged(text, draw)
    if change == 1:
        return text[:-1] + b', "model_type": "clip", "model_type": "bert"}'
    if change == 2:
        return text.replace(b": 1", b": " + b"[" * 5000, 1)
    return text


def shape(draw: random.Random) -> list[int]:
    return [
        draw.choice((-1, 0, 1, 2, 3, 1000, 2**15, 2**30, 2**31 - 1)) for _ in range(draw.choice((0, 1, 1, 2, 2, 3, 9)))
    ]


def operations(draw: random.Random, depth: int = 3) -> bytes:
    """Return operations of a pickle that make a value."""
    change = draw.randrange(12 if depth else 5)
    if change == 0:
        return b"J" + struct.pack("<i", draw.choice((-1, 0, 1, 2, 100, 2**31 - 1)))
    if change == 1:
        text = draw.choice((b"", b"u1", b"i4", b"O", b"|", b"data", b"0", b"storage", b"cpu", draw.randbytes(5)))
        return b"U" + bytes([len(text)]) + text
    if change == 2:
        return draw.choice((b"N", b"\x88", b"\x89", b")", b"]", b"}", b"h\x00", b"Nr\xff\xff\xff\x7f"))
    if change == 3:
        return b"c" + draw.choice(NAMES) + b"\n"
    if change == 4:
        return b"\x8a\x09" + b"\0" * 8 + b"\1"
    inner = b"".join(operations(draw, depth - 1) for _ in range(draw.choice((0, 1, 2, 3, 5, 8))))
    if change in (5, 6):
        return b"(" + inner + b"t"
    if change == 7:
        return b"(" + inner + b"l"
    if change == 8:
        return operations(draw, depth - 1) + b"(" + inner + b"t" + draw.choice((b"R", b"\x81", b"b", b"u", b"e"))
    if change == 9:
        return b"(" + inner + b"tQ"
    if change == 10:
        return operations(draw, depth - 1) + operations(draw, depth - 1) + draw.choice((b"b", b"a", b"R", b"\x86"))
    return b"}(" + b"U\x04data" + inner[:200] + b"u"


# -------------------------------------------------------------------------------------------------------------- pickles


def cifar(directory: Path) -> Attack:
    """CIFAR-10's files, with states of arrays and data types, operations, and bytes that are false."""
    folder = directory / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    batch = {"labels": [0, 1], "data": np.zeros((2, 3072), np.uint8), "filenames": ["a", "b"]}
    files = {name: pickle.dumps(batch, protocol=4) for name in names}
    files["batches.meta"] = pickle.dumps({"label_names": ["ant", "bus"]}, protocol=2)
    for name, content in files.items():
        (folder / name).write_bytes(content)

    def value(draw: random.Random) -> bytes:
        parts = (-1, 0, 1, 2, 5, 3, 4, 2**40, "i", "|", "<", "u1", "O", "V", b"x", None, (), ("data",), {}, {"a": 1})
        some = tuple(draw.choice(parts) for _ in range(draw.choice((0, 1, 5, 6, 7, 8, 8, 8, 9))))
        state = pickle.dumps(some, protocol=2)[2:-1]
        kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR" + (state + b"b" if draw.random() < 0.5 else b"")
        if draw.random() < 0.5:
            return kind
        lengths = pickle.dumps(
            tuple(draw.choice((-1, 0, 1, 2, 3072, 2**31, 2**62)) for _ in range(draw.randint(0, 3))), protocol=2
        )
        start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        data = draw.choice((b"N", b"U\x04abcd", b"K\x05", b"T" + struct.pack("<i", 6144) + b"x" * 6144))
        return start + b"(K\x01" + lengths[2:-1] + kind + draw.choice((b"\x88", b"\x89", b"N")) + data + b"tb"

    def attack(draw: random.Random) -> None:
        name = draw.choice(list(files))
        change = draw.randrange(3)
        if change == 0:
            content = damaged(files[name], draw)
        elif change == 1:
            content = b"\x80\x02" + operations(draw) + b"."
        else:
            content = b"\x80\x02}(U\x06labels](K\x00K\x01eU\x04data" + value(draw) + b"u."
        (folder / name).write_bytes(content)
        try:
            found = read_listing(DataConfig(source="cifar10", root=str(directory)))
            found.pictures(0)
        finally:
            (folder / name).write_bytes(files[name])

    return attack


def tensors(directory: Path) -> Attack:
    """Files of PyTorch: archives, programs and older files."""
    file, weights = directory / "x.pt", {"a": torch.ones(2, 3), "b": torch.arange(4)}
    stored = []
    for newer in (True, False):
        made = io.BytesIO()
        torch.save({"state_dict": weights}, made, _use_new_zipfile_serialization=newer)
        stored.append(made.getvalue())

    def tensor(draw: random.Random) -> bytes:
        size, stride = (b"".join(b"J" + struct.pack("<i", n) for n in shape(draw)) for _ in range(2))
        number = struct.pack("<i", draw.choice((-1, 0, 1, 4, 2**30)))
        storage = (
            b"(U\x07storagectorch\n" + draw.choice((b"FloatStorage", b"LongStorage", b"Float64")) + b"\nU\x010U\x03cpuJ"
        )
        return b"ctorch._utils\n_rebuild_tensor_v2\n(%s%stQ%s(%st(%st\x89}tR" % (
            storage, number, draw.choice((b"K\x00", b"K\x01", b"J\xff\xff\xff\xff", b"N")), size, stride,
        )  # fmt: skip

    def attack(draw: random.Random) -> None:
        if draw.random() < 0.3:
            file.write_bytes(damaged(draw.choice(stored), draw))
        else:
            value = tensor(draw) if draw.random() < 0.6 else operations(draw)
            ahead, behind = (b"c__torch__.x\nModule\n)\x81", b"b") if draw.random() < 0.4 else (b"", b"")
            root = ahead + b"}U\x01a" + value + b"s" + behind
            kind = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            with zipfile.ZipFile(file, "w", kind) as made:
                made.writestr("x/data.pkl", b"\x80\x02" + root + b".")
                made.writestr("x/data/0", bytes(draw.choice((0, 4, 16, 100_000))))
                if ahead or draw.random() < 0.1:
                    made.writestr("x/constants.pkl", b"")
            if draw.random() < 0.2:
                file.write_bytes(damaged(file.read_bytes(), draw))
        for value in read_tensors(file).values():
            value.float().sum()

    return attack


def safetensors(directory: Path) -> Attack:
    """Files of safetensors, and indexes that name them."""
    file = directory / "x.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.arange(4)}, file)
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]

    def attack(draw: random.Random) -> None:
        if draw.random() < 0.3:
            file.write_bytes(damaged(content, draw))
        else:
            text = changed(header, draw)
            size = draw.choice((len(text), len(text), len(text), 2**40, 0, len(text) // 2))
            file.write_bytes(struct.pack("<Q", size) + text + data)
        for value in read_tensors(file).values():
            value.float().sum()

    return attack


# ------------------------------------------------------------------------------------------------- configs, tokenizers


def _file_of(checkpoint: str, *names: str) -> Callable[[Path], Attack]:
    """Return a kind of input: one of these files of an embedded checkpoint is changed, and the checkpoint is used."""

    def prepare(directory: Path) -> Attack:
        place = shutil.copytree(assets.DIRECTORY / checkpoint, directory / "checkpoint")
        if "model.safetensors.index.json" in names:
            weights = load_file(place / "model.safetensors")
            (place / "model.safetensors").rename(place / "model-1.safetensors")
            index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-1.safetensors")}
            (place / "model.safetensors.index.json").write_text(json.dumps(index))
        kept = {name: (place / name).read_bytes() for name in names}
        documents = {name: json.loads(content) for name, content in kept.items()}
        picture = Image.new("RGB", (70, 50))

        def attack(draw: random.Random) -> None:
            name = draw.choice(names)
            (place / name).write_bytes(changed(documents[name], draw))
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    backbone = load_backbone(str(place))
                    backbone.template_features("a photo of a {}.", ["ant", "fire engine"])
                    backbone.image([picture])
                    len(backbone.fingerprint)
            finally:
                (place / name).write_bytes(kept[name])

        return attack

    return prepare


def sentence_pieces(directory: Path) -> Attack:
    """SentencePiece's models, with a small SigLIP."""
    import sentencepiece
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipTokenizer

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = size | {"vocab_size": 64, "max_position_embeddings": 64, "projection_size": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=size | {"image_size": 16, "patch_size": 8}))
    model.save_pretrained(directory)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(directory)
    words = ["a photo of an ant", "fire engines in boxes", "the quick brown fox jumps over lazy dogs"] * 9
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "pad_piece": "<pad>"}
    where = str(directory / "spiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_prefix=where, vocab_size=50, hard_vocab_limit=False, minloglevel=2, **ids
    )
    SiglipTokenizer(f"{where}.model", model_max_length=64, model_input_names=["input_ids"]).save_pretrained(directory)
    (directory / "tokenizer.json").unlink(missing_ok=True)
    content = (directory / "spiece.model").read_bytes()
    load_backbone(str(directory))  # the undamaged model is not refused

    def attack(draw: random.Random) -> None:
        (directory / "spiece.model").write_bytes(damaged(content, draw))
        backbone = load_backbone(str(directory))
        backbone.template_features("a photo of a {}.", ["ant", "fire engine"])

    return attack


KINDS: dict[str, Callable[[Path], Attack]] = {
    "cifar": cifar,
    "tensors": tensors,
    "safetensors": safetensors,
    "config": _file_of("pictoclip", "config.json"),
    "processor": _file_of("pictoclip", "preprocessor_config.json"),
    "tokenizer": _file_of("pictoclip", "tokenizer.json", "tokenizer_config.json"),
    "index": _file_of("pictoclip", "model.safetensors.index.json"),
    "sentence-pieces": sentence_pieces,
    "open-clip": _file_of("photoclip", "open_clip_config.json", "tokenizer_config.json"),
}
GROUPS = {
    "checkpoints": [
        "tensors",
        "safetensors",
        "config",
        "processor",
        "tokenizer",
        "sentence-pieces",
        "index",
        "open-clip",
    ]
}
