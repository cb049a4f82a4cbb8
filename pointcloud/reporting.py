"""What a run leaves behind beside its checkpoints: evaluations, weights, figures, and its record."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from pointcloud.clouds import CloudSet
from pointcloud.evaluation import evaluate_classifier, evaluate_largest_part, evaluate_segmenter, takes_category
from pointcloud.models import describe_model
from pointcloud.presets import Config
from shared_attn.complexity import count_multiply_adds, count_parameters
from shared_attn.runtime.extras import MissingExtra
from shared_attn.runtime.launch import choose_precision
from shared_attn.runtime.processes import WHOLE, Share
from shared_attn.runtime.progress import Progress, read_metrics
from shared_attn.runtime.records import hash_file, write_record
from shared_attn.runtime.weights import save_weights


def show_progress(progress: Progress, tally: Tensor, learning_rate: float) -> None:
    """Writes the mean loss and accuracy of the training clouds since the last line."""
    loss, accuracy, steps = tally.tolist()
    progress.log(train_loss=loss / steps, train_accuracy=accuracy / steps, learning_rate=learning_rate)
    progress.advance(0, loss=loss / steps, accuracy=accuracy / steps)


def assess(
    config: Config,
    network: nn.Module,
    train_set: CloudSet,
    validation_set: CloudSet | None,
    progress: Progress,
    share: Share = WHOLE,
) -> dict[str, float]:
    """Writes the averaged weights as they are now, and their metrics on the validation clouds where there are any.

    Where processes share the clouds, each gets all metrics, and the first one writes.
    """
    metrics = {}
    if validation_set is not None:
        values, _ = evaluate(config, network, validation_set.to(train_set.label.device), share)
        metrics = {f"validation_{name}": value for name, value in values.items()}
        if share.rank == 0:
            progress.log(**metrics)
            progress.message(f"{progress.shown:,} clouds: {describe(metrics)}")
    if share.rank > 0:
        return metrics
    header = describe_model(config, train_set, metrics, progress.shown)
    save_weights(config.out / "weights.safetensors", network.state_dict(), header)
    return metrics


def evaluate(
    config: Config, network: nn.Module, clouds: CloudSet, share: Share
) -> tuple[dict[str, float], Tensor | None]:
    """Metrics of the task, and a classifier's confusion matrix."""
    num_points = config.evaluate_points or config.num_points
    if config.task == "classify":
        return evaluate_classifier(network, clouds, num_points, share=share)
    return evaluate_segmenter(network, clouds, num_points, share=share), None


def finish(
    config: Config,
    network: nn.Module,
    train_set: CloudSet,
    validation_set: CloudSet | None,
    test_set: CloudSet,
    progress: Progress,
    share: Share = WHOLE,
) -> dict[str, float]:
    """Reads the test split, once: writes its metrics with the final weights, a confusion matrix, and the record.

    Where processes share the clouds, each gets all metrics, and the first one writes.
    """
    progress.forget("validation_", "test_")  # of an end that was not reached, or is computed again
    validated = assess(config, network, train_set, validation_set, progress, share)
    metrics, confusion = evaluate(config, network, test_set, share)
    progress.log(**{f"test_{name}": value for name, value in metrics.items()})
    progress.message(f"test split, last epoch: {describe(metrics)}")
    if config.task == "segment":
        metrics |= evaluate_largest_part(train_set, test_set, config.evaluate_points or config.num_points)
    metrics = {**metrics, **validated}
    if share.rank == 0:
        _write(config, network, train_set, test_set, metrics, confusion, progress)
    return metrics


def _write(
    config: Config,
    network: nn.Module,
    train_set: CloudSet,
    test_set: CloudSet,
    metrics: dict[str, float],
    confusion: Tensor | None,
    progress: Progress,
) -> None:
    """What a run leaves at its end: weights, figures, record."""
    header = describe_model(config, train_set, metrics, progress.shown)
    save_weights(config.out / "weights.safetensors", network.state_dict(), header)
    try:
        _draw(config, network, test_set, confusion)
    except MissingExtra as missing:  # a training is not lost for want of its figure
        progress.message(f"left out: {missing}")
    lines = read_metrics(config.out)
    names = sorted({name for line in lines for name in line if name.startswith(("train_", "validation_"))})
    write_record(
        config.out / "record.json",
        name=f"{config.name} on {test_set.source['name']}",
        kind="pointcloud",
        config=dataclasses.asdict(config) | {"precision": choose_precision(config.precision, train_set.label.device)},
        data={
            "name": test_set.source["name"],
            "split": f"{len(train_set)} training clouds, metrics on {len(test_set)} of the test split, read once",
            "files": {
                Path(file).name: _hash_source(file) for part in (train_set, test_set) for file in part.source["files"]
            },
        },
        seeds=[config.seed],
        metrics=metrics,
        parameters=count_parameters(network.requires_grad_(True)),
        multiply_adds=count_cost(network, config.evaluate_points or config.num_points),
        seconds=progress.seconds,
        device=train_set.label.device.type,
        curves={name: [[line["shown"], line[name]] for line in lines if name in line] for name in names},
        note="averaged weights after the last epoch",
    )


def _draw(config: Config, network: nn.Module, test_set: CloudSet, confusion: Tensor | None) -> None:
    """A classifier's confusion matrix, or a segmenter's clouds beside the truth."""
    if confusion is not None:
        from pointcloud.pictures import save_confusion_matrix

        save_confusion_matrix(confusion, test_set.class_names, config.out / "confusion.png")
        return
    from pointcloud.gallery import draw_segmentations

    points = config.evaluate_points or config.num_points
    draw_segmentations(network, test_set, points, config.out / "parts", truth=True)


def _hash_source(file: Path | str) -> str:
    try:
        return hash_file(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"--data: {file} has vanished, and the record needs its hash; put it back and run the same command again"
        ) from error


@torch.no_grad()
def count_cost(network: nn.Module, num_points: int) -> int:
    """Multiply-adds of the forward of one cloud of so many points."""
    device = next(network.parameters()).device
    points = torch.rand(1, num_points, 3, device=device)
    category = (torch.zeros(1, dtype=torch.long, device=device),) if takes_category(network) else ()
    return count_multiply_adds(network.eval(), points, *category)


def describe(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
