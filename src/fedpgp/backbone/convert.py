"""Weights under the names of OpenAI's code and of OpenCLIP -> a transformers CLIPModel.

Letters: w width of a tower, D feature width.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedpgp.backbone.archive import check_shapes
from fedpgp.backbone.resnet import STRIDE, resnet_of
from fedpgp.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import CLIPModel

HEAD = 64  # the width of an attention head in every CLIP of OpenAI's; OpenCLIP's configs say theirs
START, END = 49406, 49407  # of OpenAI's vocabulary
IN_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OF_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
OF_IMAGES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "logit_scale": "logit_scale",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
NO_WEIGHTS = {"input_resolution", "context_length", "vocab_size", "attn_mask", "visual.attn_mask"}  # of the archives
VISUAL = "visual."
RESNET = "visual.layer1."
TO_BE_REPLACED: Mapping[str, Any] = {"hidden_size": 8, "num_hidden_layers": 0, "num_attention_heads": 1}
ELSEWHERE = {
    "visual.trunk": "a tower of timm",
    "visual.head": "a tower of timm",
    "logit_bias": "SigLIP",
    "text_decoder": "CoCa",
    "visual.attn_pool": "a tower with attention pooling",
}


def to_clip_model(
    weights: Mapping[str, Tensor],
    where: str,
    *,
    quick_gelu: bool = True,
    vision_head: int = HEAD,
    text_heads: int | None = None,
) -> "CLIPModel":
    """A CLIPModel in float32 with these weights; all of its shape is theirs.

    where: what a message calls them. vision_head: width of an attention head of the image tower; text_heads: None takes
    heads of 64. Raises CheckpointError for weights that are not those of CLIP's shape: a transformer for texts, and
    one or a ResNet for images.
    """
    given = {_plain(name): tensor for name, tensor in weights.items()}
    given = {name: tensor for name, tensor in given.items() if name not in NO_WEIGHTS}
    for name in given:
        other = next((what for start, what in ELSEWHERE.items() if name.startswith(start)), None)
        if other is not None:
            raise CheckpointError(
                f"checkpoint {where} has {name!r}, which is of {other}: only CLIPs of a vision transformer or a ResNet"
                " and a text transformer can be read, such as ViT-B-32, ViT-B-16, ViT-L-14 and RN50"
            )
    resnet = any(name.startswith(RESNET) for name in given)
    of_images = {name: given.pop(name) for name in list(given) if resnet and name.startswith(VISUAL)}
    named: dict[str, Tensor] = {}
    for name, tensor in given.items():
        named |= _renamed(name, tensor, where)

    def tower(kind: str, width: int, heads: int) -> dict[str, Any]:
        return {
            "hidden_size": width,
            "intermediate_size": len(named[f"{kind}.encoder.layers.0.mlp.fc1.weight"]),
            "num_hidden_layers": 1 + max(int(key.split(".")[3]) for key in named if key.startswith(f"{kind}.enc")),
            "num_attention_heads": heads,
            "hidden_act": "quick_gelu" if quick_gelu else "gelu",
        }

    try:
        tokens = named["text_model.embeddings.token_embedding.weight"]
        text = {
            **tower("text_model", tokens.shape[1], text_heads or tokens.shape[1] // HEAD),
            "vocab_size": len(tokens),
            "max_position_embeddings": len(named["text_model.embeddings.position_embedding.weight"]),
            "bos_token_id": START,
            "eos_token_id": END,
        }
        features = len(named["text_projection.weight"])
        if resnet:
            model = _model(named, where, text, None, features)
            return _with_resnet(model, of_images, where, features)
        patches = named["vision_model.embeddings.patch_embedding.weight"]
        side = round((len(named["vision_model.embeddings.position_embedding.weight"]) - 1) ** 0.5)
        vision = {
            **tower("vision_model", len(patches), len(patches) // vision_head),
            "patch_size": patches.shape[-1],
            "image_size": side * patches.shape[-1],
        }
        _check_widths(features, len(named["visual_projection.weight"]), where)
    except KeyError as error:
        raise CheckpointError(f"checkpoint {where} lacks {error}: fetch it again, or name a complete one") from error
    return _model(named, where, text, vision, features)


def _check_widths(text: int, images: int, where: str) -> None:
    if text != images:
        raise CheckpointError(
            f"checkpoint {where}: its towers disagree, text features are {text} wide and image features {images}: they"
            " are not of one CLIP"
        )


def _model(
    named: Mapping[str, Tensor], where: str, text: Mapping[str, Any], vision: Mapping[str, Any] | None, features: int
) -> "CLIPModel":
    """The model of that shape with these weights. vision: None where its image tower is to be replaced."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(text_config=dict(text), vision_config=dict(vision or TO_BE_REPLACED), projection_dim=features)
    with torch.device("meta"):
        model = CLIPModel(config)
    expected = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if vision is not None or not name.startswith(("vision_model.", "visual_projection."))
    }
    check_shapes(expected, named, where, "CLIP")
    model = CLIPModel(config)
    model.load_state_dict({name: tensor.float() for name, tensor in named.items()}, strict=vision is not None)
    return model


def _with_resnet(model: "CLIPModel", weights: Mapping[str, Tensor], where: str, features: int) -> "CLIPModel":
    """The model with a ResNet in the place of its image tower."""
    tower, projection = resnet_of({name.removeprefix(VISUAL): tensor for name, tensor in weights.items()}, where)
    _check_widths(features, projection.out_features, where)
    places = len(tower.attnpool.positional_embedding) - 1
    config: Any = model.config.vision_config
    config.image_size, config.hidden_size = round(places**0.5) * STRIDE, projection.in_features
    parts: Any = model
    parts.vision_model, parts.visual_projection = tower, projection
    return model


def _plain(name: str) -> str:
    """A name without what training tools put before it, and as OpenAI's code has it."""
    name = name.removeprefix("module.")
    return name.removeprefix("text.") if name.startswith("text.") else name


def _renamed(name: str, tensor: Tensor, where: str) -> dict[str, Tensor]:
    if name in OF_TEXT or name in OF_IMAGES:
        return {{**OF_TEXT, **OF_IMAGES}[name]: tensor}
    if name in TRANSPOSED:
        return {TRANSPOSED[name]: tensor.T.contiguous()}
    match = LAYER.fullmatch(name)
    if match:
        tower, number, rest = match.groups()
        start = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}"
        part, _, kind = rest.rpartition(".")
        if rest.startswith("attn.in_proj_"):
            kind = rest.removeprefix("attn.in_proj_")
            return {f"{start}.self_attn.{one}_proj.{kind}": x for one, x in zip("qkv", tensor.chunk(3), strict=True)}
        if part in IN_LAYER:
            return {f"{start}.{IN_LAYER[part]}.{kind}": tensor}
    raise CheckpointError(
        f"checkpoint {where} has {name!r}, which CLIP's code has no place for: only CLIPs of a vision transformer or a"
        " ResNet and a text transformer can be read"
    )


def standard_processor(size: int, settings: Mapping[str, Any] | None = None) -> Any:
    """CLIP's preprocessing: the shorter side to `size` pixels, bicubic, the middle, mean and deviation.

    settings: OpenCLIP's preprocess_cfg, whose mean and std count.
    """
    from transformers import CLIPImageProcessorPil

    given = settings or {}
    own = {name: given[key] for name, key in (("image_mean", "mean"), ("image_std", "std")) if key in given}
    return CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, resample=3, **own
    )
