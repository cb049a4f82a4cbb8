"""What a run leaves behind beside its checkpoints: losses, evaluations, sample grids, weights, and its record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan.data.datasets import ImageSet
from gan.diagnostics import SaturationWatch, collapse_warning, spectra
from gan.discriminator import Discriminator
from gan.gallery import write_gallery
from gan.generator import Generator
from gan.judging.evaluation import DEFAULT_METRICS, METRICS, evaluate
from gan.judging.features import FeatureNetwork
from gan.judging.sharing import own_samples, share_extraction
from gan.pictures import write_grid
from gan.presets import GanConfig
from gan.sampling import KIND, draw_images, draw_latents, finish_generator
from shared_attn.complexity import count_multiply_adds, count_parameters
from shared_attn.runtime.files import atomic_write
from shared_attn.runtime.launch import choose_precision
from shared_attn.runtime.processes import WHOLE, Bystander, Share
from shared_attn.runtime.progress import Progress, read_metrics
from shared_attn.runtime.records import write_record
from shared_attn.runtime.weights import save_weights

LOSSES = ("discriminator_loss", "real_logit", "fake_logit", "discriminator_accuracy", "generator_loss")
SPECTRA = ("generator_largest_singular_value", "discriminator_largest_singular_value")
OTHER = {"shown", "seconds", "augment_probability", *LOSSES, *SPECTRA}  # all in metrics.jsonl that is no metric
SETTLED = 2000  # generator steps before which samples need no variety
GRID_ROWS, GRID_COLUMNS = 16, 10  # at most so many classes, samples of each


class Reporter:
    """Writes down how a run goes.

    Args:
        config: of the run.
        models: the keywords of both networks.
        data: the real images.
        network: features for the distances, None for none.
        progress: the run's bar, lines and events.
        share: of the evaluations; the other processes have an `Assistant`.
    """

    def __init__(
        self,
        config: GanConfig,
        models: dict[str, dict[str, Any]],
        data: ImageSet,
        network: FeatureNetwork | None,
        progress: Progress,
        share: Share = WHOLE,
    ):
        self.config, self.models, self.data, self.network, self.progress = config, models, data, network, progress
        self.share = share
        self.saturation = SaturationWatch()

    def log_losses(self, losses: list[Tensor], step: int, probability: Tensor) -> None:
        """Write the means of the steps since the last call, and empty the list.

        Args:
            losses: (5,) a step, in the order of LOSSES.
            step: generator steps so far.
            probability: of augmentation, written where it adapts.

        Raises:
            ValueError: after a NaN or an infinite loss, naming the step; if asked for, when the discriminator has won.
        """
        values = torch.stack(losses).double().cpu()  # (steps, 5)
        finite = values.isfinite().all(dim=1)
        if not finite.all():
            first = step - len(losses) + 1 + int((~finite).nonzero()[0])
            raise ValueError(
                f"training diverged: a loss is not a finite number at step {first} (before {self.progress.shown:,} "
                "images); lower --generator-lr and --discriminator-lr; the last good checkpoint stands"
            )
        means = dict(zip(LOSSES, values.mean(dim=0).tolist(), strict=True))
        extra = {"augment_probability": float(probability)} if self.config.augment_target else {}
        self.progress.log(**means, **extra)
        self.progress.advance(0, D=means["discriminator_loss"], G=means["generator_loss"])
        losses.clear()
        self._warn(self.saturation.update(means["discriminator_accuracy"], step))

    def assess(self, average: Generator, generator: Generator, discriminator: Discriminator, step: int) -> None:
        """Evaluate the networks as they are now: a sample grid (a row a class), distances, spectra, and the weights.

        Args:
            average: the averaged generator, which is judged and saved.
            generator, discriminator: those in training.
            step: generator steps so far.

        Raises:
            ValueError: if asked for, when the samples have lost their variety.
        """
        config, data, progress = self.config, self.data, self.progress
        progress.forget(*METRICS, "raw_", *SPECTRA)  # of an evaluation that a kill has cut short
        finished = finish_generator(average, self.models["generator"], config.seed)
        self._draw_grid(finished)
        values: dict[str, float] = {}
        if self.network is not None:
            values = self._measure(finished)
            raw = {}
            if config.compare_raw:
                raw = self._measure(finish_generator(generator, self.models["generator"], config.seed))
                generator.train()
            progress.log(**values, **{f"raw_{name}": value for name, value in raw.items()})
            told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            progress.message(f"{progress.shown:,} images: {told}")
        self._measure_spectra(generator, discriminator)
        header = {
            "kind": KIND,
            "model": self.models["generator"],
            "class_names": data.class_names,
            "data": data.describe(),
            "metrics": values,
            "images": progress.shown,
        }
        save_weights(config.out / "weights.safetensors", finished.state_dict(), header)
        write_gallery(config.out)
        for name, value in values.items():
            if name.startswith("variety") and step >= SETTLED:
                self._warn(collapse_warning(value, step))

    def write_run_record(self, device: torch.device) -> None:
        """Write `record.json`: the last evaluation's metrics, their curve over the run, and what the networks cost."""
        config, data = self.config, self.data
        parameters, multiply_adds = count_costs(self.models)
        evaluations = [line for line in read_metrics(config.out) if line.keys() - OTHER]
        names = sorted(evaluations[-1].keys() - OTHER) if evaluations else []
        grid = grid_path(config, self.progress.shown).relative_to(config.out)
        write_record(
            config.out / "record.json",
            name=f"{config.attention} attention, {config.image_size} pixels, on {data.name}",
            kind="gan",
            config=dataclasses.asdict(config) | {"precision": choose_precision(config.precision, device)},
            data=data.describe(),
            seeds=[config.seed],
            metrics={name: evaluations[-1][name] for name in names},
            parameters=parameters,
            multiply_adds=multiply_adds,
            seconds=self.progress.seconds,
            device=device.type,
            curves={name: [[line["shown"], line[name]] for line in evaluations if name in line] for name in names},
            note=f"last averaged weights; sample grid {grid}",
        )

    def _draw_grid(self, finished: Generator) -> None:
        names = self.data.class_names[:GRID_ROWS]
        z = draw_latents(range(GRID_COLUMNS), finished.latent_dim).repeat(len(names), 1)
        labels = torch.arange(len(names)).repeat_interleave(GRID_COLUMNS)
        images = torch.cat(list(draw_images(finished, z, labels)))
        grid = write_grid(grid_path(self.config, self.progress.shown), images, GRID_COLUMNS, names)
        self.progress.image("samples", grid)

    def _measure(self, finished: Generator) -> dict[str, float]:
        """The default metrics of the feature network at hand."""
        assert self.network is not None
        count, references = self.config.evaluation_samples, self.config.evaluation_references
        network = share_extraction(self.network, count, self.share)
        samples = draw_samples(finished, count, self.share)
        return evaluate(samples, count, self.data, network, DEFAULT_METRICS[network.name], references=references)

    def _measure_spectra(self, generator: Generator, discriminator: Discriminator) -> None:
        """Log the largest singular value of each network, and write those of every layer to `spectra.json`."""
        found = {"generator": spectra(generator), "discriminator": spectra(discriminator)}
        largest = (max(values.values()) for values in found.values())
        self.progress.log(**dict(zip(SPECTRA, largest, strict=True)))
        with atomic_write(self.config.out / "spectra.json", "w") as file:
            json.dump({"shown": self.progress.shown, **found}, file, indent=1)

    def _warn(self, warning: str | None) -> None:
        if warning is None:
            return
        if self.config.on_collapse == "stop":
            raise ValueError(f"{warning} (--on-collapse stop; the last checkpoint stands)")
        self.progress.message(f"warning: {warning}")


