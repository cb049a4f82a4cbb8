"""A discriminator that knows the classes before it meets generated images.

Its logit holds <embedding(class), h>, which for the best discriminator is how much likelier the class makes the image
(arXiv 1802.05637, section 2). That part can be learned from real images alone, in a fraction of the time that the game
with the generator takes. Without it a short training tells few classes apart, and then its generator draws them alike.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from gan.data.batches import ImageStream
from gan.discriminator import Discriminator
from gan.presets import GanConfig
from shared_attn.runtime.interrupt import Interrupt
from shared_attn.runtime.processes import any_process, average_over_processes

BATCH = 64  # about so many images, in whole batches of the training, which its processes and groups divide
RATE, BETAS = 2e-3, (0.9, 0.99)  # of Adam; the rate falls linearly to zero
# The orthonormal rows of a new embedding meet sums over all pixels; scaled so, the logits begin moderate.
EMBEDDING_SCALE = 0.125


def warm_up(
    discriminator: Discriminator, stream: ImageStream, config: GanConfig, fabric: Any, interrupt: Interrupt
) -> None:
    """Train a new discriminator's class embedding, and all below it, to classify real images by cross entropy.

    Args:
        discriminator: as it is, not wrapped for several processes: these share each batch and average gradients here.
        stream: of real images and their classes.
        config: of the training; its `warm_up` is how many images are seen, rounded up to whole batches.
        interrupt: what stops it; nothing is saved of it, as it is soon done again.
    """
    images, batch = config.warm_up, config.batch_size * max(1, BATCH // config.batch_size)
    if not images:
        return
    # The rest of the logit is the same for all classes.
    learns = [value for name, value in discriminator.named_parameters() if not name.startswith("head.")]
    (table,) = discriminator.embedding.parameters()  # where it is normalised, what its weight is made of
    with torch.no_grad():
        table.mul_(EMBEDDING_SCALE)
    adam = torch.optim.Adam(learns, RATE, BETAS, fused=True)
    for shown in range(0, images, batch):
        if any_process(interrupt.requested, fabric.device):
            interrupt.stop("the warm-up", saved=False)
        for group in adam.param_groups:
            group["lr"] = RATE * (1 - shown / images)
        real, labels = stream.batch(shown, batch)
        with fabric.autocast():
            logits = discriminator.classify(real.to(table.dtype))
        adam.zero_grad()
        F.cross_entropy(logits, labels).backward()
        for value in learns:
            assert value.grad is not None, "every other parameter has its part in the classes' logits"
            (value.grad,) = average_over_processes(value.grad)
        adam.step()
    with torch.no_grad():  # a logit that all classes share is the head's
        table.sub_(table.mean(dim=0, keepdim=True))
