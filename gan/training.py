"""Training a GAN: one function, read from top to bottom.

The clock is real images shown to the discriminator. Every random number of a step follows from (seed, images shown),
so a run resumed from a checkpoint repeats the uninterrupted one bit for bit.

Several processes (`torchrun --nproc-per-node=8 scripts/train_gan.py ...`, a GPU each) train what one process would: the
batch size is that of all together, each takes an equal share of every batch, draws for the whole batch and keeps what
belongs to its images; batch norm's statistics, gradients, and the means that training follows are those of the whole
batch. Weights differ by rounding alone, and a checkpoint may be resumed by another number of processes. The first one
writes; all extract the features of an evaluation; the run's folder must be one that all of them see.
"""

from __future__ import annotations

import copy
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from gan.adaptation import Adaptation
from gan.averaging import update_average, warm_decay
from gan.data.batches import ImageStream
from gan.data.datasets import ImageSet, load_image_set
from gan.data.streamed import StreamedImages
from gan.discriminator import Discriminator
from gan.generator import Generator
from gan.judging.evaluation import prepare_reference
from gan.judging.features import load_features
from gan.layouts import LayoutError
from gan.presets import GanConfig, check_config, free_fields
from gan.reporting import Assistant, Reporter
from gan.steps import Steps
from gan.warm_up import warm_up
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
from shared_attn.runtime.options import parse_options
from shared_attn.runtime.processes import (
    Bystander,
    Share,
    any_process,
    average_over_processes,
    first_on_machine,
    is_first,
    outlive_the_others,
    wait_for_all,
)
from shared_attn.runtime.progress import Progress
from shared_attn.runtime.run_folder import open_run
from shared_attn.runtime.seeding import seed_step
from shared_attn.runtime.synchronised_norms import synchronise_norms

ADAM_EPS = 1e-6
Network = TypeVar("Network", Generator, Discriminator)