class Assistant(Bystander):
    """Stands in for the reporter in the processes beside the first: takes its part in the evaluations.

    Args: as `Reporter`.
    """

    def __init__(
        self, config: GanConfig, models: dict[str, dict[str, Any]], network: FeatureNetwork | None, share: Share
    ):
        self.config, self.models, self.network, self.share = config, models, network, share

    def assess(self, average: Generator, generator: Generator, *_others: object) -> None:
        """Extract features of this process's samples, in step with the first one; leave the networks as it does."""
        if self.network is None:
            return
        count = self.config.evaluation_samples
        for judged in (average, generator) if self.config.compare_raw else (average,):
            finished = finish_generator(judged, self.models["generator"], self.config.seed)
            network = share_extraction(self.network, count, self.share)
            for images in draw_samples(finished, count, self.share):
                network.extract(images)
        generator.train()


def draw_samples(finished: Generator, count: int, share: Share) -> Iterator[Tensor]:
    """This process's part of the `count` samples of an evaluation, all classes in turn: uint8 batches."""
    mine = own_samples(count, share)
    return draw_images(finished, draw_latents(mine.tolist(), finished.latent_dim), mine % finished.num_classes)


def grid_path(config: GanConfig, shown: int) -> Path:
    """The sample grid of an evaluation."""
    return config.out / "samples" / f"{shown:010d}.png"


def count_costs(models: dict[str, dict[str, Any]]) -> tuple[dict[str, int], dict[str, int]]:
    """Parameters, and multiply-adds of a forward of one image, of both networks."""
    with torch.device("meta"), torch.no_grad():
        generator = Generator(**{**models["generator"], "spectral_norm": False}).eval()
        discriminator = Discriminator(**{**models["discriminator"], "spectral_norm": False}).eval()
        z, label = torch.empty(1, generator.latent_dim), torch.empty(1, dtype=torch.long)
        image = torch.empty(1, 3, generator.image_size, generator.image_size)
        classes = torch.empty(1, generator.num_classes)
        multiply_adds = {
            "generator": count_multiply_adds(generator, z, classes),
            "discriminator": count_multiply_adds(discriminator, image, label),
        }
    parameters = {"generator": count_parameters(generator), "discriminator": count_parameters(discriminator)}
    return parameters, multiply_adds
