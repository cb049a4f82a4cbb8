"""Weights of PyTorch-StudioGAN's ResNet generator and discriminator, loaded into this project's modules.

They are the networks of its `models/resnet.py` as its SAGAN and SNGAN configurations build them: class-conditional
batch norm, projection, and self-attention (or none) where the papers have it. Its names follow from the place of a
layer; an attention takes a number of its own among the blocks.

| there                                         | here                                      |
| --------------------------------------------- | ----------------------------------------- |
| blocks.N.0.conv2d0, conv2d1, conv2d2          | blocks.N.skip, conv1, conv2               |
| blocks.N.0.bn1.bn, bn1.gain, bn1.bias         | blocks.N.norm1.norm, gain, bias           |
| blocks.N.0.conv1x1_theta, phi, g, attn; sigma | attention.attention.theta, phi, g, output; attention.gate |
| linear0, bn4, conv2d5                         | linear, norm, conv                        |
| linear1, embedding                            | head, embedding                           |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gan import discriminator, generator
from gan.discriminator import Discriminator
from gan.generator import Generator
from shared_attn.attention import check_options

__all__ = ["list_references", "load_reference", "studiogan_names"]

TOP = {"linear0": "linear", "bn4": "norm", "conv2d5": "conv", "linear1": "head", "embedding": "embedding"}
BLOCK = {"conv2d0": "skip", "conv2d1": "conv1", "conv2d2": "conv2"}
NORM = {"bn": "norm", "gain": "gain", "bias": "bias"}
ATTENTION = {
    "conv1x1_theta": "attention.attention.theta",
    "conv1x1_phi": "attention.attention.phi",
    "conv1x1_g": "attention.attention.g",
    "conv1x1_attn": "attention.attention.output",
}
# How torch's older spectral norm names what its parametrisation keeps.
NORMALISED = {
    "weight_orig": "parametrizations.weight.original",
    "weight_u": "parametrizations.weight.0._u",
    "weight_v": "parametrizations.weight.0._v",
}


def load_reference(source: str, state_dict: Mapping[str, Any], **meta: Any) -> nn.Module:
    """A module of this project in eval mode with weights that an original implementation saved.

    Args:
        source: one of `list_references()`: `studiogan.generator`, a `Generator` (z, labels) -> images;
            `studiogan.discriminator`, a `Discriminator` (images, labels) -> logits, whose skips see relu(x) as the
            original's in-place activations make them.
        state_dict: the original's parameters and buffers by their original names, tensors or numpy arrays. With
            spectral norm (weight_orig, weight_u, weight_v, as its hook saves it) or plain (weight).
        meta: image_size, num_classes, width, latent_dim (the generator's) and inplace_relu (the discriminator's,
            True); all but the last follow from the weights, and are refused where they contradict them.

    Raises:
        ValueError: for an unknown source or argument, and for weights that are missing, unexpected or of another
            shape; the message names them.
    """
    if source not in SOURCES:
        raise ValueError(f"unknown source {source!r}; there are: {', '.join(SOURCES)}")
    create, layout, known = SOURCES[source]
    check_options(f"source {source!r}", create, meta, given=("attention", "spectral_norm"))
    try:
        weights = {name: torch.as_tensor(value) for name, value in state_dict.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"weights of {source!r}: not all are tensors or arrays of numbers") from error
    options = {**_sizes(source, weights, layout, known), **meta}
    with torch.device("meta"):  # no start to compute, all is loaded
        network = create(**options)
    names = studiogan_names(network)
    missing = [name for name in names if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in names]
    if missing or unexpected:
        parts = [f"{kind} {', '.join(found)}" for kind, found in (("missing", missing), ("unexpected", unexpected))]
        raise ValueError(f"weights of {source!r}: {'; '.join(part for part in parts if not part.endswith(' '))}")
    ours = network.state_dict()
    loaded = {name: torch.zeros((), dtype=torch.long) for name in ours if name.endswith("num_batches_tracked")}
    for theirs, own in names.items():
        if theirs in weights:
            value, target = weights[theirs], ours[own]
            shape = target.shape
            if value.ndim == target.ndim + 2 and value.shape[-2:] == (1, 1):  # a linear map kept as a 1x1 convolution
                value = value[..., 0, 0]
            if value.shape != shape:
                found = tuple(weights[theirs].shape)
                raise ValueError(f"weights of {source!r}: {theirs} has shape {found}, expected {tuple(shape)}")
            loaded[own] = value.detach().to(target.dtype, copy=True)
    network.to_empty(device="cpu").load_state_dict(loaded)
    return network.eval()


def list_references() -> list[str]:
    """The sources that `load_reference` knows."""
    return list(SOURCES)


def studiogan_names(network: nn.Module) -> dict[str, str]:
    """StudioGAN's name of every parameter and buffer of a generator or discriminator -> the name here.

    Raises:
        ValueError: for an attention other than SAGAN's.
    """
    tail = {own: theirs for theirs, own in NORMALISED.items()}
    top = {own: theirs for theirs, own in TOP.items()}
    attention = {own: theirs for theirs, own in ATTENTION.items()}
    before = network.attention_after if isinstance(network, Generator) else discriminator.ATTENTION_AFTER_BLOCK
    shift = not isinstance(network.get_submodule("attention"), nn.Identity)
    found: dict[str, str] = {}
    for own in network.state_dict():
        owner, _, leaf = own.partition(".parametrizations.")
        if leaf:
            leaf = tail[f"parametrizations.{leaf}"]
        else:
            owner, _, leaf = own.rpartition(".")
        if own == "attention.gate":
            theirs = f"blocks.{before}.0.sigma"
        elif owner in attention:
            theirs = f"blocks.{before}.0.{attention[owner]}.{leaf}"
        elif owner.startswith("blocks."):
            number, _, rest = owner.removeprefix("blocks.").partition(".")
            place = int(number) + (shift and int(number) >= before)
            theirs = f"blocks.{place}.0.{_inside_block(rest)}.{leaf}"
        elif owner in top:
            theirs = f"{top[owner]}.{leaf}"
        else:
            raise ValueError(f"PyTorch-StudioGAN has no {own}")
        found[theirs] = own
    return found


def _inside_block(name: str) -> str:
    """The original's name of a layer of a block: conv1 -> conv2d1, norm1.gain -> bn1.gain."""
    layer, _, part = name.partition(".")
    if part:
        return f"bn{layer.removeprefix('norm')}.{next(theirs for theirs, own in NORM.items() if own == part)}"
    return next(theirs for theirs, own in BLOCK.items() if own == layer)


