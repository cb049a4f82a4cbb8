"""Training the classifier whose features judge generated images, and reading it back.

Legend: B batch, N images, L classes. The clock is images shown; what a step draws follows from (seed, images shown).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gan.augmentation import translation
from gan.data.batches import ImageStream
from gan.data.datasets import ImageSet, load_image_set
from gan.judging.classifier import WIDTHS, Classifier, initialise
from gan.judging.classifier_options import FREE_FIELDS, ClassifierConfig, check_config
from shared_attn.complexity import count_multiply_adds, count_parameters
from shared_attn.runtime.checkpoint import load_checkpoint, save_checkpoint
from shared_attn.runtime.folder_lock import one_in_a_folder
from shared_attn.runtime.interrupt import Interrupt
from shared_attn.runtime.launch import choose_precision, create_fabric
from shared_attn.runtime.memory_shortage import tell_shortage
from shared_attn.runtime.progress import Progress, read_metrics
from shared_attn.runtime.rebuilding import rebuild
from shared_attn.runtime.records import write_record
from shared_attn.runtime.run_folder import open_run
from shared_attn.runtime.seeding import seed_step
from shared_attn.runtime.weights import find_weights, load_weights, save_weights

KIND = "gan.classifier"
IMAGE_SIZE = 32
EVALUATION_BATCH = 200
WARMUP = 0.2  # part of the run over which the rate rises


@tell_shortage
@one_in_a_folder
def train_classifier(config: ClassifierConfig) -> None:
    """Train as `config` says, or go on with the run in `config.out`: mirrored and shifted images, Nesterov's descent.

    Writes checkpoints, `metrics.jsonl`, `weights.safetensors` (float16) and `record.json` into `config.out`. The last
    weights are the result; the test images are looked at once, at the end.

    Raises:
        ValueError, OSError: in one line, for a user's mistake, and when the loss is no longer a finite number.
        KeyboardInterrupt: after saving, when the run is interrupted.
    """
    check_config(config)
    fabric = create_fabric(config.device, config.precision)
    data = load_image_set(config.data, IMAGE_SIZE)
    test = load_test_images(config, data)
    seed_step(config.seed, "initialization")
    bare = Classifier(len(data.class_names))
    initialise(bare)
    bare = bare.to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(bare.parameters(), config.lr, 0.9, nesterov=True, weight_decay=config.weight_decay)
    classifier, optimizer = fabric.setup(bare, sgd)
    parts: dict[str, Any] = {"classifier": bare, "optimizer": optimizer}
    open_run(config.out, config, fresh=config.fresh, free=FREE_FIELDS)
    shown = restore(config, parts, data)
    epoch, total = len(data.labels), config.epochs * len(data.labels)
    stream = ImageStream(data, seed=config.seed, flip=True, device=fabric.device)
    losses: list[Tensor] = []
    with Interrupt() as interrupt, Progress(config.out, total=total, done=shown) as progress:
        while shown < total:
            seed_step(config.seed, "step", shown)
            images, labels = stream.batch(shown, min(config.batch_size, total - shown))
            optimizer.param_groups[0]["lr"] = config.lr * rate(shown / total)
            _, logits = classifier(translation(images))
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            losses.append(loss.detach())
            before, shown = shown, shown + len(labels)
            progress.advance(len(labels))
            if before // epoch != shown // epoch or interrupt.requested:
                log_loss(progress, losses)
                states = {name: part.state_dict() for name, part in parts.items()}
                save_checkpoint(config.out, {**states, "shown": shown, "data": data.hash})
            if interrupt.requested and shown < total:
                interrupt.stop(f"{shown:,} of {total:,} images")
        finish(config, bare.eval(), data, test, progress, fabric.device)


def load_test_images(config: ClassifierConfig, data: ImageSet) -> ImageSet | None:
    """The images that the accuracy is measured on, with the training images' classes."""
    if config.test is None:
        return None
    try:
        test = load_image_set(config.test, IMAGE_SIZE)
    except (ValueError, OSError) as error:
        raise type(error)(str(error).replace("--data", "--test", 1)) from error
    if test.class_names != data.class_names:
        raise ValueError(f"--test {config.test}: its classes are not those of --data {config.data}")
    return test


def restore(config: ClassifierConfig, parts: dict[str, Any], data: ImageSet) -> int:
    """Load the checkpoint of the run, if there is one, into `parts`: images shown so far."""
    state = load_checkpoint(config.out)
    if state is None:
        return 0
    if state["data"] != data.hash:
        raise ValueError(f"--data {config.data}: not the images that the run in {config.out} was trained on")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["shown"])


