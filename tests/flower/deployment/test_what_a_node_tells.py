"""Everything that a node with its own images sends, decoded: in an ordinary run, and after errors."""

import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from PIL import Image
from proxy import Proxy
from raising import raises

import fedpgp
from fedpgp.aggregators import Download
from fedpgp.config import load_config
from fedpgp.errors import ConfigError
from fedpgp.flower.client_app import EVALUATE, QUERY, TRAIN
from fedpgp.flower.deployment.client import NodeSettings, answer_as, open_client
from fedpgp.flower.deployment.local import local_federation
from fedpgp.flower.messages import FAULT, Request, terms_of

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from federation_kills import new_federation

CLASSES = ("crown", "beaker", "zither")
RUN = "0123456789abcdef" * 2
SETTINGS = [f"task.class_names={[*CLASSES]}", "task.partition=own", "task.protocol=personalization"]
SETTINGS += ["task.shots=0", "federation.local_epochs=1", "federation.batch_size=4"]
PHASES = (QUERY, TRAIN, EVALUATE)
RECORDS = {"about", "losses", "shared", "diagnostics", "figures/1.0"}
FACTS = {"client", "examples", "tests_base", "run", "round", "after", RUN}
FIGURES = {"p_G", "task", "contrastive", "local", "base", "cm", "hm", "others", "validation_local", "validation_base"}
FIGURES |= {"cosine_guidance_global", "cosine_global_personal"}
SECRETS = ("/", "photos", "patient", "private", ".png", *CLASSES)


def take_photos(photos):
    """Write two invented photographs of each class in each split to a directory of the node."""
    colours = iter(range(0, 255, 7))
    for split in ("train", "validation", "test"):
        for name in CLASSES:
            (photos / split / name).mkdir(parents=True)
            for number in range(2):
                picture = Image.new("RGB", (16, 16), (next(colours), 40 * number, 90))
                picture.save(photos / split / name / f"patient-{number}.png")


class Site:
    """A node, for example in a hospital, and the questions of its server."""

    def __init__(self, directory, cache):
        self.photos, self.state = directory / "photos", directory / "private"
        take_photos(self.photos)
        file = directory / "experiment.toml"
        file.write_text(load_config(changes=["task.clients=1", *SETTINGS]).to_toml(), encoding="utf-8")
        self.about = {"experiment": str(file), "method": "fedpgp", "seed": 0, "client": 0, "data": str(self.photos)}
        self.about |= {"state": str(self.state), "cache": str(cache)}

    def questions(self):
        """Return a message of the server for each phase, made with a node that works."""
        runner = open_client(NodeSettings.of(self.about)).runner
        sent = Download(runner.spec.shared)
        greeting = RecordDict({"about": ConfigRecord(terms_of(runner.spec.backbone, runner.data.task))})
        open_client.cache_clear()
        return greeting, Request(RUN, 1, 0, sent).content(), Request(RUN, 1, 1, sent, {}, (1.0,)).content()

    def sent(self, kind, question):
        """Return the bytes of a node's answer."""
        return recorddict_to_proto(answer_as(kind, question, self.about)).SerializeToString()


@pytest.fixture
def site(tmp_path, cache):
    yield Site(tmp_path, cache)
    open_client.cache_clear()


def texts(packed: bytes) -> set[str]:
    """Return all names and texts in a message."""
    content = recorddict_from_proto(RecordDictProto.FromString(packed))
    records = [*content.config_records.values(), *content.metric_records.values(), *content.array_records.values()]
    found = {*content, *(key for record in records for key in record)}
    values = [value for record in content.config_records.values() for value in record.values()]
    return found | {value for value in values if isinstance(value, str)}


def test_in_an_ordinary_run_a_node_sends_names_of_figures_and_no_names_from_its_data(site):
    told = [site.sent(kind, question) for kind, question in zip(PHASES, site.questions(), strict=True)]
    for packed in told:
        assert not any(secret.encode() in packed.replace(b"figures/1.0", b"") for secret in SECRETS[1:])
    assert set().union(*map(texts, told)) == RECORDS | FACTS | FIGURES


def other_classes(site, patch):
    (site.photos / "train" / "crown").rename(site.photos / "train" / "tiara")


def bad_image(site, patch):
    (site.photos / "test" / "zither" / "patient-1.png").write_bytes(b"no image")


def closed_folder(site, patch):
    def closed(*_, **__):
        raise PermissionError(13, "Permission denied", str(site.photos / "crown"))

    patch.setattr("fedpgp.flower.deployment.client.open_run", closed)


