"""Real images in an order that follows from (seed, position) alone.

Legend: B batch, N images, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gan.datasets import ImageSet
from shared_attn.runtime.seeding import create_generator

DEVICE_FRACTION = 0.5  # of an accelerator's free memory that the images may take


class ImageStream:
    """An endless stream of (image, label): each epoch a new order and new mirrorings, drawn from (seed, epoch).

    The images stay on the device as uint8 when they take at most half of its free memory.
    """

    def __init__(self, data: ImageSet, *, seed: int, flip: bool, device: torch.device):
        self.seed, self.flip, self.device = seed, flip, device
        fits = device.type != "cuda" or data.images.nbytes <= DEVICE_FRACTION * torch.cuda.mem_get_info(device)[0]
        self.images = data.images.to(device) if fits else data.images
        self.labels = data.labels.to(device) if fits else data.labels
        self._epoch = -1
        self._order = self._mirrored = torch.empty(0)

    def _enter(self, epoch: int) -> None:
        if epoch != self._epoch:
            count = len(self.labels)
            self._order = torch.randperm(count, generator=create_generator(self.seed, "order", epoch))
            self._mirrored = torch.rand(count, generator=create_generator(self.seed, "flip", epoch)) < 0.5
            self._epoch = epoch

    def batch(self, shown: int, count: int) -> tuple[Tensor, Tensor]:
        """The `count` images that follow the first `shown` ones.

        Returns:
            Images (B, 3, H, W) float32 in [-1, 1], channels_last in memory, and labels (B,) int64.
        """
        total = len(self.labels)
        items, mirrored = [], []
        while count > 0:
            epoch, first = divmod(shown, total)
            self._enter(epoch)
            taken = self._order[first : first + count]
            items.append(taken)
            mirrored.append(self._mirrored[taken])
            shown, count = shown + len(taken), count - len(taken)
        index = torch.cat(items).to(self.images.device)
        images = self.images[index].to(self.device).permute(0, 3, 1, 2)  # (B, 3, H, W)
        labels = self.labels[index].to(self.device)
        images = images.float() / 127.5 - 1
        if self.flip:
            flips = torch.cat(mirrored).to(self.device)[:, None, None, None]
            images = torch.where(flips, images.flip(3), images)
        return images, labels
