"""Class names that a checkpoint cannot read or cannot distinguish."""

import unicodedata
from contextlib import nullcontext
from dataclasses import replace

import pytest
from raising import raises
from tiny import SHORT_RUN

import fedpgp
from fedpgp.backbone.tokens import check_readable
from fedpgp.data.sources.names import plain
from fedpgp.errors import CheckpointError


@pytest.mark.parametrize(
    ("names", "where"),
    [
        (("zebra", "猫"), "class name '猫'"),
        (("C++", "C#"), "'C++' and 'C#'"),
        (("café", unicodedata.normalize("NFD", "café")), "class names "),
        (("Maße", "Masse"), ""),
        (("fire_engine", "zebra"), ""),
        (("zebra", "zebra"), ""),  # a class in two test sets is not a second class
    ],
)
def test_names_are_compared_as_the_checkpoint_reads_them(names, where, backbone):
    with raises(CheckpointError, where=where) if where else nullcontext():
        check_readable(backbone.tokenizer, names)


def test_the_unknown_token_of_a_tokenizer_does_not_count():
    class Words:
        unk_token_id = 0

        def __call__(self, text, *, add_special_tokens):
            return {"input_ids": [{"cat": 1}.get(word, 0) for word in text.split()]}

    check_readable(Words(), ["cat", "cat x"])
    with raises(CheckpointError, where="class name 'dog'"):
        check_readable(Words(), ["cat", "dog"])


def test_text_names_ignore_how_accents_are_encoded_but_not_other_letters():
    assert plain("café") == plain(unicodedata.normalize("NFD", "CAFÉ")) and plain("Maße") != plain("Masse")


def test_a_run_and_a_classifier_refuse_such_names(compared, small, small_source, cache, monkeypatch):
    with raises(CheckpointError, where="class name '猫'"):
        fedpgp.load(compared / "fedpgp/seed-0").classify([], ["zebra", "猫"])
    names = ("猫", *small_source.class_names[1:])
    source = small_source.changed(lambda dataset: replace(dataset, class_names=names))
    monkeypatch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: source)
    with raises(CheckpointError, where="class name '猫'"):
        fedpgp.run("zero-shot", changes=SHORT_RUN, cache=cache)
