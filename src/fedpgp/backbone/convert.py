"""Convert weights with the names of OpenAI's code and of OpenCLIP to a CLIPModel of transformers.

Letters: w width of a tower, D feature width.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedpgp.backbone import limits
from fedpgp.backbone.resnet import COUNT, RESNET, STAGES, STRIDE, ResNetTower
from fedpgp.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import CLIPModel

HEAD = 64  # width of an attention head in every CLIP from OpenAI; OpenCLIP's configs state theirs
START, END = 49406, 49407  # token ids in OpenAI's vocabulary
# Patterns in the names of OpenAI's code, and their replacements in transformers, in the order of replacement.
RENAMED = {
    r"^visual\.transformer\.resblocks\.": "vision_model.encoder.layers.",
    r"^transformer\.resblocks\.": "text_model.encoder.layers.",
    r"\.ln_(?=[12]\.)": ".layer_norm",
    r"\.attn\.": ".self_attn.",
    r"\.mlp\.c_fc\.": ".mlp.fc1.",
    r"\.mlp\.c_proj\.": ".mlp.fc2.",
    r"^token_embedding\.": "text_model.embeddings.token_embedding.",
    r"^positional_embedding$": "text_model.embeddings.position_embedding.weight",
    r"^ln_final\.": "text_model.final_layer_norm.",
}
RENAMED_OF_TRANSFORMER = RENAMED | {
    r"^visual\.class_embedding$": "vision_model.embeddings.class_embedding",
    r"^visual\.conv1\.": "vision_model.embeddings.patch_embedding.",
    r"^visual\.positional_embedding$": "vision_model.embeddings.position_embedding.weight",
    r"^visual\.ln_pre\.": "vision_model.pre_layrnorm.",
    r"^visual\.ln_post\.": "vision_model.post_layernorm.",
}
RENAMED_OF_RESNET = RENAMED | {r"^visual\.attnpool\.c_proj\.": "visual_projection.", r"^visual\.": "vision_model."}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
# Entries of OpenAI's archives that are not weights
NO_WEIGHTS = {"input_resolution", "context_length", "vocab_size", "attn_mask", "visual.attn_mask"}
PREFIXES = ("text_model.", "vision_model.", "text_projection.", "visual_projection.", "logit_scale")
AGAIN = "Download it again, or choose another checkpoint"
SUPPORTED = (
    "Download it again, or choose a CLIP with a text transformer and a vision transformer or ResNet, such as ViT-B-32,"
    " ViT-B-16, ViT-L-14 or RN50"
)


def to_clip_model(
    weights: Mapping[str, Tensor],
    where: str,
    *,
    quick_gelu: bool = True,
    vision_head: int = HEAD,
    text_heads: int | None = None,
) -> "CLIPModel":
    """Create a CLIPModel in float32 from weights; their shapes determine the model's shape.

    Parameters
    ----------
    weights
        Tensors under the names of OpenAI's code or of OpenCLIP.
    where
        Name of the checkpoint in messages.
    quick_gelu
        Whether the activation is OpenAI's approximation of GELU.
    vision_head
        Width of an attention head of the image tower.
    text_heads
        Number of attention heads of the text tower; None means heads of width 64.

    Returns
    -------
    CLIPModel
        The model with these weights.

    Raises
    ------
    CheckpointError
        If the weights are not from a CLIP with a text transformer and a vision transformer or ResNet.
    """
    from transformers import CLIPConfig, CLIPModel

    named = _renamed(weights, where)
    resnet = any(name.startswith(RESNET) for name in named)

    def transformer(tower: str, width: int, heads: int) -> dict[str, Any]:
        return {
            "hidden_size": width,
            "intermediate_size": len(named[f"{tower}.encoder.layers.0.mlp.fc1.weight"]),
            "num_hidden_layers": _layers(named, f"{tower}.encoder.layers.", where),
            "num_attention_heads": heads,
            "hidden_act": "quick_gelu" if quick_gelu else "gelu",
        }

    try:
        tokens = named["text_model.embeddings.token_embedding.weight"]
        text = {
            **transformer("text_model", tokens.shape[1], text_heads or tokens.shape[1] // HEAD),
            "vocab_size": len(tokens),
            "max_position_embeddings": _positions(named, where),
            "bos_token_id": START,
            "eos_token_id": END,
        }
        projection = named["visual_projection.weight"]  # [D, w]
        if resnet:
            for stage in range(1, STAGES + 1):
                _layers(named, f"vision_model.layer{stage}.", where)
            with torch.device("meta"):
                tower = ResNetTower.of(named)
            vision = {"hidden_size": projection.shape[1], "image_size": tower.side * STRIDE}
            vision |= {"num_hidden_layers": 0, "num_attention_heads": 1}
        else:
            patches = named["vision_model.embeddings.patch_embedding.weight"]
            side = round((len(named["vision_model.embeddings.position_embedding.weight"]) - 1) ** 0.5)
            vision = {
                **transformer("vision_model", len(patches), len(patches) // vision_head),
                "patch_size": patches.shape[-1],
                "image_size": side * patches.shape[-1],
            }
        features = len(named["text_projection.weight"])
    except KeyError as error:
        raise CheckpointError(
            f"the weight {error} is missing", where=f"checkpoint {where}", remedy=SUPPORTED
        ) from error
    if features != len(projection):
        raise CheckpointError(
            f"text features have {features} dimensions, but image features have {len(projection)}, so the two towers"
            " are not from the same CLIP",
            where=f"checkpoint {where}",
            remedy=AGAIN,
        )

    def build() -> Any:
        model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=features))
        if resnet:
            model.vision_model = ResNetTower.of(named)
            model.visual_projection = nn.Linear(projection.shape[1], features)
        return model

    with torch.device("meta"):  # the shapes of a few weights must not determine how much memory is taken
        expected, given = (
            {name: tuple(tensor.shape) for name, tensor in of.items()} for of in (build().state_dict(), named)
        )
        _check_shapes(expected, given, where)
    model = build()
    model.load_state_dict({name: tensor.float() for name, tensor in named.items()}, strict=False)
    return model


def text_state(
    weights: Mapping[str, Tensor], where: str, heads: int, quick_gelu: bool
) -> tuple[dict[str, Tensor], Any]:
    """Convert the weights of a CLIP-shaped text tower of OpenCLIP to the names of transformers.

    Parameters
    ----------
    weights
        Tensors under the names of OpenCLIP.
    where
        Name of the checkpoint in messages.
    heads
        Number of attention heads.
    quick_gelu
        Whether the activation is OpenAI's approximation of GELU.

    Returns
    -------
    tuple
        The tensors under the names of transformers, and the config of the tower.

    Raises
    ------
    CheckpointError
        If the weights are not from a CLIP-shaped text tower.
    """
    from transformers import CLIPTextConfig

    state = _renamed(weights, where)
    try:
        tokens = state["text_model.embeddings.token_embedding.weight"]
        if tokens.shape[1] % heads:
            raise CheckpointError(
                f"the text tokens have width {tokens.shape[1]}, which is not divisible by the config's {heads} heads",
                where=f"checkpoint {where}",
                remedy="Download the weights and the config again",
            )
        config = CLIPTextConfig(
            hidden_size=tokens.shape[1],
            intermediate_size=len(state["text_model.encoder.layers.0.mlp.fc1.weight"]),
            num_hidden_layers=_layers(state, "text_model.encoder.layers.", where),
            num_attention_heads=heads,
            hidden_act="quick_gelu" if quick_gelu else "gelu",
            vocab_size=len(tokens),
            max_position_embeddings=_positions(state, where),
            projection_dim=len(state["text_projection.weight"]),
            bos_token_id=len(tokens) - 2,
            eos_token_id=len(tokens) - 1,
        )
    except KeyError as error:
        raise CheckpointError(
            f"the weight {error} of the text tower is missing",
            where=f"checkpoint {where}",
            remedy="Download it again",
        ) from error
    _check_shapes(_text_shapes(config), _shapes(state), where)
    return state, config


def _text_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of CLIPTextModelWithProjection; importing this model takes seconds."""
    width, inner = config.hidden_size, config.intermediate_size
    of_layer: dict[str, tuple[int, ...]] = {
        **{f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")},
        **{"mlp.fc1": (inner, width), "mlp.fc2": (width, inner), "layer_norm1": (width,), "layer_norm2": (width,)},
    }
    shapes: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (config.vocab_size, width),
        "text_model.embeddings.position_embedding.weight": (config.max_position_embeddings, width),
        "text_model.final_layer_norm.weight": (width,),
        "text_model.final_layer_norm.bias": (width,),
        "text_projection.weight": (config.projection_dim, width),
    }
    for layer in range(config.num_hidden_layers):
        for name, shape in of_layer.items():
            at = f"text_model.encoder.layers.{layer}.{name}"
            shapes |= {f"{at}.weight": shape, f"{at}.bias": shape[:1]}
    return shapes


