"""Arguments of another type than the documented one are refused, not interpreted."""

from pathlib import Path

import numpy as np
import pytest
from raising import raises

import fedpgp
from fedpgp.errors import ConfigError
from fedpgp.runtime.validation import texts, whole_number
from fedpgp.serving.classifier import Classifier
from fedpgp.serving.export import export

WRONG_NUMBERS = [1.5, 1.0, True, "1", None, np.float64(1)]


@pytest.mark.parametrize("value", WRONG_NUMBERS)
def test_other_values_than_whole_numbers_are_refused(value: object) -> None:
    with raises(ConfigError, where="steps", allowed="a whole number", got=value):
        whole_number(value, "steps", 0)


def test_whole_numbers_of_numpy_become_int() -> None:
    assert type(whole_number(np.int64(3), "steps", 0)) is int
    with raises(ConfigError, where="steps", allowed="1 or more", got=0):
        whole_number(np.int64(0), "steps", 1)


def test_one_text_is_not_a_list_of_its_letters() -> None:
    assert texts((name for name in ("cat", "dog")), "names") == ("cat", "dog")
    for wrong in ("cat", b"cat", 3, ["cat", 3], None):
        with raises(ConfigError, where="names", remedy="list"):
            texts(wrong, "names")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("seed", {"seed": 1.5}),
        ("seed", {"seed": True}),
        ("seed", {"seed": "0"}),
        ("workers", {"workers": 1.5}),
        ("workers", {"workers": "2"}),
        ("force", {"force": "no", "output": "out"}),
        ("skip_bad_images", {"skip_bad_images": "no"}),
    ],
)
def test_run_refuses(field: str, arguments: dict, small: None, cache: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with raises(ConfigError, where=field, got=arguments[field]):
        fedpgp.run("zero-shot", cache=cache, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seeds", [1.5, True, "12", [0, 1.5], [0, True], ["0"]])
def test_compare_refuses_seeds(seeds: object) -> None:
    with raises(ConfigError, where="seed", allowed="a whole number"):
        fedpgp.compare(["zero-shot"], seeds=seeds)  # type: ignore[arg-type]


def test_tune_and_join_refuse(compared: Path, tmp_path: Path) -> None:
    for field, arguments in (("trials", {"trials": 2.5}), ("search", {"search": "fedpgp.mu=0..1"})):
        with raises(ConfigError, where=field, got=arguments[field]):
            fedpgp.tune(["fedpgp"], output=tmp_path / "out", **arguments)
    for field in ("seed", "shots", "epochs"):
        with raises(ConfigError, where=field, allowed="a whole number", got=1.5):
            fedpgp.join(compared / "fedpgp/seed-0", "nowhere", **{field: 1.5})
    with raises(ConfigError, where="epochs", allowed="1 or more", got=0):
        fedpgp.join(compared / "fedpgp/seed-0", "nowhere", epochs=0)


@pytest.mark.parametrize("client", [1.0, True, "1"])
def test_load_and_export_refuse_a_client(client: object, compared: Path, tmp_path: Path) -> None:
    for take in (lambda run: fedpgp.load(run, client), lambda run: export(run, tmp_path / "out", client=client)):
        with raises(ConfigError, where="client", allowed="a whole number", got=client):
            take(compared / "fedpgp/seed-0")


def test_class_names_are_a_list(compared: Path, tmp_path: Path) -> None:
    model: Classifier = fedpgp.load(compared / "fedpgp/seed-0")
    for names in ("cat", ["cat", 3]):
        with raises(ConfigError, where="classes", remedy="list"):
            model.classify([], names)  # type: ignore[arg-type]
    with raises(ConfigError, where="classes", allowed="a list of texts", got="cat,dog", remedy="['cat,dog']"):
        export(compared / "fedpgp/seed-0", tmp_path / "out", "clip-head", classes="cat,dog")


def test_one_change_and_one_method_can_be_given_as_a_text(compared: Path) -> None:
    assert fedpgp.load_config(changes="fedpgp.mu=1") == fedpgp.load_config(changes=["fedpgp.mu=1"])
    comparison = fedpgp.load_comparison(compared)
    assert comparison.only("fedpgp").methods == ["fedpgp"] and not comparison.only("fedpgp-and-more").methods
