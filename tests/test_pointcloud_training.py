"""Training point networks: golden losses, exact resume, what a run writes, what stops it, and metrics."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interruption import assert_stops_change_nothing
from safetensors.torch import load_file
from torch import nn

import pointcloud
from pointcloud import training
from pointcloud.averaging import WeightAverage, estimate_norms
from pointcloud.clouds import CloudSet
from pointcloud.evaluation import evaluate_classifier, evaluate_segmenter, predict_logits
from pointcloud.losses import smoothed_cross_entropy
from pointcloud.models import create_model
from pointcloud.presets import FREE_FIELDS, PRESETS, Config, check_config
from pointcloud.training import learning_rate, train

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden" / "pointcloud_losses.json"
NETWORK: dict[str, Any] = {
    "embed_channels": (8, 8),
    "neighbour_channels": (12, 16),
    "num_centres": (16, 8),
    "num_neighbours": 4,
    "num_layers": 2,
    "fuse_channels": 24,
    "head_channels": (16, 12),
}
TINY = Config(
    epochs=4,
    batch_size=4,
    num_points=24,
    warmup_epochs=0.5,
    learning_rate=5e-3,
    validation=0.2,
    evaluate_epochs=2,
    average_epochs=0.5,
    norm_clouds=8,
    scale=(0.8, 1.25),
    shift=0.1,
    jitter=0.01,
    rotation=30.0,
    point_dropout=0.2,
    dataset="",
    device="cpu",
    **NETWORK,
)
PARTS = {"task": "segment", "neighbour_channels": (), "num_centres": (), "stem_layers": 0}


@pytest.fixture(scope="session")
def solids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 32 points: flat and tall boxes and balls, each with a lower and an upper part."""
    folder, random = tmp_path_factory.mktemp("solids"), np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 9)):
        points = random.uniform(-1, 1, (count, 32, 3))
        label = np.arange(count) % 3
        points[label == 0] *= (1, 1, 0.2)
        points[label == 1] *= (0.3, 0.3, 1)
        points[label == 2] /= np.linalg.norm(points[label == 2], axis=-1, keepdims=True)
        points -= points.mean(1, keepdims=True)
        points /= np.linalg.norm(points, axis=-1).max(1)[:, None, None]
        np.savez(
            folder / f"solids_32_{split}.npz",
            points=(points * 4095).astype(np.int16),
            label=label.astype(np.uint8),
            class_names=np.array(["flat", "tall", "ball"]),
            scale=np.float32(1 / 4096),
            part_label=((points[..., 2] > 0) + 2 * label[:, None]).astype(np.uint8),
            part_names=np.array([f"{name}/{part}" for name in ("flat", "tall", "ball") for part in ("low", "high")]),
            class_part_start=np.array([0, 2, 4], np.uint8),
            class_part_count=np.array([2, 2, 2], np.uint8),
        )
    return folder


