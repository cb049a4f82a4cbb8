"""Matplotlib figures that belong to no window and no global state, written as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared_attn.runtime.extras import importing
from shared_attn.runtime.files import atomic_write


def new_figure(width: float, height: float, *, axes: bool = True) -> tuple[Any, Any]:
    """A figure of so many inches and its axes; or without any, for a caller that places its own."""
    with importing("a figure"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if axes else None)
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot() if axes else None


def draw_percent_scale(figure: Any, place: tuple[float, float, float, float], top: float, colours: Any) -> None:
    """A horizontal scale of a colour map from 0 to the share `top`, in percent.

    Args:
        place: left, bottom, width, height, as shares of the figure's.
        colours: a colour map or its name.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    mapped = ScalarMappable(Normalize(0, 100 * top), colours)
    bar = figure.colorbar(mapped, cax=figure.add_axes(place), orientation="horizontal")
    bar.set_ticks([0, 100 * top], labels=["0", f"{100 * top:.2g} %"], fontsize=8)
    first, last = bar.ax.get_xticklabels()  # inside the scale's ends, so that neighbouring scales' do not meet
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


def save_figure(figure: Any, path: Path, *, description: str = "") -> None:
    """As PNG, whole or not at all, with `description` in its text."""
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=130, metadata={"Description": description} if description else None)
