"""Configurations of GAN training: every flag of `scripts/train_gan.py`, and the presets it starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

IMAGE_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class GanConfig:
    """One training run."""

    data: str = "shapes"
    """shapes, cifar10, cifar100, tiny-imagenet, imagenet128; or a folder or zip of class/image.jpg, a release as it is
    downloaded, an HDF5 file, a parquet file or a folder of them"""
    stream: Literal["auto", "always", "never"] = "auto"
    """decode images when they are needed, instead of once; auto: where they take more than 4 GiB"""
    workers: int | None = None
    """processes that decode streamed images ahead; none given: one a core, at most 16"""
    out: Path = Path("runs/gan")
    """folder of the run; running again with the same folder resumes"""
    images: int = 32_000_000
    """the clock: real images shown to the discriminator"""
    image_size: int = 32
    """32, 64 or 128 pixels; images of other sizes are cropped to a square and resized"""
    attention: str = "external"
    """attention of both networks, a name of shared_attn.list_attentions(); none leaves it out"""
    attention_options: tuple[str, ...] = ()
    """keywords of that attention, as name=value, for example memory_size=64"""
    attention_spectral_norm: bool = True
    """normalise the attention's maps as all other layers; external attention hardly acts when it is"""
    conditional: bool = True
    """tell both networks the class (class-conditional batch norm, projection); otherwise all images are one class"""
    generator_spectral_norm: bool = True
    """divide the generator's weights by their largest singular value"""
    discriminator_spectral_norm: bool = True
    """the discriminator's too; a recipe with gradient penalties can do without"""
    generator_width: int = 64
    """the generator's width, 64 in the paper; its layers are multiples of it"""
    discriminator_width: int = 64
    """the discriminator's width, 64 in the paper"""
    generator_multiples: tuple[int, ...] = ()
    """channels after the generator's first map and after each block, in widths; none given: the paper's"""
    discriminator_multiples: tuple[int, ...] = ()
    """channels after each of the discriminator's blocks, in widths"""
    discriminator_grid: int = 0
    """pixels of the side of the discriminator's last map; 0: the paper's, 8 for images of 32 pixels, else 4"""
    group_size: int = 0
    """images among which the discriminator sees how much they differ (minibatch standard deviation); 0: none"""
    warm_up: int = 0
    """real images that the discriminator learns to classify before the first step"""
    inplace_relu: bool = False
    """let the discriminator's skips see relu(x), as implementations with in-place ReLU do; for comparison only"""
    loss: Literal["hinge", "logistic", "relativistic"] = "hinge"
    """hinge (SAGAN), logistic (non-saturating), or logistic of real and generated pairs (R3GAN)"""
    r1_gamma: float = 0.0
    """weight of the gradient penalty on real images; R3GAN trains CIFAR-10 with 0.05 to 0.005 on images in [-1, 1]"""
    r2_gamma: float = 0.0
    """weight of the gradient penalty on generated images"""
    penalty_every: int = 1
    """discriminator steps between gradient penalties, which are scaled up as much (lazy regularisation)"""
    penalty_final: float = 1.0
    """factor of both weights at the end of the run, reached geometrically"""
    lecam: float = 0.0
    """weight of LeCam regularisation: logits stay near the other side's running mean; 0.3 in its paper"""
    consistency: float = 0.0
    """weight of balanced consistency: mirrored and shifted images should be judged alike; 10 in its paper"""
    batch_size: int = 64
    """images a step, real and generated each"""
    discriminator_steps: int = 5
    """discriminator steps a generator step"""
    reuse_generated: bool = False
    """the generator learns from the images that the discriminator has just judged: one forward pass less a step"""
    generator_lr: float = 2e-4
    """Adam's rate for the generator"""
    discriminator_lr: float = 2e-4
    """Adam's rate for the discriminator"""
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam's decay rates"""
    decay_from: float = 1.0
    """part of the run after which both rates fall linearly; 1 keeps them"""
    decay_to: float = 0.0
    """factor of both rates at the end of the run"""
    ema_decay: float = 0.0
    """decay a generator step of the averaged generator, which is the one kept; 0 keeps the last generator"""
    augment: tuple[Literal["flip", "color", "translation", "cutout", "geometry"], ...] = ()
    """differentiable augmentation of all that the discriminator sees"""
    augment_probability: float = 1.0
    """probability of each augmentation for each image, at the start where it adapts"""
    augment_target: float = 0.0
    """mean sign of the real logits that the probability is steered to (ADA: 0.6); 0 keeps the probability"""
    augment_images: int = 500_000
    """images in which an adaptive probability could go from 0 to 1"""
    flip: bool = True
    """mirror half of the real images"""
    features: Literal["auto", "inception", "lite0", "cifar10net", "none"] = "auto"
    """network of the Frechet distance; auto: Inception if its weights are at hand, else lite0; none: no distance"""
    inception_weights: Path | None = None
    """file of Inception's weights (pt_inception-2015-12-05-6726825d.pth)"""
    evaluate_every: int = 1_600_000
    """images between evaluations (distance, sample grid, weights); also at the end"""
    evaluation_samples: int = 10_000
    """generated images an evaluation"""
    compare_raw: bool = False
    """evaluate the generator beside its average too"""
    on_collapse: Literal["warn", "stop"] = "warn"
    """when the discriminator tells every image apart, or samples lose their variety: say so, or end the run too"""
    evaluation_references: int = 0
    """real images an evaluation; 0: all"""
    checkpoint_every: int = 320_000
    """images between checkpoints"""
    log_every: int = 50
    """generator steps between lines of losses"""
    seed: int = 0
    """seed of everything random"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to train"""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """bf16: mixed precision, float32 weights; auto: where the device has instructions for it"""
    compile: bool = False
    """train through torch.compile, one graph a network; minutes to begin with, then faster"""
    cuda_graphs: bool = False
    """on CUDA, capture each whole step as a graph and replay it: no launch of single kernels"""
    deterministic: bool = False
    """the same bits in every run on one machine, on a GPU too; what cannot do that is refused by name; slower there"""
    debug_numerics: bool = False
    """stop at the first NaN or infinite number and name its module, tensor and step; slow, to find out what happens"""
    fresh: bool = False
    """start over: remove what an earlier run left in the folder"""


