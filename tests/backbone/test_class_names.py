"""Class names that a checkpoint cannot read, or cannot tell apart."""

import unicodedata
from contextlib import nullcontext
from dataclasses import replace

import pytest
from tiny import SHORT_RUN

import fedpgp
from fedpgp.backbone.tokens import check_readable
from fedpgp.data.sources.names import plain
from fedpgp.errors import CheckpointError


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("zebra", "猫"), "'猫' has no token"),
        (("C++", "C#"), r"'C\+\+' and 'C#' are the same tokens"),
        (("café", unicodedata.normalize("NFD", "café")), "are the same tokens"),
        (("Maße", "Masse"), ""),
        (("fire_engine", "zebra"), ""),
        (("zebra", "zebra"), ""),  # one class in two test sets is no other class
    ],
)
def test_names_are_compared_as_the_checkpoint_reads_them(names, told, backbone):
    with pytest.raises(CheckpointError, match=told) if told else nullcontext():
        check_readable(backbone.tokenizer, names)


def test_a_tokenizer_with_a_token_for_what_it_does_not_know_is_no_exception():
    class Words:
        unk_token_id = 0

        def __call__(self, text, *, add_special_tokens):
            return {"input_ids": [{"cat": 1}.get(word, 0) for word in text.split()]}

    check_readable(Words(), ["cat", "cat x"])
    with pytest.raises(CheckpointError, match="'dog' has no token"):
        check_readable(Words(), ["cat", "dog"])


def test_names_as_texts_are_the_same_where_an_accent_is_encoded_in_another_way_but_not_where_letters_differ():
    assert plain("café") == plain(unicodedata.normalize("NFD", "CAFÉ")) and plain("Maße") != plain("Masse")


def test_a_run_and_a_classifier_refuse_such_names(compared, small, small_source, cache, monkeypatch):
    with pytest.raises(CheckpointError, match="'猫' has no token"):
        fedpgp.load(compared / "fedpgp/seed-0").classify([], ["zebra", "猫"])
    names = ("猫", *small_source.class_names[1:])
    source = small_source.changed(lambda dataset: replace(dataset, class_names=names))
    monkeypatch.setattr("fedpgp.runs.tasks.load_source", lambda data, splits: source)
    with pytest.raises(CheckpointError, match="'猫' has no token"):
        fedpgp.run("zero-shot", changes=SHORT_RUN, cache=cache)
