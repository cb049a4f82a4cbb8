"""Judging generated images: which network each metric needs, what they are compared with, one pass over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from gan.data.datasets import DATASETS, ImageSet, load_image_set
from gan.judging.distances import PRDC_NEIGHBOURS
from gan.judging.evaluation import (
    FRECHET,
    INCEPTION_METRICS,
    KEPT,
    KEPT_METRICS,
    METRICS,
    Measured,
    compare,
    find_split,
    match_classes,
    measure,
    real_moments,
    short_count,
    split_name,
)
from gan.judging.features import CLASSIFIER, ON_INCEPTION, FeatureNetwork, load_features
from gan.judging.images import JudgedImages, drawn_images, first_size, stored_images
from gan.judging.inception_weights import download_inception_weights, find_inception_weights, how_to_supply
from gan.judging.memorisation import SHOWN, authenticity, nearest, training_features, write_neighbours
from gan.judging.options import JudgeConfig, check_config
from gan.judging.statistics_files import Statistics, check_statistics, is_statistics, load_statistics, save_statistics
from gan.sampling import load_generator

DRAWN = 50_000  # samples of weights where no number is given
NATIVE_SIZES = {"tiny-imagenet": 64, "imagenet128": 128}  # of named data; the others have 32 pixels
NEED_NO_REFERENCE = ("is", "class_accuracy")
EITHER = ("prdc", "variety")  # metrics that any network will do for


def plan_metrics(metrics: Sequence[str], has_inception: bool, features: str = "auto") -> dict[str, list[str]]:
    """Metrics by the network they need.

    fd and kd go to the network of `features`, lite0 by default; so do prdc and variety, by default to the network of
    the others or the best at hand.

    Raises:
        ValueError: for an unknown metric, one that `features` does not have, and Inception's without its weights.
    """
    if not metrics:
        raise ValueError(f"--metrics: expected at least one of {', '.join(METRICS)}")
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(f"--metrics {unknown[0]}: expected one of {', '.join(METRICS)}")
    plan: dict[str, list[str]] = {}
    for name in sorted(set(metrics), key=lambda name: (name in EITHER, METRICS.index(name))):  # EITHER comes last
        if name in ("fd", "kd") and features in ON_INCEPTION:
            other = "pytorch_fid" if features == "pytorch_fid" else "fid" if name == "fd" else "kid"
            raise ValueError(f"--metrics {name}: not with --features {features}; on Inception it is called {other}")
        network = "lite0" if features == "auto" else features
        if name in INCEPTION_METRICS:
            network = "inception"
        elif name in ("pytorch_fid", "class_accuracy"):
            network = "pytorch_fid" if name == "pytorch_fid" else CLASSIFIER
        elif name in EITHER and features == "auto":
            network = next(iter(plan), "inception" if has_inception else "lite0")
        if network in ON_INCEPTION and not has_inception:
            raise ValueError(
                f"--metrics {name}: needs Inception's weights, which are not here; {how_to_supply()}; --download "
                "fetches it; or ask for fd kd prdc"
            )
        plan.setdefault(network, []).append(name)
    return plan


def judge(config: JudgeConfig, device: torch.device) -> dict[str, Any]:
    """Compare generated images with real ones as `config` says.

    Returns:
        `metrics` (values by names that state the protocol), and what they were measured on. Without weights and images
        only the statistics of the real images are written, and there are no values.

    Raises:
        ValueError, OSError: in one line, before any work starts.
    """
    check_config(config)
    plan = plan_metrics(config.metrics, has_inception_weights(config), config.features)
    if config.neighbours and config.features != "auto":
        plan.setdefault(config.features, [])
    check_use(config, plan)
    statistics = load_statistics(Path(config.data)) if is_statistics(config.data) else None
    if statistics is not None:
        check_reference(config, plan)
    networks = {name: load_network(config, name, device) for name in plan}
    if statistics is not None:
        for name in plan:
            if set(plan[name]) & set(FRECHET):
                check_statistics(config.data, statistics, networks[name])
    judged = open_images(config, device)
    classes = None
    if judged is not None and "class_accuracy" in config.metrics:
        classes = match_classes(judged.labels, judged.class_names, networks[CLASSIFIER])
    reference: ImageSet | Statistics
    reference = statistics or load_reference(config, judged.image_size if judged else native_size(config.data))
    if config.save_statistics is not None:
        assert isinstance(reference, ImageSet), "checked"
        write_statistics(config, plan, networks, reference)
    if judged is None:
        return {"metrics": {}, "statistics": str(config.save_statistics)}

    keep = KEPT if config.neighbours or set(config.metrics) & set(KEPT_METRICS) else 0
    fakes = measure(judged.batches(), judged.count, list(networks.values()), keep=keep, classes=classes)
    values: dict[str, float] = {}
    for (name, network), fake in zip(networks.items(), fakes, strict=True):
        values.update(compare_with(reference, config, fake, network, set(plan[name])))
    if config.neighbours:
        assert isinstance(reference, ImageSet), "checked"
        name = neighbours_network(config, plan)
        values.update(show_neighbours(config, judged, fakes[list(plan).index(name)], reference, networks[name]))
    return {
        "metrics": values,
        **judged.origin,
        "data": reference.describe() if isinstance(reference, ImageSet) else {"name": config.data},
        "count": judged.count,
        "references": config.references or (len(reference.labels) if isinstance(reference, ImageSet) else None),
        "networks": {network.name: network.identity for network in networks.values()},
    }


def has_inception_weights(config: JudgeConfig) -> bool:
    """Whether Inception's weights are at hand; `--download` fetches them where a metric or network asks for them."""
    found = find_inception_weights(config.inception_weights)
    wanted = set(config.metrics) & {*INCEPTION_METRICS, "pytorch_fid"} or config.features in ON_INCEPTION
    if config.download and not wanted:
        raise ValueError(f"--download: --metrics {' '.join(config.metrics)} need no Inception weights")
    if found is None and config.download:
        found = download_inception_weights()
    return found is not None


