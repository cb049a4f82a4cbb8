"""Training: golden losses, exact resume, what a run writes, and what stops it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruption import assert_stops_change_nothing
from PIL import Image
from safetensors.torch import load_file

import gan
from gan import diagnostics, sampling, training
from gan.discriminator import Discriminator
from gan.generator import Generator
from gan.losses import LOSSES
from gan.presets import PRESETS, GanConfig, check_config, free_fields
from gan.sampling import draw_latents, finish_generator
from gan.training import fade, passes, train

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden" / "gan_losses.json"
TINY = GanConfig(
    images=80,
    batch_size=4,
    discriminator_steps=2,
    generator_width=2,
    discriminator_width=4,
    attention_spectral_norm=False,
    ema_decay=0.9,
    decay_from=0.5,
    augment=("color", "translation", "cutout"),
    features="none",
    evaluate_every=40,
    checkpoint_every=24,
    log_every=1,
    device="cpu",
)


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of 2 x 12 images: a bright disc, red or blue, on noise."""
    path = tmp_path_factory.mktemp("blobs") / "blobs.zip"
    random = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(24):
            pixels = random.integers(0, 80, (32, 32, 3), dtype=np.uint8)
            center = random.integers(8, 24, 2)
            disc = (y - center[0]) ** 2 + (x - center[1]) ** 2 < 36
            pixels[disc, 2 * (number % 2)] = 250
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            archive.writestr(f"{('red', 'blue')[number % 2]}/{number}.png", buffer.getvalue())
    return path


