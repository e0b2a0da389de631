"""A name, a directory or a hub id -> a frozen CLIP."""

import hashlib
import json
import re
import timeit
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedpgp import assets
from fedpgp.backbone import efficientnet, open_clip_models, transformers_models
from fedpgp.backbone.archive import read_weights
from fedpgp.backbone.convert import HEAD, standard_processor, text_state, to_clip_model
from fedpgp.backbone.efficientnet import EfficientNetLite
from fedpgp.backbone.general_image import GeneralImageEncoder
from fedpgp.backbone.general_text import GeneralTextEncoder
from fedpgp.backbone.image import ImageEncoder, ImageTower
from fedpgp.backbone.open_clip_processor import OpenClipProcessor
from fedpgp.backbone.resnet import ResNetTower
from fedpgp.backbone.settings import BackboneConfig
from fedpgp.backbone.text import TextEncoder
from fedpgp.backbone.tokens import AnyTokenizer, ClassTokens, Tokenizer, class_tokens, split_template, text_ids
from fedpgp.backbone.transformers_models import FAMILIES
from fedpgp.errors import CheckpointError, first_line

PHOTOCLIP = "photoclip"
EMBEDDED = (PHOTOCLIP, "pictoclip")
TOKENIZER = "clip-tokenizer"  # OpenAI's, for checkpoints that come without one
TOKENIZER_FILES = ("*token*.json", "vocab.*", "merges.txt", "*.model")
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
CARD = "README.md"
FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
OLDER = "pytorch_model*.bin"  # transformers' weights where there are no others
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TEXT_HEADS = 8  # of OpenCLIP's text tower, where its config does not say
HUB_PREFIX = "hf-hub:"  # of OpenCLIP's names: a hub id whose OpenCLIP files are meant
OF_TOWER = {"final_ln_after_pool": False, "act_kwargs": None, "norm_kwargs": None, "ls_init_value": None}
OF_TOWER |= {"block_type": None, "qk_norm": False, "scale_heads": False, "scale_attn": False, "scale_fc": False}
# What a key of OpenCLIP's config has, or is where it is missing, in a CLIP-shaped text tower.
CLIP_TEXT: dict[str, Any] = OF_TOWER | {
    "no_causal_mask": False,
    "pool_type": "argmax",
    "hf_model_name": None,
    "embed_cls": False,
    "proj_bias": False,
    "proj_type": "linear",
}
OPENAI_TOKENIZER = {"hf_tokenizer_name": None}
PLAIN_TOKENS: dict[str, Any] = {"tokenizer_kwargs": {}, "tokenizer_mode": None}  # of a tokenizer, whichever it is
CLIP_VALUES: Mapping[str, Mapping[str, Any]] = {
    "text_cfg": CLIP_TEXT | OPENAI_TOKENIZER,
    "vision_cfg": OF_TOWER | {"pool_type": "tok", "timm_model_name": None, "attentional_pool": False},
    "preprocess_cfg": {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"},
}


class Towers(NamedTuple):
    """What a worker process needs of a dual encoder: what computes, without what loads and preprocesses.

    image: None where no method changes the image tower.
    """

    text: TextEncoder | GeneralTextEncoder
    image: ImageTower | None = None


class Checkpoint(NamedTuple):
    """What a checkpoint consists of, in the types of transformers. files: what it was read from."""

    model: Any
    processor: Any
    tokenizer: Any
    files: list[Path]


class OpenClipFiles(NamedTuple):
    """A directory of OpenCLIP's that is read without the library, and what its config says.

    size: height and width of the pictures; heads: of the text tower; own_tokenizer: its files are in the directory.
    """

    directory: Path
    weights: Path
    vision: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    size: tuple[int, int]
    heads: int
    quick_gelu: bool
    own_tokenizer: bool


@dataclass(frozen=True)
class Backbone:
    """A frozen dual encoder: image encoder, text encoder, tokenizer and logit scale.

    SigLIP's bias of logits is left out: it is the same for all classes, and a softmax over classes cancels it.
    """

    files: Sequence[Path]  # what decides what the encoders compute
    image: ImageEncoder | GeneralImageEncoder
    text: TextEncoder | GeneralTextEncoder
    tokenizer: Tokenizer
    logit_scale: Tensor  # [], its logarithm, as CLIP keeps it
    licence: str = "not stated"  # as the checkpoint's model card says

    @property
    def token_width(self) -> int:
        """d, the width of a context vector."""
        return self.text.token_width

    def towers(self, reads: Collection[str] = ()) -> Towers:
        """What computes for methods that read so much; the image tower's weights are copied where one changes it."""
        if "image tower" in reads and isinstance(self.image, ImageEncoder):
            return Towers(self.text, self.image.tower)
        return Towers(self.text)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the files that decide what the encoders compute, and the precision."""
        digest = hashlib.sha256(f"{self.logit_scale.dtype} {self.text.products}".encode())
        for path in self.files:
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def class_tokens(self, class_names: Sequence[str], tail: str = "{}.", first: bool = False) -> ClassTokens:
        """What the text encoder reads behind the context, for every class name; first: there is no context."""
        return class_tokens(self.tokenizer, class_names, tail, first)

    def phrase(self, text: str) -> Tensor:
        """The token embeddings [M, d] of a phrase such as "a photo of a"."""
        return self.text.embed(torch.tensor(text_ids(self.tokenizer, text.replace("_", " ")), dtype=torch.long))

    @torch.no_grad()
    def template_features(self, template: str, class_names: Sequence[str]) -> Tensor:
        """Text features [C, D] of a hand-written template such as "a photo of a {}." (z_C in the paper).

        Raises CheckpointError where one is not finite.
        """
        before, tail = split_template(template)
        features = self.text(self.phrase(before)[None], self.class_tokens(class_names, tail, not before))[0]
        if not features.isfinite().all():
            name = class_names[int((~features.isfinite()).any(1).nonzero()[0])]
            raise CheckpointError(
                f"the checkpoint gives a text feature that is not finite for {template.format(name)!r}:"
                " choose another checkpoint, or precision float32"
            )
        return features


def configured_backbone(settings: BackboneConfig, device: str | None = None) -> Backbone:
    """The dual encoder of a config's section; device: instead of the section's. Raises as `load_backbone` does."""
    return load_backbone(settings.checkpoint, settings.precision, device or settings.device, settings.patches)


def load_backbone(name: str, precision: str = "float32", device: str = "cpu", patches: str = "value") -> Backbone:
    """Loads a dual encoder: "photoclip" or "pictoclip", which are embedded, a directory, a file, a hub id, or
    open_clip:ARCH/TAG.

    A directory or hub id has the files of a dual encoder of transformers, or of OpenCLIP ("hf-hub:" ahead of a hub id
    takes the latter); a file is one of OpenAI's `.pt` archives or a state dict under the same names. precision:
    "float32", "float64", or "bf16": the text tower of CLIP's shape multiplies matrices in bfloat16, all else is in
    float32. patches: "value" or "attention", see `ResNetTower.positions`. Raises CheckpointError, naming the file or
    setting and the remedy.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = torch.float64 if precision == "float64" else torch.float32
    products = torch.bfloat16 if precision == "bf16" else dtype
    if name.startswith(open_clip_models.PREFIX):
        _check_patches(patches, resnet=False)
        return _of_open_clip(open_clip_models.read_named(name, dtype), device, products, licence="not stated")
    path = _path(name)
    licence = licence_of(path if path.is_dir() else path.parent)
    if (path / open_clip_models.CONFIG).is_file() and (
        name.startswith(HUB_PREFIX) or not (path / "config.json").is_file()
    ):
        checkpoint = _read_open_clip(path, dtype)
        if not isinstance(checkpoint, Checkpoint):
            _check_patches(patches, resnet=False)
        if isinstance(checkpoint, OpenClipFiles):
            return _of_efficientnet(checkpoint, dtype, device, products, licence)
        if isinstance(checkpoint, open_clip_models.OpenClip):
            return _of_open_clip(checkpoint, device, products, licence)
    else:
        checkpoint = _converted([path], dtype) if path.is_file() else _read_transformers(name, path, dtype)
    model = _moved(checkpoint.model, device)
    _check_patches(patches, isinstance(model.vision_model, ResNetTower))
    if model.config.model_type != "clip":
        return _of_transformers(model, checkpoint, products, licence)
    return Backbone(
        files=checkpoint.files,
        image=ImageEncoder(model, checkpoint.processor, patches),
        text=TextEncoder.of(model, checkpoint.tokenizer.bos_token_id, products),
        tokenizer=checkpoint.tokenizer,
        logit_scale=model.logit_scale.detach(),
        licence=licence,
    )


def _check_patches(patches: str, resnet: bool) -> None:
    if patches != "value" and not resnet:
        raise CheckpointError(
            f"backbone.patches must be 'value' for this checkpoint, got {patches!r}: only CLIP's ResNets have others"
        )


def _moved(model: Any, device: str) -> Any:
    try:
        return model.to(device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise CheckpointError(
            f"device must be one that PyTorch has here, got {device!r}: {first_line(error)};"
            " --device cpu works everywhere"
        ) from error


def _check_products(products: torch.dtype) -> None:
    if products == torch.bfloat16:
        raise CheckpointError(
            "precision must be float32 or float64 for a text tower that is not CLIP-shaped, got bf16:"
            " --precision float32"
        )


def _of_transformers(model: Any, checkpoint: Checkpoint, products: torch.dtype, licence: str) -> Backbone:
    """A dual encoder of transformers whose towers are not CLIP's."""
    _check_products(products)
    padded = model.config.model_type in transformers_models.PADDED
    tokenizer = AnyTokenizer.of(checkpoint.tokenizer, padded=padded)
    embedding = model.text_model.get_input_embeddings()
    _check_vocabulary(tokenizer, embedding, str(checkpoint.files[0].parent))
    masked = "attention_mask" in checkpoint.tokenizer.model_input_names
    processor = checkpoint.processor
    size = transformers_models.image_size(model.config, processor)
    if model.config.model_type == "siglip2":
        processor = transformers_models.PatchedProcessor(processor)
    return Backbone(
        files=checkpoint.files,
        image=GeneralImageEncoder(
            transformers_models.image_modules(model),
            transformers_models.pool_of(model),
            transformers_models.positions_of(model),
            processor,
            size,
            transformers_models.architecture(model.config),
        ),
        text=GeneralTextEncoder(
            transformers_models.TextPart(model, masked),
            embedding,
            tokenizer.start,
            tokenizer.filler,
            tokenizer.pad,
            transformers_models.longest_text(model.config, checkpoint.tokenizer),
            padded,
            pads_ahead=padded and checkpoint.tokenizer.padding_side == "left",
        ),
        tokenizer=tokenizer,
        logit_scale=model.logit_scale.detach().reshape(()),
        licence=licence,
    )


def _of_open_clip(checkpoint: open_clip_models.OpenClip, device: str, products: torch.dtype, licence: str) -> Backbone:
    """A dual encoder of OpenCLIP: with the fast text encoder if its text tower is CLIP-shaped."""
    model, text_config = _moved(checkpoint.model, device), checkpoint.config["text_cfg"]
    quick = bool(checkpoint.config.get("quick_gelu", False))
    text: TextEncoder | GeneralTextEncoder
    if _agrees(text_config, CLIP_TEXT | OPENAI_TOKENIZER):
        tokenizer: Any = _tokenizer()
        state, config = text_state(model.text.state_dict(), "of OpenCLIP", int(text_config["heads"]), quick)
        text = TextEncoder.of_state(state, config, tokenizer.bos_token_id, products)
    else:
        _check_products(products)
        text, tokenizer = _general_text(model.text, checkpoint.tokenizer, text_config)
    return Backbone(
        files=checkpoint.files,
        image=GeneralImageEncoder(
            [model.visual],
            open_clip_models.pool_of(model),
            open_clip_models.positions_of(model),
            checkpoint.processor,
            tuple(reversed(model.visual.image_size)),
            {**checkpoint.config["vision_cfg"], "quick_gelu": quick},
        ),
        text=text,
        tokenizer=tokenizer,
        logit_scale=model.logit_scale.detach().reshape(()),
        licence=licence,
    )


def _of_efficientnet(
    files: OpenClipFiles, dtype: torch.dtype, device: str, products: torch.dtype, licence: str
) -> Backbone:
    """A dual encoder of OpenCLIP's with EfficientNet-Lite0 and a CLIP-shaped text tower, without the library."""
    where, weights = str(files.weights), read_weights(files.weights)
    if "logit_scale" not in weights:
        raise CheckpointError(f"checkpoint {where} lacks logit_scale: fetch it again")
    scale, _ = weights.pop("logit_scale"), weights.pop("logit_bias", None)
    visual = {name.removeprefix("visual."): weights.pop(name) for name in [*weights] if name.startswith("visual.")}
    tower = _moved(EfficientNetLite.of(visual, where).to(dtype), device)
    state, text_config = text_state(weights, where, files.heads, files.quick_gelu)
    tokenizer: Any
    tokenizer_files: list[Path] = []
    if files.own_tokenizer:
        tokenizer, tokenizer_files = _own_tokenizer(files.directory, text_config.vocab_size)
    else:
        tokenizer = _tokenizer()
    processor = OpenClipProcessor.of(files.preprocessing, files.size)
    height, width = files.size
    state = {name: tensor.to(device, dtype) for name, tensor in state.items()}
    return Backbone(
        files=[files.directory / open_clip_models.CONFIG, *tokenizer_files, files.weights],
        image=GeneralImageEncoder([tower], tower, tower.positions, processor, (width, height), files.vision),
        text=TextEncoder.of_state(state, text_config, tokenizer.bos_token_id, products),
        tokenizer=tokenizer,
        logit_scale=scale.to(device, dtype).reshape(()),
        licence=licence,
    )


def _own_tokenizer(directory: Path, tokens: int) -> tuple[AnyTokenizer, list[Path]]:
    """The tokenizer of a CLIP-shaped text tower, as OpenCLIP reads it from a directory, and its files."""
    from transformers import AutoTokenizer

    try:
        given = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the files make the loader raise, the user needs one line
        raise CheckpointError(
            f"the tokenizer of {directory} cannot be read: {first_line(error)}; fetch its tokenizer files again"
        ) from error
    tokenizer = AnyTokenizer.of(given, _one_space)
    if len(tokenizer.start) != 1 or tokenizer.eos_token_id != tokens - 1 or len(tokenizer) != tokens:
        raise CheckpointError(
            f"the tokenizer of {directory} must put one token ahead of a text and {tokens - 1} behind it, the last of"
            f" {tokens}, at which OpenCLIP reads the text; it has {len(tokenizer)} tokens and puts"
            f" {list(tokenizer.start)} ahead and {tokenizer.eos_token_id} behind: fetch its tokenizer files again"
        )
    return tokenizer, sorted({file for pattern in TOKENIZER_FILES for file in directory.glob(pattern)})


def _one_space(text: str) -> str:
    """A text with one space between words, which is what OpenCLIP does to it for such a tokenizer."""
    return " ".join(text.split())


def _general_text(tower: Any, given: Any, config: Mapping[str, Any]) -> tuple[GeneralTextEncoder, AnyTokenizer]:
    """A text tower of OpenCLIP that is not CLIP-shaped, with the tokenizer that the library has for it."""
    own = hasattr(tower, "token_embedding")  # OpenCLIP's own transformer, which has no mask for padding
    length = int(config.get("context_length", 77))
    if hasattr(given, "tokenizer"):
        tokenizer = AnyTokenizer.of(given.tokenizer, given.clean_fn, padded=own, sep_is_pad=given.strip_sep_token)
    else:
        tokenizer = AnyTokenizer.of(_tokenizer(), given.clean_fn)
        tokenizer = replace(tokenizer, pad=0)  # OpenCLIP's own tokenizer fills up with 0
    embedding = tower.token_embedding if own else tower.transformer.get_input_embeddings()
    _check_vocabulary(tokenizer, embedding, "of OpenCLIP")
    if not own:
        tokenizer = replace(tokenizer, pad=tower.config.pad_token_id)
    encoder = GeneralTextEncoder(
        open_clip_models.OpenClipText(tower),
        embedding,
        tokenizer.start,
        tokenizer.filler,
        tokenizer.pad,
        length,
        own,
        pads_ahead=own and getattr(tokenizer.tokenizer, "padding_side", "right") == "left",
    )
    return encoder, tokenizer


def _agrees(section: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Whether a section of OpenCLIP's config has these values, or leaves them out."""
    return all(section.get(key, value) == value for key, value in values.items())


def _check_vocabulary(tokenizer: AnyTokenizer, embedding: Any, where: str) -> None:
    if len(tokenizer) > embedding.num_embeddings:
        raise CheckpointError(
            f"checkpoint {where}: its tokenizer has {len(tokenizer)} tokens, its text tower reads"
            f" {embedding.num_embeddings}: they are not of one model, fetch both again"
        )


def licence_of(directory: Path) -> str:
    """The licence that a model card's header states, or "not stated"."""
    from huggingface_hub import metadata_load

    try:
        header = metadata_load(directory / CARD) or {}
    except Exception:  # it may be any text: nothing is read from it but this
        header = {}
    return str(header.get("license", "not stated"))


def _read_transformers(name: str, directory: Path, dtype: torch.dtype) -> Checkpoint:
    import transformers

    older = any(directory.glob(OLDER)) and not any(directory.glob("*.safetensors"))
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = transformers.AutoConfig.from_pretrained(directory, **local).model_type
        if kind not in FAMILIES:
            raise CheckpointError(
                f"checkpoint {name!r} must be of a model_type {' or '.join(map(repr, FAMILIES))}, its config.json has"
                f" {kind!r}: choose a dual encoder, such as openai/clip-vit-base-patch16"
            )
        # Of the older files it reads tensors alone, too (weights_only).
        model, report = getattr(transformers, FAMILIES[kind]).from_pretrained(
            directory, dtype=dtype, use_safetensors=not older, output_loading_info=True, **local
        )
        processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil", **local)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **local)
    except CheckpointError:
        raise
    except Exception as error:  # whatever the files make the loaders raise, the user needs one line
        raise CheckpointError(
            f"checkpoint {name!r} cannot be read from {directory}: {first_line(error)};"
            " it must hold config.json, model.safetensors, tokenizer and preprocessor files of a dual encoder"
        ) from error
    if report["missing_keys"]:
        raise CheckpointError(
            f"checkpoint {name!r} in {directory} lacks {len(report['missing_keys'])} weights of a"
            f" {FAMILIES[kind]}, the first is {min(report['missing_keys'])}: fetch it again, or name a complete one"
        )
    files = {file for pattern in [*FILES, *([OLDER] if older else [])] for file in directory.glob(pattern)}
    return Checkpoint(model, processor, tokenizer, sorted(files))


def _read_open_clip(directory: Path, dtype: torch.dtype) -> Checkpoint | OpenClipFiles | open_clip_models.OpenClip:
    """Read what the library is not needed for, by what the config declares: CLIP's own shape, or EfficientNet-Lite0."""
    file = directory / open_clip_models.CONFIG
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        config, preprocessing = content["model_cfg"], content.get("preprocess_cfg", {})
        sections = {**config, "preprocess_cfg": preprocessing}
        of_clip = all(_agrees(sections[section], values) for section, values in CLIP_VALUES.items())
        vision, text = config["vision_cfg"], config["text_cfg"]
        efficient = efficientnet.declared(vision) and _agrees(text, CLIP_TEXT | PLAIN_TOKENS)
        size = vision.get("image_size", 224)
        height, width = (size, size) if isinstance(size, int) else map(int, size)
        quick, heads = bool(config.get("quick_gelu", False)), int(text.get("heads", 0))
        vision_head = int(vision.get("head_width", HEAD))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is not OpenCLIP's: {first_line(error)}; fetch it again") from error
    weights = next((directory / name for name in OPEN_CLIP_WEIGHTS if (directory / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"checkpoint {directory} lacks {' or '.join(OPEN_CLIP_WEIGHTS)}: fetch it again")
    if efficient:
        return OpenClipFiles(
            directory,
            weights,
            vision,
            preprocessing,
            (height, width),
            heads or TEXT_HEADS,
            quick,
            bool(text.get("hf_tokenizer_name")),
        )
    if not of_clip:
        return open_clip_models.read_directory(directory, weights, dtype)
    shape = {"quick_gelu": quick, "vision_head": vision_head, "text_heads": heads or None}
    return _converted([file, weights], dtype, preprocessing, **shape)


def _converted(
    files: list[Path], dtype: torch.dtype, preprocessing: Mapping[str, Any] | None = None, **shape: Any
) -> Checkpoint:
    """A checkpoint with OpenAI's names of weights, in the last of its files; shape: as `to_clip_model` takes it."""
    model: Any = to_clip_model(read_weights(files[-1]), str(files[-1]), **shape)
    processor = standard_processor(model.config.vision_config.image_size, preprocessing)
    return Checkpoint(model.to(dtype), processor, _tokenizer(), files)


def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(assets.verified(TOKENIZER), local_files_only=True)


def bfloat16_speed(device: str) -> float:
    """How many times faster than in float32 a device multiplies matrices in bfloat16, by a try of milliseconds."""

    def seconds(dtype: torch.dtype) -> float:
        x = torch.ones(256, 256, dtype=dtype, device=device)
        return min(timeit.repeat(lambda: (x @ x)[0, 0].item(), number=2, repeat=4))

    return seconds(torch.float32) / seconds(torch.bfloat16)


def _path(name: str) -> Path:
    if name in EMBEDDED:
        return assets.verified(name)
    if Path(name).exists():
        return Path(name)
    name = name.removeprefix(HUB_PREFIX)
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"checkpoint {name!r} does not exist: name a directory or file that does, a hub id like"
            f" openai/clip-vit-base-patch16, or an embedded one, {' or '.join(EMBEDDED)}; write ~ out"
        )
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(name, allow_patterns=[*FILES, CARD]))
        if (directory / open_clip_models.CONFIG).is_file() and not any(directory.glob("*.safetensors")):
            snapshot_download(name, allow_patterns=[OPEN_CLIP_WEIGHTS[1]])
        return directory
    except Exception as error:  # network, authorisation and name errors of several libraries
        raise CheckpointError(
            f"checkpoint {name!r} is neither a directory nor to be had from the hub: {first_line(error)};"
            f" --backbone {PHOTOCLIP}, which is embedded and knows photographs, works at once; or download the"
            " checkpoint elsewhere and name its directory with --backbone"
        ) from error
