"""Part segmentation: the two encoders and their published sizes, metrics by loops, both releases from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from release_files import write_shapenetpart_hdf5, write_shapenetpart_text
from torch import Tensor, nn

from pointcloud import gallery
from pointcloud.clouds import CloudSet
from pointcloud.evaluation import evaluate_largest_part, evaluate_segmenter
from pointcloud.models import create_model, load_model, model_keywords
from pointcloud.presets import PRESETS, Config, check_config, resolve_encoder
from pointcloud.published import create_published_twin
from pointcloud.releases.preparation import prepare
from pointcloud.segmenter import PartSegmenter
from pointcloud.training import train
from shared_attn.complexity import count_multiply_adds, count_parameters

Script = Callable[..., CompletedProcess[str]]
START, COUNT = [0, 2, 5], [2, 3, 1]


# The encoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preset, changes, widths",
    [
        ("eat-shapenetpart", {}, ((128, 128), (), (), 0)),
        ("eat-shapenetpart", {"neighbour_embedding": "sg"}, ((64, 64), (128, 256), (), 2)),
        ("eat-shapenetpart", {"neighbour_embedding": "sg", "neighbour_channels": (32,)}, ((64, 64), (32,), (), 2)),
        ("eat-shapenetpart", {"neighbour_channels": (32,)}, ((128, 128), (32,), (), 0)),
        ("eat-lpsb", {"neighbour_embedding": "none", "neighbour_channels": ()}, ((32, 32), (), (), 1)),
        ("eat-modelnet40", {}, ((64, 64), (128, 256), (512, 256), 2)),
        ("eat-modelnet40", {"neighbour_embedding": "none"}, ((128, 128), (), (), 0)),
        ("eat-modelnet40", {"stem_layers": 1, "num_centres": (9, 9)}, ((64, 64), (128, 256), (9, 9), 1)),
    ],
)
def test_widths_that_are_not_given_are_the_published_ones(
    preset: str, changes: dict[str, Any], widths: tuple[Any, ...]
) -> None:
    config = replace(PRESETS[preset], **changes)
    check_config(config)
    found = resolve_encoder(config)
    assert (found.embed_channels, found.neighbour_channels, found.num_centres, found.stem_layers) == widths
    assert found.neighbour_embedding == ("sg" if widths[1] else "none")
    assert resolve_encoder(found) == found
    assert model_keywords(config, part_set(2)) == model_keywords(found, part_set(2))


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"neighbour_embedding": "none", "neighbour_channels": (8, 8)},
            r"--neighbour-embedding none: contradicts --neighbour-channels 8 8",
        ),
        (
            {"neighbour_embedding": "sg", "neighbour_channels": ()},
            r"--neighbour-embedding sg: contradicts --neighbour-channels \(empty\)",
        ),
        ({"task": "segment", "num_centres": (8, 8)}, "--num-centres 8 8: a segmenter keeps all points"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_config(replace(Config(), **changes))


def run_with_gradients(model: nn.Module, points: Tensor, category: Tensor) -> dict[str, Tensor]:
    points = points.clone().requires_grad_()
    output = model(points, category)
    weights = torch.cos(torch.arange(output.numel(), dtype=output.dtype)).view_as(output)
    (output * weights).sum().backward()
    assert points.grad is not None
    results = {"output": output.detach(), "points": points.grad}
    results |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return results | {f"{name} buffer": buffer.double() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("attention", ["offset", "external"])
@pytest.mark.parametrize("embedding, channels", [("none", ()), ("sg", (12, 16))])
def test_whole_segmenter_equals_its_published_twin(
    embedding: Any, channels: tuple[int, ...], attention: str, training: bool
) -> None:
    model = PartSegmenter(
        7,
        3,
        neighbour_embedding=embedding,
        attention=attention,
        embed_channels=(8, 8),
        neighbour_channels=channels,
        num_neighbours=5,
        num_layers=2,
        fuse_channels=24,
        head_channels=(16, 12),
        dropout=0.0,
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    twin = create_published_twin(model)
    points, category = torch.randn(4, 20, 3, dtype=torch.float64), torch.tensor([2, 0, 1, 0])
    found, expected = (run_with_gradients(m.train(training), points, category) for m in (model, twin))
    for name, value in expected.items():
        scale = float(value.abs().max().clamp_min(1))
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10 * scale, msg=name)


def parameters_by_formula(attention: str, embedding: str) -> int:
    """Weights of maps, two for each batch norm's channel, as section 2 of the architecture lists them."""

    def lbr(a: int, b: int, bias: bool = False) -> int:
        return a * b + 2 * b + (b if bias else 0)

    total, d = (lbr(3, 128) + lbr(128, 128), 128) if embedding == "none" else (lbr(3, 64) + lbr(64, 64), 256)
    if embedding == "sg":
        total += lbr(128, 128) + lbr(128, 128) + lbr(256, 256) + lbr(256, 256) + 2 * lbr(256, 256)
    inner = d * d // 4 + (d * d + d) if attention == "offset" else 2 * 64 * d
    total += 4 * (inner + lbr(d, d, bias=True))
    total += lbr((4 if embedding == "none" else 5) * d, 1024) + lbr(16, 64)
    return total + lbr(3 * 1024 + 64, 512, bias=True) + lbr(512, 256, bias=True) + 256 * 50 + 50