@pytest.fixture(autouse=True)
def fewer_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch-norm statistics of a few samples: the tests compare runs, not images."""
    monkeypatch.setattr(sampling, "STATISTICS_BATCHES", 2)


def tiny(blobs: Path, out: Path, **changes: Any) -> GanConfig:
    return dataclasses.replace(TINY, data=str(blobs), out=out, **changes)


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(folder / "weights.safetensors") for folder in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("attention", ["external", "sagan"])
def test_ten_golden_steps(attention: str, blobs: Path, tmp_path: Path) -> None:
    """Losses of the first 10 steps are those of the day they were recorded.

    Regenerate with: EAGAN_EAT_REGENERATE=1 python -m pytest tests/test_gan_training.py -k golden
    """
    config = tiny(blobs, tmp_path / "run", attention=attention, discriminator_width=8, generator_width=4)
    train(config)
    found = [line for line in lines(config.out) if "generator_loss" in line]
    losses = [[line["discriminator_loss"], line["generator_loss"]] for line in found]
    assert len(losses) == 10
    if os.environ.get("EAGAN_EAT_REGENERATE"):
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps({**known, attention: losses}, indent=1) + "\n")
    np.testing.assert_allclose(losses, json.loads(GOLDEN.read_text())[attention], rtol=2e-3, atol=2e-3)


# Everything that a recipe may carry from one step to the next.
FULL = {
    "loss": "relativistic",
    "generator_spectral_norm": False,
    "r1_gamma": 0.1,
    "r2_gamma": 0.2,
    "penalty_every": 3,
    "penalty_final": 0.1,
    "lecam": 0.3,
    "consistency": 1.0,
    "augment": ("flip", "color", "translation", "cutout", "geometry"),
    "augment_probability": 0.5,
    "augment_target": 0.6,
    "augment_images": 100,
    "generator_multiples": (3, 2, 2, 1),
    "discriminator_multiples": (1, 2, 3, 3),
    "discriminator_grid": 4,
    "batch_size": 8,
    "discriminator_steps": 1,
    "reuse_generated": True,
    "group_size": 4,
    "warm_up": 128,
    "precision": "bf16",
}


@pytest.mark.parametrize("changes", [{"precision": "fp32"}, {"precision": "bf16"}, FULL], ids=["fp32", "bf16", "full"])
def test_an_interrupted_run_ends_in_the_same_bits(
    changes: dict[str, Any], blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny(blobs, tmp_path / "whole", **changes)
    train(whole)

    steps = 0
    average = training.update_average

    def interrupting(*arguments: Any) -> None:
        nonlocal steps
        steps += 1
        average(*arguments)
        if steps in (3, 7):
            signal.raise_signal(signal.SIGINT)

    pieces = tiny(blobs, tmp_path / "pieces", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(training, "update_average", interrupting)
        for shown in ("24", "56"):
            with pytest.raises(KeyboardInterrupt, match=f"interrupted at {shown} of 80 images; saved"):
                train(pieces)
        train(pieces)
    assert steps == 10
    assert same_weights(whole.out, pieces.out)
    values = [{name: value for name, value in line.items() if name != "seconds"} for line in lines(pieces.out)]
    assert values == [{name: value for name, value in line.items() if name != "seconds"} for line in lines(whole.out)]


def test_a_run_writes_all_it_promises(blobs: Path, tmp_path: Path) -> None:
    config = tiny(blobs, tmp_path / "run", features="lite0", evaluation_samples=6, evaluation_references=10)
    train(config)
    names = {path.name for path in config.out.iterdir()}
    assert {"config.json", "checkpoint.pt", "metrics.jsonl", "weights.safetensors", "record.json", "samples"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert sorted(path.name for path in (config.out / "samples").iterdir()) == ["0000000040.png", "0000000080.png"]
    record = json.loads((config.out / "record.json").read_text())
    assert set(record["metrics"]) == {"fd_lite0_6_train10", "kd_lite0_6_train10", "variety_lite0_6_train6"}
    points = record["curves"]["fd_lite0_6_train10"]
    assert [shown for shown, _ in points] == [40, 80]
    assert record["metrics"]["fd_lite0_6_train10"] == points[-1][1] > 0
    assert record["data"]["name"] == "blobs.zip" and record["data"]["images"] == 24 and record["seeds"] == [0]
    generator = gan.load_generator(config.out)
    assert generator.class_names == ["blue", "red"]
    assert record["parameters"]["generator"] == sum(p.numel() for p in generator.parameters())
    assert 0 < record["multiply_adds"]["discriminator"] < 100e6
    # A finished run that is started again only writes its record.
    checkpoint = (config.out / "checkpoint.pt").stat().st_mtime_ns
    train(config)
    assert (config.out / "checkpoint.pt").stat().st_mtime_ns == checkpoint


def test_the_raw_generator_is_judged_beside_its_average_and_changes_nothing(blobs: Path, tmp_path: Path) -> None:
    for name, compare in (("with", True), ("without", False)):
        changes = {"features": "lite0", "evaluation_samples": 6, "evaluation_references": 10, "compare_raw": compare}
        train(tiny(blobs, tmp_path / name, images=48, **changes))
    assert same_weights(tmp_path / "with", tmp_path / "without")
    line = next(line for line in lines(tmp_path / "with") if "raw_fd_lite0_6_train10" in line)
    assert line["raw_fd_lite0_6_train10"] != line["fd_lite0_6_train10"]
    for name in ("with", "without"):
        state = torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["generator"]
        assert state["norm.running_mean"].abs().sum() > 0


def test_spectra_of_both_networks_are_logged_and_written(blobs: Path, tmp_path: Path) -> None:
    train(tiny(blobs, tmp_path / "run", images=16, discriminator_spectral_norm=False))
    found = json.loads((tmp_path / "run" / "spectra.json").read_text())
    assert found["shown"] == 16 and found["discriminator"]["blocks.0.conv1.weight"] > 0
    line = next(line for line in lines(tmp_path / "run") if "discriminator_largest_singular_value" in line)
    assert line["discriminator_largest_singular_value"] == pytest.approx(max(found["discriminator"].values()))


@pytest.mark.parametrize("then", ["warn", "stop"])
def test_a_discriminator_that_has_won_is_told_or_ends_the_run(
    then: Any, blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(diagnostics, "SURE", 0.0)
    monkeypatch.setattr(diagnostics, "PATIENCE", 3)
    config = tiny(blobs, tmp_path / "run", images=64, on_collapse=then)
    if then == "stop":
        with pytest.raises(ValueError, match="rightly at step 3, .*--on-collapse stop"):
            train(config)
    else:
        train(config)
        assert capsys.readouterr().err.count("warning: the discriminator judges") == 1


def test_adaptive_augmentation_is_logged(blobs: Path, tmp_path: Path) -> None:
    train(tiny(blobs, tmp_path / "run", augment_probability=0.5, augment_target=1.0, augment_images=40))
    found = [line["augment_probability"] for line in lines(tmp_path / "run") if "augment_probability" in line]
    assert len(found) == 10 and found == sorted(found, reverse=True) and found[-1] == 0  # never sure of all: weaker


def test_the_saved_generator_is_the_average(blobs: Path, tmp_path: Path) -> None:
    """Saved weights draw what the checkpoint's average draws once it is finished."""
    config = tiny(blobs, tmp_path / "run")
    train(config)
    saved = gan.load_generator(config.out)
    state = torch.load(config.out / "checkpoint.pt", weights_only=True)
    model = saved.header["model"]
    average = Generator(**model)
    average.load_state_dict(state["average"])
    finished = finish_generator(average, model, TINY.seed)
    z, labels = draw_latents(range(8), 128), torch.arange(8) % 2
    with torch.no_grad():
        assert torch.equal(saved(z, labels), finished(z, labels))
    generator = Generator(**model)
    generator.load_state_dict(state["generator"])
    assert not torch.equal(generator.conv.weight, average.conv.weight)


