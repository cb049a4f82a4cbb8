"""The meshes of the embedded data set and the solids they are made of."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shared_attn.shapes import (
    CLASS_NAMES,
    CLASS_PART_COUNT,
    CLASS_PART_START,
    NUM_PARTS,
    PART_NAMES,
    LabelledMesh,
    create_mesh,
    sample_surface,
)
from shared_attn.shapes.catalogue import CATALOGUE
from shared_attn.shapes.draw import Draw, create_generator
from shared_attn.shapes.materials import MATERIALS
from shared_attn.shapes.mesh import assemble, face_normals
from shared_attn.shapes.primitives import (
    FLAT,
    GROUPS,
    Solid,
    _alternate,
    ball,
    box,
    curve,
    cushion,
    cylinder,
    extrude,
    radius_at,
    revolve,
    rod,
    tube,
)

SEEDS = range(25)


def volume(vertices: Tensor, faces: Tensor) -> float:
    a, b, c = vertices[faces].unbind(1)
    return abs((a * torch.linalg.cross(b, c)).sum().item()) / 6


def assert_closed(mesh: LabelledMesh) -> None:
    """Every edge runs once each way, within one solid; every solid's signed volume is positive."""
    a, b, c = mesh.faces.unbind(1)
    start, end, solid = torch.cat([a, b, c]), torch.cat([b, c, a]), mesh.solid.repeat(3)
    V = len(mesh.vertices)
    forth, back = (solid * V + start) * V + end, (solid * V + end) * V + start
    assert len(forth.unique()) == len(forth)
    assert torch.equal(forth.sort().values, back.sort().values)
    corners = mesh.vertices[mesh.faces]
    signed = (corners[:, 0] * torch.linalg.cross(corners[:, 1], corners[:, 2])).sum(1)
    assert (torch.bincount(mesh.solid, signed) > 1e-9).all()


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_meshes_are_closed_solids_with_labelled_parts(name: str) -> None:
    number = CLASS_NAMES.index(name)
    start, count = CLASS_PART_START[number], CLASS_PART_COUNT[number]
    found = torch.zeros(count)
    for seed in SEEDS:
        mesh = create_mesh(name, seed)
        assert mesh.vertices.dtype == torch.float64
        assert mesh.faces.dtype == mesh.part.dtype == torch.int64
        assert mesh.class_name == name
        assert_closed(mesh)
        normals = face_normals(mesh.vertices, mesh.faces)
        area = normals.norm(dim=1)
        assert area.min() > 1e-6  # no degenerate face
        assert mesh.vertices.norm(dim=1).max() == pytest.approx(1.0)
        centroid = (mesh.vertices[mesh.faces].mean(1) * area[:, None]).sum(0) / area.sum()
        assert centroid.abs().max() < 1e-9
        parts = mesh.part.unique() - start
        assert parts.min() >= 0
        assert parts.max() < count
        assert len(parts) >= 2
        found[parts] += 1
    assert (found >= 2).all(), f"parts too rare: {found.tolist()}"


def test_names_and_numbers_of_parts_agree() -> None:
    assert len(CLASS_NAMES) >= 12
    assert NUM_PARTS == len(PART_NAMES) == sum(CLASS_PART_COUNT) == len(set(PART_NAMES))
    for name, start, count in zip(CLASS_NAMES, CLASS_PART_START, CLASS_PART_COUNT, strict=True):
        assert count >= 2
        assert all(part.startswith(f"{name}/") for part in PART_NAMES[start : start + count])


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_every_material_exists_and_copies_come_later(name: str) -> None:
    known: set[str] = set()
    for part, materials in CATALOGUE[name].parts.items():
        for material in materials:
            assert material[1:] in known if material.startswith("=") else material in {*MATERIALS, "glass"}
        known.add(part)


def chamfer(a: Tensor, b: Tensor) -> Tensor:
    """Mean distance to the nearest point of the other cloud, both ways; (..., P, 3) each."""
    distance = torch.cdist(a, b)
    return distance.amin(-1).mean(-1) + distance.amin(-2).mean(-1)


def clouds(name: str, seeds: range, count: int, again: str = "") -> Tensor:
    """(len(seeds), count, 3) points of the meshes of a class; `again` draws other points of the same meshes."""
    drawn = [sample_surface(create_mesh(name, seed), count, create_generator(seed, again))[0] for seed in seeds]
    return torch.stack(drawn).float()


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_shapes_of_a_class_differ_and_a_seed_repeats(name: str) -> None:
    first = clouds(name, range(6), 512)
    assert torch.equal(first, clouds(name, range(6), 512))
    noise = chamfer(first, clouds(name, range(6), 512, "again")).mean()
    distance = chamfer(first[:, None], first[None])[~torch.eye(6, dtype=torch.bool)]
    assert distance.median() > 1.15 * noise
    assert distance.max() > 1.4 * noise
    meshes = [create_mesh(name, seed) for seed in SEEDS]
    assert len({(len(mesh.faces), mesh.vertices[0, 0].item()) for mesh in meshes}) == len(SEEDS)


def test_shapes_are_nearer_to_their_class_than_to_others() -> None:
    probes = torch.cat([clouds(name, range(2), 128) for name in CLASS_NAMES])
    others = torch.cat([clouds(name, range(2, 10), 128) for name in CLASS_NAMES])
    nearest = torch.stack([chamfer(probe, others).argmin() for probe in probes]) // 8
    assert (nearest == torch.arange(len(CLASS_NAMES)).repeat_interleave(2)).double().mean() >= 0.8


