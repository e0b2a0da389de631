"""How every figure looks."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import rc_context
from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers tell apart; the markers differ too.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#0072B2", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@contextmanager
def house_style() -> Iterator[None]:
    """The same figure gives the same bytes."""
    with rc_context({"svg.hashsalt": "fedpgp", "svg.fonttype": "none", "font.size": 9}):
        yield


def rendered(figure: Figure, suffix: str) -> bytes:
    """A figure as "svg" or "png"."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
    return buffer.getvalue()