def test_another_seed_gives_other_weights_and_the_same_seed_the_same(blobs: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny(blobs, tmp_path / name, images=16, seed=seed))
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


def test_the_average_with_decay_zero_is_the_last_generator(blobs: Path, tmp_path: Path) -> None:
    train(tiny(blobs, tmp_path / "run", images=16, ema_decay=0.0))
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    for name, value in state["generator"].items():
        assert torch.equal(value, state["average"][name])


def test_without_classes_all_images_are_one(blobs: Path, tmp_path: Path) -> None:
    train(tiny(blobs, tmp_path / "run", images=16, conditional=False))
    generator = gan.load_generator(tmp_path / "run")
    assert generator.class_names == ["all"] and generator.num_classes == 1


def test_gradient_penalties_alone_change_the_discriminator(blobs: Path, tmp_path: Path) -> None:
    weights = []
    for name, gamma in (("with", 5.0), ("without", 0.0)):
        config = tiny(blobs, tmp_path / name, images=32, r1_gamma=gamma, discriminator_spectral_norm=False)
        train(config)
        state = torch.load(config.out / "checkpoint.pt", weights_only=True)["discriminator"]
        weights.append(state["blocks.0.conv1.weight"])
    assert not torch.equal(*weights)


def test_a_changed_configuration_or_data_is_refused(blobs: Path, tmp_path: Path) -> None:
    config = tiny(blobs, tmp_path / "run", images=16, decay_from=1.0)
    train(config)
    with pytest.raises(ValueError, match="batch_size was 4, is 8"):
        train(dataclasses.replace(config, batch_size=8))
    longer = dataclasses.replace(config, images=24, checkpoint_every=1000)
    train(longer)  # a longer run goes on where rates do not depend on its length
    assert lines(config.out)[-1]["shown"] == 24
    with zipfile.ZipFile(tmp_path / "fewer.zip", "w") as fewer, zipfile.ZipFile(blobs) as all_images:
        for name in all_images.namelist()[:20]:
            fewer.writestr(name, all_images.read(name))
    with pytest.raises(ValueError, match="not the images that the run"):
        train(dataclasses.replace(longer, images=32, data=str(tmp_path / "fewer.zip")))
    train(dataclasses.replace(config, batch_size=8, fresh=True))
    assert lines(config.out)[-1]["shown"] == 16


