"""FedPGP as public code computes it: the yardstick, written to be read and not to be fast.

Transcribed from what is known of the authors' code (docs/differences.md, number 3), on transformers' own modules: four
text passes of whole sequences in every step, for p_G, for p_i, for U V alone (never used) and for z_C (constant), and
the image encoder for every image whenever it is looked at. One thing is done as in the paper and not as there: z_C is
that of "a photo of a {class}.", so that both sides compute the same numbers.

Letters: C classes, L sequence length, M context vectors, b bottleneck, B images, d token width, D feature width.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fedpgp.backbone import Backbone
from fedpgp.backbone.tokens import ClassTokens, text_ids

if TYPE_CHECKING:
    from transformers import CLIPModel

TEST_BATCH = 100  # of the public configurations


@dataclass(frozen=True)
class Sequences:
    """Whole sequences of token ids [C, L] with placeholders where the context goes, and where to read them [C]."""

    ids: Tensor
    end: Tensor

    def cut(self) -> "Sequences":
        """Without what stands behind the last EOS of all."""
        return Sequences(self.ids[:, : int(self.end.max()) + 1], self.end)


def sequences(backbone: Backbone, context: Sequence[int], tokens: ClassTokens, length: int) -> Sequences:
    """[SOS] context [class tokens] . [EOS], filled with EOS to `length`."""
    C, before = len(tokens), 1 + len(context)
    ids = torch.full((C, length), backbone.tokenizer.eos_token_id)
    ids[:, :before] = torch.tensor([backbone.tokenizer.bos_token_id, *context])
    ids[:, before : before + tokens.ids.shape[1]] = tokens.ids
    return Sequences(ids, before + tokens.end)


@dataclass(frozen=True)
class Naive:
    """A client's model over some classes. prompt: sequences with M placeholders; template: with "a photo of a"."""

    model: "CLIPModel"
    prompt: Sequences
    template: Sequences
    mu: float
    tau: float

    def texts(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """z_C, z_G and z_i, [C, D] each; values: p_G [M, d], U [M, b], V [b, d]."""
        p_G, UV = values["p_G"], values["U"] @ values["V"]
        z_C = read(self.model, self.template)
        z_G = read(self.model, self.prompt, p_G)
        z_i = read(self.model, self.prompt, p_G + UV)
        read(self.model, self.prompt, UV)
        return z_C, z_G, z_i

    def loss(self, values: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
        """The client loss. images: features [B, D]; labels: [B] columns of the softmax."""
        z_C, z_G, z_i = self.texts(values)
        logits = self.model.logit_scale.exp() * images @ z_i.T
        cosines = torch.stack([F.cosine_similarity(z_C, z_G), F.cosine_similarity(z_G, z_i)], dim=1) / self.tau
        first = torch.zeros(len(cosines), dtype=torch.long)
        return F.cross_entropy(logits, labels) + self.mu * F.cross_entropy(cosines, first)

    @torch.no_grad()
    def predict(self, values: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
        """Predicted columns [n] of test images: both encoders run anew for every batch."""
        columns = []
        for batch in pixels.split(TEST_BATCH):
            _, _, z_i = self.texts(values)
            columns.append((self.model.logit_scale.exp() * see(self.model, batch) @ z_i.T).argmax(-1))
        return torch.cat(columns)


def make_naive(
    backbone: Backbone, model: "CLIPModel", class_names: Sequence[str], M: int, mu: float, tau: float
) -> Naive:
    """The model over these classes, with sequences of the full length that the checkpoint reads."""
    text_config: Any = model.config.text_config
    tokens, length = backbone.class_tokens(class_names), text_config.max_position_embeddings
    phrase = text_ids(backbone.tokenizer, "a photo of a")
    placeholders = [backbone.tokenizer.eos_token_id] * M
    return Naive(
        model=model,
        prompt=sequences(backbone, placeholders, tokens, length),
        template=sequences(backbone, phrase, tokens, length),
        mu=mu,
        tau=tau,
    )


def read(model: "CLIPModel", text: Sequences, context: Tensor | None = None) -> Tensor:
    """Text features [C, D] of unit length, with the context [M, d] in its place if one is given."""
    from transformers.masking_utils import create_causal_mask

    tower = model.text_model
    text_config: Any = model.config.text_config
    hidden = tower.embeddings.token_embedding(text.ids)
    if context is not None:
        own = context.expand(len(hidden), -1, -1)
        hidden = torch.cat([hidden[:, :1], own, hidden[:, 1 + len(context) :]], dim=1)
    hidden = hidden + tower.embeddings.position_embedding.weight[: hidden.shape[1]]
    mask = create_causal_mask(config=text_config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
    hidden = tower.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    hidden = tower.final_layer_norm(hidden)
    return F.normalize(model.text_projection(hidden[torch.arange(len(hidden)), text.end]), dim=-1)


def see(model: "CLIPModel", pixels: Tensor) -> Tensor:
    """Image features [B, D] of unit length of preprocessed images."""
    return F.normalize(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1)


def train(
    naive: Naive,
    start: Mapping[str, Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    rate: float,
    momentum: float,
    weight_decay: float,
) -> dict[str, Tensor]:
    """One client's local training over batches of pixels and labels: the values after it."""
    values = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    optimizer = torch.optim.SGD(list(values.values()), lr=rate, momentum=momentum, weight_decay=weight_decay)
    for pixels, labels in batches:
        optimizer.zero_grad()
        naive.loss(values, see(naive.model, pixels), labels).backward()
        optimizer.step()
    return {name: value.detach() for name, value in values.items()}
