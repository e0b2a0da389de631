"""How every figure looks."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedpgp.runtime.files import write

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


def write_figure(directory: Path, name: str, drawn: Callable[[str], bytes]) -> None:
    """Writes a figure as .svg and as .png. drawn: the suffix without its dot -> the file."""
    for suffix in ("svg", "png"):
        write(directory / f"{name}.{suffix}", drawn(suffix))


def turn_labels(axes: Axes, degrees: int) -> None:
    """Turns those of the points below, so that each ends under its point."""
    axes.tick_params("x", rotation=degrees)
    for label in axes.get_xticklabels():
        label.set(horizontalalignment="right", rotation_mode="anchor")
