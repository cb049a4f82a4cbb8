"""Differentiable augmentation (Zhao et al. 2020, arXiv 2006.10738): the discriminator sees only augmented images.

Legend: B batch, H W grid. Each function takes and returns (B, 3, H, W), draws its parameters once an image from
torch's global generator (seeded each step), and lets gradients through to the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def _uniform(images: Tensor) -> Tensor:
    return torch.rand(len(images), 1, 1, 1, dtype=images.dtype, device=images.device)


def color(images: Tensor) -> Tensor:
    """Brightness shifted by up to 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    images = images + (_uniform(images) - 0.5)
    grey = images.mean(dim=1, keepdim=True)  # (B, 1, H, W)
    images = torch.lerp(grey, images, 2 * _uniform(images))
    level = images.mean(dim=(1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    return torch.lerp(level, images, 0.5 + _uniform(images))


def translation(images: Tensor, ratio: float = 0.125) -> Tensor:
    """Shift by up to an eighth of the size each way; zeros come in from outside."""
    B, _, H, W = images.shape
    device = images.device
    reach_h, reach_w = round(H * ratio), round(W * ratio)
    shift_h = torch.randint(-reach_h, reach_h + 1, (B, 1), device=device)
    shift_w = torch.randint(-reach_w, reach_w + 1, (B, 1), device=device)
    rows = torch.arange(H, device=device) + shift_h  # (B, H)
    columns = torch.arange(W, device=device) + shift_w  # (B, W)
    inside = ((rows >= 0) & (rows < H))[:, :, None] & ((columns >= 0) & (columns < W))[:, None]  # (B, H, W)
    batch = torch.arange(B, device=device)[:, None, None]
    # Advanced indices around the channels' slice: (B, H, W, 3), which is the channels_last layout of the result.
    moved = images[batch, :, rows.clamp(0, H - 1)[:, :, None], columns.clamp(0, W - 1)[:, None]]
    return (moved * inside[..., None]).permute(0, 3, 1, 2)


def cutout(images: Tensor, ratio: float = 0.5) -> Tensor:
    """Set a square of half the size, centred anywhere in the image, to zero."""
    B, _, H, W = images.shape
    device = images.device
    side_h, side_w = round(H * ratio), round(W * ratio)
    top = torch.randint(0, H + (1 - side_h % 2), (B, 1), device=device) - side_h // 2
    left = torch.randint(0, W + (1 - side_w % 2), (B, 1), device=device) - side_w // 2
    rows, columns = torch.arange(H, device=device), torch.arange(W, device=device)
    in_rows = (rows >= top) & (rows < top + side_h)  # (B, H)
    in_columns = (columns >= left) & (columns < left + side_w)  # (B, W)
    return images * ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])


POLICIES: dict[str, Callable[[Tensor], Tensor]] = {"color": color, "translation": translation, "cutout": cutout}


def augment(images: Tensor, policies: Iterable[str]) -> Tensor:
    """Apply the named policies of POLICIES in order; none leaves the images as they are."""
    for name in policies:
        images = POLICIES[name](images)
    return images
