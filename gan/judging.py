"""Evaluating saved weights: which network each metric needs, and one pass of samples a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from gan.datasets import load_image_set
from gan.distances import PRDC_NEIGHBOURS
from gan.evaluation import INCEPTION_METRICS, METRICS, evaluate
from gan.features import find_inception_weights, load_features
from gan.sampling import draw_images, draw_latents, load_generator

LATENT_CHUNK = 6400  # latents made at once


def plan_metrics(metrics: Sequence[str], has_inception: bool) -> dict[str, list[str]]:
    """Metrics by the network they need; prdc goes with the others' network, or the best at hand.

    Raises:
        ValueError: for an unknown metric, and for Inception's without its weights.
    """
    if not metrics:
        raise ValueError(f"--metrics: expected at least one of {', '.join(METRICS)}")
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(f"--metrics {unknown[0]}: expected one of {', '.join(METRICS)}")
    plan: dict[str, list[str]] = {}
    for name in sorted(set(metrics), key=METRICS.index):  # prdc comes last
        if name in INCEPTION_METRICS and not has_inception:
            raise ValueError(
                f"--metrics {name}: needs Inception's weights, which are not here; give --inception-weights "
                "pt_inception-2015-12-05-6726825d.pth, or ask for fd kd prdc"
            )
        network = "inception" if name in INCEPTION_METRICS else "lite0"
        if name == "prdc":
            network = next(iter(plan), "inception" if has_inception else "lite0")
        plan.setdefault(network, []).append(name)
    return plan


def judge(
    weights: str | Path,
    data: str,
    metrics: Sequence[str],
    *,
    count: int,
    references: int = 0,
    truncation: float | None = None,
    seed: int = 0,
    inception_weights: Path | None = None,
    device: torch.device,
) -> dict[str, Any]:
    """Compare `count` samples of saved weights with real images.

    Returns:
        `metrics` (values by names that state the protocol), and what they were measured on.

    Raises:
        ValueError, OSError: in one line, before any work starts.
    """
    least = PRDC_NEIGHBOURS + 1 if "prdc" in metrics else 2
    if count < least:
        raise ValueError(f"--count {count}: expected at least {least}")
    if references and references < least:
        raise ValueError(f"--references {references}: expected 0 (all) or at least {least}")
    plan = plan_metrics(metrics, find_inception_weights(inception_weights) is not None)
    if inception_weights is not None and "inception" not in plan:
        raise ValueError(f"--inception-weights {inception_weights}: not used by --metrics {' '.join(metrics)}")
    generator = load_generator(weights, device)
    networks = {name: load_features(name, device, inception_weights if name == "inception" else None) for name in plan}
    images = load_image_set(data, generator.image_size)

    def samples() -> Iterable[torch.Tensor]:
        for first in range(0, count, LATENT_CHUNK):
            seeds = range(seed + first, seed + min(first + LATENT_CHUNK, count))
            z = draw_latents(seeds, generator.latent_dim, truncation)
            yield from draw_images(generator, z, torch.arange(first, first + len(z)) % generator.num_classes)

    values: dict[str, float] = {}
    for name, network in networks.items():
        assert network is not None, "a plan names no absent network"
        values.update(evaluate(samples(), count, images, network, plan[name], references=references))
    return {
        "metrics": values,
        "weights": str(weights),
        "images_trained": generator.header.get("images"),
        "data": images.describe(),
        "count": count,
        "references": references or len(images.labels),
        "truncation": truncation,
        "seed": seed,
    }
