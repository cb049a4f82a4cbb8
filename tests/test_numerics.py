"""What --debug-numerics names, and that --deterministic trainings repeat themselves to the bit or say why not."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_images
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gan import sampling
from gan.presets import GanConfig
from gan.presets import check_config as check_gan
from gan.presets import free_fields as gan_free_fields
from gan.training import train as train_gan
from pointcloud.presets import FREE_FIELDS, Config
from pointcloud.presets import check_config as check_points
from pointcloud.training import train as train_points
from shared_attn import create_attention, list_attentions
from shared_attn.runtime.determinism import WORKSPACE, deterministic, repeat_bits
from shared_attn.runtime.numerics import NumericsWatch

GAN = GanConfig(
    images=32,
    batch_size=8,
    discriminator_steps=1,
    generator_width=2,
    discriminator_width=4,
    features="none",
    evaluate_every=32,
    checkpoint_every=32,
    r1_gamma=0.1,
    device="cpu",
)
POINTS = Config(
    epochs=2,
    batch_size=8,
    num_points=24,
    dataset="",
    embed_channels=(8, 8),
    neighbour_channels=(12, 16),
    num_centres=(16, 8),
    num_neighbours=4,
    stem_layers=1,
    num_layers=2,
    fuse_channels=24,
    head_channels=(16, 12),
    norm_clouds=0,
    device="cpu",
)


class Breaking(torch.autograd.Function):
    """The identity, whose gradient has an infinite value."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        broken = grads[0].clone()
        broken.view(-1)[-1] = -torch.inf
        return broken


class Faulty(nn.Linear):
    """A linear map with one thing wrong from the second call on."""

    def __init__(self, fault: str) -> None:
        super().__init__(4, 4)
        self.fault, self.calls = fault, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            if self.fault == "output":
                return super().forward(x).sqrt()
            if self.fault == "gradient":
                return super().forward(Breaking.apply(x))
            if self.fault == "weight gradient":
                return nn.functional.linear(x, Breaking.apply(self.weight), self.bias)
        return super().forward(x)


