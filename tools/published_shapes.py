"""Save dual encoders of published shapes with random weights in the layout of OpenCLIP.

python tools/published_shapes.py KIND DIRECTORY

Nothing is downloaded. OpenCLIP includes its own tokenizer. The tokenizers of SigLIP 2 and BiomedCLIP are trained here
on the names of the embedded classes, and unused tokens fill their vocabularies to the published sizes.
"""

import copy
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from fedpgp.data.sources import pictograms
from references import references

KINDS = ("MobileCLIP2-S0", "EVA02-B-16", "convnext_base_w", "ViT-B-16-SigLIP2", "BiomedCLIP")
# OpenCLIP has no config of BiomedCLIP-PubMedBERT_256-vit_base_patch16_224, so this one is written by hand. "text" is a
# folder in the saved directory, and "here" is the directory.
BIOMEDCLIP: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "vit_base_patch16_224",
        "timm_pool": "",
        "timm_proj": "linear",
    },
    "text_cfg": {
        "hf_model_name": "text",
        "hf_tokenizer_name": "here",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    },
}
VOCABULARY = {"BiomedCLIP": 30_522, "ViT-B-16-SigLIP2": 256_000}


def texts() -> list[str]:
    """Return sentences for training tokenizers."""
    names = pictograms.read().train.class_names
    return [f"a photo of a {name.replace('_', ' ')}." for name in names]


def word_pieces(directory: Path, samples: Iterable[str], size: int, length: int) -> None:
    """Return a tokenizer like BERT's with a vocabulary of a given size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(samples, trainers.WordPieceTrainer(vocab_size=size, special_tokens=[*special.values()]))
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    filled(made, size, model_max_length=length, **special).save_pretrained(directory)


def gemma(directory: Path, samples: Iterable[str], size: int, length: int) -> None:
    """Return a tokenizer like Gemma's (byte pairs; a space is a character) with [EOS] at the end, as in SigLIP 2."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no token spans two words
    made.decoder = decoders.Replace("▁", " ")
    made.train_from_iterator(samples, trainers.BpeTrainer(vocab_size=size, special_tokens=[*special.values()]))
    made.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    names = {"model_max_length": length, "model_input_names": ["input_ids"], "padding_side": "right"}
    filled(made, size, **names, **special).save_pretrained(directory)


def filled(tokenizer: Any, size: int, **options: Any) -> Any:
    """Return the tokenizer for transformers, filled with unused tokens to a size."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"<unused{number}>": number for number in range(len(vocabulary), size)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **options)


def save(kind: str, directory: Path) -> None:
    """Save a model of one of `KINDS`, or of another architecture of OpenCLIP that has OpenCLIP's own tokenizer.

    It needs open_clip.
    """
    import open_clip
    from safetensors.torch import save_file
    from transformers import BertConfig

    directory.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(BIOMEDCLIP) if kind == "BiomedCLIP" else open_clip.get_model_config(kind)
    text = config["text_cfg"]
    preprocessing = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    if kind == "BiomedCLIP":
        word_pieces(directory, texts(), VOCABULARY[kind], text["context_length"])
        BertConfig(vocab_size=VOCABULARY[kind]).save_pretrained(directory / "text")  # BERT-base, as PubMedBERT is
    else:
        if kind in VOCABULARY:
            gemma(directory, texts(), VOCABULARY[kind], text["context_length"])
        published = open_clip.get_pretrained_cfg(kind, open_clip.list_pretrained_tags_by_model(kind)[0])
        preprocessing = {key: published[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    shape = {name: copy.deepcopy(value) for name, value in config.items() if name != "custom_text"}
    if "hf_model_name" in text:
        shape["text_cfg"] |= {"hf_model_name": str(directory / "text"), "hf_model_pretrained": False}
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**shape)
    weights = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(weights, directory / "open_clip_model.safetensors")
    content = {"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": preprocessing}
    (directory / "open_clip_config.json").write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    with references():
        save(sys.argv[1], Path(sys.argv[2]))