def check_use(config: JudgeConfig, plan: dict[str, list[str]]) -> None:
    """Raise ValueError for a flag that none of the planned metrics uses, or a number they cannot work with."""
    asked = f"--metrics {' '.join(config.metrics)}"
    if config.inception_weights is not None and not set(plan) & set(ON_INCEPTION):
        raise ValueError(f"--inception-weights {config.inception_weights}: not used by {asked}")
    if config.classifier != CLASSIFIER and CLASSIFIER not in plan:
        raise ValueError(f"--classifier {config.classifier}: not used by {asked}")
    if config.features != "auto" and config.features not in plan:
        raise ValueError(f"--features {config.features}: not used by {asked}, expected fd, kd or prdc with it")
    least = PRDC_NEIGHBOURS + 1 if "prdc" in config.metrics else 2
    if config.count is not None and config.count < least:
        raise ValueError(f"--count {config.count}: expected at least {least}")
    if config.references and config.references < least:
        raise ValueError(f"--references {config.references}: expected 0 (all) or at least {least}")
    if config.save_statistics is not None:
        measured = [name for name in config.metrics if name in FRECHET]
        if len(measured) != 1:
            raise ValueError(
                f"--save-statistics {config.save_statistics}: expected one of {', '.join(FRECHET)} in --metrics, whose "
                f"network they are of, got {' '.join(measured) or 'none'}"
            )


def check_reference(config: JudgeConfig, plan: dict[str, list[str]]) -> None:
    """Raise ValueError for flags that need real images, where `--data` is a file of statistics."""
    names = [name for named in plan.values() for name in named if name not in (*FRECHET, *NEED_NO_REFERENCE)]
    flags = {
        f"--metrics {' '.join(names)}": bool(names),
        f"--references {config.references}": bool(config.references),
        f"--split {config.split}": config.split != "auto",
        f"--neighbours {config.neighbours}": bool(config.neighbours),
        f"--save-statistics {config.save_statistics}": config.save_statistics is not None,
    }
    for flag, given in flags.items():
        if given:
            raise ValueError(
                f"{flag}: needs real images, but --data {config.data} holds only their mean and covariance"
            )