def rate(part: float) -> float:
    """Factor of the learning rate after a part of the run: up linearly, then down linearly."""
    return part / WARMUP if part < WARMUP else (1 - part) / (1 - WARMUP)


def log_loss(progress: Progress, losses: list[Tensor]) -> None:
    """Write the mean loss since the last call, and empty the list; refuse to go on after a NaN."""
    mean = float(torch.stack(losses).double().mean())
    if not math.isfinite(mean):
        raise ValueError(f"training diverged before {progress.shown:,} images; lower --lr; the last checkpoint stands")
    progress.log(loss=mean)
    progress.advance(0, loss=mean)
    losses.clear()


def finish(
    config: ClassifierConfig,
    classifier: Classifier,
    data: ImageSet,
    test: ImageSet | None,
    progress: Progress,
    device: torch.device,
) -> None:
    """Measure, and write `weights.safetensors` and `record.json`."""
    stored = {name: value.half() for name, value in state_of(classifier).items()}
    if not all(value.isfinite().all() for value in stored.values()):
        raise ValueError("training diverged: a weight is not a finite number in float16; lower --lr")
    classifier.load_state_dict(stored, strict=False)  # what is measured is what is stored
    metrics = {}
    if test is not None:
        metrics["test_accuracy"] = accuracy(classifier, test, device)
        progress.message(f"test accuracy {metrics['test_accuracy']:.4f}")
    progress.log(**metrics)
    model: dict[str, Any] = {"num_classes": classifier.num_classes, "widths": list(WIDTHS)}
    sets = {"train": data.describe(), **({"test": test.describe()} if test is not None else {})}
    header = {"kind": KIND, "model": model, "class_names": data.class_names, "data": sets, "metrics": metrics}
    header["config"] = {name: str(value) for name, value in dataclasses.asdict(config).items()}
    save_weights(config.out / "weights.safetensors", stored, header)
    lines = [line for line in read_metrics(config.out) if "loss" in line]
    with torch.device("meta"):
        cost = count_multiply_adds(Classifier(**model).eval(), torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE))
    write_record(
        config.out / "record.json",
        name=f"classifier of {len(data.class_names)} classes, a feature network, on {data.name}",
        kind="classifier",
        config=dataclasses.asdict(config) | {"precision": choose_precision(config.precision, device)},
        data={"name": data.name, "files": {name: said["sha256"] for name, said in sets.items()}, "sets": sets},
        seeds=[config.seed],
        metrics=metrics,
        parameters=count_parameters(classifier),
        multiply_adds=cost,
        seconds=progress.seconds,
        device=device.type,
        curves={"classifier_loss": [[line["shown"], line["loss"]] for line in lines]},
        note="last weights, stored and measured in float16",
    )


def state_of(classifier: Classifier) -> dict[str, Tensor]:
    """The state without batch norm's counters, which nothing reads in eval mode."""
    return {name: value for name, value in classifier.state_dict().items() if not name.endswith("num_batches_tracked")}


def to_input(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) uint8 as the classifier takes them: 32 x 32 pixels, float32 in [-1, 1]."""
    x = images.float()
    if x.shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
        x = F.interpolate(x, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False, antialias=True)
    return (x / 127.5 - 1).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def accuracy(classifier: Classifier, test: ImageSet, device: torch.device) -> float:
    """Share of the images whose class is found."""
    right = 0
    for items in torch.arange(len(test.labels)).split(EVALUATION_BATCH):
        _, logits = classifier(to_input(test.images[items].permute(0, 3, 1, 2).to(device)))
        right += int((logits.argmax(dim=1).cpu() == test.labels[items]).sum())
    return right / len(test.labels)


def load_classifier(source: str | Path, device: torch.device) -> tuple[Classifier, dict[str, Any], Path]:
    """Rebuild a classifier from a run's folder, a file, or the name of shipped weights: it, its header, its file.

    Raises:
        ValueError, FileNotFoundError: in one line, when there are no weights of a classifier.
    """
    path = find_weights(source)
    state, header = load_weights(path, kind=KIND)
    try:
        classifier = rebuild(Classifier, header["model"], state, optional="num_batches_tracked")
        if len(header["class_names"]) != classifier.num_classes:
            raise ValueError(f"{len(header['class_names'])} classes are named")
    except (TypeError, KeyError, ValueError) as error:
        told = f"its header and its weights do not describe a classifier of this version ({error})"
        raise ValueError(f"{path}: {told}") from error
    classifier = classifier.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    return classifier, header, path
