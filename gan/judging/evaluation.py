"""Judging a generator: features of its samples against features of real images, streamed.

Legend: B batch, D feature size, N images.

Metrics state their protocol in their names: `fd_lite0_2k_train10k` is the Fréchet distance on lite0's features of
2,000 samples against 10,000 training images. On Inception's features the same distances are called `fid` and `kid`.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gan import sampling
from gan.data.datasets import ImageSet
from gan.data.files import cache_folder
from gan.judging.distances import (
    block_kernel_distance,
    effective_rank,
    frechet_distance,
    precision_recall_density_coverage,
)
from gan.judging.features import FeatureNetwork
from shared_attn.runtime.files import atomic_write
from shared_attn.runtime.seeding import create_generator

METRICS = ("fid", "is", "kid", "fd", "kd", "prdc", "variety", "pytorch_fid", "class_accuracy")
INCEPTION_METRICS = ("fid", "is", "kid")
FRECHET = ("fid", "pytorch_fid", "fd")  # what a mean and a covariance of the real images suffice for
KEPT_METRICS = ("kid", "kd", "prdc", "variety")
DEFAULT_METRICS = {
    "inception": (*INCEPTION_METRICS, "variety"),
    "pytorch_fid": ("pytorch_fid", "variety"),
    "lite0": ("fd", "kd", "variety"),
    "cifar10net": ("fd", "kd", "variety"),
}
SPLIT_WORDS = {"test": "test", "val": "val", "valid": "val", "validation": "val", "train": "train", "training": "train"}
KEPT = 10_000  # features held for KEPT_METRICS
BATCH = 100  # real images at a time
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


def find_split(name: str) -> str | None:
    """train, val or test where one of these stands as a word in the data's name."""
    return next((SPLIT_WORDS[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLIT_WORDS), None)


def split_name(data: ImageSet, count: int, split: str | None = None) -> str:
    """The reference inside a metric's name: the split, and the count of a subset.

    Without `split` it is what the data's name says, and train where that says nothing.
    """
    split = split or find_split(data.name) or "train"
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
    (measured,) = measure(batches, count, [network], keep=KEPT)
    moments = measured.moments
    with contextlib.suppress(OSError), atomic_write(path) as file:  # a cache that cannot be written only costs time
        np.savez(file, mean=moments.mean, covariance=moments.covariance, features=moments.features)
    return moments


def prepare_reference(data: ImageSet, network: FeatureNetwork | None, count: int) -> None:
    """Have the real images' moments ready before a run's clock starts."""
    if network is not None:
        real_moments(data, network, count)


@dataclass(frozen=True)
class Measured:
    """What a network made of a stream of images: moments, Inception Score, share of images found in their class."""

    moments: Moments
    score: float | None
    accuracy: float | None


class Measurement:
    """A network's view of a stream of `total` images; memory does not grow with their number.

    Args:
        network: its features are taken in, and its logits where a metric uses them.
        total: images in the stream.
        keep: features that are kept.
        classes: (total,) the class of each image, a number of the network's own classes; None measures no accuracy.
    """

    def __init__(self, network: FeatureNetwork, total: int, keep: int, classes: Tensor | None = None):
        self.network, self.classes, self.count, self.right = network, classes, 0, 0
        self.moments = FeatureMoments(network.dim, keep, network.device)
        self.score = InceptionScore(total)

    def update(self, images: Tensor) -> None:
        """Take in (B, 3, H, W) uint8."""
        features, logits = self.network.extract(images)
        # Summed by batches of samples, so that the bits are the same whether one process extracts or several do.
        for first in range(0, len(features), sampling.BATCH):
            part = slice(first, first + sampling.BATCH)
            self._take(features[part], None if logits is None else logits[part])

    def _take(self, features: Tensor, logits: Tensor | None) -> None:
        self.moments.update(features)
        if logits is not None and self.classes is not None:
            asked = self.classes[self.count : self.count + len(features)]
            self.right += int((logits.argmax(dim=1).cpu() == asked).sum())
        elif logits is not None:
            self.score.update(logits)
        self.count += len(features)

    def finish(self) -> Measured:
        """The measurements so far."""
        score = self.score.finish() if self.score.count else None
        return Measured(self.moments.finish(), score, self.right / self.count if self.classes is not None else None)


def measure(
    batches: Iterable[Tensor],
    total: int,
    networks: Sequence[FeatureNetwork],
    *,
    keep: int = 0,
    classes: Tensor | None = None,
) -> list[Measured]:
    """What each network makes of uint8 batches (B, 3, H, W) that hold `total` images, in one pass over them.

    `classes` (total,) goes to the networks that know the classes of generated images.
    """
    from tqdm import tqdm

    views = [Measurement(network, total, keep, classes if network.class_names else None) for network in networks]
    names = " ".join(network.name for network in networks)
    with tqdm(desc=f"{names} features", total=total, unit="img", delay=3, leave=False, disable=None) as bar:
        for batch in batches:
            for view in views:
                view.update(batch)
            bar.update(views[0].count - bar.n)
    return [view.finish() for view in views]


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
        samples: batches (B, 3, H, W) uint8 that hold `count` images, of the data's classes in turn.
        metrics: names out of METRICS that the network has (`gan.judging.judge.plan_metrics`). fid and fd use all
            samples, those of KEPT_METRICS the first KEPT of both sides; the names say so.
        references: how many real images; 0 for all.

    Returns:
        Values by names that state the protocol.
    """
    chosen = set(metrics)
    real = real_moments(data, network, references)
    keep = KEPT if chosen & set(KEPT_METRICS) else 0
    classes = None
    if "class_accuracy" in chosen:
        classes = match_classes(torch.arange(count) % len(data.class_names), data.class_names, network)
    (fake,) = measure(samples, count, [network], keep=keep, classes=classes)
    return compare(fake, real, network, chosen, lambda used: split_name(data, used))


def match_classes(labels: Tensor, names: Sequence[str], network: FeatureNetwork) -> Tensor:
    """Labels (N,) of classes with these names as the network numbers them.

    Raises:
        ValueError: a class that the network does not know.
    """
    unknown = [name for name in names if name not in network.class_names]
    if unknown:
        raise ValueError(
            f"--metrics class_accuracy: {network.name} does not know the class {unknown[0]}, only "
            f"{', '.join(network.class_names)}"
        )
    return torch.tensor([network.class_names.index(name) for name in names])[labels]


def compare(
    fake: Measured, real: Moments, network: FeatureNetwork, chosen: set[str], reference: Callable[[int], str]
) -> dict[str, float]:
    """Values of the chosen METRICS, by names that state the protocol.

    Args:
        fake: the samples.
        real: the real images; without features for the metrics of FRECHET alone.
        network: of both.
        chosen: names out of METRICS.
        reference: what so many real images are called in a metric's name.
    """
    count, kept = fake.moments.count, len(fake.moments.features)
    net = "" if network.name in ("inception", "pytorch_fid") else f"_{network.name}_"
    every = f"{short_count(count)}_{reference(real.count)}"
    some = f"{short_count(kept)}_{reference(len(real.features))}"
    values: dict[str, float] = {}
    for name in METRICS:
        if name not in chosen:
            continue
        if name in FRECHET:
            pair = (real.mean, real.covariance, fake.moments.mean, fake.moments.covariance)
            values[f"{name}{net}{every}"] = frechet_distance(*pair)
        elif name in ("kid", "kd"):
            values[f"{name}{net}{some}"] = block_kernel_distance(real.features, fake.moments.features)
        elif name == "variety":
            least = min(kept, len(real.features))
            ranks = [effective_rank(features[:least]) for features in (fake.moments.features, real.features)]
            values[f"variety_{network.name}_{short_count(least)}_{reference(least)}"] = ranks[0] / ranks[1]
        elif name == "is":
            assert fake.score is not None, "the Inception Score is asked of Inception alone"
            values[f"is{short_count(count)}_{min(SPLITS, count)}splits"] = fake.score
        elif name == "class_accuracy":
            assert fake.accuracy is not None, "the accuracy is asked of a classifier, with the samples' classes"
            values[f"class_accuracy{net}{short_count(count)}"] = fake.accuracy
        else:
            shares = precision_recall_density_coverage(real.features, fake.moments.features)
            values.update({f"{share}_{network.name}_{some}": value for share, value in shares.items()})
    return values
