"""Pictures of clouds and confusions: PNG by matplotlib, self-contained HTML pages. z is up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pointcloud.files.viewer import View, save_views_html
from shared_attn.runtime.figures import new_figure, save_figure

if TYPE_CHECKING:
    from torch import Tensor

# Twenty colours that are told apart side by side (Tableau's), darker ones first; longer lists repeat them.
COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f",
    "#aec7e8", "#ff9896", "#98df8a", "#ffbb78", "#c5b0d5", "#c49c94", "#f7b6d2", "#9edae5", "#dbdb8d", "#c7c7c7",
)  # fmt: skip


def save_confusion_matrix(confusion: Tensor, class_names: Sequence[str], path: Path) -> None:
    """A confusion matrix (K, K) of counts as PNG: shares of each true class in colour, counts as numbers."""
    figure, axes = new_figure(max(5.0, 1.8 + 0.3 * len(class_names)), max(4.2, 1.4 + 0.3 * len(class_names)))
    counts = confusion.cpu().numpy()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(class_names))
    axes.set_xticks(ticks, class_names, rotation=90, fontsize=8)
    axes.set_yticks(ticks, class_names, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    accuracy = counts.trace() / max(counts.sum(), 1)
    axes.set_title(f"{accuracy:.1%} of {counts.sum():,} clouds right")
    for row, column in zip(*counts.nonzero(), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=6, color=colour)
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02, label="share of the true class")
    save_figure(figure, path)


def save_clouds_png(
    clouds: Sequence[Any],
    labels: Sequence[Any],
    names: Sequence[str],
    path: Path,
    *,
    titles: Sequence[str] | None = None,
    columns: int = 4,
) -> None:
    """A gallery of segmented clouds as PNG, each with a legend of the parts that occur in it.

    Args:
        clouds: arrays or tensors (N, 3), z up.
        labels: of each cloud, (N,) indices into names.
        names: of the parts; "class/part" is shown as "part".
        titles: one above each cloud.
        columns: clouds side by side.
    """
    colours = [_hexadecimal(colour) for colour in part_colours(names)]
    columns = min(columns, len(clouds))
    rows = math.ceil(len(clouds) / columns)
    height = 3.9 * rows
    figure, _ = new_figure(3.2 * columns, height, axes=False)
    # Inches for a title above and three lines of legend below each cloud; 3-D axes know no automatic layout.
    figure.subplots_adjust(0.01, 0.6 / height, 0.99, 1 - 0.3 / height, wspace=0.02, hspace=0.9 / 3.0)
    for place, (cloud, label) in enumerate(zip(clouds, labels, strict=True)):
        points, part = np.asarray(cloud, dtype=float), np.asarray(label).astype(int)
        axes = figure.add_subplot(rows, columns, place + 1, projection="3d")
        for number in np.unique(part):
            x, y, z = points[part == number].T
            axes.scatter(
                x, y, z, s=3, color=colours[number], label=_short(names[number]), depthshade=True, linewidths=0
            )
        frame_cloud(axes, points)
        if titles is not None:
            axes.set_title(titles[place], fontsize=10)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, fontsize=7, markerscale=3, frameon=False)
    save_figure(figure, path)


def save_clouds_html(
    clouds: Sequence[Any], labels: Sequence[Any], names: Sequence[str], path: Path, *, titles: Sequence[str]
) -> None:
    """Several segmented clouds (N, 3), each in a view of its own, in one interactive page that needs no network."""
    views = [
        View(np.asarray(cloud, dtype=float), np.asarray(label).astype(int), title)
        for cloud, label, title in zip(clouds, labels, titles, strict=True)
    ]
    save_views_html(views, names, part_colours(names), path)


def part_colours(names: Sequence[str]) -> np.ndarray:
    """(len(names), 3) uint8: a colour for each part, different within a class."""
    seen: dict[str, int] = {}
    colours = []
    for name in names:
        owner = name.partition("/")[0]
        colours.append(COLOURS[seen.setdefault(owner, 0) % len(COLOURS)])
        seen[owner] += 1
    return np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours], dtype=np.uint8)


def _hexadecimal(colour: np.ndarray) -> str:
    return "#" + bytes(colour.tolist()).hex()


def _short(name: str) -> str:
    return name.rpartition("/")[2]


def frame_cloud(axes: Any, points: np.ndarray) -> None:
    """Equal scale on the three axes, no axes drawn, seen a little from above, with the corners of a cube in sight."""
    middle, extent = (points.max(0) + points.min(0)) / 2, float(np.ptp(points, axis=0).max())
    radius = float(np.linalg.norm(points - middle, axis=1).max())
    reach = max(extent / 2, radius / 1.25, 1e-6)
    axes.set(**{f"{axis}lim": (middle[i] - reach, middle[i] + reach) for i, axis in enumerate("xyz")})
    axes.set_box_aspect((1, 1, 1), zoom=1.3)
    axes.view_init(elev=20, azim=-60)
    axes.set_axis_off()
