"""The benchmark of training iterations: what is compared, the published form, and an original from a user's path."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gan.benchmark import DISCRIMINATOR_STEPS, IterationTiming, time_original, time_steps
from gan.discriminator import Discriminator
from gan.generator import Generator
from gan.losses import hinge_generator
from gan.original import load_original
from gan.published import create_published_twins
from shared_attn.runtime.result_tables import record_table
from shared_attn.step_timing import print_timings

# Not the original's code: networks of a few of its parameters, which ask for what they import.
RESNET = """
import torch
import utils.misc as misc
import utils.ops as ops

class Generator(torch.nn.Module):
    def __init__(self, z_dim, img_size, g_conv_dim, num_classes, MODULES, **_):
        super().__init__()
        self.linear0 = MODULES.g_linear(z_dim, g_conv_dim * 64)

    def forward(self, z, label):
        with misc.dummy_context_mgr():
            return self.linear0(z)

class Discriminator(torch.nn.Module):
    def __init__(self, img_size, d_conv_dim, num_classes, MODULES, **_):
        super().__init__()
        self.embedding = MODULES.d_embedding(num_classes, d_conv_dim * 2)

    def forward(self, x, label):
        return {"adv_output": self.embedding(label).sum(1)}
"""
OPS = """
from torch.nn import Conv2d, Embedding, Linear
from torch.nn.utils import spectral_norm

ConditionalBatchNorm2d = snconv2d = None

def snlinear(*args):
    return spectral_norm(Linear(*args))

def sn_embedding(*args):
    return spectral_norm(Embedding(*args))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, text in (("models/resnet.py", RESNET), ("utils/ops.py", OPS)):
        (tmp_path / "src" / name).parent.mkdir(parents=True)
        (tmp_path / "src" / name).write_text(text)
    return tmp_path


def pair(**options: Any) -> tuple[Generator, Discriminator]:
    shape = {"width": 8, "num_classes": 3, "attention": "sagan", **options}
    networks = Generator(**shape), Discriminator(**shape, inplace_relu=True)
    for network in networks:
        nn.init.constant_(network.attention.gate, 0.5)
    return networks


def test_original_runs_from_its_folder_with_our_weights_and_leaves_nothing_behind(checkout: Path) -> None:
    generator, discriminator = pair()
    before = set(sys.modules), list(sys.path)
    theirs = load_original(checkout, generator, discriminator)
    assert {name.partition(".")[0] for name in set(sys.modules) - before[0]}.isdisjoint({"models", "utils"})
    assert sys.path == before[1] and not list(checkout.rglob("__pycache__"))
    z, labels = torch.randn(2, 128), torch.tensor([0, 2])
    for network in (generator, discriminator, *theirs):
        network.eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs[0](z, labels), generator.linear(z))
        expected = discriminator.embedding(labels).sum(1)
        torch.testing.assert_close(theirs[1](z, labels)["adv_output"], expected)


def test_what_is_no_checkout_is_refused_in_one_line(checkout: Path, tmp_path: Path) -> None:
    networks = pair()
    with pytest.raises(FileNotFoundError, match="--studiogan .*: no src/models/resnet.py and no src/utils/ops.py, exp"):
        load_original(tmp_path / "nothing", *networks)
    resnet = checkout / "src" / "models" / "resnet.py"
    for text, said in (("import no_such_module", "no_such_module"), ("class Generator: pass", "takes no"), ("1 +", "")):
        resnet.write_text(text)
        with pytest.raises(ValueError, match=f"--studiogan .*not StudioGAN's networks as published .*{said}") as error:
            load_original(checkout, *networks)
        assert "\n" not in str(error.value)
    resnet.write_text(RESNET.replace("linear0", "other"))
    with pytest.raises(ValueError, match="not StudioGAN's networks .*other"):
        load_original(checkout, *networks)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("normalised", [True, False])
