"""How much accuracy corruptions, turns and fewer points cost a classifier: ModelNet-C's mCE, and two curves.

mCE (arXiv 2202.03377): a corruption's error is the sum over its five levels of 1 - overall accuracy,
divided by the same sum of DGCNN; mCE is the mean over the seven corruptions. RmCE is the same with the loss against
clean clouds in place of the error. The clouds are draws of the benchmark's distributions, not its files, and the
metrics' names say "generated"; the reference is DGCNN's accuracy on its files.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from pointcloud.clouds import CloudSet
from pointcloud.corruptions import (
    ADD_GLOBAL,
    ADD_LOCAL,
    CORRUPTIONS,
    DROP_GLOBAL,
    DROP_LOCAL,
    JITTER,
    LEVELS,
    ROTATE,
    SCALE,
    corrupt,
    thin,
    turn_anyhow,
    turn_upright,
)
from pointcloud.evaluation import Change, evaluate_classifier
from shared_attn.runtime.processes import WHOLE, Share

# DGCNN's overall accuracy on ModelNet-C, mean over the five levels (arXiv 2202.03377).
DGCNN_CLEAN = 0.926
DGCNN = {
    "scale": 0.906,
    "jitter": 0.684,
    "rotate": 0.785,
    "drop_global": 0.752,
    "drop_local": 0.793,
    "add_global": 0.705,
    "add_local": 0.725,
}
SEVERITY = {
    "scale": ("largest factor of an axis", SCALE),
    "jitter": ("standard deviation", JITTER),
    "rotate": ("largest angle about each axis, degrees", ROTATE),
    "drop_global": ("share of points dropped", tuple(thousandths / 1000 for thousandths in DROP_GLOBAL)),
    "drop_local": ("points dropped, of 1,024", DROP_LOCAL),
    "add_global": ("points added, to 1,024", ADD_GLOBAL),
    "add_local": ("points added, to 1,024", ADD_LOCAL),
}
ANGLES = (15, 30, 60, 90, 180)
DENSITIES = (512, 256, 128, 64)
PROTOCOL = (
    "ModelNet-C's corruptions (arXiv 2202.03377) drawn anew from the seed, not its files; mCE and RmCE against DGCNN's "
    "published accuracies on those files"
)


def measure_robustness(
    network: nn.Module,
    clouds: CloudSet,
    num_points: int,
    *,
    batch_size: int = 64,
    votes: int = 1,
    seed: int = 0,
    share: Share = WHOLE,
) -> dict[str, Any]:
    """Overall accuracies of a classifier on corrupted, turned and thinned clouds, and what follows from them.

    `share`: of the clouds, where several processes share them; each gets the whole report.

    Returns:
        protocol, seed, clean; corruptions: for each its severities, five accuracies, their mean, its error and relative
        error against DGCNN; mean_overall_accuracy, mce, rmce; turned_upright and turned_anyhow (degrees and accuracies,
        0 first), density (points and accuracies, all points first); and `metrics`, all numbers under names that state
        their protocol.
    """
    from tqdm import tqdm

    runs = LEVELS * len(CORRUPTIONS) + 2 * len(ANGLES) + sum(count < num_points for count in DENSITIES) + 1
    with tqdm(total=runs, desc="robustness", unit="run", leave=False, disable=share.rank > 0) as bar:

        def accuracy(change: Change | None) -> float:
            metrics, _ = evaluate_classifier(
                network, clouds, num_points, batch_size=batch_size, votes=votes, change=change, share=share
            )
            bar.update()
            return next(iter(metrics.values()))

        clean = accuracy(None)
        levels = {
            name: [
                accuracy(partial(corrupt, corruption=name, level=level, seed=seed)) for level in range(1, LEVELS + 1)
            ]
            for name in CORRUPTIONS
        }
        curves = measure_curves(accuracy, clean, min(num_points, clouds.points.shape[1]), seed)
    report = {"protocol": PROTOCOL, "seed": seed, "clean": clean, **summarise(clean, levels), **curves}
    suffix = f"_seed{seed}" + (f"_vote{votes}" if votes > 1 else "")
    return {**report, "metrics": {name + suffix: value for name, value in flatten(report).items()}}


def measure_curves(
    accuracy: Callable[[Change | None], float], clean: float, num_points: int, seed: int
) -> dict[str, dict[str, list[float]]]:
    """Accuracies over angles, about the up axis and about any, and over fewer points."""
    curves: dict[str, dict[str, list[float]]] = {}
    turns: dict[str, Callable[..., Tensor]] = {"turned_upright": turn_upright, "turned_anyhow": turn_anyhow}
    for name, turned in turns.items():
        accuracies = [accuracy(partial(turned, degrees=degrees, seed=seed)) for degrees in ANGLES]
        curves[name] = {"degrees": [0, *ANGLES], "overall_accuracy": [clean, *accuracies]}
    counts = [count for count in DENSITIES if count < num_points]
    accuracies = [accuracy(partial(thin, count=count, seed=seed)) for count in counts]
    curves["density"] = {"points": [num_points, *counts], "overall_accuracy": [clean, *accuracies]}
    return curves


def summarise(clean: float, levels: dict[str, list[float]]) -> dict[str, Any]:
    """Errors of each corruption's accuracies against DGCNN's, and their means over the corruptions."""
    rows: dict[str, dict[str, Any]] = {}
    for name, accuracies in levels.items():
        mean = statistics.fmean(accuracies)
        rows[name] = {
            "severity": SEVERITY[name][0],
            "levels": list(SEVERITY[name][1]),
            "overall_accuracy": accuracies,
            "mean": mean,
            "corruption_error": (1 - mean) / (1 - DGCNN[name]),
            "relative_corruption_error": (clean - mean) / (DGCNN_CLEAN - DGCNN[name]),
        }
    return {
        "corruptions": rows,
        "mean_overall_accuracy": statistics.fmean(row["mean"] for row in rows.values()),
        "mce": statistics.fmean(row["corruption_error"] for row in rows.values()),
        "rmce": statistics.fmean(row["relative_corruption_error"] for row in rows.values()),
    }


def flatten(report: dict[str, Any]) -> dict[str, float]:
    """Every number of a report by a name of its own."""
    source = "modelnetc_generated"
    metrics = {
        f"mce_{source}": report["mce"],
        f"rmce_{source}": report["rmce"],
        f"overall_accuracy_{source}_mean": report["mean_overall_accuracy"],
    }
    for name, row in report["corruptions"].items():
        for level, accuracy in enumerate(row["overall_accuracy"], start=1):
            metrics[f"overall_accuracy_{source}_{name}_level{level}"] = accuracy
        metrics[f"overall_accuracy_{source}_{name}_mean"] = row["mean"]
        metrics[f"corruption_error_{source}_{name}"] = row["corruption_error"]
    for name in ("turned_upright", "turned_anyhow"):
        curve = report[name]
        for degrees, accuracy in list(zip(curve["degrees"], curve["overall_accuracy"], strict=True))[1:]:
            metrics[f"overall_accuracy_{name}_{degrees}degrees"] = accuracy
    for count, accuracy in list(zip(*report["density"].values(), strict=True))[1:]:
        metrics[f"overall_accuracy_random_{count}points"] = accuracy
    return metrics
