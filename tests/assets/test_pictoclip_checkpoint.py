"""The committed checkpoint in plain transformers: it loads, finds the end of text by both rules, and works."""

import copy

import numpy as np
import pytest
import torch
from evaluate_pictoclip import ZeroShot, read_classes, read_split
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

LARGEST = 8_000_000  # bytes of the directory


@pytest.fixture(scope="module")
def checkpoint(assets):
    return assets / "pictoclip"


@pytest.fixture(scope="module")
def model(checkpoint):
    return CLIPModel.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint)


def test_folder_is_small_and_complete(checkpoint):
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < LARGEST


def test_weights_are_finite_and_all_loaded(checkpoint):
    model, report = CLIPModel.from_pretrained(checkpoint, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_end_of_text_is_the_highest_id_and_not_2(model, tokenizer):
    end = model.config.text_config.eos_token_id
    assert end == tokenizer.eos_token_id == model.config.text_config.vocab_size - 1
    assert end != 2
    assert model.config.text_config.max_position_embeddings >= 40
    assert tokenizer("a photo of a fish.")["input_ids"][-1] == end


def test_both_rules_for_the_end_of_text_agree(model, tokenizer):
    """transformers uses the position of the highest id if the configured end is 2, else the first configured end."""
    texts = ["a photo of a fish.", "fish", "here you can see a very small shiny drawing of a fire engine on white."]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    by_highest = copy.deepcopy(model.text_model)
    by_highest.config.eos_token_id = 2
    for module in by_highest.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = 2
    with torch.inference_mode():
        states = model.text_model(input_ids=tokens).last_hidden_state
        first = model.text_model(input_ids=tokens).pooler_output
        highest = by_highest(input_ids=tokens).pooler_output
    assert torch.equal(first, highest)
    ends = (tokens == tokenizer.eos_token_id).int().argmax(1)
    assert torch.equal(first, states[torch.arange(len(texts)), ends])


def test_text_beyond_the_end_changes_nothing(model, tokenizer):
    short = tokenizer(["a photo of a fish."], return_tensors="pt")["input_ids"]
    padded = tokenizer(["a photo of a fish."], padding="max_length", max_length=40, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        features = [model.text_model(input_ids=tokens).pooler_output for tokens in (short, padded)]
    torch.testing.assert_close(*features, atol=1e-5, rtol=0)


def test_clean_renders_are_recognised_far_above_chance(checkpoint, assets, model, tokenizer):
    data = assets / "pictograms"
    names, unseen = read_classes(data)
    images = read_split(data, "clean", CLIPImageProcessor.from_pretrained(checkpoint), styles=("noto", "openmoji"))
    classifier = ZeroShot(model, tokenizer, names)
    correct = np.concatenate([(classifier.predict(pixels) == labels)[~unseen] for pixels, labels in images.values()])
    assert correct.mean() > 0.5  # chance level: 0.008
