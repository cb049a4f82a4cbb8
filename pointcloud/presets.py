"""Configurations of a training: one frozen dataclass, and its named instances. Imports no torch, so --help is quick."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pointcloud.published_widths import CENTRES, ENCODERS

# Fields that may differ when a run is resumed: they do not change what it computes, or say how to start. What
# neighbour_embedding says is in the widths, which a run's configuration has all resolved.
FREE_FIELDS = ("device", "debug_numerics", "deterministic", "fresh", "neighbour_embedding")


@dataclass(frozen=True)
class Config:
    """A training of a point network."""

    name: str = "point network"
    """What the results call it."""
    task: Literal["classify", "segment"] = "classify"
    """classify: one label a cloud; segment: one part label a point."""
    data: str = "shapes"
    """Where the clouds are: shapes (built in), a folder of .npz files, one .npz file, or the folder or zip of a public
    release: ModelNet's meshes, HDF5 or text clouds, ShapeNet-Part's text or HDF5."""
    dataset: str = "shapes"
    """Which data set of that folder: the beginning of its files' names, e.g. modelnet40 or lpsb."""
    out: Path = Path("runs/pointcloud")
    """The run's folder; the same command resumes the run in it."""
    fresh: bool = False
    """Start over: remove the run in the folder first."""
    epochs: int = 250
    """Passes over the training clouds."""
    batch_size: int = 32
    """Clouds a step."""
    seed: int = 0
    """Of the weights, the order, the augmentation and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """bf16: bfloat16 matrix products over float32 weights, statistics and losses; auto: where the device has them."""
    compile: bool = False
    """Train through torch.compile, one graph a step (on CUDA a CUDA graph): minutes to begin with, then faster."""
    deterministic: bool = False
    """The same bits in every run on one machine, on a GPU too; what cannot do that is refused by name. Slower there."""
    debug_numerics: bool = False
    """Stop at the first NaN or infinite number and name its module, tensor and step; slow, to find out what happens."""
    validation: float = 0.0
    """Share of the TRAINING clouds set apart for evaluation while training; the test split is read once, at the end."""
    evaluate_epochs: int = 10
    """Epochs from one evaluation on the validation clouds to the next."""

    attention: str = "external"
    """Attention by its name in shared_attn: external makes the network EAT, offset makes it PCT."""
    form: Literal["offset", "offset_query", "plain"] = "offset"
    """Residual layer around it: x + LBR(x - r), the same with a query map, or x + LBR(r)."""
    attention_options: tuple[str, ...] = ()
    """Keywords of that attention, as name=value, for example memory_size=64."""
    num_layers: int = 4
    """Attention layers."""
    neighbour_embedding: Literal["auto", "none", "sg"] = "auto"
    """sg: PCT's neighbour embeddings, for a segmenter at all points; none: without (NPCT, SPCT); auto: sg for a
    classifier, none for a segmenter. Which of the four widths below are not given are the published ones of it."""
    embed_channels: tuple[int, ...] | None = None
    """Widths of the maps of single points; published: 64 64 (sg), 128 128 (none)."""
    neighbour_channels: tuple[int, ...] | None = None
    """Width of each neighbour embedding; published: 128 256 (sg), empty (none)."""
    num_centres: tuple[int, ...] | None = None
    """Farthest points each neighbour embedding keeps; empty: all points stay; published: 512 256 (classifier, sg)."""
    num_neighbours: int = 32
    """Neighbours of each centre."""
    stem_layers: int | None = None
    """Maps between the neighbour embeddings and the attention; published: 2 (sg; 1 in the official code), 0 (none)."""
    position_embedding: bool = False
    """Add a linear map of xyz to every attention layer's input, as the official code does."""
    fuse_channels: int = 1024
    """Width of the fused token features."""
    pooling: Literal["max", "max_mean"] = "max"
    """Over the tokens; classifier only (the segmenter always has both)."""
    head_channels: tuple[int, ...] = (512, 256)
    """Widths of the head's hidden layers."""
    dropout: float = 0.5
    """In the head."""
    drop_path: float = 0.0
    """Probability that a training cloud skips the last attention layer; it grows linearly over the layers."""
    categories: bool = True
    """Segmenter only: the shape's category is an input."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """sgd: with momentum 0.9, as PCT was trained."""
    learning_rate: float = 1e-3
    """Highest learning rate."""
    final_learning_rate: float = 0.0
    """Where the cosine ends."""
    warmup_epochs: float = 1.0
    """Epochs of linear growth from 0 to the highest learning rate."""
    weight_decay: float = 0.05
    """Of the matrices with adamw (not of norms and biases), of every weight with sgd."""
    label_smoothing: float = 0.2
    """What the true class gives away to all others."""
    gradient_clip: float = 10.0
    """Largest norm of the gradient; 0: not clipped."""
    average_epochs: float = 1.0
    """Half-life of the averaged weights, which are the result; 0: the last weights themselves."""
    norm_clouds: int = 2048
    """Training clouds from which the averaged weights' batch-norm statistics are estimated at the end; 0: averaged
    too."""

    num_points: int = 1024
    """Points of each cloud, drawn anew each epoch; at evaluation the first so many, unless evaluate_points is given."""
    evaluate_points: int = 0
    """Points of each cloud at evaluation and prediction; 0: num_points."""
    point_dropout: float = 0.0
    """Upper end of the share of points replaced by copies of one."""
    rotation: float = 0.0
    """Largest turn about the up axis in degrees."""
    tilt: float = 0.0
    """Largest turn about a random horizontal axis in degrees."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the factor of each axis."""
    shift: float = 0.0
    """Largest shift along each axis."""
    jitter: float = 0.0
    """Standard deviation of the noise on each coordinate."""
    point_mix: Literal["none", "cutmix_k", "cutmix_r", "rsmix"] = "none"
    """Classifier only: mix a part of another training cloud in. cutmix_k: a point's neighbours become their partners
    in the other cloud (PointCutMix-K); cutmix_r: random points do (PointCutMix-R); rsmix: a rigid piece of the other
    cloud takes a piece's place (RSMix)."""
    mix_probability: float = 0.5
    """Share of the training clouds that are mixed."""
    mix_beta: float = 1.0
    """The mixed share of points follows Beta(b, b) with this b."""


