"""Read configs of a checkpoint: only the keys that describe a model or a processor, with values within the limits.

All other keys are ignored. Some of them let a library run code in the checkpoint (`auto_map`), download code
(`attn_implementation`), or read other files.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedpgp.backbone import limits
from fedpgp.backbone.foreign_files import AGAIN, read_json
from fedpgp.errors import CheckpointError

SECTIONS = {"text_config": "Text", "vision_config": "Vision"}  # part of the name of their class
LARGEST = {  # limits of keys in configs of transformers and OpenCLIP; keys that end with "layers" have another
    "image_size": limits.SIDE,
    "size": limits.SIDE,
    "crop_size": limits.SIDE,
    "pad_size": limits.SIDE,
    "shortest_edge": limits.SIDE,
    "longest_edge": limits.SIDE,
    "height": limits.SIDE,
    "num_patches": limits.PATCHES,
    "max_num_patches": limits.PATCHES,
    "max_position_embeddings": limits.POSITIONS,
    "context_length": limits.POSITIONS,
    "vocab_size": limits.VOCABULARY,
}
MAY_BE_NEGATIVE = ("init_logit_bias", "init_logit_scale", "logit_scale_init_value")
DEPTH = 4  # of a value in a config; OpenCLIP's have sections with dictionaries of arguments
PROCESSORS = ("CLIP", "Siglip", "Siglip2", "ChineseCLIP", "ViT", "BitImage")  # names of classes without their ends
PROCESSOR_KEYS = {"do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor"}
PROCESSOR_KEYS |= {"do_normalize", "image_mean", "image_std", "do_convert_rgb", "patch_size", "max_num_patches"}
PROCESSOR_KEYS |= {"do_pad", "pad_size", "default_to_square", "use_square_size"}
TEXT_MODELS = ("bert", "roberta", "xlm-roberta", "mt5", "t5", "m2m_100")  # text towers that OpenCLIP reads


def check_values(content: Mapping[str, Any], file: Path, depth: int = DEPTH, most: int = limits.NUMBER) -> None:
    """Check the values of a config.

    Parameters
    ----------
    content
        The keys and values.
    file
        The file, for messages.
    depth
        Number of objects and lists that may be within each other.
    most
        Largest number, if there is no smaller limit for its key.

    Raises
    ------
    CheckpointError
        If a number is negative or larger than its limit, or a text is too long.
    """
    for key, value in content.items():
        limit = min(most, limits.LAYERS if key.endswith("layers") else LARGEST.get(key, most))
        if not _allowed(key, value, file, depth, limit):
            raise CheckpointError(
                where=f"{key[: limits.SHOWN]} in {file}",
                allowed=f"a number from 0 to {limit:,}, a text of at most {limits.TEXT} characters, or a short list or"
                " object of them",
                got=value if isinstance(value, int | float) else type(value).__name__,
                remedy=AGAIN,
            )


def _allowed(key: str, value: Any, file: Path, depth: int, most: int) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        least = -limits.NUMBER if isinstance(value, float) or key in MAY_BE_NEGATIVE else -1  # -1 often means none
        return least <= value <= most
    if isinstance(value, str):
        return len(value) <= limits.TEXT
    if depth == 0 or len(value) > limits.LAYERS:
        return False
    if isinstance(value, list):
        return all(_allowed(key, each, file, depth - 1, most) for each in value)
    check_values(value, file, depth - 1, most)
    return True


def config_of(kind: str, content: Mapping[str, Any], file: Path) -> Any:
    """Return a config of transformers with the keys that its class declares.

    Parameters
    ----------
    kind
        The model_type.
    content
        The content of the file.
    file
        The file, for messages.

    Raises
    ------
    CheckpointError
        If a value exceeds a limit.
    """
    from transformers import CONFIG_MAPPING

    own = CONFIG_MAPPING[kind]
    return own(**_declared(own, content, file))


def _declared(own: Any, content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the keys of a file that a class of transformers declares for its models, and not for all models."""
    import transformers

    known = inspect.signature(own).parameters.keys() - inspect.signature(transformers.PreTrainedConfig).parameters
    known |= own.attribute_map.keys()
    kept = {key: value for key, value in content.items() if key in known and key not in SECTIONS}
    check_values(kept, file)
    for section, kind in SECTIONS.items():
        for key in (section, f"{section}_dict"):
            if section in known and isinstance(content.get(key), dict):
                part = getattr(transformers, own.__name__.replace("Config", f"{kind}Config"))
                kept[key] = _declared(part, content[key], file)
    return kept


