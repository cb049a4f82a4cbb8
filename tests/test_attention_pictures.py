"""The pictures of what memory slots attend to, and the script that draws them from weights of every kind."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gan.attention_pictures import draw_image_attention
from gan.generator import Generator
from gan.sampling import KIND, finish_generator, load_generator
from pointcloud import attention_pictures
from pointcloud.attention_pictures import attend_shape, draw_cloud_attention, spread_weights
from pointcloud.classifier import PointClassifier
from pointcloud.files.meshes import Shape
from pointcloud.models import CLASSIFIER, SEGMENTER, load_model
from pointcloud.pictures import frame_cloud
from pointcloud.segmenter import PartSegmenter
from shared_attn.attention_maps import choose_slots, select_slots
from shared_attn.runtime.figures import new_figure
from shared_attn.runtime.weights import save_weights

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
GENERATOR = {"image_size": 32, "num_classes": 2, "width": 2}
NETWORK = {"num_layers": 2, "fuse_channels": 16, "num_neighbours": 4, "embed_channels": [8], "head_channels": [8, 8]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of small untrained networks: two generators, a classifier, a segmenter."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for attention in ("external", "multihead_external", "sagan", "none"):
        options = {"num_heads": 2, "memory_size": 6} if attention == "multihead_external" else {}
        model = {**GENERATOR, "width": 4, "attention": attention, "attention_options": options}
        state = finish_generator(Generator(**model), model, seed=0).state_dict()
        header = {"kind": KIND, "model": model, "class_names": ["cat", "dog"], "data": {}}
        save_weights(folder / f"gan-{attention}.safetensors", state, header)
    described = {"num_points": 64, "class_names": list("abcd"), "data": {}}
    for attention in ("external", "multihead_external", "offset"):
        options = {"memory_size": 6, "num_heads": 2, "expansion": 1} if attention == "multihead_external" else {}
        common = {**NETWORK, "attention": attention, "attention_options": options}
        model = {"num_classes": 4, "neighbour_channels": [12, 16], "num_centres": [16, 8], **common}
        header = {"kind": CLASSIFIER, "model": model, **described}
        network = PointClassifier(**model)
        for name, parameter in network.named_parameters():
            if name.endswith("key_memory.weight"):
                nn.init.normal_(parameter, std=100)  # untrained, all tokens look alike
        save_weights(folder / f"classifier-{attention}.safetensors", network.state_dict(), header)
    model = {"num_parts": 4, "num_categories": 4, **NETWORK, "attention": "external"}
    save_weights(
        folder / "segmenter.safetensors",
        PartSegmenter(**model).state_dict(),
        {"kind": SEGMENTER, "model": model, **described, "part_names": list("wxyz")}
        | {"class_part_start": [0, 1, 2, 3], "class_part_count": [1, 1, 1, 1]},
    )
    return folder


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def visualise(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs the script inside this process, which has imported everything already."""

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["visualise_attention.py", *map(str, arguments)])
        monkeypatch.syspath_prepend(str(SCRIPTS))
        try:
            runpy.run_path(str(SCRIPTS / "visualise_attention.py"), run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Done(status, *capsys.readouterr())

    return call


def write_cloud(path: Path, count: int = 100) -> Path:
    np.savetxt(path, np.random.default_rng(0).normal(size=(count, 3)))
    return path


def write_tetrahedron(path: Path) -> Path:
    corners, faces = "0 0 0\n1 0 0\n0 1 0\n0 0 1\n", "3 0 1 2\n3 0 1 3\n3 0 2 3\n3 1 2 3\n"
    path.write_text(f"OFF\n4 4 0\n{corners}{faces}")
    return path


@pytest.mark.parametrize("attention", ["external", "multihead_external"])
def test_pictures_of_samples(visualise: Callable[..., Done], weights: Path, tmp_path: Path, attention: str) -> None:
    file, out = weights / f"gan-{attention}.safetensors", tmp_path / "new" / "folder"
    done = visualise("--weights", file, "--out", out, "--count", 3, "--num-slots", 2)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.iterdir()] == ["attention.png"]
    assert done.stdout.startswith(f"{out / 'attention.png'}: ") and done.stdout.count("slot") == 2
    assert done.stdout.count("head") == (2 if attention == "multihead_external" else 0)
    small = Image.open(out / "attention.png").size
    heads = ("--heads", 1) if attention == "multihead_external" else ()
    done = visualise("--weights", file, "--out", out, "--slots", 5, 0, 3, "--classes", "dog", "--seed", 4, *heads)
    assert done.returncode == 0, done.stderr
    prefix = "head 1 " if heads else ""
    assert done.stdout.endswith(f": {prefix}slot 5, {prefix}slot 0, {prefix}slot 3\n")
    large = Image.open(out / "attention.png").size
    assert large[0] > small[0] > 300 and large[1] > small[1] > 300


