"""CLIP's image features with transformers' own modules: every layer in full, with prompts and adapters."""

import torch


def tower_feature(clip, state, prompts=(), adapters=None, first=0):
    """Input of a layer for one image [T, w] -> image feature of unit length [D].

    prompts: one prompt [m, w] for each of the first layers, in order. The first one follows the tokens, after the
    tower's first normalization. Each later one replaces the first m of these vectors. adapters: for each layer, a
    function of the layer's normalized input [T + m, w] that is added to the output of the layer. first: number of the
    layer whose input is the state, counted from 0; if it is not 0, there are no prompts.
    """
    tower = clip.vision_model
    T, hidden = len(state), state
    if len(prompts):
        assert first == 0
        hidden = torch.cat([hidden, tower.pre_layrnorm(prompts[0])])
    for number, layer in enumerate(tower.encoder.layers):
        if number < first:
            continue
        if 0 < number < len(prompts):
            own = prompts[number]
            hidden = torch.cat([hidden[:T], own, hidden[T + len(own) :]])
        entered = hidden
        hidden = layer(hidden[None], None)[0]
        if adapters and number in adapters:
            hidden = hidden + adapters[number](layer.layer_norm1(entered))
    feature = clip.visual_projection(tower.post_layernorm(hidden[0]))
    return feature / torch.sqrt((feature * feature).sum())


def tower_features(clip, states, prompts=(), adapters=None, first=0):
    """The same for every image: [B, T, w] -> [B, D]."""
    return torch.stack([tower_feature(clip, state, prompts, adapters, first) for state in states])
