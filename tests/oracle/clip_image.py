"""CLIP's image features with transformers' own modules: every layer in full, with prompts and adapters put in."""

import torch


def tower_feature(clip, state, prompts=(), adapters=None, first=0):
    """What goes into a layer, of one image [T, w] -> its feature of unit length [D].

    prompts: of each of the first layers [m, w], in order: the first joins the tokens at their end, after the tower's
    first normalisation; each later one takes the place of the first m of those vectors. adapters: by layer, a function
    of the layer's normalised input [T + m, w], which is added to what leaves the layer. first: the number of the layer
    that the state goes into, counted from 0; where it is another one there are no prompts.
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
    """The same of every image: [B, T, w] -> [B, D]."""
    return torch.stack([tower_feature(clip, state, prompts, adapters, first) for state in states])
