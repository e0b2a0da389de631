"""Small random dual encoders of every family, saved as they are published, with the libraries' own forward passes."""

import json
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from references import path_of_processes, references
from torch import Tensor

NAMES = ("golden retriever", "tabby cat", "sports car", "red panda", "grand piano", "ferry")
TEXTS = tuple(f"a photo of a {name}." for name in NAMES)
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LENGTH, LETTERS = 64, string.ascii_lowercase


@dataclass(frozen=True)
class Family:
    """A saved checkpoint. model: the library's; text, image: texts and pictures -> features before normalisation.

    ids: texts -> what the library gives the text tower, ids [S, L] and mask or None; embedding: of its tokens.
    """

    directory: Path
    model: Any
    ids: Callable[[Any], tuple[Tensor, Tensor | None]]
    text: Callable[[Tensor, Tensor | None], Tensor]
    pixels: Callable[[Any], Any]
    image: Callable[[Any], Tensor]
    embedding: Any


def randomised(model: Any) -> Any:
    """Weights far enough from zero that a mistake tells."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if not name.endswith(("logit_scale", "logit_bias")):
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer += 0.2 * torch.rand(buffer.shape, generator=generator)
    return model.eval().requires_grad_(False)


def word_pieces(directory: Path, length: int = LENGTH) -> int:
    """A WordPiece tokenizer of BERT's kind, trained on class names, that knows all letters; returns its length."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    letters = [
        *ascii_lowercase,
        ascii_lowercase,
        f"z{ascii_lowercase}",
    ]  # each as the first and as a later letter of a word
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=list(special.values()))
    made.train_from_iterator([*TEXTS, *letters], trainer)
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=length, **special).save_pretrained(directory)
    return int(made.get_vocab_size())


def sentence_pieces(directory: Path, spaced: bool = True, start: bool = False) -> int:
    """A tokenizer of SentencePiece's kind, without a mask. spaced: the first word, too, has a space ahead.

    It knows the words of `TEXTS`, and letters with and without a space ahead.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = sorted(
        {f"▁{word}" for text in TEXTS for word in text.removesuffix(".").split()} | {*map("▁{}".format, LETTERS)}
    )
    pieces = [*special.values(), "▁", ".", *LETTERS, *words]
    made = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if spaced else "never")
    single, known = ("<s> $A </s>", [("<s>", 0), ("</s>", 2)]) if start else ("$A </s>", [("</s>", 2)])
    made.post_processor = processors.TemplateProcessing(single=single, special_tokens=known)
    inputs = ["input_ids", "attention_mask"] if start else ["input_ids"]
    fast = PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LENGTH, model_input_names=inputs, **special)
    fast.save_pretrained(directory)
    return int(made.get_vocab_size())


def byte_pairs(directory: Path) -> int:
    """A tokenizer of CLIP's kind, whose start and end have the last ids."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    start, end = special = ("<|startoftext|>", "<|endoftext|>")
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=90, end_of_word_suffix="</w>"))
    made.add_special_tokens(list(special))
    known = [(token, made.token_to_id(token)) for token in special]
    made.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=known)
    named = {"bos_token": start, "eos_token": end, "pad_token": end}
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LENGTH, **named).save_pretrained(directory)
    return int(made.get_vocab_size())


