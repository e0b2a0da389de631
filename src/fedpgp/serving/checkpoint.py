"""The checkpoint of an export: where its users get it, and the words that the prompt replaces in their text.

Users of an export have the library of the checkpoint, transformers or OpenCLIP. The prompt's vectors replace the
embeddings of some words. Two texts that differ only in these words show their positions, for any tokenizer.
"""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from fedpgp.backbone import Backbone
from fedpgp.backbone.convert import standard_processor
from fedpgp.backbone.files import HUB_PREFIX, TOKENIZER
from fedpgp.backbone.general_text import GeneralTextEncoder
from fedpgp.backbone.image import ImageEncoder
from fedpgp.backbone.open_clip_models import CONFIG, PREFIX
from fedpgp.backbone.open_clip_processor import DEFAULTS, OpenClipProcessor
from fedpgp.backbone.prepare_image import prepare_image
from fedpgp.backbone.resnet import ResNetTower
from fedpgp.backbone.tokens import AnyTokenizer, Tokenizer, text_ids
from fedpgp.backbone.transformers_files import read_model
from fedpgp.backbone.transformers_models import TextPart
from fedpgp.errors import ConfigError
from fedpgp.runtime.escaping import python
from fedpgp.serving.classifier import Classes, Classifier

WORDS = ("a", "x", "o", "in", "de", "of", "the", "photo")  # words that are a single token in most vocabularies
SIDES = ((41, 97), (530, 231))  # heights and widths of pictures with which the preprocessing is compared


def library_of(backbone: Backbone, name: str) -> Literal["transformers", "open_clip"]:
    """Return the library that loads a checkpoint; raise ConfigError if there is none."""
    if not isinstance(backbone.image, ImageEncoder):
        return "transformers" if isinstance(getattr(backbone.text, "tower", None), TextPart) else "open_clip"
    if backbone.files[0].name == CONFIG:
        return "open_clip"
    if isinstance(backbone.image.model.vision_model, ResNetTower):
        raise ConfigError(
            "it is a ResNet in OpenAI's own format, which neither transformers nor OpenCLIP loads from a file",
            where=f"checkpoint {name}",
            remedy="Use --format onnx, or train on the same model from OpenCLIP, such as open_clip:RN50/openai",
        )
    return "transformers"


def packages(backbone: Backbone, library: str) -> list[str]:
    """Return the packages that the code of a card needs, as arguments of `pip install`."""
    if library == "onnxruntime":
        return ["onnxruntime", "numpy", "pillow"]
    tokenizer: Any = backbone.tokenizer
    tokenizer = tokenizer.tokenizer if isinstance(tokenizer, AnyTokenizer) else tokenizer
    pieces = ["sentencepiece", "protobuf"] if hasattr(tokenizer, "sp_model") else []
    if library == "transformers":
        return ['"transformers>=5"', "torch", "pillow", *pieces]
    own = Path(tokenizer.name_or_path).name != TOKENIZER  # OpenCLIP reads every other tokenizer with transformers
    return ['"open_clip_torch>=3.2"', "pillow", *(["transformers"] if own else []), *pieces]


def place(backbone: Backbone, name: str, directory: Path) -> dict[str, str]:
    """Return the values for a card that load a checkpoint, and copy the checkpoint if users cannot download it.

    Parameters
    ----------
    backbone
        The dual encoder.
    name
        Name of the checkpoint.
    directory
        The export.

    Returns
    -------
    dict
        "library", see `library_of`; "checkpoint", the name as a Python string; "weights", arguments that load the
        model.
    """
    library = library_of(backbone, name)
    if name.startswith(PREFIX):
        architecture, _, tag = name.removeprefix(PREFIX).partition("/")
        return {
            "library": library,
            "checkpoint": python(architecture),
            "weights": f"{python(architecture)}, pretrained={python(tag)}",
        }
    prefix = ""
    if "/" in name and not Path(name).exists():
        found, prefix = name.removeprefix(HUB_PREFIX), HUB_PREFIX
    else:
        found, prefix = ".", "local-dir:"
        _copy(backbone, library, directory)
    full = python(f"{prefix if library == 'open_clip' else ''}{found}")
    return {"library": library, "checkpoint": full, "weights": full}