def model_type_of(directory: Path) -> dict[str, Any]:
    """Return {"config": a config with only the model_type} of a directory, from which transformers chooses a tokenizer.

    The dictionary is empty if the directory has no config with a model_type.
    """
    file = directory / "config.json"
    kind = read_json(file).get("model_type") if file.is_file() else None
    return {"config": {"model_type": kind}} if isinstance(kind, str) and len(kind) <= limits.SHOWN else {}


def text_model_config(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the config of a text tower that OpenCLIP builds with transformers.

    Raises
    ------
    CheckpointError
        If OpenCLIP does not read such a tower, or a value exceeds a limit.
    """
    from transformers import CONFIG_MAPPING

    kind = content.get("model_type")
    if kind not in TEXT_MODELS:
        raise CheckpointError(
            where=f"model_type in {file}",
            allowed=f"one of {', '.join(map(repr, TEXT_MODELS))}",
            got=kind if isinstance(kind, str) else type(kind).__name__,
            remedy=AGAIN,
        )
    return {"model_type": kind, **_declared(CONFIG_MAPPING[kind], content, file)}


def processor_config(directory: Path) -> dict[str, Any]:
    """Return the settings of the preprocessing of a checkpoint of transformers.

    Raises
    ------
    CheckpointError
        If there are none, they name a class of no dual encoder, or a value exceeds a limit.
    """
    file = directory / "processor_config.json"
    content = read_json(file).get("image_processor") if file.exists() else None
    if content is None:
        file = directory / "preprocessor_config.json"
        content = read_json(file)
    if not isinstance(content, dict):
        raise CheckpointError(where=f"image_processor in {file}", allowed="an object", remedy=AGAIN)
    named = content.get("image_processor_type", content.get("feature_extractor_type"))
    kept = {key: value for key, value in content.items() if key in PROCESSOR_KEYS}
    check_values(kept, file)
    check_normalization(kept.get("image_mean"), kept.get("image_std"), str(file))
    if named is None:
        return kept
    short = str(named)
    for end in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        short = short.removesuffix(end)
    if short not in PROCESSORS:
        raise CheckpointError(
            where=f"image_processor_type in {file}",
            allowed=f"the class of a dual encoder, such as {PROCESSORS[0]}ImageProcessor",
            got=named if isinstance(named, str) else type(named).__name__,
            remedy=AGAIN,
        )
    return {**kept, "image_processor_type": named.replace("FeatureExtractor", "ImageProcessor").removesuffix("Pil")}


def check_normalization(mean: Any, deviation: Any, where: str) -> None:
    """Check the values with which pixels are normalized, each a number or three; None is a default.

    Raises
    ------
    CheckpointError
        If they are not numbers, or a standard deviation is not positive.
    """
    for name, value, least in (("mean", mean, -limits.SIDE), ("std", deviation, 1e-6)):
        numbers = value if isinstance(value, list | tuple) else [value] * 3
        if value is not None and not (
            len(numbers) == 3 and all(type(n) in (int, float) and least <= n <= limits.SIDE for n in numbers)
        ):
            raise CheckpointError(
                where=f"{name} of pixels in {where}",
                allowed=f"three numbers from {least:g} to {limits.SIDE}",
                remedy=AGAIN,
            )


def check_images(size: tuple[int, int], patch: int, where: str) -> None:
    """Check the size of the images that a tower reads, in pixels, and the number of their patches.

    Raises
    ------
    CheckpointError
        If one is larger than its limit.
    """
    patches = (size[0] // max(1, patch)) * (size[1] // max(1, patch))
    if max(size) > limits.SIDE or patches > limits.PATCHES:
        raise CheckpointError(
            where=f"images in {where}",
            allowed=f"of at most {limits.SIDE:,} × {limits.SIDE:,} pixels and {limits.PATCHES:,} patches",
            got=f"{size[0]} × {size[1]} pixels and {patches:,} patches",
            remedy=AGAIN,
        )


def check_room(build: Any, weights: Mapping[str, torch.Tensor], where: Path) -> None:
    """Check that a model is not much larger than its weights, before it takes memory.

    Parameters
    ----------
    build
        Function that returns the model; it is called on PyTorch's device without memory.
    weights
        Tensors by name.
    where
        The config, for messages.

    Raises
    ------
    CheckpointError
        If the model has more parameters than the weights have numbers, times `limits.ROOM`.
    """
    with torch.device("meta"):
        model: nn.Module = build()
    needed = sum(parameter.numel() for parameter in model.parameters())
    given = sum(tensor.numel() for tensor in weights.values())
    if needed > limits.ROOM * given:
        raise CheckpointError(
            f"it describes a model of {needed:,} parameters, but the weights have only {given:,} numbers",
            where=str(where),
            remedy="Download the config and the weights again",
        )
