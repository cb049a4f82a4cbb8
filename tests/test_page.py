"""The interactive page: what its tabs answer, what it refuses, and the page itself by its client and in a browser."""

from __future__ import annotations

import dataclasses
import io
import re
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_server import CLASSES, Served, serve_page, write_page_models
from PIL import Image
from small_models import FACES, VERTICES, write_box

from gan import page as gan_page
from gan.generator import Generator
from gan.samples.options import SampleConfig
from gan.samples.output import draw_samples
from gan.sampling import load_generator
from pointcloud import page as point_page
from pointcloud.files.prediction import classify_file
from pointcloud.files.segmentation import segment_file
from pointcloud.files.viewer import read_views
from pointcloud.models import LoadedModel, load_model
from shared_attn.runtime import page

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page_models(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def generator(weights: Path) -> Generator:
    return load_generator(weights / "generator.safetensors")


@pytest.fixture(scope="module")
def classifier(weights: Path) -> LoadedModel:
    return load_model(weights / "classifier.safetensors")


@pytest.fixture(scope="module")
def segmenter(weights: Path) -> LoadedModel:
    return load_model(weights / "segmenter.safetensors")


def pixels(path: Path | str | io.BytesIO) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def shown(view: str) -> dict[str, Any]:
    """The shape in an embedded view."""
    found = re.search(r'srcdoc="([^"]*)"', view)
    assert found
    return read_views(unescape(found[1]))[0]


@pytest.mark.parametrize(("classes", "truncation"), [((), None), (("ship", "cat"), 0.6), (("dog",), None)])
def test_samples_are_those_of_the_script(
    classes: tuple[str, ...], truncation: float | None, generator: Generator, weights: Path, tmp_path: Path
) -> None:
    drawn = gan_page.draw(generator, tmp_path, classes=classes, seed=5, truncation=truncation, count=7)
    own = SampleConfig(str(weights / "generator.safetensors"), truncation=truncation, device="cpu", classes=classes)
    draw_samples(dataclasses.replace(own, out=str(tmp_path / "script.png"), seed=5, count=7))
    assert np.array_equal(pixels(drawn.grid), pixels(tmp_path / "script.png"))
    draw_samples(dataclasses.replace(own, out=f"{tmp_path}/single/", seeds=tuple(range(5, 12))))
    assert len(drawn.images) == 7 and len({path.name for path, _ in drawn.images}) == 7
    with zipfile.ZipFile(drawn.archive) as archive:
        names = archive.namelist()
        for (path, caption), name in zip(drawn.images, names, strict=True):
            label, seed = caption.split(", seed ")
            assert name == f"{label}/seed{int(seed):06d}.png"
            assert np.array_equal(pixels(path), pixels(tmp_path / "single" / name))
            assert path.read_bytes() == archive.read(name)
    rows = len(classes) or len(CLASSES)
    per_row = -(-7 // rows)
    expected = [(label, 5 + place) for label in classes or CLASSES for place in range(per_row)][:7]
    assert [caption for _, caption in drawn.images] == [f"{label}, seed {seed}" for label, seed in expected]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 0}, "--count 0"),
        ({"count": 10**9}, "--count 1000000000: expected at most 256"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**60}, "--seed"),
        ({"truncation": 0.0}, "--truncation 0.0"),
        ({"truncation": float("nan")}, "--truncation nan"),
        ({"classes": ("caat",)}, "did you mean cat?"),
    ],
)
def test_values_that_cannot_be_drawn(options: dict[str, Any], words: str, generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        gan_page.draw(generator, tmp_path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".off", ".ply", ".glb", ".npy"])
def test_classes_and_view_of_a_file(suffix: str, classifier: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / f"a box{suffix}"
    if suffix == ".npy":
        np.save(path, np.random.default_rng(0).normal(size=(300, 3)))
    else:
        write_box(path)
    probabilities, up, view = point_page.classify(classifier, tmp_path, path)
    expected = classify_file(classifier, path, up="auto")["top5"]
    assert list(probabilities.items()) == [(top["class"], top["probability"]) for top in expected]
    assert up in ("y", "z") and (suffix != ".glb" or up == "y")
    scene = shown(view)
    assert scene["title"] == path.name
    wanted = np.load(path) if suffix == ".npy" else VERTICES
    if up == "y":
        wanted = np.stack([wanted[:, 0], -wanted[:, 2], wanted[:, 1]], axis=1)
    apart = np.linalg.norm(wanted[:, None] - scene["points"], axis=-1)
    assert len(scene["points"]) == len(wanted) and max(apart.min(0).max(), apart.min(1).max()) < 2e-4
    assert (scene["faces"] is None) == (suffix == ".npy")


def test_views_show_large_shapes_by_so_many_points(
    classifier: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_page, "SHOWN", 10)
    np.save(tmp_path / "cloud.npy", np.random.default_rng(0).normal(size=(300, 3)))
    for path in (tmp_path / "cloud.npy", write_box(tmp_path / "box.off")):
        scene = shown(point_page.classify(classifier, tmp_path, path)[2])
        assert scene["faces"] is None and len(scene["points"]) == 10


def test_a_view_is_shut_off_and_cannot_be_broken_out_of(classifier: LoadedModel, tmp_path: Path) -> None:
    path = write_box(tmp_path / '"><script>alert(1)<!--.off')
    view = point_page.classify(classifier, tmp_path, path)[2]
    assert 'sandbox="allow-scripts"' in view and view.count("<") == 2 and shown(view)["title"] == path.name


@pytest.mark.parametrize("category", [None, "y"])
def test_parts_of_a_mesh(category: str | None, segmenter: LoadedModel, tmp_path: Path) -> None:
    path = write_box(tmp_path / "box.off")
    view, table, ply = point_page.segment(segmenter, tmp_path, path, "z", category)
    result = segment_file(segmenter, path, category=category)
    names, faces, points = segmenter.header["part_names"], result.label_faces(), result.label_points()
    assert faces is not None
    rows = [re.findall(r"<td>(?:<i[^>]*></i>)?([^<]*)</td>", row) for row in table.split("</tr>")[1:-1]]
    for part, vertices_cell, faces_cell, share in rows:
        number = names.index(f"{result.category}/{part}")
        assert (int(vertices_cell), int(faces_cell)) == (sum(points == number), sum(faces == number))
        areas = np.linalg.norm(
            np.cross(*(VERTICES[FACES[:, corner]] - VERTICES[FACES[:, 0]] for corner in (1, 2))), axis=1
        )
        assert share == f"{areas[faces == number].sum() / areas.sum():.1%}"
    assert sum(int(row[1]) for row in rows) == len(VERTICES) and sum(int(row[2]) for row in rows) == len(FACES)
    assert f"{result.category}, z up" in table
    assert np.array_equal(shown(view)["parts"], faces) and shown(view)["faces"].shape == (12, 3)
    assert ply.name == "box-parts.ply" and ply.read_bytes().startswith(b"ply\n")


def test_parts_of_a_cloud(segmenter: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "cloud.npy"
    np.save(path, np.random.default_rng(0).normal(size=(300, 3)))
    view, table, _ = point_page.segment(segmenter, tmp_path, path, "z", "x")
    labels = segment_file(segmenter, path, category="x").label_points()
    counts = np.bincount(labels, minlength=4)
    order = sorted(np.flatnonzero(counts), key=lambda number: -counts[number])
    cells = [f"<td>{counts[n]}</td><td>{counts[n] / 300:.1%}</td>" for n in order]
    assert all(cell in table for cell in cells)
    assert [table.index(cell) for cell in cells] == sorted(table.index(cell) for cell in cells)
    assert "<th>points</th>" in table and "<th>faces</th>" not in table
    assert np.array_equal(shown(view)["parts"], labels)


def test_words_name_no_folder_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(page.UPLOADS, str(tmp_path / "files"))
    for folder in ("files/0abc", "answer-x"):
        error = ValueError(f"{tmp_path / folder / 'bad shape.off'}: not a readable\n.off file (and/or)")
        assert page.tell(error) == "bad shape.off: not a readable .off file (and/or)"
    assert page.tell(OSError("/elsewhere/x: full")) == "/elsewhere/x: full"
    assert capsys.readouterr().err == ""
    assert "log" in page.tell(ZeroDivisionError("secret")) and "secret" not in page.tell(ZeroDivisionError("secret"))
    assert "secret" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("127.0.0.1", 0, 50), "--port 0"),
        (("127.0.0.1", 70000, 50), "--port 70000"),
        (("127.0.0.1", None, 0), "--max-upload 0"),
        (("192.0.2.1", None, 50), "--address 192.0.2.1"),
        (("no such address", None, 50), "--address no such address"),
    ],
)
def test_places_that_cannot_be_had(arguments: tuple[str, int | None, int], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        page.check_place(*arguments)


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=f"--port {port}: cannot be served at"):
            page.check_place("127.0.0.1", port, 50)
    page.check_place("127.0.0.1", None, 50)


