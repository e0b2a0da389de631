"""The tool that trains photoclip is reproducible and resumable, and writes a checkpoint that OpenCLIP loads."""

import json
import math

import numpy as np
import photoclip_space
import photoclip_texts
import photoclip_tower
import pytest
import torch
import train_photoclip
from captions import train_tokenizer
from photoclip_space import ImageNet, mean_feature
from photoclip_texts import CLASS, OTHER, cached_embeddings, draw_texts, gloss_text, make_vocabulary, senses_of
from photoclip_tower import write_checkpoint
from safetensors.torch import load_file
from torch.nn import functional
from train_photoclip import (
    Settings,
    check,
    held_out_classes,
    learning_rate,
    load_state,
    loss_of,
    new_run,
    save_state,
    take_step,
)
from wordnet import read_wordnet

SETTINGS = Settings(texts=16, steps=4)
TEMPLATES = ["a photo of a {}.", "{}", "this is a nice picture of one {} in the sun"]

# Offset, number of the lexicographer's file, names, hypernym's offset ("" for none), gloss. The tree:
# physical entity > animal > (bird > (cock, crane), dog > (pug, poodle)), artifact > crane (the machine); act > crane.
NOUNS = [
    ("00000001", 3, ["physical_entity"], "", "what exists"),
    ("00000002", 5, ["animal", "beast"], "00000001", "a living being that moves"),
    ("00000003", 5, ["bird"], "00000002", "an animal with feathers"),
    ("00000004", 5, ["cock", "rooster"], "00000003", "a male bird"),
    ("00000005", 5, ["crane"], "00000003", "a large bird with long legs"),
    ("00000006", 5, ["dog"], "00000002", "an animal that barks"),
    ("00000007", 5, ["pug"], "00000006", "a small dog"),
    ("00000008", 5, ["poodle"], "00000006", "a dog with curls"),
    ("00000009", 6, ["crane"], "00000001", 'a machine that lifts; "a crane at the port"'),
    ("00000010", 4, ["crane"], "", "the act of stretching one's neck"),
    ("00000011", 7, ["beauty"], "", "a quality"),
]
SENSES = {"crane": ["00000010", "00000005", "00000009"]}
CLASSES = ["00000004", "00000007", "00000009"]


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory):
    """WordNet's two files with eleven nouns."""
    folder = tmp_path_factory.mktemp("wordnet")
    data, names = ["  1 the licence"], {}
    for offset, category, words, above, gloss in NOUNS:
        pointers = f"001 @ {above} n 0000" if above else "000"
        words_field = " ".join(f"{word} 0" for word in words)
        data.append(f"{offset} {category:02d} n {len(words):02x} {words_field} {pointers} | {gloss}  ")
        for word in words:
            names.setdefault(word, []).append(offset)
    names |= SENSES
    tagged = {"crane": 1, "dog": 1}
    index = ["  1 the licence"] + [
        f"{name} n {len(offsets)} 1 @ {len(offsets)} {tagged.get(name, 0)} {' '.join(offsets)}  "
        for name, offsets in names.items()
    ]
    (folder / "data.noun").write_text("\n".join(data) + "\n")
    (folder / "index.noun").write_text("\n".join(index) + "\n")
    return read_wordnet(folder)


@pytest.fixture(scope="module")
def classifier():
    """Return a last layer with three classes and 1,280 channels, and its batch normalization."""
    generator = torch.Generator().manual_seed(0)
    return {
        "_fc.weight": torch.randn(len(CLASSES), 1280, generator=generator),
        "_fc.bias": torch.zeros(len(CLASSES)),
        "_bn1.weight": torch.rand(1280, generator=generator) * 2 + 0.5,
        "_bn1.bias": torch.randn(1280, generator=generator),
    }


