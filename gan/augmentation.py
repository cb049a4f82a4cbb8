"""Differentiable augmentation: the discriminator sees only augmented images, real and generated alike.

Legend: B batch, H W grid. Each function takes and returns (B, 3, H, W), draws its parameters once an image from
torch's global generator (seeded each step), and lets gradients through to the images. Where several processes share a
batch, `share` says which of its images these are.

`color`, `translation` and `cutout` are DiffAugment's (arXiv 2006.10738); `geometry` is the affine part of ADA's
pipeline (2006.06676, appendix B). Any of them may be applied to a part of the images only, and that part may follow how
well the discriminator knows the training images (ADA, section 3; `gan.adaptation`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared_attn.runtime.processes import WHOLE, Share


def _uniform(images: Tensor, share: Share) -> Tensor:
    return share.draw(torch.rand, len(images), 1, 1, 1, dtype=images.dtype, device=images.device)


def color(images: Tensor, *, share: Share = WHOLE) -> Tensor:
    """Brightness shifted by up to 0.5, saturation times 0 to 2, contrast times 0.5 to 1.5."""
    images = images + (_uniform(images, share) - 0.5)
    grey = images.mean(dim=1, keepdim=True)  # (B, 1, H, W)
    images = torch.lerp(grey, images, 2 * _uniform(images, share))
    level = images.mean(dim=(1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    return torch.lerp(level, images, 0.5 + _uniform(images, share))


def translation(images: Tensor, ratio: float = 0.125, *, share: Share = WHOLE) -> Tensor:
    """Shift by up to an eighth of the size each way; zeros come in from outside."""
    B, _, H, W = images.shape
    device = images.device
    reach_h, reach_w = round(H * ratio), round(W * ratio)
    shift_h = share.draw(partial(torch.randint, -reach_h, reach_h + 1), B, 1, device=device)
    shift_w = share.draw(partial(torch.randint, -reach_w, reach_w + 1), B, 1, device=device)
    rows = torch.arange(H, device=device) + shift_h  # (B, H)
    columns = torch.arange(W, device=device) + shift_w  # (B, W)
    inside = ((rows >= 0) & (rows < H))[:, :, None] & ((columns >= 0) & (columns < W))[:, None]  # (B, H, W)
    batch = torch.arange(B, device=device)[:, None, None]
    # Advanced indices around the channels' slice: (B, H, W, 3), which is the channels_last layout of the result.
    moved = images[batch, :, rows.clamp(0, H - 1)[:, :, None], columns.clamp(0, W - 1)[:, None]]
    return (moved * inside[..., None]).permute(0, 3, 1, 2)


def cutout(images: Tensor, ratio: float = 0.5, *, share: Share = WHOLE) -> Tensor:
    """Set a square of half the size, centred anywhere in the image, to zero."""
    B, _, H, W = images.shape
    device = images.device
    side_h, side_w = round(H * ratio), round(W * ratio)
    top = share.draw(partial(torch.randint, 0, H + (1 - side_h % 2)), B, 1, device=device) - side_h // 2
    left = share.draw(partial(torch.randint, 0, W + (1 - side_w % 2)), B, 1, device=device) - side_w // 2
    rows, columns = torch.arange(H, device=device), torch.arange(W, device=device)
    in_rows = (rows >= top) & (rows < top + side_h)  # (B, H)
    in_columns = (columns >= left) & (columns < left + side_w)  # (B, W)
    return images * ~(in_rows[:, None, :, None] & in_columns[:, None, None, :])


def flip(images: Tensor, *, share: Share = WHOLE) -> Tensor:
    """Mirror half of the images."""
    return torch.where(_uniform(images, share) < 0.5, images.flip(3), images)


def geometry(images: Tensor, *, share: Share = WHOLE) -> Tensor:
    """Scale by a factor around 1 (log-normal, deviation 0.2 octaves), stretch likewise, and turn by any angle.

    Pixels are interpolated (bilinear); what comes in from outside is the mirrored image.
    """
    B = len(images)
    kind: dict[str, Any] = {"dtype": images.dtype, "device": images.device}
    octaves = share.draw(lambda shape: torch.randn(shape[::-1], **kind).T, B, 2)  # (B, 2)
    scale, stretch = torch.exp2(0.2 * octaves).unbind(dim=1)
    angle = (2 * share.draw(torch.rand, B, **kind) - 1) * math.pi
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = [
        torch.stack(row, dim=1) for row in ((cos / stretch, -sin / stretch, zero), (sin * stretch, cos * stretch, zero))
    ]
    inverse = torch.stack(rows, dim=1) / scale[:, None, None]  # (B, 2, 3), from the new image's places to the old one's
    grid = F.affine_grid(inverse, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


POLICIES: dict[str, Callable[..., Tensor]] = {
    "flip": flip,
    "color": color,
    "translation": translation,
    "cutout": cutout,
    "geometry": geometry,
}


def augment(
    images: Tensor, policies: Iterable[str], probability: Tensor | float = 1.0, *, share: Share = WHOLE
) -> Tensor:
    """Apply the named policies of POLICIES in order; none leaves the images as they are.

    Args:
        probability: of each policy for each image, a number or a scalar tensor; 1 applies all to all.
        share: which images of the batch of all processes these are.
    """
    for name in policies:
        changed = POLICIES[name](images, share=share)
        if isinstance(probability, Tensor) or probability < 1:
            changed = torch.where(_uniform(images, share) < probability, changed, images)
        images = changed
    return images
