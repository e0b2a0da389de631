"""docs/data-sets.md agrees with the code for every known dataset."""

import re
from pathlib import Path

from fedpgp.data.sources.known import KNOWN

PAGE = (Path(__file__).parents[3] / "docs" / "data-sets.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip(" `"): cells for cells in (line.strip("|").split("|") for line in re.findall(r"^\| `.*", PAGE, re.M))
}


def test_every_name_has_a_row_with_its_place():
    assert set(ROWS) == set(KNOWN)
    for name, known in KNOWN.items():
        place = ROWS[name][1]
        assert place.strip() == "the same" or f"`{known.places[0]}" in place
        assert known.page in PAGE


def test_templates_domains_and_classes():
    for name, known in KNOWN.items():
        if known.layout in ("coop", "idx", "fgvc_aircraft"):
            assert ROWS[name][2 if known.layout == "idx" else 3].strip() == known.template
        if known.domains and ROWS[name][2].strip() != "the same":
            assert ROWS[name][2].strip() == ", ".join(known.domains)
    assert ", ".join(KNOWN["domainnet10"].classes) in " ".join(PAGE.split())