# Fields that may change when a run is resumed; none of them changes a weight.
FREE_FIELDS = (
    "out",
    "data",
    "images",
    "workers",
    "features",
    "inception_weights",
    "evaluate_every",
    "evaluation_samples",
    "evaluation_references",
    "compare_raw",
    "on_collapse",
    "checkpoint_every",
    "log_every",
    "device",
    "debug_numerics",
    "deterministic",
    "fresh",
)

# PyTorch-StudioGAN's configurations of SAGAN, which the external attention paper trained with its attention.
_CIFAR10 = GanConfig(data="cifar10")
# The same networks by a later recipe: R3GAN's loss and penalties in place of the discriminator's spectral norm, one
# step of each network on larger batches, an average, rates that fade, augmentation. From its paper, after short runs of
# small networks in which its loss was ahead; not yet run in full.
_CIFAR10_MODERN = replace(
    _CIFAR10,
    images=25_600_000,
    attention_spectral_norm=False,
    discriminator_spectral_norm=False,
    loss="relativistic",
    r1_gamma=0.05,
    r2_gamma=0.05,
    penalty_every=8,
    penalty_final=0.1,
    batch_size=256,
    discriminator_steps=1,
    betas=(0.0, 0.99),
    decay_from=0.5,
    ema_decay=0.9995,
    augment=("color", "translation", "cutout"),
    augment_probability=0.3,
    precision="auto",
)
_TINY_IMAGENET = GanConfig(
    data="tiny-imagenet",
    images=25_600_000,
    image_size=64,
    batch_size=256,
    discriminator_steps=1,
    generator_lr=1e-4,
    discriminator_lr=4e-4,
    betas=(0.0, 0.999),
    precision="auto",
)
_IMAGENET128 = replace(
    _TINY_IMAGENET,
    data="imagenet128",
    images=256_000_000,
    image_size=128,
    evaluate_every=12_800_000,
    checkpoint_every=1_280_000,
)
# 46 minutes on two CPU cores in float32: 10,500 steps by R3GAN's loss. Channels lie where they are cheap, at the small
# sizes, and the discriminator goes down to 4 pixels. What so short a run lacks most is variety: the discriminator sees
# how much images differ, and knows the classes before it begins. The average is a long one; over the same weights
# shorter ones came out further from real images.
_CIFAR10_SMALL = GanConfig(
    data="cifar10",
    images=336_000,
    attention_spectral_norm=False,
    discriminator_spectral_norm=False,
    generator_width=32,
    discriminator_width=32,
    generator_multiples=(4, 4, 2, 1),
    discriminator_multiples=(1, 2, 4, 4),
    discriminator_grid=4,
    group_size=8,
    warm_up=25_600,
    loss="relativistic",
    r1_gamma=0.05,
    r2_gamma=0.05,
    penalty_every=8,
    batch_size=32,
    discriminator_steps=1,
    reuse_generated=True,
    generator_lr=6e-4,
    discriminator_lr=8e-4,
    betas=(0.0, 0.99),
    decay_from=0.3,
    decay_to=0.2,
    ema_decay=0.9996,
    features="lite0",
    evaluate_every=168_000,
    evaluation_samples=2_000,
    evaluation_references=10_000,
    checkpoint_every=16_000,
    precision="auto",
)
# The same recipe at half the width, in smaller batches: many steps within 3 minutes on two CPU cores.
_SHAPES_SMALL = replace(
    _CIFAR10_SMALL,
    data="shapes",
    images=36_000,
    generator_width=16,
    discriminator_width=16,
    discriminator_grid=0,
    warm_up=6_400,
    batch_size=16,
    generator_lr=1e-3,
    discriminator_lr=1.2e-3,
    ema_decay=0.998,
    evaluate_every=12_000,
    evaluation_samples=500,
    evaluation_references=1_000,
    checkpoint_every=6_000,
)

