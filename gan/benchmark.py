"""How long a training iteration takes: this package's form against the original's, in one process, on the same batch.

An iteration is the paper's on CIFAR-10: five discriminator steps and one of the generator, hinge loss, Adam.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from gan.discriminator import Discriminator
from gan.generator import Generator
from gan.losses import hinge_discriminator, hinge_generator
from gan.original import load_original
from gan.published import create_published_twins
from shared_attn.benchmark import check_sizes, time_in_turns
from shared_attn.complexity import count_multiply_adds
from shared_attn.memory import measure_peak_bytes
from shared_attn.runtime.host_memory import keep_freed_memory
from shared_attn.step_clock import PartClock, product_rate
from shared_attn.step_timing import StepTiming

DISCRIMINATOR_STEPS = 5
ADAM = {"lr": 2e-4, "betas": (0.5, 0.999), "eps": 1e-6}


@dataclass(frozen=True, kw_only=True)
class IterationTiming(StepTiming):
    """An iteration of SAGAN on CIFAR-10: five discriminator steps and a generator step. `original` is StudioGAN.

    The items are real images shown to the discriminator; products include convolutions.
    """

    UNIT: ClassVar[str] = "images"
    STEP: ClassVar[str] = "an iteration"

    discriminator_seconds: float
    """Of one discriminator step."""
    generator_seconds: float
    original_difference: float | None
    """As `largest_difference`, of the original."""
    multiply_adds: int
    """Of an iteration, forward and backward, of this package's form."""
    published_multiply_adds: int


class Iteration:
    """The steps of one form of both networks, as `gan.training` makes them, on the same real images every time.

    Args:
        generator, discriminator: the networks; the discriminator's forward gives logits.
        real, labels: (B, 3, H, W) images and their classes.
        precision: fp32 or bf16.
        apart: real and generated images are judged one after the other, as published, not in one batch.
        clock: marks each part where there is one.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        real: Tensor,
        labels: Tensor,
        *,
        num_classes: int,
        precision: str = "fp32",
        apart: bool = False,
        clock: PartClock | None = None,
    ) -> None:
        self.generator, self.discriminator, self.real, self.labels = generator, discriminator, real, labels
        self.num_classes, self.precision, self.apart, self.clock = num_classes, precision, apart, clock
        self.generator_optimizer = torch.optim.Adam(generator.parameters(), **ADAM)  # type: ignore[arg-type]
        self.discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), **ADAM)  # type: ignore[arg-type]

    def __call__(self) -> None:
        for _ in range(DISCRIMINATOR_STEPS):
            self.step_discriminator()
        self.step_generator()

    def step_discriminator(self) -> None:
        self.discriminator.requires_grad_(True)
        with self._autocast():
            with torch.no_grad():
                z, fake_labels = self._draw()
                fake = self.generator(z, fake_labels)
            self._mark("generator forward, images to judge")
            if self.apart:
                real_logits = self.discriminator(self.real, self.labels)
                fake_logits = self.discriminator(fake, fake_labels)
            else:
                logits = self.discriminator(torch.cat([self.real, fake]), torch.cat([self.labels, fake_labels]))
                real_logits, fake_logits = logits.chunk(2)
            loss = hinge_discriminator(real_logits, fake_logits)
        self._mark("discriminator forward")
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        self._mark("discriminator backward")
        self.discriminator_optimizer.step()
        self._mark("optimisers")

    def step_generator(self) -> None:
        self.discriminator.requires_grad_(False)
        with self._autocast():
            z, labels = self._draw()
            images = self.generator(z, labels)
            self._mark("generator forward")
            loss = hinge_generator(self.discriminator(images, labels))
        self._mark("discriminator forward")
        self.generator_optimizer.zero_grad()
        loss.backward()
        self._mark("generator backward")
        self.generator_optimizer.step()
        self._mark("optimisers")

    def _draw(self) -> tuple[Tensor, Tensor]:
        B, device = len(self.real), self.real.device
        return torch.randn(B, 128, device=device), torch.randint(self.num_classes, (B,), device=device)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.real.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _mark(self, part: str) -> None:
        if self.clock is not None:
            self.clock.mark(part)


class _Logits(nn.Module):
    """StudioGAN's discriminator, which answers with a dictionary, as ours answers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        logits: Tensor = self.network(images, labels)["adv_output"]
        return logits


def time_original(
    original: Path, *, batch_size: int = 64, width: int = 64, repeats: int = 3, threads: int = 0
) -> float:
    """Median seconds of an iteration of the original's code on the CPU as its users run it: freed memory goes back.

    So it must come first in a process: `time_steps` keeps freed memory from then on, for all it times.

    Args:
        original: folder of a checkout of PyTorch-StudioGAN.
        batch_size, width, threads: as there.
    """
    check_sizes(images=(batch_size, 2), repeats=(repeats, 1))
    if threads:
        torch.set_num_threads(threads)
    networks, real, labels = _create(batch_size, width)
    generator, discriminator = load_original(original, *networks)
    iteration = Iteration(generator.train(), _Logits(discriminator).train(), real, labels, num_classes=10, apart=True)
    return time_in_turns({"original": iteration}, repeats, real.device)["original"] / 1e3


