"""Judging a generator: features of its samples against features of real images, streamed.

Legend: B batch, D feature size, N images.

Metrics state their protocol in their names: `fd_lite0_2k_train10k` is the Fréchet distance on lite0's features of
2,000 samples against 10,000 training images. On Inception's features the same distances are called `fid` and `kid`.
"""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gan.datasets import ImageSet
from gan.distances import block_kernel_distance, frechet_distance, precision_recall_density_coverage
from gan.features import FeatureNetwork
from gan.image_files import cache_folder
from shared_attn.runtime.files import atomic_write
from shared_attn.runtime.seeding import create_generator

METRICS = ("fid", "is", "kid", "fd", "kd", "prdc")
INCEPTION_METRICS = ("fid", "is", "kid")
DEFAULT_METRICS = {"inception": INCEPTION_METRICS, "lite0": ("fd", "kd")}
KEPT = 10_000  # features held for kid, kd and prdc
BATCH = 100
SPLITS = 10  # of the Inception Score, fewer where there are fewer samples


class FeatureMoments:
    """Streaming mean and covariance of features, and the first `keep` of them; memory does not grow with N."""

    def __init__(self, dim: int, keep: int, device: torch.device | str = "cpu"):
        self.count, self.keep = 0, keep
        self.sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self._kept: list[Tensor] = []

    def update(self, features: Tensor) -> None:
        """Take in (B, D)."""
        room = self.keep - min(self.count, self.keep)
        if room:
            self._kept.append(features[:room].float().cpu())
        exact = features.double()
        self.count += len(features)
        self.sum += exact.sum(dim=0)
        self.outer += exact.T @ exact

    def finish(self) -> Moments:
        """The moments so far."""
        mean = self.sum / self.count
        covariance = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        kept = torch.cat(self._kept) if self._kept else torch.empty(0, len(mean))
        return Moments(self.count, mean.cpu(), covariance.cpu(), kept)


@dataclass(frozen=True)
class Moments:
    """count, mean (D,), covariance (D, D) in float64, and some features (at most KEPT, D) in float32."""

    count: int
    mean: Tensor
    covariance: Tensor
    features: Tensor


class InceptionScore:
    """Streaming Inception Score (arXiv 1606.03498) over runs of consecutive samples of a known total."""

    def __init__(self, total: int):
        self.total, self.count, self.splits = total, 0, min(SPLITS, total)
        self._sums: list[Tensor] = []

    def update(self, logits: Tensor) -> None:
        """Take in (B, classes); a split's row holds the summed probabilities, summed p log p, and the count."""
        log_p = logits.double().log_softmax(dim=1)
        p = log_p.exp()
        rows = torch.cat([p, (p * log_p).sum(dim=1, keepdim=True), torch.ones_like(p[:, :1])], dim=1)
        if not self._sums:
            self._sums = list(torch.zeros(self.splits, rows.shape[1], dtype=torch.float64, device=rows.device))
        splits = (torch.arange(self.count, self.count + len(rows)) * self.splits // self.total).to(rows.device)
        for split in splits.unique().tolist():
            self._sums[split] += rows[splits == split].sum(dim=0)
        self.count += len(rows)

    def finish(self) -> float:
        """exp of the mean divergence of a sample's classes from its split's, averaged over the splits."""
        scores = []
        for row in self._sums:
            marginal = row[:-2] / row[-1]
            scores.append((row[-2] / row[-1] - (marginal * marginal.clamp(min=1e-300).log()).sum()).exp())
        return float(torch.stack(scores).mean())


def short_count(count: int) -> str:
    """A count inside a metric's name: 50000 -> 50k, 128 -> 128."""
    return f"{count // 1000}k" if count % 1000 == 0 and count else str(count)


def split_name(data: ImageSet, count: int) -> str:
    """The reference inside a metric's name: train, val or test as the data's name says, and the count of a subset."""
    split = next((split for split in ("test", "val") if split in data.name.lower()), "train")
    return split if count >= len(data.labels) else split + short_count(count)


def real_moments(data: ImageSet, network: FeatureNetwork, count: int) -> Moments:
    """Moments of `count` real images (0: all), a fixed random subset, cached by weights, resizing, data and count."""
    total = len(data.labels)
    count = min(count, total) if count else total
    identity = repr((network.name, network.identity, data.hash, count, KEPT))
    path = cache_folder() / "moments" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npz"
    spoilt = contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)
    with spoilt, np.load(path, allow_pickle=False) as stored:
        return Moments(count, *(torch.from_numpy(stored[key]) for key in ("mean", "covariance", "features")))
    items = torch.randperm(total, generator=create_generator(0, "reference"))[:count]
    batches = (data.images[chunk.sort().values].permute(0, 3, 1, 2) for chunk in items.split(BATCH))
    moments, _ = measure(batches, count, network, keep=KEPT)
    with contextlib.suppress(OSError), atomic_write(path) as file:  # a cache that cannot be written only costs time
        np.savez(file, mean=moments.mean, covariance=moments.covariance, features=moments.features)
    return moments