def load_network(config: JudgeConfig, name: str, device: torch.device) -> FeatureNetwork:
    """A network of the plan."""
    weights = config.inception_weights if name in ON_INCEPTION else None
    network = load_features(name, device, weights, classifier=config.classifier)
    assert network is not None, "a plan names no absent network"
    return network


def open_images(config: JudgeConfig, device: torch.device) -> JudgedImages | None:
    """What is judged; None where only statistics are to be written."""
    if config.weights is not None:
        generator = load_generator(config.weights, device)
        return drawn_images(generator, config.weights, config.count or DRAWN, config.seed, config.truncation)
    if config.images is None:
        return None
    judged = stored_images(config.images, config.count)
    least = PRDC_NEIGHBOURS + 1 if "prdc" in config.metrics else 2
    if judged.count < least:
        raise ValueError(f"--images {config.images}: holds {judged.count}, expected at least {least}")
    return judged


def native_size(data: str) -> int:
    """The size in which real images are measured when nothing is compared with them: their own."""
    path = Path(data)
    if data in DATASETS or not path.exists() or (path / "cifar-10-batches-py").is_dir():
        return NATIVE_SIZES.get(data, 32)
    return first_size(path)


def load_reference(config: JudgeConfig, image_size: int) -> ImageSet:
    """The real images.

    Raises:
        ValueError: too few of them, or a split that their name contradicts.
    """
    images = load_image_set(config.data, image_size)
    said = find_split(images.name)
    if config.split != "auto" and said not in (None, config.split):
        raise ValueError(f"--split {config.split}: --data {config.data} holds the {said} split ({images.name})")
    least = PRDC_NEIGHBOURS + 1 if "prdc" in config.metrics else 2
    if len(images.labels) < least:
        raise ValueError(f"--data {config.data}: holds {len(images.labels)} images, expected at least {least}")
    return images


def reference_name(config: JudgeConfig, images: ImageSet) -> Callable[[int], str]:
    """What so many of the real images are called in a metric's name."""
    return lambda count: split_name(images, count, None if config.split == "auto" else config.split)


def compare_with(
    reference: ImageSet | Statistics, config: JudgeConfig, fake: Measured, network: FeatureNetwork, metrics: set[str]
) -> dict[str, float]:
    """Values of a network's metrics."""
    if isinstance(reference, Statistics):
        return compare(fake, reference.moments, network, metrics, lambda _: reference.reference)
    real = real_moments(reference, network, config.references) if metrics - set(NEED_NO_REFERENCE) else fake.moments
    return compare(fake, real, network, metrics, reference_name(config, reference))


def write_statistics(
    config: JudgeConfig, plan: dict[str, list[str]], networks: dict[str, FeatureNetwork], images: ImageSet
) -> None:
    """Write `--save-statistics`, of the network whose Fréchet distance is asked for."""
    assert config.save_statistics is not None, "the caller asks"
    network = next(networks[name] for name in plan if set(plan[name]) & set(FRECHET))
    real = real_moments(images, network, config.references)
    save_statistics(config.save_statistics, real, network, reference_name(config, images)(real.count))


def neighbours_network(config: JudgeConfig, plan: dict[str, list[str]]) -> str:
    """Whose features say which images are near."""
    return next(iter(plan)) if config.features == "auto" else config.features


def show_neighbours(
    config: JudgeConfig, judged: JudgedImages, fake: Measured, images: ImageSet, network: FeatureNetwork
) -> dict[str, float]:
    """Draw the first samples beside their nearest real images; the authenticity of the first KEPT samples."""
    training = training_features(images, network)
    features, shown = fake.moments.features, min(SHOWN, judged.count)
    k = min(config.neighbours, len(training))
    distances, rows = nearest(features[:shown], training, k, device=network.device)
    write_neighbours(config.neighbours_out, judged.first(shown), images, distances, rows, network.name)
    distances, rows = nearest(features, training, 1, device=network.device)
    share = authenticity(distances[:, 0], rows[:, 0], training, device=network.device)
    name = reference_name(config, images)(len(training))
    return {f"authenticity_{network.name}_{short_count(len(features))}_{name}": share}
