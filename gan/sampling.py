"""Drawing images from a generator; sample k depends on seed k alone.

Legend: B batch, N samples, Z latent size, L classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan.averaging import estimate_statistics
from gan.generator import Generator
from gan.initialization import plain_state
from shared_attn.runtime.rebuilding import rebuild
from shared_attn.runtime.seeding import create_generator
from shared_attn.runtime.weights import find_weights, load_weights

KIND = "gan.generator"
BATCH = 64  # every forward has this many images, so that an image does not depend on how many are asked for
STATISTICS_BATCHES, STATISTICS_BATCH = 16, 128


def load_generator(source: str | Path, device: torch.device | str = "cpu") -> Generator:
    """Rebuild a generator from a run's folder, a .safetensors file, or the name of shipped weights.

    Returns:
        The generator in eval mode, with `class_names` and the file's `header` (data, metrics, configuration).

    Raises:
        ValueError, FileNotFoundError: in one line, when there are no weights of a generator.
    """
    path = find_weights(source)
    state, header = load_weights(path, kind=KIND)
    try:
        generator = rebuild(Generator, {**header["model"], "spectral_norm": False}, state)
        class_names = [str(name) for name in header["class_names"]]
    except (TypeError, KeyError, ValueError) as error:
        told = f"its header and its weights do not describe a generator of this version ({error})"
        raise ValueError(f"{path}: {told}") from error
    if len(class_names) != generator.num_classes:
        raise ValueError(f"{path}: names {len(class_names)} classes, its weights have {generator.num_classes}")
    generator.class_names, generator.header = class_names, header
    return generator.eval().requires_grad_(False).to(device)


def finish_generator(average: Generator, model: dict[str, Any], seed: int) -> Generator:
    """The plain network that is evaluated and saved: spectral norm made permanent, batch-norm statistics estimated.

    Args:
        average: a normalised generator; it is left as it is, in eval mode.
        model: the keywords it was made with.
        seed: of the batches that the statistics are estimated on.
    """
    with torch.device("meta"):
        finished = Generator(**{**model, "spectral_norm": False})
    state = {name: value.clone() for name, value in plain_state(average.eval()).items()}
    finished.load_state_dict(state, assign=True)
    finished.requires_grad_(False)
    stand_statistics(finished, batches=STATISTICS_BATCHES, seed=seed)
    return finished


def stand_statistics(
    generator: Generator,
    *,
    batches: int = STATISTICS_BATCHES,
    batch_size: int = STATISTICS_BATCH,
    truncation: float | None = None,
    seed: int = 0,
) -> None:
    """Standing statistics (BigGAN, arXiv 1809.11096, appendix D): set batch norm's to their mean over fresh batches.

    Training sees normal latents only. Truncated ones have smaller activations, which the statistics that came with the
    weights do not fit: below 1 samples come out pale and alike. Batches with the same truncation put that right. They
    are of all classes and follow from `seed`, so a sample still depends on its own seed and class.
    """
    device = next(generator.parameters()).device
    random = create_generator(seed, "statistics")
    z = squeeze_latents(torch.randn(batches, batch_size, generator.latent_dim, generator=random), truncation)
    labels = torch.randint(generator.num_classes, (batches, batch_size), generator=random)
    estimate_statistics(generator, zip(z.to(device), labels.to(device), strict=True))


def draw_latents(seeds: Sequence[int], dim: int, truncation: float | None = None) -> Tensor:
    """Latent vectors (N, Z), one a seed; `truncation` as in `squeeze_latents`."""
    z = torch.stack([torch.randn(dim, generator=create_generator("latent", seed)) for seed in seeds])
    return squeeze_latents(z, truncation)


def squeeze_latents(z: Tensor, truncation: float | None) -> Tensor:
    """Normal numbers of any shape, kept within [-truncation, truncation]; None leaves them.

    The normal distribution is squeezed by matching quantiles, so that a seed keeps its character: the result follows
    the normal distribution cut off at `truncation`, as BigGAN's (arXiv 1809.11096) does, which draws anew.
    """
    if truncation is None:
        return z
    inside = math.erf(truncation / math.sqrt(2)) * torch.erf(z.double() / math.sqrt(2))
    return (torch.erfinv(inside) * math.sqrt(2)).float()


def to_bytes(images: Tensor) -> Tensor:
    """[-1, 1] to uint8, rounded."""
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


@torch.inference_mode()
def draw_images(generator: Generator, z: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Batches (at most BATCH, 3, H, W) of uint8 images for latents (N, Z) and labels (N,) or (N, L).

    Every forward has BATCH images: libraries choose how to add up by the shape, so another batch size changes the last
    bits. Neither the place in a batch nor the other images in it do.
    """
    device = next(generator.parameters()).device
    for z_part, label_part in zip(z.split(BATCH), labels.split(BATCH), strict=True):
        count = len(z_part)
        index = torch.arange(BATCH).clamp(max=count - 1)  # the last batch is filled up
        yield to_bytes(generator(z_part[index].to(device), label_part[index].to(device)))[:count]


def find_classes(names: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Class numbers of names or numbers.

    Raises:
        ValueError: for one that is neither, with the nearest name.
    """
    numbers = []
    for name in names:
        if name in class_names:
            numbers.append(list(class_names).index(name))
        elif name.isdecimal() and int(name) < len(class_names):
            numbers.append(int(name))
        else:
            from difflib import get_close_matches

            close = get_close_matches(name, class_names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"--classes {name}: expected a number below {len(class_names)} or a name out of "
                f"{', '.join(class_names[:20])}{', ...' if len(class_names) > 20 else ''}{hint}"
            )
    return numbers