def prepare_reference(data: ImageSet, network: FeatureNetwork | None, count: int) -> None:
    """Have the real images' moments ready before a run's clock starts."""
    if network is not None:
        real_moments(data, network, count)


def measure(
    batches: Iterable[Tensor], total: int, network: FeatureNetwork, *, keep: int = 0
) -> tuple[Moments, float | None]:
    """Moments and Inception Score (None without logits) of uint8 batches (B, 3, H, W) that hold `total` images."""
    from tqdm import tqdm

    moments, score = FeatureMoments(network.dim, keep, network.device), InceptionScore(total)
    has_logits = False
    with tqdm(desc=f"{network.name} features", total=total, unit="img", delay=3, leave=False, disable=None) as bar:
        for batch in batches:
            features, logits = network.extract(batch)
            moments.update(features)
            if logits is not None:
                has_logits = True
                score.update(logits)
            bar.update(len(batch))
    return moments.finish(), score.finish() if has_logits else None


def evaluate(
    samples: Iterable[Tensor],
    count: int,
    data: ImageSet,
    network: FeatureNetwork,
    metrics: Iterable[str],
    *,
    references: int,
) -> dict[str, float]:
    """Compare `count` samples (uint8 batches) with real images.

    Args:
        samples: batches (B, 3, H, W) uint8 that hold `count` images.
        metrics: names out of METRICS that the network has (`gan.judging.plan_metrics`). fid and fd use all samples,
            kid, kd and prdc the first KEPT of both sides; the names say so.
        references: how many real images; 0 for all.

    Returns:
        Values by names that state the protocol.
    """
    chosen = set(metrics)
    real = real_moments(data, network, references)
    keep = KEPT if chosen & {"kid", "kd", "prdc"} else 0
    fake, score = measure(samples, count, network, keep=keep)
    net = "" if network.name == "inception" else f"_{network.name}_"
    every = f"{short_count(count)}_{split_name(data, real.count)}"
    kept = f"{short_count(len(fake.features))}_{split_name(data, len(real.features))}"
    values: dict[str, float] = {}
    for name in METRICS:
        if name not in chosen:
            continue
        if name in ("fid", "fd"):
            values[f"{name}{net}{every}"] = frechet_distance(real.mean, real.covariance, fake.mean, fake.covariance)
        elif name in ("kid", "kd"):
            values[f"{name}{net}{kept}"] = block_kernel_distance(real.features, fake.features)
        elif name == "is":
            assert score is not None, "the Inception Score is asked of Inception alone"
            values[f"is{short_count(count)}_{min(SPLITS, count)}splits"] = score
        else:
            shares = precision_recall_density_coverage(real.features, fake.features)
            values.update({f"{share}_{network.name}_{kept}": value for share, value in shares.items()})
    return values
