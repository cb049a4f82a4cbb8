"""Real images in an order that follows from (seed, position) alone.

Legend: B batch of this process, N images, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gan.data.datasets import ImageSet
from gan.data.streamed import Prefetcher, StreamedImages, count_workers
from shared_attn.runtime.seeding import create_generator

DEVICE_FRACTION = 0.5  # of an accelerator's free memory that the images may take


class Order:
    """The endless order of N items: each epoch a new permutation and new mirrorings, drawn from (seed, epoch).

    Args:
        places: (N,) what stands for each item, where that differs.
        device: where the orders are kept.
    """

    def __init__(self, total: int, seed: int, *, places: Tensor | None = None, device: torch.device | str = "cpu"):
        self.total, self.seed, self.places, self.device = total, seed, places, device
        self._epochs: dict[int, tuple[Tensor, Tensor]] = {}

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor]:
        if epoch not in self._epochs:
            order = torch.randperm(self.total, generator=create_generator(self.seed, "order", epoch))
            mirrored = torch.rand(self.total, generator=create_generator(self.seed, "flip", epoch)) < 0.5
            items = order if self.places is None else self.places[order]
            drawn = items.to(self.device), mirrored[order].to(self.device)
            # Two: batches are decoded ahead of those in use, across the end of an epoch.
            self._epochs = {**dict(list(self._epochs.items())[-1:]), epoch: drawn}
        return self._epochs[epoch]

    def take(self, shown: int, count: int) -> tuple[Tensor, Tensor]:
        """The `count` items that follow the first `shown` ones, and whether each is mirrored."""
        items, mirrored = [], []
        while count > 0:
            epoch, first = divmod(shown, self.total)
            taken = [part[first : first + count] for part in self._draw(epoch)]
            items.append(taken[0])
            mirrored.append(taken[1])
            shown, count = shown + len(taken[0]), count - len(taken[0])
        return torch.cat(items), torch.cat(mirrored)


class ImageStream:
    """An endless stream of (image, label), the same whether the images lie in memory or are decoded on the way, for
    any number of workers, and for any number of processes that share each batch.

    The images stay on the device as uint8 when they take at most half of its free memory; a batch of them is made
    without waiting for the device.

    Args:
        flip: mirror half of the images.
        workers: processes that decode streamed images ahead; 0: none; None: one a core, at most 16. Images in memory
            need none.
        rank, world_size: this process's place among those that share each batch.
    """

    def __init__(
        self,
        data: ImageSet,
        *,
        seed: int,
        flip: bool,
        device: torch.device,
        workers: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank}: expected 0 to below the world size, {world_size}")
        if workers is not None and workers < 0:
            raise ValueError(f"--workers {workers}: expected at least 0")
        self.flip, self.device, self.rank, self.world_size = flip, device, rank, world_size
        self.images, self.labels = data.images, data.labels
        self._prefetcher: Prefetcher | None = None
        kept_on: torch.device | str = "cpu"
        if isinstance(data.images, StreamedImages):
            workers = count_workers(world_size) if workers is None else workers
            self._prefetcher = Prefetcher(data.images, self._take_items, workers=workers, pin=device.type == "cuda")
        elif device.type != "cuda" or data.images.nbytes <= DEVICE_FRACTION * torch.cuda.mem_get_info(device)[0]:
            self.images, self.labels, kept_on = data.images.to(device), data.labels.to(device), device
        total = len(data.labels) if data.places is None else len(data.places)
        self.order = Order(total, seed, places=data.places, device=kept_on)

    def batch(self, shown: int, count: int) -> tuple[Tensor, Tensor]:
        """This process's share of the `count` images that follow the first `shown` ones.

        Returns:
            Images (B, 3, H, W) float32 in [-1, 1], channels_last in memory, and labels (B,) int64; B is count over
            the world size.

        Raises:
            ValueError: where the processes cannot share `count` evenly, or too many images are damaged.
            OSError: in one line, where a streamed image's file has vanished.
        """
        items, mirrored = self.order.take(*self._share(shown, count))
        if self._prefetcher is None:
            assert isinstance(self.images, Tensor), "other images have a prefetcher"
            pixels, labels = self.images[items], self.labels[items]
        else:
            fetched = self._prefetcher.get(shown, count)
            pixels, labels = torch.as_tensor(fetched.pixels), self.labels[torch.as_tensor(fetched.items)]
        images = self._move(pixels).permute(0, 3, 1, 2)  # (B, 3, H, W)
        images = images.float() / 127.5 - 1
        if self.flip:
            images = torch.where(self._move(mirrored)[:, None, None, None], images.flip(3), images)
        return images, self._move(labels)

    def close(self) -> None:
        """Stop the workers, if there are any."""
        if self._prefetcher is not None:
            self._prefetcher.close()

    def _share(self, shown: int, count: int) -> tuple[int, int]:
        """Where in the order the share of this process begins, and how long it is."""
        share, rest = divmod(count, self.world_size)
        if rest:
            raise ValueError(f"--batch-size {count}: expected a multiple of the {self.world_size} processes")
        return shown + self.rank * share, share

    def _take_items(self, shown: int, count: int) -> Tensor:
        return self.order.take(*self._share(shown, count))[0]

    def _move(self, part: Tensor) -> Tensor:
        """To the device; from page-locked memory, so that nothing waits."""
        if self.device.type != "cuda" or part.is_cuda:
            return part.to(self.device)
        return part.pin_memory().to(self.device, non_blocking=True)