def full_disk(site, patch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    patch.setattr("fedpgp.flower.node.write", full)


def damaged_state(site, patch):
    place = site.state / RUN / "client-0"
    place.mkdir(parents=True)
    for directory in (place, *place.parents[:2]):
        directory.chmod(0o700)
    (place / "round-000001.safetensors").write_bytes(b"private")


def failing_training(site, patch):
    def fails(*_, **__):
        raise RuntimeError(f"{site.photos}/crown/patient-0.png")

    patch.setattr("fedpgp.flower.node.train_clients", fails)


def foreign_method(site, patch):
    site.about["method"] = f"{site.photos}/crown.py:Evil"


def other_experiment(site, patch):
    site.about["experiment"] = str(site.photos / "experiment.toml")


@pytest.mark.parametrize(
    ("fault", "kind", "error", "logged"),
    [
        (other_classes, QUERY, "NamesError", "'tiara'"),
        (bad_image, QUERY, "DataError", "patient-1.png"),
        (closed_folder, QUERY, "NodeError", "Permission denied: '.*photos/crown'"),
        (full_disk, TRAIN, "OutputError", "private/.*client-0: .*No space left"),
        (damaged_state, EVALUATE, "OutputError", "round-000001.safetensors"),
        (failing_training, TRAIN, "NodeError", "patient-0.png"),
        (foreign_method, QUERY, "ConfigError", r"crown\.py:Evil"),
        (other_experiment, QUERY, "ConfigError", "photos/experiment.toml"),
    ],
)
def test_when_something_fails_the_node_tells_its_type_and_phase_and_logs_the_text(
    fault, kind, error, logged, site, monkeypatch, caplog
):
    question = site.questions()[PHASES.index(kind)]
    fault(site, monkeypatch)
    packed = site.sent(kind, question)
    assert texts(packed) == {FAULT, "reason", f"{error} in {kind}"}
    assert not any(secret.encode() in packed for secret in SECRETS[1:])  # "/" may also be a byte of a length
    assert re.search(logged, caplog.text)


def test_a_server_with_other_classes_does_not_learn_the_nodes_classes(site, caplog):
    greeting, *_ = site.questions()
    greeting["about"]["classes"] = ["crown", "sceptre"]
    packed = site.sent(QUERY, greeting)
    assert texts(packed) == {FAULT, "reason", "Refused in query"}
    assert "'beaker'" in caplog.text


def test_only_methods_that_are_built_in_or_enabled_run(site, monkeypatch):
    monkeypatch.setattr("fedpgp.flower.deployment.client.installed", lambda: {"mine": None})
    monkeypatch.setattr("fedpgp.flower.deployment.client.open_run", lambda *_, **__: pytest.fail("it was opened"))
    settings = NodeSettings.of(site.about | {"method": "mine"})
    with raises(ConfigError, where="'mine'", remedy="plugins in node.toml"):
        open_client(settings)
    with raises(ConfigError, where="method", got="other"):
        open_client(NodeSettings.of(site.about | {"method": "other", "plugins": "mine, other"}))


@pytest.mark.by_hand
@pytest.mark.xdist_group("federation")
def test_seven_live_nodes_with_six_faults_send_no_path_and_no_class_name(tmp_path, cache):
    """The federation runs without TLS so that the bytes can be read. Node 0 has no fault."""
    settings = [*SETTINGS, "task.clients=7", "federation.rounds=1", "federation.deadline=60"]
    layout = new_federation(tmp_path / "federation", "fedpgp", 7, settings, insecure=True)
    address = layout.connection.address
    photos = [tmp_path / f"photos-{client}" for client in range(7)]
    with Proxy(int(address.rpartition(":")[2])) as proxy:
        for client in range(7):
            take_photos(photos[client])
            file = layout.node(client) / "node.toml"
            text = file.read_text().replace(address, f"127.0.0.1:{proxy.port}")
            file.write_text(text.replace('data = ""', f'data = "{photos[client]}"'))
        with local_federation(layout, 7, str(cache)) as federation:
            end = time.monotonic() + 240
            while federation.online() < 7:
                assert time.monotonic() < end
                time.sleep(1)
            (photos[1] / "train" / "crown").rename(photos[1] / "train" / "tiara")
            (photos[2] / "test" / "zither" / "patient-1.png").write_bytes(b"no image")
            shutil.rmtree(photos[3])
            (layout.node(4) / "state").write_bytes(b"")  # a file instead of the directory
            with (layout.node(5) / "experiment.toml").open("a") as experiment:
                experiment.write("\n")
            (layout.node(6) / "flwr" / "apps").write_bytes(b"")  # where Flower unpacks the app
            federation.complete(layout.runs / "local", pytest.fail)
        captured = bytes(proxy.up)
    secrets = [str(tmp_path), "photos", "patient", "tiara", ".png", ".toml", "site-packages", *CLASSES]
    assert [secret for secret in secrets if secret.encode() in captured] == []
    told = ("NamesError in query", "DataError in query", "OutputError in train", "INVALID_FAB in query")
    for text in (*told, "CLIENT_APP_RAISED_EXCEPTION in query"):
        assert text.encode() in captured
    assert fedpgp.load_run(layout.runs / "local").rounds[0]["participants"] == [0]
