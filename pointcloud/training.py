"""Training a point network: one function, read from top to bottom.

The clock is clouds shown. Every random number of a step follows from (seed, clouds shown) or from (seed, epoch, item),
so a run resumed from a checkpoint repeats the uninterrupted one bit for bit.

Several processes (`torchrun --nproc-per-node=8 scripts/train_pointcloud.py ...`, a GPU each) train what one process
would: the batch size is that of all together, each takes an equal share of every batch, and of dropout's draws; batch
norm's statistics and gradients are those of the whole batch. Weights differ by rounding alone (on CUDA also by dropout,
whose draws there depend on how they are launched), and a checkpoint may be resumed by another number of processes. They
share evaluation too. The first one writes; the run's folder must be one that all of them see.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pointcloud.averaging import WeightAverage, estimate_norms
from pointcloud.clouds import CloudSet
from pointcloud.datasets import load_split, split_validation
from pointcloud.evaluation import takes_category
from pointcloud.layers import share_draws
from pointcloud.losses import right_share, smoothed_cross_entropy
from pointcloud.models import create_model
from pointcloud.presets import FREE_FIELDS, Config, check_config, resolve_encoder
from pointcloud.reporting import assess, finish, show_progress
from pointcloud.steps import StepSource
from shared_attn.runtime.checkpoint import load_checkpoint, save_checkpoint
from shared_attn.runtime.compilation import compile_network
from shared_attn.runtime.denormals import flush_denormals
from shared_attn.runtime.determinism import repeat_bits
from shared_attn.runtime.folder_lock import one_in_a_folder
from shared_attn.runtime.host_memory import keep_freed_memory
from shared_attn.runtime.interrupt import Interrupt
from shared_attn.runtime.launch import create_fabric
from shared_attn.runtime.memory_shortage import tell_shortage
from shared_attn.runtime.numerics import NumericsWatch
from shared_attn.runtime.processes import (
    Bystander,
    Share,
    any_process,
    average_over_processes,
    first_on_machine,
    first_over_processes,
    outlive_the_others,
    wait_for_all,
)
from shared_attn.runtime.progress import Progress
from shared_attn.runtime.run_folder import open_run
from shared_attn.runtime.seeding import seed_step
from shared_attn.runtime.synchronised_norms import synchronise_norms

STEPS_UNASKED = 16
"""Steps after which processes on GPUs look whether one of them is to stop."""


@outlive_the_others
@tell_shortage
@repeat_bits
@one_in_a_folder
@flush_denormals()
def train(config: Config, *, train_data: Any = None, test_data: Any = None) -> dict[str, float]:
    """Trains a classifier or a part segmenter as `config` says, or goes on with the run that lies in `config.out`.

    The result is the averaged weights after the last epoch; the test split is read once, for them. Writes checkpoints,
    `metrics.jsonl`, TensorBoard events, `weights.safetensors`, figures and `record.json` into `config.out`.

    Args:
        train_data, test_data: the clouds themselves, instead of what `config.data` names: a CloudSet, a torch_geometric
            data set, or a list of its `Data` (`pointcloud.graphs.clouds_from_graphs`).

    Returns:
        The metrics on the test split, in every process.

    Raises:
        ValueError, OSError: in one line, for a user's mistake, and when the loss is no longer a finite number.
        KeyboardInterrupt: after saving, when the run is interrupted.
    """
    check_config(config)
    config = resolve_encoder(config)
    keep_freed_memory()
    fabric = create_fabric(config.device, config.precision, several=True)
    device, first, B = fabric.device, fabric.is_global_zero, config.batch_size
    share = Share(fabric.global_rank, fabric.world_size)
    check_processes(config, share)
    with first_on_machine(fabric.local_rank):
        train_set, validation_set, test_set = _load_sets(config, train_data, test_data)
    seed_step(config.seed, "initialisation")
    network = create_model(config, train_set).to(device)
    share_batches(network, share)
    if first:
        open_run(config.out, config, fresh=config.fresh, free=FREE_FIELDS)
    wait_for_all()

    train_set = train_set.to(device)
    D, fingerprint = len(train_set), train_set.fingerprint()
    steps = math.ceil(config.epochs * D / B)
    average = WeightAverage(network, half_life=config.average_epochs * D)
    if config.compile:
        compile_network(network, device)
    model, optimizer = fabric.setup(network, create_optimizer(config, network))
    source = StepSource(config, train_set, takes_category(network), share)
    parts = {"network": network, "average": average.model, "optimizer": optimizer}
    shown, tally = restore(config, parts, fingerprint)
    watch = NumericsWatch({"network": network}, {"network": optimizer}, unit="clouds", enabled=config.debug_numerics)
    # Nothing in the loop waits for the device: sums stay there, and what it computed is looked at once an epoch.
    tally, failed = tally.to(device), torch.zeros((), dtype=torch.long, device=device)

    bar: Any = Progress(config.out, total=steps * B, done=shown, unit="cloud") if first else Bystander()
    with Interrupt() as interrupt, bar as progress:
        while shown < steps * B:
            seed_step(config.seed, "step", shown)
            watch.step, watch.shown = shown // B + 1, shown
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(shown / D, config)
            inputs, target = source.draw(shown)
            model.train()
            logits = model(*inputs)
            loss = smoothed_cross_entropy(logits, target, config.label_smoothing)
            failed = first_failure(failed, loss, step=shown // B + 1)
            optimizer.zero_grad()
            fabric.backward(loss)
            if config.gradient_clip:
                nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
            optimizer.step()
            before, shown = shown, shown + B
            average.update(network, shown, B)

            right = right_share(logits.detach(), target).double().mean()
            tally += torch.stack([loss.detach().double(), right, torch.ones_like(right)])
            progress.advance(B)
            epoch_ended = before // D != shown // D
            evaluates = epoch_ended and (shown // D) % config.evaluate_epochs == 0 and shown < steps * B
            # Processes agree to stop; to ask the others waits for the device, so on one that computes ahead only now
            # and then.
            asks = epoch_ended or share.count == 1 or device.type == "cpu" or shown // B % STEPS_UNASKED == 0
            stops = asks and any_process(interrupt.requested, device)
            saves = epoch_ended or stops
            if saves:
                check_loss(first_over_processes(failed), B)
                (tally,) = average_over_processes(tally)
            if epoch_ended:
                show_progress(progress, tally, learning_rate(shown / D, config))
                tally.zero_()
            if evaluates:
                assess(config, average.model, train_set, validation_set, progress, share)
            if saves:
                save(config, parts, {"shown": shown, "tally": tally.cpu(), "data": fingerprint}, first=first)
            if stops and shown < steps * B:
                interrupt.stop(f"{shown:,} of {steps * B:,} clouds")

        if config.norm_clouds:
            seed_step(config.seed, "norms")
            batches = math.ceil(config.norm_clouds / B)
            estimate_norms(average.model, (source.draw(shown + B * batch, mixed=False)[0] for batch in range(batches)))
        return finish(config, average.model, train_set, validation_set, test_set.to(device), progress, share)


def check_processes(config: Config, share: Share) -> None:
    """Refuses what these processes cannot do together."""
    if config.batch_size % share.count:
        raise ValueError(f"--batch-size {config.batch_size}: expected a multiple of the {share.count} processes")
    if config.compile and share.count > 1:
        raise ValueError(f"--compile: compiles the steps of a single process, torchrun started {share.count}")


def _load_sets(config: Config, train_data: Any, test_data: Any) -> tuple[CloudSet, CloudSet | None, CloudSet]:
    """The training, validation and test clouds: those given, or what `config.data` names."""
    if (train_data is None) != (test_data is None):
        raise ValueError("train_data and test_data: expected both or neither")
    train_set = load_split(config.data if train_data is None else train_data, config.dataset, "train")
    test_set = load_split(config.data if test_data is None else test_data, config.dataset, "test")
    train_set, validation_set = split_validation(train_set, config.validation, config.seed)
    check_data(config, train_set, test_set)
    return train_set, validation_set, test_set


def share_batches(network: nn.Module, share: Share) -> None:
    """Lets a network see its share of each batch as if it saw the whole: batch norm's statistics, and dropout."""
    if share.count > 1:
        synchronise_norms(network)
        share_draws(network, share)