def multiply_adds_by_formula(attention: str, embedding: str, N: int, K: int) -> int:
    """Of the published order: pairs one by one, the global channels repeated."""
    d, total = (128, N * (3 * 128 + 128**2)) if embedding == "none" else (256, N * (3 * 64 + 64**2))
    if embedding == "sg":
        total += N * K * (2 * 128**2 + 2 * 256**2) + N * 2 * d * d
    inner = d * d // 4 + d * d + N * (d // 4 + d) if attention == "offset" else 2 * 64 * d
    total += N * 4 * (inner + d * d) + N * (4 if embedding == "none" else 5) * d * 1024
    return total + 16 * 64 + N * (3136 * 512 + 512 * 256 + 256 * 50)


@pytest.mark.parametrize(
    "attention, embedding, parameters, published",
    [
        ("offset", "none", 2.446e6, 7.71e9),
        ("external", "none", 2.43e6, 4.96e9),
        ("offset", "sg", None, None),
        ("external", "sg", None, 17.8e9),
    ],
)
def test_sizes_are_the_published_ones(
    attention: str, embedding: Any, parameters: float | None, published: float | None
) -> None:
    model = PartSegmenter(50, 16, attention=attention, neighbour_embedding=embedding).eval()
    exact = parameters_by_formula(attention, embedding)
    assert count_parameters(model) == exact
    assert parameters is None or exact == pytest.approx(parameters, rel=0.002)
    if published is not None:
        assert multiply_adds_by_formula(attention, embedding, 2048, 32) == pytest.approx(published, rel=0.02)
    points, category = torch.rand(1, 96, 3), torch.tensor([0])
    with torch.no_grad():
        theirs = count_multiply_adds(create_published_twin(model), points, category)
        ours = count_multiply_adds(model, points, category)
    assert theirs == multiply_adds_by_formula(attention, embedding, 96, 32)
    saved = 95 * 2112 * 512  # the global channels once, not at every point
    if embedding == "sg":  # and the first map of each pair once a point and centre
        saved += 96 * (32 - 1) * (128**2 + 256**2)
    assert theirs - ours == saved


# Metrics --------------------------------------------------------------------------------------------------------------


def part_set(shapes: int, points: int = 40) -> CloudSet:
    """Three categories of 2, 3 and 1 parts; some shapes lack one of theirs."""
    generator = torch.Generator().manual_seed(shapes)
    label = torch.arange(shapes) % 3
    share = torch.rand(shapes, points, generator=generator)
    parts = [[START[c] + int(share[d, n] * (COUNT[c] - d % 2 * (c > 0)) * 0.999) for n in range(points)]
             for d, c in enumerate(label.tolist())]  # fmt: skip
    part_label = torch.tensor(parts).clamp_min(torch.tensor(START)[label].unsqueeze(1)).to(torch.uint8)
    stored = torch.randint(-4096, 4096, (shapes, points, 3), generator=generator).to(torch.int16)
    names = [f"{c}/{p}" for c, count in zip("xyz", COUNT, strict=True) for p in range(count)]
    return CloudSet(
        stored, label, list("xyz"), part_label=part_label, part_names=names, part_start=START, part_count=COUNT
    )


