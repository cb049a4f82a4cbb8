"""Samples follow from their seeds; weights leave and come back bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gan
from gan.generator import Generator
from gan.pictures import GAP, tile, write_grid
from gan.samples.interpolation import choose_times, follow_classes, follow_latents, interpolate_latents
from gan.sampling import (
    KIND,
    draw_images,
    draw_latents,
    find_classes,
    finish_generator,
    load_generator,
    to_bytes,
)
from shared_attn.runtime.weights import save_weights

MODEL = {"image_size": 32, "num_classes": 3, "width": 4, "attention": "external"}


def tiny() -> Generator:
    torch.manual_seed(1)
    return finish_generator(Generator(**MODEL), MODEL, seed=0)


def saved(path: Path, generator: Generator) -> Path:
    header = {"kind": KIND, "model": MODEL, "class_names": ["cat", "dog", "ship"], "data": {"name": "toy"}}
    save_weights(path, generator.state_dict(), header)
    return path


def drawn(generator: Generator, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(draw_images(generator, z, labels)))


def test_a_loaded_generator_draws_the_same_bits(tmp_path: Path) -> None:
    generator = tiny()
    loaded = gan.load_generator(saved(tmp_path / "weights.safetensors", generator))
    assert loaded.class_names == ["cat", "dog", "ship"] and loaded.header["data"] == {"name": "toy"}
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    z, labels = draw_latents(range(70), 128), torch.arange(70) % 3
    with torch.no_grad():
        assert torch.equal(loaded(z, labels), generator(z, labels))
    assert torch.equal(drawn(loaded, z, labels), drawn(generator, z, labels))
    by_folder = load_generator(tmp_path)
    assert torch.equal(drawn(by_folder, z, labels), drawn(generator, z, labels))


def test_sample_k_depends_on_seed_k_and_its_class_alone() -> None:
    generator = tiny()
    z, labels = draw_latents(range(100), 128), torch.arange(100) % 3
    images = drawn(generator, z, labels)
    for chosen in ([5], [99, 0, 41], list(range(60, 93))):
        again = drawn(generator, draw_latents(chosen, 128), labels[chosen])
        assert torch.equal(again, images[chosen])
    assert len({image.numpy().tobytes() for image in images}) == 100


def test_truncation_bounds_and_keeps_the_order() -> None:
    z = draw_latents(range(200), 128)
    assert abs(float(z.mean())) < 0.02 and float(z.std()) == pytest.approx(1, abs=0.02)
    short = draw_latents(range(200), 128, truncation=0.7)
    assert short.abs().max() <= 0.7
    assert (short.flatten()[z.flatten().argsort()].diff() >= 0).all()
    # The truncated normal's own variance: 1 - 2 t phi(t) / (2 Phi(t) - 1).
    t = torch.tensor(0.7)
    normal = torch.distributions.Normal(0, 1)
    variance = 1 - 2 * t * normal.log_prob(t).exp() / (2 * normal.cdf(t) - 1)
    assert float(short.var()) == pytest.approx(float(variance), rel=0.02)
    torch.testing.assert_close(draw_latents([3], 128, truncation=9.0), draw_latents([3], 128), rtol=1e-5, atol=1e-5)


def test_interpolation_passes_along_the_great_circle() -> None:
    ends = draw_latents([0, 1], 128)
    times = choose_times(2, 9, loop=False)
    assert times.tolist() == [number / 8 for number in range(9)]
    path = follow_latents(ends, times)
    assert torch.equal(path[0], ends[0]) and torch.equal(path[-1], ends[1])
    start, end = ends.double()
    length = torch.lerp(start.norm(), end.norm(), times)
    angle = torch.arccos(start @ end / (start.norm() * end.norm()))
    for number, t in enumerate(times):  # turned by a share of the angle in the plane of both ends
        across = end - start * (start @ end) / (start @ start)
        turned = torch.cos(t * angle) * start / start.norm() + torch.sin(t * angle) * across / across.norm()
        torch.testing.assert_close(path[number].double(), turned * length[number], rtol=1e-5, atol=1e-5)
    same = ends[:1].expand(3, -1)
    torch.testing.assert_close(interpolate_latents(same, same, torch.linspace(0, 1, 3)), same)
    opposite = interpolate_latents(same, -same, torch.tensor([0.0, 0.25, 1.0]))
    assert opposite.isfinite().all() and torch.equal(opposite[0], same[0])


def test_paths_meet_their_way_points_to_the_bit_and_close() -> None:
    points = draw_latents(range(4), 128)
    open_path = follow_latents(points, choose_times(4, 10, loop=False))
    assert torch.equal(open_path[::3], points)
    loop = follow_latents(points, choose_times(4, 12, loop=True))
    assert torch.equal(loop[::3], points)
    # A film can start anew after its last frame: the step from there to the first is like the others of that leg.
    closing = torch.nn.functional.cosine_similarity(loop[[9, 10, 11]], loop[[10, 11, 0]]).arccos()
    torch.testing.assert_close(closing, closing[:1].expand(3), rtol=1e-3, atol=1e-4)
    weights = follow_classes([2, 0, 3], 5, choose_times(3, 6, loop=True))
    expected = torch.zeros(6, 5)
    for row, blend in enumerate([{2: 1}, {2: 0.5, 0: 0.5}, {0: 1}, {0: 0.5, 3: 0.5}, {3: 1}, {3: 0.5, 2: 0.5}]):
        for number, share in blend.items():
            expected[row, number] = share
    assert torch.equal(weights, expected)


def test_bytes_are_rounded() -> None:
    values = torch.tensor([-1.0, 1.0, 0.0, 0.5 / 127.5 - 1e-3, 2.0])
    assert to_bytes(values).tolist() == [0, 255, 128, 128, 255]


def test_classes_by_name_and_number() -> None:
    names = ["cat", "dog", "7"]
    assert find_classes(["dog", "0", "7", "cat"], names) == [1, 0, 2, 0]
    assert find_classes([], names) == []
    with pytest.raises(ValueError, match=r"--classes dgo: .* did you mean dog\?"):
        find_classes(["dgo"], names)
    with pytest.raises(ValueError, match="--classes 3: expected a number below 3"):
        find_classes(["3"], names)


def test_a_grid_shows_every_image_in_its_place(tmp_path: Path) -> None:
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    tiles = tile(images, 3)
    pitch = tiles.shape[2] // 3
    scale = (pitch - GAP) // 32
    assert tiles.shape == (3, 2 * pitch, 3 * pitch)
    for index, image in enumerate(images):
        top, left = index // 3 * pitch, index % 3 * pitch
        assert torch.equal(tiles[:, top : top + 32 * scale : scale, left : left + 32 * scale : scale], image)
    assert (tiles[:, pitch:, 2 * pitch :] == 255).all()
    shown = write_grid(tmp_path / "grid.png", images, 3, ["first", "second"])
    page = np.asarray(Image.open(tmp_path / "grid.png"))
    margin = page.shape[1] - tiles.shape[2]
    assert margin > 20 and np.array_equal(page[:, margin:], shown.permute(1, 2, 0).numpy())
    for row in range(2):  # a name beside each row
        assert (page[row * pitch : (row + 1) * pitch, :margin] < 128).any()


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    generator = tiny()
    state = generator.state_dict()
    header = {"kind": KIND, "model": MODEL, "class_names": ["a", "b", "c"]}
    save_weights(tmp_path / "other.safetensors", state, {**header, "kind": "pointcloud.classifier"})
    with pytest.raises(ValueError, match=r"holds a pointcloud.classifier, expected a gan.generator"):
        load_generator(tmp_path / "other.safetensors")
    for name, model in {"wider": {**MODEL, "width": 8}, "unknown": {**MODEL, "depth": 3}}.items():
        save_weights(tmp_path / f"{name}.safetensors", state, {**header, "model": model})
        with pytest.raises(ValueError, match="do not describe a generator"):
            load_generator(tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="--weights nowhere"):
        load_generator("nowhere")
