"""Settings of published figures: each key of a config is equal, different or unknown, and a typo is an error."""

from dataclasses import fields

import pytest
from raising import raises

from fedpgp.aggregators import AGGREGATORS
from fedpgp.config import SECTIONS, load_config
from fedpgp.errors import ConfigError
from fedpgp.federation.settings import FederationConfig
from fedpgp.methods import METHODS
from fedpgp.methods.base import TrainedMethod
from fedpgp.studies.reported_settings import WITHOUT_EFFECT, Agreement, Inexpressible, compare_settings, stated_settings


def compared(changes: list[str], stated: dict, method: str = "fedpgp") -> Agreement:
    """Return the comparison of a config with changes and a table of settings."""
    return compare_settings(load_config(None, changes), method, stated_settings(stated, "here"), [])


@pytest.mark.parametrize("method", METHODS)
def test_every_key_that_can_change_a_figure_is_unknown_if_the_source_states_nothing(method):
    sections = {**SECTIONS, "krum": AGGREGATORS["krum"], method: METHODS[method]}
    keys = [f"{name}.{field.name}" for name, model in sections.items() for field in fields(model)]
    assert set(keys) >= WITHOUT_EFFECT
    federation = {field.name for field in fields(FederationConfig)}
    overrides = {key for key in keys if key.startswith(f"{method}.") and key.partition(".")[2] in federation}
    agreement = compared(["federation.aggregator=krum"], {}, method)
    assert agreement.unknown == [key for key in keys if key not in WITHOUT_EFFECT | overrides]
    assert not agreement.differs and agreement.is_same


def test_a_key_is_equal_differs_or_is_unknown():
    stated = {
        "federation": {"batch_size": 8, "rounds": 10},
        "task": {"held_out": ["a", "b"]},
        "privacy": {"delta": 0.1},
    }
    agreement = compared(["federation.batch_size=8", "federation.rounds=25", "task.held_out=['a', 'b']"], stated)
    assert agreement.differs == {"federation.rounds": ("25", "10"), "privacy.delta": ("1e-05", "0.1")}
    assert not agreement.is_same
    assert "federation.batch_size" not in agreement.unknown and "federation.local_epochs" in agreement.unknown


def test_values_are_compared_as_the_config_reads_them():
    stated = {"federation": {"participation": 1, "everyone_first": True}, "privacy": {"count_noise": 1}}
    agreement = compared(["federation.participation=1.0", "data.template=x"], stated)
    assert agreement.differs == {
        "federation.everyone_first": ("false", "true"),
        "privacy.count_noise": ("unset", "1.0"),
    }
    assert compared([], {"task": {"held_out": ["x"]}, "data": {"template": "a {}"}}).differs == {
        "task.held_out": ("[]", "[x]"),
        "data.template": ('""', "a {}"),
    }


def test_values_of_a_methods_section_override_federation():
    stated = {"federation": {"momentum": 0.9, "weight_decay": 0.2}}
    assert compared(["federation.momentum=0.9", "federation.weight_decay=0.2"], stated).is_same
    assert compared(["federation.weight_decay=0.2", "fedpgp.momentum=0.5"], stated).differs == {
        "federation.momentum": ("0.5", "0.9")
    }
    assert compared(["fedpgp.weight_decay=0.2"], stated).is_same
    own = {**stated, "fedpgp": {"weight_decay": 0.1}}
    assert compared(["federation.weight_decay=0.1"], own).is_same
    assert compared(["federation.weight_decay=0.2"], own).differs == {"federation.weight_decay": ("0.2", "0.1")}


@pytest.mark.parametrize("method", METHODS)
def test_a_field_of_a_method_and_of_federation_is_a_training_setting(method):
    shared = {field.name for field in fields(METHODS[method])} & {field.name for field in fields(FederationConfig)}
    assert shared <= {field.name for field in fields(TrainedMethod)}


def test_only_the_last_part_of_the_place_of_data_and_checkpoints_is_compared():
    stated = {"data": {"source": "caltech101"}, "backbone": {"checkpoint": "openai/clip-vit-base-patch16"}}
    places = ['data.source="/data/caltech101"', 'backbone.checkpoint="/models/clip-vit-base-patch16/"']
    assert compared(places, stated).is_same
    assert compared([places[0], 'backbone.checkpoint="openai/clip-vit-base-patch32"'], stated).differs == {
        "backbone.checkpoint": ("clip-vit-base-patch32", "clip-vit-base-patch16")
    }
    template = {"data": {"template": "b/{}"}}
    assert not compared(['data.template="a/{}"'], template).is_same, "the last part is the identity of no other key"


def test_a_value_that_a_field_cannot_have_differs_from_all_its_values():
    stated = {"data": {"augmented_views": {"not_expressible": "a new crop in every epoch"}}}
    for views in (1, 50, 1000):
        agreement = compared([f"data.augmented_views={views}"], stated)
        assert agreement.differs == {"data.augmented_views": (str(views), "a new crop in every epoch")}
        assert "data.augmented_views" not in agreement.unknown
    words = stated_settings({"data": {"template": {"not_expressible": "x"}}}, "here")["data.template"]
    assert words == Inexpressible("x") != "x"


def test_sections_of_other_methods_are_ignored_and_sections_of_other_aggregators_are_compared():
    stated = {"promptfl": {"learning_rate": 0.002}, "krum": {"malicious": 3}, "fedpgp": {"mu": 0.5}}
    agreement = compared(["fedpgp.mu=0.5"], stated)
    assert agreement.differs == {"krum.malicious": ("not used", "3")}
    assert compared(["promptfl.learning_rate=0.1"], stated, "promptfl").differs["promptfl.learning_rate"] == (
        "0.1",
        "0.002",
    )


def test_keys_that_never_change_a_result_are_neither_compared_nor_unknown():
    stated = {"federation": {"engine": "deployment", "eval_every": 7}, "backbone": {"device": "cuda"}}
    assert compared([], stated).is_same
    assert not WITHOUT_EFFECT & set(compared([], {}).unknown)


@pytest.mark.parametrize(
    ("stated", "fields"),
    [
        ({"federation": {"bach_size": 8}}, {"where": "federation.bach_size", "remedy": "batch_size"}),
        ({"fedpg": {"mu": 1.0}}, {"where": "r.toml", "got": "fedpg", "remedy": "'fedpgp'"}),
        ({"federation": {"batch_size": 0}}, {"where": "r.toml.federation.batch_size", "got": 0}),
        (
            {"federation": {"batch_size": {"not_expresible": "x"}}},
            {"where": "r.toml.federation.batch_size", "got": {"not_expresible": "x"}, "remedy": "not_expressible"},
        ),
        ({"task": {"protocol": "base2novel"}}, {"where": "r.toml.task.protocol", "got": "base2novel"}),
    ],
)
def test_settings_that_no_config_can_have_are_refused(stated, fields):
    with raises(ConfigError, **fields):
        stated_settings(stated, "r.toml")
