"""An evaluation that several processes share is the one that a single process makes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gan.judging import sharing
from gan.judging.evaluation import KEPT, Measured, measure
from gan.judging.features import FeatureNetwork
from gan.judging.sharing import own_samples, share_extraction
from shared_attn.runtime.processes import Share

COUNT = 150  # 64 + 64 + 22
IMAGES = torch.randint(256, (COUNT, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
WEIGHT = torch.randn(192, 5, generator=torch.Generator().manual_seed(1))


def toy_network(*, logits: bool) -> FeatureNetwork:
    """Features are sums of pixels."""

    def extract(images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = images.float().flatten(1) / 255 @ WEIGHT
        return features, features if logits else None

    return FeatureNetwork("toy", "", 5, torch.device("cpu"), extract)


def measure_share(share: Share, network: FeatureNetwork) -> Measured:
    batches = IMAGES[own_samples(COUNT, share)].split(64)
    (measured,) = measure(batches, COUNT, [share_extraction(network, COUNT, share)], keep=KEPT)
    return measured


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("logits", [True, False])
def test_what_several_processes_measure_has_the_bits_of_one(
    processes: int, logits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = toy_network(logits=logits)
    (whole,) = measure(IMAGES.split(64), COUNT, [network], keep=KEPT)
    parts: list[list[Tensor]] = []
    for rank in range(processes):
        parts.append([])
        monkeypatch.setattr(sharing, "gather_rows", lambda rows, _: parts[-1].append(rows.clone()) or rows)
        measure_share(Share(rank, processes), network)
    sums = iter([torch.stack(rows).sum(dim=0) for rows in zip(*parts, strict=True)])  # every process has each round
    monkeypatch.setattr(sharing, "gather_rows", lambda *_: next(sums))
    shared = measure_share(Share(0, processes), network)
    assert shared.moments.count == COUNT and shared.score == whole.score and (shared.score is not None) == logits
    for name in ("mean", "covariance", "features"):
        assert torch.equal(getattr(shared.moments, name), getattr(whole.moments, name)), name


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_sample_is_drawn_and_every_process_has_as_many_batches(processes: int) -> None:
    mine = [own_samples(COUNT, Share(rank, processes)) for rank in range(processes)]
    assert torch.cat(mine).unique().tolist() == list(range(COUNT))
    assert len({len(numbers.split(64)) for numbers in mine}) == 1
