"""CLIP's text features with transformers' own modules: one class at a time, padded to the full context length."""

import torch
from transformers.masking_utils import create_causal_mask


def padded(clip, tokenizer, text, placeholders=0):
    """[SOS] placeholders text [EOS], filled with EOS to the checkpoint's context length."""
    words = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [tokenizer.bos_token_id] + [0] * placeholders + words + [tokenizer.eos_token_id]
    missing = clip.config.text_config.max_position_embeddings - len(ids)
    assert missing >= 0
    return torch.tensor([ids + [tokenizer.eos_token_id] * missing]), len(ids) - 1


def read_at(clip, embeddings, position, deeper=(), adapters=None):
    """Token embeddings [1, L, d] -> the text feature of unit length [D], read at a position.

    deeper: prompts [m, d] for each layer after the first one, at positions 1 … m. adapters: for each layer, a function
    of the layer's normalized input that is added to the output of the layer.
    """
    tower = clip.text_model
    everywhere = torch.arange(embeddings.shape[1])
    hidden = embeddings + tower.embeddings.position_embedding(everywhere)
    mask = create_causal_mask(
        config=clip.config.text_config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
    )
    for number, layer in enumerate(tower.encoder.layers):
        if 0 < number <= len(deeper):
            vectors = deeper[number - 1]
            hidden = torch.cat([hidden[:, :1], vectors[None], hidden[:, 1 + len(vectors) :]], dim=1)
        entered = hidden
        hidden = layer(hidden, mask, is_causal=True)
        if adapters and number in adapters:
            hidden = hidden + adapters[number](layer.layer_norm1(entered))
    hidden = tower.final_layer_norm(hidden)
    feature = clip.text_projection(hidden[0, position])
    return feature / torch.sqrt((feature * feature).sum())


def prompt_feature(clip, tokenizer, context, name, deeper=(), adapters=None, tail="{}."):
    """g([SOS] p_1 … p_M [class tokens] . [EOS]) of one class. context: [M, d]; tail: the text after the context."""
    M = len(context)
    ids, end = padded(clip, tokenizer, tail.format(name), placeholders=M)
    embeddings = clip.text_model.embeddings.token_embedding(ids)
    embeddings = torch.cat([embeddings[:, :1], context[None], embeddings[:, 1 + M :]], dim=1)
    return read_at(clip, embeddings, end, deeper, adapters)


def prompt_features(clip, tokenizer, context, names, deeper=(), adapters=None, tail="{}."):
    """The same for every class: [C, D]."""
    return torch.stack([prompt_feature(clip, tokenizer, context, name, deeper, adapters, tail) for name in names])


def template_features(clip, tokenizer, template, names):
    """Features [C, D] of a written prompt, tokenized as a whole and computed by transformers' CLIPModel."""
    rows = []
    for name in names:
        ids, _ = padded(clip, tokenizer, template.format(name))
        with torch.no_grad():
            feature = clip.get_text_features(input_ids=ids).pooler_output[0]
        rows.append(feature / torch.sqrt((feature * feature).sum()))
    return torch.stack(rows)
