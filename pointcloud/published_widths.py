"""The widths of the two encoders that PCT (arXiv 2012.09688) describes: a table. Imports nothing."""

from __future__ import annotations

from typing import Any

# On all points without neighbour embedding (NPCT, SPCT and the released segmenter), or with both, at all points.
ENCODERS: dict[str, dict[str, Any]] = {
    "none": {"embed_channels": (128, 128), "neighbour_channels": (), "num_centres": (), "stem_layers": 0},
    "sg": {"embed_channels": (64, 64), "neighbour_channels": (128, 256), "num_centres": (), "stem_layers": 2},
}
CENTRES = (512, 256)
"""Farthest points that the classifier's embeddings keep."""
