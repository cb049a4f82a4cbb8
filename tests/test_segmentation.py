"""Part segmentation of users' files: labels against plain loops, and the files that are written, read back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import FACES, VERTICES, write_box, write_small_models

from pointcloud.datasets import load_split
from pointcloud.files.meshes import Shape
from pointcloud.files.ply import save_parts_ply
from pointcloud.files.segmentation import Segmentation, segment_file
from pointcloud.files.segmented_files import save_segmentation
from pointcloud.files.user_files import UserFile
from pointcloud.files.viewer import View, read_views, save_views_html
from pointcloud.models import load_model
from pointcloud.pictures import part_colours

Script = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_models(tmp_path_factory.mktemp("weights"))


def random_segmentation(count: int, shape: Shape, up: str = "z") -> Segmentation:
    """Of random places with random probabilities of three parts, the first of them number 2."""
    random = np.random.default_rng(count)
    places, raw = random.normal(size=(count, 3)), random.uniform(size=(count, 3)).astype(np.float32)
    return Segmentation(shape, places, raw / raw.sum(1, keepdims=True), 2, "y", up)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 50])
def test_parts_of_points_equal_a_loop_over_the_samples(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pointcloud.files.segmentation.QUERIES_AT_ONCE", 64)  # several chunks, the last one short
    queries = np.random.default_rng(9).normal(size=(150, 3))
    result = random_segmentation(count, Shape(queries, None))
    for query, part in zip(queries, result.label_points(), strict=True):
        distance = np.sqrt(((result.places - query) ** 2).sum(1))
        nearest = distance.argsort()[:3]
        mean = sum(result.probabilities[n].astype(np.float64) / distance[n] for n in nearest)
        assert part == 2 + int(np.argmax(mean))


def test_a_point_that_was_sampled_keeps_its_answer() -> None:
    result = random_segmentation(40, Shape(np.zeros((1, 3)), None))
    np.testing.assert_array_equal(result.parts_of(result.places), result.sampled_parts)
    # Also where all samples and queries are one point, at which distances are zero.
    one = Segmentation(result.shape, np.zeros((5, 3)), np.eye(3)[[1] * 5], 0, None, "z")
    assert one.parts_of(np.zeros((4, 3))).tolist() == [1] * 4


def test_labels_follow_the_shape_wherever_it_stands(tmp_path: Path, weights: Path) -> None:
    """Moving and scaling a file, as to the metres of a map, changes no label."""
    model = load_model(weights / "segmenter.safetensors")
    points = np.random.default_rng(0).normal(size=(500, 3))
    np.save(tmp_path / "a.npy", points)
    np.save(tmp_path / "b.npy", points * 1024 + 2.0**22)
    a, b = (segment_file(model, tmp_path / name, category="x").label_points() for name in ("a.npy", "b.npy"))
    assert (a == b).mean() > 0.99


def test_faces_and_points_are_all_labelled(tmp_path: Path, weights: Path) -> None:
    model = load_model(weights / "segmenter.safetensors")
    mesh = segment_file(model, write_box(tmp_path / "box.off"), category="Y")
    points, faces = mesh.label_points(), mesh.label_faces()
    assert mesh.category == "y" and len(points) == 8 and faces is not None and len(faces) == 12
    assert set(points) | set(faces) <= {2, 3}
    np.testing.assert_array_equal(faces, mesh.parts_of(VERTICES[FACES].mean(1)))
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).normal(size=(300, 3)))
    cloud = segment_file(model, tmp_path / "cloud.npy")
    assert cloud.label_faces() is None and len(cloud.label_points()) == 300 and cloud.category in ("x", "y")
    with pytest.raises(ValueError, match="--category z: expected one of x, y"):
        segment_file(model, tmp_path / "cloud.npy", category="z")


def test_auto_finds_the_pose_of_the_higher_mean(tmp_path: Path, weights: Path) -> None:
    model = load_model(weights / "uncategorised.safetensors")
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(300, 3)) * [1, 2, 3])
    z, y, auto = (segment_file(model, tmp_path / "a.npy", up=up) for up in ("z", "y", "auto"))
    first = model.num_points  # the choice is by the first sampling

    def sureness(result: Segmentation) -> float:
        return float(result.probabilities[:first].max(1).mean())

    assert sureness(auto) == max(sureness(z), sureness(y)) and sureness(z) != sureness(y)
    assert auto.up == ("z" if sureness(z) > sureness(y) else "y")
    assert segment_file(model, write_box(tmp_path / "box.glb"), up="auto").up == "y"


def test_the_category_is_the_one_whose_parts_are_likeliest(tmp_path: Path, weights: Path) -> None:
    """A bias towards the parts of one category makes it the answer."""
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).normal(size=(100, 3)))
    for category, name in enumerate(("x", "y")):
        model = load_model(weights / "segmenter.safetensors")
        with torch.no_grad():
            model.network.get_parameter("logits.bias")[2 * category : 2 * category + 2] += 20
        assert segment_file(model, tmp_path / "cloud.npy").category == name


def test_weights_without_categories(tmp_path: Path, weights: Path) -> None:
    model = load_model(weights / "uncategorised.safetensors")
    box = write_box(tmp_path / "box.off")
    assert segment_file(model, box).category is None
    with pytest.raises(ValueError, match="trained without categories"):
        segment_file(model, box, category="x")


def test_segment_writes_ply_png_and_page(tmp_path: Path, weights: Path, run_script: Script) -> None:
    box, cloud, bad = write_box(tmp_path / "box.off"), tmp_path / "cloud.npy", tmp_path / "bad.off"
    np.save(cloud, np.random.default_rng(0).normal(size=(300, 3)))
    bad.write_text("no")
    arguments = ("--weights", weights / "segmenter.safetensors", "--out", tmp_path / "out")
    done = run_script("segment.py", box, bad, cloud, *arguments, "--json")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and "bad.off" in done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{stem}.{kind}" for stem in ("box", "cloud") for kind in ("ply", "png", "html")}
    assert (tmp_path / "out" / "box.png").read_bytes()[:4] == b"\x89PNG"
    answers = json.loads(done.stdout)
    assert [set(answer) for answer in answers] == [
        {"file", "category", "parts", "written"},
        {"file", "error"},
        {"file", "category", "parts", "written"},
    ]
    assert sum(part["share"] for part in answers[2]["parts"]) == pytest.approx(1, abs=1e-5)
    assert answers[2]["written"] == [str(tmp_path / "out" / f"cloud.{kind}") for kind in ("ply", "png", "html")]


@pytest.mark.parametrize("up", ["z", "y"])
def test_files_read_back_as_they_were(tmp_path: Path, up: str) -> None:
    """The PLY has the file's own coordinates, colours and numbers; the page the same turned upright."""
    import trimesh

    result, names = random_segmentation(40, Shape(VERTICES + 1e6, FACES), up), [f"c/{i}" for i in range(5)]
    parts, faces, colours = result.label_points(), result.label_faces(), part_colours(names)
    done = save_segmentation(UserFile(Path("a.off")), result, names, tmp_path / "a", ("ply", "html"))
    assert done.written == [tmp_path / "a.ply", tmp_path / "a.html"] and faces is not None
    read = trimesh.load(tmp_path / "a.ply", process=False)
    np.testing.assert_array_equal(read.vertices, VERTICES + 1e6)
    np.testing.assert_array_equal(read.faces, FACES)
    raw = read.metadata["_ply_raw"]
    np.testing.assert_array_equal(raw["vertex"]["data"]["part"], parts)
    np.testing.assert_array_equal(raw["face"]["data"]["part"], faces)
    for channel, name in enumerate(("red", "green", "blue")):
        np.testing.assert_array_equal(raw["vertex"]["data"][name], colours[parts, channel])
        np.testing.assert_array_equal(raw["face"]["data"][name], colours[faces, channel])
    header = (tmp_path / "a.ply").read_bytes().partition(b"end_header")[0].decode()
    assert all(f"comment part {number} c/{number}" in header for number in {*parts, *faces})
    (view,) = read_views((tmp_path / "a.html").read_text(encoding="utf-8"))
    expected = VERTICES + 1e6 if up == "z" else Shape(VERTICES + 1e6, None).turned().points
    np.testing.assert_allclose(view["points"], expected, atol=3 / 65535)
    np.testing.assert_array_equal(view["faces"], FACES)
    np.testing.assert_array_equal(view["parts"], faces)


