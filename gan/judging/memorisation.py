"""Does a generator repeat its training images? Nearest neighbours in feature space, as a picture and a number.

Legend: M samples, N training images, D feature size, K neighbours, H W pixels. Training features lie in a file of the
cache folder and are read in blocks: memory does not grow with N.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gan.data.datasets import ImageSet
from gan.data.files import cache_folder
from gan.judging.evaluation import BATCH
from gan.judging.features import FeatureNetwork
from gan.pictures import tile
from shared_attn.runtime.files import atomic_write

BLOCK = 2048  # training images compared at once
SHOWN = 32  # samples in the picture
PANELS = 2  # samples side by side


def training_features(data: ImageSet, network: FeatureNetwork) -> np.ndarray:
    """Features of all images (N, D) float32, mapped from a file that is kept for the next time.

    Raises:
        OSError: the cache folder cannot be written.
    """
    from tqdm import tqdm

    identity = repr((network.name, network.identity, data.hash))
    path = cache_folder() / "features" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"
    shape = (len(data.labels), network.dim)
    if path.is_file():
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError):
            stored = np.empty(0)
        if stored.shape == shape:
            return stored
    chunks = torch.arange(shape[0]).split(BATCH)
    header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
    try:  # written as bytes, not through a map: a full disk is an error then, and no crash
        with atomic_write(path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for items in tqdm(chunks, desc=f"{network.name} features", delay=3, leave=False, disable=None):
                features, _ = network.extract(data.images[items].permute(0, 3, 1, 2))
                file.write(features.float().cpu().numpy().tobytes())
    except OSError as error:
        raise OSError(f"{path}: features cannot be kept ({error}); EAGAN_EAT_CACHE names another folder") from error
    return np.load(path, mmap_mode="r", allow_pickle=False)


def nearest(
    queries: Tensor, training: np.ndarray, k: int, itself: Tensor | None = None, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """The k nearest training images of each query, nearest first, in float64.

    Args:
        queries: (M, D).
        training: (N, D), read in blocks.
        k: fewer where there are fewer training images.
        itself: (M,) rows of the queries themselves, which are left out.
        device: where distances are computed.

    Returns:
        Distances (M, k) and rows (M, k).
    """
    M = len(queries)
    queries = queries.double().to(device)
    distances = torch.full((M, 0), torch.inf, dtype=torch.float64, device=device)
    rows = torch.empty((M, 0), dtype=torch.int64, device=device)
    for first in range(0, len(training), BLOCK):
        block = torch.from_numpy(np.array(training[first : first + BLOCK])).double().to(device)
        found = torch.cdist(queries, block)  # (M, block)
        places = torch.arange(first, first + len(block), device=device)
        if itself is not None:
            found = found.masked_fill(itself.to(device)[:, None] == places, torch.inf)
        found = torch.cat([distances, found], dim=1)
        named = torch.cat([rows, places.expand(M, -1)], dim=1)
        distances, order = found.sort(dim=1, stable=True)  # of equal ones the first stays first
        distances, rows = distances[:, :k], named.gather(1, order[:, :k])
    return distances.cpu(), rows.cpu()


def authenticity(distances: Tensor, rows: Tensor, training: np.ndarray, device: torch.device | str = "cpu") -> float:
    """Share of samples that are not nearly copies (Alaa et al. 2022, arXiv 2102.08921, section 4.3).

    A sample is authentic when it is farther from its nearest training image than that image is from its own nearest
    other training image. Copies give 0; independent draws from the training distribution about one half.

    Args:
        distances, rows: of each sample's nearest training image, (M,).
        training: (N, D), N at least 2.
    """
    unique, place = rows.unique(return_inverse=True)
    own, _ = nearest(torch.from_numpy(np.array(training[unique.numpy()])), training, 1, itself=unique, device=device)
    return float((distances > own[place, 0]).double().mean())


def write_neighbours(
    path: Path, samples: Tensor, data: ImageSet, distances: Tensor, rows: Tensor, network: str
) -> None:
    """Write a PNG: each sample, a little apart from its K nearest training images on its right, nearest first.

    Args:
        path: the file.
        samples: (M, 3, H, W) uint8.
        data: the training images.
        distances, rows: (M, K).
        network: whose features the distances are of, for the caption.
    """
    from PIL import Image, ImageDraw, ImageFont

    M, K = rows.shape
    near = data.images[rows.flatten()].permute(0, 3, 1, 2).unflatten(0, (M, K))  # (M, K, 3, H, W)
    scale = max(1, round(samples.shape[-1] / near.shape[-1]))
    near = near.repeat_interleave(scale, dim=3).repeat_interleave(scale, dim=4)
    lines = -(-M // PANELS)
    queries, panels = samples.split(lines), near.split(lines)
    queries_width, gap, head = 0, 10, 44
    placed: list[tuple[int, Tensor]] = []
    left = 0
    for queries_part, near_part in zip(queries, panels, strict=True):
        for shown in (tile(queries_part, 1), tile(near_part.flatten(0, 1), K)):
            placed.append((left, shown))
            left += shown.shape[2] + gap
        left += 2 * gap
        queries_width = placed[-2][1].shape[2]
    page = Image.new("RGB", (max(left, 420), head + placed[0][1].shape[1]), "white")
    for x, shown in placed:
        page.paste(Image.fromarray(shown.permute(1, 2, 0).contiguous().numpy()), (x, head))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=14)
    caption = f"distances of {network}'s features: median {float(distances[:, 0].median()):.3g} to the nearest"
    pen.text((2, 4), caption, fill="black", font=font)
    pen.text((2, 24), "sample", fill="black", font=font)
    pen.text((queries_width + gap, 24), f"its {K} nearest of {len(data.labels):,} real images", fill="black", font=font)
    with atomic_write(path) as file:
        page.save(file, format="PNG")
