"""Weights that were published for the original point networks, loaded into this project's modules."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pointcloud.classifier import PointClassifier
from pointcloud.published import create_published_twin
from shared_attn.runtime.messages import one_line

# Names in PCT_Pytorch's model.Pct -> names here.
PAIRS = {
    "conv1": "encoder.embed.0.linear",
    "bn1": "encoder.embed.0.norm",
    "conv2": "encoder.embed.1.linear",
    "bn2": "encoder.embed.1.norm",
    "conv_fuse.0": "encoder.fuse.linear",
    "conv_fuse.1": "encoder.fuse.norm",
    "pt_last.conv1": "encoder.stem.0.linear",
    "pt_last.bn1": "encoder.stem.0.norm",
    "pt_last.conv2": "encoder.stem.1.linear",
    "pt_last.bn2": "encoder.stem.1.norm",
    "linear1": "head.0.linear",
    "bn6": "head.0.norm",
    "linear2": "head.2.linear",
    "bn7": "head.2.norm",
    "linear3": "head.4",
}
for _place in (0, 1):
    for _old, _new in {"conv1": "first", "bn1": "first_norm", "conv2": "second", "bn2": "second_norm"}.items():
        PAIRS[f"gather_local_{_place}.{_old}"] = f"encoder.neighbours.{_place}.{_new}"
for _place in range(4):
    for _old, _new in {
        "k_conv": "attention.query_key",
        "v_conv": "attention.value",
        "trans_conv": "transform",
        "after_norm": "norm",
    }.items():
        PAIRS[f"pt_last.sa{_place + 1}.{_old}"] = f"encoder.attention.{_place}.{_new}"


def load_reference(
    source: str,
    state_dict: Mapping[str, Tensor],
    *,
    num_classes: int = 40,
    points: int = 1024,
    published_order: bool = True,
) -> nn.Module:
    """A module in eval mode that holds weights of an original implementation and computes what it computes.

    Args:
        source: "pct_pytorch.classifier": Strawberry-Eat-Mango/PCT_Pytorch's model.Pct; (B, N, 3) -> logits.
        state_dict: its state_dict, with its names.
        num_classes: classes of its last layer.
        points: points of a cloud it was made for; the weights do not depend on it.
        published_order: compute in the original's order of operations, which reproduces its float32 logits to 1e-4;
            else in this package's faster forms: the same function, whose float32 logits differ by up to some 3e-4.

    Raises:
        ValueError: an unknown source, or weights that do not fit it.
    """
    if source != "pct_pytorch.classifier":
        raise ValueError(f"unknown source {source!r}; there is: pct_pytorch.classifier")
    if points < 1:
        raise ValueError(f"points = {points}: expected at least one")
    model = PointClassifier(num_classes)
    renamed = {}
    for name, value in state_dict.items():
        owner, _, leaf = name.rpartition(".")
        if owner.endswith("q_conv"):  # one weight with k_conv
            continue
        if owner not in PAIRS:
            raise ValueError(f"{source}: unexpected weight {name}")
        dtype = torch.long if leaf == "num_batches_tracked" else torch.float32
        is_convolution = leaf == "weight" and value.ndim == 3  # (out, in, 1)
        renamed[f"{PAIRS[owner]}.{leaf}"] = (value.squeeze(-1) if is_convolution else value).to(dtype)
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise ValueError(f"{source}: {one_line(error)}") from error
    return (create_published_twin(model) if published_order else model).eval()
