"""What `scripts/sample_gan.py` writes: class grids, films that loop, folders that go on where they stopped."""

from __future__ import annotations

import builtins
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gan.data.files import open_files
from gan.generator import Generator
from gan.pictures import GAP, HEAD, choose_blocks, draw_page
from gan.samples import folder as sample_folder
from gan.samples.animation import write_film
from gan.samples.films import draw_pages, plan_film
from gan.samples.folder import name_folders
from gan.samples.grids import plan_grid
from gan.samples.options import SampleConfig, check_samples, find_form
from gan.samples.output import draw_samples
from gan.sampling import KIND, draw_images, draw_latents, finish_generator, load_generator
from shared_attn.runtime.weights import save_weights

BOTH = ("interpolate", "interpolate_classes")
NAMES = ["cat", "dog", "ship"]
MODEL = {"image_size": 32, "num_classes": 3, "width": 4, "attention": "external"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    generator = finish_generator(Generator(**MODEL), MODEL, seed=0)
    path = tmp_path_factory.mktemp("run") / "weights.safetensors"
    save_weights(path, generator.state_dict(), {"kind": KIND, "model": MODEL, "class_names": NAMES, "data": {}})
    return path


@pytest.fixture
def config(weights: Path) -> SampleConfig:
    return SampleConfig(weights=str(weights), device="cpu")


def draw(config: SampleConfig, out: Path | str, **options: Any) -> str:
    return draw_samples(dataclasses.replace(config, out=str(out), **options))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def one_by_one(generator: Generator, seed: int, weights: list[float], truncation: float | None = None) -> np.ndarray:
    """The image of a seed and class weights, drawn alone, (H, W, 3)."""
    z = draw_latents([seed], generator.latent_dim, truncation)
    image = next(draw_images(generator, z, torch.tensor([weights], dtype=torch.float32)))[0]
    return image.permute(1, 2, 0).numpy()


def test_an_image_does_not_depend_on_its_place_or_its_neighbours(weights: Path) -> None:
    generator = load_generator(weights)
    z, labels = draw_latents(range(64), 128), torch.arange(64) % 3
    images = next(draw_images(generator, z, labels))
    order = torch.randperm(64)
    assert torch.equal(next(draw_images(generator, z[order], labels[order])), images[order])
    others = z.clone()
    others[1::2] = 5 * torch.randn(32, 128)
    assert torch.equal(next(draw_images(generator, others, labels))[::2], images[::2])


def test_a_folder_is_a_data_set_of_images_that_depend_on_seed_and_class_alone(
    config: SampleConfig, tmp_path: Path, weights: Path
) -> None:
    assert draw(config, tmp_path / "all", count=70, truncation=0.8) == f"{tmp_path / 'all'}: 70 images written"
    listed = open_files(tmp_path / "all")  # as data to train on
    names = [listed.class_names[label] for label in listed.labels]
    assert names == ["cat"] * 24 + ["dog"] * 23 + ["ship"] * 23
    stems = [Path(listed.describe(item)).stem for item in range(len(listed.labels))]
    assert {int(stem.removeprefix("seed")) for stem in stems} == set(range(70))
    generator = load_generator(weights)
    for seed in (0, 1, 50, 69):
        shown = pixels(tmp_path / "all" / NAMES[seed % 3] / f"seed{seed:06d}.png")
        alone = [float(number == seed % 3) for number in range(3)]
        assert np.array_equal(shown, one_by_one(generator, seed, alone, 0.8))
    # The same seeds asked for in another way, of other classes, in another number.
    draw(config, f"{tmp_path / 'some.few'}/", seeds=(50, 3, 50), classes=("ship", "0"), truncation=0.8)
    written = sorted(path.relative_to(tmp_path / "some.few").as_posix() for path in tmp_path.rglob("some.few/*/*.png"))
    assert written == [f"{name}/seed0000{seed}.png" for name in ("cat", "ship") for seed in ("03", "50")]
    for path in ("cat/seed000003.png", "ship/seed000050.png"):
        assert (tmp_path / "some.few" / path).read_bytes() == (tmp_path / "all" / path).read_bytes()


def test_an_interrupted_folder_goes_on(config: SampleConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(config, tmp_path / "whole", count=150)
    drawn = sample_folder.draw_images
    calls: list[int] = []

    def interrupted(generator: Generator, z: torch.Tensor, labels: torch.Tensor) -> Any:
        calls.append(len(z))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return drawn(generator, z, labels)

    monkeypatch.setattr(sample_folder, "draw_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw(config, tmp_path / "parts", count=150)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.png")}
    assert len(before) == 64 and not list((tmp_path / "parts").rglob("*.tmp"))
    torn, *kept = sorted(before)
    torn.write_bytes(torn.read_bytes()[:-20])  # as a power cut leaves a file
    calls.clear()
    calls.append(0)
    monkeypatch.setattr(sample_folder, "draw_images", drawn)
    assert draw(config, tmp_path / "parts", count=150).endswith("87 images written, 63 kept")
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)
    for path in (tmp_path / "whole").rglob("*.*"):
        assert (tmp_path / "parts" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert draw(config, tmp_path / "parts", count=150).endswith("0 images written, 150 kept")


def test_a_folder_of_something_else_is_left_alone(config: SampleConfig, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("x")
    with pytest.raises(ValueError, match="holds other files and no samples.json"):
        draw(config, tmp_path / "mine", count=2)
    draw(config, tmp_path / "samples", count=2)
    with pytest.raises(ValueError, match=r"samples drawn otherwise: truncation None \(now 0.5\)"):
        draw(config, tmp_path / "samples", count=2, truncation=0.5)
    (tmp_path / "samples" / "samples.json").write_text("{")
    with pytest.raises(ValueError, match="samples.json: cannot be read"):
        draw(config, tmp_path / "samples", count=2)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="--out .*file/below: cannot be written"):
        draw(config, tmp_path / "file" / "below", count=2)


def test_a_full_disk_is_one_line_and_loses_nothing(
    config: SampleConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.write_bytes

    def full(self: Path, data: Any) -> int:
        if "seed000005" in self.name:
            raise OSError(28, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"--out .*seed000005.png: cannot be written \(No space left on device\)"):
        draw(config, tmp_path / "samples", count=9)
    monkeypatch.setattr(Path, "write_bytes", real)
    assert not list(tmp_path.rglob("*.tmp"))
    draw(config, tmp_path / "samples", count=9)
    assert len(list((tmp_path / "samples").rglob("seed*.png"))) == 9


def test_folders_have_safe_and_different_names() -> None:
    names = name_folders(["cat", "Cat", "../../etc/x", "", ".hidden", "a:b", "a?b", "n01440764"])
    assert names == ["cat", "Cat_1", "_.._etc_x", "class", "hidden", "a_b", "a_b_6", "n01440764"]


def test_a_grid_has_a_row_a_class(config: SampleConfig, tmp_path: Path, weights: Path) -> None:
    generator = load_generator(weights)
    assert draw(config, tmp_path / "a.png", seeds=(7, 2), classes=("ship", "cat")).endswith("4 images, 2 a class")
    page = pixels(tmp_path / "a.png")
    pitch = 2 * 32 + GAP
    left = page.shape[1] - 2 * pitch
    for row, label in enumerate((2, 0)):
        for column, seed in enumerate((7, 2)):
            shown = page[row * pitch : row * pitch + 64 : 2, left + column * pitch : left + column * pitch + 64 : 2]
            assert np.array_equal(shown, one_by_one(generator, seed, [float(label == number) for number in range(3)]))
    for count, rows, columns in ((1, 1, 1), (2, 2, 1), (4, 2, 2), (64, 3, 22)):
        grid = plan_grid(generator, dataclasses.replace(config, count=count), [0, 1, 2])
        assert (len(grid.z), len(grid.row_names), grid.columns) == (count, rows, columns)


def test_two_hundred_classes_stand_in_blocks() -> None:
    images = torch.randint(255, (200, 3, 32, 32), dtype=torch.uint8)
    names = [f"class {number}" for number in range(200)]
    page = np.asarray(draw_page(images, 1, names, fold=True))
    assert page.shape[0] <= 1.5 * page.shape[1]
    pitch = 2 * 32 + GAP
    deep = page.shape[0] // pitch
    blocks = -(-200 // deep)
    width = page.shape[1] // blocks
    for number in (0, deep - 1, deep, 199):  # every class keeps its name on the left and its image
        top, right = number % deep * pitch, (number // deep + 1) * width
        assert np.array_equal(
            page[top : top + 64 : 2, right - pitch : right - GAP : 2], images[number].permute(1, 2, 0)
        )
        assert (page[top : top + 64, right - width : right - pitch] < 128).any()
    assert choose_blocks(10, 66, 542) == 1 and choose_blocks(1, 66, 10) == 1


def test_interpolations_in_grids_meet_their_way_points(config: SampleConfig, weights: Path, tmp_path: Path) -> None:
    generator = load_generator(weights)
    between = dataclasses.replace(config, interpolate=True, seeds=(4, 9, 1), classes=("dog",), count=None)
    grid = plan_grid(generator, between, [1])
    assert torch.equal(grid.z[[0, (grid.columns - 1) // 2, -1]], draw_latents([4, 9, 1], 128))
    classes = dataclasses.replace(config, interpolate_classes=True, seeds=(4, 9))
    grid = plan_grid(generator, classes, [2, 0])
    assert grid.row_names == ["seed 4", "seed 9"]
    assert grid.column_names[0] == "ship" and grid.column_names[-1] == "cat" and not any(grid.column_names[1:-1])
    blend = torch.linspace(0, 1, grid.columns)
    expected = torch.stack([blend, torch.zeros(grid.columns), 1 - blend], dim=1).repeat(2, 1)
    torch.testing.assert_close(grid.labels, expected)
    both = plan_grid(generator, dataclasses.replace(classes, interpolate=True, count=12), [2, 0])
    rows = len(both.z) // both.columns
    assert torch.equal(both.z[: both.columns], both.z[-both.columns :])  # across the seeds pass, down the classes
    assert torch.equal(both.z[[0, both.columns - 1]], draw_latents([4, 9], 128))
    torch.testing.assert_close(both.labels[:: both.columns, 0], torch.linspace(0, 1, rows))
    draw(config, tmp_path / "c.png", interpolate_classes=True, seeds=(4, 9), count=6)
    assert pixels(tmp_path / "c.png").shape[0] == HEAD + 2 * (2 * 32 + GAP)


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
@pytest.mark.parametrize(
    "move", [{}, {"interpolate_classes": True}, {"interpolate": True, "interpolate_classes": True}]
)
def test_films_show_their_pages(
    config: SampleConfig, weights: Path, tmp_path: Path, suffix: str, move: dict[str, bool]
) -> None:
    if suffix == ".mp4":
        pytest.importorskip("av")
    out = tmp_path / f"film{suffix}"
    said = draw(config, out, count=6, frames=7, fps=10, classes=("dog", "cat", "ship"), **move)
    assert said == f"{out}: 7 frames, 0.7 s"
    frames, seconds = read_film(out)
    assert len(frames) == 7 and seconds == pytest.approx(0.7, abs=0.01)
    generator = load_generator(weights)
    film = plan_film(
        generator,
        count=6,
        classes=[1, 0, 2],
        move_latents=move.get("interpolate", not move),
        move_classes=move.get("interpolate_classes", False),
        frames=7,
    )
    pages = [np.asarray(page) for page in draw_pages(generator, film, None, range(7))]
    for frame, page in zip(frames, pages, strict=True):
        height, width = page.shape[:2]
        light = frame[:height, :width].mean(-1) - page.mean(-1)  # colours of an MP4 have half the resolution
        assert np.abs(light).mean() < 6
    assert np.abs(pages[3].astype(float) - pages[0]).mean() > 0.1
    assert not (tmp_path / f".film{suffix}.tmp").exists()


def read_film(path: Path) -> tuple[list[np.ndarray], float]:
    """Frames (H, W, 3) and the length in seconds."""
    if path.suffix == ".mp4":
        import av

        with av.open(str(path)) as film:
            frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
            assert film.duration is not None
            return frames, film.duration / 1e6
    frames, seconds = [], 0.0
    with Image.open(path) as film:
        assert film.info["loop"] == 0  # for ever
        for number in range(film.n_frames):
            film.seek(number)
            frames.append(np.asarray(film.convert("RGB")))
            seconds += film.info["duration"] / 1000
    return frames, seconds


def test_a_film_passes_named_seeds_and_closes(weights: Path) -> None:
    generator = load_generator(weights)
    film = plan_film(
        generator, count=5, seeds=(8, 3, 6), classes=[0, 2], move_latents=True, move_classes=False, frames=6
    )
    pages = [np.asarray(page) for page in draw_pages(generator, film, 0.9, [0, 2, 4])]
    pitch = 2 * 32 + GAP
    for seed, page in zip((8, 3, 6), pages, strict=True):
        for row, label in enumerate((0, 2)):
            shown = page[row * pitch : row * pitch + 64 : 2, page.shape[1] - pitch : page.shape[1] - GAP : 2]
            alone = [float(label == number) for number in range(3)]
            assert np.array_equal(shown, one_by_one(generator, seed, alone, 0.9))
    later = next(draw_pages(generator, film, 0.9, [2]))  # a page is the same whichever others are drawn
    assert np.array_equal(np.asarray(later), pages[1])


def test_uneven_rates_keep_a_gifs_length(tmp_path: Path) -> None:
    def pages(numbers: Any) -> Any:
        for number in numbers:
            yield Image.new("RGB", (4, 4), (number * 8, 0, 0))

    write_film(tmp_path / "a.gif", pages, 30, 24)  # 24 a second are 4.17 hundredths each
    assert read_film(tmp_path / "a.gif")[1] == pytest.approx(1.25)


def test_mp4_without_its_library_is_one_line(config: SampleConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "av", raising=False)
    with pytest.raises(ValueError, match=r"--out a.mp4: MP4 needs PyAV: pip install 'eagan-eat\[film\]'"):
        draw(config, "a.mp4")


def test_standing_statistics_are_those_of_the_batches_asked_for(
    config: SampleConfig, weights: Path, tmp_path: Path
) -> None:
    plain, standing = load_generator(weights), load_generator(weights)
    from gan.sampling import stand_statistics

    stand_statistics(standing)  # as they were when the weights were finished with seed 0
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(standing.state_dict()[name], value)
    inputs: list[torch.Tensor] = []
    norm = standing.blocks[0].norm1.norm  # type: ignore[union-attr,index]
    norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0].double()))  # type: ignore[union-attr]
    stand_statistics(standing, batches=3, batch_size=8, truncation=0.5)
    assert [len(given) for given in inputs] == [8, 8, 8]
    mean = torch.stack([given.mean((0, 2, 3)) for given in inputs]).mean(0)
    variance = torch.stack([given.var((0, 2, 3)) for given in inputs]).mean(0)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-4, atol=1e-6)  # type: ignore[union-attr]
    common = {"truncation": 0.5, "stats": True, "stats_batches": 3, "stats_batch_size": 8}
    draw(config, tmp_path / "a", seeds=(5,), classes=("dog",), **common)
    shown = pixels(tmp_path / "a" / "dog" / "seed000005.png")
    assert np.array_equal(shown, one_by_one(standing, 5, [0, 1, 0], 0.5))
    assert not np.array_equal(shown, one_by_one(plain, 5, [0, 1, 0], 0.5))
    assert json.loads((tmp_path / "a" / "samples.json").read_text())["stats"] == [3, 8]


def test_forms_follow_from_the_name(tmp_path: Path) -> None:
    (tmp_path / "there.png").mkdir()
    forms = {"a.PNG": "grid", "a.gif": "film", "b/a.Mp4": "film", "a": "folder", "a.b/": "folder"}
    assert {out: find_form(out) for out in forms} == forms
    assert find_form(str(tmp_path / "there.png")) == "folder"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"out": "a.jpg"}, "--out a.jpg: expected a file .png"),
        ({"count": 0}, "--count 0: expected at least 1"),
        ({"truncation": 0.0}, "--truncation 0.0: expected more than 0"),
        ({"truncation": float("nan")}, "--truncation nan: expected more than 0"),
        ({"seed": -1}, "--seed -1: expected 0 or more"),
        ({"seeds": (3, -2)}, "--seeds -2: expected 0 or more"),
        ({"seeds": (3,), "count": 4}, "--count 4: --seeds says how many"),
        ({"frames": 5}, "--frames 5: has a meaning only for a .gif or .mp4"),
        ({"out": "a.gif", "fps": 60}, "--fps 60: expected at most 50"),
        ({"out": "folder", "interpolate": True}, "--out folder: an interpolation needs a file"),
        ({"out": "a.gif", "seeds": (3,)}, "--seeds 3: an interpolation needs at least two"),
        ({"interpolate_classes": True, "classes": ("dog",)}, "--classes dog: an interpolation between classes needs"),
        ({"stats_batches": 3}, "--stats-batches 3: has a meaning only with --stats"),
    ],
)
def test_mistakes_name_the_flag(config: SampleConfig, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as mistake:
        check_samples(dataclasses.replace(config, **options))
    assert words in str(mistake.value)


def test_weights_by_folder_file_and_shipped_name(config: SampleConfig, weights: Path, tmp_path: Path) -> None:
    draw(config, tmp_path / "file.png", count=3)
    draw(dataclasses.replace(config, weights=str(weights.parent)), tmp_path / "run.png", count=3)
    assert (tmp_path / "file.png").read_bytes() == (tmp_path / "run.png").read_bytes()
    draw(dataclasses.replace(config, weights="eagan-cifar10-small"), tmp_path / "shipped.png", count=10)
    for wrong, words in {
        "eagan-cifar10-smal": "did you mean eagan-cifar10-small",
        "runs/none": r"\(shipped weights: .*eagan-cifar10-small",
        str(tmp_path): "the folder holds no weights.safetensors",
        "eat-lpsb": "holds a pointcloud.segmenter, expected a gan.generator",
        str(tmp_path / "file.png"): "not a readable .safetensors file",
    }.items():
        with pytest.raises(ValueError, match=words):
            draw(dataclasses.replace(config, weights=wrong), tmp_path / "x.png")
    save_weights(tmp_path / "b.safetensors", load_generator(weights).state_dict(), {"kind": KIND, "model": MODEL})
    with pytest.raises(ValueError, match="do not describe a generator"):
        draw(dataclasses.replace(config, weights=str(tmp_path / "b.safetensors")), tmp_path / "x.png")