@outlive_the_others
@tell_shortage
@repeat_bits
@one_in_a_folder
@flush_denormals()
def train(config: GanConfig) -> None:
    """Train a generator and a discriminator as `config` says, or go on with the run that lies in `config.out`.

    Writes checkpoints, `metrics.jsonl`, TensorBoard events, sample grids, `weights.safetensors` (the averaged
    generator) and `record.json` into `config.out`.

    Raises:
        ValueError, OSError: in one line, for a user's mistake, and when a loss is no longer a finite number.
        KeyboardInterrupt: after saving, when the run is interrupted.
    """
    check_config(config)
    keep_freed_memory()
    fabric = create_fabric(config.device, config.precision, several=True)
    device, first = fabric.device, fabric.is_global_zero
    share = Share(fabric.global_rank, fabric.world_size)
    check_machine(config, device, share)
    network = load_features(config.features, device, config.inception_weights)
    data = load_data(config, fabric)
    num_classes, B = len(data.class_names), config.batch_size

    # Both networks, the average that is kept, the optimizers, and what else the steps carry.
    models = describe_models(config, num_classes)
    seed_step(config.seed, "initialization")
    generator = build(Generator, models["generator"])
    discriminator = build(Discriminator, models["discriminator"])
    average = copy.deepcopy(generator).requires_grad_(False).to(device)
    adaptation = Adaptation(
        probability=config.augment_probability, target=config.augment_target, images=config.augment_images
    ).to(device)
    networks, optimizers = set_up(config, fabric, generator, discriminator)
    parts = {
        "generator": generator,
        "discriminator": discriminator,
        "average": average,
        "adaptation": adaptation,
        **{f"{name}_optimizer": optimizer for name, optimizer in optimizers.items()},
    }
    steps = Steps(
        config,
        fabric,
        networks,
        optimizers,
        adaptation,
        num_classes=num_classes,
        latent_dim=average.latent_dim,
        share=share,
    )

    if first:
        open_run(config.out, config, fresh=config.fresh, free=free_fields(config))
    wait_for_all()
    shown, step, due = restore(config, parts, data.hash)
    raw = {"generator": generator, "discriminator": discriminator}
    watch = NumericsWatch(raw, optimizers, unit="images", enabled=config.debug_numerics)
    if first:
        prepare_reference(data, network, config.evaluation_references)
    stream = ImageStream(
        data,
        seed=config.seed,
        flip=config.flip,
        device=device,
        workers=config.workers,
        rank=share.rank,
        world_size=share.count,
    )
    losses: list[Tensor] = []
    bar: Any = Progress(config.out, total=config.images, done=shown) if first else Bystander()

    with closing(stream), Interrupt() as interrupt, bar as progress:
        helper = Assistant(config, models, network, share)
        reporter: Any = Reporter(config, models, data, network, progress, share) if first else helper
        if first:
            tell_skipped(data, progress)
        if due:
            reporter.assess(average, generator, discriminator, step)
            save(config.out, parts, shown=shown, step=step, due=False, data=data.hash)
        if not shown:
            warm_up(discriminator, stream, config, fabric, interrupt)
        while shown < config.images:
            before = shown
            seed_step(config.seed, "step", shown)
            watch.step, watch.shown = step + 1, shown
            part = shown / config.images
            rate = fade(part, config.decay_from, config.decay_to)
            set_rate(optimizers["generator"], rate * config.generator_lr)
            set_rate(optimizers["discriminator"], rate * config.discriminator_lr)
            steps.penalty_scale.fill_(config.penalty_final**part)

            for number in range(config.discriminator_steps):
                real, labels = stream.batch(shown, B)
                count = step * config.discriminator_steps + number
                penalise = bool(config.r1_gamma or config.r2_gamma) and count % config.penalty_every == 0
                judged = steps.train_discriminator(real, labels, penalise=penalise)
                shown += B
            generated = steps.train_generator(real, labels)
            update_average(average, generator, warm_decay(config.ema_decay, step))

            step += 1
            losses.append(torch.cat([judged, generated]))
            progress.advance(shown - before)
            done = shown >= config.images
            evaluates = done or passes(before, shown, config.evaluate_every)
            saves = evaluates or passes(before, shown, config.checkpoint_every)
            logs = saves or len(losses) >= config.log_every
            # Processes agree to stop; to ask the others waits for the device, so on one that computes ahead only now
            # and then.
            asks = logs or share.count == 1 or device.type == "cpu"
            stops = asks and any_process(interrupt.requested, device)
            saves = saves or stops
            if logs or stops:
                losses = list(average_over_processes(*losses))
                reporter.log_losses(losses, step, adaptation.probability)
                losses.clear()
            if evaluates:  # which may take minutes: a kill meanwhile costs no step
                save(config.out, parts, shown=shown, step=step, due=True, data=data.hash)
                reporter.assess(average, generator, discriminator, step)
            if saves:
                save(config.out, parts, shown=shown, step=step, due=False, data=data.hash)
            if stops and not done:
                interrupt.stop(f"{shown:,} of {config.images:,} images")
        reporter.write_run_record(device)


def check_machine(config: GanConfig, device: torch.device, share: Share) -> None:
    """Refuse what these processes, or their device, cannot do."""
    if config.batch_size % share.count:
        raise ValueError(f"--batch-size {config.batch_size}: expected a multiple of the {share.count} processes")
    own = config.batch_size // share.count
    if config.group_size and own % config.group_size:
        raise ValueError(f"--group-size {config.group_size}: expected a divisor of the {own} images of each process")
    if config.cuda_graphs and share.count > 1:
        raise ValueError(f"--cuda-graphs: captures the steps of a single process, torchrun started {share.count}")
    if config.compile and share.count > 1:
        raise ValueError(f"--compile: compiles the steps of a single process, torchrun started {share.count}")
    if config.cuda_graphs and device.type != "cuda":
        raise ValueError("--cuda-graphs: this machine has no usable CUDA device, or --device cpu was given")


