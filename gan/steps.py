"""One step of the discriminator and one of the generator, with every loss and regularisation that a recipe may ask for.

Legend: B batch, H W pixels, Z latent size.

Everything a step draws at random comes from torch's global generators, which the caller seeds; no step waits for the
device, and all shapes stay the same, so that a step can be compiled or captured as a graph.

Several processes share each batch: B is a process's part of it. Losses are means, so the mean of the processes'
gradients is the whole batch's. Only the network that is trained goes through DDP, which averages its gradients; the
other one stands still and is called as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gan.adaptation import Adaptation
from gan.augmentation import augment
from gan.graphs import GraphedStep
from gan.losses import LOSSES, NEEDS_REAL, consistency, gradient_penalty, lecam
from gan.presets import GanConfig
from shared_attn.runtime.processes import WHOLE, Share

Step = Callable[[Tensor, Tensor], Tensor]

CONSISTENCY_POLICIES = ("flip", "translation")  # the changes that balanced consistency asks to be ignored


class Steps:
    """Both networks with their optimizers, and what is done to them.

    Args:
        config: the recipe.
        fabric: for the backward passes.
        networks, optimizers: by name, "generator" and "discriminator", as `fabric.setup` returned them.
        adaptation: augmentation's strength and the logits' levels.
        num_classes: classes that labels are drawn from.
        latent_dim: Z.
        share: this process's part of each batch.

    Attributes:
        penalty_scale: factor of the gradient penalties now, a scalar on the device.
    """

    def __init__(
        self,
        config: GanConfig,
        fabric: Any,
        networks: dict[str, Any],
        optimizers: dict[str, Any],
        adaptation: Adaptation,
        *,
        num_classes: int,
        latent_dim: int,
        share: Share = WHOLE,
    ):
        self.config, self.fabric, self.adaptation = config, fabric, adaptation
        self.generator, self.discriminator = networks["generator"], networks["discriminator"]
        self.still = {name: getattr(network, "module", network) for name, network in networks.items()}
        self.share, self.paired = share, replace(share, groups=2)  # of single images, of real ones then generated ones
        self.optimizers = optimizers
        self.num_classes, self.latent_dim = num_classes, latent_dim
        self.device = fabric.device
        self.discriminator_loss, self.generator_loss = LOSSES[config.loss]
        self.penalty_scale = torch.ones((), device=self.device)
        # Fixed at full strength, augmentation needs no choice of images.
        fixed = config.augment_probability >= 1 and not config.augment_target
        self.probability: Tensor | float = 1.0 if fixed else adaptation.probability
        self._generated: tuple[Tensor, Tensor] | None = None  # images and classes that the generator's step will reuse
        self._train_discriminator: dict[bool, Step] = {
            penalise: partial(self._update_discriminator, penalise=penalise) for penalise in (False, True)
        }
        self._train_generator: Step = self._update_generator
        if config.cuda_graphs:
            self._train_discriminator = {key: GraphedStep(step) for key, step in self._train_discriminator.items()}
            self._train_generator = GraphedStep(self._train_generator)

    def train_discriminator(self, real: Tensor, real_labels: Tensor, *, penalise: bool) -> Tensor:
        """One update of the discriminator, which sees real and generated images in one batch.

        No gradient reaches the generator, whose batch norm uses the batch's own statistics (its running ones are
        estimated when it is finished). Where the images are reused, their graph is kept for `train_generator`.

        Args:
            real: (B, 3, H, W) in [-1, 1], and their classes (B,).
            penalise: add the gradient penalties, scaled up for the steps that go without.

        Returns:
            (4,): the loss without its regularisations, mean real and mean generated logit, share of images
            (of pairs, where the loss is relativistic) judged rightly.
        """
        return self._train_discriminator[penalise](real, real_labels)

    def train_generator(self, real: Tensor, real_labels: Tensor) -> Tensor:
        """One update of the generator, through a discriminator that stands still.

        Args:
            real: (B, 3, H, W) and their classes (B,), which only a relativistic loss looks at.

        Returns:
            (1,): the loss.
        """
        return self._train_generator(real, real_labels)

    def _generate(self, real_labels: Tensor, *, learns: bool) -> tuple[Tensor, Tensor]:
        """As many images (B, 3, H, W), and their classes (B,): any, or those of the pairs' real images.

        Args:
            learns: keep the graph of a forward pass whose gradients the generator will get.
        """
        B, labels, device = len(real_labels), real_labels, self.device
        if self.config.loss not in NEEDS_REAL:
            labels = self.share.draw(partial(torch.randint, self.num_classes), B, device=device)
        z = self.share.draw(torch.randn, B, self.latent_dim, device=device)
        if learns:
            return self.generator(z, labels), labels
        with torch.no_grad(), self.fabric.autocast():
            return self.still["generator"](z, labels), labels

    def _update_discriminator(self, real: Tensor, real_labels: Tensor, *, penalise: bool) -> Tensor:
        config, B = self.config, len(real)
        self.discriminator.requires_grad_(True)
        fake, fake_labels = self._generate(real_labels, learns=config.reuse_generated)
        if config.reuse_generated:
            self._generated, fake = (fake, fake_labels), fake.detach()
        images, labels = torch.cat([real, fake]), torch.cat([real_labels, fake_labels])
        seen = augment(images, config.augment, self.probability, share=self.paired)
        if config.consistency:
            seen = torch.cat([seen, augment(images, CONSISTENCY_POLICIES, share=self.paired)])
            labels = labels.repeat(2)
        if penalise:
            seen = seen.detach().requires_grad_(True)
        logits = self.discriminator(seen, labels)  # (2 B or 4 B,)
        real_logits, fake_logits = logits[:B], logits[B : 2 * B]
        adversarial = self.discriminator_loss(real_logits, fake_logits)
        loss = adversarial
        if config.consistency:
            loss = loss + config.consistency * 2 * consistency(logits[: 2 * B], logits[2 * B :])
        if config.lecam:
            levels = self.adaptation.real_level, self.adaptation.fake_level
            loss = loss + config.lecam * lecam(real_logits, fake_logits, *levels)
        if penalise:
            loss = loss + config.penalty_every * self.penalty_scale * self._penalty(real_logits, fake_logits, seen)
        self._step("discriminator", loss)
        # A relativistic logit has no zero of its own: there a pair is right whose real image has the higher one.
        paired = config.loss in NEEDS_REAL
        margins = real_logits - fake_logits if paired else torch.cat([real_logits, -fake_logits])
        self.adaptation.update(real_logits, fake_logits, margins[:B])
        right = (margins.detach() > 0).float().mean()
        return torch.stack([adversarial, real_logits.mean(), fake_logits.mean(), right]).detach()

    def _penalty(self, real_logits: Tensor, fake_logits: Tensor, seen: Tensor) -> Tensor:
        """R1 on the real and R2 on the generated images, each with its weight."""
        config, B = self.config, len(real_logits)
        # One backward pass for both: a logit depends on its own side's images alone. The root of its weight scales its
        # slope.
        weighted = torch.cat([real_logits * config.r1_gamma**0.5, fake_logits * config.r2_gamma**0.5])
        return gradient_penalty(weighted, seen) * (len(seen) / B)

    def _update_generator(self, real: Tensor, real_labels: Tensor) -> Tensor:
        config, B = self.config, len(real)
        self.discriminator.requires_grad_(False)
        fake, fake_labels = self._generated or self._generate(real_labels, learns=True)
        self._generated = None
        images, labels, share = fake, fake_labels, self.share
        if config.loss in NEEDS_REAL:
            images, labels, share = torch.cat([real, fake]), torch.cat([real_labels, fake_labels]), self.paired
        seen = augment(images, config.augment, self.probability, share=share)
        with self.fabric.autocast():
            logits = self.still["discriminator"](seen, labels)
        loss = self.generator_loss(logits[-B:], logits[:-B])
        self._step("generator", loss)
        return loss.detach()[None]

    def _step(self, name: str, loss: Tensor) -> None:
        """Step one network's optimizer down its loss."""
        self.optimizers[name].zero_grad()
        self.fabric.backward(loss)
        self.optimizers[name].step()