def _positions(named: Mapping[str, Tensor], where: str) -> int:
    """Return the number of positions of the text tower."""
    positions = len(named["text_model.embeddings.position_embedding.weight"])
    if positions > limits.POSITIONS:
        raise CheckpointError(
            where=f"positional_embedding in checkpoint {where}",
            allowed=f"of at most {limits.POSITIONS:,} positions",
            got=positions,
            remedy=AGAIN,
        )
    return positions


def _layers(named: Mapping[str, Tensor], prefix: str, where: str) -> int:
    """Return the number of layers whose weights start with a prefix; `_check_shapes` finds wrong numbers of layers."""
    parts = prefix.count(".") + 1
    layers = len({tuple(name.split(".")[:parts]) for name in named if name.startswith(prefix)})
    if layers > limits.LAYERS:
        raise CheckpointError(
            where=f"{prefix} in checkpoint {where}", allowed=f"at most {limits.LAYERS} layers", got=layers, remedy=AGAIN
        )
    return layers


def _renamed(weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the weights under the names of transformers; raise CheckpointError for another kind of model."""
    given = {re.sub(r"^(module\.)?(text\.)?", "", name): tensor for name, tensor in weights.items()}
    patterns = RENAMED_OF_RESNET if any(name.startswith("visual.layer1.") for name in given) else RENAMED_OF_TRANSFORMER
    named = {}
    for given_name, tensor in given.items():
        if given_name in NO_WEIGHTS or given_name.endswith(COUNT):
            continue
        name = TRANSPOSED.get(given_name, given_name)
        for pattern, replacement in patterns.items():
            name = re.sub(pattern, replacement, name)
        if not name.startswith(PREFIXES):
            raise CheckpointError(
                f"{given_name!r} is not a weight of a supported CLIP", where=f"checkpoint {where}", remedy=SUPPORTED
            )
        if ".in_proj_" in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                named[name.replace("in_proj_", f"{part}_proj.")] = rows
        else:
            named[name] = tensor.T.contiguous() if given_name in TRANSPOSED else tensor
    return named


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check_shapes(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise CheckpointError for the first tensor that is missing, unexpected or of another shape."""
    shapes = {name: shape for name, shape in expected.items() if not name.endswith(COUNT)}
    for name in sorted(shapes.keys() | given.keys()):
        if name not in shapes or name not in given:
            state = "is missing" if name in shapes else "does not belong to a CLIP of this shape"
            raise CheckpointError(f"the weight {name} {state}", where=f"checkpoint {where}", remedy=AGAIN)
        if given[name] != shapes[name]:
            raise CheckpointError(
                where=f"weight {name} in checkpoint {where}",
                allowed=f"of shape {shapes[name]}",
                got=given[name],
                remedy=AGAIN,
            )


def standard_processor(size: int, settings: Mapping[str, Any] | None = None) -> Any:
    """Return CLIP's preprocessing as implemented in transformers.

    It resizes the shorter side to `size` pixels (bicubic), crops the center, and normalizes with mean and standard
    deviation. If an odd number of pixels is cropped, it crops more on the right. The code of OpenAI and OpenCLIP may
    crop less.

    Parameters
    ----------
    size
        Width and height of the result, in pixels.
    settings
        OpenCLIP's preprocess_cfg, of which only `mean` and `std` are used.
    """
    from transformers import CLIPImageProcessorPil

    names = {"mean": "image_mean", "std": "image_std"}
    own = {names[key]: value for key, value in (settings or {}).items() if key in names}
    return CLIPImageProcessorPil(size=size, crop_size=size, **own)
