"""EAGAN: SAGAN with external attention in generator and discriminator; any attention of shared_attn fits.

    import gan
    generator = gan.load_generator("runs/a")

networks     generator, discriminator, resampling, initialization, spectral_norm
training     presets (every flag), training (the loop), steps, losses, augmentation, adaptation, averaging, graphs
telling      reporting (evaluations, record), diagnostics, gallery, pictures, attention_pictures
data/        images from wherever they lie to batches;  judging/: distances, scores, nearest images
samples/     grids, films and folders of samples;  sampling: loading and drawing
comparing    reference (StudioGAN's weights), original (its code), published (its form), benchmark

Importing this package imports nothing heavy; torch comes with the first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gan.discriminator import Discriminator
    from gan.generator import Generator
    from gan.reference import load_reference
    from gan.sampling import load_generator

__all__ = ["Discriminator", "Generator", "load_generator", "load_reference"]

_HOMES = {
    "Discriminator": "gan.discriminator",
    "Generator": "gan.generator",
    "load_generator": "gan.sampling",
    "load_reference": "gan.reference",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gan' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