def tiny(solids: Path, out: Path, **changes: Any) -> Config:
    return dataclasses.replace(TINY, data=str(solids), out=out, **changes)


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(folder / "weights.safetensors") for folder in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["external", "offset", "parts"])
def test_ten_golden_steps(name: str, solids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of the first 10 steps are those of the day they were recorded.

    With SGD and half the clouds a step: biases that a batch norm cancels have no gradient but rounding, of which Adam
    makes full steps, and norms over four clouds multiply it by ten a step, so thread counts would differ.
    Regenerate with: EAGAN_EAT_REGENERATE=1 python -m pytest tests/test_pointcloud_training.py -k golden
    """
    losses: list[float] = []

    def recording(*arguments: Any) -> torch.Tensor:
        loss = smoothed_cross_entropy(*arguments)
        losses.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(training, "smoothed_cross_entropy", recording)
    changes = {**PARTS, "validation": 0.0} if name == "parts" else {"attention": name, "validation": 0.0}
    rule = {"optimizer": "sgd", "learning_rate": 5e-3, "batch_size": 10, "epochs": 5}
    train(tiny(solids, tmp_path / "run", dropout=0.0, **rule, **changes))
    assert len(losses) == 10
    if os.environ.get("EAGAN_EAT_REGENERATE"):
        known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps({**known, name: losses}, indent=1) + "\n")
    np.testing.assert_allclose(losses, json.loads(GOLDEN.read_text())[name], rtol=1e-4, atol=1e-4)


MIXED = {"point_mix": "cutmix_k", "mix_probability": 1.0, "drop_path": 0.5}


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, MIXED, PARTS], ids=["classifier", "mixed", "segmenter"])
def test_an_interrupted_run_ends_in_the_same_bits(
    changes: dict[str, Any], solids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny(solids, tmp_path / "whole", **changes)
    expected = train(whole)

    steps = 0
    each_step = training.first_failure

    def interrupting(*arguments: Any, **keywords: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps in (3, 9):
            signal.raise_signal(signal.SIGINT)
        return each_step(*arguments, **keywords)

    pieces = tiny(solids, tmp_path / "pieces", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(training, "first_failure", interrupting)
        for shown in (12, 36):
            with pytest.raises(KeyboardInterrupt, match=f"interrupted at {shown} of 68 clouds; saved"):
                train(pieces)
        found = train(pieces)
    assert steps == 17
    assert same_weights(whole.out, pieces.out) and found == expected
    without_clock = [
        [{name: value for name, value in line.items() if name != "seconds"} for line in lines(run.out)]
        for run in (whole, pieces)
    ]
    assert without_clock[0] == without_clock[1]


def test_a_run_writes_all_it_promises(solids: Path, tmp_path: Path) -> None:
    config = tiny(solids, tmp_path / "run")
    metrics = train(config)
    names = {path.name for path in config.out.iterdir()}
    assert {
        "config.json",
        "checkpoint.pt",
        "metrics.jsonl",
        "weights.safetensors",
        "record.json",
        "confusion.png",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    found = lines(config.out)
    assert [line["shown"] for line in found if "validation_overall_accuracy" in line] == [36, 68]
    assert sum("test_overall_accuracy" in line for line in found) == 1  # the test split is read once
    record = json.loads((config.out / "record.json").read_text())
    assert record["metrics"] == metrics and set(record["data"]["files"]) == {
        "solids_32_train.npz",
        "solids_32_test.npz",
    }
    model = pointcloud.load_model(config.out)
    assert model.class_names == ["flat", "tall", "ball"] and model.num_points == 24
    assert record["parameters"] == sum(p.numel() for p in model.network.parameters())
    assert 0 < record["multiply_adds"] < 1e6
    again = train(config)  # a finished run that is started again computes its result again
    assert again == metrics


def test_training_learns_and_its_result_is_the_average_with_norms_of_its_own(solids: Path, tmp_path: Path) -> None:
    config = tiny(solids, tmp_path / "run", epochs=40, validation=0.0, dropout=0.0, evaluate_epochs=40)
    assert train(config)["overall_accuracy"] >= 7 / 9  # of three classes; rounding may cost a cloud
    saved = load_file(config.out / "weights.safetensors")
    state = torch.load(config.out / "checkpoint.pt", weights_only=True)
    assert torch.equal(saved["head.4.weight"], state["average"]["head.4.weight"])
    assert not torch.equal(saved["head.4.weight"], state["network"]["head.4.weight"])
    assert not torch.equal(saved["head.0.norm.running_mean"], state["average"]["head.0.norm.running_mean"])


def test_another_seed_gives_other_weights(solids: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny(solids, tmp_path / name, epochs=1, seed=seed))
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


def test_a_changed_configuration_or_data_is_refused(solids: Path, tmp_path: Path) -> None:
    config = tiny(solids, tmp_path / "run", epochs=1)
    train(config)
    with pytest.raises(ValueError, match="batch_size was 4, is 8"):
        train(dataclasses.replace(config, batch_size=8))
    for split in ("train", "test"):
        with np.load(solids / f"solids_32_{split}.npz") as file:
            arrays = dict(file)
        np.savez(solids / f"solids_32_{split}.npz", **{**arrays, "points": arrays["points"] + 1})
    try:
        with pytest.raises(ValueError, match="not the clouds that the run"):
            train(config)
        train(dataclasses.replace(config, batch_size=8, fresh=True))
    finally:
        for split in ("train", "test"):
            with np.load(solids / f"solids_32_{split}.npz") as file:
                arrays = dict(file)
            np.savez(solids / f"solids_32_{split}.npz", **{**arrays, "points": arrays["points"] - 1})


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(
    solids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def diverging(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return smoothed_cross_entropy(*arguments) * (float("nan") if calls == 6 else 1)

    monkeypatch.setattr(training, "smoothed_cross_entropy", diverging)
    config = tiny(solids, tmp_path / "run")
    with pytest.raises(ValueError, match="not a finite number at step 6 .20 clouds.; lower --learning-rate") as error:
        train(config)
    assert "\n" not in str(error.value)
    assert torch.load(config.out / "checkpoint.pt", weights_only=True)["shown"] == 20  # the last good one


def test_the_test_split_never_chooses(solids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is evaluated while training is no cloud of the test split, and the weights do not depend on it."""
    seen = []
    from pointcloud import reporting

    def spying(config: Config, network: nn.Module, clouds: CloudSet, *_: Any) -> Any:
        seen.append((clouds.source["split"], len(clouds)))
        return evaluate_classifier(network, clouds, config.num_points)

    monkeypatch.setattr(reporting, "evaluate", spying)
    train(tiny(solids, tmp_path / "run"))
    assert [split for split, _ in seen] == ["train", "train", "test"]
    assert seen[-1][1] == 9


def test_the_rate_warms_up_and_falls_to_its_end() -> None:
    config = Config(epochs=11, warmup_epochs=1.0, learning_rate=1.0, final_learning_rate=0.1)
    assert learning_rate(0.5, config) == pytest.approx(0.5)
    assert learning_rate(1.0, config) == pytest.approx(1.0)
    assert learning_rate(6.0, config) == pytest.approx(0.55)
    assert learning_rate(11.0, config) == pytest.approx(0.1)
    assert learning_rate(0.0, dataclasses.replace(config, warmup_epochs=0.0)) == 1.0


def test_the_average_forgets_by_half_lives() -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
        average = WeightAverage(model, half_life=100)
        model.weight.fill_(1.0)
        for step in range(10):
            average.update(model, shown=10_000 + step * 10, count=10)
    assert float(average.model.weight) == pytest.approx(0.5)  # 100 clouds later
    none = WeightAverage(model, half_life=0)
    with torch.no_grad():
        model.weight.fill_(3.0)
    none.update(model, shown=10, count=10)
    assert float(none.model.weight) == 3.0


def test_estimated_norms_are_the_means_over_the_batches() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).eval()
    batches = [torch.randn(50, 3) * 2 + 1 for _ in range(4)]
    estimate_norms(model, [(batch,) for batch in batches])
    torch.testing.assert_close(model[0].running_mean, torch.stack(batches).mean((0, 1)))
    torch.testing.assert_close(model[0].running_var, torch.stack([batch.var(0) for batch in batches]).mean(0))
    assert not model[0].training and model[0].momentum == 0.1