def test_large_ply_files_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points, parts = np.random.default_rng(0).normal(size=(100, 3)), np.arange(100) % 3
    faces = np.random.default_rng(0).integers(0, 100, (70, 3))
    arguments = (points, parts, ["a", "b", "c"], part_colours(["a", "b", "c"]))
    save_parts_ply(tmp_path / "whole.ply", *arguments, faces=faces, face_parts=np.arange(70) % 3)
    monkeypatch.setattr("pointcloud.files.ply.ROWS_AT_ONCE", 32)
    save_parts_ply(tmp_path / "pieces.ply", *arguments, faces=faces, face_parts=np.arange(70) % 3)
    assert (tmp_path / "whole.ply").read_bytes() == (tmp_path / "pieces.ply").read_bytes()


def make_page(path: Path) -> tuple[View, View]:
    """A cloud and a mesh on one page, with a title that would end the page's data if it were written as it is."""
    random = np.random.default_rng(0)
    cloud = View(random.normal(size=(60, 3)), random.integers(0, 3, 60), "</script><b>cloud")
    mesh = View(VERTICES, np.arange(12) % 2, "box", FACES)
    names = ["x/low", "x/high", "y/low"]
    save_views_html([cloud, mesh], names, part_colours(names), path)
    return cloud, mesh


