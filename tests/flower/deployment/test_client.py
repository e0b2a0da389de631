"""A node's answers to its server, in this process."""

import pytest
from flwr.app import ConfigRecord, RecordDict
from tiny import SHORT_RUN

from fedpgp.aggregators import Download
from fedpgp.config import load_config
from fedpgp.flower.client_app import EVALUATE, QUERY
from fedpgp.flower.deployment.client import answer_as, open_client
from fedpgp.flower.messages import FAULT, Request
from fedpgp.runtime.version import __version__


@pytest.fixture
def about(small, tmp_path, cache):
    """Settings of a node and of its run."""
    (tmp_path / "experiment.toml").write_text(load_config(changes=SHORT_RUN).to_toml(), encoding="utf-8")
    yield {
        "experiment": str(tmp_path / "experiment.toml"), "method": "zero-shot", "seed": 0, "client": 1,
        "state": str(tmp_path / "state"), "cache": str(cache),
    }  # fmt: skip
    open_client.cache_clear()


def test_a_node_tells_its_server_counts_and_accuracies_and_not_which_images_it_got_right(about, backbone, small_source):
    terms = {"fedpgp": __version__, "checkpoint": backbone.fingerprint, "classes": list(small_source.class_names)}
    greeted = answer_as(QUERY, RecordDict({"about": ConfigRecord(terms)}), about)
    assert {*greeted.config_records["about"]} == {"client", "examples", "tests_base", "tests_novel", "tests_unseen"}
    evaluated = answer_as(EVALUATE, Request("0" * 32, 0, 0, Download({}), alphas=(1.0,)).content(), about)
    assert {*evaluated} == {"about", "figures/1.0", "diagnostics", "shared"}
    assert 0 <= evaluated["figures/1.0"]["local"] <= 100


def test_an_error_at_a_node_is_reported_without_its_text_which_may_name_files(about):
    answered = answer_as(QUERY, RecordDict(), {**about, "client": 7})
    assert answered.config_records[FAULT]["reason"] == "ConfigError in query"