@pytest.fixture(scope="module")
def space(classifier):
    rows = torch.randn(len(CLASSES), photoclip_space.DIMENSIONS, generator=torch.Generator().manual_seed(1))
    return photoclip_space.Space(torch.eye(512, 1280), mean_feature(classifier), functional.normalize(rows, dim=1))


@pytest.fixture(scope="module")
def imagenet(classifier):
    return ImageNet(classifier, CLASSES, ["cock", "pug dog", "construction crane"])


def vectors_of(texts):
    """Return a fixed random vector for each text, independent of the order of the texts."""
    rows = [np.random.default_rng(list(text.encode())).normal(size=384) for text in texts]
    return functional.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=1).half()


def vocabulary_of(wordnet, imagenet, space, rows=(), names=()):
    held = [np.isin(np.arange(len(CLASSES)), chosen) for chosen in (rows, names)]
    return make_vocabulary(wordnet, imagenet, space, vectors_of, *held)


@pytest.fixture(scope="module")
def vocabulary(wordnet, imagenet, space):
    return vocabulary_of(wordnet, imagenet, space)


@pytest.fixture(scope="module")
def tokenizer():
    """Tokenizer with at most 400 entries that knows every word of the nouns; start and end have the last two ids."""
    nouns = [text for _, _, words, _, gloss in NOUNS for text in (gloss, *words)]
    return train_tokenizer([*nouns, *TEMPLATES, "construction word"] * 2, 400)


@pytest.fixture
def small(monkeypatch, tokenizer):
    """Use a vocabulary of the tokenizer's size instead of 8,192."""
    for module in (photoclip_tower, photoclip_texts):
        monkeypatch.setattr(module, "VOCABULARY", tokenizer.get_vocab_size())


def advance(run, vocabulary, tokenizer, steps):
    return [take_step(run, vocabulary, TEMPLATES, tokenizer, SETTINGS) for _ in range(steps)]


def test_wordnet_is_read(wordnet):
    crane = wordnet.synsets["00000009"]
    assert crane.gloss == "a machine that lifts"
    assert wordnet.synsets["00000004"].words == ("cock", "rooster")
    assert wordnet.ancestors["00000004"] == {"00000004", "00000003", "00000002", "00000001"}
    assert wordnet.information["00000004"] == 1
    assert wordnet.information["00000002"] == pytest.approx(1 - math.log(7) / math.log(len(NOUNS)))


def test_mean_feature_is_the_mean_of_relu6_of_a_normal_variable(classifier):
    noise = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    samples = (classifier["_bn1.bias"] + classifier["_bn1.weight"] * noise).clamp(0, 6)
    torch.testing.assert_close(mean_feature(classifier), samples.mean(0), atol=0.05, rtol=0)


def test_space_is_that_of_the_centred_rows_with_fixed_signs(classifier, monkeypatch):
    monkeypatch.setattr(photoclip_space, "DIMENSIONS", 2)  # three rows minus their mean
    space = photoclip_space.make_space(classifier)
    rows = classifier["_fc.weight"]
    cosines = functional.normalize(rows - rows.mean(0), dim=1)
    torch.testing.assert_close(space.rows @ space.rows.T, cosines @ cosines.T, atol=1e-5, rtol=0)
    torch.testing.assert_close(space.rows @ space.projection, cosines, atol=1e-5, rtol=0)
    assert (space.projection.amax(1) == space.projection.abs().amax(1)).all()


