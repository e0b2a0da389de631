"""Load a frozen dual encoder from a name, a directory or a hub id."""

import timeit
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fedpgp.backbone import open_clip_models, transformers_models
from fedpgp.backbone.archive import read_weights
from fedpgp.backbone.convert import text_state
from fedpgp.backbone.dual_encoder import Backbone
from fedpgp.backbone.efficientnet import EfficientNetLite
from fedpgp.backbone.files import (
    CLIP_TEXT,
    HUB_PREFIX,
    OPENAI_TOKENIZER,
    Checkpoint,
    OpenClipFiles,
    agrees,
    converted,
    find_checkpoint,
    licence_of,
    openai_tokenizer,
    read_open_clip,
    read_own_tokenizer,
)
from fedpgp.backbone.foreign_configs import check_images
from fedpgp.backbone.foreign_tokenizers import largest_token
from fedpgp.backbone.general_image import GeneralImageEncoder
from fedpgp.backbone.general_text import GeneralTextEncoder
from fedpgp.backbone.image import ImageEncoder
from fedpgp.backbone.open_clip_processor import OpenClipProcessor
from fedpgp.backbone.resnet import ResNetTower
from fedpgp.backbone.settings import BackboneConfig
from fedpgp.backbone.text import TextEncoder
from fedpgp.backbone.tokens import AnyTokenizer
from fedpgp.backbone.transformers_files import has_transformers_weights, read_transformers
from fedpgp.errors import CheckpointError, FedPGPError, first_line


def configured_backbone(settings: BackboneConfig, device: str | None = None) -> Backbone:
    """Load the dual encoder of a config section.

    Parameters
    ----------
    settings
        The config section.
    device
        Device to use instead of the section's device.

    Raises
    ------
    CheckpointError
        See `load_backbone`.
    """
    return load_backbone(settings.checkpoint, settings.precision, device or settings.device, settings.patches)