def test_heat_stands_where_the_weight_is(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map of slot s over the grid, row by row, is the module's; and the samples are the generator's."""
    from gan import attention_pictures as pictures
    from gan.sampling import draw_images, draw_latents

    written: dict[str, Any] = {}
    monkeypatch.setattr(pictures, "write_heat_maps", lambda *given: written.update(enumerate(given)))
    generator = load_generator(weights / "gan-external.safetensors")
    draw_image_attention(generator, tmp_path / "a.png", count=4, slots=[7], seed=2)
    z, labels = draw_latents([2, 3], generator.latent_dim).repeat(2, 1), torch.tensor([0, 0, 1, 1])
    inputs: list[Tensor] = []
    generator.attention.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    images = torch.cat(list(draw_images(generator, z, labels)))
    assert torch.equal(written[1], images) and written[4] == ["cat", "cat", "dog", "dog"]
    keys = generator.attention.attention.key_memory.weight
    logits = torch.einsum("bchw,sc->bhws", inputs[0][:4].double(), keys.double())
    share = (logits - logits.logsumexp((1, 2), keepdim=True)).exp()
    expected = (share / share.sum(-1, keepdim=True))[..., 7]
    torch.testing.assert_close(written[2][:, 0].double(), expected, rtol=1e-4, atol=1e-7)


def test_pictures_of_files(weights: Path, tmp_path: Path, run_script: Callable[..., Any]) -> None:
    import trimesh

    mesh, cloud = write_tetrahedron(tmp_path / "box.off"), write_cloud(tmp_path / "cloud.xyz")
    bad = tmp_path / "bad.off"
    bad.write_text("no")
    out = tmp_path / "out"
    arguments = ("--weights", weights / "classifier-external.safetensors", "--out", out, "--slots", "5", "60")
    done: subprocess.CompletedProcess[str] = run_script("visualise_attention.py", mesh, bad, cloud, *arguments)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and "bad.off" in done.stderr
    names = {f"{stem}{end}" for stem in ("box", "cloud") for end in (".html", "-slot5.ply", "-slot60.ply")}
    assert {path.name for path in out.iterdir()} == names | {"attention.png"}
    assert str(out / "attention.png") in done.stdout and "slot 5, slot 60" in done.stdout
    assert trimesh.load(out / "cloud-slot5.ply").vertices.shape == (100, 3)
    coloured = trimesh.load(out / "box-slot60.ply")
    assert coloured.vertices.shape == (4 * 64, 3)
    assert len(np.unique(coloured.colors, axis=0)) > 2  # type: ignore[union-attr]
    page = (out / "cloud.html").read_text(encoding="utf-8")
    assert "Plotly.newPlot" in page and 'src="http' not in page and "seen as" in page
    assert page.count('"label":"slot ') == 2
    assert min(Image.open(out / "attention.png").size) > 400


def test_many_files_with_equal_names(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_pictures, "ROWS", 2)
    monkeypatch.setattr(attention_pictures, "SHOWN_POINTS", 50)
    files = []
    for folder in "abc":
        (tmp_path / folder).mkdir()
        files.append(write_cloud(tmp_path / folder / "same.xyz"))
    model = load_model(weights / "segmenter.safetensors")
    drawn = draw_cloud_attention(model, [*files, files[0]], tmp_path / "out", num_slots=1, layer=1)
    assert [path.name for path in drawn.pictures] == ["attention-1.png", "attention-2.png"]
    pages = [paths[0].name for paths in drawn.files.values()]
    assert list(drawn.files) == files and pages == ["same.html", "same-2.html", "same-3.html"]
    assert all(path.is_file() for paths in drawn.files.values() for path in paths) and drawn.mistakes == []


@pytest.mark.parametrize("name", ["classifier-external", "classifier-multihead_external", "segmenter"])
def test_points_take_the_weights_of_the_nearest_token(weights: Path, name: str) -> None:
    model = load_model(weights / f"{name}.safetensors")
    shape = Shape(np.random.default_rng(0).normal(size=(90, 3)) * 7 + 3, None)
    cloud = attend_shape(model, shape, samplings=3)
    tokens = 8 if name.startswith("classifier") else 64
    assert cloud.values.shape[:2] == (3, tokens) and cloud.places.shape == (3 * tokens, 3)
    assert all((shape.points == place).all(1).any() for place in cloud.places)  # in the file's own coordinates
    shown = choose_slots(cloud.values, 4)
    spread, weights_of_tokens = spread_weights(cloud, shown), select_slots(cloud.values, shown).flatten(0, 1).numpy()
    for point, found in zip(cloud.points, spread, strict=True):
        distance = np.linalg.norm(cloud.places - point, axis=1)
        nearest = np.isclose(distance, distance.min())  # one point may be a token of several samplings
        assert any(np.array_equal(found, other) for other in weights_of_tokens[nearest])


@pytest.mark.parametrize("shape", [(1.0, 1.0, 1.0), (3.0, 0.5, 0.5), (0.0, 0.0, 2.0)])
def test_no_corner_of_a_cloud_is_cut_off(shape: tuple[float, ...]) -> None:
    from mpl_toolkits.mplot3d import proj3d

    figure, _ = new_figure(2, 2, axes=False)
    axes = figure.add_axes((0, 0, 1, 1), projection="3d")
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * shape + 7
    frame_cloud(axes, corners)
    figure.canvas.draw()
    x, y, _ = proj3d.proj_transform(*corners.T, axes.get_proj())
    seen = axes.transAxes.inverted().transform(axes.transData.transform(np.stack([x, y], axis=1)))
    assert seen.min() > 0 and seen.max() < 1
    assert np.ptp(seen, axis=0).max() > 0.6  # nor is it drawn small


def test_mistakes_get_one_line(visualise: Callable[..., Done], weights: Path, tmp_path: Path) -> None:
    cloud, occupied = write_cloud(tmp_path / "cloud.xyz"), tmp_path / "occupied"
    occupied.write_text("")
    holes = tmp_path / "holes.xyz"
    holes.write_text("0 0 0\n0 nan 1\n1 1 1\n")
    out = tmp_path / "out"
    gan, points = weights / "gan-external.safetensors", weights / "classifier-external.safetensors"
    mistakes: list[tuple[tuple[object, ...], tuple[str, ...]]] = [
        (("--weights", "nowhere"), ("--weights nowhere", "shipped weights")),
        (("--weights", gan, "--out", occupied), (f"--out {occupied}", "expected a folder")),
        (("--weights", gan, "--out", occupied / "new"), (str(occupied / "new"), "cannot be written (Not a directory)")),
        (("--weights", gan, cloud), (str(cloud), "holds a generator")),
        (("--weights", gan, "--up", "y"), ("--up", "holds a generator")),
        (("--weights", gan, "--classes", "cta"), ("--classes cta", "did you mean cat")),
        (("--weights", gan, "--count", 0), ("--count 0: expected 1 to 64",)),
        (("--weights", gan, "--slots", 64), ("--slots 64: expected 0 to 63",)),
        (("--weights", gan, "--layer", 2), ("--layer 2: expected 1 to 1",)),
        (("--weights", weights / "gan-sagan.safetensors"), ("'sagan' has no memory slots",)),
        (("--weights", weights / "gan-none.safetensors"), ("no attention to show", "external")),
        (("--weights", points), ("no files given",)),
        (("--weights", points, cloud, "--count", 2), ("--count", "holds a point network")),
        (("--weights", points, cloud, "--classes", "a"), ("--classes", "holds a point network")),
        (("--weights", points, cloud, "no.off", "--layer", 3), ("--layer 3: expected 1 to 2",)),
        (("--weights", points, cloud, "no.off", "--slots", "-1"), ("--slots -1: expected 0 to 63",)),
        (("--weights", points, cloud, "--heads", 0), ("single head",)),
        (("--weights", points, cloud, "--seed", "-1"), ("--seed -1: expected at least 0",)),
        (("--weights", points, holes), ("holes.xyz: 1 of 3 points", "NaN")),
        (("--weights", points, "no.off"), ("no.off: no such file",)),
        (("--weights", weights / "classifier-offset.safetensors", cloud), ("'offset' has no memory slots",)),
        (("--weights", points, cloud, "--slosts", 1), ("--slosts", "--slots")),
    ]
    for arguments, words in mistakes:
        done = visualise("--out", out, *arguments)
        assert done.returncode == 2, arguments
        assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
        assert all(word in done.stderr for word in words), done.stderr
    assert not out.exists()