def test_targets_follow_the_definition(wordnet, imagenet, space, vocabulary):
    """A class has its row, an ancestor the mean of its classes' rows, another synset a weighted mean of all rows."""
    offsets = photoclip_texts.chosen_synsets(wordnet)
    assert "00000011" not in offsets  # a quality is not visible
    target = {offset: vocabulary.targets[number].float() for number, offset in enumerate(offsets)}
    cock, pug, machine = space.rows
    close = {"atol": 1e-3, "rtol": 0}
    torch.testing.assert_close(target["00000007"], pug, **close)
    torch.testing.assert_close(target["00000002"], functional.normalize(cock + pug, dim=0), **close)

    def vector(text):
        return vectors_of([text])[0].float()

    weights = []
    for name in CLASSES:
        names = functional.normalize(sum(vector(w) for w in wordnet.synsets[name].words), dim=0)
        common = wordnet.ancestors[name] & wordnet.ancestors["00000008"]
        information = max(wordnet.information[offset] for offset in common)
        gloss = vector(gloss_text(wordnet.synsets[name])) @ vector(gloss_text(wordnet.synsets["00000008"]))
        weights.append(math.exp((0.5 * names @ vector("poodle") + gloss + 0.5 * information) / 0.1))
    poodle = sum(weight * row for weight, row in zip(weights, (cock, pug, machine), strict=True))
    torch.testing.assert_close(target["00000008"], functional.normalize(poodle, dim=0), **close)


def test_common_and_visible_senses_weigh_most(wordnet):
    number_of = {offset: number for number, offset in enumerate(photoclip_texts.chosen_synsets(wordnet))}
    shares = dict(senses_of(wordnet, "crane", number_of))
    bird, machine, act = (number_of[offset] for offset in ("00000005", "00000009", "00000010"))
    total = 0.15 + 2 / 2.5  # the act is the only tagged sense, but it is not visible
    assert shares[act] == pytest.approx(0.15 / total)
    assert shares[bird] == shares[machine] == pytest.approx(0.4 / total)


def test_held_out_classes_leave_no_trace(wordnet, imagenet, space, tokenizer, small):
    vocabulary = vocabulary_of(wordnet, imagenet, space, rows=(1, 2), names=(1,))
    torch.testing.assert_close(vocabulary.rows, space.rows[:1])
    assert not {"pug", "pug dog"} & set(vocabulary.names)
    assert {"cock", "construction crane", "poodle"} <= set(vocabulary.names)
    likeness = vocabulary.targets.float() @ space.rows[0]
    assert likeness.min() > 0.999  # one row remains for the targets


def test_draws_are_of_unit_length_and_of_all_kinds(vocabulary, tokenizer, small):
    ids, targets = draw_texts(vocabulary, TEMPLATES, tokenizer, 3000, np.random.default_rng(0))
    torch.testing.assert_close(targets.norm(dim=1), torch.ones(3000))
    texts = {tokenizer.decode(row) for row in ids}
    assert {"a photo of a pug .", "a photo of a bird .", "a photo of a poodle .", "an animal that barks"} <= texts
    assert max(map(len, ids)) <= 40
    assert all(row[-1] == tokenizer.token_to_id("<|endoftext|>") for row in ids)


def test_long_text_keeps_its_name(vocabulary, tokenizer, small):
    ids, _ = draw_texts(vocabulary, ["word " * 60 + "{}"], tokenizer, 50, np.random.default_rng(0))
    texts = {tokenizer.decode(row) for row in ids}
    assert "a photo of a pug ." in texts
    assert not any("word" in text for text in texts)