def load_data(config: GanConfig, fabric: Any) -> ImageSet:
    """The training images; the first process of a machine decodes into the cache what the others then find there."""
    with first_on_machine(fabric.local_rank):
        data = load_image_set(config.data, config.image_size, stream=config.stream)
    if not config.conditional:
        data = replace(data, labels=torch.zeros_like(data.labels), class_names=["all"])
    return data


def tell_skipped(data: ImageSet, progress: Progress) -> None:
    """Say which images could not be read, and let those be told that will turn out so."""
    if data.skipped:
        progress.message(f"skipped {len(data.skipped)} images that cannot be read: " + "; ".join(data.skipped[:5]))
    if isinstance(data.images, StreamedImages):
        data.images.report = progress.message


def describe_models(config: GanConfig, num_classes: int) -> dict[str, dict[str, Any]]:
    """The keywords of both networks."""
    shape = {
        "image_size": config.image_size,
        "num_classes": num_classes,
        "attention": config.attention,
        "attention_options": parse_options(config.attention_options, "--attention-options"),
        "attention_spectral_norm": config.attention_spectral_norm,
    }
    return {
        "generator": {
            **shape,
            "width": config.generator_width,
            "multiples": config.generator_multiples,
            "spectral_norm": config.generator_spectral_norm,
        },
        "discriminator": {
            **shape,
            "width": config.discriminator_width,
            "multiples": config.discriminator_multiples,
            "spectral_norm": config.discriminator_spectral_norm,
            "inplace_relu": config.inplace_relu,
            "group_size": config.group_size,
            "grid": config.discriminator_grid,
        },
    }


def set_up(
    config: GanConfig, fabric: Any, generator: Generator, discriminator: Discriminator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The networks and their optimizers, by name, on the device and in the precision of the run."""
    rates = {"generator": config.generator_lr, "discriminator": config.discriminator_lr}
    networks, optimizers = {}, {}
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        # A captured step reads its rate from the device.
        rate = torch.tensor(rates[name], device=fabric.device) if config.cuda_graphs else rates[name]
        network.to(fabric.device)
        if fabric.world_size > 1:
            synchronise_norms(network)
        adam = torch.optim.Adam(
            network.parameters(), rate, config.betas, eps=ADAM_EPS, fused=True, capturable=config.cuda_graphs
        )
        if config.compile:
            compile_network(network, fabric.device, cuda_graphs=False)
        networks[name], optimizers[name] = fabric.setup(network, adam)
    return networks, optimizers


def build(network: type[Network], keywords: dict[str, Any]) -> Network:
    """Construct a network; what its layout or its attention refuses is a user's mistake."""
    try:
        return network(**keywords)
    except LayoutError as error:
        raise ValueError(f"--{network.__name__.lower()}-{error}") from error
    except ValueError as error:
        raise ValueError(f"--attention {keywords['attention']}: {error}") from error


def restore(config: GanConfig, parts: dict[str, Any], data_hash: str) -> tuple[int, int, bool]:
    """Load the checkpoint of the run, if there is one, into `parts`.

    Returns:
        Images shown and generator steps so far, and whether an evaluation of this moment is still to come.
    """
    state = load_checkpoint(config.out)
    if state is None:
        return 0, 0, False
    if state["data"] != data_hash:
        raise ValueError(f"--data {config.data}: not the images that the run in {config.out} was trained on")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["shown"], state["step"], state.get("due", False)


def save(folder: Path, parts: dict[str, Any], **clock: Any) -> None:
    """Write the checkpoint that `restore` reads, in the first process: the states of `parts`, and where the run is."""
    if is_first():
        save_checkpoint(folder, {**{name: part.state_dict() for name, part in parts.items()}, **clock})
    wait_for_all()


def fade(part: float, decay_from: float, decay_to: float) -> float:
    """Factor of the learning rates after a part of the run: 1, then linearly from `decay_from` on to `decay_to`."""
    return 1.0 if part <= decay_from else decay_to + (1 - decay_to) * (1 - part) / (1 - decay_from)


def set_rate(optimizer: Any, rate: float) -> None:
    """Set an optimizer's learning rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def passes(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every != after // every
