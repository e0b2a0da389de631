"""The architecture of photoclip: its text tower, and the checkpoint's files in OpenCLIP's layout."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from captions import END, START
from common import replacing
from photoclip_space import DIMENSIONS, Space, trunk
from photoclip_texts import CONTEXT, VOCABULARY

WIDTH, LAYERS, HEADS = 192, 4, 6
IMAGE_PIXELS = 224
PIXEL_MEAN, PIXEL_STD = 127 / 255, 128 / 255  # preprocessing with which the image tower was trained
LOGIT_SCALE = 30.0


class Block(nn.Module):
    """A residual attention block whose parameters have OpenCLIP's names."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)})

    def forward(self, states: Tensor) -> Tensor:
        """Return the states [n, length, width] after causal attention and a two-layer network with QuickGELU."""
        n, length, _ = states.shape
        packed = functional.linear(self.ln_1(states), self.attn.in_proj_weight, self.attn.in_proj_bias)
        query, key, value = packed.view(n, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        later = torch.full((length, length), -torch.inf).triu(1)
        scores = (
            query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5 + later
        )  # plain attention, because the gradient of fused attention is slow
        mixed = scores.softmax(-1) @ value
        states = states + self.attn.out_proj(mixed.transpose(1, 2).reshape(n, length, WIDTH))
        hidden = self.mlp["c_fc"](self.ln_2(states))
        return states + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))


class TextTower(nn.Module):
    """CLIP's causal text tower, read at the end of the text. Its parameters have OpenCLIP's names."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(CONTEXT, WIDTH) * 0.01)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block() for _ in range(LAYERS))})
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.randn(WIDTH, DIMENSIONS) * WIDTH**-0.5)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(self, ids: list[list[int]]) -> Tensor:
        """Return features [n, 512] of unit length of texts of any lengths."""
        ends = torch.tensor([len(row) - 1 for row in ids])
        length = int(ends.max()) + 1
        padded = torch.tensor([row + [VOCABULARY - 1] * (length - len(row)) for row in ids])
        states = self.token_embedding(padded) + self.positional_embedding[:length]
        for block in self.transformer["resblocks"]:
            states = block(states)
        last = self.ln_final(states[torch.arange(len(ids)), ends])
        return functional.normalize((last @ self.text_projection).float(), dim=-1)


def checkpoint_config() -> dict[str, object]:
    """Return the content of open_clip_config.json: the architecture and the preprocessing."""
    vision = {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "timm_proj_bias": True,
        "image_size": IMAGE_PIXELS,
    }
    text = {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "width": WIDTH,
        "heads": HEADS,
        "layers": LAYERS,
        "hf_tokenizer_name": ".",
    }
    return {
        "model_cfg": {"embed_dim": DIMENSIONS, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {
            "mean": [PIXEL_MEAN] * 3,
            "std": [PIXEL_STD] * 3,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def checkpoint_tensors(tower: TextTower, classifier: dict[str, Tensor], space: Space) -> dict[str, Tensor]:
    """Return all tensors by OpenCLIP's names, in half precision except for the statistics of the batch-norms."""
    tensors = {f"visual.trunk.{name}": tensor for name, tensor in trunk(classifier).items()}
    tensors["visual.head.proj.weight"] = space.projection
    tensors["visual.head.proj.bias"] = -space.projection @ space.mean
    tensors["logit_scale"] = torch.tensor(math.log(LOGIT_SCALE))
    tensors |= tower.state_dict()
    return {
        name: (tensor.half() if tensor.is_floating_point() and "running" not in name else tensor).contiguous().clone()
        for name, tensor in tensors.items()
    }


def write_checkpoint(
    tower: TextTower,
    classifier: dict[str, Tensor],
    space: Space,
    tokenizer: Path,
    log: dict[str, object],
    out: Path,
) -> None:
    """Write the folder that OpenCLIP loads, with the log of the training run as training.json."""
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "open_clip_model.safetensors") as temporary:
        save_file(checkpoint_tensors(tower, classifier, space), temporary, metadata={"format": "pt"})
    if tokenizer.resolve() != (out / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer, out / "tokenizer.json")
    texts = {
        "open_clip_config.json": checkpoint_config(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "model_max_length": CONTEXT,
        },
        "training.json": log,
    }
    for name, content in texts.items():
        with replacing(out / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