def test_resumed_run_equals_an_uninterrupted_one(vocabulary, tokenizer, small, tmp_path):
    whole = new_run(SETTINGS)
    losses = advance(whole, vocabulary, tokenizer, 4)
    interrupted = new_run(SETTINGS)
    assert advance(interrupted, vocabulary, tokenizer, 2) == losses[:2]
    save_state(interrupted, SETTINGS, tmp_path / "state")
    resumed = new_run(SETTINGS)
    load_state(resumed, SETTINGS, tmp_path / "state")
    assert advance(resumed, vocabulary, tokenizer, 2) == losses[2:]
    for a, b in zip(whole.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_state_of_other_settings_is_refused(small, tmp_path):
    save_state(new_run(SETTINGS), SETTINGS, tmp_path / "state")
    with pytest.raises(SystemExit, match="other settings"):
        load_state(new_run(SETTINGS), Settings(texts=16, steps=5), tmp_path / "state")


def test_checkpoint_files(classifier, space, tokenizer, small, assets, tmp_path, monkeypatch):
    monkeypatch.setattr(photoclip_tower, "trunk", lambda classifier: {"bn2.running_mean": torch.full((4,), 1 / 3)})
    tokenizer.save(str(tmp_path / "made.json"))
    tower = new_run(SETTINGS).average
    write_checkpoint(tower, classifier, space, tmp_path / "made.json", {"log": []}, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert tensors["visual.trunk.bn2.running_mean"].dtype == torch.float32
    assert tensors["text_projection"].dtype == torch.float16
    bias = tensors["visual.head.proj.bias"].float()
    torch.testing.assert_close(bias, -space.mean[:512], atol=2e-3, rtol=0)
    assert json.loads((tmp_path / "out" / "training.json").read_text()) == {"log": []}
    shipped = {path.name for path in (assets / "photoclip").iterdir()} - {"README.md"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == shipped


def test_loss_is_zero_at_the_target_and_grows_with_the_distance(space):
    rows = space.rows
    at_target = loss_of(rows, rows, rows, SETTINGS)
    beside = loss_of(rows.roll(1, 0), rows, rows, SETTINGS)
    assert at_target.item() == pytest.approx(0, abs=1e-4)
    assert beside > 1


def test_held_out_classes_are_two_hundred_and_half_of_their_names():
    rows, names = held_out_classes(Settings(hold_out=True))
    assert rows.sum() == 200
    assert names.sum() == 100
    assert rows[names].all()
    assert not any(held.any() for held in held_out_classes(Settings()))


def test_check_tells_held_out_names_apart_among_held_out_rows(classifier, tokenizer, small, monkeypatch):
    rows = functional.normalize(torch.randn(20, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    held_rows, held_names = np.arange(20) >= 8, np.arange(20) >= 14
    monkeypatch.setattr(train_photoclip, "held_out_classes", lambda settings: (held_rows, held_names))
    features = rows.clone()
    features[8:11], features[14:] = rows[0], rows[15]  # a trained row is not among the answers
    imagenet = ImageNet(classifier, CLASSES, [f"name {number}" for number in range(20)])
    result = check(lambda ids: features, imagenet, rows, tokenizer, SETTINGS)
    assert result["trained_top1"] == result["trained_top5"] == 100
    assert result["trained_cosine"] == 1
    assert 50 <= result["held_out_rows_top1"] < 100
    assert result["held_out_names_top1"] == pytest.approx(100 / 6, abs=0.1)


def test_learning_rate_warms_up_and_fades():
    settings = Settings()
    assert learning_rate(0, settings) < 1e-5
    assert learning_rate(300, settings) == pytest.approx(1.5e-3, rel=0.02)
    assert learning_rate(settings.steps - 1, settings) < 1e-5


def test_embeddings_are_cached_for_the_same_texts(tmp_path):
    calls = []

    def encoder():
        calls.append(1)
        return lambda texts: torch.ones(len(texts), 2)

    for texts in (["a", "b"], ["a", "b"], ["a"]):
        assert cached_embeddings(texts, tmp_path / "cache", encoder).shape == (len(texts), 2)
    assert len(calls) == 2


def test_kinds(wordnet, space):
    offsets = photoclip_texts.chosen_synsets(wordnet)
    texts = {word for s in wordnet.synsets.values() for word in [*map(str.lower, s.words), gloss_text(s)]}
    vectors = dict(zip(sorted(texts), vectors_of(sorted(texts)), strict=True))
    kept = np.array([True, True, False])
    _, kinds = photoclip_texts.synset_targets(wordnet, offsets, CLASSES, space, vectors, kept)
    kind = dict(zip(offsets, kinds, strict=True))
    assert kind["00000004"] == CLASS
    assert kind["00000009"] == OTHER  # its row is held out
