"""Training a GAN: one function, read from top to bottom.

The clock is real images shown to the discriminator. Every random number of a step follows from (seed, images shown),
so a run resumed from a checkpoint repeats the uninterrupted one bit for bit.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor

from gan.augmentation import augment
from gan.averaging import update_average, warm_decay
from gan.batches import ImageStream
from gan.datasets import load_image_set
from gan.discriminator import Discriminator
from gan.evaluation import prepare_reference
from gan.features import load_features
from gan.generator import Generator
from gan.losses import hinge_discriminator, hinge_generator
from gan.presets import GanConfig, check_config, free_fields
from gan.reporting import LOSSES, assess, write_run_record
from shared_attn.runtime.checkpoint import load_checkpoint, save_checkpoint
from shared_attn.runtime.interrupt import Interrupt
from shared_attn.runtime.launch import create_fabric
from shared_attn.runtime.options import parse_options
from shared_attn.runtime.progress import Progress
from shared_attn.runtime.run_folder import open_run
from shared_attn.runtime.seeding import seed_step

ADAM_EPS = 1e-6
Network = TypeVar("Network", Generator, Discriminator)


def train(config: GanConfig) -> None:
    """Train a generator and a discriminator as `config` says, or go on with the run that lies in `config.out`.

    Writes checkpoints, `metrics.jsonl`, TensorBoard events, sample grids, `weights.safetensors` (the averaged
    generator) and `record.json` into `config.out`.

    Raises:
        ValueError, OSError: in one line, for a user's mistake, and when a loss is no longer a finite number.
        KeyboardInterrupt: after saving, when the run is interrupted.
    """
    check_config(config)
    fabric = create_fabric(config.device, config.precision)
    device = fabric.device
    network = load_features(config.features, device, config.inception_weights)
    data = load_image_set(config.data, config.image_size)
    num_classes, B = len(data.class_names), config.batch_size

    # Both networks, the average that is kept, and the optimizers.
    shape = {
        "image_size": config.image_size,
        "num_classes": num_classes,
        "attention": config.attention,
        "attention_options": parse_options(config.attention_options, "--attention-options"),
        "attention_spectral_norm": config.attention_spectral_norm,
    }
    models = {
        "generator": {**shape, "width": config.generator_width},
        "discriminator": {**shape, "width": config.discriminator_width, "inplace_relu": config.inplace_relu},
    }
    seed_step(config.seed, "initialization")
    bare_generator = build(Generator, models["generator"])
    bare_discriminator = build(Discriminator, models["discriminator"])
    average = copy.deepcopy(bare_generator).requires_grad_(False).to(device)
    generator, generator_optimizer = fabric.setup(
        bare_generator,
        torch.optim.Adam(bare_generator.parameters(), config.generator_lr, config.betas, eps=ADAM_EPS),
    )
    discriminator, discriminator_optimizer = fabric.setup(
        bare_discriminator,
        torch.optim.Adam(bare_discriminator.parameters(), config.discriminator_lr, config.betas, eps=ADAM_EPS),
    )
    parts = {
        "generator": bare_generator,
        "discriminator": bare_discriminator,
        "average": average,
        "generator_optimizer": generator_optimizer,
        "discriminator_optimizer": discriminator_optimizer,
    }

    open_run(config.out, config, fresh=config.fresh, free=free_fields(config))
    shown, step = restore(config, parts, data.hash)
    prepare_reference(data, network, config.evaluation_references)
    stream = ImageStream(data, seed=config.seed, flip=config.flip, device=device)
    losses: list[Tensor] = []

    with Interrupt() as interrupt, Progress(config.out, total=config.images, done=shown) as progress:
        if data.skipped:
            progress.message(f"skipped {len(data.skipped)} images that cannot be read: " + "; ".join(data.skipped[:5]))
        while shown < config.images:
            before = shown
            seed_step(config.seed, "step", shown)
            rate = fade(shown / config.images, config.decay_from)
            set_rate(generator_optimizer, rate * config.generator_lr)
            set_rate(discriminator_optimizer, rate * config.discriminator_lr)

            # The discriminator: real above 1, generated below -1, in one batch. No gradient reaches the generator,
            # whose batch norm uses the batch's own statistics (its running ones are estimated when it is finished).
            discriminator.requires_grad_(True)
            for _ in range(config.discriminator_steps):
                real, real_labels = stream.batch(shown, B)
                fake_labels = torch.randint(num_classes, (B,), device=device)
                with torch.no_grad():
                    fake = generator(torch.randn(B, average.latent_dim, device=device), fake_labels)
                images = augment(torch.cat([real, fake]), config.augment)
                logits = discriminator(images, torch.cat([real_labels, fake_labels]))
                real_logits, fake_logits = logits.chunk(2)
                discriminator_loss = hinge_discriminator(real_logits, fake_logits)
                discriminator_optimizer.zero_grad()
                fabric.backward(discriminator_loss)
                discriminator_optimizer.step()
                shown += B

            # The generator, through a discriminator that stands still.
            discriminator.requires_grad_(False)
            labels = torch.randint(num_classes, (B,), device=device)
            images = generator(torch.randn(B, average.latent_dim, device=device), labels)
            generator_loss = hinge_generator(discriminator(augment(images, config.augment), labels))
            generator_optimizer.zero_grad()
            fabric.backward(generator_loss)
            generator_optimizer.step()
            update_average(average, bare_generator, warm_decay(config.ema_decay, step))

            step += 1
            losses.append(
                torch.stack([discriminator_loss, generator_loss, real_logits.mean(), fake_logits.mean()]).detach()
            )
            progress.advance(shown - before)
            done = shown >= config.images
            evaluates = done or passes(before, shown, config.evaluate_every)
            saves = evaluates or interrupt.requested or passes(before, shown, config.checkpoint_every)
            if saves or len(losses) >= config.log_every:
                log_losses(progress, losses, step)
            if evaluates:
                assess(config, average, models, data, network, progress)
            if saves:
                states = {name: part.state_dict() for name, part in parts.items()}
                save_checkpoint(config.out, {**states, "shown": shown, "step": step, "data": data.hash})
            if interrupt.requested and not done:
                interrupt.stop(f"{shown:,} of {config.images:,} images")
        write_run_record(config, models, data, progress, device)


def build(network: type[Network], keywords: dict[str, Any]) -> Network:
    """Construct a network; what its attention refuses is a user's mistake."""
    try:
        return network(**keywords)
    except ValueError as error:
        raise ValueError(f"--attention {keywords['attention']}: {error}") from error