def resolve_encoder(config: Config) -> Config:
    """The same configuration with all of its encoder's widths: those not given are the published ones.

    Raises:
        ValueError: neighbour_embedding and neighbour_channels contradict each other.
    """
    kind = config.neighbour_embedding
    if kind == "auto":
        kind = "sg" if config.task == "classify" else "none"
    published = {**ENCODERS[kind], **({"num_centres": CENTRES} if config.task == "classify" else {})}
    given = {name: getattr(config, name) for name in published}
    widths = {name: published[name] if value is None else value for name, value in given.items()}
    found: Literal["none", "sg"] = "sg" if widths["neighbour_channels"] else "none"
    if config.neighbour_embedding not in ("auto", found):
        raise ValueError(
            f"--neighbour-embedding {config.neighbour_embedding}: contradicts --neighbour-channels "
            f"{_words(widths['neighbour_channels']) or '(empty)'}; expected one of the two, or both to agree"
        )
    if found == "none" and config.num_centres is None:
        widths["num_centres"] = ()
    return replace(config, neighbour_embedding=found, **widths)


# Field -> least value, greatest value. Shares end just below 1.
_BELOW_ONE = math.nextafter(1.0, 0.0)
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("epochs", "num_points", "evaluate_epochs", "num_layers", "num_neighbours"), (1, math.inf)),
    **dict.fromkeys(("evaluate_points", "norm_clouds", "stem_layers", "seed"), (0, math.inf)),
    **dict.fromkeys(("learning_rate", "final_learning_rate", "weight_decay"), (0, sys.float_info.max)),
    **dict.fromkeys(("warmup_epochs", "gradient_clip", "average_epochs"), (0, sys.float_info.max)),
    **dict.fromkeys(("validation", "dropout", "drop_path", "label_smoothing", "point_dropout"), (0, _BELOW_ONE)),
    **dict.fromkeys(("rotation", "tilt"), (0, 180)),
    **dict.fromkeys(("shift", "jitter"), (0, 100)),
    "mix_probability": (0, 1),
    "mix_beta": (0.01, 100),
    "batch_size": (2, math.inf),
    "fuse_channels": (1, math.inf),
}


def check_config(config: Config) -> None:
    """Refuses values that make no sense, naming the flag.

    Raises:
        ValueError: in one line.
    """
    config = resolve_encoder(config)
    for name, (low, high) in _RANGES.items():
        value = getattr(config, name)
        if not low <= value <= high:
            upper = "" if high > 1e300 else f" to {'below 1' if high == _BELOW_ONE else high}"
            raise ValueError(f"{_flag(name)} {value}: expected at least {low}{upper}")
    for name in ("embed_channels", "neighbour_channels", "num_centres", "head_channels"):
        if any(width < 1 for width in getattr(config, name)):
            raise ValueError(f"{_flag(name)} {_words(getattr(config, name))}: expected numbers from 1")
    if not config.embed_channels:
        raise ValueError("--embed-channels: expected at least one width")
    from shared_attn.runtime.options import parse_options  # torch, which --help need not load

    parse_options(config.attention_options, "--attention-options")
    if not 0 < config.scale[0] <= config.scale[1] < math.inf:
        raise ValueError(f"--scale {config.scale[0]} {config.scale[1]}: expected 0 < lowest <= highest")
    if config.debug_numerics and config.compile:
        raise ValueError("--debug-numerics: watches one module after the other; expected no --compile")
    if config.task == "segment":
        _check_segmenter(config)
    elif not config.categories:
        raise ValueError("--no-categories: the flag is the segmenter's; a classifier never sees the category")


