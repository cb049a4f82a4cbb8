"""How wide the stages of the networks are, and how many of them change the size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class LayoutError(ValueError):
    """Stages that a network cannot have: the argument's name, its value, and what was expected."""


def choose_channels(
    width: int, multiples: Sequence[int], papers: Mapping[int, Sequence[int]], image_size: int
) -> list[int]:
    """The channels of a network's stages: multiples of its width, those given or else the paper's for this image size.

    Raises:
        ValueError: for an image size without a layout; its `LayoutError` for multiples that do not fit it.
    """
    if image_size not in papers:
        raise ValueError(f"image_size {image_size}: expected one of {', '.join(map(str, papers))}")
    stages = len(papers[image_size])
    if multiples and (len(multiples) != stages or min(multiples) < 1):
        given = " ".join(map(str, multiples))
        raise LayoutError(f"multiples {given}: expected {stages} positive numbers at {image_size} pixels")
    return [width * multiple for multiple in multiples or papers[image_size]]


def choose_halvings(grid: int, papers: Mapping[int, int], image_size: int, stages: int) -> int:
    """How many of the first stages halve the size, so that the last map has `grid` x `grid` pixels; 0: the paper's.

    Raises:
        LayoutError: for a grid that so many stages cannot end with.
    """
    grids = {image_size >> halvings: halvings for halvings in range(1, stages + 1)}
    side = grid or papers[image_size]
    if side not in grids:
        raise LayoutError(f"grid {grid}: expected one of {', '.join(map(str, grids))} at {image_size} pixels")
    return grids[side]