def naive_metrics(answers: list[list[int]], clouds: CloudSet, num_points: int) -> dict[str, float]:
    """Shape by shape, part by part, point by point."""
    assert clouds.part_label is not None
    ious: list[float] = []
    by_class: dict[int, list[float]] = {}
    right = 0
    for shape, answer in enumerate(answers):
        category, truth = int(clouds.label[shape]), clouds.part_label[shape, :num_points].tolist()
        parts = []
        for part in range(START[category], START[category] + COUNT[category]):
            both = either = 0
            for said, true in zip(answer, truth, strict=True):
                both += said == part and true == part
                either += part in (said, true)
            parts.append(both / either if either else 1.0)
        ious.append(sum(parts) / len(parts))
        by_class.setdefault(category, []).append(ious[-1])
        right += sum(said == true for said, true in zip(answer, truth, strict=True))
    means = [sum(values) / len(values) for values in by_class.values()]
    return {
        "instance_mean_iou": sum(ious) / len(ious),
        "class_mean_iou": sum(means) / len(means),
        "point_accuracy": right / (len(answers) * num_points),
    }


def test_metrics_equal_naive_loops() -> None:
    """Of a network with random weights: masked to the category's parts, and among all."""
    clouds, num_points = part_set(11), 30
    network = PartSegmenter(6, 3, embed_channels=(8, 8), num_layers=1, fuse_channels=16, head_channels=(8, 8)).eval()
    found = evaluate_segmenter(network, clouds, num_points)
    free, masked = [], []
    for shape in range(len(clouds)):
        category = int(clouds.label[shape])
        points = clouds.points[shape : shape + 1, :num_points].float() * clouds.unit
        with torch.no_grad():
            rows = network(points, torch.tensor([category]))[0].tolist()
        own = range(START[category], START[category] + COUNT[category])
        free.append([max(range(6), key=row.__getitem__) for row in rows])
        masked.append([max(own, key=row.__getitem__) for row in rows])
    expected = naive_metrics(masked, clouds, num_points)
    expected |= {f"{name}_unmasked": value for name, value in naive_metrics(free, clouds, num_points).items()}
    assert found == pytest.approx(expected, abs=1e-12)
    assert found["instance_mean_iou"] > found["instance_mean_iou_unmasked"]  # they differ: the mask did something


def test_the_largest_part_is_the_training_split_s() -> None:
    train_set, test_set = part_set(10), part_set(7)
    assert train_set.part_label is not None
    largest = []
    for category in range(3):
        counts = [0] * COUNT[category]
        for shape in range(len(train_set)):
            if int(train_set.label[shape]) == category:
                for part in train_set.part_label[shape].tolist():
                    counts[part - START[category]] += 1
        largest.append(START[category] + counts.index(max(counts)))
    answers = [[largest[int(category)]] * 25 for category in test_set.label]
    expected = {f"largest_part_{name}": value for name, value in naive_metrics(answers, test_set, 25).items()}
    assert evaluate_largest_part(train_set, test_set, 25) == pytest.approx(expected, abs=1e-12)
    without_x = train_set.select((train_set.label != 0).nonzero().flatten())
    assert 0 < evaluate_largest_part(without_x, test_set, 25)["largest_part_point_accuracy"] < 1


def test_the_largest_part_of_the_labelled_princeton_benchmark(shared_data: Path) -> None:
    from pointcloud.datasets import load_split

    train_set, test_set = (load_split(str(shared_data), "lpsb", split) for split in ("train", "test"))
    found = evaluate_largest_part(train_set, test_set, 2048)
    assert found["largest_part_instance_mean_iou"] == pytest.approx(0.2802, abs=1e-4)
    assert found["largest_part_point_accuracy"] == pytest.approx(0.5530, abs=1e-4)


# From end to end ------------------------------------------------------------------------------------------------------

SMALL = {
    "epochs": 1,
    "batch-size": 2,
    "num-points": 64,
    "num-neighbours": 4,
    "num-layers": 1,
    "fuse-channels": 16,
    "head-channels": (8, 8),
    "norm-clouds": 4,
    "device": "cpu",
}
TOKENS = {
    "train": [("03001627", "aa"), ("02691156", "bb")],
    "val": [("04379243", "cc")],
    "test": [("03636649", "dd"), ("02691156", "ee")],
}


