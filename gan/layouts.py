"""How wide the stages of the networks are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def choose_channels(
    width: int, multiples: Sequence[int], papers: Mapping[int, Sequence[int]], image_size: int
) -> list[int]:
    """The channels of a network's stages: multiples of its width, those given or else the paper's for this image size.

    Raises:
        ValueError: for an image size without a layout, or multiples that do not fit it.
    """
    if image_size not in papers:
        raise ValueError(f"image_size {image_size}: expected one of {', '.join(map(str, papers))}")
    stages = len(papers[image_size])
    if multiples and (len(multiples) != stages or min(multiples) < 1):
        given = " ".join(map(str, multiples))
        raise ValueError(f"multiples {given}: expected {stages} positive numbers at {image_size} pixels")
    return [width * multiple for multiple in multiples or papers[image_size]]