def _check_segmenter(config: Config) -> None:
    if len(config.head_channels) != 2:
        raise ValueError(f"--head-channels {_words(config.head_channels)}: the segmenter's head has two widths")
    if config.point_mix != "none":
        raise ValueError(f"--point-mix {config.point_mix}: the flag is the classifier's; a mixed cloud has no category")
    if config.pooling != "max":
        raise ValueError(f"--pooling {config.pooling}: the segmenter always has both; the flag is the classifier's")
    if config.num_centres:
        raise ValueError(f"--num-centres {_words(config.num_centres)}: a segmenter keeps all points; expected none")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _words(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values))


_MODELNET = Config(
    dataset="modelnet40",
    data="data",
    epochs=250,
    batch_size=32,
    num_points=1024,
    label_smoothing=0.2,
    scale=(2 / 3, 3 / 2),
    shift=0.2,
)
# Sized for two CPU cores: half the widths, a quarter of the pairs.
_SMALL: dict[str, Any] = {
    "embed_channels": (32, 64),
    "neighbour_channels": (64, 128),
    "num_centres": (256, 128),
    "num_neighbours": 16,
    "stem_layers": 1,
    "fuse_channels": 512,
    "head_channels": (256, 128),
}
_PARTS: dict[str, Any] = {
    "task": "segment",
    "num_points": 2048,
    "label_smoothing": 0.0,
}

PRESETS: dict[str, Config] = {
    # As PCT_Pytorch trains it; the last weights, not the best.
    "pct-modelnet40": replace(
        _MODELNET,
        name="pct-modelnet40",
        out=Path("runs/pct-modelnet40"),
        attention="offset",
        optimizer="sgd",
        learning_rate=0.01,
        final_learning_rate=1e-4,
        warmup_epochs=0.0,
        weight_decay=5e-4,
        gradient_clip=0.0,
        average_epochs=0.0,
        norm_clouds=0,
        point_dropout=0.875,
    ),
    # EAT with what is known to help: AdamW, warm-up, cosine to zero, averaged weights.
    "eat-modelnet40": replace(
        _MODELNET,
        name="eat-modelnet40",
        out=Path("runs/eat-modelnet40"),
        precision="auto",
        warmup_epochs=10.0,
        average_epochs=2.0,
    ),
    # Three quarters of an hour on one CPU core. Milder augmentation and dropout and a higher rate than above learn
    # faster in so few epochs: after five, 86.2 % of a tenth of the training clouds, held out, against 80.8 %.
    "eat-small": replace(
        _MODELNET,
        name="eat-small",
        out=Path("runs/eat-small"),
        epochs=20,
        precision="auto",
        learning_rate=3e-3,
        dropout=0.3,
        scale=(0.8, 1.25),
        shift=0.1,
        **_SMALL,
    ),
    # The embedded data, a minute or two each.
    "eat-shapes-small": Config(
        name="eat-shapes-small",
        out=Path("runs/eat-shapes-small"),
        epochs=6,
        precision="auto",
        learning_rate=3e-3,
        dropout=0.3,
        validation=0.1,
        evaluate_epochs=3,
        scale=(0.8, 1.25),
        shift=0.1,
        **_SMALL,
    ),
    "eat-shapes-parts-small": replace(
        Config(**_PARTS),
        name="eat-shapes-parts-small",
        out=Path("runs/eat-shapes-parts-small"),
        epochs=10,
        batch_size=16,
        precision="auto",
        embed_channels=(64, 64),
        fuse_channels=256,
        head_channels=(256, 128),
        num_points=1024,
        learning_rate=3e-3,
        dropout=0.3,
        validation=0.1,
        evaluate_epochs=5,
        scale=(0.8, 1.25),
        shift=0.1,
    ),
    # The published network. As is usual, it trains on the release's training and validation shapes together and is
    # tested on the test split; choices are made with --validation 0.13, about as many shapes as the published
    # validation list has, out of the training ones.
    "eat-shapenetpart": replace(
        Config(**_PARTS),
        name="eat-shapenetpart",
        out=Path("runs/eat-shapenetpart"),
        dataset="shapenetpart",
        data="data",
        epochs=200,
        batch_size=32,
        precision="auto",
        warmup_epochs=10.0,
        average_epochs=2.0,
        scale=(2 / 3, 3 / 2),
        shift=0.1,
    ),
    # Less than an hour on one CPU core. Poses differ from shape to shape in the L-PSB, so any pose occurs in training,
    # and a point's neighbourhood tells more than its place.
    "eat-lpsb": replace(
        Config(**_PARTS),
        name="eat-lpsb",
        out=Path("runs/eat-lpsb"),
        dataset="lpsb",
        data="data",
        epochs=150,
        batch_size=8,
        precision="auto",
        embed_channels=(32, 32),
        neighbour_channels=(64, 128),
        num_neighbours=16,
        stem_layers=1,
        fuse_channels=512,
        head_channels=(256, 128),
        num_points=1024,
        learning_rate=3e-3,
        warmup_epochs=5.0,
        average_epochs=5.0,
        norm_clouds=570,
        rotation=180.0,
        tilt=180.0,
        scale=(0.8, 1.25),
        shift=0.1,
    ),
}