def write_release(kind: str, folder: Path) -> Path:
    if kind == "text":
        write_shapenetpart_text(folder / "normal", TOKENS)
        return folder / "normal"
    write_shapenetpart_hdf5(folder / "hdf5_data", count=2048)
    if kind == "hdf5":
        return folder / "hdf5_data"
    prepare("shapenetpart", folder, num_points=80)
    return folder


@pytest.mark.parametrize("kind, embedding", [("text", "none"), ("hdf5", "sg"), ("prepared", "none")])
def test_the_preset_trains_on_every_form_of_the_data_set(
    kind: str, embedding: str, tmp_path: Path, run_script: Script
) -> None:
    data, out = write_release(kind, tmp_path), tmp_path / "run"
    flags = [word for name, value in SMALL.items() for word in (f"--{name}", *as_words(value))]
    command = ("eat-shapenetpart", "--data", data, "--out", out, "--neighbour-embedding", embedding, *flags)
    done = run_script("train_pointcloud.py", *command, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "record.json").read_text())
    names = {"instance_mean_iou", "class_mean_iou", "point_accuracy"}
    assert record["metrics"].keys() == (
        names | {f"{name}_unmasked" for name in names} | {f"largest_part_{name}" for name in names}
    )
    assert record["config"]["neighbour_embedding"] == embedding
    assert record["config"]["neighbour_channels"] == ([128, 256] if embedding == "sg" else [])
    assert record["data"]["name"] == "shapenetpart" and record["data"]["split"].endswith(
        "2 of the test split, read once"
    )
    model = load_model(out)
    assert len(model.header["part_names"]) == 50 and len(model.class_names) == 16
    assert model(torch.rand(2, 64, 3), torch.tensor([0, 15])).shape == (2, 64, 50)


def as_words(value: Any) -> list[str]:
    return [str(word) for word in (value if isinstance(value, tuple) else (value,))]


def test_runs_and_weights_from_before_the_flag_go_on(tmp_path: Path) -> None:
    clouds = part_set(6)
    config = Config(
        task="segment",
        out=tmp_path / "run",
        dataset="",
        epochs=1,
        batch_size=2,
        num_points=20,
        num_layers=1,
        fuse_channels=16,
        head_channels=(8, 8),
        norm_clouds=2,
        device="cpu",
    )
    metrics = train(config, train_data=clouds, test_data=clouds)
    assert (tmp_path / "run" / "parts.png").exists()
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written.pop("neighbour_embedding") == "none" and written["embed_channels"] == [128, 128]
    (tmp_path / "run" / "config.json").write_text(json.dumps(written))
    assert train(config, train_data=clouds, test_data=clouds) == metrics
    with pytest.raises(ValueError, match="neighbour_channels was"):
        train(replace(config, neighbour_embedding="sg"), train_data=clouds, test_data=clouds)
    old = load_model("eat-shapes-parts")
    assert "neighbour_embedding" not in old.header["model"]
    assert isinstance(create_model(config, clouds), PartSegmenter)


def test_the_gallery_shows_the_answer_and_below_it_the_truth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clouds, shown = part_set(6), {}
    monkeypatch.setattr(gallery, "save_clouds_png", lambda *given, **how: shown.update(given=given, **how))
    network = PartSegmenter(len(clouds.part_names), len(clouds.class_names), num_layers=1, fuse_channels=16)
    gallery.draw_segmentations(network.eval(), clouds, 20, tmp_path / "parts", truth=True)
    points, labels, _, _ = shown["given"]
    count = len(points) // 2
    assert shown["columns"] == count == 3 and shown["titles"][3] == "x, true parts"
    for place in range(count):  # the first three shapes are the first of their categories
        assert torch.equal(labels[count + place], clouds.part_label[place, :20])
        with torch.no_grad():
            logits = network(points[place].unsqueeze(0), clouds.label[place : place + 1])[0]
        own = logits[:, START[place] : START[place] + COUNT[place]]
        assert torch.equal(labels[place], own.argmax(-1) + START[place])
