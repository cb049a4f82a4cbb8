"""The rasteriser against plain loops, and what the pictures must show."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shared_attn.shapes import CLASS_NAMES, CLASS_PART_COUNT, CLASS_PART_START, create_mesh, render, rendering
from shared_attn.shapes.draw import Draw, create_generator
from shared_attn.shapes.materials import Look, draw_look
from shared_attn.shapes.mesh import assemble
from shared_attn.shapes.primitives import ball, box
from shared_attn.shapes.raster import covered_samples, planes, visible_faces


def triangles(count: int, side: int) -> Tensor:
    """Random triangles (F, 3, 3), partly outside the picture, some of them slivers."""
    corners = torch.rand(count, 3, 3, dtype=torch.float64, generator=create_generator(count))
    corners[..., :2] = (corners[..., :2] * 1.6 - 0.3) * side
    corners[::5, 2] = corners[::5, 1] + 0.05 * (corners[::5, 2] - corners[::5, 1])
    return corners


def barycentric(corner: Tensor, x: float, y: float) -> Tensor:
    matrix = torch.cat([corner[:, :2].T, torch.ones(1, 3, dtype=torch.float64)])
    return torch.linalg.solve(matrix, torch.tensor([x, y, 1.0], dtype=torch.float64))


def test_covered_samples_equal_a_loop_over_all_samples() -> None:
    side, corners = 11, triangles(40, 11)
    face, column, row = covered_samples(corners, side)
    found = set(zip(face.tolist(), column.tolist(), row.tolist(), strict=True))
    assert len(found) == len(face)
    expected = {
        (f, i, j)
        for f in range(len(corners))
        for i in range(side)
        for j in range(side)
        if barycentric(corners[f], i + 0.5, j + 0.5).min() > 0
    }
    assert found == expected
    assert len(expected) > 200


def test_visible_faces_equal_a_loop_with_a_depth_buffer() -> None:
    side, corners = 9, triangles(60, 9)
    picture = torch.arange(60) % 2
    sample, face = visible_faces(corners, picture, 2, side)
    expected: dict[int, tuple[float, int]] = {}
    for f, (corner, number) in enumerate(zip(corners, picture.tolist(), strict=True)):
        for j in range(side):
            for i in range(side):
                weight = barycentric(corner, i + 0.5, j + 0.5)
                if weight.min() > 0:
                    near = (weight * corner[:, 2]).sum().item()
                    place = (number * side + j) * side + i
                    expected[place] = max(expected.get(place, (-1.0, 0)), (near, f))
    assert dict(zip(sample.tolist(), face.tolist(), strict=True)) == {k: f for k, (_, f) in expected.items()}


def test_equal_depths_go_to_the_first_face() -> None:
    corner = torch.tensor([[-9.0, -9, 0.3], [30.0, -9, 0.3], [-9.0, 30, 0.3]], dtype=torch.float64)
    shifted = corner.roll(1, 0) + torch.tensor([0.1, 0.2, 1e-12])  # the same plane but for rounding
    for pair in (torch.stack([corner, shifted]), torch.stack([shifted, corner])):
        sample, face = visible_faces(pair, torch.zeros(2, dtype=torch.int64), 1, 4)
        assert sample.tolist() == list(range(16))
        assert (face == 0).all()


def test_planes_reproduce_the_corners() -> None:
    corners = triangles(20, 5)[1:5]
    values = torch.rand(4, 3, 2, dtype=torch.float64)
    base, right, down = planes(corners, values).unbind(1)
    for k in range(3):
        x, y = corners[:, k, :1], corners[:, k, 1:2]
        assert torch.allclose(base + right * (x - 0.5) + down * (y - 0.5), values[:, k])


def test_a_picture_depends_on_its_own_seed_alone() -> None:
    meshes = [create_mesh(name, 5) for name in CLASS_NAMES]
    together = render(meshes, range(len(meshes)), size=16)
    for i in (0, 7, len(meshes) - 1):
        assert torch.equal(render([meshes[i]], [i], size=16)[0], together[i])
    assert not torch.equal(render([meshes[0]], [99], size=16)[0], together[0])


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_pictures_show_something_and_differ(name: str) -> None:
    meshes = [create_mesh(name, seed) for seed in range(8)]
    images = render(meshes, range(8), size=32).double()
    contrast = images.flatten(2).std(2).amax(1)
    assert contrast.min() > 8, "an empty picture"
    assert images.std(0).mean() > 20, "pictures of a class hardly differ"


RED, BLUE, GREEN = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9), (0.2, 0.9, 0.2)


def render_two(monkeypatch: pytest.MonkeyPatch, blue_y: float, shadow: float = 0.0) -> Tensor:
    """A red box and, at y = blue_y, a blue ball before green, seen from the front, a little from above: (3, 48, 48)."""
    mesh = assemble("mug", [(0, box(2, 0.5, 2)), (0, ball(0.5, 0.5, 0.5, 24, 12).move(y=blue_y, z=0.8))])
    look = Look(
        yaw=0.0,
        elevation=15.0,
        light_yaw=30.0,
        light_elevation=60.0,
        ambient=0.5,
        paints=[(*RED, 0.0), (*BLUE, 0.0)],
        backdrop=(GREEN, GREEN),
        shadow=shadow,
        fill=0.8,
        shift=(0.0, 0.0),
    )
    monkeypatch.setattr(rendering, "draw_look", lambda *_: look)
    return render([mesh], [0], size=48)[0].double() / 255


def test_what_is_in_front_hides_what_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    for y, seen in ((3.0, False), (-3.0, True)):
        image = render_two(monkeypatch, y)
        assert ((image[2] > 0.3) & (image[0] < 0.2)).any().item() is seen
        assert (image[0] > 0.3).any()


def test_light_falls_from_above(monkeypatch: pytest.MonkeyPatch) -> None:
    image = render_two(monkeypatch, -3.0)
    ball_pixels = (image[2] > 0.2) & (image[0] < 0.15) & (image[1] < 0.15)
    rows = ball_pixels.any(1).nonzero().squeeze(1)
    middle = ball_pixels.nonzero()[:, 1].double().mean().round().int()
    column = image[2, :, middle]
    assert column[rows[1]] > 1.3 * column[rows[-2]]


def test_the_shadow_darkens_the_ground_only(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, shaded = (render_two(monkeypatch, -3.0, shadow) for shadow in (0.0, 0.6))
    assert (plain[:, 0] - torch.tensor(GREEN)[:, None]).abs().max() < 0.01  # the backdrop's own colour
    darker = (plain - shaded).amax(0)
    assert darker.min() > -1e-9
    assert darker.max() > 0.3
    assert 0.02 < (darker > 0.1).double().mean() < 0.4
    assert darker[plain[1] < 0.11].max() < 0.06  # red and blue are as before, but for pixels that share an edge


def test_a_part_has_one_colour_but_books_have_many() -> None:
    start = CLASS_PART_START[CLASS_NAMES.index("bookshelf")]
    look = draw_look(Draw("look", 1), "bookshelf", [start, start, start + 2, start + 2])
    assert look.paints[0] == look.paints[1]
    assert look.paints[2] != look.paints[3]


def test_colours_stay_in_range() -> None:
    for name, start, count in zip(CLASS_NAMES, CLASS_PART_START, CLASS_PART_COUNT, strict=True):
        for seed in range(20):
            look = draw_look(Draw(seed), name, list(range(start, start + count)))
            for colour in (*look.paints, *look.backdrop):
                assert all(0 <= channel <= 1 for channel in colour)


def test_finer_sampling_converges() -> None:
    meshes = [create_mesh(name, 2) for name in ("chair", "car", "lamp")]
    fine = render(meshes, [1, 2, 3], size=24, oversample=9).double()
    errors = [(render(meshes, [1, 2, 3], size=24, oversample=k).double() - fine).abs().mean() for k in (1, 3)]
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 3


def test_wrong_requests_are_refused() -> None:
    mesh = create_mesh("mug", 0)
    with pytest.raises(ValueError, match="size and oversample"):
        render([mesh], [0], size=0)
    with pytest.raises(ValueError, match="got 2 for 1 meshes"):
        render([mesh], [0, 1])
    assert render([], []).shape == (0, 3, 32, 32)