def test_an_unknown_class_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'spoon'.*aeroplane.*teapot"):
        create_mesh("spoon", 0)


def test_a_saved_mesh_reads_back_in_trimesh(tmp_path: Path) -> None:
    mesh = create_mesh("teapot", 3)
    mesh.save(tmp_path / "teapot.off")
    read = trimesh.load(tmp_path / "teapot.off", process=False)
    assert isinstance(read, trimesh.Trimesh)
    assert read.is_watertight
    assert torch.equal(torch.from_numpy(read.faces.copy()).long(), mesh.faces)
    assert torch.allclose(torch.from_numpy(read.vertices.copy()), mesh.vertices, atol=1e-6)


def test_assembly_turns_mirrored_solids_outward() -> None:
    solid = ball(1, 2, 3)
    mesh = assemble("ball", [(0, solid), (1, solid.stretch(x=-1).move(x=5))])
    assert_closed(mesh)
    assert torch.bincount(mesh.part).tolist() == [len(solid.faces)] * 2


def test_volumes_of_solids() -> None:
    def of(solid: Solid) -> float:
        assert_closed(assemble("solid", [(0, solid)]))
        return volume(solid.vertices, solid.faces)

    polygon = 12 / 2 * math.sin(2 * math.pi / 12)  # area of a twelve-sided unit "circle"
    assert of(box(1, 2, 3)) == pytest.approx(6)
    assert of(box(2, 2, 3, taper=(0.5, 0.5))) == pytest.approx(7)  # frustum: (4 + 2 + 1) * 3 / 3
    assert of(box(1, 2, 3, lean=(0.4, 0.3))) == pytest.approx(6)
    assert of(cylinder(2, 1, 4, segments=12)) == pytest.approx(polygon * 4 * 3)
    assert of(revolve([(1, 0), (0, 3)], 12)) == pytest.approx(polygon)  # cone
    assert of(revolve([(0, -1), (1, 0), (0, 1)], 12)) == pytest.approx(polygon * 2 / 3)  # double cone
    ring = revolve([(2, 0), (3, 0), (3, 1), (2, 1)], 12, loop=True)
    assert of(ring) == pytest.approx(polygon * (9 - 4))
    assert of(extrude([(0, 0), (2, 0), (2, 1), (0, 1)], 3)) == pytest.approx(6)
    assert of(rod((0, 0, 0), (0, 3, 4), 0.5, segments=4)) == pytest.approx(5)
    assert of(tube([(0, 0, 0), (0, 0, 1), (0, 0, 2)], 1.0, segments=12)) == pytest.approx(polygon * 2)
    assert 0.9 * 24 < of(cushion(2, 3, 4, 0.3)) < 24
    assert of(ball(1, 2, 3, 32, 16)) == pytest.approx(4 / 3 * math.pi * 6, rel=0.03)


def test_moving_turning_and_stretching() -> None:
    solid = box(2, 4, 6)
    moved = solid.move(1, 2, 3).vertices
    assert moved.amin(0).tolist() == [0, 0, 3]
    for axis, expected in {"x": [2, 6, 4], "y": [6, 4, 2], "z": [4, 2, 6]}.items():
        turned = solid.turn(axis, 90).vertices
        assert torch.allclose(turned.amax(0) - turned.amin(0), torch.tensor(expected, dtype=torch.float64))
    point = Solid(torch.tensor([[1.0, 0.0, 0.0]]).double(), solid.faces, solid.smooth)
    assert torch.allclose(point.turn("z", 90).vertices, torch.tensor([[0.0, 1.0, 0.0]]).double())


def test_creases_of_a_cylinder_are_sharp_and_of_a_ball_are_not() -> None:
    capped = cylinder(1, 0, 1, segments=8)
    assert (capped.smooth == FLAT).sum() == 16  # two fans
    assert (ball(1, 1, 1).smooth == 0).all()


@given(st.lists(st.booleans(), min_size=2, max_size=12), st.booleans())
def test_smoothing_groups_change_at_creases_only(creases: list[bool], loop: bool) -> None:
    groups = _alternate(creases, loop)
    assert all(0 <= group < GROUPS for group in groups)
    single = loop and sum(creases) == 1
    for i in range(0 if loop else 1, len(creases)):
        assert (groups[i] != groups[i - 1]) == (creases[i] and not single)


def test_curves_pass_through_their_points_and_keep_straight_lines() -> None:
    points = [(0.0, 0.0), (1.0, 2.0), (3.0, 1.0)]
    bent = curve(points, 4)
    assert [bent[0], bent[4], bent[8]] == points
    assert len(curve(points, 4, loop=True)) == 12
    line = curve([(0.0, 0.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)], 5)
    assert all(x == pytest.approx(y) for x, y in line)


def test_radius_along_a_profile() -> None:
    profile = [(1.0, 0.0), (3.0, 2.0), (3.0, 4.0)]
    assert [radius_at(profile, z) for z in (-1, 0, 1, 3, 9)] == [1.0, 1.0, 2.0, 3.0, 3.0]


def test_draws_repeat_and_stay_in_range() -> None:
    assert [Draw("a", 1).uniform(0, 1)] == [Draw("a", 1).uniform(0, 1)] != [Draw("a", 2).uniform(0, 1)]
    draw = Draw(0)
    assert {draw.integer(2, 4) for _ in range(100)} == {2, 3, 4}
    assert {draw.choice("x", "y") for _ in range(50)} == {"x", "y"}
    assert all(3 <= draw.uniform(3, 5) <= 5 for _ in range(100))
    assert 300 < sum(draw.chance(0.4) for _ in range(1000)) < 500