def sentence_piece_model(directory: Path) -> Any:
    """Give a saved SigLIP the tokenizer that it is published with, a SentencePiece model instead of its own."""
    import sentencepiece
    from transformers import SiglipTokenizer

    for file in directory.glob("*token*"):
        file.unlink()
    (directory / "texts").write_text("\n".join(TEXTS * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(directory / "texts"),
        model_prefix=str(directory / "spiece"),
        vocab_size=40,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        user_defined_symbols=["▁a", "▁x"],
    )
    inputs = {"model_max_length": LENGTH, "model_input_names": ["input_ids"]}
    tokenizer = SiglipTokenizer(str(directory / "spiece.model"), **inputs)
    tokenizer.save_pretrained(directory)
    for name in ("texts", "spiece.vocab"):
        (directory / name).unlink()
    return tokenizer


def gemma_pieces(directory: Path) -> int:
    """A tokenizer of Gemma's kind, in which a space is a character, as SigLIP 2 has it."""
    from tokenizers import Tokenizer, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    merges = [("▁", letter) for letter in LETTERS]
    pieces = [*special.values(), "▁", ".", *LETTERS, *map("".join, merges)]
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    names = {"model_max_length": LENGTH, "model_input_names": ["input_ids"]}
    PreTrainedTokenizerFast(tokenizer_object=made, **names, **special).save_pretrained(directory)
    return int(made.get_vocab_size())


def of_transformers(kind: str, directory: Path) -> Family:
    """kind: "siglip", "siglip2", "altclip" or "chinese_clip"."""
    import transformers

    vision: dict[str, Any] = {**TOWER, "image_size": 32, "patch_size": 8}
    if kind in ("siglip", "siglip2"):
        tokens = sentence_pieces(directory) if kind == "siglip" else gemma_pieces(directory)
        text = {**TOWER, "vocab_size": tokens + 5, "max_position_embeddings": LENGTH, "projection_size": 32}
    elif kind == "altclip":
        tokens = sentence_pieces(directory, start=True)
        text = {**TOWER, "vocab_size": tokens, "max_position_embeddings": LENGTH + 2, "project_dim": 24}
    else:
        text = {**TOWER, "vocab_size": word_pieces(directory), "max_position_embeddings": LENGTH}
    names = {"siglip": "Siglip", "siglip2": "Siglip2", "altclip": "AltCLIP", "chinese_clip": "ChineseCLIP"}
    if kind == "siglip2":
        vision |= {"num_patches": 16}
        processor = transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    elif kind == "siglip":
        processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    else:
        processor = transformers.CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
    options = {} if kind.startswith("siglip") else {"projection_dim": 24}
    config = getattr(transformers, f"{names[kind]}Config")(text_config=text, vision_config=vision, **options)
    torch.manual_seed(0)
    model = randomised(getattr(transformers, f"{names[kind]}Model")(config))
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)

    def ids(texts: Any) -> tuple[Tensor, Tensor | None]:
        made = tokenizer(list(texts), padding="max_length", return_tensors="pt")
        return made["input_ids"], made.get("attention_mask")

    return Family(
        directory,
        model,
        ids,
        lambda ids, mask: model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output,
        lambda images: processor(images=images, return_tensors="pt"),
        lambda pixels: model.get_image_features(**pixels).pooler_output,
        model.text_model.get_input_embeddings(),
    )


VISION = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16, "head_width": 32}
OWN_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}


def timm(name: str, pool: str, proj: str | None) -> dict[str, Any]:
    return {"image_size": 160, "timm_model_name": name, "timm_pool": pool, "timm_proj": proj}