def _copy(backbone: Backbone, library: str, directory: Path) -> None:
    if library == "transformers" and isinstance(backbone.image, ImageEncoder):  # the checkpoint may be a single file
        parts: list[Any] = [backbone.image.model, transformers_processor(backbone), backbone.tokenizer]
        for part in parts:
            part.save_pretrained(directory)
        return
    for file in backbone.files:
        target = directory / file.relative_to(backbone.files[0].parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def transformers_processor(backbone: Backbone) -> Any:
    """Return the preprocessing of an export for transformers.

    For a checkpoint in OpenAI's format, this is CLIP's preprocessing in transformers, which does not change an image
    that `read_image` has cropped to a square.
    """
    processor = backbone.image.processor
    if isinstance(processor, OpenClipProcessor):
        return standard_processor(backbone.image.size[0], processor.settings)
    return processor


def preprocessing(backbone: Backbone, name: str) -> dict[str, Any]:
    """Return the settings with which `prepare_image` makes the same pixels as the checkpoint's own preprocessing.

    Raises
    ------
    ConfigError
        If `prepare_image` cannot do what the checkpoint's preprocessing does.
    """
    processor = backbone.image.processor
    if isinstance(processor, OpenClipProcessor):
        return processor.to_dict()
    given = processor.to_dict()
    width, height = backbone.image.size
    settings = {
        **DEFAULTS,
        "size": [height, width],
        **{key: given[f"image_{key}"] for key in ("mean", "std")},
        "interpolation": Image.Resampling(given["resample"]).name.lower(),
    }
    if "shortest_edge" in given["size"]:
        settings |= {"shorter_side": given["size"]["shortest_edge"], "crop": "floor"}
    else:
        settings |= {"resize_mode": "squash"}
    for sides in SIDES:
        values = np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8)
        expected = processor(images=Image.fromarray(values), return_tensors="np")["pixel_values"]
        if not np.allclose(prepare_image(Image.fromarray(values), settings), expected, atol=1e-5):
            raise ConfigError(
                f"the format onnx is not possible, because the preprocessing of {name} has steps other than resizing,"
                " cropping and normalizing",
                where="format",
                remedy="Use --format clip-head",
            )
    return settings


def reading(backbone: Backbone, library: str) -> str:
    """Return the Python expression with which a card reads an image."""
    cut = library == "transformers" and isinstance(backbone.image.processor, OpenClipProcessor)
    return f'read_image("image.png"{f", square={backbone.image.size[0]}" if cut else ""})'


def transformers_model(backbone: Backbone, name: str) -> Any:
    """Return a copy of the dual encoder as a model of transformers, in float32; raise ConfigError for OpenCLIP."""
    if isinstance(backbone.image, ImageEncoder) and not isinstance(backbone.image.model.vision_model, ResNetTower):
        return copy.deepcopy(backbone.image.model)
    if library_of(backbone, name) == "open_clip":
        raise ConfigError(
            f"the format hf needs a model of transformers, but {name} is a model of OpenCLIP",
            where="format",
            remedy="Use --format safetensors, whose card reads any class names with OpenCLIP",
        )
    return read_model(name, backbone.files[0].parent, torch.float32).eval()


def padding(backbone: Backbone) -> dict[str, Any]:
    """Return the arguments with which a tokenizer of transformers pads texts as the text tower needs it."""
    text = backbone.text
    if isinstance(text, GeneralTextEncoder) and text.padded:
        return {"padding": "max_length", "max_length": text.positions}
    return {"padding": True}


def sentence(classifier: Classifier, words: Sequence[str], gap: str = " ") -> str:
    """Return the text for the tokenizer, with words in place of the context vectors and {} for the class name."""
    half = _half(classifier, len(words))
    ahead, _, behind = classifier.method.tail.partition("{}")
    start = " ".join(part for part in (gap.join(words[:half]), ahead.strip(), "{}") if part)
    last = gap.join(words[half:])
    return start + (gap + last if last else "") + behind


def context_ids(
    classifier: Classifier, classes: Classes, tokenizer: Tokenizer, text: str, vectors: int
) -> list[list[int]] | None:
    """Return, for each class, the ids of the tokens in place of the context vectors.

    Parameters
    ----------
    classifier
        The model.
    classes
        Class names that the model has read.
    tokenizer
        The tokenizer of the export.
    text
        Result of `sentence`.
    vectors
        Number of context vectors.

    Returns
    -------
    list or None
        None if the other tokens of a class differ from the tokens that the run has read.
    """
    half, found = _half(classifier, vectors), []
    for name, (tokens, tail) in zip(classes.names, classes.tokens.split(), strict=True):
        ids, end = text_ids(tokenizer, text.format(name.replace("_", " "))), half + len(tokens)
        own = ids[:half] + ids[end : end + vectors - half]
        if len(own) < vectors or ids[half:end] + ids[end + vectors - half :] != [*tokens, *tail[:-1]]:
            return None
        found.append(own)
    return found


def texts(classifier: Classifier, classes: Classes, vectors: int) -> tuple[str, str]:
    """Return two texts with {} for the class name that differ exactly in the tokens in place of the context vectors.

    Raises
    ------
    ConfigError
        If the tokenizer reads class names in such texts differently than the run did.
    """
    fitting: list[tuple[str, list[list[int]]]] = []
    for word in WORDS:
        text = sentence(classifier, [word] * vectors)
        ids = context_ids(classifier, classes, classifier.backbone.tokenizer, text, vectors)
        if ids is None:
            continue
        for other, known in fitting:
            if all(a != b for rows in zip(ids, known, strict=True) for a, b in zip(*rows, strict=True)):
                return other, text
        fitting.append((text, ids))
    raise unreadable("safetensors", "other words", "--format clip-head or onnx, for a list of class names")


def unreadable(form: str, before: str, others: str) -> ConfigError:
    """Return the error for a tokenizer whose tokens of a class name depend on the words before it."""
    return ConfigError(
        f"the format {form} is not possible, because the checkpoint's tokenizer reads a class name after {before}"
        " differently than the run did",
        where="format",
        remedy=f"Use {others}",
    )


def _half(classifier: Classifier, vectors: int) -> int:
    """Return the number of context vectors before the class name."""
    return {"end": vectors, "middle": vectors // 2, "front": 0}[classifier.method.position]