def save(config: Config, parts: dict[str, Any], place: dict[str, Any], *, first: bool) -> None:
    """The first process writes the run's checkpoint: the states of `parts`, and `place`; the others wait for it."""
    if first:
        save_checkpoint(config.out, {**{name: part.state_dict() for name, part in parts.items()}, **place})
    wait_for_all()


def restore(config: Config, parts: dict[str, Any], fingerprint: int) -> tuple[int, Tensor]:
    """Loads the run's checkpoint, if there is one, into `parts`.

    Returns:
        Clouds shown, and the sums (3,) since the last line of metrics: loss, share of right answers, steps.
    """
    state = load_checkpoint(config.out)
    if state is None:
        return 0, torch.zeros(3, dtype=torch.float64)
    if state["data"] != fingerprint:
        raise ValueError(f"--data {config.data}: not the clouds that the run in {config.out} was trained on")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["shown"], state["tally"]


def first_failure(failed: Tensor, loss: Tensor, step: int) -> Tensor:
    """The first step whose loss was NaN or infinite, 0 while there is none; stays on the device."""
    return torch.where((failed == 0) & ~loss.detach().isfinite(), step, failed)


def check_loss(step: int, batch_size: int) -> None:
    """Stops the run after a loss that was NaN or infinite at a step, 0 for none, before anything is saved."""
    if step:
        raise ValueError(
            f"training diverged: the loss is not a finite number at step {step} ({(step - 1) * batch_size:,} clouds); "
            "lower --learning-rate; the last good checkpoint stands"
        )


def create_optimizer(config: Config, network: nn.Module) -> torch.optim.Optimizer:
    """AdamW with decay of the matrices alone, or SGD with momentum and decay of every weight, as PCT has it."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            network.parameters(), config.learning_rate, momentum=0.9, weight_decay=config.weight_decay
        )
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, config.learning_rate)


def learning_rate(epoch: float, config: Config) -> float:
    """Linear from 0 over the first epochs, then a half cosine to the final rate."""
    if epoch < config.warmup_epochs:
        return config.learning_rate * max(epoch / config.warmup_epochs, 1e-3)
    part = min((epoch - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9), 1.0)
    low, high = config.final_learning_rate, config.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * part))


def check_data(config: Config, train_set: CloudSet, test_set: CloudSet) -> None:
    """Refuses data that do not fit the task or each other."""
    if test_set.class_names != train_set.class_names or test_set.part_names != train_set.part_names:
        raise ValueError(f"--data {config.data}: training and test split have different class or part names")
    if config.task == "segment" and train_set.part_label is None:
        raise ValueError(f"--data {config.data}: has no part labels, which --task segment needs")
