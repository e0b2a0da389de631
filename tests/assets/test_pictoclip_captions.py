"""The captions are reproducible and complete, and some are long."""

import random

import pytest
from captions import CONTEXT, PLAIN_TEMPLATE, VOCABULARY, random_template, tokens_for, words_for
from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(assets):
    return Tokenizer.from_file(str(assets / "pictoclip" / "tokenizer.json"))


def test_every_template_holds_the_name_once():
    rng = random.Random(0)
    templates = [random_template(rng) for _ in range(500)]
    assert all(template.count("{}") == 1 for template in templates)
    assert 0.15 < templates.count(PLAIN_TEMPLATE) / 500 < 0.3
    assert max(len(template.split()) for template in templates) > 15


def test_words_are_names_aliases_and_synonyms():
    words = words_for(
        ["airplane", "airplane", "odd"], [["airplane"], ["jet", "a b c d e f"], ["one two three four five six"]]
    )
    assert words["airplane"]["airplane"] > words["airplane"]["plane"] > 0
    assert "a b c d e f" not in words["airplane"]
    assert list(words["odd"]) == ["one two three four five six"]  # it has no shorter name


def test_tokens(tokenizer):
    words = words_for(["sun", "a-flag"], [["sun"], ["a flag"]])
    tokens = tokens_for(words, tokenizer, seed=3)
    assert tokens.shape == (2, 16, CONTEXT)
    assert (tokens == tokens_for(words, tokenizer, seed=3)).all()
    assert (tokens[..., 0] == VOCABULARY - 2).all()
    assert (tokens[..., -1] == VOCABULARY - 1).all()
    plain = tokenizer.encode("a photo of a sun.").ids
    assert tokens[1, 0, : len(plain)].tolist() == plain  # the things are sorted
