"""The picture of a robustness report: accuracy over the corruptions' levels, over turns, and over fewer points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pointcloud.robustness import DGCNN
from shared_attn.runtime.figures import new_figure, save_figure
from shared_attn.runtime.results import fingerprint


def draw_robustness(record: Mapping[str, Any], path: Path) -> None:
    """The same from a result's record, whose fingerprint the PNG carries (`shared_attn.runtime.results`)."""
    source = fingerprint([dict(record)])
    save_robustness(record["tables"]["robustness"][0], path, title=record["name"], description=source)


def save_robustness(report: Mapping[str, Any], path: Path, *, title: str = "", description: str = "") -> None:
    """Draws a report of `pointcloud.robustness.measure_robustness` as PNG, with `description` in it."""
    figure, _ = new_figure(15, 4.6, axes=False)
    figure.subplots_adjust(0.05, 0.13, 0.99, 0.84, wspace=0.22)
    corrupted, turned, thinned = (figure.add_subplot(1, 3, place) for place in (1, 2, 3))
    for place, (name, row) in enumerate(report["corruptions"].items()):
        levels = range(1, 1 + len(row["overall_accuracy"]))
        label = f"{name.replace('_', ' ')} (error {row['corruption_error']:.2f})"
        colour = f"C{place}"
        corrupted.plot([0, *levels], [report["clean"], *row["overall_accuracy"]], "o-", color=colour, label=label)
        corrupted.plot([5.25], [DGCNN[name]], marker="<", color=colour, markersize=6, linestyle="none")
    corrupted.set_xticks(range(6), ["clean", *map(str, range(1, 6))])
    corrupted.set_xlabel("level; triangles: DGCNN's published mean over the levels")
    corrupted.set_title(f"generated ModelNet-C: mCE {report['mce']:.3f}, RmCE {report['rmce']:.3f}", fontsize=10)
    for name, label in (("turned_upright", "about the up axis"), ("turned_anyhow", "about any axis")):
        turned.plot(report[name]["degrees"], report[name]["overall_accuracy"], "o-", label=label)
    turned.set_xlabel("turned by, degrees")
    turned.set_title("turns", fontsize=10)
    thinned.plot(report["density"]["points"], report["density"]["overall_accuracy"], "o-", label="random points")
    thinned.set_xscale("log", base=2)
    thinned.set_xticks(report["density"]["points"], map(str, report["density"]["points"]))
    thinned.set_xlabel("points")
    thinned.set_title("density", fontsize=10)
    for axes in (corrupted, turned, thinned):
        axes.set_ylim(0, 1)
        axes.set_ylabel("overall accuracy")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower left")
    figure.suptitle(f"{title} (seed {report['seed']})" if title else f"seed {report['seed']}", fontsize=11)
    save_figure(figure, path, description=description)