def test_a_page_holds_its_shapes_and_needs_no_network(tmp_path: Path) -> None:
    views = make_page(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "") and "src=" not in page and "default-src 'none'" in page
    assert page.count("</script>") == 2 and len(page) < 20_000
    for view, shown in zip(views, read_views(page), strict=True):
        assert shown["title"] == view.title
        np.testing.assert_allclose(shown["points"], view.points, atol=np.ptp(view.points, axis=0).max() / 65535)
        np.testing.assert_array_equal(shown["parts"], view.parts)
    sides = [part["share"] for part in read_views(page)[1]["legend"]]
    assert sides == ["50%", "50%"]  # each half of a quad is of another part: equal areas


def test_a_flat_cloud_and_a_single_point_make_pages(tmp_path: Path) -> None:
    views = [View(np.ones((count, 3)), np.zeros(count, dtype=int), "one") for count in (1, 5)]
    save_views_html(views, ["a"], part_colours(["a"]), tmp_path / "page.html")
    for view in read_views((tmp_path / "page.html").read_text(encoding="utf-8")):
        np.testing.assert_allclose(view["points"], 1, atol=1e-4)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, to run the page's program")
def test_the_pages_program_unpacks_what_was_packed(tmp_path: Path) -> None:
    cloud, mesh = make_page(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = page[page.index(">", page.index('id="data"')) + 1 :].partition("</script>")[0]
    program = page.rpartition("<script>")[2].partition("</script>")[0].partition("try { start();")[0]
    ask = f"console.log(JSON.stringify({data}.map(scene => [Array.from(unpack(scene)), scene.side, scene.low])));"
    (tmp_path / "page.js").write_text(f"{program}\n{ask}", encoding="utf-8")
    done = subprocess.run(["node", tmp_path / "page.js"], capture_output=True, text=True, check=True)
    for view, (vertices, side, low) in zip((cloud, mesh), json.loads(done.stdout), strict=True):
        unpacked = np.array(vertices).reshape(-1, 4)
        points = view.points if view.faces is None else view.points[view.faces].reshape(-1, 3)
        np.testing.assert_allclose(unpacked[:, :3] / 65535 * side + low, points, atol=side / 65535)
        np.testing.assert_array_equal(unpacked[:, 3], view.parts if view.faces is None else np.repeat(view.parts, 3))


def test_folders_keep_their_places_and_inputs_are_never_overwritten(
    tmp_path: Path, weights: Path, run_script: Script
) -> None:
    for name in ("shapes/a/one.ply", "shapes/b/one.ply"):
        (tmp_path / name).parent.mkdir(parents=True)
        write_box(tmp_path / name)
    before = (tmp_path / "shapes" / "a" / "one.ply").read_bytes()
    flags = ("--weights", weights / "segmenter.safetensors", "--formats", "ply", "--category", "x")
    done = run_script("segment.py", tmp_path / "shapes", "--out", tmp_path / "shapes", *flags)
    assert done.returncode == 0, done.stderr
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.ply")}
    assert written == {f"shapes/{folder}/one{end}.ply" for folder in "ab" for end in ("", "-parts")}
    assert (tmp_path / "shapes" / "a" / "one.ply").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, weights: Path, run_script: Script
) -> None:
    (tmp_path / "file").write_text("")
    box, flags = write_box(tmp_path / "box.off"), ("--weights", weights / "segmenter.safetensors")
    done = run_script("segment.py", box, "--out", tmp_path / "file" / "out", *flags)
    assert done.returncode == 2 and "file/out" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    done = run_script("segment.py", box, "--out", tmp_path / "file", *flags)
    assert done.returncode == 2 and "--out" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_full_disk_ends_the_work_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    result = random_segmentation(10, Shape(VERTICES, FACES))
    with pytest.raises(OSError, match="a.ply: cannot be written .No space left on device.") as caught:
        save_segmentation(UserFile(Path("a.off")), result, list("abcde"), tmp_path / "a", ("ply",))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_parts_of_a_class_are_told_apart_by_colour() -> None:
    names = [f"{owner}/{part}" for owner in "ab" for part in range(20)]
    colours = part_colours(names)
    assert len(np.unique(colours[:20], axis=0)) == 20
    assert np.array_equal(colours[:20], colours[20:])


@pytest.mark.slow
def test_categories_of_shapes_are_found(tmp_path: Path) -> None:
    """With the shipped weights, which a wrong category leaves as sure of their parts as the right one."""
    model, clouds = load_model("eat-shapes-parts"), load_split("shapes", "shapes", "test")
    found = 0
    for number, name in enumerate(clouds.class_names):
        first = int((clouds.label == number).nonzero()[0])
        np.save(tmp_path / f"{name}.npy", clouds.points[first].numpy() * clouds.unit)
        found += segment_file(model, tmp_path / f"{name}.npy").category == name
    assert found >= 0.9 * len(clouds.class_names)
