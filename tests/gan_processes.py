"""What test_gan_processes.py lets torchrun start: checks by two gloo processes, and trainings in float64."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gan import sampling, training
from gan.judging.features import FeatureNetwork
from gan.presets import GanConfig
from gan.training import train
from shared_attn.runtime.synchronised_norms import synchronise_norms


def load_toy_features(name: str, *_others: object) -> FeatureNetwork | None:
    """Two sums of pixels, or nothing for "none"."""
    weight = torch.linspace(-1, 1, 3 * 32 * 32 * 2, dtype=torch.float64).sin().view(-1, 2) / 100

    def extract(images: Tensor) -> tuple[Tensor, None]:
        return images.double().flatten(1) @ weight, None

    return None if name == "none" else FeatureNetwork("lite0", "toy", 2, torch.device("cpu"), extract)


def train_exactly(data: Path, folder: Path, runs: dict[str, dict]) -> None:
    """One run a recipe, in float64: what rounding leaves then is far below what a wrong step would do."""
    torch.set_default_dtype(torch.float64)
    sampling.STATISTICS_BATCHES = 2
    training.load_features = load_toy_features
    for name, changes in runs.items():
        train(GanConfig(**{**changes, "data": str(data), "out": folder / name}))


def norm_gradients(norm: nn.Module, x: Tensor, share: slice) -> dict[str, Tensor]:
    """Output, gradients and second derivatives of a sum over the whole batch, of which `x` is a share."""
    x = x.requires_grad_(True)
    y = norm(x)
    target = torch.linspace(-1, 1, 8 * y[0].numel(), dtype=x.dtype).view(8, *y.shape[1:])[share]
    (slope,) = torch.autograd.grad((y * target).sin().sum(), x, create_graph=True)
    parameters = list(norm.parameters())
    (y.square() * target).sum().backward(retain_graph=True)
    first = [x.grad.clone(), *(p.grad.clone() for p in parameters)]
    slope.square().sum().backward()
    second = [x.grad - first[0], *(p.grad - g for p, g in zip(parameters, first[1:], strict=True))]
    names = ["y", "x", "weight", "bias", "xx", "xweight", "xbias", "mean", "var"]
    return dict(zip(names, [y.detach(), *first, *second, norm.running_mean, norm.running_var], strict=True))


def check_norms(out: Path) -> None:
    """Synchronised batch norm on two shares is batch norm on the whole, twice differentiated; shares must be even."""
    rank = dist.get_rank()
    share = slice(4 * rank, 4 * rank + 4)
    for norm, shape in ((nn.BatchNorm2d(3).double(), (8, 3, 5, 5)), (nn.BatchNorm1d(3).double(), (8, 3))):
        nn.init.normal_(norm.weight)
        x = (2 * torch.randn(shape) + 30).double()
        expected = norm_gradients(norm, x.clone(), slice(None))
        for parameter in norm.parameters():
            parameter.grad = None
        norm.reset_running_stats()
        network = nn.Sequential(norm)
        synchronise_norms(network)
        assert type(network[0]) is not type(norm)
        found = norm_gradients(network[0], x[share].clone(), share)
        for name, value in found.items():
            if name in ("y", "x", "xx"):
                torch.testing.assert_close(value, expected[name][share], rtol=1e-9, atol=1e-9)
                continue
            if name not in ("mean", "var"):
                dist.all_reduce(value)  # a parameter's gradient is the sum of those of the processes
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)
    rounded = nn.BatchNorm2d(3)
    whole = (torch.randn(8, 3, 4, 4) + 5).bfloat16()
    expected_y = rounded(whole)[share]
    network = nn.Sequential(rounded)
    synchronise_norms(network)
    y = network(whole[share])
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected_y, rtol=1e-2, atol=1e-2)
    uneven = nn.Sequential(nn.BatchNorm2d(3))
    synchronise_norms(uneven)
    try:
        uneven(torch.zeros(3 + rank, 3, 4, 4))
    except ValueError as error:
        assert "shares of [3, 4] rows, expected equal ones" in str(error)  # noqa: PT017
        (out / f"norms{rank}").touch()


if __name__ == "__main__":
    folder, data, runs = sys.argv[1:]
    train_exactly(Path(data), Path(folder), json.loads(runs))
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    check_norms(Path(folder))
