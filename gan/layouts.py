"""How wide the stages of the networks are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def choose_channels(
    channels: Sequence[int], multiples: Mapping[int, Sequence[int]], image_size: int, width: int
) -> list[int]:
    """The channels of a network's stages: those given, or else the multiples of its width for this image size.

    Raises:
        ValueError: for an image size without a layout, or channels that do not fit it.
    """
    if image_size not in multiples:
        raise ValueError(f"image_size {image_size}: expected one of {', '.join(map(str, multiples))}")
    layout = multiples[image_size]
    if channels and (len(channels) != len(layout) or min(channels) < 1):
        given = " ".join(map(str, channels))
        raise ValueError(f"channels {given}: expected {len(layout)} positive numbers at {image_size} pixels")
    return list(channels) or [width * multiple for multiple in layout]
