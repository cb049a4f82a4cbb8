"""Which clouds a training step sees, and what becomes of them: order, augmentation, mixing.

Everything follows from the seed and the number of clouds shown before the step. B batch, or this process's share of
it; N points, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pointcloud.augmentation import Augmentation, draw_clouds
from pointcloud.clouds import CloudSet
from pointcloud.mixing import mix_clouds
from pointcloud.presets import Config
from shared_attn.runtime.processes import WHOLE, Share
from shared_attn.runtime.seeding import create_generator

Step = tuple[tuple[Tensor, ...], Tensor]
"""The network's inputs (points, and the categories where it wants them) and the targets."""


@dataclass(frozen=True)
class StepSource:
    """Draws the steps of a training from its clouds, on the clouds' device.

    `with_category`: the network takes the shapes' categories beside their points. `share`: what of every step is drawn,
    where several processes share it; the same clouds as without, for all draws follow from the item and its epoch.
    """

    config: Config
    clouds: CloudSet
    with_category: bool = False
    share: Share = WHOLE

    def draw(self, shown: int, *, mixed: bool = True) -> Step:
        """The step that begins after `shown` clouds; `mixed=False` leaves out what config.point_mix says.

        Targets are labels (B,), part labels (B, N), or of mixed clouds the shares of the classes (B, K).
        """
        config, clouds = self.config, self.clouds
        items, epochs = (
            self.share.take(place).to(clouds.label.device, non_blocking=True)
            for place in items_at(shown, config.batch_size, len(clouds), config.seed)
        )
        options = augmentation(config)
        points, index = draw_clouds(clouds.points, items, epochs, unit=clouds.unit, seed=config.seed, options=options)
        label = clouds.label[items]
        if mixed and config.point_mix != "none":
            return mix_clouds(config, clouds, points, items, epochs, options)
        inputs = (points, label) if self.with_category else (points,)
        if config.task == "classify":
            return inputs, label
        assert clouds.part_label is not None
        return inputs, clouds.part_label[items].gather(1, index)


def augmentation(config: Config) -> Augmentation:
    return Augmentation(
        config.num_points,
        config.point_dropout,
        config.rotation,
        config.tilt,
        config.scale,
        config.shift,
        config.jitter,
    )


def items_at(shown: int, count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Items (count,) and epochs (count,) of the step after `shown` clouds: random orders of all items, end to end."""
    position = torch.arange(shown, shown + count)
    epochs, places = position // size, position % size
    items = [_order(size, int(epoch), seed)[places[epochs == epoch]] for epoch in epochs.unique()]
    return torch.cat(items), epochs


@lru_cache(maxsize=4)
def _order(size: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=create_generator(seed, "order", epoch))