class Network(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.before = nn.Linear(4, 4)
        self.parts = nn.Sequential(nn.Linear(4, 4), Faulty(fault), nn.Linear(4, 4))
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        h = torch.relu_(self.before(x))  # in place, on what a module gave out
        if self.fault == "input" and self.count == 2:
            h = h / 0 * 0
        return self.parts(h)


def train_steps(network: Network, *, rate: float = 0.1, enabled: bool = True) -> None:
    optimizer = torch.optim.Adam(network.parameters(), rate)
    watch = NumericsWatch({"net": network}, {"net": optimizer}, unit="clouds", enabled=enabled)
    for step in range(3):
        watch.step, watch.shown = step + 1, 10 * step
        optimizer.zero_grad()
        (network(torch.ones(2, 4)) + 1).square().mean().backward()
        if network.fault == "update" and step == 1:
            optimizer.param_groups[0]["lr"] = float("inf")
        if network.fault == "state" and step == 1:
            optimizer.state[network.parts[2].bias]["exp_avg_sq"].fill_(torch.nan)
        optimizer.step()
        if network.fault == "weight" and step == 0:
            with torch.no_grad():
                network.parts[2].weight[1, 3] = torch.nan


FAULTS = {
    "output": r"output of net\.parts\.1 \(Faulty\): \d of 8 values are not finite \(\d NaN, 0 infinite\)",
    "input": r"input of net\.parts \(Sequential\): 8 of 8 values are not finite \(8 NaN",
    "gradient": r"gradient of the input of net\.parts\.1 \(Faulty\) \(the output of net\.parts\.0 \(Linear\)\): 1 of 8 "
    r"values are not finite \(0 NaN, 1 infinite\), the first at \[1, 3\] of \[2, 4\]",
    "weight gradient": r"gradient of weight net\.parts\.1\.weight: 1 of 16 .*the first at \[3, 3\] of \[4, 4\]",
    "weight": r"weight net\.parts\.2\.weight: 1 of 16 values .*at \[1, 3\]",
    "update": r"weight net\.before\.weight after the update: ",
    "state": r"optimizer's exp_avg_sq of weight net\.parts\.2\.bias: 4 of 4",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_first_bad_number_is_named(fault: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^numbers went wrong at step 2 \(after 10 clouds\): {FAULTS[fault]}"
    ) as error:
        train_steps(Network(fault))
    assert "\n" not in str(error.value)


def test_without_the_flag_nothing_is_hooked() -> None:
    network = Network("output")
    train_steps(network, enabled=False)
    assert not any(
        hooks
        for module in network.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    )
    assert not any(parameter._post_accumulate_grad_hooks for parameter in network.parameters())


@pytest.mark.parametrize("name", list_attentions())
def test_a_healthy_attention_is_left_alone(name: str) -> None:
    """Whatever an attention masks with stays inside it, and to be watched changes no bit of its gradients."""
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        network = create_attention(name, 32)
        optimizer = torch.optim.Adam(network.parameters()) if list(network.parameters()) else None
        optimizers = {"net": optimizer} if optimizer else {}
        NumericsWatch({"net": network}, optimizers, unit="steps", enabled=enabled)
        x = torch.randn(2, 64, 32, requires_grad=True)
        network(x, grid=(8, 8)).square().sum().backward()
        found.append([x.grad, *(parameter.grad for parameter in network.parameters())])
    for one, other in zip(*found, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pictures = {f"{'ab'[seed % 2]}/{seed}.png": small_images.png(seed) for seed in range(8)}
    return small_images.write(tmp_path_factory.mktemp("images") / "noise.zip", pictures)


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long and flat clouds of noise."""
    folder, random = tmp_path_factory.mktemp("clouds"), np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        label = np.arange(count) % 2
        points = random.uniform(-1, 1, (count, 32, 3)) * np.where(label[:, None, None], (1, 0.1, 0.1), (0.7, 0.7, 0.1))
        np.savez(
            folder / f"noise_32_{split}.npz",
            points=(points * 4095).astype(np.int16),
            label=label.astype(np.uint8),
            class_names=np.array(["long", "flat"]),
            scale=np.float32(1 / 4096),
        )
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "weights.safetensors")


def trainings() -> list[Any]:
    return [pytest.param(train_gan, GAN, id="gan"), pytest.param(train_points, POINTS, id="points")]


@pytest.mark.parametrize(("train", "config"), trainings())
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_deterministic_and_watched_runs_are_equal_to_the_bit(
    train: Any,
    config: Any,
    precision: str,
    images: Path,
    clouds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two deterministic runs, one of them watched; the process is then as it was."""
    monkeypatch.setattr(sampling, "STATISTICS_BATCHES", 2)
    config = dataclasses.replace(config, data=str(images if config is GAN else clouds))
    runs = []
    for name, watched in (("a", False), ("b", True)):
        run = dataclasses.replace(
            config, out=tmp_path / name, deterministic=True, debug_numerics=watched, precision=precision
        )
        train(run)
        runs.append(weights(run.out))
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not torch.are_deterministic_algorithms_enabled() and WORKSPACE not in os.environ


def test_a_gan_names_the_module(images: Path, tmp_path: Path) -> None:
    """A rate far too high: after one step weights are so large that a product of them is infinite."""
    changes = {"generator_lr": 1e30, "generator_spectral_norm": False, "debug_numerics": True}
    config = dataclasses.replace(GAN, data=str(images), out=tmp_path / "run", **changes)
    with pytest.raises(ValueError, match=r"numbers went wrong at step 2 \(after 8 images\): .*generator\.") as error:
        train_gan(config)
    assert "\n" not in str(error.value)


def test_the_script_names_the_module_and_ends_with_status_two(clouds: Path, tmp_path: Path, run_script: Any) -> None:
    sizes = ["--num-points", "24", "--num-centres", "16", "8", "--num-neighbours", "4", "--batch-size", "4"]
    rates = ["--learning-rate", "1e30", "--gradient-clip", "0", "--warmup-epochs", "0", "--precision", "fp32"]
    data = ["--data", clouds, "--dataset", "noise", "--validation", "0", "--out", tmp_path / "run", "--device", "cpu"]
    done = run_script("train_pointcloud.py", "eat-shapes-small", *data, *sizes, *rates, "--debug-numerics")
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    assert re.match(r"error: numbers went wrong at step \d+ \(after [\d,]+ clouds\): .*network\.", lines[0]), lines


def test_a_resumed_run_may_be_watched() -> None:
    assert {"deterministic", "debug_numerics"} <= set(FREE_FIELDS) & set(gan_free_fields(GAN))


@pytest.mark.parametrize(
    ("check", "config"),
    [
        (check_gan, dataclasses.replace(GAN, debug_numerics=True, compile=True)),
        (check_gan, dataclasses.replace(GAN, debug_numerics=True, cuda_graphs=True)),
        (check_points, dataclasses.replace(POINTS, debug_numerics=True, compile=True)),
    ],
)
def test_what_runs_as_one_graph_cannot_be_watched(check: Any, config: Any) -> None:
    with pytest.raises(ValueError, match="--debug-numerics: watches one module after the other; expected no --compile"):
        check(config)


def test_an_operator_without_a_deterministic_form_is_named() -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError(
            "grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
        )

    message = "--deterministic: grid_sampler_2d_backward_cuda has no deterministic implementation on this device"
    with pytest.raises(ValueError, match=message), deterministic():
        refuse()
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="something else"), deterministic():
        raise RuntimeError("something else")

    @repeat_bits
    def ask(_config: Config) -> bool:
        return torch.are_deterministic_algorithms_enabled() and os.environ[WORKSPACE] == ":4096:8"

    assert ask(dataclasses.replace(POINTS, deterministic=True)) and not ask(POINTS)


def test_a_workspace_that_promises_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with (
        pytest.raises(ValueError, match=r"--deterministic: CUBLAS_WORKSPACE_CONFIG is ':0:0'; expected :4096:8"),
        deterministic(),
    ):
        pass