def test_evaluation_does_not_depend_on_the_batch_size_and_repeats_itself(solids: Path) -> None:
    from pointcloud.datasets import load_split

    clouds = load_split(str(solids), "", "test")
    torch.manual_seed(1)
    network = create_model(TINY, clouds)
    alone, together, again = (
        torch.cat([logits for _, logits in predict_logits(network, clouds, 24, batch_size=size)]) for size in (1, 9, 9)
    )
    assert torch.equal(alone, together) and torch.equal(together, again)
    voted = [evaluate_classifier(network, clouds, 24, batch_size=size, votes=3)[0] for size in (2, 9)]
    assert voted[0] == voted[1] and set(voted[0]) == {"overall_accuracy_vote3", "mean_class_accuracy_vote3"}
    segmenter = create_model(dataclasses.replace(TINY, **PARTS), clouds)
    found = [evaluate_segmenter(segmenter, clouds, 24, batch_size=size) for size in (2, 9)]
    assert found[0] == found[1]
    assert found[0]["instance_mean_iou"] >= found[0]["instance_mean_iou_unmasked"]


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_constructs(name: str) -> None:
    config = PRESETS[name]
    check_config(config)
    assert config.name == name and config.out == Path("runs") / name
    clouds = CloudSet(torch.zeros(1, 1, 3), torch.zeros(1), ["a"] * 40, part_names=["a/b"] * 50)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in create_model(config, clouds).parameters())
    expected = {"pct-modelnet40": 2_876_136, "eat-modelnet40": 2_678_504}
    assert parameters == expected.get(name, parameters) and parameters < 3e6
    assert config.attention == ("offset" if name.startswith("pct") else "external")


