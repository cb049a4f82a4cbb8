"""How far apart the learning curves of two precisions lie, against how far apart those of two seeds do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared_attn.runtime.launch import choose_device
from shared_attn.runtime.progress import read_metrics
from shared_attn.runtime.records import write_benchmark


def running_means(values: Sequence[float], window: int) -> list[float]:
    """Means of each `window` values in a row; of all of them where there are fewer."""
    window = min(window, len(values))
    return [sum(values[at : at + window]) / window for at in range(len(values) - window + 1)]


def largest_distance(first: Sequence[float], second: Sequence[float], window: int) -> float:
    """Largest difference of two curves' running means at one time; NaN where one of them is.

    Raises:
        ValueError: curves of different lengths, or empty ones.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"curves of {len(first)} and {len(second)} values: expected as many, at least one")
    pairs = zip(running_means(first, window), running_means(second, window), strict=True)
    distances = [abs(one - other) for one, other in pairs]
    return math.nan if any(map(math.isnan, distances)) else max(distances)


def compare_precisions(
    name: str, train: Callable[[Any], Any], config: Any, curves: Sequence[str], folder: Path, *, part: float = 0.1
) -> list[dict[str, Any]]:
    """Trains three times, in fp32 and bf16 with seed 0 and in fp32 with seed 1: a row a curve.

    Two precisions begin with the same weights and see the same items, so what lies between their curves is rounding,
    and what training makes of it; two seeds differ in everything, which is the measure of a distance that matters.

    Args:
        name: what the rows call the training.
        train: takes a configuration, a dataclass with `precision`, `seed` and `out`.
        curves: names in metrics.jsonl.
        folder: where the runs go.
        part: of a curve that a running mean takes.
    """
    found = {}
    for precision, seed in (("fp32", 0), ("bf16", 0), ("fp32", 1)):
        out = folder / f"{name}-{precision}-{seed}"
        train(dataclasses.replace(config, precision=precision, seed=seed, out=out))
        found[precision, seed] = read_metrics(out)
    rows = []
    for curve in curves:
        fp32, bf16, other = ([line[curve] for line in lines if curve in line] for lines in found.values())
        window = max(1, round(part * len(fp32)))
        rows.append(
            {
                "training": name,
                "curve": curve,
                "first": running_means(fp32, window)[0],
                "last_fp32": running_means(fp32, window)[-1],
                "last_bf16": running_means(bf16, window)[-1],
                "distance": largest_distance(fp32, bf16, window),
                "seed_distance": largest_distance(fp32, other, window),
                "fp32": fp32,
                "bf16": bf16,
            }
        )
    return rows


def write_comparison(path: Path, options: Any, rows: Sequence[dict[str, Any]], seconds: float) -> None:
    """Writes the record of a comparison; `options` is its dataclass of flags, with a `device`."""
    metrics = {f"{row['training'].lower()}_{row['curve']}_distance": row["distance"] for row in rows}
    write_benchmark(
        path,
        "learning curves in bf16 and fp32",
        options,
        metrics,
        {"precision": rows},
        seconds=seconds,
        device=choose_device(options.device).type,
        data="shapes",
    )
