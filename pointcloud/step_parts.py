"""Where a training step's time goes: the seconds of each part of a classifier's forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pointcloud.classifier import PointClassifier
from shared_attn.step_clock import PartClock

REST = "loss and optimiser"
GEOMETRY = "farthest points and neighbours"


@contextmanager
def marked_parts(model: PointClassifier, clock: PartClock) -> Iterator[None]:
    """While it lasts, each forward and backward of the model marks its parts.

    The parts are in series, so what lies between the gradients of two parts' outputs is the later part's backward.
    """
    encoder = model.encoder
    # Each part's module (of several, the first and the last) and its name, in the order of the forward.
    parts: list[tuple[nn.Module, nn.Module, str]] = [(encoder.embed, encoder.embed, "maps of points")]
    parts += [(m, m, f"neighbour embedding {n}") for n, m in enumerate(encoder.neighbours, 1)]
    parts += [(encoder.stem, encoder.stem, "stem"), (encoder.attention[0], encoder.attention[-1], "attention")]
    parts += [(encoder.fuse, encoder.fuse, "fusion"), (model.head, model.head, "pooling and head")]
    hooks = []

    def watch(first: nn.Module, last: nn.Module, name: str, before: str, after: str) -> None:
        def entered(*_: Any) -> None:
            clock.mark(before)

        def left(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            clock.mark(name)
            if output.requires_grad:
                output.register_hook(lambda _: clock.mark(after))

        hooks.append(first.register_forward_pre_hook(entered))
        hooks.append(last.register_forward_hook(left))

    for place, (first, last, name) in enumerate(parts):
        # Between two parts: sampling and grouping, the concatenation, the pooling.
        before = GEOMETRY if name.startswith("neighbour") else {"maps of points": REST}.get(name, name)
        after = parts[place + 1][2] if place + 1 < len(parts) else REST
        watch(first, last, name, before, after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
