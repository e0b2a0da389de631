"""Metadata of the repository: the citation, the forms for issues, and the Python versions."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import fedpgp

ROOT = Path(__file__).parents[1]
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def load(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_citation_has_this_version_and_the_paper():
    citation = load(ROOT / "CITATION.cff")
    assert citation["version"] == fedpgp.__version__
    paper = citation["preferred-citation"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"author    = {{{' and '.join(names)}}}" in readme
    assert paper["title"] in readme
    assert f"year      = {{{paper['year']}}}" in readme


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_the_forms_for_issues_are_valid(form):
    content = load(form)
    assert content["name"] and content["description"]
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) > 0
    assert all(field["type"] in ("input", "textarea") and field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_the_classifiers_begin_with_the_lowest_required_python():
    prefix = "Programming Language :: Python :: 3."
    minors = [int(name.removeprefix(prefix)) for name in PROJECT["classifiers"] if re.match(prefix + r"\d+$", name)]
    assert PROJECT["requires-python"] == f">=3.{min(minors)}"
