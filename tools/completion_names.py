"""Write src/fedpgp/cli/completion.json: the names that shell completion knows.

python tools/completion_names.py
"""

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from fedpgp.aggregators import AGGREGATORS
from fedpgp.backbone.files import EMBEDDED
from fedpgp.cli.completion import FILE
from fedpgp.config import SECTIONS, recipes
from fedpgp.data.sources.known import NAMES
from fedpgp.methods import METHODS
from fedpgp.studies.recipe import names

OTHERS = {  # values of settings that are texts
    "data.source": ["pictograms", *NAMES],
    "backbone.checkpoint": list(EMBEDDED),
    "backbone.device": ["cpu", "cuda", "cuda:1", "mps"],
    "federation.aggregator": list(AGGREGATORS),
}


def content() -> str:
    """Return the content of the file."""
    sections: dict[str, Any] = {**SECTIONS, **METHODS, **AGGREGATORS}
    settings = {
        f"{section}.{key}": OTHERS.get(f"{section}.{key}") or list(values(field.annotation))
        for section, model in sections.items()
        for key, field in model.__pydantic_fields__.items()
        if field.init is not False
    }
    known = {
        "methods": list(METHODS),
        "datasets": OTHERS["data.source"],
        "recipes": list(recipes()),
        "experiments": names(),
        "settings": settings,
    }
    return json.dumps(known, indent=1) + "\n"


def values(kind: Any) -> Iterator[str]:
    """Yield the values of an enumeration or of a flag."""
    if get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif kind is bool:
        yield from ("true", "false")
    else:
        for part in get_args(kind):
            yield from values(part)


if __name__ == "__main__":
    FILE.write_text(content(), encoding="utf-8")
