"""The documentation as a site: it builds, its links lead somewhere, nothing comes from elsewhere, its tutorial runs."""

import html.parser
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

import fedpgp

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Links(html.parser.HTMLParser):
    """The links of a page, what it loads, and the places that a link can lead to."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.places |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in LOADS and given.get(LOADS[tag]):
            self.loads.append(given[LOADS[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Links]:
    """Every page of the site, built as `make docs` does."""
    target = tmp_path_factory.mktemp("site")
    settings = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(target)]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {path: Links(path.read_text(encoding="utf-8")) for path in sorted(target.rglob("*.html"))}


def test_every_link_leads_to_a_page_and_a_place(site):
    broken, checked = [], 0
    for page, content in site.items():
        if page.name == "404.html":  # served from anywhere, so its links begin at the root
            continue
        for link in (*content.links, *content.loads):
            path, _, anchor = unquote(link).partition("#")
            if re.match(r"\w+:|//", path):
                continue
            goal = (page.parent / path).resolve() if path else page
            checked += 1
            if not goal.exists() or (anchor and goal in site and anchor not in site[goal].places):
                broken.append(f"{page.name}: {link}")
    assert not broken
    assert checked > 1000


def test_nothing_is_loaded_from_elsewhere(site):
    for page, content in site.items():
        assert not [link for link in content.loads if re.match(r"\w+:|//", link)], page
    styles = {style for page in site for style in page.parent.glob("assets/stylesheets/*.css")}
    assert styles
    assert not [style for style in styles if re.search(r"url\(['\"]?https?:", style.read_text(encoding="utf-8"))]


def test_the_reference_has_every_public_name_and_command(site):
    pages = {page.relative_to(next(iter(site)).parent).as_posix(): content for page, content in site.items()}
    places = pages["reference/api.html"].places
    for name in fedpgp.__all__:
        if not name.startswith("_"):
            made = getattr(fedpgp, name)
            assert f"{made.__module__}.{made.__qualname__}" in places, name
    listed = pages["reference/commands.html"].places
    assert {"fedpgp-compare", "fedpgp-doctor", "fedpgp-federate-up", "fedpgp-cache-clear"} <= listed


def test_the_tutorial_runs_as_it_stands(tmp_path):
    """Every block, in its order, in an empty directory."""
    settings = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "120"}
    work = tmp_path / "work"
    work.mkdir()
    printed = ""
    for language, block in re.findall(r"^```(console|python)\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL):
        commands = [[sys.executable, "-c", block]]
        if language == "console":
            words = [shlex.split(line.removeprefix("$ "), comments=True) for line in block.splitlines()]
            assert all(line[0] == "fedpgp" for line in words)
            commands = [[sys.executable, "-m", *line] for line in words]
        for command in commands:
            done = subprocess.run(command, cwd=work, env=settings, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command[2:]}\n{done.stderr}"
            printed += done.stdout
    assert "fedpgp, shared part" in printed
    answers = re.findall(r"^(china|flower)\.jpg +([a-z]+)", printed, re.MULTILINE)
    said = ("buddha", "butterfly", "pagoda", "sunflower", "castle")  # as the page tells
    assert answers == list(zip(("china", "flower", "china", "flower", "china"), said, strict=True))
    made = {"first", "three", "china.jpg", "flower.jpg", "prompt", "images", "mine", "newcomer"}
    assert made == {path.name for path in work.iterdir()}