def _sizes(source: str, weights: Mapping[str, Tensor], layout: Mapping[int, Any], known: str) -> dict[str, Any]:
    """The constructor's arguments that follow from the weights' names and shapes."""
    normalised = any(name.endswith("weight_orig") for name in weights)
    leaf = "weight_orig" if normalised else "weight"
    blocks = sum(name.startswith("blocks.") and name.endswith(f".conv2d1.{leaf}") for name in weights)
    sizes = {len(channels) - (source == "studiogan.generator"): size for size, channels in layout.items()}
    if blocks not in sizes:
        expected = ", ".join(f"{count} ({size} px)" for count, size in sizes.items())
        raise ValueError(f"weights of {source!r}: {blocks} residual blocks, expected {expected}")
    size = sizes[blocks]
    options: dict[str, Any] = {"image_size": size, "spectral_norm": normalised}
    options["attention"] = "sagan" if any(name.endswith(".sigma") for name in weights) else "none"
    shapes = {name: _shape(source, weights, f"{name}.{leaf}") for name in known.split()}
    if source == "studiogan.generator":
        options["num_classes"] = shapes["blocks.0.0.bn1.gain"][1]
        options["width"] = shapes["conv2d5"][1] // layout[size][-1]
        options["latent_dim"] = shapes["linear0"][1]
    else:
        options["num_classes"], options["inplace_relu"] = shapes["embedding"][0], True
        options["width"] = shapes["blocks.0.0.conv2d1"][0] // layout[size][0]
    return options


def _shape(source: str, weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in weights or weights[name].ndim < 2:
        raise ValueError(f"weights of {source!r}: missing {name}")
    return tuple(weights[name].shape)


SOURCES: dict[str, tuple[type[Generator] | type[Discriminator], Mapping[int, Any], str]] = {
    "studiogan.generator": (Generator, generator.CHANNELS, "blocks.0.0.bn1.gain conv2d5 linear0"),
    "studiogan.discriminator": (Discriminator, discriminator.CHANNELS, "blocks.0.0.conv2d1 embedding"),
}
