"""One evaluation by all processes of a training: each extracts the features of its part of the samples.

Batches go round: of the k-th round, process r has batch k count + r. Whole batches, so that every image meets the same
arithmetic as in a single process, and the features are the same to the bit.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from gan.judging.features import FeatureNetwork
from gan.sampling import BATCH
from shared_attn.runtime.processes import Share, gather_rows


def own_samples(count: int, share: Share) -> Tensor:
    """Numbers of the samples that this process draws, out of `count`; each process has as many batches.

    Where none is left in the last round a process draws the last batch again, and its features are dropped.
    """
    batches = torch.arange(count).split(BATCH)
    rounds = math.ceil(len(batches) / share.count)
    mine = range(share.rank, rounds * share.count, share.count)
    return torch.cat([batches[min(number, len(batches) - 1)] for number in mine])


def share_extraction(network: FeatureNetwork, count: int, share: Share) -> FeatureNetwork:
    """A network that takes this process's next batch and returns the features of the whole round, in order.

    Args:
        network: of this process.
        count: samples of the evaluation, for which the result is good once.
        share: of the evaluation; every process extracts in step.
    """
    if share.count == 1:
        return network
    left = count

    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        nonlocal left
        rows, own = min(left, share.count * BATCH), network.extract(images)
        left -= rows
        features, logits = (None if part is None else _gather(part, rows, share) for part in own)
        assert features is not None
        return features, logits

    return replace(network, extract=extract)


def _gather(part: Tensor, rows: int, share: Share) -> Tensor:
    every = part.new_zeros(share.count * BATCH, part.shape[1])
    every[share.rank * BATCH :][: len(part)] = part
    return gather_rows(every, share)[:rows]