def load_backbone(name: str, precision: str = "float32", device: str = "cpu", patches: str = "value") -> Backbone:
    """Load a dual encoder.

    A directory or hub id contains a dual encoder of transformers or of OpenCLIP; the prefix "hf-hub:" of a hub id
    selects the files of OpenCLIP. A file is one of OpenAI's `.pt` archives, or a state dict with the same names.

    Parameters
    ----------
    name
        "photoclip" or "pictoclip" (embedded), a directory, a file, a hub id, or open_clip:ARCHITECTURE/TAG.
    precision
        "float32", "float64" or "bf16". With "bf16", a CLIP-shaped text tower multiplies matrices in bfloat16, and
        everything else is in float32.
    device
        A device of PyTorch.
    patches
        "value" or "attention", see `ResNetTower.positions`.

    Raises
    ------
    CheckpointError
        If the checkpoint cannot be read or does not fit the settings.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        backbone = _load(name, precision, device, patches)
        # Models and tokenizers with false settings may fail only when they are used.
        backbone.template_features("a photo of a {}.", ["a"])
        backbone.image([Image.new("RGB", backbone.image.size)])
        return backbone
    except FedPGPError:
        raise
    except BaseException as error:  # foreign files make libraries raise anything; a panic in Rust is not an Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise CheckpointError(
            f"it cannot be read ({first_line(error)})",
            where=f"checkpoint {name!r}",
            remedy="Download it again, or choose another checkpoint",
        ) from error


def _load(name: str, precision: str, device: str, patches: str) -> Backbone:
    dtype = torch.float64 if precision == "float64" else torch.float32
    products = torch.bfloat16 if precision == "bf16" else dtype
    if name.startswith(open_clip_models.PREFIX):
        _check_patches(patches, resnet=False)
        return _of_open_clip(open_clip_models.read_named(name, dtype), device, products, licence="not stated")
    path = find_checkpoint(name)
    licence = licence_of(path if path.is_dir() else path.parent)
    if (path / open_clip_models.CONFIG).is_file() and (
        name.startswith(HUB_PREFIX) or not has_transformers_weights(path)
    ):
        checkpoint = read_open_clip(path, dtype)
        if not isinstance(checkpoint, Checkpoint):
            _check_patches(patches, resnet=False)
        if isinstance(checkpoint, OpenClipFiles):
            return _of_efficientnet(checkpoint, dtype, device, products, licence)
        if isinstance(checkpoint, open_clip_models.OpenClip):
            return _of_open_clip(checkpoint, device, products, licence)
    else:
        checkpoint = converted([path], dtype) if path.is_file() else read_transformers(name, path, dtype)
    model = _moved(checkpoint.model, device)
    _check_patches(patches, isinstance(model.vision_model, ResNetTower))
    size = transformers_models.image_size(model.config, checkpoint.processor)
    check_images(size, model.config.vision_config.patch_size, f"checkpoint {name}")
    if model.config.model_type != "siglip2":
        _check_size(checkpoint, size)
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


def _check_size(checkpoint: Checkpoint, size: tuple[int, int]) -> None:
    """Raise CheckpointError if the processor makes images of another size than the image tower reads."""
    picture = Image.new("RGB", (3 * size[0] + 1, 2 * size[1]))  # far from square, so that it must be cropped
    height, width = checkpoint.processor(images=[picture], return_tensors="np")["pixel_values"].shape[-2:]
    if (width, height) != size:
        raise CheckpointError(
            f"the processor makes images of {width} × {height} pixels, but the image tower reads {size[0]} × {size[1]}"
            " (size and crop_size in preprocessor_config.json must equal vision_config.image_size in config.json)",
            where=f"checkpoint {checkpoint.files[0].parent}",
            remedy="Download both files again",
        )


def _check_patches(patches: str, resnet: bool) -> None:
    if patches != "value" and not resnet:
        raise CheckpointError(
            where="backbone.patches",
            allowed="'value' for this checkpoint, because only CLIP's ResNets have other patch features",
            got=patches,
            remedy="Use --set backbone.patches=value",
        )


def _moved(model: Any, device: str) -> Any:
    try:
        return model.to(device).eval().requires_grad_(False)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise CheckpointError(
            where="device",
            allowed=f"one device that is available to PyTorch on this machine ({first_line(error)})",
            got=device,
            remedy="Use --device cpu, which works everywhere",
        ) from error


def _check_products(products: torch.dtype) -> None:
    if products == torch.bfloat16:
        raise CheckpointError(
            where="precision",
            allowed="'float32' or 'float64' for a text tower that is not CLIP-shaped",
            got="bf16",
            remedy="Use --precision float32",
        )


def _of_transformers(model: Any, checkpoint: Checkpoint, products: torch.dtype, licence: str) -> Backbone:
    """Return a dual encoder of transformers whose towers are not CLIP's."""
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
    """Return a dual encoder of OpenCLIP, with the fast text encoder if its text tower is CLIP-shaped."""
    model, text_config = _moved(checkpoint.model, device), checkpoint.config["text_cfg"]
    quick, where = bool(checkpoint.config.get("quick_gelu", False)), str(checkpoint.files[-1])
    text: TextEncoder | GeneralTextEncoder
    if agrees(text_config, CLIP_TEXT | OPENAI_TOKENIZER):
        tokenizer: Any = openai_tokenizer()
        state, config = text_state(model.text.state_dict(), where, int(text_config["heads"]), quick)
        text = TextEncoder.of_state(state, config, tokenizer.bos_token_id, products)
    else:
        _check_products(products)
        text, tokenizer = _general_text(model.text, checkpoint.tokenizer, text_config, where)
    backbone = Backbone(
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
    widths = backbone.image.width, backbone.template_features("a {}", ["a"]).shape[1]
    if widths[0] != widths[1]:
        raise CheckpointError(
            f"image features have {widths[0]} dimensions, but text features have {widths[1]}, so a projection is"
            " missing (timm_proj, hf_proj_type)",
            where=f"checkpoint {where}",
            remedy="Download it again, or choose another checkpoint",
        )
    return backbone


def _of_efficientnet(
    files: OpenClipFiles, dtype: torch.dtype, device: str, products: torch.dtype, licence: str
) -> Backbone:
    """Return a dual encoder of OpenCLIP with EfficientNet-Lite0 and a CLIP-shaped text tower, without the library."""
    where, weights = str(files.weights), read_weights(files.weights)
    if "logit_scale" not in weights:
        raise CheckpointError(
            "the weight logit_scale is missing", where=f"checkpoint {where}", remedy="Download it again"
        )
    scale, _ = weights.pop("logit_scale"), weights.pop("logit_bias", None)
    visual = {name.removeprefix("visual."): weights.pop(name) for name in [*weights] if name.startswith("visual.")}
    tower = _moved(EfficientNetLite.of(visual, where).to(dtype), device)
    state, text_config = text_state(weights, where, files.heads, files.quick_gelu)
    tokenizer: Any
    tokenizer_files: list[Path] = []
    if files.own_tokenizer:
        tokenizer, tokenizer_files = read_own_tokenizer(files.directory, text_config.vocab_size)
    else:
        tokenizer = openai_tokenizer()
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


def _general_text(
    tower: Any, given: Any, config: Mapping[str, Any], where: str
) -> tuple[GeneralTextEncoder, AnyTokenizer]:
    """Return a text tower of OpenCLIP that is not CLIP-shaped, and its tokenizer."""
    own = hasattr(tower, "token_embedding")  # OpenCLIP's own transformer has no mask for padding
    length = int(config.get("context_length", 77))
    if hasattr(given, "tokenizer"):
        tokenizer = AnyTokenizer.of(given.tokenizer, given.clean_fn, padded=own, sep_is_pad=given.strip_sep_token)
    else:
        tokenizer = AnyTokenizer.of(openai_tokenizer(), given.clean_fn)
        tokenizer = replace(tokenizer, pad=0)  # OpenCLIP's own tokenizer pads with 0
    embedding = tower.token_embedding if own else tower.transformer.get_input_embeddings()
    _check_vocabulary(tokenizer, embedding, where)
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


def _check_vocabulary(tokenizer: AnyTokenizer, embedding: Any, where: str) -> None:
    largest = largest_token(tokenizer.tokenizer)
    if largest >= embedding.num_embeddings:
        raise CheckpointError(
            f"the tokenizer has tokens up to {largest}, but the text tower reads only {embedding.num_embeddings}, so"
            " they are not from the same model",
            where=f"checkpoint {where}",
            remedy="Download both again",
        )


def bfloat16_speed(device: str) -> float:
    """Measure how many times faster a device multiplies matrices in bfloat16 than in float32; it takes milliseconds."""

    def seconds(dtype: torch.dtype) -> float:
        x = torch.ones(256, 256, dtype=dtype, device=device)
        return min(timeit.repeat(lambda: (x @ x)[0, 0].item(), number=2, repeat=4))

    return seconds(torch.float32) / seconds(torch.bfloat16)
