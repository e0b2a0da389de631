"""Every setting of the config has an effect, or is refused."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import tiny
from commands import refused, sets
from raising import raises

import fedpgp
from fedpgp.config import SECTIONS, load_config
from fedpgp.data.settings import DataConfig
from fedpgp.data.sources import load_source
from fedpgp.errors import FedPGPError
from fedpgp.runs import checks, tasks

SOURCE = Path(fedpgp.__file__).parent
VALUES = {"augmented_views": 2, "test_share": 0.3, "validation_share": 0.3, "token_precision": "float16"}
VALUES |= {"template": "an {}", "source": "nowhere", "layout": "nonsense"}
VALUES |= dict.fromkeys(("drop_unlabelled", "drop_unused_classes", "follow_links"), "true")
ELSEWHERE = {
    "root": "for known names",
    "token_precision": "for features",
    "augmented_views": "for features",
}


@pytest.mark.parametrize("key", [field.name for field in fields(DataConfig)])
def test_a_setting_of_the_images_changes_the_pictograms_or_is_refused(key, pictograms, monkeypatch):
    monkeypatch.setattr("fedpgp.data.sources.pictograms.read", lambda *_: pictograms)
    config = load_config(changes=[f"data.{key}={VALUES.get(key, 'nowhere.txt')}"])
    try:
        source, _ = tasks.load_tasks(config, [0])
    except FedPGPError as error:
        assert (error.where, error.got) == (f"data.{key}", getattr(config.data, key)) and error.remedy
    else:
        assert key in ELSEWHERE or source != pictograms


def test_a_column_of_a_table_is_refused_for_folders(tmp_path):
    (tmp_path / "photos/ant").mkdir(parents=True)
    (tmp_path / "photos/ant/1.png").write_bytes(b"")
    config = load_config(changes=[f"data.source={tmp_path}/photos", "data.label_column=kind"])
    with raises(FedPGPError, where="data.label_column", allowed="layout class-folders", got="kind"):
        tasks.load_tasks(config, [0])


def test_the_template_is_read_or_refused_with_a_remedy_that_works(command, small):
    template = "a drawing of {}"
    ended = command("run", "--method", "zero-shot", *sets(), "--set", f"data.template={template}")
    refused(ended, "data.template", repr(template), "zero-shot.guidance")
    (remedy,) = re.findall(r"--set (\S+)", ended.err)
    task = tiny.task(templates=load_source(DataConfig(template=template)).templates)
    for methods, changes in ((["zero-shot", "fedpgp"], [remedy]), (["promptfl"], []), (["zero-shot"], [])):
        config = load_config(changes=[f"data.template={template}", *changes])
        if changes:
            assert template in config.methods[methods[0]].templates(task)
            checks._check_template(config, methods, task)
        else:
            with pytest.raises(FedPGPError, match=methods[0]):
                checks._check_template(config, methods, task)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_is_read_somewhere(section):
    code = "".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name not in ("settings.py", "testing.py"))
    code += "".join(path.read_text() for path in (SOURCE / "data/partition.py", SOURCE / "data/settings.py"))
    for field in fields(SECTIONS[section]):
        read = rf"[.]{field.name}\b(?!\s*=[^=])|[(,*] ?{field.name}: |{field.name.removesuffix('_column')}"
        assert re.search(read, code), f"{section}.{field.name}"
