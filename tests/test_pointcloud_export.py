"""A network as one file: ONNX Runtime and a loaded .pt2 answer as the network does, for any number of points."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from machine import exporting
from small_models import write_small_models
from torch import Tensor, nn

from pointcloud import export, export_check
from pointcloud.classifier import PointClassifier
from pointcloud.export import DESCRIPTION, Exported, choose_format, describe, export_model, export_program
from pointcloud.export_check import check_export, degenerate_clouds
from pointcloud.geometry import farthest_points, k_nearest
from pointcloud.kernels import points_plain
from pointcloud.kernels.points_exported import farthest_in_a_loop, nearest_by_keys
from pointcloud.models import CLASSIFIER, SEGMENTER, LoadedModel, load_model
from pointcloud.segmenter import PartSegmenter

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = ((1, 64), (3, 100), (2, 10), (4, 1))  # clouds, points: below the centres and the neighbours too


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    folder = write_small_models(tmp_path_factory.mktemp("models"))
    return {path.stem: load_model(path) for path in folder.glob("*.safetensors")}


def _needs_exporters() -> None:
    _needs_a_newer_torch()
    for package in export.PACKAGES:
        pytest.importorskip(package)


def _needs_a_newer_torch() -> None:
    if torch.__version__.startswith("2.6."):
        pytest.skip("torch 2.6 exports no network of points whose number is left open, and no loop")


@pytest.fixture(scope="module")
def onnx_files(models: dict[str, LoadedModel]) -> dict[str, Exported]:
    _needs_exporters()
    return {name: export_model(model, "onnx") for name, model in models.items()}


def _inputs(model: LoadedModel, batch_size: int, num_points: int) -> tuple[Tensor, ...]:
    return export.example_inputs(model, batch_size, num_points, seed=1)


def _run(contents: bytes, inputs: tuple[Tensor, ...]) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    assert names == ["points", "category"][: len(inputs)]
    feed = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))
    return torch.from_numpy(session.run(["logits"], feed)[0])


def _naive_farthest(points: list[list[float]], count: int) -> list[int]:
    """In float32 steps, one point after the other; of equals the first."""
    rows = [torch.tensor(row) for row in points]
    nearest, chosen = [float("inf")] * len(rows), [0]
    while len(chosen) < count:
        for place, row in enumerate(rows):
            x, y, z = ((row - rows[chosen[-1]]) ** 2).unbind()
            nearest[place] = min(nearest[place], float(x + y + z))
        chosen.append(nearest.index(max(nearest)))
    return chosen


@pytest.mark.parametrize("name", ["classifier", "segmenter", "uncategorised"])
def test_onnx_runtime_gives_the_networks_logits(
    models: dict[str, LoadedModel], onnx_files: dict[str, Exported], name: str
) -> None:
    for size in SIZES:
        inputs = _inputs(models[name], *size)
        found = _run(onnx_files[name].contents, inputs)
        torch.testing.assert_close(found, models[name](*inputs), rtol=1e-4, atol=1e-5)


def test_segmenters_answer_follows_points_and_category(
    models: dict[str, LoadedModel], onnx_files: dict[str, Exported]
) -> None:
    contents = onnx_files["segmenter"].contents
    points, category = _inputs(models["segmenter"], 2, 50)
    logits, order = _run(contents, (points, category)), torch.randperm(50)
    torch.testing.assert_close(_run(contents, (points[:, order], category)), logits[:, order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(_run(contents, (points, 1 - category)), logits)


def test_graph_is_one_loop_of_standard_operators(onnx_files: dict[str, Exported]) -> None:
    import onnx

    graph = onnx.load_from_string(onnx_files["classifier"].contents)
    onnx.checker.check_model(graph, full_check=True)
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("Loop") == 1 and len(kinds) < 300
    assert {opset.domain for opset in graph.opset_import} == {""} and not graph.functions
    sizes = [size.dim_param or size.dim_value for size in graph.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", "num_points", 3]
    assert str(Path(torch.__file__).parents[1]).encode() not in onnx_files["classifier"].contents


@pytest.mark.parametrize("name", ["classifier", "segmenter"])
def test_onnx_file_describes_itself(models: dict[str, LoadedModel], onnx_files: dict[str, Exported], name: str) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_files[name].contents)
    said = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert said == describe(models[name])
    assert said["class_names"] == models[name].class_names and said["num_points"] == 64 and said["up"] == "z"
    assert ("category" in said["inputs"]) == (name == "segmenter") == ("part_names" in said)


class _Farthest(nn.Module):
    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        chosen = farthest_points(points, 12)
        return chosen, k_nearest(points, points[:, :1], 5)


def test_exported_farthest_points_are_those_of_a_naive_loop() -> None:
    _needs_exporters()
    import onnxruntime

    random = torch.randn(4, 27, 3)
    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("num_points", min=1)}
    program = torch.export.export(_Farthest(), (random,), dynamic_shapes=(sizes,))
    plain = export.in_plain_operators(program, export.FOR_ONNX)
    session = onnxruntime.InferenceSession(
        torch.onnx.export(plain, dynamo=True, verbose=False).model_proto.SerializeToString()
    )
    loaded = export.in_plain_operators(program, export.FOR_TORCH).module()
    for clouds in (random, degenerate_clouds(27), degenerate_clouds(30)[:1], random[:2, :3], random[:, :1]):
        expected = torch.tensor([_naive_farthest(cloud.tolist(), 12) for cloud in clouds])
        by_onnx = session.run(None, {session.get_inputs()[0].name: clouds.numpy()})
        with exporting():
            by_torch = loaded(clouds)
        for chosen, nearest in ([torch.from_numpy(index) for index in by_onnx], by_torch):
            assert torch.equal(chosen, expected)
            assert torch.equal(nearest, k_nearest(clouds, clouds[:, :1], 5))


@pytest.mark.parametrize("lengths", [None, torch.tensor([40, 3])])
def test_plain_twins_heed_lengths(lengths: Tensor | None) -> None:
    clouds = torch.randn(2, 40, 3)
    assert torch.equal(farthest_in_a_loop(clouds, 7, lengths), points_plain.farthest_points(clouds, 7, lengths))
    found, expected = (f(clouds, clouds[:, :5], 3, lengths) for f in (nearest_by_keys, points_plain.k_nearest))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["classifier", "segmenter"])
def test_pt2_runs_in_a_process_without_this_package(models: dict[str, LoadedModel], tmp_path: Path, name: str) -> None:
    _needs_a_newer_torch()
    model = models[name]
    (tmp_path / "model.pt2").write_bytes(export_model(model, "torch").contents)
    batches = [_inputs(model, *size) for size in SIZES]
    torch.save(batches, tmp_path / "inputs.pt")
    code = (
        "import sys, json, torch\n"
        f"said = {{{DESCRIPTION!r}: ''}}\n"
        "run = torch.export.load('model.pt2', extra_files=said).module()\n"
        "torch.save([run(*inputs) for inputs in torch.load('inputs.pt')], 'logits.pt')\n"
        "assert 'pointcloud' not in sys.modules\n"
        f"print(said[{DESCRIPTION!r}])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False, env={"PATH": ""}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps(describe(model)))
    for inputs, found in zip(batches, torch.load(tmp_path / "logits.pt"), strict=True):
        torch.testing.assert_close(found, model(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_check_compares_indices_and_logits(
    models: dict[str, LoadedModel], onnx_files: dict[str, Exported], form: str
) -> None:
    model = models["classifier"]
    exported = onnx_files["classifier"] if form == "onnx" else export_model(model, "torch")
    agreement = check_export(model, exported)
    assert agreement.indices > 0 and agreement.difference < 1e-5
    assert agreement.equal_answers == agreement.answers == agreement.clouds
    other = load_model(model.path)
    other.network.head[-1].bias.data[2] += 0.1
    with pytest.raises(ValueError, match="logits differ by .* of their standard deviation"):
        check_export(other, exported)
    other.network.encoder.num_neighbours = 3
    with pytest.raises(ValueError, match="neighbours of level 1 of 1 clouds of 64 points differ"):
        check_export(other, exported)


def _small(attention: str, segments: bool, **more: Any) -> LoadedModel:
    """With batch-norm statistics and affine maps as if trained."""
    torch.manual_seed(0)
    keywords: dict[str, Any] = {
        "attention": attention,
        "num_layers": 1,
        "fuse_channels": 24,
        "num_neighbours": 4,
        **more,
    }
    network: nn.Module
    if segments:
        network = PartSegmenter(4, head_channels=(16, 12), embed_channels=(8, 16), **keywords)
    else:
        keywords |= {"embed_channels": (8, 8), "neighbour_channels": (12, 16), "num_centres": (24, 16)}
        network = PointClassifier(6, head_channels=(16,), **keywords)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
    header = {"kind": SEGMENTER if segments else CLASSIFIER, "model": keywords, "num_points": 64, "class_names": ["a"]}
    return LoadedModel(network.eval().requires_grad_(False), header, Path("small"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "segments", "num_points"),
    [
        ("offset", False, 0),
        ("multihead_external", True, 0),
        ("sagan", True, 64),
        ("window", True, 0),  # in Morton order
        ("quadtree_a", False, 0),
    ],
)
def test_other_attentions_export(attention: str, segments: bool, num_points: int) -> None:
    _needs_exporters()
    model = _small(attention, segments)
    for form in ("onnx", "torch"):
        agreement = check_export(model, export_model(model, form, num_points=num_points))
        assert agreement.difference < 1e-4 and agreement.equal_answers == agreement.answers


def test_attention_of_one_number_of_points_says_so() -> None:
    with pytest.raises(ValueError, match="attention 'sagan' holds for one size only: fix it with --num-points"):
        export_program(_small("sagan", True))


def test_sizes_can_be_fixed(models: dict[str, LoadedModel]) -> None:
    exported = export_model(models["segmenter"], "torch", batch_size=2, num_points=48)
    assert exported.inputs == "points (2, 48, 3) float32, category (2,) int64"
    assert check_export(models["segmenter"], exported).clouds == 6
    program = torch.export.load(io.BytesIO(exported.contents)).module()
    with pytest.raises((RuntimeError, AssertionError)):
        program(*_inputs(models["segmenter"], 2, 47))


@pytest.mark.slow
def test_script_writes_what_it_checked(
    models: dict[str, LoadedModel], run_script: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "model.pt2"
    done = run_script("export_model.py", "--weights", models["classifier"].path, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "checked with torch.export" in done.stdout and "points (batch, num_points, 3)" in done.stdout
    inputs = _inputs(models["classifier"], 2, 30)
    torch.testing.assert_close(torch.export.load(out).module()(*inputs), models["classifier"](*inputs))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--out", "model.tflite"), "--out model.tflite: expected a name that ends in .onnx or .pt2"),
        (("--out", "model.pt2", "--format", "onnx"), "--format onnx: --out model.pt2 is named as torch"),
        (("--out", "model.onnx", "--num-points", "-1"), "--num-points: expected a number of at least 0"),
        (("--out", "model.onnx", "--weights", "eat-smal"), "--weights eat-smal: no run folder"),
        (("--out", "tests"), "--out tests: a folder"),
    ],
)
def test_mistakes_are_told_in_one_line(
    run_script: Callable[..., subprocess.CompletedProcess[str]], flags: tuple[str, ...], said: str
) -> None:
    done = run_script("export_model.py", *flags)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert said in done.stderr


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name != "onnx" else name)
    with pytest.raises(ValueError, match=r"needs onnxscript and onnxruntime: pip install 'eagan-eat\[export\]'"):
        choose_format(Path("model.onnx"))
    with pytest.raises(ValueError, match="ONNX needs onnxscript: pip install"):
        choose_format(Path("model.onnx"), check=False)
    assert choose_format(Path("model.pt2")) == "torch"


def test_failed_check_is_one_line_and_keeps_what_was_there(
    models: dict[str, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _needs_a_newer_torch()
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    import export_model as script

    out = tmp_path / "model.pt2"
    out.write_bytes(b"before")
    monkeypatch.setattr(export_check, "TOLERANCE", 0.0)
    monkeypatch.setattr(
        sys, "argv", ["export_model.py", "--out", str(out), "--weights", str(models["classifier"].path)]
    )
    with pytest.raises(ValueError, match="not written: the check with torch.export .* failed: logits differ"):
        script.main()
    assert out.read_bytes() == b"before" and not list(tmp_path.glob(".*"))


def test_exported_says_its_inputs() -> None:
    exported = Exported("onnx", b"", 0, 0, False)
    assert exported.inputs == "points (batch, num_points, 3) float32"
    assert dataclasses.replace(exported, with_category=True).inputs.endswith("category (batch,) int64")


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_one_cloud_of_one_size(models: dict[str, LoadedModel], form: export.Format) -> None:
    """Where strides of sizes of one say nothing, and the loop has to keep its own."""
    _needs_exporters()
    exported = export_model(models["classifier"], form, batch_size=1, num_points=40)
    assert exported.inputs == "points (1, 40, 3) float32"
    agreement = check_export(models["classifier"], exported)
    assert agreement.difference < 1e-4 and agreement.indices > 0


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_segmenter_that_looks_for_neighbours_at_all_points(form: export.Format) -> None:
    """Both neighbour embeddings share one search."""
    _needs_exporters()
    model = _small("external", True, neighbour_embedding="sg", neighbour_channels=(8, 8))
    agreement = check_export(model, export_model(model, form))
    assert agreement.difference < 1e-4 and agreement.indices > 0