OPEN_CLIP: dict[str, dict[str, Any]] = {
    "timm-siglip": {
        "vision_cfg": timm("test_vit4", "map", "none") | {"image_size": 64},
        "text_cfg": OWN_TEXT
        | {"context_length": LENGTH, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        | {"hf_tokenizer_name": "here", "tokenizer_kwargs": {"clean": "canonicalize"}, "norm_kwargs": {"eps": 1e-6}},
        "init_logit_bias": -10,
    },
    "mobileclip": {
        "vision_cfg": timm("test_efficientnet", "avg", None),
        "text_cfg": OWN_TEXT | {"no_causal_mask": True},
    },
    "convnext": {"vision_cfg": timm("test_convnext", "", "linear"), "text_cfg": OWN_TEXT},
    "efficientnet": {
        "vision_cfg": timm("tf_efficientnet_lite0", "avg", "linear") | {"timm_proj_bias": True, "image_size": 75},
        "text_cfg": OWN_TEXT | {"hf_tokenizer_name": "."},
        "quick_gelu": True,
    },
    "eva": {"vision_cfg": timm("test_vit", "token", None), "text_cfg": OWN_TEXT},
    "biomedclip": {
        "vision_cfg": timm("test_vit", "", "linear"),
        "text_cfg": {
            "hf_model_name": "text",
            "hf_tokenizer_name": "here",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": LENGTH,
        },
    },
    "xlm-roberta": {
        "vision_cfg": VISION,
        "text_cfg": {
            "hf_model_name": "text",
            "hf_tokenizer_name": "here",
            "hf_pooler_type": "mean_pooler",
            "context_length": LENGTH,
        },
    },
}


def of_open_clip(kind: str, directory: Path, library: Any) -> Family:
    """kind: of `OPEN_CLIP`; library: the module open_clip."""
    import copy

    from open_clip.transform import PreprocessCfg, image_transform_v2
    from safetensors.torch import save_file
    from transformers import BertConfig, XLMRobertaConfig

    config = copy.deepcopy(OPEN_CLIP[kind]) | {"embed_dim": 32}
    text = config["text_cfg"]
    if kind == "biomedclip":
        BertConfig(vocab_size=word_pieces(directory), **TOWER).save_pretrained(directory / "text")
    elif kind == "xlm-roberta":
        tokens = sentence_pieces(directory, start=True)
        XLMRobertaConfig(vocab_size=tokens, pad_token_id=1, **TOWER).save_pretrained(directory / "text")
    elif kind == "efficientnet":
        text["vocab_size"] = byte_pairs(directory)
    elif "hf_tokenizer_name" in text:
        text["vocab_size"] = sentence_pieces(directory, spaced=False)
    if "timm_model_name" in config["vision_cfg"] and kind == "timm-siglip":
        config["embed_dim"] = 96  # of its image tower, which has no projection
    shape = copy.deepcopy(config)
    if "hf_model_name" in text:
        shape["text_cfg"] |= {"hf_model_name": str(directory / "text"), "hf_model_pretrained": False}
    torch.manual_seed(0)
    model = randomised(library.CustomTextCLIP(**shape))
    preprocessing = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.5, 0.6, 0.7],
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    content = {"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": preprocessing}
    (directory / "open_clip_config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), directory / "open_clip_model.safetensors")
    tokenizer = library.get_tokenizer(f"local-dir:{directory}")
    transform = image_transform_v2(PreprocessCfg(size=model.visual.image_size, **preprocessing), is_train=False)
    own = hasattr(model.text, "token_embedding")
    return Family(
        directory,
        model,
        lambda texts: (tokenizer(list(texts)), None),
        lambda ids, mask: model.encode_text(ids),
        lambda images: torch.stack([transform(image) for image in images]),
        lambda pixels: model.encode_image(pixels),
        model.text.token_embedding if own else model.text.transformer.get_input_embeddings(),
    )


CLASSICAL = {  # OpenCLIP's own CLIPs, whose text tower is in no module of its own
    "openclip-vit": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "openclip-resnet": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16},
}


def save_classical(kind: str, directory: Path, library: Any) -> None:
    """kind: of `CLASSICAL`; library: the module open_clip."""
    from safetensors.torch import save_file

    config = {"embed_dim": 64, "vision_cfg": CLASSICAL[kind], "text_cfg": {**OWN_TEXT, "width": 64}}
    torch.manual_seed(0)
    save_file(randomised(library.CLIP(**config)).state_dict(), directory / "open_clip_model.safetensors")
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.6, 0.7]}}
    (directory / "open_clip_config.json").write_text(json.dumps(content))


TRANSFORMERS = ("siglip", "siglip2", "altclip", "chinese_clip")
KINDS = (*TRANSFORMERS, *OPEN_CLIP)


@pytest.fixture(scope="module")
def open_clip():
    """The library, which can be imported while the tests of a module run."""
    with references():
        import open_clip

        yield open_clip


@pytest.fixture(scope="module")
def made(tmp_path_factory, open_clip):
    """A saved checkpoint of each family, made once."""
    known: dict[str, Family] = {}

    def of(kind):
        if kind not in known:
            directory = tmp_path_factory.mktemp(kind)
            known[kind] = (
                of_transformers(kind, directory) if kind in TRANSFORMERS else of_open_clip(kind, directory, open_clip)
            )
        return known[kind]

    return of


@pytest.fixture
def in_processes(open_clip, tmp_path_factory, monkeypatch):
    """The processes that a test starts can import OpenCLIP, too."""
    monkeypatch.setenv("PYTHONPATH", path_of_processes(tmp_path_factory.mktemp("site")))


def edit(file, change):
    """Change the JSON in a file of a checkpoint."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