def test_published_form_is_the_same_function_with_the_same_gradients(size: int, normalised: bool) -> None:
    networks = pair(image_size=size, spectral_norm=normalised)
    networks = tuple(network.double() for network in networks)
    twins = create_published_twins(*networks)
    z, labels = torch.randn(4, 128).double(), torch.tensor([0, 1, 2, 1])

    def run(generator: nn.Module, discriminator: nn.Module) -> tuple[Tensor, Tensor]:
        images = generator(z, labels)
        logits = discriminator(images, labels)
        hinge_generator(logits).backward()
        return images, logits

    for mine, theirs in zip(run(*networks), run(*twins), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    for network, twin in zip(networks, twins, strict=True):
        for (name, mine), theirs in zip(network.named_parameters(), twin.parameters(), strict=True):
            scale = float(theirs.grad.abs().max())
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-10 + 1e-8 * scale, msg=name)
        for (name, mine), theirs in zip(network.named_buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12, msg=name)


def test_twins_share_no_weight_with_their_networks() -> None:
    networks = pair()
    before = [parameter.clone() for network in networks for parameter in network.parameters()]
    for twin in create_published_twins(*networks):
        for parameter in twin.parameters():
            nn.init.zeros_(parameter)
    after = [parameter for network in networks for parameter in network.parameters()]
    assert all(torch.equal(left, right) for left, right in zip(before, after, strict=True))
    assert copy.deepcopy(networks[0]).linear.weight.shape == (512, 128)


@pytest.mark.parametrize("precision", ["bf16"])
def test_timing_says_what_was_measured(precision: str) -> None:
    row = next(time_steps(batch_size=2, width=8, repeats=1, precision=precision))
    assert row.name == "sagan" and row.precision == precision
    assert row.items_per_second == pytest.approx(2 * DISCRIMINATOR_STEPS / row.seconds)
    assert row.speedup == pytest.approx(row.published_seconds / row.seconds)
    assert row.floor_fraction == pytest.approx(row.floor_seconds / row.seconds)
    assert row.floor_seconds * row.product_gflops * 1e9 == pytest.approx(2 * row.multiply_adds)
    assert row.multiply_adds < 0.75 * row.published_multiply_adds
    assert row.largest_difference < 1e-3
    assert row.original_seconds is row.original_peak_mb is None and "%" in str(row)
    assert f"sagan_{precision}_speedup" in row.metrics
    assert sum(row.shares.values()) == pytest.approx(1) and "spectral norm, forward" in row.shares
    assert len(IterationTiming.head()) == len(str(row).splitlines()[0])


def test_numbers_that_no_benchmark_can_have_are_refused() -> None:
    with pytest.raises(ValueError, match="--images 1: expected at least 2"):
        next(time_steps(batch_size=1))
    with pytest.raises(ValueError, match="--repeats 0: expected at least 1"):
        next(time_steps(repeats=0))
    with pytest.raises(ValueError, match="--images 1: expected at least 2"):
        time_original(Path("nowhere"), batch_size=1)


def test_each_line_is_printed_as_soon_as_it_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    def measure() -> Iterator[IterationTiming]:
        assert capsys.readouterr().out == ""
        yield from time_steps(batch_size=2, width=8, repeats=1)
        head, line, shares = capsys.readouterr().out.splitlines()
        assert head == IterationTiming.head() and line.startswith("sagan fp32") and "%" in shares

    assert [row.name for row in print_timings(measure())] == ["sagan"]


@pytest.mark.slow
def test_script_writes_a_record_whose_table_can_be_shown(tmp_path: Path, run_script: Callable[..., Any]) -> None:
    file = tmp_path / "times.json"
    flags = "--model gan --images 2 --width 8 --repeats 1"
    done = run_script("benchmark_training.py", *flags.split(), "--json", file)
    assert done.returncode == 0, done.stderr
    record = json.loads(file.read_text())
    assert [row["name"] for row in record["tables"]["training_iteration"]] == ["sagan"]
    assert "training_step" not in record["tables"]
    table = record_table(record)
    assert "s an iteration" in table and "sagan, fp32" in table
    done = run_script("benchmark_training.py", "--model", "gan", "--studiogan", tmp_path / "none")
    assert done.returncode == 2 and done.stderr.startswith("error: --studiogan") and done.stderr.count("\n") == 1