def test_free_fields_are_fields() -> None:
    assert set(FREE_FIELDS) <= {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"epochs": 0}, "--epochs 0: expected at least 1"),
        ({"batch_size": 1}, "--batch-size 1: expected at least 2"),
        ({"learning_rate": -1.0}, "--learning-rate -1.0"),
        ({"learning_rate": math.nan}, "--learning-rate nan"),
        ({"validation": 1.0}, "--validation 1.0: expected at least 0 to below 1"),
        ({"scale": (2.0, 1.0)}, "--scale 2.0 1.0"),
        ({"rotation": 400.0}, "--rotation 400.0"),
        ({"attention": "extenal"}, "extenal"),
        ({"attention": "offset", "attention_options": ("memory_size=3",)}, "memory_size"),
        ({"attention_options": ("memory_size",)}, "--attention-options memory_size: expected name=value"),
        ({"num_centres": (4, 8)}, "num_centres"),
        ({**PARTS, "pooling": "max_mean"}, "--pooling max_mean"),
        ({"task": "segment"}, "--num-centres 16 8: a segmenter keeps all points"),
        ({**PARTS, "head_channels": (8,)}, "--head-channels 8"),
        ({"categories": False}, "--no-categories"),
        ({"embed_channels": ()}, "--embed-channels"),
        ({**PARTS, "point_mix": "rsmix"}, "--point-mix rsmix: the flag is the classifier's"),
        ({"mix_probability": 1.5}, "--mix-probability 1.5: expected at least 0 to 1"),
        ({"mix_beta": 0.0}, "--mix-beta 0.0"),
        ({"drop_path": 1.0}, "--drop-path 1.0: expected at least 0 to below 1"),
        ({"fuse_channels": 0}, "--fuse-channels 0"),
        ({"neighbour_channels": (0, 4)}, "--neighbour-channels 0 4"),
        ({"data": "nowhere"}, "--data nowhere: no such folder"),
        ({"device": "cuda"}, "--device cuda"),
    ],
)
def test_impossible_values_are_refused_before_anything_is_written(
    changes: dict[str, Any], said: str, solids: Path, tmp_path: Path
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config = dataclasses.replace(TINY, **{"data": str(solids), "out": tmp_path / "run", **changes})
    with pytest.raises((ValueError, OSError), match=said) as error:
        train(config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_parts_are_needed_for_segmentation(solids: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        with np.load(solids / f"solids_32_{split}.npz") as file:
            plain = {name: file[name] for name in ("points", "label", "class_names", "scale")}
        np.savez(tmp_path / f"plain_32_{split}.npz", **plain)
    with pytest.raises(ValueError, match="has no part labels"):
        train(tiny(tmp_path, tmp_path / "run", **PARTS))


@pytest.mark.slow
def test_signals_and_resume_by_the_script_end_in_the_same_bits(solids: Path, tmp_path: Path) -> None:
    flags = "--dataset solids --epochs 60 --batch-size 4 --num-points 24 --num-centres 16 8 --num-neighbours 4"
    arguments = ["eat-small", "--data", str(solids), *flags.split()]
    said = assert_stops_change_nothing("train_pointcloud.py", arguments, (200, 500, 800), tmp_path)
    assert "eat-small: overall_accuracy" in said
    shown = [line["shown"] for line in lines(tmp_path / "pieces") if "train_loss" in line]
    assert shown == list(range(20, 1220, 20))