PRESETS: dict[str, GanConfig] = {
    "eagan-cifar10": _CIFAR10,
    "sagan-cifar10": replace(_CIFAR10, attention="sagan"),
    "eagan-cifar10-modern": _CIFAR10_MODERN,
    "sagan-cifar10-modern": replace(_CIFAR10_MODERN, attention="sagan", attention_spectral_norm=True),
    "eagan-tiny-imagenet": _TINY_IMAGENET,
    "sagan-tiny-imagenet": replace(_TINY_IMAGENET, attention="sagan"),
    "eagan-imagenet128": _IMAGENET128,
    "sagan-imagenet128": replace(_IMAGENET128, attention="sagan"),
    "eagan-cifar10-small": _CIFAR10_SMALL,
    "sagan-cifar10-small": replace(_CIFAR10_SMALL, attention="sagan", attention_spectral_norm=True),
    "eagan-shapes-small": _SHAPES_SMALL,
}


def free_fields(config: GanConfig) -> tuple[str, ...]:
    """Fields that may differ when a run is resumed; the length of the run only if the rates do not follow it."""
    return FREE_FIELDS if config.decay_from >= 1 else tuple(name for name in FREE_FIELDS if name != "images")


def check_config(config: GanConfig) -> None:
    """Refuse values that no run can have.

    Raises:
        ValueError: in one line that names the flag, the value and what was expected.
    """
    positive = (
        "images",
        "generator_width",
        "discriminator_width",
        "discriminator_steps",
        "penalty_every",
        "penalty_final",
        "augment_images",
        "generator_lr",
        "discriminator_lr",
        "evaluate_every",
        "checkpoint_every",
        "log_every",
    )
    least = {**dict.fromkeys(positive, 0), "batch_size": 1, "evaluation_samples": 1, "evaluation_references": -1}
    least |= {"group_size": -1, "warm_up": -1}
    for name, below in least.items():
        if not getattr(config, name) > below:  # so that a NaN is refused too
            raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)}: expected more than {below}")
    for name in ("r1_gamma", "r2_gamma", "lecam", "consistency"):
        if not 0 <= getattr(config, name) < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)}: expected 0 or more")
    for name in ("decay_from", "decay_to", "ema_decay", "augment_probability", "augment_target"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)}: expected a number from 0 to 1")
    alone = config.discriminator_steps == 1 and not config.cuda_graphs
    conflicts = (
        (
            config.reuse_generated and not alone,
            "--reuse-generated: expected --discriminator-steps 1, no --cuda-graphs",
        ),
        (config.augment_target and not config.augment, "--augment-target: nothing to adapt without --augment"),
        (
            config.debug_numerics and (config.compile or config.cuda_graphs),
            "--debug-numerics: watches one module after the other; expected no --compile, no --cuda-graphs",
        ),
        (config.group_size == 1, "--group-size 1: expected 0 (none) or at least 2"),
        (
            config.group_size and config.batch_size % config.group_size,
            f"--group-size {config.group_size}: expected a divisor of --batch-size {config.batch_size}",
        ),
        (config.warm_up and not config.conditional, "--warm-up: there are no classes to learn with --no-conditional"),
        (config.evaluation_references == 1, "--evaluation-references 1: expected 0 (all) or at least 2"),
    )
    for found, message in conflicts:
        if found:
            raise ValueError(message)
    if not all(0 <= beta < 1 for beta in config.betas):
        raise ValueError(f"--betas {config.betas[0]} {config.betas[1]}: expected numbers from 0 to below 1")
    if config.image_size not in IMAGE_SIZES:
        raise ValueError(f"--image-size {config.image_size}: expected one of {', '.join(map(str, IMAGE_SIZES))}")
    from shared_attn.runtime.options import parse_options  # torch, which --help need not load

    parse_options(config.attention_options, "--attention-options")