def time_steps(
    *,
    batch_size: int = 64,
    width: int = 64,
    repeats: int = 3,
    threads: int = 0,
    precision: str = "fp32",
    device: torch.device | None = None,
    compiled: bool = False,
    original: Path | None = None,
    shipped_seconds: float | None = None,
) -> Iterator[IterationTiming]:
    """Times an iteration of SAGAN on CIFAR-10 in this package's form, in the published one, and the original's.

    All hold the same weights, and the discriminator has the original's in-place activations. They take turns, so that
    a busy machine slows all of them alike.

    Args:
        batch_size: real images a discriminator step, and as many generated ones.
        width: of both networks, 64 in the paper.
        precision: of this package's form, fp32 or bf16; the others are always timed in fp32.
        threads: CPU threads; 0 leaves them as they are.
        compiled: this package's form goes through torch.compile.
        original: folder of a checkout of PyTorch-StudioGAN.
        shipped_seconds: what `time_original` measured, for the report.
    """
    check_sizes(images=(batch_size, 2), repeats=(repeats, 1))
    device = device or torch.device("cpu")
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    networks, real, labels = _create(batch_size, width)
    real, labels = real.to(device), labels.to(device)
    twins: dict[str, tuple[nn.Module, nn.Module]] = {"published": create_published_twins(*networks)}
    if original is not None:
        generator, discriminator = load_original(original, *networks)
        twins["original"] = generator, _Logits(discriminator)
    differences = {name: _difference(networks, pair, real, labels) for name, pair in twins.items()}
    for pair in (networks, *twins.values()):
        for network in pair:
            network.to(device).train()
    others = {name: Iteration(*pair, real, labels, num_classes=10, apart=True) for name, pair in twins.items()}
    own = Iteration(*networks, real, labels, num_classes=10, precision=precision)
    yield replace(_time(own, others, differences, repeats, compiled), shipped_seconds=shipped_seconds)


def _create(batch_size: int, width: int) -> tuple[tuple[Generator, Discriminator], Tensor, Tensor]:
    """Both networks with SAGAN's attention at work, images (B, 3, 32, 32) in [-1, 1] and labels (B,)."""
    torch.manual_seed(0)
    shape = {"width": width, "attention": "sagan"}
    generator, discriminator = Generator(**shape), Discriminator(**shape, inplace_relu=True)  # type: ignore[arg-type]
    for network in (generator, discriminator):
        nn.init.constant_(network.get_parameter("attention.gate"), 0.1)  # at 0 the attention would have no gradient
    real = torch.rand(batch_size, 3, 32, 32) * 2 - 1
    return (generator, discriminator), real, torch.randint(10, (batch_size,))


def _time(
    own: Iteration, others: Mapping[str, Iteration], differences: Mapping[str, float], repeats: int, compiled: bool
) -> IterationTiming:
    device, precision = own.real.device, own.precision
    iterations = {"ours": own, **others}
    costs = {name: _cost(iteration, device) for name, iteration in iterations.items()}
    shares = _shares(own, device)
    if compiled:
        from shared_attn.runtime.compilation import compile_network

        for network in (own.generator, own.discriminator):
            compile_network(network, device, cuda_graphs=False)
    rounds: dict[str, Callable[[], object]] = {
        "discriminator": own.step_discriminator,
        "generator": own.step_generator,
        **iterations,
    }
    seconds = {name: value / 1e3 for name, value in time_in_turns(rounds, repeats, device).items()}
    mine, theirs = seconds["ours"], seconds.get("original")
    rate = product_rate(device, precision)
    floor = 2 * costs["ours"][0] / rate
    return IterationTiming(
        name="sagan",
        precision=precision,
        seconds=mine,
        items=DISCRIMINATOR_STEPS * len(own.real),
        discriminator_seconds=seconds["discriminator"],
        generator_seconds=seconds["generator"],
        published_seconds=seconds["published"],
        largest_difference=differences["published"],
        original_seconds=theirs,
        original_difference=differences.get("original"),
        peak_mb=costs["ours"][1],
        published_peak_mb=costs["published"][1],
        original_peak_mb=None if theirs is None else costs["original"][1],
        multiply_adds=costs["ours"][0],
        published_multiply_adds=costs["published"][0],
        floor_seconds=floor,
        product_gflops=rate / 1e9,
        shares=shares,
    )


def _cost(iteration: Iteration, device: torch.device) -> tuple[int, float]:
    """Multiply-adds of an iteration, and the most MB of its tensors, both from one that is run."""
    counted: list[int] = []
    peak = measure_peak_bytes(lambda: counted.append(count_multiply_adds(iteration)), device)
    return counted[0], peak / 1e6


@torch.no_grad()
def _difference(
    ours: tuple[nn.Module, nn.Module], theirs: tuple[nn.Module, nn.Module], real: Tensor, labels: Tensor
) -> float:
    """The largest of images and of logits, relative to their standard deviation; leaves both pairs as they are."""
    z = torch.randn(len(real), 128, device=real.device)
    found, largest = [], 0.0
    for pair in (ours, theirs):
        generator, discriminator = (copy.deepcopy(network).to(real.device) for network in pair)
        for module in (*generator.modules(), *discriminator.modules()):
            module.training = isinstance(module, nn.BatchNorm2d)  # the power iterations differ in their order
        found.append((generator(z, labels), discriminator(real, labels)))
    for mine, other in zip(*found, strict=True):
        largest = max(largest, float((mine - other).abs().max() / other.std()))
    return largest


def _shares(iteration: Iteration, device: torch.device) -> dict[str, float]:
    """Of the parts of an iteration that is watched; a network's normalisation ends where its first layer begins."""
    iteration.clock = clock = PartClock(device)
    with ExitStack() as hooks:
        for network, first in ((iteration.generator, "linear"), (iteration.discriminator, "blocks.0")):
            start = network.get_submodule(first)
            hook = start.register_forward_pre_hook(lambda *_: clock.mark("spectral norm, forward"))
            hooks.callback(hook.remove)
        iteration()
    iteration.clock = None
    return clock.shares
