"""Point clouds: PCT and EAT (PCT whose attention is external attention), trained and used on clouds and meshes.

networks     classifier, segmenter: encoder, layers, neighbours (its work on pairs: pair_maximum), geometry, kernels/
training     presets, training, steps (augmentation, mixing, draws), losses, averaging, compilation, reporting
data         clouds (a set in memory), datasets (which is meant), releases/ (public ones), graphs (torch_geometric's)
measuring    evaluation, metrics, measurement, robustness (corruptions), benchmark (step_parts, original, published)
using        models (saved networks), files/ (users' own), export, graph_batches, reference (others' weights)
pictures     pictures, gallery, attention_pictures, robustness_pictures
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pointcloud.models import LoadedModel, load_model

__all__ = ["LoadedModel", "load_model"]


def __getattr__(name: str) -> Any:
    """`load_model` and `LoadedModel`, imported with torch at their first use, so that --help needs no torch."""
    if name in __all__:
        from pointcloud import models

        return getattr(models, name)
    raise AttributeError(f"module 'pointcloud' has no attribute {name!r}")
