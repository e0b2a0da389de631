"""The drawings used to train pictoclip include no look-alike of an evaluation drawing and no held-out concept."""

import csv
from collections import Counter

import numpy as np
import pytest
from common import STYLES, TOOLS, read_concepts, read_sets
from drawings import (
    HELD_OUT,
    PRETRAINING_SETS,
    SIBLING_CORRELATION,
    Candidate,
    Icon,
    candidates_of,
    correlation,
    find_sibling,
    plain_name,
    thumbnail,
)

ICON = Icon("", 0, 0, 16, 16, ())


def picture(kind: str, size: int = 64) -> np.ndarray:
    """Return a drawing uint8 [size, size, 4]: black on transparent paper."""
    y, x = np.mgrid[0:size, 0:size] / size
    ink = {"disc": (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.1, "bar": abs(x - 0.5) < 0.1, "left": x < 0.5}[kind]
    drawing = np.zeros((size, size, 4), np.uint8)
    drawing[..., 3] = 255 * ink
    return drawing


def sibling_rows() -> list[dict[str, str]]:
    with (TOOLS / "siblings.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_drawing_correlates_with_itself_at_any_size():
    assert correlation(picture("disc"), picture("disc")) == pytest.approx(1, abs=1e-3)
    assert correlation(picture("disc", 64), picture("disc", 96)) > 0.97


def test_other_drawings_and_negatives_do_not():
    assert correlation(picture("disc"), picture("left")) < 0.3
    inverted = picture("left")[:, ::-1]
    assert correlation(picture("left"), inverted) == pytest.approx(-1, abs=1e-3)


def test_colour_under_transparent_paper_does_not_count():
    painted = picture("disc")
    painted[painted[..., 3] == 0, :3] = 200
    assert correlation(painted, picture("disc")) == pytest.approx(1, abs=1e-3)


def test_look_alike_of_the_same_concept_is_a_sibling():
    evaluation = {"red-ball": ("red ball", np.stack([thumbnail(picture(k)) for k in ("bar", "disc")]))}
    same = Candidate("tabler", "ball", "red-ball", ("red ball",), ICON)
    found = find_sibling(same, picture("disc"), evaluation)
    assert found is not None
    assert (found.concept, found.style) == ("red ball", STYLES[1])
    assert find_sibling(same, picture("left"), evaluation) is None
    other = Candidate("tabler", "moon", "moon", ("moon",), ICON)
    assert find_sibling(other, picture("disc"), evaluation) is None


def test_recorded_siblings():
    rows = sibling_rows()
    assert len(rows) == 132
    assert all(SIBLING_CORRELATION < float(row["correlation"]) <= 1.0001 for row in rows)
    assert {row["set"] for row in rows} <= set(PRETRAINING_SETS)
    assert {row["style"] for row in rows} <= set(STYLES)
    assert Counter(row["set"] for row in rows)["noto-v1"] == 21
    unseen = {concept.name for concept in read_concepts() if concept.split == "unseen"}
    known = {concept.name for concept in read_concepts()} - unseen
    assert {row["concept"] for row in rows} <= known  # drawings of unseen concepts were removed before by name


def test_pretraining_uses_none_of_the_evaluation_sets():
    sets = read_sets()
    assert {name for name, icon_set in sets.items() if icon_set.role == "evaluation"} == set(STYLES)
    assert {name for name, icon_set in sets.items() if icon_set.role == "pretraining"} == set(PRETRAINING_SETS)


@pytest.mark.parametrize("concept", [concept.name for concept in read_concepts() if concept.split == "unseen"])
def test_unseen_concepts_are_recognised_by_name(concept):
    name = concept.replace(" ", "-")
    assert HELD_OUT.search(name)
    assert HELD_OUT.search(f"cute-{name}s-two")


@pytest.mark.parametrize("concept", [concept.name for concept in read_concepts() if concept.split != "unseen"])
def test_known_concepts_are_not_held_out(concept):
    assert not HELD_OUT.search(concept.replace(" ", "-"))


def test_candidates_leave_out_interface_icons_and_held_out_aliases():
    icons = {
        "fish-filled": ICON,
        "arrow-left": ICON,
        "user-plus": ICON,
        "sea-animal": Icon("", 0, 0, 16, 16, ("octopus",)),
        "octopus": ICON,
    }
    assert [candidate.name for candidate in candidates_of("tabler", icons, {})] == ["fish"]


def test_variants_share_a_name_and_synonyms_join_their_concept():
    assert plain_name("fish-filled-2", "tabler") == "fish"
    assert plain_name("freehand-fish", "streamline-freehand-color") == "fish"
    (candidate,) = candidates_of("tabler", {"plane-filled": ICON}, {"plane": "airplane"})
    assert candidate.name == "airplane"
    assert candidate.captions == ("airplane", "plane")
