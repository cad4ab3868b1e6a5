"""How the examples' plots look, and where they go. Matplotlib draws into a file: no screen is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


@contextmanager
def saved(path: Path, title: str, width: float, height: float) -> Iterator[Figure]:
    """An empty figure, in inches, that is written to `path` once it has been drawn."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(title)
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=100)


def picture(axes: Any, values: Any, title: str, **how: Any) -> Any:
    """An image without ticks or frame; returns what a colour bar needs."""
    axes.set_title(title)
    axes.set_axis_off()
    return axes.imshow(values, **how)
