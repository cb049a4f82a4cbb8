"""Point clouds: PCT and EAT (PCT whose attention is external attention), trained and used on clouds and meshes."""

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