def restore(config: GanConfig, parts: dict[str, Any], data_hash: str) -> tuple[int, int]:
    """Load the checkpoint of the run, if there is one, into `parts`: images shown and generator steps so far."""
    state = load_checkpoint(config.out)
    if state is None:
        return 0, 0
    if state["data"] != data_hash:
        raise ValueError(f"--data {config.data}: not the images that the run in {config.out} was trained on")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["shown"], state["step"]


def fade(part: float, decay_from: float) -> float:
    """Factor of the learning rates after a part of the run: 1, then linearly to 0."""
    return 1.0 if part <= decay_from else (1 - part) / (1 - decay_from)


def set_rate(optimizer: Any, rate: float) -> None:
    """Set an optimizer's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def passes(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]."""
    return before // every != after // every


def log_losses(progress: Progress, losses: list[Tensor], step: int) -> None:
    """Write the means of the steps since the last call, and empty the list; refuse to go on after a NaN."""
    values = torch.stack(losses).double().cpu()  # (steps, 4)
    finite = values.isfinite().all(dim=1)
    if not finite.all():
        first = step - len(losses) + 1 + int((~finite).nonzero()[0])
        raise ValueError(
            f"training diverged: a loss is not a finite number at step {first} (before {progress.shown:,} images); "
            "lower --generator-lr and --discriminator-lr; the last good checkpoint stands"
        )
    means = dict(zip(LOSSES, values.mean(dim=0).tolist(), strict=True))
    progress.log(**means)
    progress.advance(0, D=means["discriminator_loss"], G=means["generator_loss"])
    losses.clear()
