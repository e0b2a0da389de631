"""Class names that a checkpoint cannot read, or cannot tell apart."""

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


def test_a_tokenizer_with_a_token_for_what_it_does_not_know_is_no_exception():
    class Words:
        unk_token_id = 0

        def __call__(self, text, *, add_special_tokens):
            return {"input_ids": [{"cat": 1}.get(word, 0) for word in text.split()]}

    check_readable(Words(), ["cat", "cat x"])
    with raises(CheckpointError, where="class name 'dog'"):
        check_readable(Words(), ["cat", "dog"])


def test_names_as_texts_are_the_same_where_an_accent_is_encoded_in_another_way_but_not_where_letters_differ():
    assert plain("café") == plain(unicodedata.normalize("NFD", "CAFÉ")) and plain("Maße") != plain("Masse")


def test_a_run_and_a_classifier_refuse_such_names(compared, small, small_source, cache, monkeypatch):
    with raises(CheckpointError, where="class name '猫'"):
        fedpgp.load(compared / "fedpgp/seed-0").classify([], ["zebra", "猫"])
    names = ("猫", *small_source.class_names[1:])
    source = small_source.changed(lambda dataset: replace(dataset, class_names=names))
    monkeypatch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: source)
    with raises(CheckpointError, where="class name '猫'"):
        fedpgp.run("zero-shot", changes=SHORT_RUN, cache=cache)