@pytest.mark.parametrize(
    ("address", "local"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)]
)
def test_what_is_local(address: str, local: bool) -> None:
    assert page.is_local(address) == local


def test_without_gradio_one_line_says_what_to_install() -> None:
    code = (
        "import runpy, sys; sys.modules['gradio'] = None; sys.path.insert(0, 'scripts'); sys.argv = ['app.py']\n"
        "runpy.run_path('scripts/app.py', run_name='__main__')"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: the page needs gradio, which is not installed: {page.INSTALL}\n"


def test_a_gradio_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(page.importlib.metadata, "version", lambda _: "4.44.1")
    with pytest.raises(ValueError, match="gradio 6 or newer, this is 4.44.1: pip install"):
        page.check_gradio()


@pytest.mark.slow
def test_mistakes_at_the_start_are_one_line(run_script: Script, weights: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'eagan-eat[app]'")
    for flags, words in [
        (("--gan", "eagan-cifar10-smal"), "did you mean eagan-cifar10-small?"),
        (("--classifier", weights / "segmenter.safetensors"), "expected a pointcloud.classifier"),
        (("--port", "99999"), "--port 99999"),
    ]:
        done = run_script("app.py", *flags)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and words in done.stderr


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'eagan-eat[app]'")
    with serve_page(tmp_path_factory.mktemp("page"), "--max-upload", "1") as served:
        yield served


@pytest.fixture
def client(served: Served, tmp_path: Path) -> Any:
    from gradio_client import Client

    return Client(served.url, verbose=False, analytics_enabled=False, download_files=tmp_path / "got")


def upload(path: Path) -> Any:
    from gradio_client import handle_file

    return handle_file(path)


def value_of(answer: Any) -> Any:
    """An answer of gradio's client, also where it changes more of a component than its value."""
    return answer["value"] if isinstance(answer, dict) and "__type__" in answer else answer


@pytest.mark.slow
def test_each_user_gets_what_was_asked_for(served: Served, client: Any, tmp_path: Path) -> None:
    """Calls at the same time, each with its own answer, equal to the functions' behind the page."""
    generator = load_generator(served.weights / "generator.safetensors")
    classifier = load_model(served.weights / "classifier.safetensors")
    boxes = []
    for number in range(4):
        boxes.append(tmp_path / f"{number}.npy")
        np.save(boxes[-1], np.random.default_rng(number).normal(size=(100, 3)) * [1, 1, 1 + number])
    with ThreadPoolExecutor(8) as pool:
        samples = [pool.submit(client.predict, ["cat"], seed, 0, 3, api_name="/sample") for seed in range(4)]
        classes = [pool.submit(client.predict, upload(box), "z", api_name="/classify") for box in boxes]
    for seed, sampled in enumerate(samples):
        drawn = gan_page.draw(generator, tmp_path, classes=["cat"], seed=seed, count=3)
        _, grid, single, archive = map(value_of, sampled.result())
        assert np.array_equal(pixels(drawn.grid), pixels(grid))
        assert [item["caption"] for item in single] == [caption for _, caption in drawn.images]
        for item, (path, _) in zip(single, drawn.images, strict=True):
            assert np.array_equal(pixels(item["image"]), pixels(path))
        assert zipfile.ZipFile(archive).namelist() == [f"cat/seed{own:06d}.png" for own in range(seed, seed + 3)]
    for box, answered in zip(boxes, classes, strict=True):
        label = value_of(answered.result()[1])
        expected = classify_file(classifier, box)["top5"]
        assert {item["label"]: item["confidence"] for item in label["confidences"]} == {
            top["class"]: top["probability"] for top in expected
        }
    for _ in range(100):  # what an answer was written to goes once the page has it
        if not list(served.temporary.glob("*/answer-*")):
            break
        time.sleep(0.1)
    assert not list(served.temporary.glob("*/answer-*"))


@pytest.mark.slow
def test_mistakes_are_words_and_the_page_lives_on(client: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.off"
    bad.write_text("OFF\n3 1 0\nnonsense")
    for name, further in (("/classify", ()), ("/segment", ("(guess)",))):
        message, *answers = client.predict(upload(bad), "auto", *further, api_name=name)
        assert "bad.off: not a readable .off file" in str(message) and "Traceback" not in str(message)
        assert not any(answers)
        assert str(tmp_path) not in str(message) and "/bad.off" not in str(message)
    message, *_ = client.predict([], -1, 0, 4, api_name="/sample")
    assert "--seed -1" in str(message)
    answers = client.predict(upload(write_box(tmp_path / "box.ply")), "z", "x", api_name="/segment")
    _, view, table, ply = map(value_of, answers)
    assert "vertices" in str(table) and Path(ply).read_bytes().startswith(b"ply\n")
    assert shown(str(view))["faces"] is not None


@pytest.mark.slow
def test_files_too_large_or_not_uploaded_are_refused(served: Served, client: Any, tmp_path: Path) -> None:
    import httpx  # gradio's

    large = tmp_path / "large.off"
    large.write_bytes(b"OFF" + bytes(2**21))
    with pytest.raises(ValueError, match="exceeds the maximum file size"):  # gradio's client does not even send it
        client.predict(upload(large), "z", api_name="/classify")
    sent = httpx.post(f"{served.url}gradio_api/upload", files={"files": large.open("rb")})
    assert sent.status_code == 413 and "maximum allowed size" in sent.text
    assert httpx.post(f"{served.url}gradio_api/process_recording", files={"video": b"x"}).status_code == 404
    inside = served.log.parent / "private.off"
    write_box(inside)
    for place in ("http://192.0.2.1/box.off", "FTP://192.0.2.1/box.off", inside.as_uri(), str(inside)):
        file = {"path": place, "url": place, "meta": {"_type": "gradio.FileData"}}
        called = httpx.post(f"{served.url}gradio_api/call/classify", json={"data": [file, "z"]}).json()
        answer = httpx.get(f"{served.url}gradio_api/call/classify/{called['event_id']}", timeout=60).text
        assert "event: error" in answer and "srcdoc" not in answer
    assert not [path for path in served.temporary.rglob("*.off") if path.stat().st_size > 2**20]
