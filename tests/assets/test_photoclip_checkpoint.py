"""The committed checkpoint in plain open_clip: it loads, keeps full precision where needed, and recognizes words."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from checksum_assets import checksums_of
from photoclip_space import mean_feature
from PIL import Image
from references import references
from safetensors.torch import load_file
from tokenizers import Tokenizer

LARGEST = 20_000_000  # bytes of the directory
PHOTOGRAPHS = [folder / "shared" / "caltech101" for folder in Path(__file__).parents]  # next to a checkout, if any


@pytest.fixture(scope="module")
def checkpoint(assets):
    return assets / "photoclip"


@pytest.fixture(scope="module")
def tensors(checkpoint):
    return load_file(checkpoint / "open_clip_model.safetensors")


@pytest.fixture(scope="module")
def loaded(checkpoint):
    """Model, preprocessing and tokenizer as loaded by open_clip, and the steps of the preprocessing."""
    with references():
        import open_clip

        logging.disable(logging.INFO)
        name = f"local-dir:{checkpoint}"
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        tokenizer = open_clip.get_tokenizer(name)
        logging.disable(logging.NOTSET)
        yield model.eval(), preprocess, tokenizer


def test_folder_is_small_and_complete(checkpoint, assets):
    names = {path.name for path in checkpoint.iterdir()}
    assert names == {
        "README.md",
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < LARGEST
    listed = json.loads((assets / "checksums.json").read_text(encoding="utf-8"))
    of_photoclip = {path: digest for path, digest in checksums_of(assets).items() if path.startswith("photoclip/")}
    assert of_photoclip.items() <= listed.items()
    assert len(of_photoclip) == len(names) - 1


def test_statistics_of_batch_norms_are_in_full_precision(tensors):
    statistics = {name: tensor for name, tensor in tensors.items() if "running_" in name}
    assert len(statistics) == 2 * 49  # batch-norms of EfficientNet-Lite0
    assert all(tensor.dtype == torch.float32 for tensor in statistics.values())
    others = [t for name, t in tensors.items() if name not in statistics and t.is_floating_point()]
    assert all(tensor.dtype == torch.float16 and tensor.isfinite().all() for tensor in others)


def test_open_clip_loads_all_weights(loaded, tensors):
    model, _, _ = loaded
    state = model.state_dict()
    assert set(tensors) == set(state)
    for name, tensor in tensors.items():
        torch.testing.assert_close(state[name], tensor.to(state[name].dtype), atol=0, rtol=0)


def test_preprocessing_is_as_the_tower_was_trained(loaded):
    _, preprocess, _ = loaded
    resize, crop, *_, normalize = preprocess.transforms
    assert resize.size == 224
    assert tuple(crop.size) == (224, 224)
    assert normalize.mean == pytest.approx([127 / 255] * 3)
    assert normalize.std == pytest.approx([128 / 255] * 3)


def test_bias_takes_out_the_mean_feature(tensors):
    last = {f"_bn1.{name}": tensors[f"visual.trunk.bn2.{name}"].float() for name in ("weight", "bias")}
    projection = tensors["visual.head.proj.weight"].float()
    expected = -projection @ mean_feature(last)
    torch.testing.assert_close(tensors["visual.head.proj.bias"].float(), expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(projection @ projection.T, torch.eye(512), atol=2e-3, rtol=0)


def test_tokenizer_is_that_of_open_clip(loaded, checkpoint):
    """Start and end have the two highest ids, and padding follows the end."""
    _, _, tokenizer = loaded
    text = "a photo of a grand piano."
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text).ids
    assert ids[0] == 8190
    assert ids[-1] == 8191
    given = tokenizer([text])[0].tolist()
    assert given[: len(ids)] == ids
    assert len(given) == 40


def test_words_with_similar_meanings_have_similar_features(loaded):
    model, _, tokenizer = loaded
    pairs = (("dog", "poodle", "airliner"), ("violin", "cello", "broccoli"), ("ship", "schooner", "beetle"))
    with torch.inference_mode():
        for word, near, far in pairs:
            texts = [f"a photo of a {name}." for name in (word, near, far)]
            features = model.encode_text(tokenizer(texts), normalize=True)
            assert features[0] @ features[1] > features[0] @ features[2] + 0.2, (word, near, far)


@pytest.mark.slow
def test_photographs_are_recognised_far_above_chance(loaded):
    """Classify one validation photograph of each class of Caltech 101 among all 100 names."""
    folder = next((path for path in PHOTOGRAPHS if path.is_dir()), None)
    if folder is None:
        pytest.skip("needs the photographs of Caltech 101 in shared/caltech101 next to the checkout")
    model, preprocess, tokenizer = loaded
    entries = json.loads((folder / "split_zhou_Caltech101.json").read_text(encoding="utf-8"))["val"]
    first = {label: (path, name.replace("_", " ")) for path, label, name in reversed(entries)}
    chosen = [first[label] for label in sorted(first)]
    pixels = [preprocess(Image.open(folder / "101_ObjectCategories" / path)) for path, _ in chosen]
    with torch.inference_mode():
        texts = model.encode_text(tokenizer([f"a photo of a {name}." for _, name in chosen]), normalize=True)
        images = model.encode_image(torch.stack(pixels), normalize=True)
    correct = (images @ texts.T).argmax(1).numpy() == np.arange(len(chosen))
    assert correct.mean() > 0.45  # chance level: 0.01