def test_length_may_change_only_if_the_rates_do_not_follow_it() -> None:
    assert "images" in free_fields(GanConfig(decay_from=1.0))
    assert "images" not in free_fields(GanConfig(decay_from=0.5))
    fields = {field.name for field in dataclasses.fields(GanConfig)}
    assert set(free_fields(GanConfig())) <= fields


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(blobs, tmp_path / "run", log_every=3)
    (discriminator, generator), calls = LOSSES["hinge"], 0

    def diverging(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return generator(fake, real) * (float("nan") if calls >= 5 else 1)

    monkeypatch.setitem(LOSSES, "hinge", (discriminator, diverging))
    with pytest.raises(ValueError, match="not a finite number at step 5 .*lower --generator-lr") as error:
        train(config)
    assert "\n" not in str(error.value)
    assert torch.load(config.out / "checkpoint.pt", weights_only=True)["shown"] == 24  # the last good one


def test_rates_fade_and_intervals_are_met() -> None:
    assert [fade(part, 0.5, 0.0) for part in (0, 0.5, 0.75, 1)] == [1, 1, 0.5, 0]
    assert [fade(part, 0.5, 0.2) for part in (0, 0.5, 0.75, 1)] == pytest.approx([1, 1, 0.6, 0.2])
    assert fade(1.0, 1.0, 0.0) == 1
    assert [passes(shown - 8, shown, 20) for shown in (8, 16, 24, 32, 40)] == [False, False, True, False, True]


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_constructs(name: str) -> None:
    config = PRESETS[name]
    check_config(config)
    models = training.describe_models(config, num_classes=10)
    with torch.device("meta"):  # spectral norm is slow there
        generator = Generator(**{**models["generator"], "spectral_norm": False})
        Discriminator(**{**models["discriminator"], "spectral_norm": False})
    assert generator.image_size == config.image_size
    assert config.attention == ("sagan" if name.startswith("sagan") else "external")
    assert config.images % (config.batch_size * config.discriminator_steps) == 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": 0}, "--images 0: expected more than 0"),
        ({"batch_size": 1}, "--batch-size 1: expected more than 1"),
        ({"generator_lr": -1.0}, "--generator-lr -1.0"),
        ({"discriminator_lr": float("nan")}, "--discriminator-lr nan: expected more than 0"),
        ({"r1_gamma": -1.0}, "--r1-gamma -1.0: expected 0 or more"),
        ({"lecam": float("nan")}, "--lecam nan: expected 0 or more"),
        ({"penalty_every": 0}, "--penalty-every 0: expected more than 0"),
        ({"generator_multiples": (4, 4, 4)}, "--generator-multiples 4 4 4: expected 4 positive numbers at 32 pixels"),
        ({"discriminator_grid": 5}, "--discriminator-grid 5: expected one of 16, 8, 4, 2 at 32 pixels"),
        ({"reuse_generated": True, "discriminator_steps": 2}, "--reuse-generated: expected --discriminator-steps 1"),
        ({"group_size": 1}, "--group-size 1: expected 0"),
        ({"group_size": 3, "batch_size": 8}, "--group-size 3: expected a divisor of --batch-size 8"),
        ({"warm_up": -1}, "--warm-up -1: expected more than -1"),
        ({"warm_up": 64, "conditional": False}, "--warm-up: there are no classes to learn with --no-conditional"),
        ({"augment_target": 1.5}, "--augment-target 1.5: expected a number from 0 to 1"),
        ({"augment_target": 0.6, "augment": ()}, "--augment-target: nothing to adapt without --augment"),
        ({"ema_decay": 1.5}, "--ema-decay 1.5: expected a number from 0 to 1"),
        ({"betas": (0.5, 1.0)}, "--betas 0.5 1.0"),
        ({"image_size": 48}, "--image-size 48: expected one of 32, 64, 128"),
        ({"evaluation_samples": 1}, "--evaluation-samples 1"),
        ({"evaluation_references": 1}, "--evaluation-references 1"),
        ({"attention_options": ("memory_size",)}, "--attention-options memory_size: expected name=value"),
        ({"attention": "extenal"}, "--attention extenal: unknown attention"),
        ({"attention_options": ("slots=3",)}, "--attention external: .*no option 'slots'"),
        ({"features": "inception", "inception_weights": Path("no.pth")}, "--inception-weights no.pth: no such file"),
    ],
)
def test_impossible_values_are_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, blobs: Path, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, OSError), match=message) as error:
        train(tiny(blobs, tmp_path / "run", **changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_signals_and_resume_by_the_script_end_in_the_same_bits(blobs: Path, tmp_path: Path) -> None:
    flags = "--images 960 --batch-size 8 --generator-width 2 --discriminator-width 2 --features none --log-every 1"
    more = "--warm-up 64 --evaluate-every 480 --checkpoint-every 80"
    arguments = ["eagan-shapes-small", "--data", str(blobs), *flags.split(), *more.split()]
    assert_stops_change_nothing("train_gan.py", arguments, (200, 520, 720), tmp_path)
    shown = [line["shown"] for line in lines(tmp_path / "pieces") if "generator_loss" in line]
    assert shown == list(range(8, 968, 8))
